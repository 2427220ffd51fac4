//! RabbitMQ as a source: manual acks, a bounded prefetch, connecting again.
//!
//! - Layer: edge
//! - Takes: how to reach the broker.
//! - Gives: `Source`.
//! - On failure: a lost connection is made again, for as long as it takes; the broker hands out again what was not
//!   settled. A message leaves the work queue only after the broker has it elsewhere.
//! - Limits: `prefetch` messages at once. After its `consumer_timeout` (30 minutes) the broker closes the channel, which counts as a
//!   delivery of all that was held: what waits for `hold` is to go back by a retry queue, which counts none.
//! - See: RabbitMQ, "Consumer Acknowledgements", "Alarms": a connection that publishes is blocked whole, so consuming has one of
//!   its own; quorum queues' `x-delivery-count`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, SelectAll};
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery as Handed;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::held::{Desk, Session};
use super::{BoxFuture, Delivery, Settle, Source, SourceError, Tag};
use crate::event::Event;
use crate::queue::amqp::headers::{self, ATTEMPTS, REPLAY};
use crate::queue::amqp::{self, AmqpError, Link, Looks, Owner, Publisher};
use crate::queue::backoff::Backoff;
use crate::queue::happenings::{
    BrokerLost, BrokerReached, DeadLettersThere, DeclaredAgain, Malformed, QueueDeleted,
};
use crate::queue::outage::Outage;
use crate::service::{Component, Lifecycle};

/// How long messages are held by default, that nothing is begun with: a third of the broker's `consumer_timeout`, so that there is
/// time for what holds up their going back.
const HOLD: Duration = Duration::from_secs(600);
/// A connection that lasted so long worked.
const QUIET: Duration = Duration::from_secs(60);
/// How often dead letters are counted.
const COUNT_EVERY: Duration = Duration::from_secs(60);
/// How often to look whether some have been.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// So many messages are taken out of the client library in one go.
const AT_ONCE: usize = 1_024;

/// What a relay takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taking {
    /// Messages of each queue at once.
    pub prefetch: u16,
    /// The numbers of its work queues, from 1; none: all.
    pub queues: Vec<u16>,
    /// Who it is, so that it takes only queues whose events it remembers.
    pub owner: Option<Owner>,
    /// How long a message may wait here: well below the broker's `consumer_timeout`.
    pub hold: Duration,
}

impl Default for Taking {
    fn default() -> Self {
        Self { prefetch: 1, queues: Vec::new(), owner: None, hold: HOLD }
    }
}

/// Messages, each with the number of its queue among those that are taken; nothing, where a consumer ended.
type Messages = SelectAll<BoxStream<'static, (usize, Option<lapin::Result<Handed>>)>>;

/// The work queues of the broker, as the relay sees them.
pub struct AmqpSource {
    settings: amqp::Settings,
    taking: Taking,
    stop: CancellationToken,
    health: Component,
    backoff: Backoff,
    /// When the connection was made that stands.
    since: Instant,
    outage: Outage,
    desk: Arc<Desk>,
    messages: Option<Messages>,
    connecting: Option<JoinHandle<Result<Opened, AmqpError>>>,
    /// Counts dead letters, and looks at the work queues.
    counting: Option<JoinHandle<()>>,
    looks: Arc<Looks>,
    ready: VecDeque<Delivery>,
    queues: Vec<Taken>,
}

/// A queue that is taken, and what another relay had in hand of it.
#[derive(Debug, Default)]
struct Taken {
    name: String,
    /// The broker's note of the owner says that what comes again is suspect.
    noted: bool,
    /// Something came that nobody had: all suspects of this session came before.
    passed: bool,
    /// Suspects that may not be settled yet.
    open: Vec<Tag>,
    /// Writes that there are no more.
    clearing: Option<JoinHandle<bool>>,
}

struct Opened {
    session: Session,
    messages: Messages,
    queues: Vec<Taken>,
}

impl std::fmt::Debug for AmqpSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AmqpSource")
            .field("taking", &self.taking)
            .field("desk", &self.desk)
            .finish_non_exhaustive()
    }
}

