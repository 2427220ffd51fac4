//! Reads header blocks of messages and MIME parts, keeping offsets.
//!
//! - Layer: decision
//! - Takes: the message and where a header block begins.
//! - Gives: fields as ranges of the message; values of MIME fields with their parameters.
//! - On failure: `Reason::BadHeader` for a line that is no field, `None` for a value that cannot be read.
//! - Limits: linear in the block; 10,000 fields, MIME values of 64 KiB.
//! - See: RFC 5322 section 2.2, RFC 2045 section 5.1, RFC 2231

#![warn(clippy::indexing_slicing)]

use std::ops::Range;

use memchr::memchr;

use super::reason::Reason;

/// Most fields of a header block.
const MAX_FIELDS: usize = 10_000;

/// Longest MIME value, in bytes.
const MAX_VALUE_BYTES: usize = 64 << 10;

/// A header field: where its name and its value (with folding, without the final line ending) are.
#[derive(Debug, Clone)]
pub(super) struct Field {
    pub(super) name: Range<usize>,
    pub(super) value: Range<usize>,
}

/// A header block.
#[derive(Debug, Default)]
pub(super) struct Block {
    pub(super) fields: Vec<Field>,
    /// Where the body begins.
    pub(super) body: usize,
}

impl Block {
    /// Reads the block that begins at `range.start`; it ends with a blank line or with the range.
    pub(super) fn read(message: &[u8], range: Range<usize>, mbox_from: bool) -> Result<Self, Reason> {
        let mut block = Self::default();
        let mut at = range.start;
        while at < range.end {
            let rest = message.get(at..range.end).unwrap_or_default();
            let next = memchr(b'\n', rest).map_or(range.end, |i| at + i + 1);
            let line = trim_eol(message.get(at..next).unwrap_or_default());
            if line.is_empty() {
                block.body = next;
                return Ok(block);
            }
            if matches!(line.first(), Some(b' ' | b'\t')) {
                let Some(last) = block.fields.last_mut() else { return Err(Reason::BadHeader) };
                last.value.end = at + line.len();
            } else if !(mbox_from && at == range.start && line.starts_with(b"From ")) {
                let colon = memchr(b':', line).ok_or(Reason::BadHeader)?;
                let name = line.get(..colon).unwrap_or_default().trim_ascii_end();
                if block.fields.len() >= MAX_FIELDS
                    || name.is_empty()
                    || name.iter().any(|b| !b.is_ascii_graphic())
                {
                    return Err(Reason::BadHeader);
                }
                let value = at + colon + 1..at + line.len();
                block.fields.push(Field { name: at..at + name.len(), value });
            }
            at = next;
        }
        block.body = range.end;
        Ok(block)
    }

    /// The value of a field that may stand only once.
    pub(super) fn single<'m>(&self, message: &'m [u8], name: &[u8]) -> Result<Option<&'m [u8]>, Reason> {
        let mut found = None;
        for value in self.all(message, name) {
            if found.replace(value).is_some() {
                return Err(Reason::DuplicateHeader);
            }
        }
        Ok(found)
    }

    /// The values of all fields of a name.
    pub(super) fn all<'m>(&self, message: &'m [u8], name: &[u8]) -> impl Iterator<Item = &'m [u8]> {
        self.fields
            .iter()
            .filter(move |field| slice(message, &field.name).eq_ignore_ascii_case(name))
            .map(move |field| slice(message, &field.value))
    }
}

/// The bytes of a range; none when it is out of bounds.
pub(super) fn slice<'m>(message: &'m [u8], range: &Range<usize>) -> &'m [u8] {
    message.get(range.clone()).unwrap_or_default()
}

