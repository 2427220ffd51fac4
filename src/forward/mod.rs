//! The forwarder: brings events from the spool of this host to RabbitMQ.
//!
//! - Layer: role
//! - Takes: events from the spool, oldest first.
//! - Gives: persistent messages that the broker has confirmed; only then they leave the spool.
//! - On failure: a broker that is away is tried again for as long as it takes, and events wait in the spool. An event
//!   may reach the broker twice, with the same id: the relay knows it by that.
//! - Limits: `window` events on their way at once.
//! - See: `docs/architecture.md`, "The event path".

mod happenings;

use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};

use crate::queue::StoreError;
use crate::queue::amqp::{self, AmqpError, Link, Message, Publisher, Refused};
use crate::queue::backoff::Backoff;
use crate::queue::source::{BoxFuture, Delivery, Settlement, Source, SourceError, SpoolSource, Tag};
use crate::queue::spool::Spool;
use crate::service::{Component, Lifecycle};
use happenings::{Blocked, Connected, Forwarded, Lost, NotTaken, SpoolTrouble, Unblocked};

/// How often to look whether the broker is blocked or gone.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long an event waits that the broker did not take.
const NOT_TAKEN_WAIT: Duration = Duration::from_secs(5);

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
    Broker(String),
    Spool(StoreError),
}

/// Forwards until the life ends.
///
/// # Errors
/// `ForwardError`: only what trying again can't mend.
pub async fn run(settings: Settings, spool: Spool, life: Lifecycle) -> Result<(), ForwardError> {
    let health = life.health.component("forward");
    let mut backoff = Backoff::default();
    loop {
        let connected = tokio::select! {
            () = life.stop.cancelled() => return Ok(()),
            connected = connect(&settings) => connected,
        };
        let end = match connected {
            Ok((link, publisher)) => {
                Connected.emit();
                health.ready();
                let end = forward(&settings, &spool, &life, &health, &link, &publisher, &mut backoff).await;
                link.close().await;
                end
            }
            Err(error @ (AmqpError::NoUri | AmqpError::Uri { .. })) => {
                return Err(ForwardError::Broker(error));
            }
            Err(error) => End::Broker(error.to_string()),
        };
        let why = match end {
            End::Stop => return Ok(()),
            End::Broker(why) => {
                Lost { why: &why }.emit();
                why
            }
            End::Spool(error) => {
                SpoolTrouble { error: &error }.emit();
                error.to_string()
            }
        };
        health.not_ready(why);
        tokio::select! {
            () = life.stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(backoff.failed(rand::random())) => {}
        }
    }
}

async fn connect(settings: &Settings) -> Result<(Link, Publisher), AmqpError> {
    let link = Link::open(&settings.broker, "mailtap forward").await?;
    let publisher = Publisher::open(&link, settings.broker.confirm_timeout).await?;
    Ok((link, publisher))
}

type Confirm<'a> = BoxFuture<'a, (Tag, Result<(), Refused>)>;

/// Forwards over one connection. What is not confirmed when it ends is released: the source does that when it goes.
async fn forward(
    settings: &Settings,
    spool: &Spool,
    life: &Lifecycle,
    health: &Component,
    link: &Link,
    publisher: &Publisher,
    backoff: &mut Backoff,
) -> End {
    let exchange = link.topology().events_exchange();
    let mut source = SpoolSource::new(spool.clone(), settings.window, life.stop.clone());
    let mut confirms: FuturesUnordered<Confirm<'_>> = FuturesUnordered::new();
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut blocked = false;
    loop {
        let room = settings.window.max(1).saturating_sub(confirms.len());
        tokio::select! {
            () = life.stop.cancelled() => {
                drain(settings.drain, &source, &mut confirms).await;
                return End::Stop;
            }
            Some(first) = confirms.next() => {
                match settle(&source, first, &mut confirms).await {
                    Ok(0) => {}
                    Ok(_) => backoff.worked(),
                    Err(end) => return end,
                }
            }
            deliveries = source.next(room), if room > 0 => match deliveries {
                Ok(deliveries) => {
                    confirms.extend(deliveries.into_iter().map(|delivery| send(link, publisher, &exchange, delivery)));
                }
                Err(error) => return end_of(error),
            },
            _ = look.tick() => {
                if !link.is_connected() {
                    return End::Broker("the connection is gone".into());
                }
                blocked = tell_blocked(blocked, link.is_blocked(), health);
            }
        }
    }
}

fn send<'a>(link: &'a Link, publisher: &'a Publisher, exchange: &str, delivery: Delivery) -> Confirm<'a> {
    let message = Message::of(&delivery.event, exchange.into());
    Box::pin(async move { (delivery.tag, publisher.publish(link, &message).await) })
}

/// Settles what was confirmed, all that is known by now in one go; gives how many events the broker took.
async fn settle(
    source: &SpoolSource,
    first: (Tag, Result<(), Refused>),
    confirms: &mut FuturesUnordered<Confirm<'_>>,
) -> Result<usize, End> {
    let (mut outcomes, mut taken, mut lost) = (Vec::new(), 0, None);
    let mut next = Some(first);
    while let Some((tag, result)) = next {
        match result {
            Ok(()) => {
                taken += 1;
                outcomes.push((tag, Settlement::Done));
            }
            Err(Refused::Lost(error)) => lost = Some(End::Broker(error.to_string())),
            Err(refused) => {
                NotTaken { refused: &refused }.emit();
                let reason = refused.to_string();
                outcomes.push((tag, Settlement::Retry { after: NOT_TAKEN_WAIT, reason }));
            }
        }
        next = confirms.next().now_or_never().flatten();
    }
    if !outcomes.is_empty() {
        source.settle(outcomes).await.map_err(end_of)?;
        Forwarded { count: taken }.emit();
    }
    lost.map_or(Ok(taken), Err)
}

/// Waits for the confirms that are still out, for a while: what the broker has need not go twice.
async fn drain(limit: Duration, source: &SpoolSource, confirms: &mut FuturesUnordered<Confirm<'_>>) {
    let all = async {
        while let Some(first) = confirms.next().await {
            if settle(source, first, confirms).await.is_err() {
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
        SourceError::Broker(why) => End::Broker(why),
    }
}

fn tell_blocked(before: bool, now: bool, health: &Component) -> bool {
    match (before, now) {
        (false, true) => {
            Blocked.emit();
            health.not_ready("RabbitMQ takes no messages: it is short of memory or disk");
        }
        (true, false) => {
            Unblocked.emit();
            health.ready();
        }
        _ => {}
    }
    now
}

#[cfg(test)]
mod tests;