impl AmqpSource {
    /// Takes events from the broker, at most `prefetch` at once, until the life ends. Reports to health as `rabbitmq`.
    #[must_use]
    pub fn new(settings: amqp::Settings, prefetch: u16, life: &Lifecycle) -> Self {
        Self::taking(settings, Taking { prefetch, ..Taking::default() }, life)
    }

    /// The same, of some of the work queues, and only while they are the owner's.
    #[must_use]
    pub fn taking(settings: amqp::Settings, taking: Taking, life: &Lifecycle) -> Self {
        Self {
            settings,
            taking: Taking { prefetch: taking.prefetch.max(1), ..taking },
            stop: life.stop.clone(),
            health: life.health.component("rabbitmq"),
            backoff: Backoff::default(),
            since: Instant::now(),
            outage: Outage::default(),
            desk: Arc::default(),
            messages: None,
            connecting: None,
            counting: None,
            looks: Arc::default(),
            ready: VecDeque::new(),
            queues: Vec::new(),
        }
    }

    async fn wait(&mut self, max: usize) -> Result<Vec<Delivery>, SourceError> {
        let max = max.max(1);
        let (stop, desk) = (self.stop.clone(), self.desk.clone());
        loop {
            if stop.is_cancelled() {
                return Ok(Vec::new());
            }
            if !self.ready.is_empty() {
                let count = self.ready.len().min(max);
                return Ok(self.ready.drain(..count).collect());
            }
            let error = tokio::select! {
                () = stop.cancelled() => return Ok(Vec::new()),
                error = desk.broken() => error,
                result = self.receive() => match result {
                    Ok(()) => continue,
                    Err(error) => error,
                },
            };
            self.lose(&error);
        }
    }

    /// Takes messages out of the client library all the same: so it is known how long they have been here, and that the broker
    /// closed their channel.
    async fn wait_for_overdue(&mut self) -> Vec<Delivery> {
        let desk = self.desk.clone();
        loop {
            let overdue = self.take_overdue();
            if !overdue.is_empty() {
                return overdue;
            }
            let error = tokio::select! {
                error = desk.broken() => error,
                result = self.receive() => match result {
                    Ok(()) => continue,
                    Err(error) => error,
                },
                () = tokio::time::sleep(LOOK_EVERY) => continue,
            };
            self.lose(&error);
        }
    }

    /// What waits here and can be held no longer. Suspects stay: by way of a retry queue they would come back as any others.
    fn take_overdue(&mut self) -> Vec<Delivery> {
        let Some(last) = self.overdue() else { return Vec::new() };
        let count = self.ready.partition_point(|delivery| delivery.tag <= last);
        let (suspects, overdue): (Vec<_>, _) =
            self.ready.drain(..count).partition(|delivery| delivery.suspect);
        suspects.into_iter().rev().for_each(|delivery| self.ready.push_front(delivery));
        overdue
    }

    /// Waits for one message and takes what came with it. May be dropped while it waits.
    async fn receive(&mut self) -> Result<(), AmqpError> {
        self.connect().await?;
        let Some(messages) = &mut self.messages else { return Ok(()) };
        let mut came = vec![messages.next().await];
        while came.len() < AT_ONCE {
            let Some(next) = messages.next().now_or_never() else { break };
            came.push(next);
        }
        for handed in came {
            match handed {
                Some((queue, Some(handed))) => self.take(queue, handed?),
                Some((queue, None)) => {
                    let queue = self.queues.get(queue).map(|queue| queue.name.clone()).unwrap_or_default();
                    return Err(AmqpError::Cancelled { queue });
                }
                None => return Err(AmqpError::Client("nothing is consumed any more".into())),
            }
        }
        self.clear().await;
        Ok(())
    }

    /// Ends the suspicion of queues whose suspects are all settled: until then, they come again as suspects after a kill too.
    async fn clear(&mut self) {
        let Some(owner) = &self.taking.owner else { return };
        for queue in self.queues.iter_mut().filter(|queue| queue.noted && queue.passed) {
            if let Some(clearing) = queue.clearing.take_if(|clearing| clearing.is_finished()) {
                queue.noted = !clearing.await.unwrap_or(false);
            }
            queue.open.retain(|tag| self.desk.holds(*tag));
            if !queue.noted || queue.clearing.is_some() || !queue.open.is_empty() {
                continue;
            }
            let Some(session) = self.desk.session().filter(|session| !session.publishing.is_blocked()) else {
                continue;
            };
            let (owner, name) = (owner.clone(), queue.name.clone());
            // What fails is tried again with the next message.
            queue.clearing =
                Some(tokio::spawn(async move { owner.clear(session.ways(), &name).await.unwrap_or(false) }));
        }
    }

