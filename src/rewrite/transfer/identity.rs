//! 7bit, 8bit and binary: the text is the encoding; only the length of lines must be watched.
//!
//! - Layer: decision
//! - Takes: edits in order.
//! - Gives: the same as patches; and beforehand, whether an edit would make a line too long.
//! - On failure: cannot fail.
//! - Limits: lines of 998 octets.
//! - See: RFC 5321 section 4.5.3.1.6

#![warn(clippy::indexing_slicing)]

use std::ops::Range;

use memchr::{memchr, memrchr};

use super::Edit;
use crate::rewrite::lines::MAX_LINE_BYTES;
use crate::rewrite::report::Patch;

pub(super) fn patch(edits: Vec<Edit>) -> Vec<Patch> {
    edits.into_iter().map(|Edit { range, bytes }| Patch { range, bytes }).collect()
}

/// Keeps the length of the current line while edits are accepted in order.
#[derive(Debug)]
pub(in crate::rewrite) struct LineGuard<'t> {
    text: &'t [u8],
    /// Where the line that was last looked at begins and ends; it may span removed line breaks.
    line: Range<usize>,
    /// What accepted edits added to it; negative when they made it shorter.
    growth: isize,
}

impl<'t> LineGuard<'t> {
    pub(in crate::rewrite) fn new(text: &'t [u8]) -> Self {
        Self { text, line: 0..0, growth: 0 }
    }

    /// Accepts an edit unless a line would become too long.
    pub(in crate::rewrite) fn accept(&mut self, range: &Range<usize>, new_len: usize) -> bool {
        // An edit at the very end of a line still belongs to it.
        if range.start > self.line.end {
            let before = self.text.get(..range.start).unwrap_or_default();
            self.line.start = memrchr(b'\n', before).map_or(0, |at| at + 1);
            self.growth = 0;
        }
        let after = self.text.get(range.end..).unwrap_or_default();
        let end = range.end + memchr(b'\n', after).unwrap_or(after.len());
        let growth = self.growth + new_len.cast_signed() - range.len().cast_signed();
        let length = (end - self.line.start).cast_signed() + growth;
        if length > MAX_LINE_BYTES.cast_signed() {
            return false;
        }
        self.line.end = end;
        self.growth = growth;
        true
    }

    /// Begins a new line within the current one, after whole lines were put there.
    pub(in crate::rewrite) fn split_at(&mut self, offset: usize) {
        let after = self.text.get(offset..).unwrap_or_default();
        self.line = offset..offset + memchr(b'\n', after).unwrap_or(after.len());
        self.growth = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_line_belongs_to_it() {
        let text = [b'a'; 900];
        let mut guard = LineGuard::new(&text);
        assert!(guard.accept(&(10..20), 60));
        assert!(!guard.accept(&(900..900), 100));
        let mut text = [b'a'; 900];
        text[800] = b'\n';
        let mut guard = LineGuard::new(&text);
        assert!(guard.accept(&(10..20), 200));
        assert!(!guard.accept(&(800..800), 100));
        assert!(guard.accept(&(801..801), 100), "the next line is another one");
    }

    #[test]
    fn a_line_fills_up_edit_by_edit() {
        let text = [b'a'; 900];
        let mut guard = LineGuard::new(&text);
        assert!(guard.accept(&(10..20), 60));
        assert!(guard.accept(&(30..40), 58));
        assert!(!guard.accept(&(50..50), 1));
        assert!(guard.accept(&(60..70), 10));
    }

    #[test]
    fn every_line_counts_by_itself() {
        let mut text = vec![b'a'; 900];
        text.push(b'\n');
        text.extend([b'b'; 900]);
        let mut guard = LineGuard::new(&text);
        assert!(guard.accept(&(0..0), 98));
        assert!(guard.accept(&(901..901), 98));
        assert!(!guard.accept(&(950..950), 1));
        let mut guard = LineGuard::new(&text);
        assert!(!guard.accept(&(890..910), 20), "the two lines become one");
    }
}
