//! The header block of a message: finding fields in it, and changing our own.
//!
//! - Layer: decision
//! - Takes: a whole message with CRLF or LF line ends.
//! - Gives: its fields in order; header edits applied to the bytes as Postfix would apply them.
//! - On failure: a line that is no field ends the header block, as it does in Postfix.
//! - See: RFC 5322 section 2.2, Postfix `src/global/is_header.c`.
#![warn(clippy::indexing_slicing)]

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use memchr::memchr;

/// One header field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field<'a> {
    /// The name as written.
    pub name: &'a str,
    /// The value as written, folds included, without the line end.
    pub value: &'a [u8],
    /// The bytes of the whole field in the message, line end included.
    pub range: Range<usize>,
}

impl Field<'_> {
    /// The value unfolded, without blanks around it; what is not UTF-8 is replaced.
    #[must_use]
    pub fn text(&self) -> String {
        let text: Vec<u8> =
            self.value.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
        String::from_utf8_lossy(&text).trim().to_owned()
    }

    /// Whether this is the field of that name.
    #[must_use]
    pub const fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}

/// The fields of a message, and where its header block ends (where the blank line, or whatever is no field, begins).
#[must_use]
pub fn fields(message: &[u8]) -> (Vec<Field<'_>>, usize) {
    let mut fields: Vec<Field<'_>> = Vec::new();
    // A mailbox file separates its messages by such a line; it is no field.
    let mut at = if message.starts_with(b"From ") { line_end(message) } else { 0 };
    while let Some(rest) = message.get(at..).filter(|rest| !rest.is_empty()) {
        let mut end = line_end(rest);
        let Some(colon) = rest.get(..end).and_then(name_end) else { break };
        while rest.get(end).is_some_and(|byte| matches!(byte, b' ' | b'\t')) {
            end += rest.get(end..).map_or(0, line_end);
        }
        let (Some(name), Some(value)) = (rest.get(..colon), rest.get(colon + 1..end)) else { break };
        let name = std::str::from_utf8(name).unwrap_or_default().trim_end();
        let value = value.strip_suffix(b"\n").unwrap_or(value);
        let value = value.strip_suffix(b"\r").unwrap_or(value);
        fields.push(Field { name, value, range: at..at + end });
        at += end;
    }
    (fields, at)
}

/// Length of the first line, its end included.
fn line_end(bytes: &[u8]) -> usize {
    memchr(b'\n', bytes).map_or(bytes.len(), |newline| newline + 1)
}

/// Where the colon of a field's first line is, if it is a field.
fn name_end(line: &[u8]) -> Option<usize> {
    let colon = memchr(b':', line)?;
    let name = line.get(..colon)?.trim_ascii_end();
    (!name.is_empty() && name.iter().all(u8::is_ascii_graphic)).then_some(colon)
}

/// A change to the header block. Applied in this order: deletions, then additions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// Fields to take out: the name, and which of that name, from 1.
    pub delete: Vec<(String, usize)>,
    /// Fields to put at the end of the block: name and value, both ASCII on one line.
    pub add: Vec<(&'static str, String)>,
}

impl HeaderEdits {
    /// Deletes every field that `wanted` names.
    pub fn delete_where(&mut self, fields: &[Field<'_>], wanted: impl Fn(&Field<'_>) -> bool) {
        if !fields.iter().any(&wanted) {
            return;
        }
        let mut numbers = Numbers::default();
        for field in fields {
            let number = numbers.next(field);
            if wanted(field) {
                self.delete.push((field.name.to_owned(), number));
            }
        }
    }

    /// The message with these edits; everything else byte for byte.
    #[must_use]
    pub fn apply(&self, message: &[u8]) -> Vec<u8> {
        let (mut output, end) = self.apply_to_header(message, 0);
        output.extend_from_slice(message.get(end..).unwrap_or_default());
        output
    }

