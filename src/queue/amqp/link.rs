//! One connection to the broker, with the topology in place.
//!
//! - Layer: edge
//! - Takes: settings.
//! - Gives: channels, with confirms or with a prefetch.
//! - On failure: `AmqpError`, with host and port of each broker that was tried; whoever uses the link drops it and makes another, after a while.
//! - Limits: `connect_timeout` for each question.

use std::future::Future;
use std::time::{Duration, Instant};

use lapin::Acker;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    QueueDeclareOptions,
};
use lapin::tcp::OwnedTLSConfig;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::uri::AMQPUri;
use lapin::{Channel, Connect, Connection, ConnectionProperties, Consumer, ExchangeKind};

use super::topology::{Argument, Queue, Topology};
use super::{AmqpError, Fault, Mode, Settings, certificates, words};
use crate::queue::happenings::DeclaredAgain;
use crate::service::secret::Secret;

/// How long an ack may take: it only has to be written.
const ACK_LIMIT: Duration = Duration::from_secs(5);
/// How often the topology is declared again at most.
const MEND_EVERY: Duration = Duration::from_secs(5);
/// How often to look whether the connection broke under an ack.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A connection.
#[derive(Debug)]
pub struct Link {
    connection: Connection,
    /// Host and port.
    broker: String,
    topology: Topology,
    pub(super) mode: Mode,
    /// When the topology was last declared again, and whether all of it is there since.
    mended: tokio::sync::Mutex<Option<(Instant, bool)>>,
    timeout: Duration,
}

impl Link {
    /// Connects to the first broker that answers, and declares or checks the topology there.
    ///
    /// # Errors
    /// `AmqpError`: that of each broker, in the order of the configuration.
    pub async fn open(settings: &Settings, name: &str) -> Result<Self, AmqpError> {
        let tls = tls(settings).await?;
        let number = |(index, uri): (usize, &Secret<String>)| {
            parse(uri.expose(), settings.heartbeat).ok_or(AmqpError::Uri { number: index + 1 })
        };
        let uris: Vec<AMQPUri> = settings.uris.iter().enumerate().map(number).collect::<Result<_, _>>()?;
        // Not always from the first one: several processes spread over the brokers of a cluster.
        let first = if uris.len() > 1 { rand::random_range(0..uris.len()) } else { 0 };
        let mut failed = Vec::new();
        for (index, uri) in uris.iter().enumerate().cycle().skip(first).take(uris.len()) {
            let broker = format!("{}:{}", uri.authority.host, uri.authority.port);
            match Self::open_one(settings, name, uri.clone(), tls.clone(), &broker).await {
                Ok(link) => return Ok(link),
                Err(error) => failed.push((index, (broker, error))),
            }
        }
        failed.sort_by_key(|(index, _)| *index);
        match failed.len() {
            0 => Err(AmqpError::NoUri),
            _ => Err(AmqpError::Brokers(failed.into_iter().map(|(_, failed)| failed).collect())),
        }
    }

    async fn open_one(
        settings: &Settings,
        name: &str,
        uri: AMQPUri,
        tls: OwnedTLSConfig,
        broker: &str,
    ) -> Result<Self, AmqpError> {
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let has_certificate = tls.identity.is_some();
        let limit = settings.connect_timeout;
        let connection = tokio::time::timeout(limit, connect(uri.clone(), properties, tls)).await;
        let connection = connection
            .map_err(|_| AmqpError::Timeout { after: limit })?
            .map_err(|error| AmqpError::Client(words::connecting(&error, &uri, has_certificate)))?;
        let topology = Topology::new(settings.shape.clone());
        let link = Self {
            connection,
            broker: broker.to_owned(),
            topology,
            mode: settings.topology,
            mended: tokio::sync::Mutex::default(),
            timeout: limit,
        };
        link.prepare(settings.topology).await?;
        Ok(link)
    }

    /// Host and port.
    #[must_use]
    pub fn broker(&self) -> &str {
        &self.broker
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

    /// How many messages are ready in a queue.
    pub(in crate::queue) async fn ready(&self, channel: &Channel, queue: &str) -> Result<u32, AmqpError> {
        self.look_at(channel, queue).await.map(|(ready, _)| ready)
    }

    /// How many messages are ready in a queue, and how many consumers it has.
    pub(super) async fn look_at(&self, channel: &Channel, queue: &str) -> Result<(u32, u32), AmqpError> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(queue.into(), passive, FieldTable::default());
        let queue = within(self.timeout, declared).await?;
        Ok((queue.message_count(), queue.consumer_count()))
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

    /// Declares the topology again, where it is ours to declare, since something of it is missing; a moment ago is not done again.
    /// Whether it was declared after `since`.
    pub(super) async fn mend(&self, since: Instant) -> bool {
        if self.mode != Mode::Declare {
            return false;
        }
        let mut mended = self.mended.lock().await;
        match *mended {
            Some((when, whole)) if when >= since => return whole,
            Some((when, _)) if when.elapsed() < MEND_EVERY => return false,
            _ => {}
        }
        let declared = self.prepare(Mode::Declare).await;
        DeclaredAgain { error: declared.as_ref().err() }.emit();
        let whole = declared.is_ok();
        *mended = Some((Instant::now(), whole));
        whole
    }

    /// Goes through all of it, so that all that is wrong is told at once.
    async fn prepare(&self, mode: Mode) -> Result<(), AmqpError> {
        let none = FieldTable::default();
        let mut faults = Vec::new();
        for name in &self.topology.exchanges {
            let made = self.exchange(name, ExchangeKind::Topic, mode, &none).await;
            self.gather(&mut faults, name, made)?;
        }
        if let Some(name) = &self.topology.spread {
            let made = self.exchange(name, ExchangeKind::Headers, mode, &none).await;
            self.gather(&mut faults, name, made)?;
        }
        for queue in &self.topology.queues {
            let made = self.queue(queue, mode).await;
            self.gather(&mut faults, &queue.name, made)?;
        }
        if mode == Mode::Declare && faults.is_empty() {
            self.bind(&mut faults).await?;
        }
        // A binding can't be looked at over AMQP: the mandatory flag of each message finds a missing one.
        if faults.is_empty() { Ok(()) } else { Err(AmqpError::Topology(faults)) }
    }

    /// What the broker refuses is gathered; without a broker nothing more can be asked.
    pub(super) fn gather(
        &self,
        faults: &mut Vec<Fault>,
        name: &str,
        made: Result<(), AmqpError>,
    ) -> Result<(), AmqpError> {
        match made {
            Err(AmqpError::Client(said)) if self.is_connected() => faults.push(Fault::new(name, said)),
            made => return made,
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

/// The virtual host that an address names, as connecting understands it.
#[must_use]
pub fn vhost_of(uri: &str) -> Option<String> {
    uri.parse::<AMQPUri>().ok().map(|uri| uri.vhost)
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
    let (ca_file, client) = (settings.ca_file.clone(), settings.client_certificate.clone());
    let loading = move || {
        let client = client.as_ref().map(|(pem, key)| (pem.as_path(), key.as_path()));
        certificates::load(ca_file.as_deref(), client).map_err(AmqpError::Certificates)
    };
    let loaded = tokio::task::spawn_blocking(loading).await;
    loaded.map_err(|error| AmqpError::Client(error.to_string()))?
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
