//! NUL-terminated texts inside a frame.
//!
//! - Layer: word
//! - Takes: the data of a frame.
//! - Gives: texts without their NUL.
//! - On failure: none here; a missing last NUL is taken as there.

#![warn(clippy::indexing_slicing)]

use alloc::vec::Vec;

/// Splits the first text off: what precedes the first NUL, and what follows it (`None` when no NUL came).
pub(crate) fn split_text(data: &[u8]) -> (&[u8], Option<&[u8]>) {
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let (text, rest) = data.split_at_checked(end).unwrap_or((data, &[]));
    (text, rest.split_first().map(|(_, after)| after))
}

/// Splits the first text off; the rest is empty when the NUL is missing.
pub(crate) fn take_text(data: &[u8]) -> (&[u8], &[u8]) {
    let (text, rest) = split_text(data);
    (text, rest.unwrap_or_default())
}

/// Writes a text and its NUL. As in C, a text ends at its first NUL.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(take_text(text).0);
    out.push(0);
}

/// Several NUL-terminated texts in a row, as they lie in the frame.
#[derive(Debug, Clone, Copy, Default)]
pub struct Texts<'a> {
    raw: &'a [u8],
}

impl PartialEq for Texts<'_> {
    /// The same texts, whether or not the last has its NUL.
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Texts<'_> {}

impl<'a> Texts<'a> {
    /// Takes texts in wire form: each followed by a NUL.
    #[must_use]
    pub const fn new(raw: &'a [u8]) -> Self {
        Self { raw }
    }

    /// The wire form.
    #[must_use]
    pub const fn raw(self) -> &'a [u8] {
        self.raw
    }

    /// Each text, without its NUL.
    pub fn iter(self) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = self.raw;
        core::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let (text, after) = take_text(rest);
            rest = after;
            Some(text)
        })
    }

    /// Brings texts into wire form.
    #[must_use]
    pub fn join<T: AsRef<[u8]>>(texts: &[T]) -> Vec<u8> {
        let mut raw = Vec::new();
        for text in texts {
            put_text(&mut raw, text.as_ref());
        }
        raw
    }

    pub(crate) fn put(self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.raw);
        if self.raw.last().is_some_and(|byte| *byte != 0) {
            out.push(0);
        }
    }
}
