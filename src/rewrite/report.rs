//! What was done to one message, and the patches that do it.
//!
//! - Layer: decision
//! - Takes: the rewriter's findings.
//! - Gives: patches in order, and for every part and link what was done and why.
//! - On failure: `apply` ignores a patch that does not fit the message.
//! - Limits: at most `MAX_REPORTED_LINKS` links are listed one by one, where they are; all are counted.

use std::ops::Range;

use super::optout::MessageOptOut;
use super::reason::{Reason, Reasons};

/// Most links listed in a report.
pub const MAX_REPORTED_LINKS: usize = 20_000;

/// What became of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There are patches to apply.
    Rewritten,
    /// The body stays as it is, but own headers may be added.
    Unchanged(Reason),
    /// Out of doubt, or by policy: the message must pass exactly as it came.
    LeftAlone(Reason),
}

impl Outcome {
    /// Why nothing is patched; `None` where something is.
    #[must_use]
    pub const fn reason(self) -> Option<Reason> {
        match self {
            Self::Rewritten => None,
            Self::Unchanged(reason) | Self::LeftAlone(reason) => Some(reason),
        }
    }
}

/// What became of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartWhat {
    /// Something in it is patched.
    Rewritten,
    /// It is a container, whose parts are looked at one by one.
    Opened,
    /// Nothing in it is patched.
    Left(Reason),
}

/// What became of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkWhat {
    /// It leads through the tracker now.
    Tracked,
    /// It stays as it was.
    Left(Reason),
}

/// Bytes of the message to replace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// The bytes that go, as offsets in the message. May be empty.
    pub range: Range<usize>,
    /// The bytes that come.
    pub bytes: Vec<u8>,
}

/// A MIME part and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartReport {
    /// Its number, as IMAP counts: `1`, `1.2`; empty for the container of the whole message.
    pub path: String,
    /// Its media type in lower case.
    pub content_type: String,
    /// Its transfer encoding in lower case.
    pub encoding: String,
    /// Its charset as labelled.
    pub charset: Option<String>,
    /// What became of it.
    pub what: PartWhat,
}

/// A link and what became of it. Holds content of the message: not for logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkReport {
    /// The part it is in, as an index of [`Report::parts`].
    pub part: usize,
    /// Where its value begins, as an offset in the message.
    pub offset: usize,
    /// Its number within the message, when tracked.
    pub number: Option<u16>,
    /// Where it leads, decoded.
    pub target: String,
    /// What became of it.
    pub what: LinkWhat,
}

/// What was done to the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What became of the message.
    pub outcome: Outcome,
    /// Patches in ascending order, without overlap, in the body only.
    pub patches: Vec<Patch>,
    /// Every part of the MIME tree, but for what is within containers that are not opened.
    pub parts: Vec<PartReport>,
    /// Links in the order of the message, up to [`MAX_REPORTED_LINKS`]; none unless the plan wants them listed.
    pub links: Vec<LinkReport>,
    /// How many links are tracked.
    pub tracked: u16,
    /// Why the others are not, all of them.
    pub left_links: Reasons,
    /// Links beyond what is listed in `links`; none of them is tracked.
    pub unlisted_links: usize,
    /// The part that got the pixel, as an index of `parts`, or why there is none.
    pub pixel: Result<usize, Reason>,
    /// The AMP part that got a pixel of the same URL, or why there is none; `None` when no AMP part could have one.
    pub amp_pixel: Option<Result<usize, Reason>>,
    /// What the message's headers ask for.
    pub opt_out: MessageOptOut,
}

impl Report {
    pub(super) fn of(outcome: Outcome, reason: Reason) -> Self {
        Self {
            outcome,
            patches: Vec::new(),
            parts: Vec::new(),
            links: Vec::new(),
            tracked: 0,
            left_links: Reasons::default(),
            unlisted_links: 0,
            pixel: Err(reason),
            amp_pixel: None,
            opt_out: MessageOptOut::default(),
        }
    }

