//! The checkpoint: how far the log was read, and what was known then, in one file.
//!
//! - Layer: edge
//! - Takes: positions and state, after the events up to them were published.
//! - Gives: the same after a restart.
//! - On failure: `CheckpointError`. A file that can't be understood is `Damaged`: the log is then read from its beginning,
//!   which gives the same events with the same ids.
//! - See: `service::files::replace` for how it is written.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::rotation::Position;
use super::state::Saved;
use crate::service::files;

const VERSION: u32 = 1;
const MODE: u32 = 0o600;

/// What is saved.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Checkpoint {
    version: u32,
    /// The positions of each followed path, the oldest file first.
    #[serde(default)]
    pub(super) files: BTreeMap<PathBuf, Vec<Position>>,
    /// After which entry of the journal to go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) journal_cursor: Option<String>,
    /// The messages under way.
    #[serde(default)]
    pub(super) state: Saved,
}

/// Why a checkpoint can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum CheckpointError {
    /// The file can't be read.
    #[error("can't read the checkpoint {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Written by a later mailtap.
    #[error("the checkpoint {} has version {version}; this mailtap knows version {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// Not a checkpoint.
    #[error("the checkpoint {} is damaged: line {line}, column {column}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
}

impl Checkpoint {
    pub(super) fn new(
        files: BTreeMap<PathBuf, Vec<Position>>,
        journal_cursor: Option<String>,
        state: Saved,
    ) -> Self {
        Self { version: VERSION, files, journal_cursor, state }
    }

    /// The checkpoint, if there is one.
    pub(super) fn load(path: &Path) -> Result<Option<Self>, CheckpointError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CheckpointError::Read { path: path.to_owned(), source }),
        };
        // The version first: another one may have another form.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let damaged = |error: serde_json::Error| CheckpointError::Damaged {
            path: path.to_owned(),
            line: error.line(),
            column: error.column(),
        };
        let Version { version } = serde_json::from_slice(&bytes).map_err(damaged)?;
        if version != VERSION {
            return Err(CheckpointError::Version { path: path.to_owned(), version });
        }
        serde_json::from_slice(&bytes).map(Some).map_err(damaged)
    }

    pub(super) fn save(&self, path: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        files::replace(path, &bytes, MODE)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tap.json");
        assert_eq!(Checkpoint::load(&path).unwrap(), None);
        let checkpoint = Checkpoint::new(BTreeMap::new(), Some("s=1".into()), Saved::default());
        checkpoint.save(&path).unwrap();
        assert_eq!(Checkpoint::load(&path).unwrap(), Some(checkpoint));
        fs::write(&path, r#"{"version":9,"other":1}"#).unwrap();
        assert!(matches!(Checkpoint::load(&path), Err(CheckpointError::Version { version: 9, .. })));
        fs::write(&path, r#"{"version":1,"files":["#).unwrap();
        assert!(matches!(Checkpoint::load(&path), Err(CheckpointError::Damaged { .. })));
    }
}
