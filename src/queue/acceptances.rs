//! News of accepted messages for whoever runs in the same process as the milter.
//!
//! - Layer: edge
//! - Takes: a publisher.
//! - Gives: a publisher that does the same, and tells of each event `accepted` with a queue id once it is on disk: before the
//!   milter answers, so before Postfix logs anything that depends on its answer.
//! - On failure: a listener that does not keep up misses news, which is counted; publishing never waits for it.
//! - Limits: 16,384 news under way. Copies of split messages have no queue id yet, and are none.
//! - See: `docs/decisions/0012-unlogged-headers.md`.

use tokio::sync::mpsc;

use super::Publisher;
use super::telling;
use crate::event::Kind;
use crate::identity::MessageId;

/// The milter marked a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acceptance {
    /// Postfix's queue id.
    pub queue_id: String,
    /// The message that its reference names.
    pub message: MessageId,
}

/// What the listener reads.
pub type News = mpsc::Receiver<Acceptance>;

/// The publisher, and the news of what it publishes.
#[must_use]
pub fn telling(inner: Publisher) -> (Publisher, News) {
    telling::telling(inner, "accepted", |event| {
        let queue_id = event.data.queue_id.clone().filter(|_| event.kind == Kind::Accepted)?;
        Some(Acceptance { queue_id, message: event.message })
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::Arc;

    use super::*;
    use crate::event::Event;
    use crate::queue::testing::event;
    use crate::queue::{Publish, PublishError};

    /// Takes what is offered, and nothing that is published.
    #[derive(Debug)]
    struct Disk;

    impl Publish for Disk {
        fn publish(
            &self,
            _: Vec<Event>,
        ) -> Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send + '_>> {
            Box::pin(async { Err(PublishError::Full) })
        }

        fn offer(
            &self,
            _: Vec<Event>,
        ) -> Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send + '_>> {
            Box::pin(async { Ok(()) })
        }
    }

    #[tokio::test]
    async fn only_accepted_messages_with_a_queue_id_are_told_and_an_offer_stays_one() {
        let (publisher, mut news) = telling(Arc::new(Disk));
        let mut events: Vec<Event> = (0..8).map(event).collect();
        let accepted = events.iter().position(|event| event.kind == Kind::Accepted).unwrap();
        publisher.offer(events.clone()).await.unwrap();
        assert!(news.try_recv().is_err(), "none has a queue id");
        for event in &mut events {
            event.data.queue_id = Some("4jYBw46WS8z1TRj1".into());
        }
        assert_eq!(publisher.publish(events.clone()).await, Err(PublishError::Full));
        assert!(news.try_recv().is_err(), "nothing is on disk");
        publisher.offer(events.clone()).await.unwrap();
        let message = events[accepted].message;
        assert_eq!(news.try_recv().unwrap(), Acceptance { queue_id: "4jYBw46WS8z1TRj1".into(), message });
        assert!(news.try_recv().is_err());
    }
}
