//! Reads logs to their end, once, and touches no state: `mailtap tap --once --stdout FILE…`.
//!
//! - Layer: edge
//! - Takes: files (packed or not) or readers, in the order in which they were written; lines of a log, or of
//!   `journalctl -o json`.
//! - Gives: events, one by one, and a summary of what was read.
//! - On failure: `io::Error` with the file it concerns; events before it were given out.

use std::io::{self, Read};
use std::path::PathBuf;

use super::content::Content;
use super::correlate::{Correlator, Counts, Parts};
use super::explain::Coverage;
use super::journal_line::JournalLine;
use super::line::Line;
use super::loss::Loss;
use super::split::Splitter;
use crate::event::Event;
use crate::identity::Timestamp;

/// A log to read.
pub enum Input {
    /// A file by its name.
    File(PathBuf),
    /// Anything else, like standard input.
    Reader(Box<dyn Read>),
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Reader(_) => f.write_str("Reader"),
        }
    }
}

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// All lines.
    pub lines: u64,
    /// Of these, lines that no daemon of Postfix wrote.
    pub foreign: u64,
    /// What became of the others.
    pub counts: Counts,
}

/// Why a log could not be read.
#[derive(Debug, thiserror::Error)]
#[error("can't read {}", path.as_ref().map_or("the input".into(), |path| path.display().to_string()))]
pub struct OnceError {
    /// The file; `None` for a reader.
    pub path: Option<PathBuf>,
    /// Why.
    #[source]
    pub source: io::Error,
}

const CHUNK_BYTES: usize = 256 * 1024;

/// Reads all inputs to their end: lines of these `syslog_name`s, or of any.
///
/// # Errors
/// See [`OnceError`].
pub fn once(
    inputs: Vec<Input>,
    parts: Parts,
    names: &[String],
    now: Timestamp,
    on_event: &mut dyn FnMut(Event),
) -> Result<Summary, OnceError> {
    let mut correlator = Correlator::new(parts, None).only(names.to_vec());
    let mut summary = Summary::default();
    let mut events = Vec::new();
    lines(inputs, &mut |line| {
        summary.lines += 1;
        match line {
            Logged::Line(line) => correlator.line(line, now, &mut events),
            Logged::Other(text, dropped) => {
                summary.foreign += 1;
                correlator.other(text);
                dropped.into_iter().for_each(|loss| correlator.lost(loss));
            }
        }
        events.drain(..).for_each(&mut *on_event);
    })?;
    summary.counts = correlator.counts();
    Ok(summary)
}

/// Reads all inputs to their end and tells how many of their lines are known.
///
/// # Errors
/// See [`OnceError`].
pub fn explain(inputs: Vec<Input>) -> Result<Coverage, OnceError> {
    let mut coverage = Coverage::default();
    lines(inputs, &mut |line| match line {
        Logged::Line(line) => coverage.line(line),
        Logged::Other(text, dropped) => coverage.other(text, dropped.map_or(0, |loss| loss.lines)),
    })?;
    Ok(coverage)
}

/// A line, of Postfix or of others; with it what journald says it dropped.
enum Logged<'a> {
    Line(&'a Line<'a>),
    Other(&'a [u8], Option<Loss<'a>>),
}

fn lines(inputs: Vec<Input>, each: &mut dyn FnMut(Logged<'_>)) -> Result<(), OnceError> {
    for input in inputs {
        let path = match &input {
            Input::File(path) => Some(path.clone()),
            Input::Reader(_) => None,
        };
        let mut logged = |text: &[u8]| {
            if text.first() == Some(&b'{')
                && let Some(entry) = JournalLine::parse(text)
            {
                return match entry.line() {
                    Some(line) => each(Logged::Line(&line)),
                    None => each(Logged::Other(b"", entry.dropped())),
                };
            }
            match Line::parse(text) {
                Some(line) => each(Logged::Line(&line)),
                None => each(Logged::Other(text, None)),
            }
        };
        read(input, &mut logged).map_err(|source| OnceError { path, source })?;
    }
    Ok(())
}

fn read(input: Input, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    match input {
        Input::File(path) => {
            let mut content = Content::open(&path)?;
            split(&mut content, each)?;
            if content.is_damaged() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
        }
        Input::Reader(mut reader) => split(&mut reader, each),
    }
}

fn split(reader: &mut dyn Read, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let mut splitter = Splitter::default();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => break,
            Ok(bytes) => splitter.feed(chunk.get(..bytes).unwrap_or_default(), each),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    splitter.finish(each);
    Ok(())
}