    /// Why parts were left, and how many.
    #[must_use]
    pub fn left_parts(&self) -> Reasons {
        let mut reasons = Reasons::default();
        for part in &self.parts {
            if let PartWhat::Left(reason) = part.what {
                reasons.add(reason, 1);
            }
        }
        reasons
    }

    /// Whether any part got a pixel.
    #[must_use]
    pub fn has_pixel(&self) -> bool {
        self.pixel.is_ok() || self.amp_pixel.is_some_and(|pixel| pixel.is_ok())
    }

    pub(super) fn left_alone(reason: Reason) -> Self {
        Self::of(Outcome::LeftAlone(reason), reason)
    }

    pub(super) fn unchanged(reason: Reason) -> Self {
        Self::of(Outcome::Unchanged(reason), reason)
    }
}

/// The message with the patches applied.
#[must_use]
pub fn apply(message: &[u8], patches: &[Patch]) -> Vec<u8> {
    apply_from(message, 0, patches)
}

/// As [`apply`], but only what follows `start`, such as the body. Patches before it are ignored.
#[must_use]
pub fn apply_from(message: &[u8], start: usize, patches: &[Patch]) -> Vec<u8> {
    let mut output = Vec::with_capacity(message.len().saturating_sub(start).saturating_add(growth(patches)));
    apply_onto(&mut output, message, start, patches);
    output
}

/// How many bytes patches bring, at most.
#[must_use]
pub fn growth(patches: &[Patch]) -> usize {
    patches.iter().map(|patch| patch.bytes.len()).sum()
}

/// As [`apply_from`], at the end of what is there already.
pub fn apply_onto(output: &mut Vec<u8>, message: &[u8], start: usize, patches: &[Patch]) {
    let mut at = start;
    for patch in patches {
        let Some(kept) = message.get(at..patch.range.start) else { continue };
        if patch.range.end < patch.range.start || patch.range.end > message.len() {
            continue;
        }
        output.extend_from_slice(kept);
        output.extend_from_slice(&patch.bytes);
        at = patch.range.end;
    }
    output.extend_from_slice(message.get(at..).unwrap_or_default());
}

/// Counts lines from offset to offset: what lies behind is not counted again.
#[derive(Debug, Clone)]
pub struct LineCounter<'m> {
    message: &'m [u8],
    offset: usize,
    line: usize,
}

impl<'m> LineCounter<'m> {
    /// Of a message.
    #[must_use]
    pub const fn new(message: &'m [u8]) -> Self {
        Self { message, offset: 0, line: 1 }
    }

    /// The line, counted from 1, of an offset.
    pub fn line_of(&mut self, offset: usize) -> usize {
        if offset < self.offset {
            *self = Self::new(self.message);
        }
        let offset = offset.min(self.message.len());
        let between = self.message.get(self.offset..offset).unwrap_or_default();
        self.line += memchr::memchr_iter(b'\n', between).count();
        self.offset = offset;
        self.line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_apply_in_order() {
        let patches =
            [Patch { range: 1..2, bytes: b"XY".to_vec() }, Patch { range: 3..3, bytes: b"-".to_vec() }];
        assert_eq!(apply(b"abcd", &patches), b"aXYc-d");
        assert_eq!(apply(b"abcd", &[]), b"abcd");
    }

    #[test]
    fn a_patch_that_does_not_fit_is_ignored() {
        assert_eq!(apply(b"abcd", &[Patch { range: 9..10, bytes: b"X".to_vec() }]), b"abcd");
        assert_eq!(apply(b"abcd", &[Patch { range: 2..9, bytes: b"X".to_vec() }]), b"abcd");
    }

    #[test]
    fn lines_count_from_one() {
        let mut lines = LineCounter::new(b"a\nb\nc");
        for (offset, line) in [(0, 1), (4, 3), (2, 2), (9, 3)] {
            assert_eq!(lines.line_of(offset), line, "{offset}");
        }
    }
}
