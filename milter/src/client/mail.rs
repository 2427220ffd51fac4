//! Mail as an MTA holds it.
//!
//! - Layer: word
//! - Takes: envelope and the text of a message.
//! - Gives: headers in order, each as it stood; the body with CRLF line ends; the text again.
//! - On failure: a line that is no header ends the headers, as in Postfix.
//! - See: Postfix `src/global/mime_state.c`, `is_header.c`

use alloc::vec::Vec;

/// An envelope address and its ESMTP arguments.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mailbox {
    /// The address: with angle brackets for SMTP mail, without for other mail.
    pub address: Vec<u8>,
    /// ESMTP arguments.
    pub args: Vec<Vec<u8>>,
}

/// One header.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Field {
    /// What stands before the colon.
    pub name: Vec<u8>,
    /// All that follows the colon; folds are LF.
    pub value: Vec<u8>,
}

/// Envelope, headers and body.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mail {
    /// The envelope sender.
    pub sender: Mailbox,
    /// The recipients.
    pub recipients: Vec<Mailbox>,
    /// The headers in order.
    pub headers: Vec<Field>,
    /// The body; lines end in CRLF.
    pub body: Vec<u8>,
}

impl Mailbox {
    /// An address without arguments.
    #[must_use]
    pub fn new(address: impl Into<Vec<u8>>) -> Self {
        Self { address: address.into(), args: Vec::new() }
    }

    /// The address without angle brackets.
    #[must_use]
    pub fn bare(&self) -> &[u8] {
        let address = self.address.as_slice();
        address.strip_prefix(b"<").and_then(|address| address.strip_suffix(b">")).unwrap_or(address)
    }
}

impl Mail {
    /// Reads a message with CRLF or LF line ends.
    #[must_use]
    pub fn parse(sender: Mailbox, recipients: Vec<Mailbox>, text: &[u8]) -> Self {
        let mut headers: Vec<Field> = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (line, after) = split_line(rest);
            if line.is_empty() {
                rest = after;
                break;
            }
            match (line.first(), headers.last_mut(), header_name(line)) {
                (Some(b' ' | b'\t'), Some(last), _) => {
                    last.value.push(b'\n');
                    last.value.extend_from_slice(line);
                }
                (_, _, Some((name, value))) => {
                    headers.push(Field { name: name.to_vec(), value: value.to_vec() });
                }
                _ => break,
            }
            rest = after;
        }
        Self { sender, recipients, headers, body: with_crlf(rest) }
    }

    /// The message as it travels: CRLF line ends.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for field in &self.headers {
            out.extend_from_slice(&field.name);
            out.push(b':');
            out.extend(with_crlf(&field.value));
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&self.body);
        out
    }
}

/// Splits a line off, without its CRLF or LF.
fn split_line(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len());
    let line = text.get(..end).unwrap_or_default();
    (line.strip_suffix(b"\r").unwrap_or(line), text.get(end + 1..).unwrap_or_default())
}

fn header_name(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = line.split_at_checked(colon)?;
    let name = name.trim_ascii_end();
    let sound = !name.is_empty() && name.iter().all(u8::is_ascii_graphic);
    sound.then_some((name, value.get(1..).unwrap_or_default()))
}

/// The same text with a CR before every LF.
pub(super) fn with_crlf(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 32);
    let mut last = 0;
    for byte in text {
        if *byte == b'\n' && last != b'\r' {
            out.push(b'\r');
        }
        out.push(*byte);
        last = *byte;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &[u8]) -> Mail {
        Mail::parse(Mailbox::default(), Vec::new(), text)
    }

    #[test]
    fn text_and_back() {
        let text = b"Subject: one\r\n\ttwo\r\nX:y\r\n\r\nbody\r\n\r\n.\r\n";
        let mail = parse(text);
        assert_eq!(mail.headers.first().map(|field| field.value.as_slice()), Some(b" one\n\ttwo".as_slice()));
        assert_eq!(mail.to_bytes(), text);
    }

    #[test]
    fn a_line_that_is_no_header_begins_the_body() {
        let mail = parse(b"A: b\nno header\nC: d\n");
        assert_eq!(mail.headers.len(), 1);
        assert_eq!(mail.body, b"no header\r\nC: d\r\n");
    }
}
