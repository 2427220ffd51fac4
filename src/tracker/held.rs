//! Events whose verdict may still change: what they say now, and which of them is the first of a person.
//!
//! - Layer: decision
//! - Takes: events as they come, corrections of their verdicts; the time.
//! - Gives: the event as it is to be published, and amendments of those published before.
//! - On failure: nothing can fail; an amendment that comes too late is undone by `too_late`.
//! - Limits: `Limits`: events that are held, keys of unique events.
//! - See: `docs/tracker.md`, "What is recorded"; case 77 of what goes wrong elsewhere: a person after a machine
//!   changes the label without a second count.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::watch::{Correction, Map, is_roomy};
use crate::event::{Event, EventId, Machine};
use crate::identity::Timestamp;

/// A hash of what an event has in common with its repetitions.
pub(super) type FirstKey = [u8; 16];

/// What is stored under an id from now on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Amended {
    pub(super) event: Arc<Event>,
    pub(super) key: Option<FirstKey>,
}

/// How much is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Events that are held; about 700 bytes each.
    pub(super) events: usize,
    /// Keys of unique events, for as long as their window; about 150 bytes each.
    pub(super) keys: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { events: 50_000, keys: 200_000 }
    }
}

/// A change to events that were published before.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    /// This one says something else now.
    Amend(Amended),
    /// Two with one key change places: the first of them is a person's now. `first` goes first; only if it is still
    /// held may `then` follow.
    Swap {
        /// The person's, under the id of the first.
        first: Amended,
        /// The machine's, under the other id.
        then: Amended,
        /// The hit of the person.
        person: EventId,
        /// The hit of the machine.
        machine: EventId,
    },
}

impl Change {
    /// Whether what comes after it depends on what becomes of it.
    pub(super) const fn is_swap(&self) -> bool {
        matches!(self, Self::Swap { .. })
    }
}

#[derive(Debug)]
struct Entry {
    /// As it is stored, `unique` aside; its id is that of another hit after a swap.
    event: Arc<Event>,
    key: Option<FirstKey>,
    /// Until when what is stored under its id is held.
    until: Timestamp,
}

impl Entry {
    fn amended(&self) -> Amended {
        Amended { event: Arc::clone(&self.event), key: self.key }
    }
}

/// What is known of the events with one key.
#[derive(Debug)]
struct Key {
    until: Timestamp,
    /// The hit whose event is the unique one.
    holder: EventId,
    /// The hit that counts as the first of a person.
    person: Option<EventId>,
    /// Others that are held, oldest first.
    others: Vec<EventId>,
    /// Whether everything with this key was seen here. Otherwise only the spool knows which event is the unique one, and
    /// whether a person counts already.
    is_ours: bool,
}

/// The most events with one key that can take the place of another.
const MAX_OTHERS: usize = 8;

/// What is held, and what was the first.
#[derive(Debug)]
pub(super) struct Held {
    hold: Duration,
    window: Duration,
    limits: Limits,
    entries: Map<EventId, Entry>,
    order: VecDeque<(Timestamp, EventId)>,
    keys: Map<FirstKey, Key>,
    key_order: VecDeque<(Timestamp, FirstKey)>,
    forgotten: u64,
}

impl Held {
    /// Events are held for `hold`, keys are known for `window`.
    pub(super) fn new(hold: Duration, window: Duration, limits: Limits) -> Self {
        Self {
            hold,
            window,
            limits,
            entries: Map::default(),
            order: VecDeque::new(),
            keys: Map::default(),
            key_order: VecDeque::new(),
            forgotten: 0,
        }
    }

    /// How many events and keys were forgotten early since the last time this was asked.
    pub(super) const fn take_forgotten(&mut self) -> u64 {
        std::mem::replace(&mut self.forgotten, 0)
    }

    /// Until when an event of now is held.
    pub(super) fn until(&self, now: Timestamp) -> Option<Timestamp> {
        (!self.hold.is_zero()).then(|| now.plus(self.hold))
    }

    /// Whether a person is known to have done what this key stands for.
    pub(super) fn has_person(&self, key: &FirstKey) -> bool {
        self.keys.get(key).is_some_and(|key| key.person.is_some())
    }

    /// Takes in an event before it is published, and says what else is to change after it. `known_since_ever` says
    /// whether everything with this key was seen here; otherwise the spool finds out who is a person's first.
    pub(super) fn admit(
        &mut self,
        event: &mut Arc<Event>,
        key: Option<FirstKey>,
        known_since_ever: bool,
        now: Timestamp,
    ) -> Option<Change> {
        self.expire(now);
        let (hit, person) = (event.id, is_person(event));
        if let Some(until) = self.until(now) {
            self.entries.insert(hit, Entry { event: Arc::clone(event), key, until });
            self.order.push_back((until, hit));
            if self.order.len() > self.limits.events {
                self.forgotten += 1;
                self.forget_oldest_entry();
            }
        }
        let key = key?;
        let Some(known) = self.keys.get_mut(&key) else {
            let until = now.plus(self.window);
            let (person, is_ours) = (person.then_some(hit), known_since_ever);
            self.keys.insert(key, Key { until, holder: hit, person, others: Vec::new(), is_ours });
            self.key_order.push_back((until, key));
            if self.key_order.len() > self.limits.keys {
                self.forgotten += 1;
                self.forget_oldest_key();
            }
            return None;
        };
        if known.others.first().is_some_and(|oldest| !self.entries.contains_key(oldest)) {
            known.others.retain(|other| self.entries.contains_key(other));
        }
        if known.others.len() < MAX_OTHERS {
            known.others.push(hit);
        }
        if !person || known.person.is_some() {
            return None;
        }
        known.person = Some(hit);
        if !known.is_ours {
            return None;
        }
        // True even if nobody lives to see the rest: the first is a machine's until it is amended.
        Arc::make_mut(event).data.upgrade = Some(true);
        self.set_upgrade(hit, true);
        self.swap(key, hit, now)
    }

