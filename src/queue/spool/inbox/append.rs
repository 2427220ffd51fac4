//! The inbox file that one writer appends to.
//!
//! - Layer: edge
//! - Takes: whole records.
//! - Gives: a file that only grows, until it is left for another one; word of how far it may be trusted.
//! - On failure: what of the records was written whole stays, the rest is cut off; a file that can't be cut or synced is left.
//! - Limits: a file is left once it has `file_bytes`.
//! - See: `docs/decisions/0015-inbox-files.md`.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::record::{self, Found};
use super::{PREFIX, SUFFIX, UNBORN};
use crate::service::clock;

/// The usual length at which a file is left, so that it can be removed once all of it was moved on.
pub(in crate::queue::spool) const FILE_BYTES: u64 = 8 * 1024 * 1024;

/// Appends. Its file is locked for as long as it may grow.
#[derive(Debug)]
pub(in crate::queue::spool) struct Appender {
    directory: PathBuf,
    file_mode: u32,
    file_bytes: u64,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    name: String,
    file: File,
    end: u64,
    /// Whether the directory knows it, whatever happens.
    listed: bool,
}

/// How much of what was to be appended stands in which file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::queue::spool) struct Appended {
    /// Its name; none, if there is no file.
    pub(in crate::queue::spool) name: Option<String>,
    /// So many bytes, which end with a record.
    pub(in crate::queue::spool) bytes: usize,
}

impl Appender {
    /// Appends to files of its own in this directory; none is made before the first record.
    pub(in crate::queue::spool) const fn new(directory: PathBuf, file_mode: u32, file_bytes: u64) -> Self {
        Self { directory, file_mode, file_bytes, open: None }
    }

    /// Appends records, and says how much of them stands there, also after an error. It may be lost by a power cut until `sync`.
    pub(in crate::queue::spool) fn append(&mut self, records: &[u8]) -> (Appended, io::Result<()>) {
        let mut open = match self.open.take().map_or_else(|| Open::new(&self.directory, self.file_mode), Ok) {
            Ok(open) => open,
            Err(error) => return (Appended::default(), Err(error)),
        };
        let name = Some(open.name.clone());
        match open.file.write_all_at(records, open.end) {
            Ok(()) => {
                open.end += records.len() as u64;
                self.open = Some(open);
                (Appended { name, bytes: records.len() }, Ok(()))
            }
            Err(error) => {
                // Whoever reads may have moved whole records on already, but never goes beyond one that is cut.
                let written = open.file.metadata().map_or(0, |file| file.len().saturating_sub(open.end));
                let bytes = whole(records, usize::try_from(written).unwrap_or(usize::MAX));
                let end = open.end + bytes as u64;
                if open.file.set_len(end).is_ok() {
                    self.open = Some(Open { end, ..open });
                }
                (Appended { name, bytes }, Err(error))
            }
        }
    }

    /// Returns once a power cut takes nothing of what was appended.
    pub(in crate::queue::spool) fn sync(&mut self) -> io::Result<()> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        // A file that could not be synced is not trusted again: the kernel may have forgotten what it could not write.
        open.file.sync_data()?;
        if !open.listed {
            File::open(&self.directory)?.sync_all()?;
            open.listed = true;
        }
        self.open = Some(open);
        Ok(())
    }

    /// Leaves a file that is long enough; call it after `sync`.
    pub(in crate::queue::spool) fn rotate(&mut self) {
        self.open.take_if(|open| open.end >= self.file_bytes);
    }
}

impl Open {
    #[allow(
        clippy::disallowed_methods,
        reason = "a file without content needs no sync before it gets its name"
    )]
    fn new(directory: &Path, file_mode: u32) -> io::Result<Self> {
        // In the order of their making, and no two alike.
        let name = format!("{PREFIX}{:016}-{:08x}{SUFFIX}", clock::now().as_micros(), rand::random::<u32>());
        let (path, unborn) = (directory.join(&name), directory.join(format!("{name}{UNBORN}")));
        let file = OpenOptions::new().write(true).create_new(true).mode(file_mode).open(&unborn)?;
        // The mode of open(2) is cut by the umask. Locked before anybody can see it, or it would look as if left.
        let born = file
            .set_permissions(Permissions::from_mode(file_mode))
            .and_then(|()| file.try_lock().map_err(io::Error::from))
            .and_then(|()| std::fs::rename(&unborn, &path));
        if let Err(error) = born {
            let _ = std::fs::remove_file(&unborn);
            return Err(error);
        }
        Ok(Self { name, file, end: 0, listed: false })
    }
}

/// How many of the first `written` bytes are whole records.
fn whole(records: &[u8], written: usize) -> usize {
    let mut at = 0;
    while let Some(Found::Record(_, length)) = records.get(at..).map(record::read) {
        if at + length > written {
            break;
        }
        at += length;
    }
    at
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::identity::Timestamp;
    use crate::queue::spool::store::NewRow;
    use crate::queue::testing::event;

    fn records(count: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in 0..count {
            assert!(record::put_event(
                &mut bytes,
                &NewRow::from(&event(number)).incoming(Timestamp::from_secs(1))
            ));
        }
        bytes
    }

    fn files(directory: &Path) -> Vec<PathBuf> {
        let mut files: Vec<_> =
            std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    #[test]
    fn a_file_has_its_mode_is_locked_and_left_when_it_is_long() {
        let directory = tempfile::tempdir().unwrap();
        let mut appender = Appender::new(directory.path().into(), 0o640, FILE_BYTES);
        let long = records(2 * FILE_BYTES / records(1).len() as u64);
        let (appended, result) = appender.append(&long);
        result.unwrap();
        appender.sync().unwrap();
        let [file] = files(directory.path()).try_into().unwrap();
        assert_eq!(
            (file.file_name().unwrap().to_str(), appended.bytes),
            (appended.name.as_deref(), long.len())
        );
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert!(File::open(&file).unwrap().try_lock().is_err(), "it may still grow");
        appender.rotate();
        File::open(&file).unwrap().try_lock().unwrap();
        appender.append(&records(1)).1.unwrap();
        appender.rotate();
        let [first, second] = files(directory.path()).try_into().unwrap();
        assert!(first == file && File::open(second).unwrap().try_lock().is_err());
    }

    #[test]
    fn what_could_not_be_written_leaves_whole_records_only() {
        let all = records(3);
        let one = records(1).len();
        for (written, left) in [(0, 0), (one - 1, 0), (one, one), (one + 1, one), (all.len(), all.len())] {
            assert_eq!(whole(&all, written), left, "{written}");
        }
        let directory = tempfile::tempdir().unwrap();
        let mut appender = Appender::new(directory.path().into(), 0o600, FILE_BYTES);
        appender.append(&all).1.unwrap();
        // A handle that can't write stands for a disk that does not take any more.
        let open = appender.open.as_mut().unwrap();
        open.file = File::open(directory.path().join(&open.name)).unwrap();
        let (appended, result) = appender.append(&records(2));
        assert!(result.is_err() && appended.bytes == 0);
        appender.append(&records(1)).1.unwrap();
        let read = files(directory.path()).into_iter().map(|file| std::fs::read(file).unwrap().len());
        assert_eq!(read.collect::<Vec<_>>(), [all.len(), one], "a file that can't be cut is left");
        assert!(Appender::new("/nonexistent".into(), 0o600, FILE_BYTES).append(&all).1.is_err());
    }
}
