//! Person or machine, as seen over time: bursts, sweeps, and the time of delivery.
//!
//! - Layer: decision
//! - Takes: facts, one by one: hits, with hashes in place of the client's network, and deliveries; the time.
//! - Gives: corrections of verdicts given before, each for one hit; a verdict only ever becomes surer.
//! - On failure: nothing can fail; what was forgotten is not corrected any more, and counted.
//! - Limits: `Limits`: hits and deliveries in all, hits of one message or client; the longest time that a rule looks over.
//! - See: `docs/bots.md`; `machine` judges what one request shows.
#![warn(clippy::indexing_slicing)]

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::rules::{Certainty, Pattern, Rules, Scope, Watched};
use crate::event::{EventId, Machine};
use crate::identity::{MessageId, Pseudonym, Timestamp};

/// How much is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Hits in all; about 200 bytes each. Default 100,000.
    pub hits: usize,
    /// Hits of one message, and of one client. Default 256.
    pub hits_per_key: usize,
    /// Deliveries, for hits that come after them; about 120 bytes each. Default 200,000.
    pub deliveries: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { hits: 100_000, hits_per_key: 256, deliveries: 200_000 }
    }
}

/// A click or an open, as far as others can tell something about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// The event that it became.
    pub id: EventId,
    /// When.
    pub time: Timestamp,
    /// `Click` or `Open`.
    pub scope: Scope,
    /// Of which message.
    pub message: MessageId,
    /// By whose copy; `None` where several recipients share one.
    pub recipient: Option<Pseudonym>,
    /// Which link.
    pub link: Option<u16>,
    /// The client's network, by `network_key`.
    pub network: u64,
    /// The client, by `client_key`.
    pub client: u64,
    /// The verdict on it alone.
    pub machine: Machine,
    /// Which rules wait for what is seen here: `machine::waiting`.
    pub waiting: u64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// A request.
    Hit(Hit),
    /// The next server took a message.
    Delivered {
        /// The message.
        message: MessageId,
        /// Whose copy.
        recipient: Option<Pseudonym>,
        /// When.
        time: Timestamp,
    },
}

/// A surer verdict on a hit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Correction {
    /// The hit.
    pub id: EventId,
    /// What it is.
    pub machine: Machine,
    /// The rule that says so.
    pub rule: Arc<str>,
}

/// A network by a hash whose key lives and dies with the process: /24 or /48.
pub fn network_key(client: IpAddr, hasher: &impl BuildHasher) -> u64 {
    hasher.hash_one(("network", prefix(client)))
}

/// A client: its network and how it names itself.
pub fn client_key(client: IpAddr, user_agent: &[u8], hasher: &impl BuildHasher) -> u64 {
    hasher.hash_one(("client", prefix(client), user_agent))
}

/// As much of an address as its owner can't easily change.
fn prefix(client: IpAddr) -> (u8, u64) {
    match client.to_canonical() {
        IpAddr::V4(address) => (4, u64::from(address.to_bits() >> 8)),
        IpAddr::V6(address) => (6, u64::try_from(address.to_bits() >> 80).unwrap_or(u64::MAX)),
    }
}

#[derive(Debug)]
struct WatchedRule {
    name: Arc<str>,
    scope: Scope,
    machine: Machine,
    watched: Watched,
}

#[derive(Debug)]
struct Seen {
    hit: Hit,
    /// The surest verdict so far.
    machine: Machine,
    /// Rules whose pattern was seen around it.
    patterned: u64,
}

/// A map by ids that only we make, and by keyed hashes: nobody can choose them, so a fast hash is enough.
pub(super) type Map<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;

/// Whether far more room is kept than is in use: a burst took it.
pub(super) const fn is_roomy(len: usize, capacity: usize) -> bool {
    capacity > 1_024 && len < capacity / 8
}

type Delivery = (MessageId, Option<Pseudonym>);

/// What was seen lately.
#[derive(Debug)]
pub struct Watch {
    limits: Limits,
    rules: Vec<WatchedRule>,
    /// How long a hit is of use.
    horizon: Duration,
    /// In the order in which they came; the first has the number `first`.
    hits: VecDeque<Seen>,
    first: u64,
    messages: Map<MessageId, VecDeque<u64>>,
    clients: Map<u64, VecDeque<u64>>,
    delivered: Map<Delivery, Timestamp>,
    deliveries: VecDeque<Delivery>,
    forgotten: u64,
}

impl Watch {
    /// Begins to watch for what these rules speak of; `hold` is how long events can be corrected.
    #[must_use]
    pub fn new(rules: &Rules, hold: Duration, limits: Limits) -> Self {
        let rule = |(rule, watched): (&super::rules::Rule, Watched)| WatchedRule {
            name: rule.name.as_str().into(),
            scope: rule.scope,
            machine: match rule.certainty {
                Certainty::Probable => Machine::Probable,
                Certainty::Certain => Machine::Certain,
            },
            watched,
        };
        let rules: Vec<WatchedRule> = rules.watched().map(rule).collect();
        let windows = rules.iter().filter_map(|rule| rule.watched.pattern.map(|(_, within)| within));
        let horizon = windows.fold(hold, Duration::max);
        Self {
            limits,
            rules,
            horizon,
            hits: VecDeque::new(),
            first: 0,
            messages: Map::default(),
            clients: Map::default(),
            delivered: Map::default(),
            deliveries: VecDeque::new(),
            forgotten: 0,
        }
    }

