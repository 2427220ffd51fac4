//! The list of withdrawn consents as a file.
//!
//! - Layer: edge
//! - Takes: a path.
//! - Gives: `WithdrawnFile`, which reads the file again when it changed; the file replaced whole.
//! - On failure: `ConsentFileError` with the path and the remedy. A reload that fails keeps the list in use.
//! - Limits: a file of 256 MiB; changes are seen within the interval at which the caller asks.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;

use super::{Consent, Consents, Purpose, Withdrawn, WithdrawnError};
use crate::identity::Pseudonym;
use crate::service::files;

const MAX_FILE_BYTES: u64 = 256 * 1024 * 1024;
const MODE: u32 = 0o640;

/// Why the list can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConsentFileError {
    /// It is not there.
    #[error("{}: there is no such list of withdrawn consents; `mailtap consent init` makes it", .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file system said no.
    #[error("{}: {error}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        #[source]
        error: io::Error,
    },
    /// Its content is not what it should be.
    #[error("{}: {error}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        error: WithdrawnError,
    },
}

/// The list of a process: clones share it, and `refresh` brings in what changed on disk.
#[derive(Debug, Clone)]
pub struct WithdrawnFile(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    list: ArcSwap<Withdrawn>,
    seen: Mutex<Option<Stamp>>,
}

/// What tells one version of a file from another.
type Stamp = (Option<SystemTime>, u64, u64);

impl WithdrawnFile {
    /// Opens the list.
    ///
    /// # Errors
    /// See [`ConsentFileError`].
    pub fn open(path: &Path) -> Result<Self, ConsentFileError> {
        let seen = stamp(path);
        let list = load(path)?;
        let (list, seen) = (ArcSwap::from_pointee(list), Mutex::new(seen));
        Ok(Self(Arc::new(Shared { path: path.to_owned(), list, seen })))
    }

    /// Reads the file again if it changed; tells whether it did.
    ///
    /// # Errors
    /// Those of `open`; the list in use stays, and the next call tries again.
    pub fn refresh(&self) -> Result<bool, ConsentFileError> {
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(&self.0.path);
        if now.is_some() && now == *seen {
            return Ok(false);
        }
        self.0.list.store(Arc::new(load(&self.0.path)?));
        *seen = now;
        Ok(true)
    }

    /// The list as of now.
    #[must_use]
    pub fn current(&self) -> Arc<Withdrawn> {
        self.0.list.load_full()
    }
}

impl Consents for WithdrawnFile {
    fn decide(&self, recipient: Option<&Pseudonym>, purpose: Purpose) -> Consent {
        self.0.list.load().decide(recipient, purpose)
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.modified().ok(), meta.ino(), meta.len()))
}

fn load(path: &Path) -> Result<Withdrawn, ConsentFileError> {
    let io = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => ConsentFileError::Missing { path: path.to_owned() },
        _ => ConsentFileError::Io { path: path.to_owned(), error },
    };
    let bytes = files::read_limited(path, MAX_FILE_BYTES).map_err(io)?;
    let text =
        String::from_utf8(bytes).map_err(|error| io(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    Withdrawn::parse(&text).map_err(|error| ConsentFileError::Content { path: path.to_owned(), error })
}

/// Changes the list under a lock, so that two administrators don't undo each other's change; `make` makes a missing one.
///
/// # Errors
/// See [`ConsentFileError`]; the file is then as it was.
pub fn update(path: &Path, make: bool, change: impl FnOnce(&mut Withdrawn)) -> Result<(), ConsentFileError> {
    let io = |error| ConsentFileError::Io { path: path.to_owned(), error };
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The directory is locked, not the file: the file is replaced.
    let lock = fs::File::open(directory).map_err(io)?;
    lock.lock().map_err(io)?;
    let mut list = match load(path) {
        Err(ConsentFileError::Missing { .. }) if make => Withdrawn::default(),
        loaded => loaded?,
    };
    change(&mut list);
    files::replace(path, list.to_text().as_bytes(), MODE).map_err(io)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::consent::Refused;

    #[test]
    fn a_withdrawal_arrives_and_a_broken_or_missing_file_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("withdrawn.list");
        let ann = Pseudonym::from([1; 12]);
        let error = WithdrawnFile::open(&path).unwrap_err();
        assert!(error.to_string().contains("mailtap consent init"), "{error}");
        assert!(update(&path, false, |_| ()).is_err());
        update(&path, true, |_| ()).unwrap();
        let file = WithdrawnFile::open(&path).unwrap();
        let decide = || file.decide(Some(&ann), Purpose::Clicks);
        assert_eq!((file.refresh().unwrap(), decide()), (false, Consent::Granted));
        update(&path, false, |list| list.withdraw(ann, Refused::ALL)).unwrap();
        assert_eq!((file.refresh().unwrap(), decide()), (true, Consent::Denied));
        files::replace(&path, b"what?", 0o640).unwrap();
        assert!(file.refresh().is_err());
        assert_eq!(decide(), Consent::Denied, "who withdrew stays withdrawn");
        // As while cp copies another list over it.
        let mut whole = Withdrawn::default();
        whole.withdraw(ann, Refused::ALL);
        let whole = whole.to_text();
        for part in ["", whole.split_at(whole.len() / 2).0] {
            fs::write(&path, part).unwrap();
            let error = file.refresh().unwrap_err().to_string();
            assert!(error.contains("copy it again"), "{error}");
            assert_eq!(decide(), Consent::Denied, "{part}");
            assert!(update(&path, true, |_| ()).is_err(), "not mended by forgetting");
        }
        fs::remove_file(&path).unwrap();
        assert!(file.refresh().is_err());
        assert_eq!(decide(), Consent::Denied);
    }
}
