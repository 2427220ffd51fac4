//! An eye on the events that pass through the broker, which takes nobody's.
//!
//! - Layer: edge
//! - Takes: how to reach the broker, a kind of event if only that is wanted.
//! - Gives: copies of events as they are published, from a queue of its own that ends with the connection.
//! - On failure: `AmqpError`; open another.
//! - Limits: what a forwarder publishes in the first second or so is missed: it looks each second whether somebody watches. The queue holds 10,000 events, and 1,000 are here; a slow reader misses the oldest. What was read is acked before the
//!   next wait, however long that lasts: the broker ends a consumer that leaves an event without its ack for `consumer_timeout`.
//! - See: RabbitMQ, "Exclusive Queues", "Delivery Acknowledgement Timeout".

use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Acker, Consumer};

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
    /// The last one that was read, and how many have been since the last ack.
    read: Option<Acker>,
    count: u16,
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
            limit.insert("x-overflow".into(), AMQPValue::LongString("drop-head".into()));
            channel.queue_declare(queue.clone(), options, limit).await?;
            let none = FieldTable::default;
            channel.queue_bind(queue.clone(), exchange, key, QueueBindOptions::default(), none()).await?;
            channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
            let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
            channel.basic_consume(queue, "".into(), options, none()).await
        };
        let consumer = within(link.timeout(), consuming).await?;
        Ok(Self { link, consumer, read: None, count: 0 })
    }

    /// Waits for the next one; what is no event comes as its error. May be dropped while it waits.
    ///
    /// # Errors
    /// `AmqpError` when the connection broke.
    pub async fn next(&mut self) -> Result<Result<Event, EventError>, AmqpError> {
        // Only what was read is acked: the broker gives a reader that waits no more than the prefetch.
        if self.count >= ACK_EVERY {
            self.acknowledge().await;
        }
        let handed = match self.consumer.next().now_or_never() {
            Some(handed) => handed,
            None => {
                self.acknowledge().await;
                self.consumer.next().await
            }
        };
        let handed = handed.ok_or_else(|| AmqpError::Client("the broker ended the queue".into()))??;
        (self.read, self.count) = (Some(handed.acker), self.count + 1);
        Ok(Event::from_json(&handed.data))
    }

    async fn acknowledge(&mut self) {
        self.count = 0;
        if let Some(last) = self.read.take() {
            self.link.acknowledge(&last, true).await;
        }
    }

    /// Ends in order.
    pub async fn close(self) {
        self.link.close().await;
    }
}
