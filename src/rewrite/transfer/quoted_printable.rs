//! quoted-printable, patched in place: bytes outside the edits stay, soft breaks keep lines at 76 columns.
//!
//! - Layer: decision
//! - Takes: the encoded body; later edits to the decoded text.
//! - Gives: the decoded text and patches to the encoded body.
//! - On failure: `Reason::BadEncoding` for an escape that is none: programs differ on what it means.
//! - Limits: linear for lines of bounded length, which the message's line check ensures.
//! - See: RFC 2045 section 6.7

#![warn(clippy::indexing_slicing)]

use std::ops::Range;

use memchr::{memchr, memrchr};

use super::Edit;
use crate::rewrite::reason::Reason;
use crate::rewrite::report::Patch;

/// Longest encoded line.
const MAX_COLUMNS: usize = 76;

/// How far apart the marks are at least.
const MARK_BYTES: usize = 512;

#[derive(Debug)]
pub(in crate::rewrite) struct QuotedPrintable<'m> {
    raw: &'m [u8],
    text: Vec<u8>,
    /// For some encoded lines: where they begin in the text, and in the encoded body.
    marks: Vec<(usize, usize)>,
}

impl<'m> QuotedPrintable<'m> {
    pub(super) fn decode(raw: &'m [u8]) -> Result<Self, Reason> {
        let mut body = Self {
            raw,
            text: Vec::with_capacity(raw.len()),
            marks: Vec::with_capacity(raw.len() / MARK_BYTES),
        };
        let mut at = 0;
        while at < raw.len() {
            if body.marks.last().is_none_or(|(_, last)| at - last >= MARK_BYTES) {
                body.marks.push((body.text.len(), at));
            }
            let line = Line::at(raw, at);
            let mut rest = line.content;
            while let Some(escape) = memchr(b'=', rest) {
                let (literal, tail) = rest.split_at_checked(escape).ok_or(Reason::BadEncoding)?;
                body.text.extend_from_slice(literal);
                body.text.push(tail.get(1..3).and_then(hex).ok_or(Reason::BadEncoding)?);
                rest = tail.get(3..).unwrap_or_default();
            }
            body.text.extend_from_slice(rest);
            if !line.soft {
                body.text.extend_from_slice(line.ending);
            }
            at = line.next;
        }
        Ok(body)
    }

    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// Where the byte at a decoded offset begins.
    pub(super) fn start_of(&self, offset: usize) -> usize {
        self.token(offset).start
    }

    /// The encoded bytes of a decoded one; the end of the body for an offset beyond the text.
    fn token(&self, offset: usize) -> Range<usize> {
        let index = self.marks.partition_point(|(text, _)| *text <= offset);
        let beyond = self.raw.len()..self.raw.len();
        let Some(&(mut text, mut at)) = index.checked_sub(1).and_then(|index| self.marks.get(index)) else {
            return beyond;
        };
        while at < self.raw.len() {
            let line = Line::at(self.raw, at);
            let end = at + line.content.len();
            while at < end {
                let len = if self.raw.get(at) == Some(&b'=') { 3 } else { 1 };
                if text == offset {
                    return at..at + len;
                }
                text += 1;
                at += len;
            }
            if !line.soft {
                if offset - text < line.ending.len() {
                    let at = line.next - line.ending.len() + (offset - text);
                    return at..at + 1;
                }
                text += line.ending.len();
            }
            at = line.next;
        }
        beyond
    }

    /// The encoded bytes of a range of the text. Nothing is inserted behind blanks that decoding drops.
    fn span(&self, range: &Range<usize>) -> Range<usize> {
        let end_before = |offset: usize| offset.checked_sub(1).map_or(0, |last| self.token(last).end);
        let end = end_before(range.end);
        if range.is_empty() {
            return end..end;
        }
        let at_ending = matches!(self.text.get(range.start), Some(b'\r' | b'\n'));
        let start = if at_ending { end_before(range.start) } else { self.token(range.start).start };
        start..end
    }

    pub(super) fn patch(&self, edits: &[Edit], ending: &[u8]) -> Vec<Patch> {
        let mut patches: Vec<Patch> = Vec::with_capacity(edits.len());
        let spans: Vec<_> = edits.iter().map(|edit| self.span(&edit.range)).collect();
        let mut column = 0;
        for (index, (edit, span)) in edits.iter().zip(&spans).enumerate() {
            let before = self.raw.get(..span.start).unwrap_or_default();
            let line_start = memrchr(b'\n', before).map_or(0, |at| at + 1);
            column = match patches.last() {
                Some(last) if last.range.end >= line_start => column + span.start - last.range.end,
                _ => span.start - line_start,
            };
            let after = self.raw.get(span.end..).unwrap_or_default();
            let line_end = span.end + Line::until_ending(after);
            let (stop, limit) = match spans.get(index + 1) {
                Some(next) if next.start <= line_end => (next.start, MAX_COLUMNS - 1),
                _ => (line_end, MAX_COLUMNS),
            };
            let mut rest = stop.saturating_sub(span.end);
            let mut end = span.end;
            let mut out = Writer { bytes: Vec::with_capacity(edit.bytes.len() + 16), column, ending };
            out.write(&edit.bytes);
            if rest > 0 && out.column + rest > limit {
                out.soft_break();
                // What now begins a line must not look like a delimiter.
                if let Some(&byte) = after.first().filter(|byte| is_odd_in_front(**byte)) {
                    out.write(&[byte]);
                    (end, rest) = (end + 1, rest - 1);
                }
            }
            column = out.column;
            patches.push(Patch { range: span.start..end, bytes: out.bytes });
        }
        patches
    }
}