    /// The same, by other rules: hits are forgotten, since they were judged by the old ones; deliveries are kept.
    #[must_use]
    pub fn with_rules(self, rules: &Rules, hold: Duration) -> Self {
        let Self { limits, delivered, deliveries, forgotten, .. } = self;
        Self { delivered, deliveries, forgotten, ..Self::new(rules, hold, limits) }
    }

    /// How many hits were forgotten although they could still have counted, since the last time this was asked.
    pub const fn take_forgotten(&mut self) -> u64 {
        std::mem::replace(&mut self.forgotten, 0)
    }

    /// Takes in a fact; gives what it changes, the hit of the fact itself included.
    pub fn observe(&mut self, fact: Fact, now: Timestamp) -> Vec<Correction> {
        self.expire(now);
        let affected = match fact {
            Fact::Hit(hit) => self.hit(hit),
            Fact::Delivered { message, recipient, time } => self.delivered(message, recipient, time),
        };
        affected.into_iter().filter_map(|number| self.settle(number)).collect()
    }

    fn hit(&mut self, hit: Hit) -> Vec<u64> {
        if self.rules.is_empty() {
            return Vec::new();
        }
        let number = self.first + self.hits.len() as u64;
        let (message, client, machine) = (hit.message, hit.client, hit.machine);
        self.hits.push_back(Seen { hit, machine, patterned: 0 });
        let limit = self.limits.hits_per_key;
        self.forgotten += remember(self.messages.entry(message).or_default(), number, limit);
        self.forgotten += remember(self.clients.entry(client).or_default(), number, limit);
        if self.hits.len() > self.limits.hits {
            self.forgotten += 1;
            self.forget_first();
        }
        let mut affected = vec![number];
        for (number, bit) in self.patterned(number) {
            if let Some(seen) = at(&mut self.hits, self.first, number) {
                seen.patterned |= 1 << bit;
                affected.push(number);
            }
        }
        affected.sort_unstable();
        affected.dedup();
        affected
    }

    /// The hits that make patterns together with this one, each with the rule that speaks of it.
    fn patterned(&self, number: u64) -> Vec<(u64, usize)> {
        let mut patterned = Vec::new();
        let Some(last) = self.seen(number) else { return patterned };
        let (client, message) = (self.clients.get(&last.hit.client), self.messages.get(&last.hit.message));
        for (bit, rule) in self.rules.iter().enumerate() {
            let list = match rule.watched.pattern {
                Some((Pattern::Recipients(_), _)) => client,
                Some((Pattern::Links(_) | Pattern::Networks(_), _)) => message,
                None => None,
            };
            if let Some(list) = list {
                self.together(number, bit, list, &mut patterned);
            }
        }
        patterned
    }

    /// Adds the hits that make a pattern together with this one and are not known for it yet; none if they are too few.
    ///
    /// A hit that brings nothing new ends the search early, and so does one that is known for the pattern: those before
    /// it are, too.
    fn together(&self, number: u64, bit: usize, list: &VecDeque<u64>, patterned: &mut Vec<(u64, usize)>) {
        let (Some(last), Some(rule)) = (self.seen(number), self.rules.get(bit)) else { return };
        let Some((pattern, within)) = rule.watched.pattern else { return };
        let Some(value) = value_of(&last.hit, &last.hit, rule.scope, pattern) else { return };
        let since = last.hit.time.minus(within);
        let others = list.iter().rev().filter_map(|number| Some((*number, self.seen(*number)?)));
        let counted = others.take_while(|(_, seen)| seen.hit.time >= since).filter_map(|(number, seen)| {
            Some((number, seen, value_of(&seen.hit, &last.hit, rule.scope, pattern)?))
        });
        let (Pattern::Links(least) | Pattern::Networks(least) | Pattern::Recipients(least)) = pattern;
        let mut others = counted.clone().filter(|(other, ..)| *other != number).peekable();
        let is_known =
            |(_, seen, other): &(u64, &Seen, u128)| *other == value && seen.patterned & (1 << bit) == 0;
        if others.peek().is_none_or(is_known) && least > 1 {
            return;
        }
        let mut different = Vec::with_capacity(least);
        different.push(value);
        for (_, _, other) in others {
            if different.len() >= least {
                break;
            }
            if !different.contains(&other) {
                different.push(other);
            }
        }
        if different.len() < least {
            return;
        }
        let new = counted.take_while(|(_, seen, _)| seen.patterned & (1 << bit) == 0);
        patterned.extend(new.map(|(number, ..)| (number, bit)));
    }

