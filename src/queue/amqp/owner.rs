//! Whose memory knows the events of a work queue: a relay that does not know what was sent must not consume it.
//!
//! - Layer: edge
//! - Takes: the name of a relay's memory; whether it takes over from another one.
//! - Gives: that the queue is its own, and whether it was another's until now.
//! - On failure: `AmqpError::Owned`; `Consumed` where the other one still works. Nothing was consumed.
//! - Limits: one small message in a queue of its own beside each work queue.
//! - See: `docs/decisions/0010-one-memory-a-queue.md`.

use lapin::options::{BasicAckOptions, BasicGetOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};

use super::link::within;
use super::topology::owner_queue;
use super::{AmqpError, Link, Message, Publisher};

/// A relay, as the owner of work queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The name of its memory.
    pub memory: String,
    /// Its host, for people.
    pub host: String,
    /// Takes queues from another owner.
    pub takes_over: bool,
}

impl Owner {
    /// Makes sure that a queue is its own; `true` if it was another's. Asks over `link`, which never publishes and so is never
    /// blocked by an alarm.
    pub(in crate::queue) async fn claim(
        &self,
        link: &Link,
        publishing: &Link,
        publisher: &Publisher,
        queue: &str,
    ) -> Result<bool, AmqpError> {
        let channel = link.channel().await?;
        let name = ShortString::from(owner_queue(queue));
        let mut was_anothers = false;
        // Nothing is acked but what is taken over: all else is in the queue again when the channel closes.
        while let Some(got) =
            within(link.timeout(), channel.basic_get(name.clone(), BasicGetOptions::default())).await?
        {
            let text = String::from_utf8_lossy(&got.delivery.data).into_owned();
            let (memory, host) = text.split_once(' ').unwrap_or((&text, "?"));
            if memory == self.memory {
                within(link.timeout(), channel.close(200, "bye".into())).await?;
                return Ok(was_anothers);
            }
            if !self.takes_over {
                return Err(AmqpError::Owned { queue: queue.to_owned(), by: format!("{memory} on {host}") });
            }
            let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let declared = channel.queue_declare(queue.into(), passive, FieldTable::default());
            if within(link.timeout(), declared).await?.consumer_count() > 0 {
                return Err(AmqpError::Consumed { queue: queue.to_owned(), by: host.to_owned() });
            }
            was_anothers = true;
            within(link.timeout(), got.delivery.acker.ack(BasicAckOptions::default())).await?;
        }
        let message = Message {
            exchange: String::new(),
            key: name.to_string(),
            id: self.memory.clone(),
            kind: "mailtap.owner".into(),
            time_s: 0,
            body: format!("{} {}", self.memory, self.host).into_bytes(),
            headers: Vec::new(),
        };
        match tokio::time::timeout(link.timeout() / 2, publisher.publish(publishing, &message)).await {
            Ok(published) => published.map_err(|refused| AmqpError::Client(refused.to_string()))?,
            // Written once the alarm is over. Waited for, nothing would drain the broker until then.
            Err(_) if publishing.is_blocked() => {}
            Err(_) => return Err(AmqpError::Timeout { after: link.timeout() / 2 }),
        }
        within(link.timeout(), channel.close(200, "bye".into())).await?;
        Ok(was_anothers)
    }
}
