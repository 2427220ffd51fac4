//! From lines to events: which message, which recipient, which attempt.
//!
//! - Layer: decision
//! - Takes: lines in the order of the log, and the time of reading.
//! - Gives: events, the same with the same ids however often the same log is read.
//! - On failure: what can't be told is no event, and a count in `Counts` says so.
//! - Limits: `State`'s.
//! - See: `docs/events.md`; Postfix `src/global/log_adhoc.c`.
//!
//! The id of an event is made of what its line says (host, instance, queue id, process, time, recipient's pseudonym,
//! outcome, delays), never of the position in a file, of the clock or of what was read before. The text of a reply is
//! not part of it, and addresses are hashed with the key first: an id must not help to guess an address.

use std::sync::Arc;
use std::time::Duration;

pub use super::parts::{Counts, Parts, VerifyRef};

use super::early::Early;
use super::line::Line;
use super::loss::{Loss, loss, may_be_ours, repetitions};
use super::queue_id::QueueId;
use super::record::{Delivery, Header, Name, Origin, Record, Refuser, Status};
use super::state::{Key, Saved, State};
use super::time::Resolver;
use super::tls::Connections;
use super::values::{forwarded_as, is_relay, not_before, queued_as, tls_word};
use super::waiting::Waiting;
use crate::delivery::{Classifier, EnhancedCode, sender_domain, smtp_code};
use crate::event::{Data, Event, EventId, EventIdBuilder, Kind};
use crate::identity::{MessageId, Pseudonym, Timestamp};

/// The state machine.
pub struct Correlator {
    parts: Parts,
    syslog_names: Vec<String>,
    source: String,
    resolver: Resolver,
    state: State,
    early: Early,
    connections: Connections,
    copy_recipients: Vec<Pseudonym>,
    /// Whether the line before was an attempt.
    was_delivery: bool,
    counts: Counts,
}

impl std::fmt::Debug for Correlator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Correlator")
            .field("tracked", &self.state.len())
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

/// No message stays in a queue longer: Postfix's default is 5 days, its longest 100.
const LONGEST_IN_QUEUE: Duration = Duration::from_secs(100 * 86_400);
/// More repetitions than any logger collapses.
const MAX_REPEATED: u32 = 1_000;

impl Correlator {
    /// One that remembers what was saved.
    #[must_use]
    pub fn new(parts: Parts, saved: Option<Saved>) -> Self {
        let state = match saved {
            Some(saved) => State::restore(saved, parts.max_tracked),
            None => State::new(parts.max_tracked),
        };
        let resolver = Resolver::new(parts.zone.clone());
        let source = format!("mailtap/tap/{}", parts.host);
        let copy_recipients =
            parts.copy_recipients.iter().map(|address| parts.pseudonyms.pseudonym(address)).collect();
        let counts = Counts { refs: state.with_id(), ..Counts::default() };
        Self {
            parts,
            syslog_names: Vec::new(),
            source,
            resolver,
            state,
            early: Early::default(),
            connections: Connections::default(),
            copy_recipients,
            was_delivery: false,
            counts,
        }
    }

    /// Takes only lines of these `syslog_name`s and of those below them (`postfix` means `postfix/submission` too); of
    /// all if there is none.
    #[must_use]
    pub fn only(self, syslog_names: Vec<String>) -> Self {
        Self { syslog_names, ..self }
    }

    /// Takes other rules from now on.
    pub fn classify_by(&mut self, classifier: Classifier) {
        self.parts.classifier = classifier;
    }

    /// The state for the checkpoint.
    #[must_use]
    pub fn save(&self) -> Saved {
        self.state.save()
    }

