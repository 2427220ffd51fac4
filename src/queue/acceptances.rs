//! News of accepted messages for whoever runs in the same process as the milter.
//!
//! - Layer: edge
//! - Takes: a publisher.
//! - Gives: a publisher that does the same, and tells of each event `accepted` with a queue id once it is on disk: before the
//!   milter answers, so before Postfix logs anything that depends on its answer.
//! - On failure: a listener that does not keep up misses news, which is counted; publishing never waits for it.
//! - Limits: 16,384 news under way. Copies of split messages have no queue id yet: they are told when Postfix says it, which is
//!   after it has logged their headers.
//! - See: `docs/decisions/0012-unlogged-headers.md`.

use tokio::sync::mpsc;

use super::Publisher;
use super::telling::{self, Teller};
use crate::event::{Event, Kind};
use crate::identity::MessageId;

/// The milter marked a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acceptance {
    /// Postfix's queue id.
    pub queue_id: String,
    /// The message that its reference names.
    pub message: MessageId,
    /// Whether it is a copy that came through the port for copies, and its headers with it.
    pub is_copy: bool,
}

/// What the listener reads.
pub type News = mpsc::Receiver<Acceptance>;

/// Tells of copies, whose queue id Postfix says only when it has taken them.
#[derive(Clone)]
pub struct Copies(Teller<Acceptance>);

impl std::fmt::Debug for Copies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Copies")
    }
}

impl Copies {
    /// Postfix took a copy under this queue id.
    pub fn taken(&self, queue_id: String, message: MessageId) {
        self.0.tell(Acceptance { queue_id, message, is_copy: true });
    }
}

/// The publisher, what tells of copies, and the news of both.
#[must_use]
pub fn telling(inner: Publisher) -> (Publisher, Copies, News) {
    let (teller, news) = telling::channel("accepted");
    let accepted = |event: &Event| {
        let queue_id = event.data.queue_id.clone().filter(|_| event.kind == Kind::Accepted)?;
        Some(Acceptance { queue_id, message: event.message, is_copy: false })
    };
    (telling::telling(inner, accepted, teller.clone()), Copies(teller), news)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::Arc;

    use super::*;
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
        let (publisher, copies, mut news) = telling(Arc::new(Disk));
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
        assert_eq!(
            news.try_recv().unwrap(),
            Acceptance { queue_id: "4jYBw46WS8z1TRj1".into(), message, is_copy: false }
        );
        assert!(news.try_recv().is_err());
        copies.taken("4jYBw46WS8z1TRj2".into(), message);
        assert!(news.try_recv().unwrap().is_copy);
    }
}
