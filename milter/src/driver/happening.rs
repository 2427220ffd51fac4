//! What a daemon's owner should hear of.
//!
//! - Layer: word
//! - Takes: nothing.
//! - Gives: one variant for each kind of happening, without any content of mail but the queue id.
//! - On failure: nothing can fail.

use std::time::Duration;
use std::{fmt, io};

use crate::edits::CannotEdit;
use crate::session::{NegotiationError, SessionError, Stage, Unseen};

/// Which message something happened to.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Which<'a> {
    /// Its queue id; empty if the MTA gave none.
    pub queue_id: &'a [u8],
    /// How many recipients it has.
    pub recipients: usize,
    /// The time since its last byte came, or since it was known what becomes of it; nothing if it was never worked on.
    pub took: Option<Duration>,
}

impl<'a> Which<'a> {
    /// A message that was never worked on, for tests of what is made of happenings.
    #[must_use]
    pub const fn new(queue_id: &'a [u8], recipients: usize) -> Self {
        Self { queue_id, recipients, took: None }
    }
}

impl fmt::Debug for Which<'_> {
    /// With the queue id as text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Which")
            .field("queue_id", &format_args!("\"{}\"", self.queue_id.escape_ascii()))
            .field("recipients", &self.recipients)
            .field("took", &self.took)
            .finish()
    }
}

/// Something happened.
///
/// Each message has one of `AcceptedAtHeaders`, `LetThrough`, `Answered`, `AnswerLost` and `Closed`, unless the MTA gave it
/// up. The others may come before it.
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
        /// The message that this end cut off, before its own end: the MTA has given it up, or deals with it by its default
        /// action.
        cut_off: Option<Which<'a>>,
    },
    /// A connection could not be accepted; the daemon goes on.
    AcceptFailed(&'a io::Error),
    /// There are too many connections: all mail of this one passes unmodified.
    TooManyConnections,
    /// There are more connections than are answered at all: the next one has to wait until another ends.
    ConnectionWaits,
    /// The memory that a connection holds and that counts for [`Settings::memory_bytes`](super::Settings) has changed.
    MemoryHeld {
        /// What it was, in bytes.
        before: usize,
        /// What it is.
        now: usize,
    },
    /// The MTA lacks what is required: all mail of this connection passes unmodified.
    CannotNegotiate(NegotiationError),
    /// A message was accepted by the handler at the end of its headers.
    AcceptedAtHeaders(Which<'a>),
    /// A message went through unmodified without the handler having had it whole.
    LetThrough {
        /// The message.
        which: Which<'a>,
        /// Why.
        why: Unseen,
    },
    /// A message was answered.
    Answered {
        /// The message.
        which: Which<'a>,
        /// The size of the answer on the wire.
        bytes: usize,
    },
    /// The handler's answer can't be given; the message went through unmodified.
    CannotEdit {
        /// The message.
        which: Which<'a>,
        /// Why.
        why: CannotEdit,
    },
    /// The handler did not answer; the message goes through unmodified, or as its [`Fallback`](super::Fallback) says.
    Unanswered {
        /// The message.
        which: Which<'a>,
        /// Why.
        why: Failure,
        /// Whether there is a fallback.
        fallback: bool,
    },
    /// The MTA was gone before the answer was written; it deals with the message by its default action.
    AnswerLost {
        /// The message.
        which: Which<'a>,
        /// Whether the handler had answered.
        answered: bool,
    },
    /// The answer did not go out in one write. With [`Oversize::Stream`](super::Oversize) that is normal for large
    /// ones; otherwise the system took less than it promised.
    AnswerInPieces {
        /// The message.
        which: Which<'a>,
        /// The size of the answer on the wire.
        bytes: usize,
        /// What the first write took of it.
        first_bytes: usize,
    },
    /// The MTA gave a message up.
    Aborted,
}

/// Why a handler did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Failure {
    /// It panicked.
    Panicked,
    /// It took longer than [`Timeouts::handler`](super::Timeouts).
    TimedOut,
    /// The daemon ends.
    Stopping,
}

impl Failure {
    /// Each of them.
    pub const ALL: &'static [Self] = &[Self::Panicked, Self::TimedOut, Self::Stopping];

    /// A word for logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Panicked => "panic",
            Self::TimedOut => "timeout",
            Self::Stopping => "stopping",
        }
    }
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
    /// The MTA took no bytes in time, at this stage.
    WriteTimedOut(Stage),
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
            Self::WriteTimedOut(_) => "write_timeout",
            Self::Io(_) => "io",
            Self::Drained(_) => "drained",
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quit => write!(f, "the MTA quit"),
            Self::PeerClosed(stage) => write!(f, "the MTA closed the connection, {stage}"),
            Self::Protocol(error) => write!(f, "not the milter protocol: {error}"),
            Self::TimedOut(stage) => write!(f, "nothing came in time, {stage}"),
            Self::WriteTimedOut(stage) => write!(f, "the MTA took no bytes in time, {stage}"),
            Self::Io(error) => write!(f, "the connection broke: {error}"),
            Self::Drained(stage) => write!(f, "the daemon ends, {stage}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;
    use std::vec::Vec;
    use std::{format, iter};

    use super::*;
    use crate::wire::CommandError;

    /// Who adds a reason is sent here by the compiler.
    #[test]
    fn all_reasons_are_listed() {
        let next = |why: &Unseen| match why {
            Unseen::MessageBytes => Some(Unseen::HeaderBytes),
            Unseen::HeaderBytes => Some(Unseen::Headers),
            Unseen::Headers => Some(Unseen::Recipients),
            Unseen::Recipients => Some(Unseen::Memory),
            Unseen::Memory => Some(Unseen::Connections),
            Unseen::Connections => Some(Unseen::Negotiation),
            Unseen::Negotiation => Some(Unseen::Stopping),
            Unseen::Stopping => None,
        };
        let all: Vec<_> = iter::successors(Some(Unseen::MessageBytes), next).collect();
        assert_eq!(all, Unseen::ALL);
        let next = |why: &Failure| match why {
            Failure::Panicked => Some(Failure::TimedOut),
            Failure::TimedOut => Some(Failure::Stopping),
            Failure::Stopping => None,
        };
        let all: Vec<_> = iter::successors(Some(Failure::Panicked), next).collect();
        assert_eq!(all, Failure::ALL);
    }

    #[test]
    fn ends_and_messages_are_told_in_words() {
        let end = End::Protocol(SessionError::Command(CommandError::Unknown { code: 90 }));
        assert_eq!(end.to_string(), "not the milter protocol: unknown command 0x5a");
        assert_eq!(
            End::TimedOut(Stage::Content).to_string(),
            "nothing came in time, within headers and body"
        );
        let which = Which { queue_id: b"4jY8\n", recipients: 1, took: None };
        assert_eq!(format!("{which:?}"), "Which { queue_id: \"4jY8\\n\", recipients: 1, took: None }");
    }
}
