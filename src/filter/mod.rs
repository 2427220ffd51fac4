//! The milter role: looks at every message that Postfix hands over, and rewrites those in scope.
//!
//! - Layer: role
//! - Takes: messages over the milter protocol; keyring, pseudonym key, consents, a publisher.
//! - Gives: edits for Postfix, one log line a message, `message.accepted`.
//! - On failure: the message goes through as it came, with the reason counted; nothing here refuses mail.
//! - Limits: those of `mailtap_milter::driver::Settings` and `rewrite::Plan`.
//! - See: `docs/postfix.md`, Postfix `MILTER_README`.

// Decisions.
pub mod campaign;
pub mod decide;
pub mod header;

// Edges.
mod happenings;
mod listen;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mailtap_milter::driver::{self, Handler, Happening, Oversize, Response, Settled, Timeouts};
use mailtap_milter::edits::{Answer, Edit};
use mailtap_milter::session::{Interest, Message};

use crate::consent::Consents;
use crate::event::{Event, EventId, Kind};
use crate::identity::{PseudonymKey, Timestamp};
use crate::keys::Keys;
use crate::queue::Publisher;
use crate::rewrite::{self, Outcome};
use crate::service::{Lifecycle, clock};
use decide::{Decision, Envelope, Means, Pass, Policy, Tracked};
use happenings::{EventRefused, Listening, MessageDone, Protocol};
pub use listen::{Address, ListenError};

/// A decision on a larger message leaves the runtime's own threads alone.
const LARGE_BYTES: usize = 256 * 1024;

/// What the milter is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where Postfix finds it.
    pub address: Address,
    /// What is tracked, and how.
    pub policy: Policy,
    /// Whether `milter_default_action` is `tempfail`: large answers may then go out in several writes.
    pub tempfail: bool,
    /// Connections at once.
    pub connections: usize,
    /// Memory for messages of all connections together, in bytes.
    pub memory_bytes: usize,
    /// A message that takes longer passes unmodified.
    pub message_timeout: Duration,
    /// A session may say nothing for as long.
    pub idle_timeout: Duration,
    /// Messages under way may take as long at a stop.
    pub drain: Duration,
    /// How long a message waits for its event to be stored; then it passes as it came.
    pub publish_wait: Duration,
}

/// What the milter works with.
#[derive(Debug, Clone)]
pub struct Deps {
    /// The keyring; whoever made it refreshes it.
    pub keys: Keys,
    /// Makes pseudonyms.
    pub pseudonyms: PseudonymKey,
    /// Who may be followed.
    pub consents: Arc<dyn Consents>,
    /// Takes the events.
    pub publisher: Publisher,
    /// This host's name in events.
    pub host: String,
}

/// Runs the milter until `life.stop`.
///
/// # Errors
/// `ListenError`; once it listens, nothing ends it but `life.stop`.
pub async fn run(settings: Settings, deps: Deps, life: Lifecycle) -> Result<(), ListenError> {
    let health = life.health.component("milter");
    let listener = listen::bind(&settings.address)?;
    let driver = driver_settings(&settings);
    Listening {
        address: &settings.address,
        default_action: if settings.tempfail { "tempfail" } else { "accept" },
        send_buffer_bytes: driver.send_buffer_bytes,
    }
    .emit();
    let filter = Filter {
        source: format!("mailtap/milter/{}", deps.host),
        policy: Arc::new(settings.policy),
        publish_wait: settings.publish_wait,
        deps,
    };
    health.ready();
    driver::serve(listener, Arc::new(filter), driver, life.stop.cancelled_owned()).await;
    Ok(())
}

fn driver_settings(settings: &Settings) -> driver::Settings {
    let mut driver = driver::Settings {
        connections: settings.connections,
        memory_bytes: settings.memory_bytes,
        oversize: if settings.tempfail { Oversize::Stream } else { Oversize::PassUnmodified },
        timeouts: Timeouts {
            handler: settings.message_timeout,
            idle: settings.idle_timeout,
            drain: settings.drain,
            ..Timeouts::default()
        },
        ..driver::Settings::default()
    };
    driver.session.message.message_bytes = settings.policy.plan.max_message_bytes;
    driver
}

#[derive(Debug)]
struct Filter {
    source: String,
    policy: Arc<Policy>,
    publish_wait: Duration,
    deps: Deps,
}

impl Handler for Filter {
    fn headers(&self, message: &Message) -> Interest {
        let started = Instant::now();
        let Err(pass) = decide::in_scope(&self.policy, &text(message.sender().bare())) else {
            return Interest::Body;
        };
        done(message, "passed", pass.as_str(), started);
        Interest::Accept
    }

    async fn message(&self, message: Message) -> Response {
        let started = Instant::now();
        let now = clock::now();
        let (message, original, decision) = self.decide(message, now).await;
        let tracked = match decision {
            Decision::Track(tracked) => tracked,
            Decision::Pass(pass, _) => {
                let outcome = if pass == Pass::NoKey { "failed" } else { "passed" };
                done(&message, outcome, pass.as_str(), started);
                return Answer::unmodified().into();
            }
        };
        let Some(edits) = edits(&tracked, &original, message.body().len()) else {
            done(&message, "failed", "internal", started);
            return Answer::unmodified().into();
        };
        if message.answer_room_bytes().is_some_and(|room| room < size_of_edits(&edits)) {
            done(&message, "failed", "answer_too_large", started);
            return Answer::unmodified().into();
        }
        if let Err(reason) = self.publish(&message, &tracked, now).await {
            done(&message, "failed", reason, started);
            return Answer::unmodified().into();
        }
        let recipients = message.recipients().len();
        let queue_id = queue_id(&message).into_owned();
        Response::new(Answer::edited(edits), move |fate| {
            settled(&queue_id, &tracked, recipients, fate, started);
        })
    }

