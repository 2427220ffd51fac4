//! The keyring and the pseudonym key as files.
//!
//! - Layer: edge
//! - Takes: paths.
//! - Gives: `Keys`, which reads the file again when it changed; files of mode 0600, replaced whole.
//! - On failure: `KeyFileError` with the path and the remedy. A reload that fails keeps the keyring in use.
//! - Limits: a keyring of 1 MiB; changes are seen within the interval at which the caller asks.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use rand::TryRng;

use super::ring::{Key, Keyring, RingError, Use};
use crate::identity::PseudonymKey;
use crate::service::{clock, files};

const MAX_FILE_BYTES: u64 = 1024 * 1024;
const MODE: u32 = 0o600;
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Why a key file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// There is no such keyring.
    #[error("{}: there is no keyring; copy it from another host or restore it, or make the first one: {}", .path.display(), maker(*.use_))]
    Missing {
        /// The file.
        path: PathBuf,
        /// What it would be for.
        use_: Use,
    },
    /// There is no pseudonym key.
    #[error("{}: there is no pseudonym key; {NO_PSEUDONYM_KEY}", .path.display())]
    NoPseudonymKey {
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
    /// It can't be replaced by a new one, which is made beside it.
    #[error("{}: no new one can be made in {}: {error}{}", .path.display(), directory_of(.path).display(), remedy(.error))]
    Save {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        #[source]
        error: io::Error,
    },
    /// Others can read or write the file.
    #[error("{path}: others can read this secret; run: chmod 600 {path}", path = .path.display())]
    OpenToOthers {
        /// The file.
        path: PathBuf,
    },
    /// It is there already.
    #[error("{}: exists already; mailtap never overwrites a key", .path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Its content is not what it should be.
    #[error("{}: {error}", .path.display())]
    Ring {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        error: RingError,
    },
    /// Not 32 bytes of base64url.
    #[error("{}: not a pseudonym key (32 bytes of base64url)", .path.display())]
    Pseudonym {
        /// The file.
        path: PathBuf,
    },
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random,
}

/// What to do where the pseudonym key is missing.
pub const NO_PSEUDONYM_KEY: &str = "copy it from another host or restore it: with another one every recipient is a stranger; the first \
    one `mailtap init` makes, or: (umask 077; head -c 32 /dev/urandom | basenc --base64url | tr -d = > FILE)";

/// The command that makes a keyring.
#[must_use]
pub const fn maker(use_: Use) -> &'static str {
    match use_ {
        Use::Tokens => "`mailtap keys init`",
        Use::Handoff => "`mailtap keys --use handoff init`",
    }
}

/// The keyring of a process: clones share it, and `refresh` brings in what changed on disk.
#[derive(Debug, Clone)]
pub struct Keys(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    use_: Use,
    ring: ArcSwap<Keyring>,
    seen: Mutex<Option<Stamp>>,
    /// When somebody looked again because of a key that is not in it.
    asked: Mutex<Option<Instant>>,
}

/// What tells one version of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    inode: u64,
    bytes: u64,
}

impl Keys {
    /// Opens the keyring.
    ///
    /// # Errors
    /// `Missing`, `Io`, `OpenToOthers`, `Ring`.
    pub fn open(path: &Path) -> Result<Self, KeyFileError> {
        Self::open_for(path, Use::Tokens)
    }