    /// The edited header block, with room for the rest of the message and for so many bytes more; and where the rest begins.
    pub(super) fn apply_to_header(&self, message: &[u8], growth: usize) -> (Vec<u8>, usize) {
        let (fields, end) = fields(message);
        let first_line = message.get(..line_end(message)).unwrap_or_default();
        let line_end: &[u8] = if first_line.ends_with(b"\r\n") { b"\r\n" } else { b"\n" };
        let mut output = Vec::with_capacity(message.len() + growth + 256);
        let start = fields.first().map_or(end, |field| field.range.start);
        output.extend_from_slice(message.get(..start).unwrap_or_default());
        let deleted: HashSet<_> =
            self.delete.iter().map(|(name, number)| (name.to_ascii_lowercase(), *number)).collect();
        let mut numbers = Numbers::default();
        for field in &fields {
            let number = numbers.next(field);
            if deleted.is_empty() || !deleted.contains(&(field.name.to_ascii_lowercase(), number)) {
                output.extend_from_slice(message.get(field.range.clone()).unwrap_or_default());
            }
        }
        if !self.add.is_empty() && end > 0 && !output.ends_with(b"\n") {
            output.extend_from_slice(line_end);
        }
        for (name, value) in &self.add {
            output.extend_from_slice(name.as_bytes());
            output.extend_from_slice(b": ");
            output.extend_from_slice(value.as_bytes());
            output.extend_from_slice(line_end);
        }
        (output, end)
    }
}

/// Counts the fields of each name.
#[derive(Debug, Default)]
struct Numbers(HashMap<String, usize>);

impl Numbers {
    fn next(&mut self, field: &Field<'_>) -> usize {
        let number = self.0.entry(field.name.to_ascii_lowercase()).or_default();
        *number += 1;
        *number
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_with_folds_and_odd_names() {
        let message = b"Subject: one\r\n two\r\nX-Odd : v\r\nfrom:a@b\r\n\r\nBody: no field\r\n";
        let (fields, end) = fields(message);
        assert_eq!(fields.iter().map(|f| f.name).collect::<Vec<_>>(), ["Subject", "X-Odd", "from"]);
        assert_eq!(fields[0].text(), "one two");
        assert!(fields[2].is("From"));
        assert_eq!(&message[end..], b"\r\nBody: no field\r\n");
    }

    #[test]
    fn what_is_no_field_ends_the_block() {
        for message in [&b"no field at all\n"[..], b"", b"\n", b": x\n", b"na me: x\n"] {
            assert_eq!(fields(message), (vec![], 0), "{message:?}");
        }
        assert_eq!(fields(b"A: 1\nnot a field\n\nbody").1, 5);
    }

    #[test]
    fn a_mailbox_line_stays_on_top() {
        let message = b"From a@example.org Mon Nov 23 12:00:00 2026\nSubject: s\n\nbody\n";
        let edits = HeaderEdits { delete: vec![], add: vec![("X-New", "v".into())] };
        let output = String::from_utf8_lossy(&edits.apply(message)).into_owned();
        assert_eq!(output, "From a@example.org Mon Nov 23 12:00:00 2026\nSubject: s\nX-New: v\n\nbody\n");
    }

    #[test]
    fn edits_change_nothing_else() {
        let message = b"X-T: 1\nSubject:  two   spaces\nx-t: 2\n more\nX-T: 3\n\nbody\r\nmixed\n";
        let (found, _) = fields(message);
        let mut edits = HeaderEdits { delete: vec![], add: vec![("X-New", "v".into())] };
        edits.delete_where(&found, |field| field.is("X-T") && field.text() != "1");
        assert_eq!(edits.delete, [("x-t".to_owned(), 2), ("X-T".to_owned(), 3)]);
        assert_eq!(edits.apply(message), b"X-T: 1\nSubject:  two   spaces\nX-New: v\n\nbody\r\nmixed\n");
        assert_eq!(HeaderEdits::default().apply(message), message);
        let added = HeaderEdits { delete: vec![], add: vec![("X-New", "v".into())] };
        assert_eq!(added.apply(b"Subject: x"), b"Subject: x\nX-New: v\n");
    }
}
