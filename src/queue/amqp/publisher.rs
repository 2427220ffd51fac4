//! Publishing with confirms: a message counts as taken when the broker has said so, and nothing else.
//!
//! - Layer: edge
//! - Takes: messages: an event's JSON, where to, and headers.
//! - Gives: whether the broker has it on its disks.
//! - On failure: `Refused`; a message that was refused may still have arrived: publish it again, its id tells them apart.
//!   An exchange that the user may not write to, or that is gone, costs the channel, which is opened again, and no other message.
//!   What is missing is declared again where the topology is ours to declare.
//!   A full queue costs nothing but that message, and after a while the channel.
//! - Limits: `confirm_timeout`, which stands still while the broker says that it is blocked. An exchange that was denied is asked again
//!   after half a second: each question costs a channel.
//! - See: RabbitMQ, "Publisher Confirms". lapin reports a mandatory message without a queue as `Ack(Some(returned))`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, ErrorKind};

use super::headers::{PARTITION, RECIPIENT};
use super::topology::Topology;
use super::{AmqpError, Link, words};
use crate::event::Event;

/// How often to look whether the broker is blocked while a confirm is late.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// For how long an exchange counts as denied.
const DENIED_FOR: Duration = Duration::from_millis(500);
/// How long a channel is kept that a full queue refused a message of.
const NACKED_FOR: Duration = Duration::from_secs(5);
/// Over how many channels a message is tried that others cost theirs.
const CHANNELS: usize = 4;
/// What RabbitMQ calls the default exchange.
const DEFAULT: &str = "amq.default";
/// AMQP's number for: keep it on disk.
const PERSISTENT: u8 = 2;
const CONTENT_TYPE: &str = "application/cloudevents+json";

/// Publishes on a channel with confirms. Many messages may be on their way at once.
#[derive(Debug, Clone)]
pub struct Publisher {
    state: Arc<Mutex<State>>,
    opening: Arc<tokio::sync::Mutex<()>>,
    confirm_timeout: Duration,
}

#[derive(Debug)]
struct State {
    channel: Arc<Channel>,
    /// Exchanges that cost a channel: when, and what the broker said.
    denied: BTreeMap<String, (Instant, String)>,
    /// When a queue did not take a message, and whether the channel has to be another one since.
    nacked: Option<(Instant, bool)>,
}

/// Why a message is not known to be taken.
enum Failed {
    /// It was refused by itself.
    Refused(Refused),
    /// Its channel was closed, perhaps for another one; what the broker said, or the client library.
    Closed(String),
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
    /// The message that carries this event to its work queue, and to nobody else.
    #[must_use]
    pub fn to_work(event: &Event, topology: &Topology) -> Self {
        let (exchange, key) = topology.to_work();
        Self { key, ..Self::of(event, exchange) }
    }

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
    #[error("{}: {said}", nowhere(.exchange, .key))]
    Unroutable {
        /// The exchange; empty for the default one.
        exchange: String,
        /// The routing key; with the default exchange, the queue.
        key: String,
        /// The broker's word.
        said: String,
    },
    /// The user may not write to the exchange, or it is not there; the broker names it.
    #[error("{}", remedy(.0))]
    Denied(String),
    /// The broker could not keep it, or a queue is full.
    #[error("the broker did not take the message")]
    Nack,
    /// The connection is gone or too slow.
    #[error(transparent)]
    Lost(#[from] AmqpError),
}

fn nowhere(exchange: &str, key: &str) -> String {
    match (exchange, key) {
        ("", key) => format!("there is no queue {key}"),
        (exchange, "") => format!("a work queue is not bound to exchange {exchange}"),
        (exchange, key) => format!("no queue is bound to exchange {exchange} for {key}"),
    }
}

fn remedy(said: &str) -> String {
    let remedy = if said.starts_with("ACCESS_REFUSED") {
        "give the user of amqp.url the permission to write to it"
    } else {
        "import what `mailtap amqp definitions` prints, or set amqp.topology = \"declare\""
    };
    format!("{said}; {remedy}")
}

impl Publisher {
    /// Opens a channel with confirms on the link.
    ///
    /// # Errors
    /// `AmqpError`.
    pub async fn open(link: &Link, confirm_timeout: Duration) -> Result<Self, AmqpError> {
        let channel = Arc::new(link.confirming().await?);
        let state = Arc::new(Mutex::new(State { channel, denied: BTreeMap::new(), nacked: None }));
        Ok(Self { state, opening: Arc::default(), confirm_timeout })
    }

