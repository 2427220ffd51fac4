//! An eye on the events that pass through the broker, which takes nobody's.
//!
//! - Layer: edge
//! - Takes: how to reach the broker, a kind of event if only that is wanted.
//! - Gives: events as they are published, from a queue of its own that ends with the connection.
//! - On failure: `AmqpError`; open another.
//! - Limits: the queue holds 10,000 events, and 1,000 are here; a slow reader misses the oldest.
//! - See: RabbitMQ, "Exclusive Queues".

use futures_util::StreamExt;
use lapin::Consumer;
use lapin::options::{BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::link::within;
use super::{AmqpError, Link, Mode, Settings};
use crate::event::{Event, EventError, Kind};

const LONGEST: i64 = 10_000;
const PREFETCH: u16 = 1_000;
const ACK_EVERY: u16 = 250;

/// What passes.
#[derive(Debug)]
pub struct Watch {
    link: Link,
    consumer: Consumer,
    unread: u16,
}

impl Watch {
    /// Begins to watch. Declares nothing but its own queue, which has the prefix of all others.
    ///
    /// # Errors
    /// `AmqpError`; `Topology` where no event has ever been published.
    pub async fn open(settings: &Settings, kind: Option<Kind>) -> Result<Self, AmqpError> {
        let settings = Settings { topology: Mode::Check, ..settings.clone() };
        let link = Link::open(&settings, "mailtap events tail").await?;
        let channel = link.channel().await?;
        let name = format!("{}.tail.{:016x}", settings.shape.prefix, rand::random::<u64>());
        let (queue, exchange) =
            (ShortString::from(name), ShortString::from(link.topology().events_exchange()));
        let key = ShortString::from(kind.map_or("mailtap.#", Kind::as_str));
        let consuming = async {
            let options =
                QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
            let mut limit = FieldTable::default();
            limit.insert("x-max-length".into(), AMQPValue::LongLongInt(LONGEST));
            channel.queue_declare(queue.clone(), options, limit).await?;
            let none = FieldTable::default;
            channel.queue_bind(queue.clone(), exchange, key, QueueBindOptions::default(), none()).await?;
            channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
            let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
            channel.basic_consume(queue, "".into(), options, none()).await
        };
        let consumer = within(link.timeout(), consuming).await?;
        Ok(Self { link, consumer, unread: 0 })
    }

    /// Waits for the next one; what is no event comes as its error. May be dropped while it waits.
    ///
    /// # Errors
    /// `AmqpError` when the connection broke.
    pub async fn next(&mut self) -> Result<Result<Event, EventError>, AmqpError> {
        match self.consumer.next().await {
            Some(handed) => {
                let handed = handed?;
                // Only what was read is acked: the broker gives a reader that waits no more than the prefetch.
                self.unread += 1;
                if self.unread >= ACK_EVERY {
                    self.unread = 0;
                    self.link.acknowledge(&handed.acker, true).await;
                }
                Ok(Event::from_json(&handed.data))
            }
            None => Err(AmqpError::Client("the broker ended the queue".into())),
        }
    }

    /// Ends in order.
    pub async fn close(self) {
        self.link.close().await;
    }
}
