//! Whether an edit can harm a message.
//!
//! - Layer: decision
//! - Takes: one edit.
//! - Gives: nothing if it is sound.
//! - On failure: [`FlawKind`] with the position of the first bad byte, never with content.
//! - See: RFC 5322 section 2.2; Postfix adds a TAB where a fold lacks its blank, other MTAs need not

#![warn(clippy::indexing_slicing)]

use super::Edit;

/// An edit that is not sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("edit {edit}: {kind}")]
#[non_exhaustive]
pub struct Flaw {
    /// Which edit of the answer, from 0.
    pub edit: usize,
    /// What is wrong.
    pub kind: FlawKind,
}

/// What can be wrong with an edit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FlawKind {
    /// A header name without a byte, or with one that is no printable ASCII, or a colon.
    #[error("bad header name at byte {position}")]
    HeaderName {
        /// Where, from 0.
        position: usize,
    },
    /// NUL or CR in a header value, or LF without a blank or tab after it: it would start a header, or the body.
    #[error("bad byte {byte:#04x} in header value at {position}")]
    HeaderValue {
        /// Where, from 0.
        position: usize,
        /// The byte.
        byte: u8,
    },
    /// A change to an empty value, which MTAs take for a deletion.
    #[error("change to an empty header value")]
    EmptyValue,
    /// Changes and deletions count from 1.
    #[error("header index {index}")]
    Index {
        /// The index.
        index: u32,
    },
    /// Two edits name the same header, or both replace the body or the sender.
    #[error("a second edit of the same thing")]
    Twice,
    /// NUL, CR or LF in an address, its arguments or a reason, or an address without a byte.
    #[error("bad byte in envelope text at {position}")]
    Envelope {
        /// Where, from 0.
        position: usize,
    },
}

/// Looks at one edit alone.
pub(super) fn check(edit: &Edit) -> Result<(), FlawKind> {
    match edit {
        Edit::AddHeader { name, value } => header(name, value),
        Edit::InsertHeader { index, name, value } => {
            if *index > i32::MAX as u32 - 1 {
                return Err(FlawKind::Index { index: *index });
            }
            header(name, value)
        }
        Edit::ChangeHeader { index, name, value } => {
            instance(*index)?;
            if matches!(value.as_slice(), b"" | b" ") {
                return Err(FlawKind::EmptyValue);
            }
            header(name, value)
        }
        Edit::DeleteHeader { index, name } => {
            instance(*index)?;
            header_name(name)
        }
        Edit::ReplaceBody(_) => Ok(()),
        Edit::AddRecipient { address, args } | Edit::ChangeSender { address, args } => {
            address_text(address)?;
            line(args)
        }
        Edit::DeleteRecipient { address } => address_text(address),
        Edit::Quarantine { reason } => line(reason),
    }
}

const fn instance(index: u32) -> Result<(), FlawKind> {
    if index == 0 || index > i32::MAX as u32 {
        return Err(FlawKind::Index { index });
    }
    Ok(())
}

fn header(name: &[u8], value: &[u8]) -> Result<(), FlawKind> {
    header_name(name)?;
    header_value(value)
}

fn header_name(name: &[u8]) -> Result<(), FlawKind> {
    if name.is_empty() {
        return Err(FlawKind::HeaderName { position: 0 });
    }
    match name.iter().position(|byte| !byte.is_ascii_graphic() || *byte == b':') {
        Some(position) => Err(FlawKind::HeaderName { position }),
        None => Ok(()),
    }
}

fn header_value(value: &[u8]) -> Result<(), FlawKind> {
    for (position, byte) in value.iter().enumerate() {
        let bad = match byte {
            0 | b'\r' => true,
            b'\n' => !matches!(value.get(position + 1), Some(b' ' | b'\t')),
            _ => false,
        };
        if bad {
            return Err(FlawKind::HeaderValue { position, byte: *byte });
        }
    }
    Ok(())
}

fn address_text(address: &[u8]) -> Result<(), FlawKind> {
    if address.is_empty() {
        return Err(FlawKind::Envelope { position: 0 });
    }
    line(address)
}

fn line(text: &[u8]) -> Result<(), FlawKind> {
    match text.iter().position(|byte| matches!(byte, 0 | b'\r' | b'\n')) {
        Some(position) => Err(FlawKind::Envelope { position }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(name: &str, value: &str) -> Result<(), FlawKind> {
        check(&Edit::AddHeader { name: name.into(), value: value.into() })
    }

    #[test]
    fn nothing_can_be_injected() {
        assert_eq!(add("X", "a\n\tb\n c"), Ok(()));
        assert_eq!(add("X", "a\nBcc: b"), Err(FlawKind::HeaderValue { position: 1, byte: b'\n' }));
        assert_eq!(add("X", "a\n"), Err(FlawKind::HeaderValue { position: 1, byte: b'\n' }));
        assert_eq!(add("X", "a\n\n b"), Err(FlawKind::HeaderValue { position: 1, byte: b'\n' }));
        assert_eq!(add("X", "a\r\n b"), Err(FlawKind::HeaderValue { position: 1, byte: b'\r' }));
        assert_eq!(add("X", "a\0"), Err(FlawKind::HeaderValue { position: 1, byte: 0 }));
    }

    #[test]
    fn names_are_names() {
        assert_eq!(add("", "a"), Err(FlawKind::HeaderName { position: 0 }));
        assert_eq!(add("X:", "a"), Err(FlawKind::HeaderName { position: 1 }));
        assert_eq!(add("X Y", "a"), Err(FlawKind::HeaderName { position: 1 }));
        assert_eq!(add("X\n", "a"), Err(FlawKind::HeaderName { position: 1 }));
        assert_eq!(add("Xé", "a"), Err(FlawKind::HeaderName { position: 1 }));
    }

    #[test]
    fn a_change_to_nothing_is_no_deletion() {
        let edit = Edit::ChangeHeader { index: 1, name: b"X".into(), value: b"".into() };
        assert_eq!(check(&edit), Err(FlawKind::EmptyValue));
        let edit = Edit::ChangeHeader { index: 1, name: b"X".into(), value: b" ".into() };
        assert_eq!(check(&edit), Err(FlawKind::EmptyValue));
        let edit = Edit::DeleteHeader { index: 0, name: b"X".into() };
        assert_eq!(check(&edit), Err(FlawKind::Index { index: 0 }));
    }

    #[test]
    fn envelope_texts_are_one_line() {
        let edit = Edit::AddRecipient { address: b"<a@b>".into(), args: b"NOTIFY=NEVER\n".into() };
        assert_eq!(check(&edit), Err(FlawKind::Envelope { position: 12 }));
        let edit = Edit::ChangeSender { address: b"".into(), args: b"".into() };
        assert_eq!(check(&edit), Err(FlawKind::Envelope { position: 0 }));
    }
}
