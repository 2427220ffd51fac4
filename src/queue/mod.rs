//! Events on their way: the spool of one host, and RabbitMQ.
//!
//! - Layer: edge
//! - Takes: events.
//! - Gives: `Publish`, by which roles hand events over, and the sources that the relay takes them from.
//! - On failure: an event that was not taken is an error for the caller; one that was taken is durable.
//! - See: `docs/architecture.md`, "The event path".

pub mod amqp;
pub mod backoff;
pub mod dedupe;
pub mod source;
pub mod spool;

mod group;
mod happenings;
mod seen;
pub mod served;
mod sqlite;

pub use sqlite::StoreError;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::event::Event;

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
}

/// What roles publish with.
pub type Publisher = Arc<dyn Publish>;

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
