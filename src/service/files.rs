//! Files that must survive: state and secrets, replaced whole or not at all.
//!
//! - Layer: edge
//! - Takes: a path, bytes and a mode.
//! - Gives: the file with just these bytes, on disk, or the old one untouched. Whose it was, it stays; what root makes anew
//!   belongs to whom its directory belongs to.
//! - On failure: `io::Error`; no half-written file under the name, no temporary file left where that can be helped.
//! - See: fsync(2), rename(2): the data is synced before the rename and the directory after it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

/// Replaces (or creates) a file: temporary file beside it, sync, rename, sync of the directory.
///
/// # Errors
/// Those of the file system; the old file then still stands, except where only the last sync of the directory failed.
#[allow(clippy::disallowed_methods, reason = "this is the one place that renames")]
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = directory_of(path);
    let owner = owner_for(path, mode)?;
    let temporary = temporary_name(path);
    let written = write_synced(&temporary, bytes, mode, owner).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    File::open(directory)?.sync_all()
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    path.with_file_name(name)
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// User and group.
type Owner = (u32, u32);

/// Who a file belongs to once it is written: to whom it did before; a new one of root's to whom its directory belongs to, since
/// that is the user mailtap runs as. Others can give no file away, and keep only the group, where that may read it.
fn owner_for(path: &Path, mode: u32) -> io::Result<Option<Owner>> {
    let old = fs::metadata(path).ok();
    let user = nix::unistd::geteuid();
    if user.is_root() {
        let like = old.map_or_else(|| fs::metadata(directory_of(path)), Ok)?;
        return Ok(Some((like.uid(), like.gid())));
    }
    Ok(old.filter(|_| mode & 0o070 != 0).map(|old| (user.as_raw(), old.gid())))
}

fn write_synced(path: &Path, bytes: &[u8], mode: u32, owner: Option<Owner>) -> io::Result<()> {
    // One that was left here goes first: in somebody else's directory it could be a link to any file.
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    give(&file, owner)?;
    // The mode of open(2) is cut by the umask.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn give(file: &File, owner: Option<Owner>) -> io::Result<()> {
    let made = file.metadata()?;
    match owner.filter(|owner| *owner != (made.uid(), made.gid())) {
        Some((user, group)) => fchown(file, Some(user), Some(group)).map_err(|error| {
            let text = format!("it can't be given to user {user} and group {group}, as it has to be: {error}; run this as root");
            io::Error::new(error.kind(), text)
        }),
        None => Ok(()),
    }
}

/// Appends one line to a file, which is made if it is missing.
///
/// # Errors
/// Those of the file system.
pub fn append_line(path: &Path, line: &str) -> io::Result<()> {
    let made = OpenOptions::new().append(true).create_new(true).open(path);
    let mut file = match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            OpenOptions::new().append(true).open(path)?
        }
        made => {
            let file = made?;
            if nix::unistd::geteuid().is_root() {
                let directory = fs::metadata(directory_of(path))?;
                give(&file, Some((directory.uid(), directory.gid())))?;
            }
            file
        }
    };
    file.write_all(format!("{line}\n").as_bytes())
}

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// Those of the file system, and `InvalidData` for a longer file.
pub fn read_limited(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read(File::open(path)?, limit)
}

/// Reads a regular file of at most `limit` bytes that is no symbolic link, whatever its name has become since somebody
/// looked.
///
/// # Errors
/// Those of the file system, and `InvalidData` for a longer file or another kind of it.
pub fn read_regular(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    read(file, limit)
}

fn read(file: File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("longer than {limit} bytes")));
    }
    Ok(bytes)
}

/// Whether others than the owner may read or write the file.
///
/// # Errors
/// Those of the file system.
pub fn is_open_to_others(path: &Path) -> io::Result<bool> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o077 != 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_with_the_mode_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        fs::write(&path, "old and longer").unwrap();
        replace(&path, b"new", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert!(!is_open_to_others(&path).unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_file_stays_its_owners_and_a_new_one_of_roots_is_the_directorys() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let owner = |name: &str| {
            let meta = fs::metadata(directory.path().join(name)).unwrap();
            (meta.uid(), meta.gid())
        };
        std::os::unix::fs::chown(directory.path(), Some(12_345), Some(23_456)).unwrap();
        replace(&directory.path().join("new"), b"new", 0o600).unwrap();
        append_line(&directory.path().join("log"), "one").unwrap();
        append_line(&directory.path().join("log"), "two").unwrap();
        assert_eq!([owner("new"), owner("log")], [(12_345, 23_456); 2]);
        assert_eq!(fs::read(directory.path().join("log")).unwrap(), b"one\ntwo\n");
        std::os::unix::fs::chown(directory.path().join("new"), Some(0), Some(34_567)).unwrap();
        replace(&directory.path().join("new"), b"newer", 0o600).unwrap();
        assert_eq!(owner("new"), (0, 34_567));
    }

    #[test]
    fn what_was_left_under_the_temporary_name_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("state"), directory.path().join("other"));
        fs::write(&other, "precious").unwrap();
        std::os::unix::fs::symlink(&other, temporary_name(&path)).unwrap();
        replace(&path, b"new", 0o600).unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"precious");
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
    }

    #[test]
    fn a_failure_leaves_the_old_file_and_no_temporary_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("taken");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), "x").unwrap();
        assert!(replace(&path, b"new", 0o600).is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_over_the_limit_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        fs::write(&path, "1234").unwrap();
        assert_eq!(read_limited(&path, 4).unwrap(), b"1234");
        assert!(read_limited(&path, 3).is_err());
    }
}