/// An encoded line.
struct Line<'m> {
    /// What it encodes: without blanks at its end, soft break and ending.
    content: &'m [u8],
    soft: bool,
    ending: &'m [u8],
    next: usize,
}

impl<'m> Line<'m> {
    fn at(raw: &'m [u8], at: usize) -> Self {
        let rest = raw.get(at..).unwrap_or_default();
        let next = memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
        let line = rest.get(..next).unwrap_or_default();
        let (line, ending) = line.split_at_checked(Self::until_ending(line)).unwrap_or((line, b""));
        let blanks = line.iter().rev().take_while(|b| matches!(b, b' ' | b'\t')).count();
        let content = line.get(..line.len() - blanks).unwrap_or_default();
        match content.strip_suffix(b"=") {
            Some(content) => Self { content, soft: true, ending, next: at + next },
            None => Self { content, soft: false, ending, next: at + next },
        }
    }

    /// How many bytes precede the next line ending.
    fn until_ending(bytes: &[u8]) -> usize {
        let Some(end) = memchr(b'\n', bytes) else { return bytes.len() };
        end - usize::from(end > 0 && bytes.get(end - 1) == Some(&b'\r'))
    }
}

struct Writer<'e> {
    bytes: Vec<u8>,
    column: usize,
    ending: &'e [u8],
}

impl Writer<'_> {
    fn write(&mut self, text: &[u8]) {
        for &byte in text {
            if matches!(byte, b'\r' | b'\n') {
                self.bytes.push(byte);
                self.column = 0;
                continue;
            }
            let mut literal = byte != b'=' && matches!(byte, b' '..=b'~');
            if self.column + if literal { 1 } else { 3 } > MAX_COLUMNS - 1 {
                self.soft_break();
            }
            literal &= !(is_odd_in_front(byte) && self.column == 0);
            if literal {
                self.bytes.push(byte);
                self.column += 1;
            } else {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                let digit = |nibble: u8| HEX.get(usize::from(nibble)).copied().unwrap_or(b'0');
                self.bytes.extend_from_slice(&[b'=', digit(byte >> 4), digit(byte & 0x0F)]);
                self.column += 3;
            }
        }
    }

    fn soft_break(&mut self) {
        self.bytes.push(b'=');
        self.bytes.extend_from_slice(self.ending);
        self.column = 0;
    }
}

/// Whether a line that begins so is more than text to some: SMTP's end, a delimiter of MIME.
const fn is_odd_in_front(byte: u8) -> bool {
    matches!(byte, b'.' | b'-')
}

fn hex(digits: &[u8]) -> Option<u8> {
    let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|value| u8::try_from(value).ok());
    match digits {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::rewrite::report::apply;

    #[test]
    fn decodes_soft_breaks_and_drops_blanks() {
        let body = QuotedPrintable::decode(b"a=3Db=\r\nc=3dd \t\r\n=20=  \r\nx").unwrap();
        assert_eq!(body.text(), b"a=bc=d\r\n x");
        assert_eq!(body.start_of(3), 8);
    }

    #[test]
    fn bad_escapes_are_refused() {
        for raw in [&b"a=ZZ"[..], b"href=\"x\"", b"a=4", b"a==\r\n"] {
            assert_eq!(QuotedPrintable::decode(raw).err(), Some(Reason::BadEncoding));
        }
    }

    #[test]
    fn no_line_that_we_begin_looks_like_a_delimiter() {
        let body = QuotedPrintable::decode(b"<a href=3Dx>--b--</a>\r\n").unwrap();
        let of = |range, bytes: Vec<u8>| {
            let patches = body.patch(&[Edit { range, bytes }], b"\r\n");
            String::from_utf8(apply(b"<a href=3Dx>--b--</a>\r\n", &patches)).unwrap()
        };
        let text = of(8..9, [b"u".repeat(64), b"--b--".to_vec()].concat());
        assert_eq!(text, format!("<a href=3D{}-=\r\n=2Db-->--b--</a>\r\n", "u".repeat(64)));
        let text = of(10..10, b"u".repeat(58));
        assert_eq!(text, format!("<a href=3Dx>{}=\r\n=2D-b--</a>\r\n", "u".repeat(58)));
    }

    #[test]
    fn a_long_replacement_breaks_softly_and_the_rest_stays() {
        let raw = b"<a href=3D\"http://e.com/=\r\nx=3Dy\">click</a> and more text on this line\r\nnext\r\n";
        let body = QuotedPrintable::decode(raw).unwrap();
        assert_eq!(body.text().get(9..25), Some(&b"http://e.com/x=y"[..]));
        let edits = [Edit { range: 9..25, bytes: [b'u'; 80].to_vec() }];
        let output = String::from_utf8(apply(raw, &body.patch(&edits, b"\r\n"))).unwrap();
        let (first, second) = ("u".repeat(64), "u".repeat(16));
        assert_eq!(
            output,
            format!("<a href=3D\"{first}=\r\n{second}\">click</a> and more text on this line\r\nnext\r\n")
        );
    }
}
