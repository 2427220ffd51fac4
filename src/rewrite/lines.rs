//! Looks once at every line of a message: line endings, length, bytes that may not be, possible MIME delimiters.
//!
//! - Layer: decision
//! - Takes: the whole message.
//! - Gives: the line ending in use, and the lines that begin with `--`.
//! - On failure: a `Reason` for the whole message: NUL, bare CR, mixed endings, a line over 998 octets.
//! - Limits: linear.
//! - See: RFC 5322 section 2.1.1

#![warn(clippy::indexing_slicing)]

use std::ops::Range;

use memchr::{memchr, memchr_iter, memchr3_iter};

use super::reason::Reason;

/// Longest line of a message, without its ending, in octets.
pub(super) const MAX_LINE_BYTES: usize = 998;

/// Most lines that may be MIME delimiters.
const MAX_DASHED: usize = 1_000_000;

/// What was seen of the lines.
#[derive(Debug)]
pub(super) struct Lines {
    /// How lines end.
    pub(super) ending: &'static [u8],
    dashed: Vec<Range<usize>>,
}

impl Lines {
    /// Looks at every line.
    pub(super) fn read(message: &[u8]) -> Result<Self, Reason> {
        match Self::read_good(message) {
            Some(lines) => Ok(lines),
            None => Self::read_with_care(message),
        }
    }

    /// For a message in order, at the speed of memory: one stop for each line.
    fn read_good(message: &[u8]) -> Option<Self> {
        let crlf = memchr(b'\n', message).is_some_and(|end| end > 0 && message.get(end - 1) == Some(&b'\r'));
        let ending: &'static [u8] = if crlf || memchr(b'\n', message).is_none() { b"\r\n" } else { b"\n" };
        let mut dashed = Vec::new();
        let (mut start, mut count) = (0, 0);
        for at in memchr_iter(b'\n', message) {
            let line = message.get(start..at)?;
            count += 1;
            if line.len() > MAX_LINE_BYTES + usize::from(crlf) || (crlf && line.last() != Some(&b'\r')) {
                return None;
            }
            if line.starts_with(b"--") {
                dashed.push(start..at + 1);
            }
            start = at + 1;
        }
        let rest = message.get(start..)?;
        if rest.starts_with(b"--") {
            dashed.push(start..message.len());
        }
        let returns = if crlf { count } else { 0 };
        let good = rest.len() <= MAX_LINE_BYTES
            && dashed.len() <= MAX_DASHED
            && memchr_iter(b'\r', message).count() == returns
            && memchr(0, message).is_none();
        good.then_some(Self { ending, dashed })
    }

    /// For a message in which something is wrong: says what comes first.
    fn read_with_care(message: &[u8]) -> Result<Self, Reason> {
        let mut ending: Option<&'static [u8]> = None;
        let mut dashed = Vec::new();
        let mut start = 0;
        let mut cr = None;
        for at in memchr3_iter(b'\n', b'\r', 0, message) {
            match message.get(at) {
                Some(b'\n') => {
                    let (own, end): (&'static [u8], usize) = cr.map_or((b"\n", at), |cr| (b"\r\n", cr));
                    if *ending.get_or_insert(own) != own {
                        return Err(Reason::MixedLineEndings);
                    }
                    if end - start > MAX_LINE_BYTES {
                        return Err(Reason::LongLine);
                    }
                    if message.get(start..start + 2) == Some(b"--") {
                        dashed.push(start..at + 1);
                        if dashed.len() > MAX_DASHED {
                            return Err(Reason::TooManyParts);
                        }
                    }
                    start = at + 1;
                    cr = None;
                }
                Some(b'\r') if cr.is_none() && message.get(at + 1) == Some(&b'\n') => cr = Some(at),
                Some(b'\r') => return Err(Reason::BareCr),
                _ => return Err(Reason::Nul),
            }
        }
        if message.len() - start > MAX_LINE_BYTES {
            return Err(Reason::LongLine);
        }
        if message.get(start..start + 2) == Some(b"--") {
            dashed.push(start..message.len());
        }
        Ok(Self { ending: ending.unwrap_or(b"\r\n"), dashed })
    }

    /// The lines within a range that begin with two hyphens.
    pub(super) fn dashed(&self, within: &Range<usize>) -> impl Iterator<Item = &Range<usize>> {
        let from = self.dashed.partition_point(|line| line.start < within.start);
        let end = within.end;
        self.dashed.get(from..).unwrap_or_default().iter().take_while(move |line| line.start < end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn endings_and_forbidden_bytes() {
        assert_eq!(Lines::read(b"a\r\nb\r\n").map(|l| l.ending), Ok(&b"\r\n"[..]));
        assert_eq!(Lines::read(b"a\nb").map(|l| l.ending), Ok(&b"\n"[..]));
        assert_eq!(Lines::read(b"a\r\nb\n").err(), Some(Reason::MixedLineEndings));
        assert_eq!(Lines::read(b"\nbody").map(|l| l.ending), Ok(&b"\n"[..]), "without a header");
        assert_eq!(Lines::read(b"a\rb\r\n").err(), Some(Reason::BareCr));
        assert_eq!(Lines::read(b"a\r\r\n").err(), Some(Reason::BareCr));
        assert_eq!(Lines::read(b"a\r").err(), Some(Reason::BareCr));
        assert_eq!(Lines::read(b"a\0b").err(), Some(Reason::Nul));
        assert_eq!(Lines::read(&[b'a'; 998]).err(), None);
        assert_eq!(Lines::read(&[b'a'; 999]).err(), Some(Reason::LongLine));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_quick_way_sees_the_same(text in "(a|--|\r\n|\n|\r|\0){0,12}", only in prop::sample::select(vec!["", "\r\n", "\n"])) {
            let text = if only.is_empty() { text } else { text.replace("\r\n", "\n").replace(['\r', '\0'], "").replace('\n', only) };
            let careful = Lines::read_with_care(text.as_bytes());
            let quick = Lines::read_good(text.as_bytes());
            prop_assert_eq!(quick.is_some(), careful.is_ok());
            if let (Some(quick), Ok(careful)) = (quick, careful) {
                prop_assert_eq!((quick.ending, quick.dashed), (careful.ending, careful.dashed));
            }
        }
    }

    #[test]
    fn dashed_lines_within_a_range() {
        let lines = Lines::read(b"--a\nb--\n--c").ok();
        let found =
            |range| lines.as_ref().map(|l| l.dashed(&range).map(|line| line.start).collect::<Vec<_>>());
        assert_eq!(found(0..11), Some(vec![0, 8]));
        assert_eq!(found(1..11), Some(vec![8]));
    }
}