    fn delivered(&mut self, message: MessageId, recipient: Option<Pseudonym>, time: Timestamp) -> Vec<u64> {
        // The first delivery counts: of the copy, and of the message where a token is everybody's.
        for key in [(message, None), (message, recipient)] {
            if let std::collections::hash_map::Entry::Vacant(entry) = self.delivered.entry(key) {
                entry.insert(time);
                self.deliveries.push_back(key);
            }
        }
        while self.deliveries.len() > self.limits.deliveries {
            if let Some(oldest) = self.deliveries.pop_front() {
                self.delivered.remove(&oldest);
            }
        }
        self.messages.get(&message).into_iter().flatten().copied().collect()
    }

    /// Gives a hit the surest verdict that a rule now has for it.
    fn settle(&mut self, number: u64) -> Option<Correction> {
        let seen = self.seen(number)?;
        let delivered = self.delivered.get(&(seen.hit.message, seen.hit.recipient)).copied();
        let mut best: Option<&WatchedRule> = None;
        for (bit, rule) in self.rules.iter().enumerate() {
            let waits = seen.hit.waiting & (1 << bit) != 0;
            let patterned = rule.watched.pattern.is_none() || seen.patterned & (1 << bit) != 0;
            let surer = rank(rule.machine) > best.map_or(rank(seen.machine), |best| rank(best.machine));
            if waits && patterned && surer && is_in_time(rule.watched, seen.hit.time, delivered) {
                best = Some(rule);
            }
        }
        let best = best?;
        let (machine, rule) = (best.machine, Arc::clone(&best.name));
        let seen = at(&mut self.hits, self.first, number)?;
        seen.machine = machine;
        Some(Correction { id: seen.hit.id, machine, rule })
    }

    fn seen(&self, number: u64) -> Option<&Seen> {
        self.hits.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    fn expire(&mut self, now: Timestamp) {
        while self.hits.front().is_some_and(|seen| now.since(seen.hit.time) > self.horizon) {
            self.forget_first();
        }
        let len = self.hits.len();
        if is_roomy(len, self.hits.capacity()) {
            self.hits.shrink_to(len * 2);
            self.messages.shrink_to(self.messages.len() * 2);
            self.clients.shrink_to(self.clients.len() * 2);
        }
    }

    fn forget_first(&mut self) {
        let Some(seen) = self.hits.pop_front() else { return };
        let number = self.first;
        self.first += 1;
        drop_first(&mut self.messages, seen.hit.message, number);
        drop_first(&mut self.clients, seen.hit.client, number);
    }
}

fn at(hits: &mut VecDeque<Seen>, first: u64, number: u64) -> Option<&mut Seen> {
    hits.get_mut(usize::try_from(number.checked_sub(first)?).ok()?)
}

/// Adds to a list that has a limit; says how many it lost.
fn remember(list: &mut VecDeque<u64>, number: u64, limit: usize) -> u64 {
    list.push_back(number);
    let lost = list.len() > limit;
    if lost {
        list.pop_front();
    }
    u64::from(lost)
}

/// Takes the oldest hit out of a list, in which it is the first or not any more.
fn drop_first<K: std::hash::Hash + Eq>(lists: &mut Map<K, VecDeque<u64>>, key: K, number: u64) {
    if let Some(list) = lists.get_mut(&key) {
        if list.front() == Some(&number) {
            list.pop_front();
        }
        if list.is_empty() {
            lists.remove(&key);
        }
    }
}

/// What a hit adds to a pattern that the last one is a part of; nothing if it is no part of it.
fn value_of(hit: &Hit, last: &Hit, scope: Scope, pattern: Pattern) -> Option<u128> {
    // What is certainly a machine by itself explains itself, and says nothing of others.
    if !scope.covers(hit.scope) || hit.machine == Machine::Certain {
        return None;
    }
    match pattern {
        Pattern::Links(_) if same_reader(hit, last) => hit.link.map(u128::from),
        Pattern::Networks(_) if hit.recipient.is_some() && hit.recipient == last.recipient => {
            Some(hit.network.into())
        }
        Pattern::Recipients(_) => hit.recipient.map(number_of),
        Pattern::Links(_) | Pattern::Networks(_) => None,
    }
}

/// Whether two hits of one message have one reader, as far as is known: by its token or, where it is shared, the client.
fn same_reader(one: &Hit, other: &Hit) -> bool {
    one.recipient == other.recipient && (one.recipient.is_some() || one.client == other.client)
}

fn number_of(recipient: Pseudonym) -> u128 {
    recipient.as_bytes().iter().fold(0, |number, byte| (number << 8) | u128::from(*byte))
}

const fn rank(machine: Machine) -> u8 {
    match machine {
        Machine::No => 0,
        Machine::Probable => 1,
        Machine::Certain => 2,
    }
}

/// Whether a hit stands to the delivery of its message as the rule wants; an unknown one fits no rule that asks.
fn is_in_time(watched: Watched, time: Timestamp, delivered: Option<Timestamp>) -> bool {
    let after = |within: Duration| delivered.is_some_and(|at| time >= at && time.since(at) < within);
    watched.after_delivery.is_none_or(after)
        && (!watched.before_delivery || delivered.is_some_and(|at| time < at))
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
