//! base64, re-encoded from the first changed group on.
//!
//! - Layer: decision
//! - Takes: the encoded body; later edits to the decoded text.
//! - Gives: the decoded text and at most one patch to the encoded body.
//! - On failure: `Reason::BadEncoding` for anything but lines of base64 with its padding at the very end.
//! - Limits: linear.
//! - See: RFC 2045 section 6.8

#![warn(clippy::indexing_slicing)]

use data_encoding::{BASE64, Encoding, Specification};
use memchr::{memchr, memrchr};

use super::Edit;
use crate::rewrite::reason::Reason;
use crate::rewrite::report::Patch;

/// Columns of a line that we begin, where the body does not show its own.
const DEFAULT_COLUMNS: usize = 76;

#[derive(Debug)]
pub(in crate::rewrite) struct Base64<'m> {
    raw: &'m [u8],
    text: Vec<u8>,
    /// For every line: how many digits precede it, and where it begins.
    marks: Vec<(usize, usize)>,
    /// Where the last digit or padding ends.
    end: usize,
    columns: usize,
}

impl<'m> Base64<'m> {
    pub(super) fn decode(raw: &'m [u8]) -> Result<Self, Reason> {
        let mut digits = Vec::with_capacity(raw.len());
        let mut marks = Vec::with_capacity(raw.len() / 64);
        let mut columns = None;
        let (mut at, mut end) = (0, 0);
        while at < raw.len() {
            let rest = raw.get(at..).unwrap_or_default();
            let next = memchr(b'\n', rest).map_or(rest.len(), |i| i + 1);
            let line = rest.get(..next).unwrap_or_default();
            let indent = line.len() - line.trim_ascii_start().len();
            let line = line.trim_ascii();
            if !line.is_empty() {
                if !marks.is_empty() {
                    columns = columns.or(Some(digits.len()));
                }
                marks.push((digits.len(), at + indent));
                digits.extend_from_slice(line);
                end = at + indent + line.len();
            }
            at += next;
        }
        // Lines of a few digits are no mail, and would cost more memory than they hold.
        if marks.len() > 64 + raw.len() / 8 {
            return Err(Reason::BadEncoding);
        }
        // The decoder takes padded pieces one after the other; we do not.
        if memchr(b'=', &digits).is_some_and(|at| at + 2 < digits.len()) {
            return Err(Reason::BadEncoding);
        }
        let text = lenient().decode(&digits).map_err(|_| Reason::BadEncoding)?;
        Ok(Self { raw, text, marks, end, columns: columns.unwrap_or(DEFAULT_COLUMNS).max(4) })
    }

    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// Where the group of a decoded byte begins.
    pub(super) fn locate(&self, offset: usize) -> usize {
        let digit = offset / 3 * 4;
        let index = self.marks.partition_point(|(digits, _)| *digits <= digit);
        match index.checked_sub(1).and_then(|index| self.marks.get(index)) {
            Some((digits, at)) => (at + (digit - digits)).min(self.end),
            None => self.end,
        }
    }

    pub(super) fn patch(&self, edits: &[Edit], ending: &[u8]) -> Vec<Patch> {
        let Some(first) = edits.first() else { return Vec::new() };
        let group = first.range.start / 3 * 3;
        let mut tail = Vec::with_capacity(self.text.len() - group.min(self.text.len()));
        let mut at = group;
        for edit in edits {
            tail.extend_from_slice(self.text.get(at..edit.range.start).unwrap_or_default());
            tail.extend_from_slice(&edit.bytes);
            at = edit.range.end;
        }
        tail.extend_from_slice(self.text.get(at..).unwrap_or_default());

        let start = self.locate(group);
        let before = self.raw.get(..start).unwrap_or_default();
        let mut column = start - memrchr(b'\n', before).map_or(0, |at| at + 1);
        let encoded = BASE64.encode(&tail);
        let mut rest = encoded.as_bytes();
        let mut bytes = Vec::with_capacity(rest.len() + rest.len() / 32 + 2);
        while !rest.is_empty() {
            if column >= self.columns {
                bytes.extend_from_slice(ending);
                column = 0;
            }
            let take = (self.columns - column).min(rest.len());
            let Some((line, more)) = rest.split_at_checked(take) else { break };
            bytes.extend_from_slice(line);
            column += take;
            rest = more;
        }
        vec![Patch { range: start..self.end, bytes }]
    }
}

/// base64 whose unused last bits may be set, as some programs do.
fn lenient() -> Encoding {
    let mut specification: Specification = BASE64.specification();
    specification.check_trailing_bits = false;
    specification.encoding().unwrap_or(BASE64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::rewrite::report::apply;

    #[test]
    fn lines_before_the_change_stay() {
        let raw = b"aGVsbG8s\r\nIHdvcmxk\r\nIQ==\r\n\r\n";
        let body = Base64::decode(raw).unwrap();
        assert_eq!(body.text(), b"hello, world!");
        let edits = [Edit { range: 7..12, bytes: b"there".to_vec() }];
        assert_eq!(apply(raw, &body.patch(&edits, b"\r\n")), b"aGVsbG8s\r\nIHRoZXJl\r\nIQ==\r\n\r\n");
    }

    #[test]
    fn disorder_is_refused() {
        for raw in [&b"aGVsbG8"[..], b"aGVs*G8s", b"IQ==aGVs", b"aG Vs"] {
            assert!(Base64::decode(raw).is_err(), "{raw:?}");
        }
    }
}
