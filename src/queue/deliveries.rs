//! News of deliveries for whoever runs in the same process as the tap.
//!
//! - Layer: edge
//! - Takes: a publisher.
//! - Gives: a publisher that does the same, and tells of each event `delivered` once it is on disk.
//! - On failure: a listener that does not keep up misses news, which is counted; publishing never waits for it.
//! - Limits: 16,384 news under way.
//! - See: `docs/bots.md`; roles still meet only at the queue.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::happenings::DeliveryMissed;
use super::{Publish, PublishError, Publisher};
use crate::event::{Event, Kind};
use crate::identity::{MessageId, Pseudonym, Timestamp};

const NEWS: usize = 16_384;

/// The next server took a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// The message.
    pub message: MessageId,
    /// Whose copy.
    pub recipient: Option<Pseudonym>,
    /// When, by the log.
    pub time: Timestamp,
}

/// What the listener reads.
pub type News = mpsc::Receiver<Delivery>;

#[derive(Debug)]
struct Telling {
    inner: Publisher,
    news: mpsc::Sender<Delivery>,
}

/// The publisher, and the news of what it publishes.
#[must_use]
pub fn telling(inner: Publisher) -> (Publisher, News) {
    let (news, listener) = mpsc::channel(NEWS);
    (Arc::new(Telling { inner, news }), listener)
}

impl Publish for Telling {
    fn publish(
        &self,
        events: Vec<Event>,
    ) -> Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send + '_>> {
        let delivered = events.iter().filter(|event| event.kind == Kind::Delivered).map(|event| Delivery {
            message: event.message,
            recipient: event.data.recipient,
            time: event.time,
        });
        let delivered: Vec<Delivery> = delivered.collect();
        Box::pin(async move {
            self.inner.publish(events).await?;
            for delivery in delivered {
                if self.news.try_send(delivery).is_err() {
                    DeliveryMissed.emit();
                }
            }
            Ok(())
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::queue::testing::event;

    #[derive(Debug, Default)]
    struct Disk(AtomicBool);

    impl Publish for Disk {
        fn publish(
            &self,
            _: Vec<Event>,
        ) -> Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send + '_>> {
            let full = self.0.load(Ordering::Relaxed);
            Box::pin(async move { if full { Err(PublishError::Full) } else { Ok(()) } })
        }
    }

    #[tokio::test]
    async fn deliveries_are_told_once_they_are_on_disk_and_nothing_else_is() {
        let disk = Arc::new(Disk::default());
        let (publisher, mut news) = telling(Arc::clone(&disk) as Publisher);
        let events: Vec<Event> = (0..16).map(event).collect();
        publisher.publish(events.clone()).await.unwrap();
        let mut told = Vec::new();
        while let Ok(delivery) = news.try_recv() {
            told.push(delivery.time);
        }
        let expected = events.iter().filter(|event| event.kind == Kind::Delivered).map(|event| event.time);
        assert_eq!(told, expected.collect::<Vec<_>>());
        assert_eq!(told.len(), 2);
        disk.0.store(true, Ordering::Relaxed);
        assert!(publisher.publish(events.clone()).await.is_err());
        assert!(news.try_recv().is_err(), "what is not on disk did not happen yet");
        disk.0.store(false, Ordering::Relaxed);
        for _ in 0..NEWS {
            publisher.publish(events.clone()).await.unwrap();
        }
        drop(news);
        publisher.publish(events).await.unwrap();
    }
}
