//! Follows a log file through rotation, truncation and restarts, and gives every line once.
//!
//! - Layer: edge
//! - Takes: a path, and the positions of the last run.
//! - Gives: lines in their order, and the positions from which the next run goes on.
//! - On failure: `io::Error`; the next poll tries again where this one stopped. What rotation did is a `Finding`.
//! - Limits: what a tool copies and truncates (`copytruncate`) is lost where it is written between the two; that is
//!   the tool's own gap. Predecessors that are packed are read; those packed with lz4 are reported.
//! - See: logrotate(8); `postfix logrotate` renames and reloads.
//!
//! A file is known by its first bytes, then by its inode and birth: a copy has others, and inodes are used again. A
//! renamed file is read on until it was quiet for a minute, for daemons write to it until they are told.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::content::Content;
use super::rotation::{FileId, HEAD_BYTES, Packing, Position, Sibling, modified_ns, sha256, siblings};
use super::split::Splitter;

/// How long a renamed file must be quiet before it counts as complete.
const QUIET: Duration = Duration::from_secs(60);
const CHUNK_BYTES: usize = 256 * 1024;

/// Something that happened to the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finding {
    /// The path names another file than before.
    Rotated,
    /// The file was cut; `recovered` if a copy of it was found that holds what was not read.
    Truncated {
        /// Whether the copy was found.
        recovered: bool,
    },
    /// The file of the last run is not there any more: lines may be lost.
    PredecessorGone,
    /// A predecessor was not read to its end, and is packed with something that is not known (lz4): lines are lost unless
    /// it is unpacked.
    PredecessorCompressed(PathBuf),
    /// A packed predecessor ends before its time: lines may be lost.
    PredecessorDamaged,
    /// A predecessor can't be opened or read: lines may be lost.
    PredecessorUnreadable(PathBuf),
}

/// What a poll did.
#[derive(Debug, Default)]
pub(super) struct Polled {
    /// How much was read.
    pub(super) bytes: u64,
    /// Whether there is more to read at once.
    pub(super) more: bool,
    /// Whether a file is open under the path.
    pub(super) is_open: bool,
    /// What happened to the files.
    pub(super) findings: Vec<Finding>,
}

/// Follows one path.
#[derive(Debug)]
pub(super) struct Follower {
    path: PathBuf,
    /// Open files, the oldest first; the last one is what the path names.
    tails: Vec<Tail>,
    /// The rotated files that were there when they were last looked at; none of them is news.
    known: Option<HashSet<FileId>>,
    findings: Vec<Finding>,
    chunk: Vec<u8>,
}

#[derive(Debug)]
struct Tail {
    content: Content,
    /// What it was called when it was opened, without links.
    name: Option<PathBuf>,
    id: FileId,
    /// Up to `HEAD_BYTES` of the beginning, as far as it was read.
    head: Vec<u8>,
    read_to: u64,
    splitter: Splitter,
    quiet_since: Option<Instant>,
    /// When the file was last written to, as of the last poll, in nanoseconds since 1970.
    modified_ns: i64,
}

impl Follower {
    /// Goes on from these positions; without any, at the beginning of the file.
    pub(super) fn new(path: &Path, positions: &[Position]) -> io::Result<Self> {
        let mut follower = Self {
            path: path.to_owned(),
            tails: Vec::new(),
            known: None,
            findings: Vec::new(),
            chunk: vec![0; CHUNK_BYTES],
        };
        if positions.is_empty() {
            // At once, so that it can be saved: it may be rotated before the first line was read.
            follower.find_successor()?;
        } else {
            follower.resume(positions)?;
        }
        Ok(follower)
    }

    /// Where the next run has to go on.
    pub(super) fn positions(&self) -> io::Result<Vec<Position>> {
        self.tails.iter().map(Tail::position).collect()
    }