    /// Gives a hit another verdict; nothing if its event is not held any more.
    pub(super) fn correct(&mut self, correction: &Correction, now: Timestamp) -> Vec<Change> {
        self.expire(now);
        let hit = correction.id;
        let Some(entry) = self.entries.get_mut(&hit).filter(|entry| entry.until > now) else {
            return Vec::new();
        };
        let data = &mut Arc::make_mut(&mut entry.event).data;
        data.machine = Some(correction.machine);
        data.machine_rule = Some(String::from(&*correction.rule));
        data.upgrade = None;
        let key = entry.key;
        let mut changes = vec![Change::Amend(entry.amended())];
        if let Some(key) = key {
            changes.extend(self.another_person(key, hit, now));
        }
        changes
    }

    /// The person that a key was known by is none: perhaps another one is there.
    fn another_person(&mut self, key: FirstKey, hit: EventId, now: Timestamp) -> Option<Change> {
        let known = self.keys.get_mut(&key)?;
        if known.person != Some(hit) {
            return None;
        }
        let is_a_person = |other: &&EventId| {
            self.entries.get(other).is_some_and(|entry| entry.until > now && is_person(&entry.event))
        };
        let next = known.others.iter().find(is_a_person).copied();
        known.person = next;
        let next = next?;
        if !known.is_ours {
            return self.amend(&next);
        }
        self.set_upgrade(next, true);
        let change = self.swap(key, next, now);
        change.or_else(|| self.amend(&next))
    }

    /// Puts the person's event in the place of the unique one, if that is still held.
    fn swap(&mut self, key: FirstKey, person: EventId, now: Timestamp) -> Option<Change> {
        let machine = self.keys.get(&key)?.holder;
        let is_held = |hit: &EventId| self.entries.get(hit).is_some_and(|entry| entry.until > now);
        if machine == person || !is_held(&machine) || !is_held(&person) {
            return None;
        }
        self.exchange(key, person, machine);
        let amended = |hit: &EventId| self.entries.get(hit).map(Entry::amended);
        let (first, then) = (amended(&person)?, amended(&machine)?);
        Some(Change::Swap { first, then, person, machine })
    }

    /// Exchanges the ids under which two hits are stored.
    fn exchange(&mut self, key: FirstKey, holder: EventId, other: EventId) {
        let row = |hit: &EventId| self.entries.get(hit).map(|entry| (entry.event.id, entry.until));
        let (Some(one), Some(two)) = (row(&holder), row(&other)) else { return };
        for (hit, row) in [(holder, two), (other, one)] {
            if let Some(entry) = self.entries.get_mut(&hit) {
                (Arc::make_mut(&mut entry.event).id, entry.until) = row;
            }
        }
        self.set_upgrade(holder, false);
        if let Some(known) = self.keys.get_mut(&key) {
            known.holder = holder;
            known.others.retain(|hit| *hit != holder);
            known.others.push(other);
        }
    }

    /// The first of a swap was not held any more: everything stays in its place, and the person says so.
    pub(super) fn too_late(&mut self, person: EventId, machine: EventId) -> Option<Change> {
        let key = self.entries.get(&person)?.key?;
        self.exchange(key, machine, person);
        self.set_upgrade(person, true);
        // Never again: what is sent can't be amended.
        self.entries.remove(&machine);
        self.amend(&person)
    }

    /// What a hit's event says now.
    fn amend(&self, hit: &EventId) -> Option<Change> {
        self.entries.get(hit).map(|entry| Change::Amend(entry.amended()))
    }

    fn set_upgrade(&mut self, hit: EventId, upgrade: bool) {
        if let Some(entry) = self.entries.get_mut(&hit) {
            Arc::make_mut(&mut entry.event).data.upgrade = upgrade.then_some(true);
        }
    }

    fn expire(&mut self, now: Timestamp) {
        while self.order.front().is_some_and(|(until, _)| *until <= now) {
            self.forget_oldest_entry();
        }
        while self.key_order.front().is_some_and(|(until, _)| *until <= now) {
            self.forget_oldest_key();
        }
        let (entries, keys) = (self.entries.len(), self.keys.len());
        if is_roomy(entries, self.entries.capacity()) {
            self.entries.shrink_to(entries * 2);
            self.order.shrink_to(entries * 2);
        }
        if is_roomy(keys, self.keys.capacity()) {
            self.keys.shrink_to(keys * 2);
            self.key_order.shrink_to(keys * 2);
        }
    }

    fn forget_oldest_entry(&mut self) {
        if let Some((_, hit)) = self.order.pop_front() {
            self.entries.remove(&hit);
        }
    }

    fn forget_oldest_key(&mut self) {
        if let Some((until, key)) = self.key_order.pop_front()
            && self.keys.get(&key).is_some_and(|known| known.until == until)
        {
            self.keys.remove(&key);
        }
    }
}

fn is_person(event: &Event) -> bool {
    event.data.machine == Some(Machine::No)
}

#[cfg(test)]
#[path = "held_tests.rs"]
mod tests;
