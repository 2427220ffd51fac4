//! Where the relay takes events from, whatever carries them.
//!
//! - Layer: edge
//! - Takes: events from the spool or RabbitMQ.
//! - Gives: deliveries, each to be settled once.
//! - On failure: a delivery that nobody settles comes again, to this relay or another one.
//! - Limits: a source holds no more deliveries than it was told to; `next` waits when there are as many.

mod amqp;
mod held;
mod spool;

pub use amqp::{AmqpSource, Taking};
pub use spool::SpoolSource;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::StoreError;
use crate::event::{Event, EventId};

/// What a source that can put off deliveries for any time is asked for, in seconds.
const WAITS: [u64; 3] = [10, 60, 600];

/// A future in a box, as the traits of this directory return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Events to send, until each is settled.
pub trait Source: Send + std::fmt::Debug {
    /// Waits until there is an event, and gives up to `max` of them. Nothing at all means: it is time to stop.
    ///
    /// May be dropped while it waits: what it had taken comes with the next call, or again later.
    ///
    /// # Errors
    /// `SourceError`: worth another try, after a while.
    fn next(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, SourceError>>;

    /// Keeps the way to the source in order while nothing is taken: what broke is made again, so that deliveries can be settled.
    /// May be dropped. Ends only with deliveries that nobody took and that can be held no longer: to be tried again later.
    fn tend(&mut self) -> BoxFuture<'_, Vec<Delivery>> {
        Box::pin(std::future::pending())
    }

    /// Up to which delivery all have been held for so long that those which nothing was begun with are better given back.
    fn overdue(&self) -> Option<Tag> {
        None
    }

    /// The number of the connection that stands, or is to come. What came over one before comes again.
    fn epoch(&self) -> u64 {
        0
    }

    /// Whoever takes what became of deliveries, at any time, while others are waited for.
    fn settler(&self) -> Arc<dyn Settle>;

    /// How many deliveries it may hold.
    fn most(&self) -> usize;

    /// Whether it holds as many: more come only after some are settled.
    fn is_full(&self) -> bool;

    /// For how long deliveries can be put off, shortest first: each other time is rounded up to one of these, what is longer than
    /// all becomes the longest. None: not at all.
    fn waits(&self) -> Vec<Duration> {
        WAITS.into_iter().map(Duration::from_secs).collect()
    }

    /// Settles, and gives the first failure; that something comes again is none.
    ///
    /// # Errors
    /// `SourceError`: some may have been settled; settling them again is safe.
    fn settle(&self, outcomes: Vec<(Tag, Settlement)>) -> BoxFuture<'static, Result<(), SourceError>> {
        let settler = self.settler();
        Box::pin(async move {
            let unsettled = settler.settle(outcomes).await;
            match unsettled.into_iter().find(|(_, error)| *error != SourceError::Gone) {
                Some((_, error)) => Err(error),
                None => Ok(()),
            }
        })
    }
}

/// What could not be settled, each with why. Settling it again is safe.
pub type Unsettled = Vec<(Tag, SourceError)>;

/// Takes what became of deliveries; several calls at once do not hold up each other.
pub trait Settle: Send + Sync + std::fmt::Debug {
    /// Says what became of deliveries; gives what could not be settled, and nothing else. One that is held by nobody any more
    /// (the broker was away) is `Gone`, if it was to be brought elsewhere: it comes again; an uncertain one is written down all the
    /// same, so its id should be remembered by who settles it.
    fn settle(&self, outcomes: Vec<(Tag, Settlement)>) -> BoxFuture<'_, Unsettled>;
}

/// An event to send.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// What to settle it by.
    pub tag: Tag,
    /// The event.
    pub event: Event,
    /// How often it was delivered, this time included.
    pub attempts: u32,
    /// The replay of a dead letter that it is, if it is one.
    pub replay: Option<EventId>,
    /// Another relay had it in hand, and did not say what became of it.
    pub suspect: bool,
}

impl Delivery {
    /// What the relay remembers it by: the event's id; that of the replay where an administrator sent it again, so that what
    /// is known of the event before does not count, and a replay is sent once, however often it is delivered.
    #[must_use]
    pub fn key(&self) -> EventId {
        self.replay.unwrap_or(self.event.id)
    }
}

/// The name of a delivery within its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag {
    /// Which connection of the source it came over.
    epoch: u64,
    /// Its number there.
    number: u64,
}

impl Tag {
    /// Whether it came over this connection.
    #[must_use]
    pub fn is_of(self, epoch: u64) -> bool {
        self.epoch == epoch
    }
}

/// What became of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// It was sent, or it was known to be sent already.
    Done,
    /// It was not sent: again, after this time or somewhat later.
    Retry {
        /// How long to wait.
        after: Duration,
        /// Why; no personal data.
        reason: String,
    },
    /// It was not tried: again, after this time or somewhat later, without counting it as a try.
    Later {
        /// How long to wait.
        after: Duration,
        /// Why; no personal data.
        reason: String,
    },
    /// It can't be sent: to the dead letters.
    Dead {
        /// Why; no personal data.
        reason: String,
    },
    /// It may have arrived, it may not: to the dead letters, marked so.
    Uncertain,
}

/// Why a source gives nothing, or can't settle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The spool.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It came over a connection that is gone: it comes again, and is not to be settled again.
    #[error("it comes again over another connection")]
    Gone,
    /// The broker; carries what the client library said, never a message.
    #[error("RabbitMQ: {0}")]
    Broker(String),
}