    fn take(&mut self, queue: usize, handed: Handed) {
        // What the owner before had in hand is back at the head of the queue: it ends with the first that nobody had.
        let suspect = self.queues.get_mut(queue).is_some_and(|queue| {
            queue.passed |= !handed.redelivered;
            queue.noted && !queue.passed
        });
        let count = |name| headers::number(&handed.properties, name);
        let attempts = count(ATTEMPTS) + count("x-delivery-count") + 1;
        let replay = headers::text(&handed.properties, REPLAY).and_then(|key| key.parse().ok());
        let event = Event::from_json(&handed.data);
        let tag: Tag = self.desk.hold(handed, attempts);
        if let Some(queue) = self.queues.get_mut(queue).filter(|_| suspect) {
            queue.open.push(tag);
        }
        match event {
            Ok(event) => self.ready.push_back(Delivery { tag, event, attempts, replay, suspect }),
            Err(error) => {
                let why = error.to_string();
                Malformed { why: &why }.emit();
                // On a task of its own: a caller that stops waiting must not stop the burial.
                let desk = self.desk.clone();
                tokio::spawn(async move { desk.bury(tag, &why).await });
            }
        }
    }

    /// Connects, on a task of its own: a caller that stops waiting must not stop the connecting.
    async fn connect(&mut self) -> Result<(), AmqpError> {
        if self.messages.is_some() {
            return Ok(());
        }
        let connecting = self.connecting.get_or_insert_with(|| {
            let (settings, taking) = (self.settings.clone(), self.taking.clone());
            tokio::spawn(async move { open(&settings, &taking).await })
        });
        let opened = connecting.await;
        self.connecting = None;
        let opened = opened.map_err(|_| AmqpError::Client("connecting was ended".into()))??;
        BrokerReached { broker: opened.session.link.broker() }.emit();
        self.desk.begin(opened.session);
        self.counting.take().inspect(JoinHandle::abort);
        let looks = self.looks.clone();
        self.counting = self.desk.session().map(|session| {
            tokio::spawn(async move {
                tokio::join!(count_dead_letters(&session), looks.go_on(&session.link));
            })
        });
        self.messages = Some(opened.messages);
        self.queues = opened.queues;
        self.since = Instant::now();
        self.outage.over();
        self.health.ready();
        Ok(())
    }

    fn stop_clearing(&mut self) {
        self.counting.take().inspect(JoinHandle::abort);
        for clearing in self.queues.iter_mut().filter_map(|queue| queue.clearing.take()) {
            clearing.abort();
        }
    }

    /// Drops the connection, and makes the next one after a while.
    fn lose(&mut self, error: &AmqpError) {
        let session = self.desk.session();
        let former = session.clone();
        let cancelled = match error {
            AmqpError::Cancelled { queue } => Some(queue.clone()),
            _ => None,
        };
        let error = match session {
            Some(session) => error.clone().at(session.link.broker()),
            None => error.clone(),
        };
        let why = error.to_string();
        BrokerLost { error: &error, is_news: self.outage.is_news(&why) }.emit();
        self.health.not_ready(format!("{}: {why}", error.headline()));
        self.stop_clearing();
        // A connection alone proves nothing: each costs a delivery of all that was held.
        if self.desk.has_worked() || (self.messages.is_some() && self.since.elapsed() >= QUIET) {
            self.backoff.worked();
        }
        self.messages = None;
        // What waits here comes again, over the next connection.
        self.desk.end(self.ready.drain(..).map(|delivery| delivery.tag));
        let wait = self.backoff.failed(rand::random());
        let (settings, taking) = (self.settings.clone(), self.taking.clone());
        self.connecting = Some(tokio::spawn(async move {
            let is_gone = match (&former, &cancelled) {
                (Some(former), Some(queue)) => is_gone(&former.link, queue).await,
                _ => false,
            };
            // Whoever still settles something over it must not keep this relay's own queues from it.
            tokio::spawn(async move {
                if let Some(former) = former {
                    former.link.close().await;
                }
            });
            tokio::time::sleep(wait).await;
            let opened = open(&settings, &taking).await;
            if is_gone && settings.topology == amqp::Mode::Declare {
                DeclaredAgain { error: opened.as_ref().err() }.emit();
            }
            opened
        }));
    }
}

