//! Replies, from the filter to the MTA.
//!
//! - Layer: word
//! - Takes: one frame.
//! - Gives: a [`Reply`] that borrows from it; or a frame from a reply.
//! - On failure: [`ReplyError`]. Replies are read as strictly as Postfix reads them: what it would drop the connection
//!   for is an error here.
//! - See: Postfix `src/milter/milter8.c`, `milter8_event`

#![warn(clippy::indexing_slicing)]

use alloc::vec::Vec;

use super::frame::put_frame;
use super::negotiation::split_u32;
use super::text::{put_text, split_text};
use super::{Frame, MacroLists, Offer};

/// A reply of the filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply<'a> {
    /// `O`: what the filter takes of the offer, and the macros it asks for.
    Negotiate {
        /// What is taken.
        offer: Offer,
        /// Macro lists, replacing those configured in the MTA; empty to leave them.
        macros: MacroLists<'a>,
    },
    /// `c`: go on.
    Continue,
    /// `a`: no more of this message, or, at CONNECT and HELO, of this session.
    Accept,
    /// `r`: 550.
    Reject,
    /// `t`: 451.
    TempFail,
    /// `d`: say 250 and throw the message away.
    Discard,
    /// `y`: an SMTP reply of the filter's own.
    ReplyCode(&'a [u8]),
    /// `s`: no more commands of this kind for this message.
    Skip,
    /// `p`: still at work.
    Progress,
    /// `h`: append a header.
    AddHeader {
        /// The name.
        name: &'a [u8],
        /// The value.
        value: &'a [u8],
    },
    /// `i`: insert a header.
    InsertHeader {
        /// How many headers stand above it.
        index: u32,
        /// The name.
        name: &'a [u8],
        /// The value.
        value: &'a [u8],
    },
    /// `m`: change the header, or delete it when the value is empty.
    ChangeHeader {
        /// Which one of this name, from 1.
        index: u32,
        /// The name.
        name: &'a [u8],
        /// The value.
        value: &'a [u8],
    },
    /// `b`: a piece of the new body.
    ReplaceBody(&'a [u8]),
    /// `+`: add a recipient.
    AddRecipient(&'a [u8]),
    /// `2`: add a recipient with ESMTP arguments.
    AddRecipientWithArgs {
        /// The address.
        address: &'a [u8],
        /// The arguments, separated by blanks; may be empty.
        args: &'a [u8],
    },
    /// `-`: delete a recipient.
    DeleteRecipient(&'a [u8]),
    /// `e`: change the envelope sender.
    ChangeSender {
        /// The address.
        address: &'a [u8],
        /// ESMTP arguments, separated by blanks; may be empty.
        args: &'a [u8],
    },
    /// `q`: hold the message, for this reason.
    Quarantine(&'a [u8]),
    /// `4`: 421 and disconnect. Postfix 3.7 answers 250 when it comes at end of message.
    Shutdown,
    /// `f`: connection failure. Postfix takes it for an error.
    ConnectionFailed,
}

/// Why Postfix would not take a frame as a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplyError {
    /// No reply has this code.
    #[error("unknown reply {code:#04x}")]
    Unknown {
        /// The code.
        code: u8,
    },
    /// The data is too short.
    #[error("reply {code:#04x} with only {length} bytes of data")]
    Short {
        /// The code.
        code: u8,
        /// The length of the data, in bytes.
        length: usize,
    },
    /// A text lacks its NUL.
    #[error("reply {code:#04x} with a text that has no end")]
    Unterminated {
        /// The code.
        code: u8,
    },
    /// Data where none belongs.
    #[error("reply {code:#04x} followed by {extra} bytes too many")]
    Extra {
        /// The code.
        code: u8,
        /// How many bytes are left.
        extra: usize,
    },
}

/// Reads the fields of one reply.
struct Fields<'a> {
    code: u8,
    length: usize,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn text(&mut self) -> Result<&'a [u8], ReplyError> {
        let (text, rest) = split_text(self.rest);
        self.rest = rest.ok_or(ReplyError::Unterminated { code: self.code })?;
        Ok(text)
    }

    fn optional_text(&mut self) -> Result<&'a [u8], ReplyError> {
        if self.rest.is_empty() { Ok(&[]) } else { self.text() }
    }

    fn number(&mut self) -> Result<u32, ReplyError> {
        let (number, rest) =
            split_u32(self.rest).ok_or(ReplyError::Short { code: self.code, length: self.length })?;
        self.rest = rest;
        Ok(number)
    }

    fn all(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.rest)
    }

    fn end(self, reply: Reply<'a>) -> Result<Reply<'a>, ReplyError> {
        match self.rest.len() {
            0 => Ok(reply),
            extra => Err(ReplyError::Extra { code: self.code, extra }),
        }
    }
}

