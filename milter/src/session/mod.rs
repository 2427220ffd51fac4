//! The filter's side of one connection, without socket or clock.
//!
//! - Layer: decision
//! - Takes: bytes of the MTA ([`Session::receive`], or [`Session::room`] and [`Session::filled`]), answers of the filter.
//! - Gives: [`Event`]s, bytes for the MTA ([`Session::outgoing`]).
//! - On failure: [`SessionError`] when the bytes are no milter protocol: close the connection. What is merely out of
//!   order gets the reply that lets mail go on. What can't be done with a message lets it through unmodified.
//! - Limits: [`MessageLimits`], the frame limit; see [`Session::held_bytes`].
//! - See: Sendmail `libmilter/engine.c`, Postfix `src/milter/milter8.c`

pub(crate) mod inbox;
mod macros;
mod message;
mod negotiate;
mod state;

pub use message::{Client, Header, Message, MessageLimits, Path, Unseen};
pub use negotiate::{NegotiationError, Terms, Wanted};

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use self::inbox::Inbox;
use self::state::State;
use crate::edits::{Answer, CannotEdit};
use crate::wire::{Command, CommandError, DEFAULT_FRAME_LIMIT_BYTES, FrameError};

/// The memory that the buffer of outgoing bytes keeps between messages, in bytes.
const KEPT_OUT_BYTES: usize = 16 << 10;

/// What happened on a connection.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// Filter and MTA agreed: see [`Session::terms`].
    Negotiated,
    /// They did not, and every message of the connection will pass unmodified.
    PassingThrough(NegotiationError),
    /// All headers of a message are there: see [`Session::message`]. The session waits for [`Session::answer_headers`].
    Headers,
    /// A whole message. The session waits for [`Session::answer`].
    Message(Box<Message>),
    /// A message that was dropped here, since it passed a limit or was given up, went through unmodified.
    LetThrough(LetThrough),
    /// The MTA gave a message up before its end.
    Aborted,
    /// The SMTP session ended, another follows on the same connection.
    NewSession,
    /// The MTA ended the connection.
    Quit,
}

/// A message that went through unmodified, without the filter having seen it whole.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LetThrough {
    /// Why.
    pub why: Unseen,
    /// Its queue id; empty if the MTA gave none.
    pub queue_id: Vec<u8>,
    /// How many recipients the MTA named.
    pub recipients: usize,
}

/// What a filter says at the end of headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Interest {
    /// Go on with the body.
    Body,
    /// Go on with at most so many bytes of the body, 0 for none; see [`Message::body_is_whole`]. The MTA is spared the
    /// rest if [`Wanted::SKIPS_BODIES`] was agreed on, otherwise it is thrown away here.
    BodyUpTo(usize),
    /// Let the message through as it is: nothing more of it is sent.
    Accept,
}

/// Where a session stands, for time limits and orderly ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Before the negotiation.
    Negotiation,
    /// Between messages.
    Idle,
    /// Within the envelope of a message; the client of the MTA sets the pace, also while it sends DATA.
    Envelope,
    /// Within headers and body; the MTA sets the pace.
    Content,
    /// The filter's answer is awaited.
    Answer,
    /// Over.
    Closed,
}

impl Stage {
    /// A word for logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Negotiation => "negotiation",
            Self::Idle => "idle",
            Self::Envelope => "envelope",
            Self::Content => "content",
            Self::Answer => "answer",
            Self::Closed => "closed",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Negotiation => "before the negotiation",
            Self::Idle => "between messages",
            Self::Envelope => "within an envelope",
            Self::Content => "within headers and body",
            Self::Answer => "at the end of a message",
            Self::Closed => "after its end",
        })
    }
}

/// Why a connection can't go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// No frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// No command.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A command before the negotiation.
    #[error("command {code:#04x} before the negotiation")]
    NotNegotiated {
        /// Its code.
        code: u8,
    },
}

/// Limits of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionLimits {
    /// The longest frame, in bytes. Default 1 MiB; Postfix sends headers of up to 60,000 bytes in one.
    pub frame_bytes: usize,
    /// What one message may hold.
    pub message: MessageLimits,
    /// What one answer may take on the wire, in bytes; `None` for any size.
    pub answer_room_bytes: Option<usize>,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            frame_bytes: DEFAULT_FRAME_LIMIT_BYTES,
            message: MessageLimits::default(),
            answer_room_bytes: None,
        }
    }
}

/// One connection of an MTA.
#[derive(Debug)]
pub struct Session {
    inbox: Inbox,
    state: State,
    out: Vec<u8>,
    sent: usize,
}

impl Session {
    /// A session before its first byte.
    #[must_use]
    pub fn new(wanted: Wanted, limits: SessionLimits) -> Self {
        Self {
            inbox: Inbox::new(limits.frame_bytes),
            state: State::new(wanted, limits),
            out: Vec::new(),
            sent: 0,
        }
    }

