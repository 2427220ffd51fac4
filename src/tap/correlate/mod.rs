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

mod attempts;
mod outcome;

pub use super::parts::{Counts, Parts, VerifyRef};

use super::early::Early;
use super::line::Line;
use super::loss::{Loss, loss, may_be_ours, repetitions};
use super::queue_id::QueueId;
use super::record::{Header, Name, Origin, Record, Refuser};
use super::state::{Key, Saved, State, instance_of};
use super::taken::Taken;
use super::tallies::{Silent, Tallies};
use super::time::Resolver;
use super::tls::Connections;
use super::unlogged::{Missing, Unlogged};
use crate::delivery::{Classifier, sender_domain};
use crate::event::Event;
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
    tallies: Tallies,
    taken: Taken,
    /// Where this process knows what the milter marks.
    unlogged: Option<Unlogged>,
    copy_recipients: Vec<Pseudonym>,
    /// Whether the line before was an attempt.
    was_delivery: bool,
    counts: Counts,
    lost_lines_before: u64,
}

impl std::fmt::Debug for Correlator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Correlator")
            .field("tracked", &self.state.len())
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

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
        let mut tallies = Tallies::default();
        state.origins_with_id().into_iter().for_each(|(host, instance)| tallies.with_ref(host, instance));
        Self {
            parts,
            syslog_names: Vec::new(),
            source,
            resolver,
            state,
            early: Early::default(),
            connections: Connections::default(),
            tallies,
            taken: Taken::default(),
            unlogged: None,
            copy_recipients,
            was_delivery: false,
            counts: Counts::default(),
            lost_lines_before: 0,
        }
    }

    /// Takes only lines of these `syslog_name`s and of those below them (`postfix` means `postfix/submission` too); of
    /// all if there is none.
    #[must_use]
    pub fn only(self, syslog_names: Vec<String>) -> Self {
        Self { syslog_names, ..self }
    }

    /// One that is told what the milter marks, and finds out what of it was not logged.
    #[must_use]
    pub fn knowing_marks(self) -> Self {
        let mut unlogged = Unlogged::default();
        for (_, instance) in self.state.origins_with_id() {
            unlogged.logs_references(instance);
        }
        Self { unlogged: Some(unlogged), ..self }
    }

    /// The milter marked a message with this queue id, or a copy of one.
    pub fn marked(&mut self, queue_id: &str, message: MessageId, is_copy: bool, now: Timestamp) {
        if let (Some(unlogged), Some(queue_id)) = (&mut self.unlogged, QueueId::parse(queue_id.as_bytes())) {
            unlogged.marked(queue_id, message, is_copy, now);
        }
    }

    /// Marked messages that are gone and were not logged, at the end of a piece of the log, all marks being known.
    pub fn missing(&mut self, now: Timestamp) -> Vec<Missing> {
        let Some(unlogged) = &mut self.unlogged else { return Vec::new() };
        if self.counts.lost_lines > self.lost_lines_before {
            self.lost_lines_before = self.counts.lost_lines;
            unlogged.lines_lost(now);
        }
        let missing = unlogged.settle(now);
        for missing in missing.iter().filter(|missing| missing.is_news) {
            self.tallies.said(missing.service.as_bytes());
        }
        missing
    }

    /// Instances that deliver much, and nothing with a reference: news, unless it is known that nothing is tracked.
    pub fn silent(&mut self) -> Vec<Silent> {
        if self.unlogged.as_ref().is_some_and(|unlogged| !unlogged.has_marks()) {
            return Vec::new();
        }
        self.tallies.news()
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
                if let (Some(unlogged), Some(queue_id)) = (&mut self.unlogged, queue_id) {
                    unlogged.refused(queue_id);
                }
                if let Some(key) = queue_id.and_then(|queue_id| key(&self.state, queue_id)) {
                    self.state.forget(key);
                }
            }
            Record::MessageId(queue_id) => {
                if let Some(unlogged) = &mut self.unlogged {
                    unlogged.cleaned(queue_id, line.instance);
                }
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
            Record::Removed(queue_id) => {
                if let Some(unlogged) = &mut self.unlogged {
                    unlogged.left(queue_id, instance_of(line.instance));
                }
                self.removed(line, queue_id, now);
            }
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
        if let (Some(unlogged), Some(Origin::Requeued(before))) = (&mut self.unlogged, origin) {
            unlogged.moved(before, queue_id);
        }
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
                let id = (self.parts.verify_ref)(value);
                self.tallies.with_ref(line.host, line.instance);
                if let Some(unlogged) = &mut self.unlogged {
                    unlogged.logged(header.queue_id, id, line.instance);
                }
                let Some(id) = id else {
                    self.counts.unverified_refs += 1;
                    return;
                };
                self.counts.refs += 1;
                self.counts.counted_early += u64::from(self.taken.was(header.queue_id, id));
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

    fn removed(&mut self, line: &Line<'_>, queue_id: QueueId, now: Timestamp) {
        match self.state.key(line.host, line.instance, queue_id) {
            Some(key) => {
                let time = self.resolver.resolve(line.time.moment, now);
                self.state.removed(key, time);
            }
            None => self.early.push(queue_id, line),
        }
    }
}

#[cfg(test)]
mod tests;