    fn observe(&self, happening: &Happening<'_>) {
        Protocol(happening).emit();
    }
}

impl Filter {
    /// Decides on a message; gives it back with its bytes.
    async fn decide(&self, message: Message, now: Timestamp) -> (Message, Vec<u8>, Decision) {
        let large = message.body().len() > LARGE_BYTES;
        let work = {
            let (policy, deps) = (Arc::clone(&self.policy), self.deps.clone());
            move || {
                let original = message.to_bytes();
                let recipients: Vec<String> =
                    message.recipients().iter().map(|path| text(path.bare()).into_owned()).collect();
                let ring = deps.keys.current();
                let means = Means {
                    policy: &policy,
                    ring: &ring,
                    pseudonyms: &deps.pseudonyms,
                    consents: &*deps.consents,
                    now,
                    random: rand::random(),
                };
                let sender = text(message.sender().bare()).into_owned();
                let envelope = Envelope { sender: &sender, recipients: &recipients };
                let decision = decide::decide(&original, envelope, &means);
                (message, original, decision)
            }
        };
        if !large {
            return work();
        }
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done,
            // The driver lets the message of a handler that panics through as it came.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Stores the event before Postfix hears of the message's fate.
    async fn publish(
        &self,
        message: &Message,
        tracked: &Tracked,
        now: Timestamp,
    ) -> Result<(), &'static str> {
        let queue_id = queue_id(message);
        let mut data = tracked.data.clone();
        data.queue_id = (!queue_id.is_empty()).then(|| queue_id.clone().into_owned());
        let event = Event {
            id: EventId::of("accepted").part(tracked.id.as_bytes()).finish(),
            source: self.source.clone(),
            kind: Kind::Accepted,
            time: now,
            message: tracked.id,
            data,
        };
        match tokio::time::timeout(self.publish_wait, self.deps.publisher.publish(vec![event])).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                EventRefused { queue_id: &queue_id, error: &error }.emit();
                Err("event_refused")
            }
            Err(_) => Err("event_late"),
        }
    }
}

fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

fn queue_id(message: &Message) -> Cow<'_, str> {
    text(message.queue_id().unwrap_or_default())
}

fn done(message: &Message, outcome: &'static str, reason: &'static str, started: Instant) {
    MessageDone {
        queue_id: &queue_id(message),
        outcome,
        reason,
        id: None,
        links: 0,
        pixel: false,
        recipients: message.recipients().len(),
        took: started.elapsed(),
    }
    .emit();
}

/// The line of a tracked message, once it is known what became of the answer.
fn settled(queue_id: &str, tracked: &Tracked, recipients: usize, fate: Settled, started: Instant) {
    let (outcome, reason) = match (fate, tracked.report.outcome) {
        (Settled::Unmodified(_), _) => ("failed", "cannot_edit"),
        (Settled::Lost, _) => ("failed", "answer_lost"),
        (Settled::Sent { .. }, Outcome::Rewritten) => ("rewritten", ""),
        (Settled::Sent { .. }, Outcome::Unchanged(why) | Outcome::LeftAlone(why)) => {
            ("headers_only", why.as_str())
        }
    };
    let sent = outcome != "failed";
    MessageDone {
        queue_id,
        outcome,
        reason,
        id: Some(tracked.id),
        links: if sent { tracked.report.tracked.into() } else { 0 },
        pixel: sent && tracked.report.pixel.is_ok(),
        recipients,
        took: started.elapsed(),
    }
    .emit();
}

/// What Postfix is to change; `None` if a patch lay outside of the body, which must not happen.
fn edits(tracked: &Tracked, original: &[u8], body_bytes: usize) -> Option<Vec<Edit>> {
    let mut edits = Vec::new();
    for (name, index) in &tracked.headers.delete {
        let index = u32::try_from(*index).unwrap_or(u32::MAX);
        edits.push(Edit::DeleteHeader { index, name: name.clone().into_bytes() });
    }
    for (name, value) in &tracked.headers.add {
        edits.push(Edit::AddHeader { name: name.as_bytes().to_vec(), value: value.clone().into_bytes() });
    }
    if tracked.rewrites() {
        // Where the body begins is known from Postfix, not from reading the header block again.
        let body_start = original.len().checked_sub(body_bytes)?;
        let within = tracked.report.patches.iter().all(|patch| patch.range.start >= body_start);
        let mut body = rewrite::apply(original, &tracked.report.patches);
        if !within || body.len() < body_start {
            return None;
        }
        body.drain(..body_start);
        edits.push(Edit::ReplaceBody(body));
    }
    Some(edits)
}

/// The size of the answer on the wire, rather more than less.
fn size_of_edits(edits: &[Edit]) -> usize {
    let sizes = edits.iter().map(|edit| match edit {
        Edit::ReplaceBody(body) => body.len() + 5 * (body.len() / 65_535 + 1),
        Edit::AddHeader { name, value } => name.len() + value.len() + 16,
        Edit::DeleteHeader { name, .. } => name.len() + 16,
        _ => 64,
    });
    sizes.sum::<usize>() + 16
}