/// Whether a queue is missing whose consumer the broker ended; says that it was deleted. If somebody made it again already, that one said
/// so; and a broker that stops ends consumers, too.
async fn is_gone(link: &Link, queue: &str) -> bool {
    let is_gone = matches!(link.depth(queue).await, Ok(None));
    if is_gone {
        QueueDeleted { queue }.emit();
    }
    is_gone
}

/// Says how many dead letters there are, for as long as the connection lasts.
async fn count_dead_letters(session: &Session) {
    let queue = session.link.topology().dead_queue();
    while session.link.is_connected() {
        // A queue that is gone costs the channel.
        if let Ok(channel) = session.link.channel().await {
            while let Ok(count) = session.link.ready(&channel, &queue).await {
                DeadLettersThere { count }.emit();
                tokio::time::sleep(COUNT_EVERY).await;
            }
        }
        tokio::time::sleep(COUNT_EVERY).await;
    }
}

async fn open(settings: &amqp::Settings, taking: &Taking) -> Result<Opened, AmqpError> {
    let link = Link::open(settings, "mailtap relay").await?;
    let broker = link.broker().to_owned();
    take(settings, taking, link).await.map_err(|error| error.at(&broker))
}

async fn take(settings: &amqp::Settings, taking: &Taking, link: Link) -> Result<Opened, AmqpError> {
    let publishing = Link::open(settings, "mailtap relay, publishing").await?;
    let publisher = Publisher::open(&publishing, settings.confirm_timeout).await?;
    let all = link.topology().work_queues();
    let numbered = |number: &u16| {
        let at = usize::from(*number).checked_sub(1);
        at.and_then(|at| all.get(at)).cloned().ok_or(AmqpError::NoQueue { number: *number })
    };
    let queues = match &taking.queues[..] {
        [] => all,
        some => some.iter().map(numbered).collect::<Result<_, _>>()?,
    };
    let session = Session { link, publishing, publisher };
    let mut taken = Vec::new();
    for name in &queues {
        let noted = match &taking.owner {
            Some(owner) => {
                let claimed = owner.claim(session.ways(), name).await?;
                owner.take(&session.link, name, &claimed).await?;
                claimed.suspect
            }
            None => false,
        };
        taken.push(Taken { name: name.clone(), noted, ..Taken::default() });
    }
    let consumers = session.link.consume(taking.prefetch, &queues).await?;
    let numbered = consumers.into_iter().enumerate();
    // An ended stream leaves the others without a word.
    let with_end = numbered.map(|(queue, consumer)| {
        consumer.map(Some).chain(stream::iter([None])).map(move |handed| (queue, handed)).boxed()
    });
    let messages = with_end.collect();
    Ok(Opened { session, messages, queues: taken })
}

impl Source for AmqpSource {
    fn next(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, SourceError>> {
        Box::pin(self.wait(max))
    }

    fn tend(&mut self) -> BoxFuture<'_, Vec<Delivery>> {
        Box::pin(self.wait_for_overdue())
    }

    fn overdue(&self) -> Option<Tag> {
        self.desk.overdue(self.taking.hold)
    }

    fn epoch(&self) -> u64 {
        self.desk.epoch()
    }

    fn settler(&self) -> Arc<dyn Settle> {
        self.desk.clone()
    }

    fn most(&self) -> usize {
        usize::from(self.taking.prefetch) * self.queues.len().max(1)
    }

    fn is_full(&self) -> bool {
        self.ready.is_empty() && self.desk.held() >= self.most()
    }

    fn waits(&self) -> Vec<Duration> {
        let mut waits = self.settings.shape.retry_tiers.clone();
        waits.sort_unstable();
        waits
    }
}

impl Drop for AmqpSource {
    fn drop(&mut self) {
        if let Some(connecting) = &self.connecting {
            connecting.abort();
        }
        self.stop_clearing();
        self.desk.end(std::iter::empty());
    }
}
