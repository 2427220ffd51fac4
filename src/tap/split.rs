//! Lines out of bytes that come in pieces.
//!
//! - Layer: decision
//! - Takes: pieces of a log, split anywhere.
//! - Gives: whole lines without their ends; the same for every split.
//! - On failure: nothing can fail; a line that is too long is cut.
//! - Limits: `MAX_LINE_BYTES`; Postfix itself cuts at about 2,000.

#![warn(clippy::indexing_slicing)]

use memchr::memchr;

/// The most bytes of a line that are kept; the rest of it is passed over.
pub(super) const MAX_LINE_BYTES: usize = 64 * 1024;

/// Collects pieces into lines.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    partial: Vec<u8>,
    /// Bytes of the line in the making, with those that were passed over.
    pending_bytes: u64,
}

impl Splitter {
    /// Takes a piece; calls `each` for every line that ends in it.
    pub(super) fn feed(&mut self, piece: &[u8], each: &mut dyn FnMut(&[u8])) {
        let mut rest = piece;
        while let Some(end) = memchr(b'\n', rest) {
            let (line, tail) = rest.split_at(end);
            if self.pending_bytes == 0 {
                each(line.get(..MAX_LINE_BYTES).unwrap_or(line));
            } else {
                self.keep(line);
                each(&self.partial);
                self.partial.clear();
                self.pending_bytes = 0;
            }
            rest = tail.get(1..).unwrap_or_default();
        }
        self.keep(rest);
    }

    /// The line that has no end, if there is one: nothing will follow.
    pub(super) fn finish(&mut self, each: &mut dyn FnMut(&[u8])) {
        if self.pending_bytes > 0 {
            each(&self.partial);
        }
        *self = Self::default();
    }

    /// How many bytes of the last, unfinished line were taken.
    pub(super) const fn pending_bytes(&self) -> u64 {
        self.pending_bytes
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.pending_bytes += bytes.len() as u64;
        let room = MAX_LINE_BYTES.saturating_sub(self.partial.len());
        self.partial.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        let mut splitter = Splitter::default();
        for piece in pieces {
            splitter.feed(piece, &mut |line| lines.push(line.to_vec()));
        }
        splitter.finish(&mut |line| lines.push(line.to_vec()));
        lines
    }

    #[test]
    fn a_long_line_is_cut_and_the_next_one_is_whole() {
        let long = vec![b'x'; 3 * MAX_LINE_BYTES];
        let whole = [&long[..], b"\nnext\n"].concat();
        for size in [1_000, MAX_LINE_BYTES, whole.len()] {
            let pieces: Vec<_> = whole.chunks(size).collect();
            let lines = lines(&pieces);
            assert_eq!((lines[0].len(), lines[1].as_slice(), lines.len()), (MAX_LINE_BYTES, &b"next"[..], 2));
        }
    }

    proptest! {
        #[test]
        fn the_split_does_not_matter(text in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..60), size in 1_usize..9) {
            let mut expected: Vec<Vec<u8>> = text.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
            if expected.last().is_some_and(Vec::is_empty) {
                expected.pop();
            }
            let pieces: Vec<_> = text.chunks(size).collect();
            prop_assert_eq!(lines(&pieces), expected);
        }
    }
}
