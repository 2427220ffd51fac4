//! The forwarder: brings events from the spool of this host to RabbitMQ.
//!
//! - Layer: role
//! - Takes: events from the spool, oldest first.
//! - Gives: persistent messages in the work queues that the broker has confirmed; only then they leave the spool. Copies for whoever
//!   watches.
//! - On failure: a broker that is away is tried again for as long as it takes, and events wait in the spool. An event
//!   may reach the broker twice, with the same id: the relay knows it by that.
//! - Limits: `window` events on their way at once.
//! - See: `docs/architecture.md`, "The event path".

mod condition;
mod happenings;

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::time::Instant;

use crate::queue::StoreError;
use crate::queue::amqp::{self, AmqpError, Copies, Link, Looks, Message, Publisher, Refused};
use crate::queue::backoff::Backoff;
use crate::queue::outage::Outage;
use crate::queue::source::{BoxFuture, Delivery, Settlement, Source, SourceError, SpoolSource, Tag};
use crate::queue::spool::Spool;
use crate::service::Lifecycle;
use condition::Condition;
use happenings::{Connected, Forwarded, Lost, SpoolTrouble};

/// How often to look whether the broker is blocked or gone.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long an event waits that the broker did not take.
const NOT_TAKEN_WAIT: Duration = Duration::from_secs(5);

const GONE: &str = "the connection is gone";

/// What the forwarder needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The broker.
    pub broker: amqp::Settings,
    /// How many events wait for their confirms at once.
    pub window: usize,
    /// How long to wait for confirms when it is time to stop.
    pub drain: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { broker: amqp::Settings::default(), window: 1_000, drain: Duration::from_secs(10) }
    }
}

/// Why the forwarder can't work at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// The configuration of the broker is wrong.
    #[error("RabbitMQ: {0}")]
    Broker(AmqpError),
}

/// Why the work over one connection ended.
enum End {
    Stop,
    Broker(AmqpError),
    Spool(StoreError),
}

/// Forwards until the life ends.
///
/// # Errors
/// `ForwardError`: only what trying again can't mend.
pub async fn run(settings: Settings, spool: Spool, life: Lifecycle) -> Result<(), ForwardError> {
    let mut condition = Condition::new(life.health.component("forward"));
    let (mut backoff, mut outage) = (Backoff::default(), Outage::default());
    let looks = Looks::default();
    loop {
        let connected = tokio::select! {
            () = life.stop.cancelled() => return Ok(()),
            connected = connect(&settings) => connected,
        };
        let end = match connected {
            Ok((link, publisher)) => {
                Connected { broker: link.broker() }.emit();
                outage.over();
                condition.connected();
                let copies = Copies::begin(link.clone());
                let way = Way { link: &link, publisher: &publisher, copies: &copies };
                let end = tokio::select! {
                    end = forward(&settings, &spool, &life, way, &mut condition, &mut backoff) => end,
                    // It ends when it sees that the connection has.
                    () = looks.go_on(&link) => End::Broker(AmqpError::Client(GONE.into())),
                };
                link.close().await;
                match end {
                    End::Broker(error) => End::Broker(error.at(link.broker())),
                    end => end,
                }
            }
            Err(error @ (AmqpError::NoUri | AmqpError::Uri { .. })) => {
                return Err(ForwardError::Broker(error));
            }
            Err(error) => End::Broker(error),
        };
        let why = match end {
            End::Stop => return Ok(()),
            End::Broker(error) => {
                let why = error.to_string();
                Lost { error: &error, is_news: outage.is_news(&why) }.emit();
                format!("{}: {why}", error.headline())
            }
            End::Spool(error) => {
                SpoolTrouble { error: &error }.emit();
                error.to_string()
            }
        };
        condition.lost(&why);
        tokio::select! {
            () = life.stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(backoff.failed(rand::random())) => {}
        }
    }
}

async fn connect(settings: &Settings) -> Result<(Arc<Link>, Publisher), AmqpError> {
    let link = Arc::new(Link::open(&settings.broker, "mailtap forward").await?);
    let publisher = Publisher::open(&link, settings.broker.confirm_timeout).await;
    let publisher = publisher.map_err(|error| error.at(link.broker()))?;
    Ok((link, publisher))
}

