//! What a filter's last reply means for a mail.
//!
//! - Layer: decision
//! - Takes: a final reply.
//! - Gives: the verdict, with the SMTP reply that the MTA's client gets.
//! - On failure: nothing can fail.
//! - See: Postfix `src/milter/milter8.c`, `milter8_event`

use alloc::vec::Vec;

use super::Mail;
use crate::wire::Reply;

/// What a filter made of a mail.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivery {
    /// Its verdict.
    pub outcome: Outcome,
    /// The mail as it goes on; as it came unless accepted at its end.
    pub mail: Mail,
    /// Why it is to be held, if it is.
    pub quarantine: Option<Vec<u8>>,
    /// How many edits there were; a body counts once.
    pub edits: usize,
}

impl Delivery {
    /// A mail that goes on as it came.
    #[must_use]
    pub const fn unchanged(mail: Mail) -> Self {
        Self { outcome: Outcome::Accepted, mail, quarantine: None, edits: 0 }
    }
}

/// The verdict on a mail.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It goes on.
    Accepted,
    /// It is refused with this SMTP reply.
    Refused(Vec<u8>),
    /// It is thrown away.
    Discarded,
}

/// The refusal that a reply means, if it is one.
#[must_use]
pub fn refusal(reply: &Reply<'_>) -> Option<Outcome> {
    Some(match reply {
        Reply::Reject => Outcome::Refused(b"550 5.7.1 Command rejected".to_vec()),
        Reply::TempFail => Outcome::Refused(b"451 4.7.1 Service unavailable - try again later".to_vec()),
        Reply::ReplyCode(text) => Outcome::Refused(halve_percents(text)),
        Reply::Shutdown => Outcome::Refused(b"421 4.7.0 Service unavailable".to_vec()),
        Reply::Discard => Outcome::Discarded,
        _ => return None,
    })
}

/// `%%` is `%`, and a single `%` nothing.
fn halve_percents(text: &[u8]) -> Vec<u8> {
    let mut bytes = text.iter();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => out.extend(bytes.next()),
            other => out.push(*other),
        }
    }
    out
}
