//! Charsets: which can be patched as bytes, and what a link in them means.
//!
//! - Layer: decision
//! - Takes: the charset label of a part and its decoded bytes.
//! - Gives: an encoding whose markup is ASCII; the target of a link as text.
//! - On failure: `Reason::UnknownCharset`, `Reason::UnsafeCharset`, or `None` for text that is invalid.
//! - Limits: linear.
//! - See: WHATWG Encoding; WHATWG URL (the query is encoded in the document's charset)

#![warn(clippy::indexing_slicing)]

use std::borrow::Cow;
use std::fmt::Write as _;

use encoding_rs::{Encoding, UTF_8};
use memchr::memchr_iter;

use super::reason::Reason;

/// A charset in which every byte below 0x40 that is not in a markup's way stands for itself: the trail bytes of Shift_JIS,
/// GBK, Big5 and GB18030 are letters, digits and brackets, never `<`, `>`, `"`, `'`, `&`, `=`, `/` or a blank.
#[derive(Debug, Clone, Copy)]
pub(super) struct Charset {
    encoding: &'static Encoding,
    /// Labelled as ASCII: to browsers that is windows-1252, to the sender it may have been anything.
    ascii: bool,
}

/// Labels of ASCII.
const ASCII_LABELS: &[&str] = &["us-ascii", "ascii", "ansi_x3.4-1968", "iso646-us", "iso_646.irv:1991", "us"];

impl Charset {
    /// The charset of a part, if links in it can be replaced as bytes.
    pub(super) fn of(label: &Result<Option<String>, ()>, text: &[u8]) -> Result<Self, Reason> {
        let label = match label {
            Ok(Some(label)) => label.trim(),
            Ok(None) => UTF_8.name(),
            Err(()) => return Err(Reason::UnknownCharset),
        };
        let encoding = Encoding::for_label(label.as_bytes()).ok_or(Reason::UnknownCharset)?;
        let ascii = ASCII_LABELS.iter().any(|own| label.eq_ignore_ascii_case(own));
        if !encoding.is_ascii_compatible() {
            return Err(Reason::UnsafeCharset);
        }
        // Byte order marks of UTF-16, and the escapes of ISO-2022 under another label.
        if matches!(text.get(..2), Some([0xFF, 0xFE] | [0xFE, 0xFF])) {
            return Err(Reason::UnsafeCharset);
        }
        if memchr_iter(0x1B, text).any(|at| matches!(text.get(at + 1), Some(b'$' | b'(' | b')' | b'.'))) {
            return Err(Reason::UnsafeCharset);
        }
        Ok(Self { encoding, ascii })
    }

    /// Whether a byte above 0x7F may take the next one with it.
    pub(super) fn is_legacy_multi_byte(self) -> bool {
        self.encoding != UTF_8 && !self.encoding.is_single_byte()
    }

    pub(super) fn is_utf8(self) -> bool {
        self.encoding == UTF_8
    }

    /// Whether bytes may be of another charset than the label says: no target may be made of a guess.
    pub(super) fn is_doubtful(self, bytes: &[u8]) -> bool {
        !self.is_utf8() && !bytes.is_ascii() && (self.ascii || std::str::from_utf8(bytes).is_ok())
    }

    /// The sign of a byte, in a charset where each byte is one.
    pub(super) fn sign(self, byte: u8) -> Option<char> {
        if !self.encoding.is_single_byte() {
            return None;
        }
        self.encoding.decode_without_bom_handling(&[byte]).0.chars().next()
    }

    /// Bytes as text; `None` when they are not valid in this charset.
    pub(super) fn decode(self, bytes: &[u8]) -> Option<Cow<'_, str>> {
        self.encoding.decode_without_bom_handling_and_without_replacement(bytes)
    }

    /// Makes the target that begins at an offset of a text what a browser would ask for: outside of UTF-8, the query is
    /// percent-encoded in this charset.
    pub(super) fn encode_query(self, text: &mut String, start: usize) {
        let url = text.get(start..).unwrap_or_default();
        if self.is_utf8() || url.is_ascii() {
            return;
        }
        let Some((before, rest)) = url.split_once('?') else { return };
        let (query, fragment) = rest.find('#').map_or((rest, ""), |at| rest.split_at(at));
        let mut target = format!("{before}?");
        for sign in query.chars() {
            if sign.is_ascii() {
                target.push(sign);
                continue;
            }
            let mut utf8 = [0; 4];
            let (bytes, _, unmappable) = self.encoding.encode(sign.encode_utf8(&mut utf8));
            if unmappable {
                let _ = write!(target, "%26%23{}%3B", u32::from(sign));
                continue;
            }
            for byte in bytes.iter() {
                let _ = write!(target, "%{byte:02X}");
            }
        }
        target.push_str(fragment);
        text.truncate(start);
        text.push_str(&target);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn of(label: &str, text: &[u8]) -> Result<Charset, Reason> {
        Charset::of(&Ok(Some(label.to_owned())), text)
    }

    #[test]
    fn safe_and_unsafe_labels() {
        for label in [
            "utf-8",
            "US-ASCII",
            "iso-8859-15",
            "windows-1251",
            "koi8-r",
            "Shift_JIS",
            "gbk",
            "big5",
            "gb18030",
        ] {
            assert!(of(label, b"").is_ok(), "{label}");
        }
        for label in ["utf-16", "utf-16le", "iso-2022-jp", "iso-2022-kr", "hz-gb-2312"] {
            assert_eq!(of(label, b"").err(), Some(Reason::UnsafeCharset), "{label}");
        }
        assert_eq!(of("utf-7", b"").err(), Some(Reason::UnknownCharset));
        assert_eq!(of("x-nothing", b"").err(), Some(Reason::UnknownCharset));
        assert_eq!(of("utf-8", b"\x1B$B").err(), Some(Reason::UnsafeCharset));
    }

    #[test]
    fn bytes_that_may_be_of_another_charset() {
        for (label, bytes, doubtful) in [
            ("iso-8859-1", &b"caf\xE9"[..], false),
            ("iso-8859-1", b"caf\xC3\xA9", true),
            ("us-ascii", b"caf\xE9", true),
            ("us-ascii", b"cafe", false),
            ("utf-8", b"caf\xC3\xA9", false),
            ("gbk", b"\xD6\xD0", false),
        ] {
            assert_eq!(of(label, b"").unwrap().is_doubtful(bytes), doubtful, "{label} {bytes:?}");
        }
    }

    #[test]
    fn the_query_keeps_the_charset_of_the_document() {
        let target = |label, url: &str| {
            let mut text = format!("é?é{url}");
            of(label, b"").unwrap().encode_query(&mut text, "é?é".len());
            text
        };
        assert_eq!(target("iso-8859-1", "http://e.com/é?q=é☃#é"), "é?éhttp://e.com/é?q=%E9%26%239731%3B#é");
        assert_eq!(target("utf-8", "http://e.com/?é"), "é?éhttp://e.com/?é");
    }
}
