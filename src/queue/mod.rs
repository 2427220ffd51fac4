//! Events on their way: the spool of one host, and RabbitMQ.
//!
//! - Layer: edge
//! - Takes: events.
//! - Gives: `Publish` and `Hold`, by which roles hand events over, and the sources that the relay takes them from.
//! - On failure: an event that was not taken is an error for the caller; one that was taken is durable.
//! - See: `docs/architecture.md`, "The event path".

pub mod acceptances;
pub mod amqp;
pub mod backoff;
pub mod dedupe;
pub mod deliveries;
pub mod source;
pub mod spool;

mod group;
mod happenings;
mod journal;
pub mod outage;
mod seen;
pub mod served;
mod sqlite;
mod telling;

pub use sqlite::StoreError;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::event::Event;
use crate::identity::Timestamp;

/// For how long the time of day must have gone on evenly before anything old is thrown away by it.
const TRUST_CLOCK_AFTER: Duration = Duration::from_secs(60 * 60);

/// Takes events for good.
pub trait Publish: Send + Sync + std::fmt::Debug {
    /// Returns once all these events are on disk (or were there already, by their ids).
    ///
    /// # Errors
    /// `PublishError`: none, or not all, of them may be kept. Publishing them again is safe.
    fn publish(
        &self,
        events: Vec<Event>,
    ) -> Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send + '_>>;

    /// The same for events that did not happen if the caller stops waiting, by dropping this future: stored too late, they
    /// are taken back. Nobody else may publish events with these ids.
    ///
    /// # Errors
    /// As of `publish`.
    fn offer(
        &self,
        events: Vec<Event>,
    ) -> Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send + '_>> {
        self.publish(events)
    }
}

/// What roles publish with.
pub type Publisher = Arc<dyn Publish>;

/// Takes events for good, of which more may become known before they are sent.
pub trait Hold: Send + Sync + std::fmt::Debug {
    /// Returns once all these are on disk (or were there already, by the ids of their events); then `stored` was called, by
    /// whoever stored them.
    ///
    /// # Errors
    /// `PublishError`: none, or not all, of them may be kept. Publishing them again is safe.
    fn publish_all<'a>(
        &'a self,
        publications: &'a [Publication],
        stored: OnStored,
    ) -> Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send + 'a>>;

    /// Puts these in the place of the events with the same ids, as far as these are still held: says of each whether it
    /// was. Whether an event is `unique` stays as it was stored; so does `upgrade` as long as the event is a person's.
    ///
    /// # Errors
    /// `PublishError`: nothing was changed.
    fn amend<'a>(
        &'a self,
        amendments: &'a [Amendment],
    ) -> Pin<Box<dyn Future<Output = Result<Vec<bool>, PublishError>> + Send + 'a>>;
}

/// Called, on any thread, when events are on disk.
#[derive(Clone)]
pub struct OnStored(Arc<dyn Fn() + Send + Sync>);

impl OnStored {
    /// Calls this.
    pub fn new(call: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(call))
    }

    /// They are on disk.
    pub fn call(&self) {
        (self.0)();
    }
}

impl std::fmt::Debug for OnStored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnStored")
    }
}

/// What the tracker publishes with.
pub type Holder = Arc<dyn Hold>;

/// An event, and how it is to be published.
#[derive(Debug, Clone, PartialEq)]
pub struct Publication {
    /// The event.
    pub event: Arc<Event>,
    /// It is on disk at once, but nobody may send it before this time: until then it can be amended.
    pub held_until: Option<Timestamp>,
    /// What it may be the first of: `data.unique` of the stored event says if it is.
    pub first: Option<First>,
}

impl From<Event> for Publication {
    fn from(event: Event) -> Self {
        Self { event: Arc::new(event), held_until: None, first: None }
    }
}

/// An event in the place of the one with its id.
#[derive(Debug, Clone, PartialEq)]
pub struct Amendment {
    /// The event.
    pub event: Arc<Event>,
    /// What both may be the first of: who counts as a person is known by it.
    pub first: Option<FirstKey>,
}

impl From<Event> for Amendment {
    fn from(event: Event) -> Self {
        Self { event: Arc::new(event), first: None }
    }
}

/// The first event with a key is unique, until its window has passed. The first one of a person says `upgrade` if it is
/// not the unique one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct First {
    /// What the event has in common with its repetitions.
    pub key: FirstKey,
    /// For how long those with the same key are repetitions.
    pub within: Duration,
}

/// A hash of what an event has in common with its repetitions.
pub type FirstKey = [u8; 16];

/// Why events were not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The spool has reached its limit of bytes or rows.
    #[error("the spool is full")]
    Full,
    /// The disk or database refused.
    #[error("the spool can't write: {0}")]
    Storage(String),
    /// The spool was closed.
    #[error("the spool is closed")]
    Closed,
}

#[cfg(test)]
pub(crate) mod testing;
