//! The directory of `/.well-known/`, read into memory and read again when it changes.
//!
//! - Layer: edge
//! - Takes: a directory.
//! - Gives: `Files`.
//! - On failure: an error at the start; later the files in use stay, which is told once.
//! - Limits: 256 files of 256 KiB, one directory deep; regular files only, links are not followed.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::{ArcSwap, Guard};

use super::happenings::{FilesLoaded, FilesRejected};
use super::well_known::{Files, is_name};
use crate::service::files;

const MAX_FILES: usize = 256;
const MAX_FILE_BYTES: u64 = 256 * 1024;

/// A directory, or none, and what was in it.
#[derive(Debug, Default)]
pub(super) struct Directory {
    path: Option<PathBuf>,
    current: ArcSwap<Files>,
    /// What was looked at last, whether it could be used or not.
    seen: Mutex<Vec<Found>>,
}

/// A file, and what tells one version of it from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    name: String,
    modified: Option<SystemTime>,
    /// Of its rights and owner, too.
    changed: (i64, i64),
    inode: u64,
    bytes: u64,
}

impl Directory {
    /// Reads a directory; nothing stays empty.
    pub(super) fn open(path: Option<&Path>) -> io::Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        let seen = scan(path)?;
        let current = ArcSwap::from_pointee(load(path, &seen)?);
        Ok(Self { path: Some(path.to_owned()), current, seen: Mutex::new(seen) })
    }

    /// The files as of now.
    pub(super) fn current(&self) -> Guard<Arc<Files>> {
        self.current.load()
    }

    /// Reads the directory again if it changed.
    pub(super) fn refresh(&self) {
        let Some(path) = &self.path else { return };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let read = match scan(path) {
            Ok(now) if now == *seen => return,
            Ok(now) => {
                seen.clone_from(&now);
                load(path, &now)
            }
            // Said again only after it has worked in between.
            Err(_) if seen.is_empty() => return,
            Err(error) => {
                seen.clear();
                Err(error)
            }
        };
        match read {
            Ok(files) => {
                FilesLoaded { directory: path, files: files.len() }.emit();
                self.current.store(Arc::new(files));
            }
            Err(error) => FilesRejected { directory: path, error: &error }.emit(),
        }
    }
}

/// The files that are shown, in order.
fn scan(directory: &Path) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for (name, meta) in entries(directory, "")? {
        if meta.is_dir() {
            let inner = entries(&directory.join(&name), &format!("{name}/"))?;
            found.extend(inner.into_iter().filter(|(_, meta)| meta.is_file()).map(file));
        } else if meta.is_file() {
            found.push(file((name, meta)));
        }
        if found.len() > MAX_FILES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("more than {MAX_FILES} files")));
        }
    }
    found.sort();
    Ok(found)
}

fn entries(directory: &Path, prefix: &str) -> io::Result<Vec<(String, fs::Metadata)>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if let Some(name) = entry.file_name().to_str().filter(|name| is_name(name)) {
            // Of a link itself: it is neither file nor directory.
            match entry.metadata() {
                Ok(meta) => entries.push((format!("{prefix}{name}"), meta)),
                // Gone since: challenges come and go.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if entries.len() > MAX_FILES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("more than {MAX_FILES} files")));
        }
    }
    Ok(entries)
}

fn file((name, meta): (String, fs::Metadata)) -> Found {
    let changed = (meta.ctime(), meta.ctime_nsec());
    Found { name, modified: meta.modified().ok(), changed, inode: meta.ino(), bytes: meta.len() }
}

fn load(directory: &Path, found: &[Found]) -> io::Result<Files> {
    let mut loaded = Files::default();
    for Found { name, .. } in found {
        match files::read_regular(&directory.join(name), MAX_FILE_BYTES) {
            Ok(bytes) => loaded.add(name.clone(), bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io::Error::new(error.kind(), format!("{name}: {error}"))),
        }
    }
    Ok(loaded)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn files_come_and_go_and_nothing_else_is_shown() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::write(root.join("security.txt"), "Contact: mailto:a@example.org\n").unwrap();
        fs::write(root.join(".hidden"), "x").unwrap();
        fs::write(root.join("with blank"), "x").unwrap();
        fs::create_dir_all(root.join("acme-challenge/deeper")).unwrap();
        fs::write(root.join("acme-challenge/deeper/file"), "x").unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        std::os::unix::fs::symlink(outside.path(), root.join("link.txt")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("etc")).unwrap();
        let shown = Directory::open(Some(root)).unwrap();
        let names = |shown: &Directory| shown.current().len();
        assert_eq!(names(&shown), 1);
        assert_eq!(shown.current().find("security.txt").unwrap().content_type, "text/plain; charset=utf-8");

        fs::write(root.join("acme-challenge/token"), "key").unwrap();
        shown.refresh();
        assert_eq!(shown.current().find("acme-challenge/token").unwrap().bytes, "key");
        assert_eq!(names(&shown), 2);
        fs::remove_file(root.join("acme-challenge/token")).unwrap();
        shown.refresh();
        assert_eq!(names(&shown), 1);

        fs::write(root.join("big"), vec![0; 256 * 1024 + 1]).unwrap();
        shown.refresh();
        assert_eq!(names(&shown), 1, "what is too large changes nothing");
        assert!(Directory::open(Some(root)).unwrap_err().to_string().contains("big"));
        fs::remove_file(root.join("big")).unwrap();
        for number in 0..300 {
            fs::write(root.join(format!("many-{number}")), "").unwrap();
        }
        shown.refresh();
        assert!(names(&shown) == 1 && Directory::open(Some(root)).is_err());
        fs::remove_dir_all(root).unwrap();
        shown.refresh();
        assert_eq!(names(&shown), 1);
    }
}
