//! What is done with one message, from its last byte to the edits for Postfix.
//!
//! - Layer: role
//! - Takes: messages; keyring, pseudonym key, consents, a publisher.
//! - Gives: the answer for Postfix, one log line, `message.accepted`.
//! - On failure: the message goes through as it came, with the reason counted.
//! - Limits: as many large messages are worked on at once as there are processors; a publisher that stalls delays few.
//! - See: `docs/architecture.md`, "One message"

use std::borrow::Cow;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use mailtap_milter::driver::{Fallback, Handler, Happening, Oversize, Response, Settled};
use mailtap_milter::edits::{Answer, Edit, Verdict};
use mailtap_milter::session::{Interest, Message, Path};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::Deps;
use super::agreement::Agreement;
use super::decide::{self, Decision, Envelope, Means, Pass, Policy, Tracked};
use super::happenings::{EventRefused, LeftAlone, MessageDone, SpoolTurn};
use super::patience::{Patience, Turn};
use super::protocol::Wire;
use super::split::{Copies, Splitter, without};
use crate::event::{Event, EventId, Kind};
use crate::identity::Timestamp;
use crate::queue::served::CopyKey;
use crate::rewrite::{self, Outcome};
use crate::service::{Component, clock};

/// Work on a larger message leaves the runtime's own threads alone.
const LARGE_BYTES: usize = 256 * 1024;
/// More than a queue file has beside message and recipients: names and addresses of the client, `Received:`, room for edits.
const ENVELOPE_BYTES: usize = 4_096;
/// So many messages in a row wait in vain for their event to be stored.
const EVENTS_IN_VAIN: u32 = 3;
/// What is left to be forgotten at a stop is waited for no longer.
const FORGET: Duration = Duration::from_secs(5);

/// The handler of all messages.
#[derive(Debug)]
pub(super) struct Filter {
    source: String,
    pub(super) policy: Arc<Policy>,
    patience: Mutex<Patience>,
    /// Whether the spool refused the last event.
    refuses: AtomicBool,
    /// Each large message takes several times its size while it is worked on, so only a few are at a time.
    large: Arc<Semaphore>,
    health: Component,
    splitter: Option<Splitter>,
    /// Copies that are being forgotten.
    forgetting: TaskTracker,
    agreement: Arc<Agreement>,
    rest_wait: Duration,
    wire: Wire,
    pub(super) deps: Deps,
}

/// What a log line says of a message.
#[derive(Debug)]
struct About {
    queue_id: String,
    recipients: usize,
    started: Instant,
}

/// A message that is tracked, and what Postfix is to change in it.
#[derive(Debug)]
struct Changed {
    tracked: Box<Tracked>,
    edits: Vec<Edit>,
}

/// Why a message passes as it came: outcome and reason of its line.
type Unchanged = (&'static str, &'static str);

impl Handler for Filter {
    fn headers(&self, message: &Message) -> Interest {
        let started = Instant::now();
        let Err(pass) = decide::in_scope(&self.policy, &text(message.sender().bare())) else {
            return Interest::Body;
        };
        About::new(message, started).unchanged("passed", pass.as_str());
        Interest::Accept
    }

    async fn message(&self, message: Message, fallback: &Fallback) -> Response {
        let now = clock::now();
        let about = About::new(&message, Instant::now());
        let message = Arc::new(message);
        // No copy may exist beside an original that goes on as it came when we die.
        let copies = match self.splitter.as_ref().filter(|_| self.agreement.is_proven()) {
            Some(splitter) => self.split(splitter, &message, now, fallback).await,
            None => Copies::default(),
        };
        if copies.cover(&message) {
            about.split(&copies);
            return self.discard(copies.keys);
        }
        let changed = self.rest(&about, message, &copies, now).await;
        let mut edits = without(&copies);
        match changed {
            Ok(changed) => {
                edits.extend(changed.edits);
                Response::new(Answer::edited(edits), move |fate| about.settled(&changed.tracked, fate))
            }
            Err((outcome, reason)) => {
                about.unchanged(outcome, reason);
                Answer::edited(edits).into()
            }
        }
    }

    fn oversize(&self, _: Oversize) -> Oversize {
        if self.agreement.is_proven() { Oversize::Stream } else { Oversize::PassUnmodified }
    }

    fn observe(&self, happening: &Happening<'_>) {
        self.wire.emit(happening);
    }
}

impl Filter {
    pub(super) fn new(
        mut policy: Policy,
        publish_wait: Duration,
        splitter: Option<Splitter>,
        agreement: Arc<Agreement>,
        health: Component,
        deps: Deps,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        // Nobody reads the list here.
        policy.plan.list_links = false;
        Self {
            source: format!("mailtap/milter/{}", deps.host),
            policy: Arc::new(policy),
            patience: Mutex::new(Patience::new(publish_wait, EVENTS_IN_VAIN)),
            refuses: AtomicBool::new(false),
            large: Arc::new(Semaphore::new(cores)),
            health,
            splitter,
            forgetting: TaskTracker::new(),
            wire: Wire::new(Arc::clone(&agreement)),
            agreement,
            rest_wait: publish_wait,
            deps,
        }
    }