    /// Opens a keyring of another use.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn open_for(path: &Path, use_: Use) -> Result<Self, KeyFileError> {
        let stamp = stamp(path);
        let ring = load_ring_for(path, use_)?;
        Ok(Self(Arc::new(Shared {
            path: path.to_owned(),
            use_,
            ring: ArcSwap::from_pointee(ring),
            seen: Mutex::new(stamp),
            asked: Mutex::default(),
        })))
    }

    /// Opens the keyring, or begins without a key where that fails, and says why; `refresh` takes it as soon as it can be read.
    #[must_use]
    pub fn open_or_wait(path: &Path) -> (Self, Option<KeyFileError>) {
        match Self::open(path) {
            Ok(keys) => (keys, None),
            Err(error) => {
                let waiting = Shared {
                    path: path.to_owned(),
                    use_: Use::Tokens,
                    ring: ArcSwap::from_pointee(Keyring::empty(Use::Tokens)),
                    seen: Mutex::new(None),
                    asked: Mutex::default(),
                };
                (Self(Arc::new(waiting)), Some(error))
            }
        }
    }

    /// A keyring that is not in a file, for tests.
    #[must_use]
    pub fn fixed(ring: Keyring) -> Self {
        Self(Arc::new(Shared {
            path: PathBuf::new(),
            use_: Use::Tokens,
            ring: ArcSwap::from_pointee(ring),
            seen: Mutex::new(None),
            asked: Mutex::default(),
        }))
    }

    /// The keyring as of now.
    #[must_use]
    pub fn current(&self) -> Arc<Keyring> {
        self.0.ring.load_full()
    }

    /// Whether the file could not be read yet, at any time.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        self.current().keys().is_empty()
    }

    /// Reads the file again if it changed; tells whether it did.
    ///
    /// # Errors
    /// Those of `open`; the keyring in use stays, and the next call tries again.
    pub fn refresh(&self) -> Result<bool, KeyFileError> {
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(&self.0.path);
        if now.is_some() && now == *seen {
            return Ok(false);
        }
        self.0.ring.store(Arc::new(load_ring_for(&self.0.path, self.0.use_)?));
        *seen = now;
        Ok(true)
    }

    /// Reads the file again, if it changed, for a key that is not in the keyring: it may be newer than the last look. Tells whether it
    /// did. However often this is asked, the file is looked at once in a while, and nobody waits for who looks.
    #[must_use]
    pub fn look_again(&self) -> bool {
        let Ok(mut asked) = self.0.asked.try_lock() else { return false };
        if self.0.path.as_os_str().is_empty() || asked.is_some_and(|last| last.elapsed() < LOOK_AGAIN_AFTER) {
            return false;
        }
        *asked = Some(Instant::now());
        // What is wrong is told by who looks at intervals.
        self.refresh().unwrap_or(false)
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let meta = fs::metadata(path).ok()?;
    Some(Stamp { modified: meta.modified().ok(), inode: meta.ino(), bytes: meta.len() })
}

fn read_secret(path: &Path) -> Result<Vec<u8>, KeyFileError> {
    let io = |error| KeyFileError::Io { path: path.to_owned(), error };
    if files::is_open_to_others(path).map_err(io)? {
        return Err(KeyFileError::OpenToOthers { path: path.to_owned() });
    }
    files::read_limited(path, MAX_FILE_BYTES).map_err(io)
}

fn load_ring(path: &Path) -> Result<Keyring, KeyFileError> {
    let bytes = read_secret(path)?;
    Keyring::from_json(&bytes).map_err(|error| KeyFileError::Ring { path: path.to_owned(), error })
}

fn load_ring_for(path: &Path, use_: Use) -> Result<Keyring, KeyFileError> {
    let ring = load_ring(path).map_err(|error| match error {
        KeyFileError::Io { path, error } if error.kind() == io::ErrorKind::NotFound => {
            KeyFileError::Missing { path, use_ }
        }
        other => other,
    });
    ring?.only_for(use_).map_err(|error| KeyFileError::Ring { path: path.to_owned(), error })
}

/// Makes a keyring with one active key.
///
/// # Errors
/// `Exists`, `Io`, `Random`.
pub fn create_ring(path: &Path) -> Result<Keyring, KeyFileError> {
    create_ring_for(path, Use::Tokens)
}

/// As `create_ring`, for another use.
///
/// # Errors
/// `Exists`, `Io`, `Random`.
pub fn create_ring_for(path: &Path, use_: Use) -> Result<Keyring, KeyFileError> {
    let ring = Keyring::new_for(use_, fresh_secret()?, clock::now());
    refuse_existing(path)?;
    save(path, ring.to_json().expose().as_bytes())?;
    Ok(ring)
}

/// Changes the keyring file under a lock, so that two administrators don't undo each other's change.
///
/// `change` gets the keyring and a fresh secret, in case it adds a key.
///
/// # Errors
/// Those of `Keys::open`, and what `change` says, as `Ring`.
pub fn update_ring<T>(
    path: &Path,
    change: impl FnOnce(&mut Keyring, [u8; Key::BYTES]) -> Result<T, RingError>,
) -> Result<T, KeyFileError> {
    let io = |error| KeyFileError::Io { path: path.to_owned(), error };
    let directory = directory_of(path);
    // The directory is locked, not the file: the file is replaced.
    let lock = fs::File::open(directory).map_err(io)?;
    lock.lock().map_err(io)?;
    let mut ring = load_ring(path)?;
    let done = change(&mut ring, fresh_secret()?)
        .map_err(|error| KeyFileError::Ring { path: path.to_owned(), error })?;
    save(path, ring.to_json().expose().as_bytes())?;
    Ok(done)
}

/// Makes a pseudonym key.
///
/// # Errors
/// `Exists`, `Io`, `Random`.
pub fn create_pseudonym_key(path: &Path) -> Result<(), KeyFileError> {
    let text = data_encoding::BASE64URL_NOPAD.encode(&fresh_secret()?) + "\n";
    refuse_existing(path)?;
    save(path, text.as_bytes())
}