    /// Publishes, and waits until the broker has taken the message. `link` is the one that it was opened on.
    ///
    /// # Errors
    /// `Refused`.
    pub async fn publish(&self, link: &Link, message: &Message) -> Result<(), Refused> {
        let began = Instant::now();
        let published = self.publish_once(link, message).await;
        let is_missing = match &published {
            Err(Refused::Unroutable { .. }) => true,
            Err(Refused::Denied(said)) => said.starts_with("NOT_FOUND"),
            _ => false,
        };
        if is_missing && link.mend(began).await {
            self.lock().denied.clear();
            return self.publish_once(link, message).await;
        }
        published
    }

    async fn publish_once(&self, link: &Link, message: &Message) -> Result<(), Refused> {
        let exchange = if message.exchange.is_empty() { DEFAULT } else { &message.exchange };
        let mut last = String::new();
        for _ in 0..CHANNELS {
            if let Some(said) = self.denied(exchange) {
                return Err(Refused::Denied(said));
            }
            let channel = self.channel(link).await?;
            last = match self.publish_over(&channel, link, message).await {
                Ok(()) => return Ok(()),
                Err(Failed::Refused(refused)) => {
                    if refused == Refused::Nack {
                        self.nacked();
                    }
                    return Err(refused);
                }
                Err(Failed::Closed(said)) => said,
            };
            if last.contains(&format!("exchange '{exchange}'")) {
                self.lock().denied.insert(exchange.to_owned(), (Instant::now(), last.clone()));
            }
        }
        Err(AmqpError::Client(last).into())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the broker said of an exchange a moment ago.
    fn denied(&self, exchange: &str) -> Option<String> {
        let state = self.lock();
        let (when, said) = state.denied.get(exchange)?;
        (when.elapsed() < DENIED_FOR).then(|| said.clone())
    }

    /// A queue is full. A channel that was told so by a quorum queue is not told when the limit is taken away: what comes later goes over
    /// another one, from time to time. What is on its way over this one stays there.
    fn nacked(&self) {
        let nacked = &mut self.lock().nacked;
        if nacked.is_none_or(|(when, _)| when.elapsed() >= NACKED_FOR) {
            *nacked = Some((Instant::now(), true));
        }
    }

    /// The channel; a new one where the broker closed it.
    async fn channel(&self, link: &Link) -> Result<Arc<Channel>, AmqpError> {
        let open = || {
            let state = self.lock();
            let is_stale = matches!(state.nacked, Some((_, true)));
            Some(state.channel.clone()).filter(|channel| !is_stale && channel.status().connected())
        };
        if let Some(channel) = open() {
            return Ok(channel);
        }
        let _one = self.opening.lock().await;
        if let Some(channel) = open() {
            return Ok(channel);
        }
        let channel = Arc::new(link.confirming().await?);
        let mut state = self.lock();
        state.channel = channel.clone();
        if let Some((_, is_stale)) = &mut state.nacked {
            *is_stale = false;
        }
        Ok(channel)
    }

    async fn publish_over(&self, channel: &Channel, link: &Link, message: &Message) -> Result<(), Failed> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirmed = async {
            channel
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
                        return Err(Failed::Refused(AmqpError::Timeout { after: late }.into()));
                    }
                }
            }
        };
        judge(confirmation, message, link)
    }
}

fn judge(confirmation: lapin::Result<Confirmation>, message: &Message, link: &Link) -> Result<(), Failed> {
    let refused = match confirmation {
        Ok(Confirmation::Ack(None)) => return Ok(()),
        Ok(Confirmation::Ack(Some(returned))) => Refused::Unroutable {
            exchange: message.exchange.clone(),
            key: message.key.clone(),
            said: returned.reply_text.to_string(),
        },
        Ok(Confirmation::Nack(_)) => Refused::Nack,
        Ok(Confirmation::NotRequested) => {
            Refused::Lost(AmqpError::Client("the channel gives no confirms".into()))
        }
        Err(error) => {
            let of_channel =
                matches!(error.kind(), ErrorKind::ProtocolError(_) | ErrorKind::InvalidChannelState(..));
            if of_channel && link.is_connected() {
                return Err(Failed::Closed(words::plain(&error)));
            }
            Refused::Lost(error.into())
        }
    };
    Err(Failed::Refused(refused))
}

pub(super) fn properties(message: &Message, topology: &Topology) -> BasicProperties {
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
