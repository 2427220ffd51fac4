//! What is known of clicks and opens beyond each of them: the last word on their verdicts, and who was first.
//!
//! - Layer: decision
//! - Takes: what `hit` found, one after the other, and deliveries; the time.
//! - Gives: events to publish, with how long to hold them and what they may be the first of; changes of earlier ones.
//! - On failure: nothing can fail.
//! - Limits: those of `watch` and `held`.
//! - See: `docs/tracker.md`, "What is recorded".

use std::sync::Arc;
use std::time::Duration;

use super::held::{self, Change, FirstKey, Held};
use super::rules::Rules;
use super::terms::Terms;
use super::watch::{self, Correction, Fact, Watch};
use crate::event::{Event, EventId, Kind, Machine};
use crate::identity::{MessageId, Pseudonym, Timestamp};

/// An event as `hit` found it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) event: Event,
    /// Nothing for an event that may say nothing personal.
    pub(super) track: Option<Track>,
    /// What it was judged by.
    pub(super) rules: Arc<Rules>,
}

/// What an event has to do with others.
#[derive(Debug)]
pub(super) struct Track {
    pub(super) hit: watch::Hit,
    /// What it may be the first of; nothing where several recipients share a token.
    pub(super) first: Option<FirstKey>,
    /// An open that this click implies.
    pub(super) implied: Option<Box<(Event, FirstKey)>>,
}

/// An event to publish.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Publish {
    pub(super) event: Arc<Event>,
    pub(super) held_until: Option<Timestamp>,
    pub(super) first: Option<FirstKey>,
}

/// The last word.
#[derive(Debug)]
pub(super) struct Ledger {
    terms: Terms,
    /// Since when everything was seen.
    began: Timestamp,
    rules: Arc<Rules>,
    watch: Watch,
    held: Held,
}

/// The key of the first click of a recipient on a link, or of the first open.
pub(super) fn first_key(
    kind: Kind,
    message: &MessageId,
    recipient: &Pseudonym,
    link: Option<u16>,
) -> FirstKey {
    let link = link.unwrap_or_default().to_be_bytes();
    let key = EventId::of("first")
        .part(kind.as_str())
        .part(message.as_bytes())
        .part(recipient.as_bytes())
        .part(link);
    *key.finish().as_bytes()
}

/// The id of the open that a click implies.
pub(super) fn implied_id(click: &EventId) -> EventId {
    EventId::of("implied open").part(click.as_bytes()).finish()
}

impl Ledger {
    pub(super) fn new(rules: Arc<Rules>, terms: Terms, began: Timestamp) -> Self {
        let watch = Watch::new(&rules, terms.hold, watch::Limits::default());
        let held = Held::new(terms.hold, terms.unique_window, held::Limits::default());
        Self { terms, began, rules, watch, held }
    }

    /// For how long an event can be the first of its kind.
    pub(super) const fn unique_window(&self) -> Duration {
        self.terms.unique_window
    }

    /// What was forgotten although it could still have counted, since the last time this was asked.
    pub(super) const fn take_forgotten(&mut self) -> u64 {
        self.watch.take_forgotten() + self.held.take_forgotten()
    }

    /// Takes in an event: gives what to publish, and what to change after that.
    pub(super) fn take(&mut self, found: Found, now: Timestamp) -> (Vec<Publish>, Vec<Change>) {
        let Found { mut event, track, rules } = found;
        let Some(Track { hit, first, implied }) = track else {
            let event = Arc::new(event);
            return (vec![Publish { event, held_until: None, first: None }], Vec::new());
        };
        if !Arc::ptr_eq(&self.rules, &rules) {
            let watch = std::mem::replace(
                &mut self.watch,
                Watch::new(&rules, Duration::ZERO, watch::Limits::default()),
            );
            self.watch = watch.with_rules(&rules, self.terms.hold);
            self.rules = rules;
        }
        let known_since_ever = hit.message.time() >= self.began;
        let mut changes = Vec::new();
        for correction in self.watch.observe(Fact::Hit(hit), now) {
            if correction.id == event.id {
                event.data.machine = Some(correction.machine);
                event.data.machine_rule = Some(String::from(&*correction.rule));
            } else {
                self.correct(&correction, now, &mut changes);
            }
        }
        let is_person = event.data.machine == Some(Machine::No);
        let implied = implied.filter(|implied| is_person && !self.held.has_person(&implied.1));
        let mut publish = Vec::with_capacity(2);
        for (event, first) in
            std::iter::once((event, first)).chain(implied.map(|implied| (implied.0, Some(implied.1))))
        {
            let mut event = Arc::new(event);
            changes.extend(self.held.admit(&mut event, first, known_since_ever, now));
            publish.push(Publish { event, held_until: self.held.until(now), first });
        }
        (publish, changes)
    }

    /// Takes in that a message was delivered.
    pub(super) fn delivered(
        &mut self,
        message: MessageId,
        recipient: Option<Pseudonym>,
        time: Timestamp,
        now: Timestamp,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        for correction in self.watch.observe(Fact::Delivered { message, recipient, time }, now) {
            self.correct(&correction, now, &mut changes);
        }
        changes
    }

    /// The first of a swap was sent already.
    pub(super) fn too_late(&mut self, person: EventId, machine: EventId) -> Option<Change> {
        self.held.too_late(person, machine)
    }

    /// A verdict is surer now: of the event, and of the open that it implied.
    fn correct(&mut self, correction: &Correction, now: Timestamp, changes: &mut Vec<Change>) {
        changes.extend(self.held.correct(correction, now));
        let implied = Correction { id: implied_id(&correction.id), ..correction.clone() };
        changes.extend(self.held.correct(&implied, now));
    }
}