    /// What is done with the original, for those without a copy. Once somebody has one, this comes to an end by itself, so
    /// that the line of the message says how.
    async fn rest(
        &self,
        about: &About,
        message: Arc<Message>,
        copies: &Copies,
        now: Timestamp,
    ) -> Result<Changed, Unchanged> {
        let work = async {
            let changed = self.work(message, copies, now).await?;
            self.publish(&about.queue_id, &changed.tracked, now).await.map(|()| changed)
        };
        if copies.addresses.is_empty() {
            return work.await;
        }
        let work = tokio::time::timeout(self.rest_wait, AssertUnwindSafe(work).catch_unwind());
        match work.await {
            Ok(Ok(changed)) => changed,
            Ok(Err(_)) => Err(("failed", "panic")),
            Err(_) => Err(("failed", "timeout")),
        }
    }

    /// Decides on a message for those without a copy, and prepares its edits.
    async fn work(
        &self,
        message: Arc<Message>,
        copies: &Copies,
        now: Timestamp,
    ) -> Result<Changed, Unchanged> {
        let bytes = message.held_bytes();
        let (policy, deps) = (Arc::clone(&self.policy), self.deps.clone());
        let limit = self.agreement.message_size_limit();
        let left: Vec<Path> = message
            .recipients()
            .iter()
            .filter(|path| !copies.addresses.contains(&path.address))
            .cloned()
            .collect();
        self.off_the_runtime(bytes, move || change(&message, &left, &policy, &deps, now, limit)).await
    }

    /// Does the work on a message of so many bytes, off the runtime's own threads where it is large.
    pub(super) async fn off_the_runtime<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        if bytes <= LARGE_BYTES {
            return work();
        }
        let place = Arc::clone(&self.large).acquire_owned().await;
        // The place goes with the work: that somebody gives up waiting makes no room for more.
        let work = move || (work(), place).0;
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done,
            // The runtime ends, and this with it.
            Err(error) if error.is_cancelled() => std::future::pending().await,
            // The driver lets the message of a handler that panics through as it came.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Throws the original away: once Postfix has gone on, nobody will repeat it, and its copies need not be remembered. Any other
    /// answer is not the last word: a milter after us may still have the client try again.
    pub(super) fn discard(&self, keys: Vec<CopyKey>) -> Response {
        let response = Response::from(Answer::from(Verdict::Discard));
        let Some(splitter) = self.splitter.as_ref().filter(|_| !keys.is_empty()) else { return response };
        let (served, forgetting) = (splitter.served.clone(), self.forgetting.clone());
        let runtime = tokio::runtime::Handle::current();
        response.when_taken(move || {
            forgetting.spawn_on(async move { served.forget(keys).await }, &runtime);
        })
    }

    /// Waits until copies are forgotten that need not be remembered: what is left would keep the same message from everybody
    /// for a day. A disk that does not answer is not waited for.
    pub(super) async fn forgotten(&self) {
        self.forgetting.close();
        let _ = tokio::time::timeout(FORGET, self.forgetting.wait()).await;
    }

    /// Stores the event before Postfix hears of the message's fate.
    pub(super) async fn publish(
        &self,
        queue_id: &str,
        tracked: &Tracked,
        now: Timestamp,
    ) -> Result<(), Unchanged> {
        let mut data = tracked.data.clone();
        data.queue_id = (!queue_id.is_empty()).then(|| queue_id.to_owned());
        let event = Event {
            id: EventId::of("accepted").part(tracked.id.as_bytes()).finish(),
            source: self.source.clone(),
            kind: Kind::Accepted,
            time: now,
            message: tracked.id,
            data,
        };
        let late = ("failed", "event_late");
        let wait = self.patience(|patience| patience.next_wait(Instant::now())).ok_or(late)?;
        let stored = tokio::time::timeout(wait, self.deps.publisher.offer(vec![event])).await;
        self.learn(stored.is_ok());
        match stored.map_err(|_| late)? {
            Ok(()) => {
                if self.refuses.swap(false, Ordering::Relaxed) {
                    self.health.ready();
                }
                Ok(())
            }
            Err(error) => {
                EventRefused { queue_id, error: &error }.emit();
                self.refuses.store(true, Ordering::Relaxed);
                self.health
                    .not_ready(format!("the spool refuses events ({error}): messages pass as they came"));
                Err(("failed", "event_refused"))
            }
        }
    }

    /// Whether a wait for the spool got an answer: one that never answers must not delay every message.
    fn learn(&self, answered: bool) {
        let turn = self.patience(|patience| patience.ended(answered, Instant::now()));
        SpoolTurn(turn).emit();
        match turn {
            Turn::Same => (),
            Turn::Stalled => self.health.not_ready("the spool does not answer: messages pass as they came"),
            Turn::Recovered => self.health.ready(),
        }
    }