/// The way to the broker.
#[derive(Clone, Copy)]
struct Way<'a> {
    link: &'a Link,
    publisher: &'a Publisher,
    copies: &'a Copies,
}

type Confirm<'a> = BoxFuture<'a, (Tag, Result<(), Refused>)>;

/// Forwards over one connection. What is not confirmed when it ends is released: the source does that when it goes.
async fn forward(
    settings: &Settings,
    spool: &Spool,
    life: &Lifecycle,
    way: Way<'_>,
    condition: &mut Condition,
    backoff: &mut Backoff,
) -> End {
    let mut source = SpoolSource::new(spool.clone(), settings.window, life.stop.clone());
    let mut confirms: FuturesUnordered<Confirm<'_>> = FuturesUnordered::new();
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        let room = settings.window.max(1).saturating_sub(confirms.len());
        tokio::select! {
            () = life.stop.cancelled() => {
                drain(settings.drain, &source, &mut confirms, condition).await;
                return End::Stop;
            }
            Some(first) = confirms.next() => {
                match settle(&source, first, &mut confirms, condition).await {
                    Ok(0) => {}
                    Ok(_) => backoff.worked(),
                    Err(end) => return end,
                }
            }
            deliveries = source.next(room), if room > 0 => match deliveries {
                Ok(deliveries) => {
                    confirms.extend(deliveries.into_iter().map(|delivery| send(way, delivery)));
                }
                Err(error) => return end_of(error),
            },
            _ = look.tick() => {
                if !way.link.is_connected() {
                    return End::Broker(AmqpError::Client(GONE.into()));
                }
                condition.look(way.link.is_blocked(), Instant::now());
            }
        }
    }
}

fn send(way: Way<'_>, delivery: Delivery) -> Confirm<'_> {
    let message = Message::to_work(&delivery.event, way.link.topology());
    Box::pin(async move {
        let published = way.publisher.publish(way.link, &message).await;
        // Not before: what is not taken is published again, and would be seen again.
        if published.is_ok() {
            way.copies.of(message);
        }
        (delivery.tag, published)
    })
}

/// Settles what was confirmed, all that is known by now in one go; gives how many events the broker took.
async fn settle(
    source: &SpoolSource,
    first: (Tag, Result<(), Refused>),
    confirms: &mut FuturesUnordered<Confirm<'_>>,
    condition: &mut Condition,
) -> Result<usize, End> {
    let (mut outcomes, mut taken, mut lost) = (Vec::new(), 0, None);
    let mut given_back = Vec::new();
    let mut next = Some(first);
    while let Some((tag, result)) = next {
        match result {
            Ok(()) => {
                taken += 1;
                outcomes.push((tag, Settlement::Done));
            }
            Err(Refused::Lost(error)) => lost = Some(End::Broker(error)),
            Err(refused) => {
                let reason = refused.to_string();
                outcomes.push((tag, Settlement::Retry { after: NOT_TAKEN_WAIT, reason }));
                given_back.push(refused);
            }
        }
        next = confirms.next().now_or_never().flatten();
    }
    condition.refused(&given_back, Instant::now());
    if !outcomes.is_empty() {
        source.settle(outcomes).await.map_err(end_of)?;
        Forwarded { count: taken }.emit();
    }
    lost.map_or(Ok(taken), Err)
}

/// Waits for the confirms that are still out, for a while: what the broker has need not go twice.
async fn drain(
    limit: Duration,
    source: &SpoolSource,
    confirms: &mut FuturesUnordered<Confirm<'_>>,
    condition: &mut Condition,
) {
    let all = async {
        while let Some(first) = confirms.next().await {
            if settle(source, first, confirms, condition).await.is_err() {
                return;
            }
        }
    };
    // What is not confirmed by then stays in the spool.
    let _ = tokio::time::timeout(limit, all).await;
}

fn end_of(error: SourceError) -> End {
    match error {
        SourceError::Store(error) => End::Spool(error),
        other => End::Broker(AmqpError::Client(other.to_string())),
    }
}

#[cfg(test)]
mod tests;