    /// What was seen so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts { evicted: self.state.evicted, ..self.counts }
    }

    /// How many messages are remembered.
    #[must_use]
    pub fn tracked(&self) -> usize {
        self.state.len()
    }

    /// Takes a line; pushes the events that it is.
    pub fn line(&mut self, line: &Line<'_>, now: Timestamp, events: &mut Vec<Event>) {
        if !self.is_ours(line.instance) {
            self.counts.other_instances += 1;
            return;
        }
        self.counts.lines += 1;
        let key = |state: &State, queue_id| state.key(line.host, line.instance, queue_id);
        let record = Record::parse(line);
        let was_delivery = std::mem::replace(&mut self.was_delivery, matches!(record, Record::Delivery(_)));
        match record {
            Record::Repeated(count) => self.repeated(count, was_delivery),
            Record::Delivery(delivery) => self.delivery(line, &delivery, now, events),
            Record::Header(header) => self.header(line, &header),
            Record::Arrived { queue_id, origin } => self.arrived(line, queue_id, origin),
            Record::Refused { queue_id, by } => {
                self.refused(by);
                if let Some(key) = queue_id.and_then(|queue_id| key(&self.state, queue_id)) {
                    self.state.forget(key);
                }
            }
            Record::MessageId(queue_id) => {
                if let Some(key) = key(&self.state, queue_id) {
                    self.state.forget_if_removed(key);
                }
            }
            Record::Active { queue_id, sender } => {
                if let Some(key) = key(&self.state, queue_id) {
                    self.sender(key, sender);
                    if let Some(message) = self.state.message(key) {
                        message.is_active = true;
                    }
                }
            }
            Record::Expired(queue_id) => {
                if let Some(key) = key(&self.state, queue_id) {
                    self.expired(line, key, queue_id, now, events);
                }
            }
            Record::Removed(queue_id) => self.removed(line, queue_id, now),
            Record::Tls { relay, word } => self.connections.established(line, relay, word),
            Record::Notification { .. } | Record::Irrelevant => {}
            Record::Unknown => self.counts.unknown += 1,
        }
    }

    /// Takes a line that no daemon of Postfix wrote: loggers say in such lines what they left out.
    pub fn other(&mut self, line: &[u8]) {
        let was_delivery = std::mem::take(&mut self.was_delivery);
        if let Some(loss) = loss(line) {
            self.lost(loss);
        }
        if let Some(count) = repetitions(line) {
            self.repeated(count, was_delivery);
        }
    }

    /// Counts lines that the logger says it left out, unless they were of another service.
    pub fn lost(&mut self, loss: Loss<'_>) {
        if may_be_ours(loss.unit, &self.parts.units) {
            self.counts.lost_lines += loss.lines;
        }
    }

    fn refused(&mut self, by: Refuser) {
        let count = match by {
            Refuser::Smtpd => &mut self.counts.refused_by_smtpd,
            Refuser::Postscreen => &mut self.counts.refused_by_postscreen,
            Refuser::Milter => &mut self.counts.refused_by_milter,
            Refuser::Content => &mut self.counts.refused_for_content,
        };
        *count += 1;
    }

    /// The text of the line before came again, without its time: attempts are lost, other lines say nothing new.
    fn repeated(&mut self, count: u32, was_delivery: bool) {
        if was_delivery {
            self.lost(Loss { lines: count.into(), unit: None });
        }
    }

    fn is_ours(&self, instance: &[u8]) -> bool {
        let names = &self.syslog_names;
        names.is_empty()
            || names.iter().any(|name| {
                instance
                    .strip_prefix(name.as_bytes())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
            })
    }

    /// A queue id begins: what had it before is over, and it may be a message that had another one.
    fn arrived(&mut self, line: &Line<'_>, queue_id: QueueId, origin: Option<Origin>) {
        let before = match origin {
            Some(Origin::HandedOn(before) | Origin::Requeued(before)) => {
                self.state.message_of(line.host, before)
            }
            None => None,
        };
        // In this very instance: an id that another one has is that one's still.
        let key = self.state.own_key(line.host, line.instance, queue_id);
        if let Some(key) = key.filter(|key| before != Some(*key)) {
            self.state.forget(key);
        }
        if let Some(before) = before.filter(|before| key != Some(*before)) {
            let is_whole = matches!(origin, Some(Origin::Requeued(_)));
            self.state.go_on(before, line.host, line.instance, queue_id, is_whole);
            if is_whole {
                self.state.forget(before);
            }
        }
    }

    fn header(&mut self, line: &Line<'_>, header: &Header<'_>) {
        // What is tracked has a sender. Without one it is returned mail: `nested_header_checks` are `header_checks` by
        // default, and log the header of the message within.
        if header.sender.is_some_and(<[u8]>::is_empty) {
            return;
        }
        let Ok(value) = std::str::from_utf8(header.value) else { return };
        match header.name {
            Name::Ref => {
                let Some(id) = (self.parts.verify_ref)(value) else {
                    self.counts.unverified_refs += 1;
                    return;
                };
                self.counts.refs += 1;
                // A second one while cleanup(8) is at it is that of an attached message (`nested_header_checks`).
                let key = self.state.key(line.host, line.instance, header.queue_id);
                let known = key.and_then(|key| self.state.message(key));
                if known.is_some_and(|known| !known.is_active && known.id.is_some_and(|known| known != id)) {
                    return;
                }
                // Otherwise it is another message, whose beginning was not logged.
                let key = self.state.begin(line.host, line.instance, header.queue_id, Some(id));
                if let Some(message) = self.state.message(key) {
                    message.id = Some(id);
                }
            }
            Name::Campaign => {
                let Ok(campaign) = value.parse() else { return };
                let campaign = self.state.campaign(&campaign);
                let key = self.state.begin(line.host, line.instance, header.queue_id, None);
                if let Some(message) = self.state.message(key) {
                    message.campaign = Some(campaign);
                }
            }
        }
        if let (Some(key), Some(sender)) =
            (self.state.key(line.host, line.instance, header.queue_id), header.sender)
        {
            self.sender(key, sender);
        }
    }

    fn sender(&mut self, key: Key, sender: &[u8]) {
        if self.state.message(key).is_none_or(|message| message.sender_domain.is_some()) {
            return;
        }
        let domain = sender_domain(sender).map(|domain| self.state.domain(&domain));
        if let Some(message) = self.state.message(key) {
            message.sender_domain = domain;
        }
    }

    fn delivery(
        &mut self,
        line: &Line<'_>,
        delivery: &Delivery<'_>,
        now: Timestamp,
        events: &mut Vec<Event>,
    ) {
        if delivery.status == Status::Probe {
            self.counts.probes += 1;
            return;
        }
        let connection = self.connections.word(line, delivery);
        let known = self.state.key(line.host, line.instance, delivery.queue_id).and_then(|key| {
            let id = self.state.message(key)?.id?;
            Some((key, id))
        });
        let Some((key, id)) = known else {
            self.counts.attempts_without_ref += 1;
            self.early.push(delivery.queue_id, line);
            return;
        };
        let to = self.pseudonym(delivery.to);
        if self.copy_recipients.contains(&to) {
            self.counts.copies += 1;
            return;
        }
        let original = delivery.orig_to.map_or(to, |orig_to| self.pseudonym(orig_to));
        if delivery.status == Status::Sent && self.is_no_delivery(line, delivery, key, id) {
            if let Some(message) = self.state.message(key) {
                message.waiting.remove(&to, &original);
            }
            if let Some(queue_id) = forwarded(line, delivery) {
                self.catch_up(line, queue_id, now, events);
            }
            return;
        }
        let outcome = self.outcome(delivery);
        let time = self.delivery_time(line, delivery, id, now);
        for repetition in 0..line.repeated.min(MAX_REPEATED) {
            let Some(message) = self.state.message(key) else { return };
            message.is_active = true;
            let before = message.waiting.get(&to, &original).map_or(0, |waiting| waiting.attempts);
            let attempt = before.saturating_add(1);
            match (delivery.status, outcome.class) {
                (Status::Deferred, Some(class)) => {
                    let waiting = Waiting {
                        attempts: attempt,
                        class,
                        dsn: outcome.dsn,
                        smtp_code: outcome.smtp_code,
                        reason: outcome.reason.clone(),
                        provider: outcome.provider.clone(),
                    };
                    message.waiting.insert(to, original, waiting);
                }
                _ => {
                    message.waiting.remove(&to, &original);
                }
            }
            let mut event_id = self
                .event_id("delivery", line, delivery.queue_id)
                .part(to.as_bytes())
                .part(original.as_bytes())
                .part(delivery.status.as_str())
                .part(delivery.dsn.unwrap_or_default())
                .part(delivery.delay_text)
                .part(delivery.delays_text);
            if repetition > 0 {
                event_id = event_id.part(repetition.to_be_bytes());
            }
            let data = outcome.data(delivery, original, attempt, connection);
            let event = Event {
                id: event_id.finish(),
                source: self.source.clone(),
                kind: outcome.kind,
                time,
                message: id,
                data,
            };
            self.push(key, delivery.queue_id, event, events);
        }
    }

    /// Reads what was logged of a forwarded message before the forwarding itself.
    fn catch_up(&mut self, line: &Line<'_>, queue_id: QueueId, now: Timestamp, events: &mut Vec<Event>) {
        for kept in self.early.take(line.host, queue_id) {
            let line = kept.line();
            match Record::parse(&line) {
                Record::Delivery(delivery) => {
                    self.counts.attempts_without_ref = self.counts.attempts_without_ref.saturating_sub(1);
                    self.delivery(&line, &delivery, now, events);
                }
                Record::Removed(queue_id) => self.removed(&line, queue_id, now),
                _ => {}
            }
        }
    }

    fn removed(&mut self, line: &Line<'_>, queue_id: QueueId, now: Timestamp) {
        match self.state.key(line.host, line.instance, queue_id) {
            Some(key) => {
                let time = self.resolver.resolve(line.time.moment, now);
                self.state.removed(key, time);
            }
            None => self.early.push(queue_id, line),
        }
    }

    /// Whether `sent` means that the message is on its way still, or gone.
    fn is_no_delivery(&mut self, line: &Line<'_>, delivery: &Delivery<'_>, key: Key, id: MessageId) -> bool {
        if line.daemon == b"discard" {
            self.counts.discarded += 1;
            return true;
        }
        if let Some(queue_id) = forwarded(line, delivery) {
            self.state.go_on(key, line.host, line.instance, queue_id, false);
            self.counts.handed_on += 1;
            return true;
        }
        let again =
            queued_as(delivery.text).is_some_and(|queue_id| self.state.is_also_queued_as(key, queue_id, id));
        if again || self.parts.own_relays.iter().any(|own| is_relay(delivery.relay, own)) {
            self.counts.handed_on += 1;
            return true;
        }
        false
    }

    fn outcome(&self, delivery: &Delivery<'_>) -> Outcome {
        let dsn = delivery.dsn.and_then(EnhancedCode::parse);
        let smtp_code = smtp_code(delivery.text);
        let kind = match delivery.status {
            Status::Sent | Status::Probe => Kind::Delivered,
            Status::Deferred => Kind::Deferred,
            Status::Bounced => Kind::Bounced,
        };
        let verdict =
            (kind != Kind::Delivered).then(|| self.parts.classifier.classify(smtp_code, dsn, delivery.text));
        let addresses = [delivery.to, delivery.orig_to.unwrap_or_default()];
        Outcome {
            kind,
            dsn,
            smtp_code,
            class: verdict.map(|verdict| verdict.class),
            reason: verdict.map(|verdict| verdict.why.clone()),
            reply: verdict.and_then(|_| self.parts.replies.of(delivery.text, &addresses)),
            provider: self.parts.providers.of(delivery.relay).cloned(),
        }
    }

    fn delivery_time(
        &mut self,
        line: &Line<'_>,
        delivery: &Delivery<'_>,
        id: MessageId,
        now: Timestamp,
    ) -> Timestamp {
        let latest = now.min(id.time().plus(LONGEST_IN_QUEUE));
        let time = match (delivery.queue_id.arrival(), delivery.delay()) {
            (Some(arrival), Some(delay)) => {
                self.resolver.resolve_delivery(line.time.moment, latest, Some(arrival), delay)
            }
            _ => self.resolver.resolve(line.time.moment, latest),
        };
        not_before(time, id)
    }

    /// Every recipient that still waits is given up.
    fn expired(
        &mut self,
        line: &Line<'_>,
        key: Key,
        queue_id: QueueId,
        now: Timestamp,
        events: &mut Vec<Event>,
    ) {
        let Some(message) = self.state.message(key) else { return };
        let Some(id) = message.id else { return };
        let waiting = std::mem::take(&mut message.waiting);
        let latest = now.min(id.time().plus(LONGEST_IN_QUEUE));
        let time = not_before(self.resolver.resolve(line.time.moment, latest), id);
        let arrival = queue_id.arrival().unwrap_or_else(|| id.time());
        for (to, original, waiting) in waiting.into_all() {
            let data = Data {
                recipient: Some(original),
                dsn: waiting.dsn.map(|dsn| dsn.to_string()),
                class: Some(waiting.class),
                reason: waiting.reason.as_deref().map(str::to_owned),
                provider: waiting.provider.as_deref().map(str::to_owned),
                attempt: Some(waiting.attempts),
                delay_ms: u64::try_from(time.since(arrival).as_millis()).ok(),
                smtp_code: waiting.smtp_code,
                ..Data::default()
            };
            let event_id = self.event_id("expired", line, queue_id).part(to.as_bytes());
            let event = Event {
                id: event_id.part(original.as_bytes()).finish(),
                source: self.source.clone(),
                kind: Kind::Expired,
                time,
                message: id,
                data,
            };
            self.push(key, queue_id, event, events);
        }
    }

    /// Adds what the message is known by.
    fn push(&mut self, key: Key, queue_id: QueueId, mut event: Event, events: &mut Vec<Event>) {
        if let Some(message) = self.state.message(key) {
            event.data.campaign = message.campaign.as_deref().cloned();
            event.data.sender_domain = message.sender_domain.as_deref().map(str::to_owned);
        }
        event.data.queue_id = Some(queue_id.to_string());
        self.counts.events += 1;
        events.push(event);
    }

    fn event_id(&self, what: &str, line: &Line<'_>, queue_id: QueueId) -> EventIdBuilder {
        let host = if line.host.is_empty() { self.parts.host.as_bytes() } else { line.host };
        EventId::of(what)
            .part(host)
            .part(line.instance)
            .part(queue_id.as_bytes())
            .part(line.pid)
            .part(line.time.text)
    }

    fn pseudonym(&self, address: &[u8]) -> Pseudonym {
        self.parts.pseudonyms.pseudonym(&String::from_utf8_lossy(address))
    }
}