/// A line without its ending.
pub(super) fn trim_eol(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// A structured MIME value: `text/html; charset=utf-8`.
#[derive(Debug, Default)]
pub(super) struct MimeValue {
    /// The word in front, in lower case.
    pub(super) main: String,
    /// Parameters: names in lower case, values without quotes.
    parameters: Vec<(String, Vec<u8>)>,
}

impl MimeValue {
    /// Reads a value; `None` when it cannot be read with certainty.
    pub(super) fn read(raw: &[u8]) -> Option<Self> {
        if raw.len() > MAX_VALUE_BYTES {
            return None;
        }
        let mut cursor = Cursor { raw, at: 0 };
        cursor.skip_blanks_and_comments()?;
        let main = cursor.word(b";(");
        let mut value =
            Self { main: String::from_utf8_lossy(main).to_ascii_lowercase(), parameters: Vec::new() };
        loop {
            cursor.skip_blanks_and_comments()?;
            if cursor.peek().is_none() {
                return Some(value);
            }
            cursor.take(b';').then_some(())?;
            cursor.skip_blanks_and_comments()?;
            if matches!(cursor.peek(), None | Some(b';')) {
                continue;
            }
            let name = String::from_utf8_lossy(cursor.word(b"=;(")).to_ascii_lowercase();
            cursor.skip_blanks_and_comments()?;
            cursor.take(b'=').then_some(())?;
            cursor.skip_blanks_and_comments()?;
            let text =
                if cursor.peek() == Some(b'"') { cursor.quoted()? } else { cursor.word(b";\"").to_vec() };
            value.parameters.push((name, text));
        }
    }

    /// A parameter that is given once and in the plain way.
    ///
    /// # Errors
    /// When it is given twice, or in the extended or split form of RFC 2231.
    pub(super) fn parameter(&self, name: &str) -> Result<Option<&[u8]>, ()> {
        let mut found = None;
        for (own, value) in &self.parameters {
            if own == name && found.replace(value.as_slice()).is_some() {
                return Err(());
            }
            if own.strip_prefix(name).is_some_and(|rest| rest.starts_with('*')) {
                return Err(());
            }
        }
        Ok(found)
    }

    /// Whether a parameter is given in any form.
    pub(super) fn has(&self, name: &str) -> bool {
        let is =
            |own: &str| own.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('*'));
        self.parameters.iter().any(|(own, _)| is(own))
    }
}

struct Cursor<'m> {
    raw: &'m [u8],
    at: usize,
}

impl<'m> Cursor<'m> {
    fn peek(&self) -> Option<u8> {
        self.raw.get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// Skips blanks and comments; `None` when a comment does not end.
    fn skip_blanks_and_comments(&mut self) -> Option<()> {
        let mut depth = 0_u32;
        while let Some(byte) = self.peek() {
            match byte {
                b'(' => depth += 1,
                b')' if depth > 0 => depth -= 1,
                b'\\' if depth > 0 => self.at += 1,
                _ if depth > 0 || byte.is_ascii_whitespace() => {}
                _ => return Some(()),
            }
            self.at += 1;
        }
        (depth == 0).then_some(())
    }

    /// Reads up to a blank or a stop byte.
    fn word(&mut self, stops: &[u8]) -> &'m [u8] {
        let rest = self.raw.get(self.at..).unwrap_or_default();
        let end =
            rest.iter().position(|b| b.is_ascii_whitespace() || stops.contains(b)).unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or_default()
    }

    fn quoted(&mut self) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        self.at += 1;
        loop {
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Some(text);
                }
                b'\\' => {
                    self.at += 1;
                    text.push(self.peek()?);
                }
                b'\r' | b'\n' => {}
                byte => text.push(byte),
            }
            self.at += 1;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_their_ranges() {
        let message = b"A: 1\r\nB:2\r\n  3\r\n\r\nbody";
        let block = Block::read(message, 0..message.len(), false).unwrap();
        assert_eq!(block.body, 18);
        assert_eq!(block.single(message, b"b").unwrap(), Some(&b"2\r\n  3"[..]));
        assert_eq!(Block::read(b"nothing\n\n", 0..9, false).unwrap_err(), Reason::BadHeader);
        assert!(Block::read(b"From a\nA: b\n\n", 0..13, true).is_ok());
    }

    #[test]
    fn values_with_quotes_comments_and_folding() {
        let value =
            MimeValue::read(b" Text/HTML (a (nested) comment);\r\n charset = \"utf\\-8\"; boundary=a=_b;")
                .unwrap();
        assert_eq!(value.main, "text/html");
        assert_eq!(value.parameter("charset"), Ok(Some(&b"utf-8"[..])));
        assert_eq!(value.parameter("boundary"), Ok(Some(&b"a=_b"[..])));
    }

    #[test]
    fn doubtful_values() {
        assert!(MimeValue::read(b"text/html; charset=\"utf").is_none());
        assert!(MimeValue::read(b"text/html; charset").is_none());
        let twice = MimeValue::read(b"a/b; boundary=x; boundary=y; name*0=z").unwrap();
        assert_eq!(twice.parameter("boundary"), Err(()));
        assert!(twice.has("name") && !twice.has("nam"));
    }
}
