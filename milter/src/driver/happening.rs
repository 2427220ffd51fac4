//! What a daemon's owner should hear of.
//!
//! - Layer: word
//! - Takes: nothing.
//! - Gives: one variant for each kind of happening, without any content of mail but the queue id.
//! - On failure: nothing can fail.

use std::io;

use crate::edits::CannotEdit;
use crate::session::{Excess, NegotiationError, SessionError, Stage};

/// Something happened. Queue ids are empty where the MTA gave none.
#[derive(Debug)]
#[non_exhaustive]
pub enum Happening<'a> {
    /// A connection was accepted. For each there is one [`Happening::Closed`].
    Opened,
    /// A connection is over.
    Closed {
        /// Why.
        end: &'a End,
        /// How many messages were answered on it.
        messages: u64,
    },
    /// A connection could not be accepted; the daemon goes on.
    AcceptFailed(&'a io::Error),
    /// There are too many connections: all mail of this one passes unmodified.
    TooManyConnections,
    /// The MTA lacks what is required: all mail of this connection passes unmodified.
    CannotNegotiate(NegotiationError),
    /// A message was accepted by the handler at the end of its headers.
    AcceptedAtHeaders {
        /// The message.
        queue_id: &'a [u8],
    },
    /// A message was answered.
    Answered {
        /// The message.
        queue_id: &'a [u8],
        /// The size of the answer on the wire.
        bytes: usize,
    },
    /// A message passed a limit and goes through unmodified.
    OverLimit {
        /// The message; empty before its headers end.
        queue_id: &'a [u8],
        /// Which limit.
        excess: Excess,
    },
    /// The handler's answer can't be given; the message went through unmodified.
    CannotEdit {
        /// The message.
        queue_id: &'a [u8],
        /// Why.
        why: CannotEdit,
    },
    /// The handler panicked; the message goes through unmodified.
    Panicked {
        /// The message.
        queue_id: &'a [u8],
    },
    /// The handler took too long; the message goes through unmodified.
    TimedOut {
        /// The message.
        queue_id: &'a [u8],
    },
    /// The daemon ends before the handler did; the message goes through unmodified.
    DrainedUnanswered {
        /// The message.
        queue_id: &'a [u8],
    },
    /// The MTA was gone before the answer was written; it deals with the message by its default action.
    AnswerLost {
        /// The message.
        queue_id: &'a [u8],
    },
    /// The answer did not go out in one write. With [`Oversize::Stream`](super::Oversize) that is normal for large
    /// ones; otherwise the system took less than it promised.
    AnswerInPieces {
        /// The message.
        queue_id: &'a [u8],
        /// The size of the answer on the wire.
        bytes: usize,
        /// What the first write took of it.
        first_bytes: usize,
    },
    /// The MTA gave a message up.
    Aborted,
}

/// Why a connection ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum End {
    /// The MTA said so.
    Quit,
    /// The MTA closed the connection, at this stage.
    PeerClosed(Stage),
    /// The MTA does not speak the milter protocol.
    Protocol(SessionError),
    /// Nothing came in time.
    TimedOut(Stage),
    /// The MTA took no bytes in time.
    WriteTimedOut,
    /// The connection broke.
    Io(io::Error),
    /// The daemon ends.
    Drained(Stage),
}

impl End {
    /// A word for logs and metrics.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Quit => "quit",
            Self::PeerClosed(Stage::Negotiation | Stage::Idle) => "peer_closed",
            Self::PeerClosed(_) => "peer_closed_in_message",
            Self::Protocol(_) => "protocol",
            Self::TimedOut(_) => "timeout",
            Self::WriteTimedOut => "write_timeout",
            Self::Io(_) => "io",
            Self::Drained(_) => "drained",
        }
    }
}
