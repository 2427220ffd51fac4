//! Percent-encoding, both ways.
//!
//! - Layer: decision
//! - Takes: text of a URL.
//! - Gives: the text, encoded or decoded.
//! - On failure: nothing can fail; a `%` without two hex digits stays as it stands.
//! - See: RFC 3986 section 2.1; WHATWG URL, "percent-encode sets".
#![warn(clippy::indexing_slicing)]

use std::borrow::Cow;

const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// Encodes blanks and what is not ASCII, nothing else: what a browser does that follows a link with such characters.
#[must_use]
pub fn encode_non_ascii(text: &str) -> Cow<'_, str> {
    encode(text, |byte| byte > 0x20 && byte.is_ascii())
}

/// Encodes a value for a place in a query: all but the unreserved characters of RFC 3986.
#[must_use]
pub fn encode_value(text: &str) -> Cow<'_, str> {
    encode(text, |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~'))
}

fn encode(text: &str, stays: impl Fn(u8) -> bool) -> Cow<'_, str> {
    if text.bytes().all(&stays) {
        return Cow::Borrowed(text);
    }
    let mut encoded = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if stays(byte) {
            encoded.push(char::from(byte));
        } else {
            let digit = |nibble: u8| HEX.get(usize::from(nibble)).copied().map_or('0', char::from);
            encoded.extend(['%', digit(byte >> 4), digit(byte & 0x0f)]);
        }
    }
    Cow::Owned(encoded)
}

/// Decodes every `%` that two hex digits follow.
#[must_use]
pub fn decode(text: &str) -> Cow<'_, [u8]> {
    if !text.contains('%') {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%'
            && let Some((&[high, low], after)) = after.split_first_chunk()
            && let (Some(high), Some(low)) = (char::from(high).to_digit(16), char::from(low).to_digit(16))
        {
            decoded.push(u8::try_from(high * 16 + low).unwrap_or(u8::MAX));
            rest = after;
        } else {
            decoded.push(byte);
        }
    }
    Cow::Owned(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_must_be_is_encoded() {
        assert_eq!(encode_non_ascii("/a b%zz%20{x}|ż"), "/a%20b%zz%20{x}|%C5%BC");
        assert_eq!(encode_value("Spring sale: 1/2"), "Spring%20sale%3A%201%2F2");
    }

    #[test]
    fn decoding_leaves_broken_escapes_alone() {
        assert_eq!(&*decode("a%2Db%2"), b"a-b%2");
        assert_eq!(&*decode("%%41%zz%"), b"%A%zz%");
        assert_eq!(&*decode("plain"), b"plain");
    }
}