/// Reads the pseudonym key.
///
/// # Errors
/// `NoPseudonymKey`, `Io`, `OpenToOthers`, `Pseudonym`.
pub fn load_pseudonym_key(path: &Path) -> Result<PseudonymKey, KeyFileError> {
    let bytes = read_secret(path).map_err(|error| match error {
        KeyFileError::Io { path, error } if error.kind() == io::ErrorKind::NotFound => {
            KeyFileError::NoPseudonymKey { path }
        }
        other => other,
    })?;
    let secret = data_encoding::BASE64URL_NOPAD.decode(bytes.trim_ascii()).ok();
    let secret = secret.and_then(|bytes| <[u8; PseudonymKey::BYTES]>::try_from(bytes).ok());
    secret.map(|secret| PseudonymKey::new(&secret)).ok_or(KeyFileError::Pseudonym { path: path.to_owned() })
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What helps who may not write the directory, whoever owns the file in it.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; this directory has to be writable too: both belong to the user mailtap runs as, who runs this command"
        }
        _ => "",
    }
}

fn refuse_existing(path: &Path) -> Result<(), KeyFileError> {
    if path.exists() { Err(KeyFileError::Exists { path: path.to_owned() }) } else { Ok(()) }
}

fn save(path: &Path, bytes: &[u8]) -> Result<(), KeyFileError> {
    files::replace(path, bytes, MODE).map_err(|error| KeyFileError::Save { path: path.to_owned(), error })
}

fn fresh_secret() -> Result<[u8; Key::BYTES], KeyFileError> {
    let mut secret = [0; Key::BYTES];
    rand::rngs::SysRng.try_fill_bytes(&mut secret).map_err(|_| KeyFileError::Random)?;
    Ok(secret)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_change_on_disk_arrives_and_a_broken_file_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keyring.json");
        create_ring(&path).unwrap();
        assert!(matches!(create_ring(&path), Err(KeyFileError::Exists { .. })));
        let keys = Keys::open(&path).unwrap();
        assert!(!keys.refresh().unwrap());
        let now = clock::now();
        let id = update_ring(&path, |ring, secret| ring.rotate(secret, now, now)).unwrap();
        assert!(keys.refresh().unwrap());
        assert_eq!(keys.current().signing(now).unwrap().id, id);
        files::replace(&path, b"{", 0o600).unwrap();
        assert!(keys.refresh().is_err());
        assert_eq!(keys.current().keys().len(), 2);
    }

    #[test]
    fn who_meets_an_unknown_key_looks_at_once_but_not_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keyring.json");
        create_ring(&path).unwrap();
        let keys = Keys::open(&path).unwrap();
        let rotate = || {
            let now = clock::now();
            update_ring(&path, |ring, secret| ring.rotate(secret, now, now)).unwrap()
        };
        let id = rotate();
        let began = Instant::now();
        assert!(keys.look_again());
        assert!(keys.current().by_id(id).is_some());
        let id = rotate();
        let looked = keys.look_again();
        assert!(!looked || began.elapsed() >= LOOK_AGAIN_AFTER, "not twice in a moment");
        while keys.current().by_id(id).is_none() {
            let _ = keys.look_again();
        }
        fs::remove_file(&path).unwrap();
        while !keys.0.asked.lock().unwrap().is_some_and(|last| last.elapsed() > LOOK_AGAIN_AFTER) {}
        assert!(!keys.look_again(), "the one in use stays");
        assert!(keys.current().by_id(id).is_some());
        assert!(!Keys::fixed(Keyring::new([7; 32], clock::now())).look_again());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pseudonym.key");
        create_pseudonym_key(&path).unwrap();
        assert!(load_pseudonym_key(&path).is_ok());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = load_pseudonym_key(&path).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_directory_that_takes_no_new_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keyring.json");
        create_ring(&path).unwrap();
        fs::create_dir(directory.path().join(format!("keyring.json.{}.new", std::process::id()))).unwrap();
        let now = clock::now();
        let error = update_ring(&path, |ring, secret| ring.rotate(secret, now, now)).unwrap_err();
        let (named, place) = (error.to_string(), format!(" in {}: ", directory.path().display()));
        assert!(named.contains(&place) && !named.contains("writable"), "{named}");
        let denied = KeyFileError::Save {
            path: path.clone(),
            error: io::Error::from(io::ErrorKind::PermissionDenied),
        };
        let named = denied.to_string();
        assert!(named.contains(&place) && named.contains("writable"), "{named}");
        assert_eq!(Keys::open(&path).unwrap().current().keys().len(), 1);
    }

    #[test]
    fn a_refused_change_leaves_the_file_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keyring.json");
        create_ring(&path).unwrap();
        let before = fs::read(&path).unwrap();
        assert!(update_ring(&path, |ring, _| ring.remove(1, clock::now())).is_err());
        assert_eq!(fs::read(&path).unwrap(), before);
    }
}