/// The queue id under which local(8) says that the message goes on.
fn forwarded(line: &Line<'_>, delivery: &Delivery<'_>) -> Option<QueueId> {
    if line.daemon == b"local" { forwarded_as(delivery.text) } else { None }
}

struct Outcome {
    kind: Kind,
    dsn: Option<EnhancedCode>,
    smtp_code: Option<u16>,
    class: Option<crate::event::BounceClass>,
    reason: Option<Arc<str>>,
    reply: Option<String>,
    provider: Option<Arc<str>>,
}

impl Outcome {
    fn data(
        &self,
        delivery: &Delivery<'_>,
        original: Pseudonym,
        attempt: u32,
        connection: Option<&'static str>,
    ) -> Data {
        Data {
            recipient: Some(original),
            dsn: self.dsn.map(|dsn| dsn.to_string()),
            class: self.class,
            reason: self.reason.as_deref().map(str::to_owned),
            reply: self.reply.clone(),
            attempt: Some(attempt),
            delay_ms: delivery.delay().and_then(|delay| u64::try_from(delay.as_millis()).ok()),
            smtp_code: self.smtp_code,
            provider: self.provider.as_deref().map(str::to_owned),
            tls: delivery.tls.and_then(tls_word).or_else(|| connection.map(str::to_owned)),
            ..Data::default()
        }
    }
}

#[cfg(test)]
#[path = "correlate_tests.rs"]
mod tests;
