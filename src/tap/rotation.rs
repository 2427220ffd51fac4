//! Which file is which: identity, beginning, and the rotated predecessors of a log.
//!
//! - Layer: edge
//! - Takes: the path of a log.
//! - Gives: the files beside it that rotation made of it, and whether a file begins as another did.
//! - On failure: `io::Error`; a file that vanishes while it is looked at is passed over.
//! - Limits: names are `LOG.1`, `LOG-20261123`, `LOG.20261123-162511` and their like; behind a symbolic link also names
//!   that differ from its target's only in their digits, like `mail-20261123.log`.
//! - See: logrotate(8), Postfix `maillog_file_rotate_suffix`.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// How much of a file's beginning tells it from another.
pub(super) const HEAD_BYTES: usize = 1_024;

/// A file as the file system knows it. Inodes are used again at once, so the time at which it was made is part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
    /// In nanoseconds since 1970; 0 where the file system doesn't say.
    #[serde(default)]
    born_ns: u64,
}

impl FileId {
    pub(super) fn of(metadata: &Metadata) -> Self {
        let born = metadata.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        let born_ns = born.and_then(|born| u64::try_from(born.as_nanos()).ok()).unwrap_or_default();
        Self { device: metadata.dev(), inode: metadata.ino(), born_ns }
    }
}

/// How far a file was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) file: FileId,
    /// Where the first line begins that was not read.
    pub(super) offset: u64,
    /// How many bytes of the beginning are hashed.
    pub(super) head_bytes: usize,
    /// SHA-256 of the beginning: the checkpoint holds nothing of the log itself.
    pub(super) head_sha256: String,
    /// When the file was last written to, in nanoseconds since 1970.
    pub(super) modified_ns: i64,
    /// What it was called, without links.
    #[serde(default)]
    pub(super) path: Option<PathBuf>,
}

/// SHA-256 as the checkpoint writes it.
pub(super) fn sha256(head: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(head))
}

/// When a file was last written to, in nanoseconds since 1970.
pub(super) fn modified_ns(metadata: &Metadata) -> i64 {
    metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec())
}

/// A file that rotation made.
#[derive(Debug, Clone)]
pub(super) struct Sibling {
    pub(super) path: PathBuf,
    pub(super) file: FileId,
    pub(super) modified_ns: i64,
    pub(super) packing: Packing,
}

/// How a rotated log is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    /// As it was.
    Plain,
    /// By a tool that is known.
    Packed,
    /// By another tool, whose files are not read.
    Other,
}

/// The rotated predecessors of a log, the oldest first; also those of the file that a symbolic link names.
pub(super) fn siblings(path: &Path) -> io::Result<Vec<Sibling>> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let bases: BTreeSet<String> = [name(path), name(&target)].into_iter().flatten().collect();
    let dated = name(&target).filter(|target| name(path).as_ref() != Some(target));
    let directories: BTreeSet<PathBuf> = [path, &target].into_iter().map(directory_of).collect();
    let mut found: Vec<Sibling> = Vec::new();
    for directory in directories {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            // A log may be readable in a directory that is not: then there are no predecessors for us.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) =>
            {
                continue;
            }
            Err(error) => return Err(error),
        };
        for entry in entries {
            let path = entry?.path();
            let packing = name(&path).and_then(|name| {
                let of_base = bases.iter().find_map(|base| rotated(&name, base));
                of_base.or_else(|| of_another_day(&name, dated.as_ref()?))
            });
            let Some(packing) = packing else { continue };
            let Some(metadata) = fs::metadata(&path).ok().filter(Metadata::is_file) else { continue };
            let file = FileId::of(&metadata);
            if found.iter().any(|known| known.file == file) {
                continue;
            }
            found.push(Sibling { path, file, modified_ns: modified_ns(&metadata), packing });
        }
    }
    found.sort_by_key(|sibling| sibling.modified_ns);
    Ok(found)
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// A name without the ending of what packed it.
fn unpacked(name: &str) -> (&str, Packing) {
    const ENDINGS: [(&str, Packing); 5] = [
        (".gz", Packing::Packed),
        (".xz", Packing::Packed),
        (".bz2", Packing::Packed),
        (".zst", Packing::Packed),
        (".lz4", Packing::Other),
    ];
    let packed = ENDINGS.iter().find_map(|(ending, packing)| Some((name.strip_suffix(ending)?, *packing)));
    packed.unwrap_or((name, Packing::Plain))
}

/// How `name` is stored, if it is `today` with other digits: as many, and enough of them to be a date.
fn of_another_day(name: &str, today: &str) -> Option<Packing> {
    let (name, packing) = unpacked(name);
    let masked = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "0");
    let digits = today.bytes().filter(u8::is_ascii_digit).count();
    (digits >= 4 && masked(name) == masked(today)).then_some(packing)
}

/// How `name` is stored, if it is what rotation calls `base`.
fn rotated(name: &str, base: &str) -> Option<Packing> {
    let (suffix, packing) = unpacked(name.strip_prefix(base)?);
    let number = suffix.strip_prefix(['.', '-'])?;
    let is_number = number.starts_with(|first: char| first.is_ascii_digit())
        && number.chars().all(|c| c.is_ascii_digit() || c == '-' || c == '.');
    is_number.then_some(packing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_a_date() {
        let is = |name| of_another_day(name, "mail-20261124.log");
        assert_eq!(is("mail-20261123.log"), Some(Packing::Plain));
        assert_eq!(is("mail-20261123.log.gz"), Some(Packing::Packed));
        for other in ["mail-2026112.log", "mail-20261123.err", "news-20261123.log", "mail.log"] {
            assert_eq!(is(other), None, "{other}");
        }
        assert_eq!(of_another_day("mail2.log", "mail1.log"), None, "no date");
    }

    #[test]
    fn names_of_rotated_logs() {
        for (name, expected) in [
            ("mail.log.1", Some(Packing::Plain)),
            ("mail.log-20261123", Some(Packing::Plain)),
            ("mail.log.20261123-162511", Some(Packing::Plain)),
            ("mail.log.2.gz", Some(Packing::Packed)),
            ("mail.log-20261123.xz", Some(Packing::Packed)),
            ("mail.log-20261123.lz4", Some(Packing::Other)),
            ("mail.log", None),
            ("mail.log.gz", None),
            ("mail.log.bak", None),
            ("mail.log.1.bak", None),
            ("mail.log-filtered", None),
            ("mail.logs.1", None),
        ] {
            assert_eq!(rotated(name, "mail.log"), expected, "{name}");
        }
    }
}
