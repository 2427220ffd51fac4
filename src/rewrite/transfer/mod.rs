//! Transfer encodings: decodes the body of a part, and patches it in its own encoding.
//!
//! - Layer: decision
//! - Takes: the encoded body; later edits to the decoded text.
//! - Gives: the decoded text, the encoded place of every decoded offset, patches to the encoded body.
//! - On failure: `Reason::UnknownEncoding` or `Reason::BadEncoding`; the part is then left alone.
//! - Limits: linear; the decoded text is never larger than the encoded one.
//! - See: RFC 2045 section 6

#![warn(clippy::indexing_slicing)]

mod base64;
mod identity;
mod quoted_printable;

use std::ops::Range;

use super::reason::Reason;
use super::report::Patch;
use base64::Base64;
pub(super) use identity::LineGuard;
use quoted_printable::QuotedPrintable;

/// A change to the decoded text of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Edit {
    /// The bytes of the decoded text that go.
    pub(super) range: Range<usize>,
    /// The bytes that come: ASCII, without line breaks unless those of the part.
    pub(super) bytes: Vec<u8>,
}

/// The body of a part, decoded.
#[derive(Debug)]
pub(super) enum Body<'m> {
    /// 7bit, 8bit, binary.
    Identity(&'m [u8]),
    /// quoted-printable.
    QuotedPrintable(QuotedPrintable<'m>),
    /// base64.
    Base64(Base64<'m>),
}

impl<'m> Body<'m> {
    /// Decodes a body; `encoding` is in lower case.
    pub(super) fn decode(raw: &'m [u8], encoding: &str) -> Result<Self, Reason> {
        match encoding {
            "" | "7bit" | "8bit" | "binary" => Ok(Self::Identity(raw)),
            "quoted-printable" => QuotedPrintable::decode(raw).map(Self::QuotedPrintable),
            "base64" => Base64::decode(raw).map(Self::Base64),
            _ => Err(Reason::UnknownEncoding),
        }
    }

    /// The decoded text.
    pub(super) fn text(&self) -> &[u8] {
        match self {
            Self::Identity(raw) => raw,
            Self::QuotedPrintable(body) => body.text(),
            Self::Base64(body) => body.text(),
        }
    }

    /// Where in the encoded body the byte at a decoded offset begins.
    pub(super) fn locate(&self, offset: usize) -> usize {
        match self {
            Self::Identity(_) => offset,
            Self::QuotedPrintable(body) => body.start_of(offset),
            Self::Base64(body) => body.locate(offset),
        }
    }

    /// Patches to the encoded body, whose first byte has the offset `base`, that make the edits, which are in order and
    /// do not overlap.
    pub(super) fn patch(&self, edits: Vec<Edit>, ending: &[u8], base: usize) -> Vec<Patch> {
        let mut patches = match self {
            Self::Identity(_) => identity::patch(edits),
            Self::QuotedPrintable(body) => body.patch(&edits, ending),
            Self::Base64(body) => body.patch(&edits, ending),
        };
        for patch in &mut patches {
            patch.range = patch.range.start + base..patch.range.end + base;
        }
        patches
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::rewrite::report::apply;
    use proptest::prelude::*;

    fn edited(text: &[u8], edits: &[Edit]) -> Vec<u8> {
        let patches: Vec<_> =
            edits.iter().map(|e| Patch { range: e.range.clone(), bytes: e.bytes.clone() }).collect();
        apply(text, &patches)
    }

    fn edits_within(text: &[u8], cuts: &[(usize, usize)]) -> Vec<Edit> {
        let mut at = 0;
        let mut edits = Vec::new();
        // No edit of ours begins or ends within a CRLF.
        let outside =
            |at: usize| if text.get(..at).is_some_and(|t| t.ends_with(b"\r")) { at + 1 } else { at };
        for (skip, take) in cuts {
            let (start, end) = (outside(at + skip), outside(at + skip + take));
            if end > text.len() {
                break;
            }
            edits.push(Edit { range: start..end, bytes: b"https://t.example.org/c/L1?a=b.".to_vec() });
            at = end + 1;
        }
        edits
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn patching_the_encoded_body_is_editing_the_text(
            raw in "([ -~]|=\r\n|\r\n|=3D|=C3=A4|=20|  \r\n){0,200}",
            cuts in prop::collection::vec((0_usize..90, 0_usize..40), 0..5),
        ) {
            if let Ok(body) = Body::decode(raw.as_bytes(), "quoted-printable") {
                let edits = edits_within(body.text(), &cuts);
                let output = apply(raw.as_bytes(), &body.patch(edits.clone(), b"\r\n", 0));
                let again = Body::decode(&output, "quoted-printable").unwrap();
                prop_assert_eq!(again.text(), edited(body.text(), &edits));
                let longest = |text: &[u8]| text.split(|b| *b == b'\n').map(|l| l.trim_ascii_end().len()).max();
                prop_assert!(longest(&output) <= longest(raw.as_bytes()).max(Some(76)));
            }
        }

        #[test]
        fn base64_keeps_what_precedes(
            text in prop::collection::vec(any::<u8>(), 0..400),
            width in prop::sample::select(vec![60_usize, 64, 72, 76]),
            cuts in prop::collection::vec((0_usize..90, 0_usize..40), 0..5),
        ) {
            let encoded = data_encoding::BASE64.encode(&text);
            let mut raw = Vec::new();
            for line in encoded.as_bytes().chunks(width) {
                raw.extend_from_slice(line);
                raw.extend_from_slice(b"\r\n");
            }
            let body = Body::decode(&raw, "base64").unwrap();
            prop_assert_eq!(body.text(), &text[..]);
            let edits = edits_within(&text, &cuts);
            let output = apply(&raw, &body.patch(edits.clone(), b"\r\n", 0));
            let again = Body::decode(&output, "base64").unwrap();
            prop_assert_eq!(again.text(), edited(&text, &edits));
            if let Some(first) = edits.first() {
                let same = body.locate(first.range.start / 3 * 3).min(raw.len());
                prop_assert_eq!(&output[..same], &raw[..same]);
            }
        }

        #[test]
        fn any_bytes_decode_or_fail(raw in prop::collection::vec(any::<u8>(), 0..300)) {
            for encoding in ["quoted-printable", "base64"] {
                if let Ok(body) = Body::decode(&raw, encoding) {
                    for offset in 0..=body.text().len() {
                        prop_assert!(body.locate(offset) <= raw.len());
                    }
                }
            }
        }
    }
}
