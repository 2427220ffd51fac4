//! Publishing with confirms: a message counts as taken when the broker has said so, and nothing else.
//!
//! - Layer: edge
//! - Takes: messages: an event's JSON, where to, and headers.
//! - Gives: whether the broker has it on its disks.
//! - On failure: `Refused`; a message that was refused may still have arrived: publish it again, its id tells them apart.
//! - Limits: `confirm_timeout`, which stands still while the broker says that it is blocked.
//! - See: RabbitMQ, "Publisher Confirms". lapin reports a mandatory message without a queue as `Ack(Some(returned))`.

use std::time::Duration;

use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation};

use super::headers::{PARTITION, RECIPIENT};
use super::topology::Topology;
use super::{AmqpError, Link};
use crate::event::Event;

/// How often to look whether the broker is blocked while a confirm is late.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// AMQP's number for: keep it on disk.
const PERSISTENT: u8 = 2;
const CONTENT_TYPE: &str = "application/cloudevents+json";

/// Publishes on a channel with confirms. Many messages may be on their way at once.
#[derive(Debug, Clone)]
pub struct Publisher {
    channel: Channel,
    confirm_timeout: Duration,
}

/// A message to publish.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// The exchange; empty for the default one.
    pub exchange: String,
    /// The routing key; with the default exchange, the queue.
    pub key: String,
    /// The event's id.
    pub id: String,
    /// The event's type.
    pub kind: String,
    /// When the event happened, in seconds since 1970.
    pub time_s: u64,
    /// The event in JSON.
    pub body: Vec<u8>,
    /// Headers that begin with `x-mailtap-`.
    pub headers: Vec<(&'static str, String)>,
}

/// What the event is spread by: whoever received the message, or the message itself where several did.
fn recipient(event: &Event) -> String {
    event.data.recipient.as_ref().map_or_else(|| event.message.to_string(), ToString::to_string)
}

impl Message {
    /// The message that carries this event to `exchange`.
    #[must_use]
    pub fn of(event: &Event, exchange: String) -> Self {
        Self {
            exchange,
            key: event.kind.as_str().into(),
            id: event.id.to_string(),
            kind: event.kind.as_str().into(),
            time_s: event.time.as_secs(),
            body: event.to_json().into_bytes(),
            headers: vec![(RECIPIENT, recipient(event))],
        }
    }
}

/// Why a message was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No queue is bound for it; the broker says why.
    #[error("no queue takes the message: {0}")]
    Unroutable(String),
    /// The broker could not keep it, or a queue is full.
    #[error("the broker did not take the message")]
    Nack,
    /// The connection is gone or too slow.
    #[error(transparent)]
    Lost(#[from] AmqpError),
}

impl Publisher {
    /// Opens a channel with confirms on the link.
    ///
    /// # Errors
    /// `AmqpError`.
    pub async fn open(link: &Link, confirm_timeout: Duration) -> Result<Self, AmqpError> {
        Ok(Self { channel: link.confirming().await?, confirm_timeout })
    }

    /// Publishes, and waits until the broker has taken the message.
    ///
    /// # Errors
    /// `Refused`.
    pub async fn publish(&self, link: &Link, message: &Message) -> Result<(), Refused> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirmed = async {
            self.channel
                .basic_publish(
                    message.exchange.as_str().into(),
                    message.key.as_str().into(),
                    options,
                    &message.body,
                    properties(message, link.topology()),
                )
                .await?
                .await
        };
        tokio::pin!(confirmed);
        let mut late = Duration::ZERO;
        let confirmation = loop {
            tokio::select! {
                confirmation = &mut confirmed => break confirmation,
                () = tokio::time::sleep(LOOK_EVERY) => {
                    late = if link.is_blocked() { Duration::ZERO } else { late + LOOK_EVERY };
                    if late >= self.confirm_timeout {
                        return Err(AmqpError::Timeout { after: late }.into());
                    }
                }
            }
        };
        judge(confirmation)
    }
}

fn judge(confirmation: lapin::Result<Confirmation>) -> Result<(), Refused> {
    match confirmation {
        Ok(Confirmation::Ack(None)) => Ok(()),
        Ok(Confirmation::Ack(Some(returned))) => Err(Refused::Unroutable(returned.reply_text.to_string())),
        Ok(Confirmation::Nack(_)) => Err(Refused::Nack),
        Ok(Confirmation::NotRequested) => {
            Err(Refused::Lost(AmqpError::Client("the channel gives no confirms".into())))
        }
        Err(error) => Err(Refused::Lost(error.into())),
    }
}

fn properties(message: &Message, topology: &Topology) -> BasicProperties {
    let mut headers = FieldTable::default();
    let whose = message.headers.iter().find(|(name, _)| *name == RECIPIENT);
    if let Some(number) = topology.partition(whose.map_or(&message.id, |(_, whose)| whose)) {
        headers.insert(PARTITION.into(), AMQPValue::LongString(number.to_string().into()));
    }
    for (name, value) in &message.headers {
        headers.insert((*name).into(), AMQPValue::LongString(value.as_str().into()));
    }
    BasicProperties::default()
        .with_content_type(CONTENT_TYPE.into())
        .with_delivery_mode(PERSISTENT)
        .with_message_id(message.id.as_str().into())
        .with_type(message.kind.as_str().into())
        .with_timestamp(message.time_s)
        .with_app_id("mailtap".into())
        .with_headers(headers)
}