    /// Reads what is there, up to about `budget_bytes`, and calls `each` for every line.
    pub(super) fn poll(
        &mut self,
        now: Instant,
        budget_bytes: u64,
        each: &mut dyn FnMut(&[u8]),
    ) -> io::Result<Polled> {
        let open = self.tails.len();
        self.find_truncation()?;
        self.find_successor()?;
        if self.tails.len() != open {
            let current = fs::metadata(&self.path).ok();
            self.put_in_order(current.map(|metadata| FileId::of(&metadata)));
        }
        let mut polled = Polled { is_open: !self.tails.is_empty(), ..Polled::default() };
        for tail in &mut self.tails {
            loop {
                if polled.bytes >= budget_bytes {
                    polled.more = true;
                    polled.findings = std::mem::take(&mut self.findings);
                    return Ok(polled);
                }
                let bytes = tail.read(&mut self.chunk, each)?;
                if bytes == 0 {
                    break;
                }
                tail.quiet_since = None;
                polled.bytes += bytes;
            }
        }
        for tail in &mut self.tails {
            tail.modified_ns = modified_ns(&tail.content.metadata()?);
        }
        self.close_quiet(now, each);
        polled.findings = std::mem::take(&mut self.findings);
        Ok(polled)
    }

    /// Opens what the path names, if that is not the last file.
    fn find_successor(&mut self) -> io::Result<()> {
        let metadata = match fs::metadata(&self.path) {
            Ok(metadata) => metadata,
            // Between rename and creation there is none; the daemon still writes to the old one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let id = FileId::of(&metadata);
        if self.tails.last().is_some_and(|tail| tail.id == id) {
            return Ok(());
        }
        if let Some(known) = self.tails.iter().position(|tail| tail.id == id) {
            let tail = self.tails.remove(known);
            self.tails.push(tail);
            return Ok(());
        }
        let tail = Tail::open(&self.path, 0, 0)?;
        match self.tails.last() {
            Some(last) => {
                let modified_ns = modified_ns(&last.content.metadata()?);
                self.findings.push(Finding::Rotated);
                self.open_between(modified_ns, tail.id, &[])?;
            }
            // The file came late, after a restart: what was rotated meanwhile is new.
            None if self.known.is_some() => self.open_between(i64::MAX, tail.id, &[])?,
            None => self.known = Some(siblings(&self.path)?.iter().map(|sibling| sibling.file).collect()),
        }
        self.tails.push(tail);
        Ok(())
    }

    /// Opens the predecessors that are new, or were written to after a moment: rotation may happen more than once
    /// between two polls, when events can't be published for a while. What begins with `own_head` packed is the file
    /// that is open already.
    fn open_between(&mut self, after_ns: i64, current: FileId, own_head: &[u8]) -> io::Result<()> {
        let siblings = siblings(&self.path)?;
        let now_known = siblings.iter().map(|sibling| sibling.file).collect();
        for sibling in &siblings {
            let is_open = self.tails.iter().any(|tail| tail.id == sibling.file);
            if sibling.file == current || is_open {
                continue;
            }
            // A packed file is always new; its time is that of the log that it was.
            let is_plain = sibling.packing == Packing::Plain;
            let is_new = self.known.as_ref().is_some_and(|known| !known.contains(&sibling.file));
            if sibling.modified_ns <= after_ns && !(is_plain && is_new) {
                continue;
            }
            let opened = match sibling.packing {
                Packing::Plain => Tail::open(&sibling.path, 0, 0),
                Packing::Packed => match self.is_packed_twin(sibling, &siblings, own_head) {
                    Ok(true) => continue,
                    Ok(false) => Tail::open(&sibling.path, 0, 0),
                    Err(error) => Err(error),
                },
                Packing::Other => {
                    self.findings.push(Finding::PredecessorCompressed(sibling.path.clone()));
                    continue;
                }
            };
            match opened {
                Ok(tail) => self.tails.push(tail),
                // It was renamed while we looked: the next poll looks again.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
                // The others, and the log itself, can be read still.
                Err(_) => self.findings.push(Finding::PredecessorUnreadable(sibling.path.clone())),
            }
        }
        self.known = Some(now_known);
        Ok(())
    }

    /// Whether a packed file begins as one that is open, or that lies unpacked beside it: while a tool packs a file, both
    /// are there.
    fn is_packed_twin(
        &mut self,
        packed: &Sibling,
        siblings: &[Sibling],
        own_head: &[u8],
    ) -> io::Result<bool> {
        let head = Content::open(&packed.path)?.head(HEAD_BYTES)?;
        let is_same = |other: &[u8]| {
            let common = other.len().min(head.len());
            common > 0 && other.get(..common) == head.get(..common)
        };
        if is_same(own_head) {
            return Ok(true);
        }
        for tail in &mut self.tails {
            if is_same(&tail.content.head(HEAD_BYTES)?) {
                return Ok(true);
            }
        }
        for sibling in siblings.iter().filter(|sibling| sibling.packing == Packing::Plain) {
            let head = Content::open(&sibling.path).and_then(|mut content| content.head(HEAD_BYTES));
            if head.is_ok_and(|head| is_same(&head)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Starts anew where the current file was cut, after the rest of its copy.
    fn find_truncation(&mut self) -> io::Result<()> {
        let Some(current) = self.tails.last_mut() else { return Ok(()) };
        let Content::Plain(file) = &current.content else { return Ok(()) };
        let file = file.try_clone()?;
        let metadata = file.metadata()?;
        // A file of which nothing was read yet can be cut without a trace but its time.
        let is_unseen = current.head.is_empty() && modified_ns(&metadata) != current.modified_ns;
        let is_whole =
            metadata.len() >= current.read_to && current.content.head(current.head.len())? == current.head;
        if is_whole && (!is_unseen || current.modified_ns == i64::MIN) {
            return Ok(());
        }
        let copy = Self::copy_of(&self.path, current)?;
        let own_head = current.content.head(HEAD_BYTES)?;
        let current_id = current.id;
        let last_seen = current.modified_ns;
        let anew = Tail { name: current.name.clone(), ..Tail::new(Content::Plain(file), current_id) };
        let Some(cut) = self.tails.pop() else { return Ok(()) };
        let tails = self.tails.len();
        if let Some((content, id)) = copy {
            self.tails.push(Tail { content, id, quiet_since: None, ..cut });
        }
        self.open_between(last_seen, current_id, &own_head)?;
        let recovered = self.tails.len() > tails;
        if recovered || !is_whole {
            self.findings.push(Finding::Truncated { recovered });
        }
        self.tails.push(anew);
        Ok(())
    }

    /// The newest file beside the log that begins as `tail` did, and is at least as long as what was read of it.
    fn copy_of(path: &Path, tail: &Tail) -> io::Result<Option<(Content, FileId)>> {
        if tail.head.is_empty() {
            return Ok(None);
        }
        for sibling in siblings(path)?.into_iter().rev() {
            if sibling.packing == Packing::Other || sibling.file == tail.id {
                continue;
            }
            let Ok(mut content) = Content::open(&sibling.path) else { continue };
            let is_it = content.head(tail.head.len()).is_ok_and(|head| head == tail.head)
                && content.reaches(tail.read_to).unwrap_or(false);
            if is_it {
                return Ok(Some((content, sibling.file)));
            }
        }
        Ok(None)
    }

    /// Lets renamed files go that were quiet long enough. Their last line is complete, even without an end.
    fn close_quiet(&mut self, now: Instant, each: &mut dyn FnMut(&[u8])) {
        let renamed = self.tails.len().saturating_sub(1);
        let mut index = 0;
        let findings = &mut self.findings;
        self.tails.retain_mut(|tail| {
            let is_renamed = index < renamed;
            index += 1;
            if !is_renamed {
                return true;
            }
            let since = *tail.quiet_since.get_or_insert(now);
            let stays = now.saturating_duration_since(since) < QUIET;
            if !stays {
                tail.splitter.finish(each);
                if tail.content.is_damaged() {
                    findings.push(Finding::PredecessorDamaged);
                }
            }
            stays
        });
    }

    /// Finds the files of the last run again, and those that came since.
    fn resume(&mut self, positions: &[Position]) -> io::Result<()> {
        let known = siblings(&self.path)?;
        let current = fs::metadata(&self.path).ok().map(|metadata| FileId::of(&metadata));
        for position in positions {
            match self.find(position, &known)? {
                Some(tail) => self.tails.push(tail),
                None => self.findings.push(Finding::PredecessorGone),
            }
        }
        if let Some(last_seen) = positions.iter().map(|position| position.modified_ns).max() {
            // The path itself is no sibling, unless it is a link; then `find_successor` opens it.
            self.open_between(last_seen, current.unwrap_or_default(), &[])?;
        }
        // At once: it may be rotated before the first poll.
        if let Some(id) = current
            && self.tails.iter().all(|tail| tail.id != id)
            && let Ok(tail) = Tail::open(&self.path, 0, 0)
        {
            self.findings.push(Finding::Rotated);
            self.tails.push(tail);
        }
        self.put_in_order(current);
        Ok(())
    }

    /// The oldest first, whatever was found in which order; what the path names is the last.
    fn put_in_order(&mut self, current: Option<FileId>) {
        let written =
            |tail: &Tail| tail.content.metadata().map_or(i64::MIN, |metadata| modified_ns(&metadata));
        self.tails.sort_by_cached_key(|tail| (Some(tail.id) == current, written(tail)));
    }

    /// The file that a position speaks of: by inode if it still begins so, else by its beginning alone; packed only where
    /// it is not there unpacked.
    fn find(&self, position: &Position, siblings: &[Sibling]) -> io::Result<Option<Tail>> {
        let current =
            fs::metadata(&self.path).ok().map(|metadata| (self.path.clone(), FileId::of(&metadata)));
        let of = |packing: Packing| {
            let newest_first = siblings.iter().rev().filter(move |sibling| sibling.packing == packing);
            newest_first.map(|sibling| (sibling.path.clone(), sibling.file))
        };
        // A link may name another file by now, whose name is not like this one's.
        let last_name = position.path.as_ref().and_then(|path| {
            let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
            Some((path.clone(), FileId::of(&metadata)))
        });
        let mut candidates: Vec<(PathBuf, FileId)> = current
            .into_iter()
            .chain(last_name)
            .chain(of(Packing::Plain))
            .chain(of(Packing::Packed))
            .collect();
        candidates.sort_by_key(|(_, file)| *file != position.file);
        for (path, file) in candidates {
            if position.head_bytes == 0 && file != position.file {
                continue;
            }
            let Ok(tail) = Tail::open(&path, position.head_bytes, position.offset) else { continue };
            let mut tail = Tail { modified_ns: position.modified_ns, ..tail };
            let is_taken = self.tails.iter().any(|known| known.id == tail.id);
            let is_it = tail.head.len() == position.head_bytes
                && sha256(&tail.head) == position.head_sha256
                && tail.content.reaches(position.offset).unwrap_or(false);
            if is_it && !is_taken {
                return Ok(Some(tail));
            }
        }
        Ok(None)
    }
}

impl Tail {
    fn open(path: &Path, head_bytes: usize, offset: u64) -> io::Result<Self> {
        let mut content = Content::open(path)?;
        let metadata = content.metadata()?;
        let (id, modified_ns) = (FileId::of(&metadata), modified_ns(&metadata));
        let head = content.head(head_bytes.min(HEAD_BYTES))?;
        let name = fs::canonicalize(path).ok();
        Ok(Self { name, head, read_to: offset, modified_ns, ..Self::new(content, id) })
    }

    fn new(content: Content, id: FileId) -> Self {
        let (splitter, modified_ns) = (Splitter::default(), i64::MIN);
        let head = Vec::new();
        Self { content, name: None, id, head, read_to: 0, splitter, quiet_since: None, modified_ns }
    }

    /// Reads one piece; 0 at the end of the file.
    fn read(&mut self, chunk: &mut [u8], each: &mut dyn FnMut(&[u8])) -> io::Result<u64> {
        let bytes = self.content.read_at(chunk, self.read_to)?;
        let piece = chunk.get(..bytes).unwrap_or_default();
        if self.head.len() as u64 == self.read_to {
            let room = HEAD_BYTES - self.head.len();
            self.head.extend(piece.iter().take(room));
        }
        self.read_to += bytes as u64;
        self.splitter.feed(piece, each);
        Ok(bytes as u64)
    }

    fn position(&self) -> io::Result<Position> {
        Ok(Position {
            file: self.id,
            offset: self.read_to - self.splitter.pending_bytes(),
            head_bytes: self.head.len(),
            head_sha256: sha256(&self.head),
            path: self.name.clone(),
            modified_ns: modified_ns(&self.content.metadata()?),
        })
    }
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
