//! The filter itself, written by the user of this crate.
//!
//! - Layer: word
//! - Takes: messages.
//! - Gives: answers, and what to do once an answer is out.
//! - On failure: a panic or a late answer lets the message through unmodified, or as the handler's [`Fallback`] says.

use std::boxed::Box;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use super::{Happening, Oversize};
use crate::edits::{Answer, CannotEdit};
use crate::session::{Interest, Message};

/// A filter.
pub trait Handler: Send + Sync + 'static {
    /// Looks at envelope and headers. [`Interest::Accept`] ends the message at once: its body is not sent, which
    /// makes messages out of scope nearly free; or, where they are rare, sent and thrown away (see
    /// [`Settings::wanted`](super::Settings)). Runs within the connection's task: it should not block.
    fn headers(&self, _message: &Message) -> Interest {
        Interest::Body
    }

    /// Decides on a whole message. Runs within the connection's task: work of more than some milliseconds belongs into
    /// `tokio::task::spawn_blocking`, since a handler that blocks its thread can't be timed out, gives no signs of life
    /// and delays others. An answer should not be larger than [`Message::answer_room_bytes`].
    ///
    /// A handler that acts outside of the message, so that the original must not go on as it came even if the rest of its
    /// work fails, says with `fallback` what shall be answered then.
    fn message(&self, message: Message, fallback: &Fallback) -> impl Future<Output = Response> + Send;

    /// What becomes of an answer that does not fit the send buffer: asked with each message, for filters that learn only later
    /// what the MTA does should they fail, or have to learn it again. `set` is [`Settings::oversize`](super::Settings).
    fn oversize(&self, set: Oversize) -> Oversize {
        set
    }

    /// Hears of what happens, for logs and metrics. Runs within the connection's task.
    fn observe(&self, _happening: &Happening<'_>) {}
}

/// What is answered in place of a handler that panics, is late, or is at work when the daemon must end. Without one the
/// message goes through unmodified.
#[derive(Debug, Default)]
pub struct Fallback(Mutex<Option<Response>>);

impl Fallback {
    /// From now on this is answered.
    pub fn set(&self, response: impl Into<Response>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(response.into());
    }

    pub(super) fn take(&self) -> Option<Response> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

pub(super) type OnSettled = Box<dyn FnOnce(Settled) + Send>;
pub(super) type OnTaken = Box<dyn FnOnce() + Send>;

/// The answer of a handler.
pub struct Response {
    /// What to do with the message.
    pub answer: Answer,
    pub(super) settled: Option<OnSettled>,
    pub(super) taken: Option<OnTaken>,
}

/// What became of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settled {
    /// It was handed to the system whole.
    Sent {
        /// Its size on the wire.
        bytes: usize,
    },
    /// It could not be given; the message went through unmodified.
    Unmodified(CannotEdit),
    /// The MTA was gone, and deals with the message by its default action.
    Lost,
}

impl Response {
    /// An answer with something to be done when its fate is known: the place to record what was done to a message. It
    /// is dropped undone if the handler was given up.
    #[must_use]
    pub fn new(answer: Answer, settled: impl FnOnce(Settled) + Send + 'static) -> Self {
        Self { answer, settled: Some(Box::new(settled)), taken: None }
    }

    /// Sets something to be done when the MTA goes on with its next command, and so has read the answer. It is dropped
    /// undone if the connection ends before.
    #[must_use]
    pub fn when_taken(mut self, taken: impl FnOnce() + Send + 'static) -> Self {
        self.taken = Some(Box::new(taken));
        self
    }

    /// Adds something to be done when the answer's fate is known, after what there is already.
    #[must_use]
    pub fn and(mut self, settled: impl FnOnce(Settled) + Send + 'static) -> Self {
        let first = self.settled.take();
        self.settled = Some(Box::new(move |fate| {
            if let Some(first) = first {
                first(fate);
            }
            settled(fate);
        }));
        self
    }

    pub(super) fn settle(settled: Option<OnSettled>, fate: Settled) {
        if let Some(settled) = settled {
            // A panic there must not cost a connection.
            let _ = catch_unwind(AssertUnwindSafe(|| settled(fate)));
        }
    }
}

impl From<Answer> for Response {
    fn from(answer: Answer) -> Self {
        Self { answer, settled: None, taken: None }
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response").field("answer", &self.answer).finish_non_exhaustive()
    }
}
