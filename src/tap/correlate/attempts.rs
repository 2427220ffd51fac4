//! Attempts to deliver, and what is an event of them.
//!
//! - Layer: decision
//! - Takes: attempts and expiries, of messages that are known by then.
//! - Gives: events.
//! - On failure: an attempt of a message that is not known is counted, and its line kept for a moment.
//! - Limits: `MAX_REPEATED` repetitions of one line.
//! - See: `correlate` for what the ids of events are made of.

use std::time::Duration;

use super::Correlator;
use crate::event::{Data, Event, EventId, EventIdBuilder, Kind};
use crate::identity::{MessageId, Pseudonym, Timestamp};
use crate::tap::line::Line;
use crate::tap::queue_id::QueueId;
use crate::tap::record::{Delivery, Record, Status};
use crate::tap::state::Key;
use crate::tap::values::{forwarded_as, is_relay, not_before, queued_as};
use crate::tap::waiting::Waiting;

/// No message stays in a queue longer: Postfix's default is 5 days, its longest 100.
const LONGEST_IN_QUEUE: Duration = Duration::from_secs(100 * 86_400);
/// More repetitions than any logger collapses.
const MAX_REPEATED: u32 = 1_000;

impl Correlator {
    pub(super) fn delivery(
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
            self.tallies.without_ref(line.host, line.instance);
            self.early.push(delivery.queue_id, line);
            return;
        };
        self.tallies.with_ref(line.host, line.instance);
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
    pub(super) fn catch_up(
        &mut self,
        line: &Line<'_>,
        queue_id: QueueId,
        now: Timestamp,
        events: &mut Vec<Event>,
    ) {
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
        let queued_as = queued_as(delivery.text);
        let again = queued_as.is_some_and(|queue_id| self.state.is_also_queued_as(key, queue_id, id));
        if again || self.parts.own_relays.iter().any(|own| is_relay(delivery.relay, own)) {
            self.counts.handed_on += 1;
            return true;
        }
        if let Some(queue_id) = queued_as {
            self.taken.push(queue_id, id);
        }
        false
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
    pub(super) fn expired(
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
