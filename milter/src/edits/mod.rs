//! What a filter answers at the end of a message.
//!
//! - Layer: word
//! - Takes: edits and a verdict.
//! - Gives: [`Answer`]; the session turns it into bytes, all of it or nothing.
//! - On failure: [`CannotEdit`] says which edit or which capability; the message then goes through unmodified.
//! - See: Postfix `src/cleanup/cleanup_milter.c`

mod compose;
mod smtp_reply;
mod validate;

pub use compose::CannotEdit;
pub(crate) use compose::compose;
pub use smtp_reply::{SmtpReply, SmtpReplyError};
pub use validate::{Flaw, FlawKind};

use alloc::vec::Vec;

use crate::wire::Actions;

/// Edits and the verdict on a message. The edits apply only if the message is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// What to change, in any order; see [`Edit`] for how they act together.
    pub edits: Vec<Edit>,
    /// What becomes of the message.
    pub verdict: Verdict,
}

/// One change of a message.
///
/// A header value is what stands after `Name: `; folds are LF followed by a blank or tab. A value that begins with a
/// blank or tab is taken as all that stands after the colon, so that a received value can be given back as it came.
///
/// Header changes and deletions act on the message as received, whatever their order. Insertions then count the
/// headers that are left, and each sees those before it. At most one change or deletion may name the same header.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Edit {
    /// Appends a header after all others.
    AddHeader {
        /// Its name.
        name: Vec<u8>,
        /// Its value.
        value: Vec<u8>,
    },
    /// Inserts a header.
    InsertHeader {
        /// How many headers stand above it. Postfix counts its own `Received:`, which it does not show: 0 is above it,
        /// 1 below. Beyond the last header the new one is appended.
        index: u32,
        /// Its name.
        name: Vec<u8>,
        /// Its value.
        value: Vec<u8>,
    },
    /// Changes a header. Name and value are written as given. A header that does not exist is appended.
    ChangeHeader {
        /// Which one of this name, from 1, as the filter saw them.
        index: u32,
        /// Its name.
        name: Vec<u8>,
        /// The new value, not empty.
        value: Vec<u8>,
    },
    /// Deletes a header.
    DeleteHeader {
        /// Which one of this name, from 1, as the filter saw them.
        index: u32,
        /// Its name.
        name: Vec<u8>,
    },
    /// Replaces the whole body; at most once. Lines end in CRLF and should have at most 998 bytes: Postfix breaks longer ones.
    ReplaceBody(Vec<u8>),
    /// Adds a recipient.
    AddRecipient {
        /// The address, with or without angle brackets.
        address: Vec<u8>,
        /// ESMTP arguments separated by blanks; may be empty. Postfix heeds `NOTIFY` and `ORCPT`.
        args: Vec<u8>,
    },
    /// Deletes a recipient.
    DeleteRecipient {
        /// The address as the MTA gave it.
        address: Vec<u8>,
    },
    /// Changes the envelope sender.
    ChangeSender {
        /// The address, with or without angle brackets; `<>` for the null sender.
        address: Vec<u8>,
        /// ESMTP arguments separated by blanks; may be empty. Postfix heeds `RET` and `ENVID`.
        args: Vec<u8>,
    },
    /// Puts the message on hold.
    Quarantine {
        /// Why, for the MTA's log.
        reason: Vec<u8>,
    },
}

/// What becomes of a message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Verdict {
    /// It goes on, edited as told.
    #[default]
    Accept,
    /// 550; edits are left out.
    Reject,
    /// 451; edits are left out.
    TempFail,
    /// The MTA says 250 and throws it away; edits are left out.
    Discard,
    /// An SMTP reply of the filter's own; edits are left out.
    Reply(SmtpReply),
}

impl Answer {
    /// The message goes on as it is.
    #[must_use]
    pub const fn unmodified() -> Self {
        Self { edits: Vec::new(), verdict: Verdict::Accept }
    }

    /// The message goes on with these edits.
    #[must_use]
    pub const fn edited(edits: Vec<Edit>) -> Self {
        Self { edits, verdict: Verdict::Accept }
    }

    /// The memory held by bodies, in bytes.
    #[cfg(feature = "tokio")]
    pub(crate) fn body_bytes(&self) -> usize {
        self.edits.iter().map(|edit| if let Edit::ReplaceBody(body) = edit { body.len() } else { 0 }).sum()
    }
}

impl From<Verdict> for Answer {
    fn from(verdict: Verdict) -> Self {
        Self { edits: Vec::new(), verdict }
    }
}

impl Edit {
    /// What the MTA must offer for this edit.
    #[must_use]
    pub const fn needs(&self) -> Actions {
        match self {
            Self::AddHeader { .. } | Self::InsertHeader { .. } => Actions::ADD_HEADERS,
            Self::ChangeHeader { .. } | Self::DeleteHeader { .. } => Actions::CHANGE_HEADERS,
            Self::ReplaceBody(_) => Actions::CHANGE_BODY,
            Self::AddRecipient { args, .. } if !args.is_empty() => Actions::ADD_RECIPIENTS_WITH_ARGS,
            Self::AddRecipient { .. } => Actions::ADD_RECIPIENTS,
            Self::DeleteRecipient { .. } => Actions::DELETE_RECIPIENTS,
            Self::ChangeSender { .. } => Actions::CHANGE_SENDER,
            Self::Quarantine { .. } => Actions::QUARANTINE,
        }
    }
}
