//! One connection to the broker, with the topology in place.
//!
//! - Layer: edge
//! - Takes: settings.
//! - Gives: channels, with confirms or with a prefetch.
//! - On failure: `AmqpError`; whoever uses the link drops it and makes another, after a while.
//! - Limits: `connect_timeout` for each question.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use lapin::Acker;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, ConfirmSelectOptions, ExchangeBindOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::uri::AMQPUri;
use lapin::{Channel, Connect, Connection, ConnectionProperties, Consumer, ExchangeKind};

use super::topology::{Argument, Queue, Topology};
use super::{AmqpError, Mode, Settings};

/// How long an ack may take: it only has to be written.
const ACK_LIMIT: Duration = Duration::from_secs(5);
/// How often to look whether the connection broke under an ack.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A connection.
#[derive(Debug)]
pub struct Link {
    connection: Connection,
    topology: Topology,
    timeout: Duration,
}

impl Link {
    /// Connects to the first broker that answers, and declares or checks the topology there.
    ///
    /// # Errors
    /// `AmqpError`: the one of the last broker.
    pub async fn open(settings: &Settings, name: &str) -> Result<Self, AmqpError> {
        let tls = tls(settings).await?;
        let mut result = Err(AmqpError::NoUri);
        // Not always from the first one: several processes spread over the brokers of a cluster.
        let first: usize =
            if settings.uris.len() > 1 { rand::random_range(0..settings.uris.len()) } else { 0 };
        let numbered = settings.uris.iter().enumerate();
        for (index, uri) in numbered.cycle().skip(first).take(settings.uris.len()) {
            let uri = parse(uri.expose(), settings.heartbeat).ok_or(AmqpError::Uri { number: index + 1 })?;
            match Self::open_one(settings, name, uri, tls.clone()).await {
                Ok(link) => return Ok(link),
                // That one answers and is not as it should be says more than that others don't answer.
                Err(_) if matches!(result, Err(AmqpError::Topology { .. })) => {}
                Err(error) => result = Err(error),
            }
        }
        result
    }

    async fn open_one(
        settings: &Settings,
        name: &str,
        uri: AMQPUri,
        tls: OwnedTLSConfig,
    ) -> Result<Self, AmqpError> {
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let connection = within(settings.connect_timeout, connect(uri, properties, tls)).await?;
        let topology = Topology::new(settings.shape.clone());
        let link = Self { connection, topology, timeout: settings.connect_timeout };
        link.prepare(settings.topology).await?;
        Ok(link)
    }

    /// What is there.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Whether the broker takes no messages for now: it is short of memory or disk.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Whether the connection still stands.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connection.status().connected()
    }

    /// Closes in order; a broker that doesn't answer is left.
    pub async fn close(&self) {
        let _ = within(self.timeout, self.connection.close(200, "bye".into())).await;
    }

    /// How long a question to the broker may take.
    pub(in crate::queue) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(in crate::queue) async fn confirming(&self) -> Result<Channel, AmqpError> {
        within(self.timeout, async {
            let channel = self.connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok(channel)
        })
        .await
    }

    pub(in crate::queue) async fn channel(&self) -> Result<Channel, AmqpError> {
        within(self.timeout, self.connection.create_channel()).await
    }

    /// Consumes these queues over one channel, at most `prefetch` messages of each at once.
    pub(in crate::queue) async fn consume(
        &self,
        prefetch: u16,
        queues: &[String],
    ) -> Result<Vec<Consumer>, AmqpError> {
        within(self.timeout, async {
            let channel = self.connection.create_channel().await?;
            channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
            let mut consumers = Vec::new();
            for queue in queues {
                let options = BasicConsumeOptions::default();
                let queue = ShortString::from(queue.as_str());
                consumers
                    .push(channel.basic_consume(queue, "".into(), options, FieldTable::default()).await?);
            }
            Ok(consumers)
        })
        .await
    }

    /// Acknowledges a message that came over this link; with `all`, everything before it on its channel too. `false` means
    /// that the connection is gone or stands still: the message comes again once it ends.
    pub(in crate::queue) async fn acknowledge(&self, acker: &Acker, all: bool) -> bool {
        let acked = tokio::time::timeout(ACK_LIMIT, acker.ack(BasicAckOptions { multiple: all }));
        tokio::pin!(acked);
        loop {
            tokio::select! {
                acked = &mut acked => return matches!(acked, Ok(Ok(true))),
                // The client library leaves an ack without an answer when the connection breaks under it.
                () = tokio::time::sleep(LOOK_EVERY) => {
                    if acker.poisoned() || !self.is_connected() {
                        return false;
                    }
                }
            }
        }
    }

    async fn prepare(&self, mode: Mode) -> Result<(), AmqpError> {
        for name in &self.topology.exchanges {
            self.exchange(name, ExchangeKind::Topic, mode, &FieldTable::default())
                .await
                .map_err(|error| wrong(name, &error))?;
        }
        if let Some(name) = &self.topology.spread {
            let none = FieldTable::default();
            let made = self.exchange(name, ExchangeKind::Headers, mode, &none).await;
            made.map_err(|error| wrong(name, &error))?;
        }
        for queue in &self.topology.queues {
            self.queue(queue, mode).await.map_err(|error| wrong(&queue.name, &error))?;
        }
        if mode == Mode::Check {
            // A binding can't be looked at over AMQP: the mandatory flag of each message finds a missing one.
            return Ok(());
        }
        let channel = self.channel().await?;
        for binding in &self.topology.bindings {
            let (queue, exchange) = (binding.queue.as_str().into(), binding.exchange.as_str().into());
            let options = QueueBindOptions::default();
            let mut arguments = FieldTable::default();
            for (name, value) in binding.arguments() {
                arguments.insert(name.into(), AMQPValue::LongString(value.into()));
            }
            within(self.timeout, channel.queue_bind(queue, exchange, binding.key.into(), options, arguments))
                .await
                .map_err(|error| wrong(&binding.queue, &error))?;
        }
        if let Some((from, to, key)) = &self.topology.between {
            let (source, destination) = (from.as_str().into(), to.as_str().into());
            let options = ExchangeBindOptions::default();
            let bound =
                channel.exchange_bind(destination, source, (*key).into(), options, FieldTable::default());
            within(self.timeout, bound).await.map_err(|error| wrong(to, &error))?;
        }
        Ok(())
    }

    /// Each question on a channel of its own: the broker closes the channel when it refuses. What is only checked is looked
    /// for first, and then declared as it should be, which makes nothing and is refused where it is otherwise; who may not
    /// declare learns only that it is there.
    async fn exchange(
        &self,
        name: &str,
        kind: ExchangeKind,
        mode: Mode,
        arguments: &FieldTable,
    ) -> Result<(), AmqpError> {
        for passive in questions(mode) {
            let channel = self.channel().await?;
            let options = ExchangeDeclareOptions {
                passive: *passive,
                durable: true,
                ..ExchangeDeclareOptions::default()
            };
            let declared = channel.exchange_declare(name.into(), kind.clone(), options, arguments.clone());
            allowed(mode, within(self.timeout, declared).await)?;
        }
        Ok(())
    }

    async fn queue(&self, queue: &Queue, mode: Mode) -> Result<(), AmqpError> {
        for passive in questions(mode) {
            let channel = self.channel().await?;
            let options =
                QueueDeclareOptions { passive: *passive, durable: true, ..QueueDeclareOptions::default() };
            let declared = channel.queue_declare(queue.name.as_str().into(), options, arguments(queue));
            allowed(mode, within(self.timeout, declared).await.map(drop))?;
        }
        Ok(())
    }
}