impl<'a> Reply<'a> {
    /// Reads a reply from its frame.
    ///
    /// # Errors
    /// Whatever Postfix would take for a broken filter.
    pub fn decode(frame: Frame<'a>) -> Result<Self, ReplyError> {
        let Frame { code, data } = frame;
        let mut fields = Fields { code, length: data.len(), rest: data };
        let reply = match code {
            b'O' => {
                let (offer, rest) =
                    Offer::split(data).ok_or(ReplyError::Short { code, length: data.len() })?;
                fields.rest = &[];
                Self::Negotiate { offer, macros: MacroLists::new(rest) }
            }
            b'c' => Self::Continue,
            b'a' => Self::Accept,
            b'r' => Self::Reject,
            b't' => Self::TempFail,
            b'd' => Self::Discard,
            b's' => Self::Skip,
            b'p' => Self::Progress,
            b'4' => Self::Shutdown,
            b'f' => Self::ConnectionFailed,
            b'y' => Self::ReplyCode(fields.text()?),
            b'q' => Self::Quarantine(fields.text()?),
            b'+' => Self::AddRecipient(fields.text()?),
            b'-' => Self::DeleteRecipient(fields.text()?),
            b'b' => Self::ReplaceBody(fields.all()),
            b'h' => Self::AddHeader { name: fields.text()?, value: fields.text()? },
            b'i' => {
                Self::InsertHeader { index: fields.number()?, name: fields.text()?, value: fields.text()? }
            }
            b'm' => {
                Self::ChangeHeader { index: fields.number()?, name: fields.text()?, value: fields.text()? }
            }
            b'2' => Self::AddRecipientWithArgs { address: fields.text()?, args: fields.optional_text()? },
            b'e' => Self::ChangeSender { address: fields.text()?, args: fields.optional_text()? },
            _ => return Err(ReplyError::Unknown { code }),
        };
        fields.end(reply)
    }

    /// The code on the wire.
    #[must_use]
    pub const fn code(&self) -> u8 {
        match self {
            Self::Negotiate { .. } => b'O',
            Self::Continue => b'c',
            Self::Accept => b'a',
            Self::Reject => b'r',
            Self::TempFail => b't',
            Self::Discard => b'd',
            Self::ReplyCode(_) => b'y',
            Self::Skip => b's',
            Self::Progress => b'p',
            Self::AddHeader { .. } => b'h',
            Self::InsertHeader { .. } => b'i',
            Self::ChangeHeader { .. } => b'm',
            Self::ReplaceBody(_) => b'b',
            Self::AddRecipient(_) => b'+',
            Self::AddRecipientWithArgs { .. } => b'2',
            Self::DeleteRecipient(_) => b'-',
            Self::ChangeSender { .. } => b'e',
            Self::Quarantine(_) => b'q',
            Self::Shutdown => b'4',
            Self::ConnectionFailed => b'f',
        }
    }

    /// Appends the reply's frame to `out`. As in C, a text ends at its first NUL.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_frame(out, self.code(), |out| match self {
            Self::Negotiate { offer, macros } => {
                offer.put(out);
                out.extend_from_slice(macros.raw());
            }
            Self::ReplyCode(text)
            | Self::Quarantine(text)
            | Self::AddRecipient(text)
            | Self::DeleteRecipient(text) => put_text(out, text),
            Self::AddHeader { name, value } => {
                put_text(out, name);
                put_text(out, value);
            }
            Self::InsertHeader { index, name, value } | Self::ChangeHeader { index, name, value } => {
                out.extend_from_slice(&index.to_be_bytes());
                put_text(out, name);
                put_text(out, value);
            }
            Self::ReplaceBody(piece) => out.extend_from_slice(piece),
            Self::AddRecipientWithArgs { address, args } | Self::ChangeSender { address, args } => {
                put_text(out, address);
                if !args.is_empty() {
                    put_text(out, args);
                }
            }
            _ => (),
        });
    }

    /// Whether the MTA waits for no further reply after this one.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Negotiate { .. }
                | Self::Continue
                | Self::Accept
                | Self::Reject
                | Self::TempFail
                | Self::Discard
                | Self::ReplyCode(_)
                | Self::Skip
                | Self::Shutdown
                | Self::ConnectionFailed
        )
    }
}