    fn patience<T>(&self, ask: impl FnOnce(&mut Patience) -> T) -> T {
        ask(&mut self.patience.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl About {
    fn new(message: &Message, started: Instant) -> Self {
        let queue_id = text(message.queue_id().unwrap_or_default()).into_owned();
        Self { queue_id, recipients: message.recipients().len(), started }
    }

    fn unchanged(&self, outcome: &'static str, reason: &'static str) {
        self.done(outcome, reason, None);
    }

    /// The line of a message of which everybody got a copy.
    fn split(&self, copies: &Copies) {
        MessageDone {
            queue_id: &self.queue_id,
            outcome: "split",
            reason: "",
            id: None,
            reference: "",
            links: copies.links,
            pixel: false,
            recipients: self.recipients,
            took: Some(self.started.elapsed()),
        }
        .emit();
    }

    /// The line of a tracked message, once it is known what became of the answer.
    fn settled(&self, tracked: &Tracked, fate: Settled) {
        let (outcome, reason) = match (fate, tracked.report.outcome) {
            (Settled::Unmodified(_), _) => ("failed", "cannot_edit"),
            (Settled::Lost, _) => ("failed", "answer_lost"),
            (Settled::Sent { .. }, Outcome::Rewritten) => ("rewritten", ""),
            (Settled::Sent { .. }, Outcome::Unchanged(why) | Outcome::LeftAlone(why)) => {
                ("headers_only", why.as_str())
            }
            _ => ("failed", "internal"),
        };
        self.done(outcome, reason, Some(tracked));
    }

    fn done(&self, outcome: &'static str, reason: &'static str, tracked: Option<&Tracked>) {
        let sent = tracked.filter(|_| outcome != "failed");
        MessageDone {
            queue_id: &self.queue_id,
            outcome,
            reason,
            id: tracked.map(|tracked| tracked.id),
            reference: tracked.map_or("", |tracked| &tracked.reference),
            links: sent.map_or(0, |tracked| tracked.report.tracked.into()),
            pixel: sent.is_some_and(|tracked| tracked.report.has_pixel()),
            recipients: self.recipients,
            took: Some(self.started.elapsed()),
        }
        .emit();
        if let Some(tracked) = sent {
            LeftAlone(&tracked.report).emit();
        }
    }
}

fn change(
    message: &Message,
    recipients: &[Path],
    policy: &Policy,
    deps: &Deps,
    now: Timestamp,
    limit: Option<u64>,
) -> Result<Changed, Unchanged> {
    let original = message.to_bytes();
    let recipients: Vec<String> = recipients.iter().map(|path| text(path.bare()).into_owned()).collect();
    let ring = deps.keys.current();
    let means = Means {
        policy,
        ring: &ring,
        pseudonyms: &deps.pseudonyms,
        consents: &*deps.consents,
        now,
        random: rand::random(),
    };
    let sender = text(message.sender().bare()).into_owned();
    let envelope = Envelope { sender: &sender, recipients: &recipients };
    let mut tracked = match decide::decide(&original, envelope, &means) {
        Decision::Track(tracked) => tracked,
        Decision::Pass(Pass::NoKey, _) => return Err(("failed", Pass::NoKey.as_str())),
        Decision::Pass(pass, _) => return Err(("passed", pass.as_str())),
    };
    let edits = edits(&tracked, &original, message.body().len()).ok_or(("failed", "internal"))?;
    // They are applied; the message may now wait for its event to be stored.
    tracked.report.patches = Vec::new();
    if message.answer_room_bytes().is_some_and(|room| room < size_of_edits(&edits)) {
        return Err(("failed", "answer_too_large"));
    }
    if limit.is_some_and(|limit| size_in_queue(message, original.len(), &edits) > limit) {
        return Err(("failed", "message_size_limit"));
    }
    Ok(Changed { tracked, edits })
}

pub(super) fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
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
        let patches = &tracked.report.patches;
        if patches.iter().any(|patch| patch.range.start < body_start) {
            return None;
        }
        edits.push(Edit::ReplaceBody(rewrite::apply_from(original, body_start, patches)));
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

/// The size of Postfix's queue file once it is edited, rather more than less: this is what `message_size_limit` is about. Tried
/// with 3.7.11, by SMTP and sendmail(1): a line of more than 127 bytes takes a byte more than in the message, the envelope 1 KB, a
/// recipient three times the address and 20 bytes. What is deleted stays in the file.
fn size_in_queue(message: &Message, original_bytes: usize, edits: &[Edit]) -> u64 {
    let grows = edits.iter().map(|edit| match edit {
        Edit::ReplaceBody(body) => body.len().saturating_sub(message.body().len()),
        Edit::AddHeader { name, value } => name.len() + value.len() + 64,
        _ => 64,
    });
    let recipients: usize = message.recipients().iter().map(|path| 4 * path.address.len() + 64).sum();
    let bytes = original_bytes + grows.sum::<usize>();
    (bytes + bytes / 128 + recipients + ENVELOPE_BYTES) as u64
}

#[cfg(test)]
#[path = "handler_tests.rs"]
mod tests;