/// Whether to ask passively, for each question.
const fn questions(mode: Mode) -> &'static [bool] {
    match mode {
        Mode::Declare => &[false],
        Mode::Check => &[true, false],
    }
}

/// Who may only look is not told to declare.
fn allowed(mode: Mode, answer: Result<(), AmqpError>) -> Result<(), AmqpError> {
    match answer {
        Err(AmqpError::Client(why)) if mode == Mode::Check && why.contains("ACCESS_REFUSED") => Ok(()),
        answer => answer,
    }
}

/// Bounds a question to the broker.
pub(in crate::queue) async fn within<T>(
    limit: Duration,
    question: impl Future<Output = lapin::Result<T>>,
) -> Result<T, AmqpError> {
    match tokio::time::timeout(limit, question).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(AmqpError::Timeout { after: limit }),
    }
}

fn wrong(what: &str, error: &AmqpError) -> AmqpError {
    AmqpError::Topology { what: what.into(), why: error.to_string() }
}

fn parse(uri: &str, heartbeat: Duration) -> Option<AMQPUri> {
    let mut uri: AMQPUri = uri.parse().ok()?;
    if uri.query.heartbeat.is_none() && !heartbeat.is_zero() {
        uri.query.heartbeat = Some(u16::try_from(heartbeat.as_secs()).unwrap_or(u16::MAX).max(1));
    }
    Some(uri)
}

async fn connect(
    uri: AMQPUri,
    properties: ConnectionProperties,
    tls: OwnedTLSConfig,
) -> lapin::Result<Connection> {
    uri.connect_with_config(properties, tls, lapin::runtime::default_runtime()?).await
}

async fn tls(settings: &Settings) -> Result<OwnedTLSConfig, AmqpError> {
    // Somebody else in the process may have chosen the same already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cert_chain = match &settings.ca_file {
        Some(path) => Some(String::from_utf8_lossy(&read(path).await?).into_owned()),
        None => None,
    };
    let identity = match &settings.client_certificate {
        Some((pem, key)) => Some(OwnedIdentity::PKCS8 { pem: read(pem).await?, key: read(key).await? }),
        None => None,
    };
    Ok(OwnedTLSConfig { identity, cert_chain })
}

async fn read(path: &Path) -> Result<Vec<u8>, AmqpError> {
    tokio::fs::read(path)
        .await
        .map_err(|error| AmqpError::File { path: path.to_owned(), why: error.to_string() })
}

fn arguments(queue: &Queue) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, argument) in &queue.arguments {
        let value = match argument {
            Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Argument::Number(number) => AMQPValue::LongLongInt(*number),
        };
        table.insert((*name).into(), value);
    }
    table
}