    /// A session that lets every message through: for a filter that has no room for another connection.
    #[must_use]
    pub fn passing_through(why: Unseen, limits: SessionLimits) -> Self {
        let mut session = Self::new(Wanted::default(), limits);
        session.state.pass_through(why);
        session
    }

    /// Takes bytes of the MTA. Call [`Session::poll`] until it gives `None`.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.inbox.push(bytes);
    }

    /// Room to read bytes of the MTA into, never empty. Call [`Session::filled`] with their number.
    pub fn room(&mut self) -> &mut [u8] {
        self.inbox.room()
    }

    /// Takes the first `count` bytes of the room.
    pub fn filled(&mut self, count: usize) {
        self.inbox.filled(count);
    }

    /// What happened next; `None` when more bytes, or an answer, are needed first.
    ///
    /// # Errors
    /// The bytes are no milter protocol.
    pub fn poll(&mut self) -> Result<Option<Event>, SessionError> {
        if let Some(event) = self.state.pending() {
            return Ok(Some(event));
        }
        while self.state.listens() {
            let Some(frame) = self.inbox.frame()? else { break };
            let command = Command::decode(frame)?;
            if let Some(event) = self.state.take(command, &mut self.out)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// The message of [`Event::Headers`]; otherwise what is there of the current one.
    #[must_use]
    pub fn message(&self) -> Option<&Message> {
        self.state.message()
    }

    /// Answers [`Event::Headers`]; without effect at any other time.
    pub fn answer_headers(&mut self, interest: Interest) {
        self.state.answer_headers(interest, &mut self.out);
    }

    /// Answers [`Event::Message`] and gives the size of the answer on the wire, in bytes; without effect at any other time.
    /// The answer is composed whole: see [`Session::outgoing`].
    ///
    /// # Errors
    /// The answer can't be given as it is. The session then lets the message through unmodified.
    pub fn answer(&mut self, answer: &Answer) -> Result<usize, CannotEdit> {
        self.state.answer(answer, &mut self.out)
    }

    /// Says that the filter is still at work on a message; without effect at any other time.
    pub fn progress(&mut self) {
        self.state.progress(&mut self.out);
    }

    /// Drops the message in transit and lets it through unmodified; whether there was one. [`Event::LetThrough`] follows
    /// when the MTA has been told.
    pub fn give_up(&mut self, why: Unseen) -> bool {
        self.state.give_up(why)
    }

    /// Bytes for the MTA. Write them before reading again, then call [`Session::sent`].
    #[must_use]
    pub fn outgoing(&self) -> &[u8] {
        self.out.get(self.sent..).unwrap_or_default()
    }

    /// Counts the first `count` outgoing bytes as sent.
    pub fn sent(&mut self, count: usize) {
        self.sent += count;
        if self.sent >= self.out.len() {
            self.sent = 0;
            self.out.clear();
            self.out.shrink_to(KEPT_OUT_BYTES);
        }
    }

    /// What was agreed; `None` before the negotiation.
    #[must_use]
    pub const fn terms(&self) -> Option<&Terms> {
        self.state.terms()
    }

    /// Sets what one answer may take on the wire, in bytes, from the next message on; `None` for any size.
    pub const fn set_answer_room_bytes(&mut self, room: Option<usize>) {
        self.state.set_answer_room(room);
    }

    /// Where the session stands.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        self.state.stage()
    }

    /// Whether the connection can end here without harm to a message: nothing is half received, nothing unsent.
    #[must_use]
    pub const fn at_boundary(&self) -> bool {
        matches!(self.state.stage(), Stage::Negotiation | Stage::Idle | Stage::Closed)
            && self.inbox.waiting_bytes() == 0
            && self.out.is_empty()
    }

    /// The memory held for this connection, in bytes. A message handed out by [`Event::Message`] does not count.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.inbox.held_bytes() + self.out.capacity() + self.state.held_bytes()
    }

    /// Whether the MTA has gone on without the answer that it waited for: it has given the message up.
    #[cfg(feature = "tokio")]
    pub(crate) fn was_given_up(&self) -> bool {
        self.stage() == Stage::Answer && matches!(self.inbox.next_code(), Some(b'A' | b'Q'))
    }

    /// The message of which nobody has heard yet what becomes of it, and which would be lost to the filter if the
    /// connection ended now: its queue id, if that is known, and how many recipients it has so far.
    #[cfg(feature = "tokio")]
    pub(crate) fn under_way(&self) -> Option<(&[u8], usize)> {
        self.state.under_way()
    }

    /// Whether nothing is held that [`Session::shrink`] gives back.
    #[cfg(feature = "tokio")]
    pub(crate) const fn has_no_buffer(&self) -> bool {
        self.inbox.held_bytes() == 0 && self.out.capacity() == 0
    }

    /// Gives buffers back when nothing waits in them: for the time between messages.
    pub fn shrink(&mut self) {
        self.inbox.shrink();
        if self.out.is_empty() {
            self.out = Vec::new();
        }
    }
}
