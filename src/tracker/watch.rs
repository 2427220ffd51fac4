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
    /// How it names itself, by `agent_key`.
    pub agent: u64,
    /// Whether network and client are those of who asked, and not of a proxy that named nobody.
    pub is_client_named: bool,
    /// Whether it asked for the head of the answer only.
    pub is_head: bool,
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

/// How a client names itself.
pub fn agent_key(user_agent: &[u8], hasher: &impl BuildHasher) -> u64 {
    hasher.hash_one(("agent", user_agent))
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
    /// How it is written: the same rule is known by it.
    written: Arc<str>,
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
    /// Those whose pattern was whole when it came.
    completed: u64,
    /// How long before it the same client asked for the head of the same, the last time.
    since_head: Option<Duration>,
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
    /// How many of them asked for the head only.
    heads: usize,
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
            written: Arc::clone(&rule.written),
            scope: rule.scope,
            machine: match rule.certainty {
                Certainty::Probable => Machine::Probable,
                Certainty::Certain => Machine::Certain,
            },
            watched,
        };
        let rules: Vec<WatchedRule> = rules.watched().map(rule).collect();
        let patterns = rules.iter().filter_map(|rule| rule.watched.pattern.map(|(_, within)| within));
        let windows = patterns.chain(rules.iter().filter_map(|rule| rule.watched.after_head));
        let horizon = windows.fold(hold, Duration::max);
        Self {
            limits,
            rules,
            horizon,
            hits: VecDeque::new(),
            heads: 0,
            first: 0,
            messages: Map::default(),
            clients: Map::default(),
            delivered: Map::default(),
            deliveries: VecDeque::new(),
            forgotten: 0,
        }
    }

    /// The same, by other rules. Of hits from before, only what rules say that are the same as before is known; for the
    /// others they count, and are not judged again.
    #[must_use]
    pub fn with_rules(mut self, rules: &Rules, hold: Duration) -> Self {
        let Self { rules, horizon, .. } = Self::new(rules, hold, self.limits);
        let before = |rule: &WatchedRule| self.rules.iter().position(|old| old.written == rule.written);
        let places: Vec<Option<usize>> = rules.iter().map(before).collect();
        let moved = |bits: u64| {
            let is_set = |before: &Option<usize>| before.is_some_and(|bit| bits & (1 << bit) != 0);
            let set = places.iter().enumerate().filter(|(_, before)| is_set(before));
            set.fold(0, |bits, (bit, _)| bits | (1 << bit))
        };
        for seen in &mut self.hits {
            for bits in [&mut seen.hit.waiting, &mut seen.patterned, &mut seen.completed] {
                *bits = moved(*bits);
            }
        }
        Self { rules, horizon, ..self }
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
        let since_head = self.since_head(&hit);
        self.heads += usize::from(hit.is_head);
        self.hits.push_back(Seen { hit, machine, patterned: 0, completed: 0, since_head });
        let limit = self.limits.hits_per_key;
        self.forgotten += remember(self.messages.entry(message).or_default(), number, limit);
        self.forgotten += remember(self.clients.entry(client).or_default(), number, limit);
        if self.hits.len() > self.limits.hits {
            self.forgotten += 1;
            self.forget_first();
        }
        let mut affected = vec![number];
        for (other, bit) in self.patterned(number) {
            if let Some(seen) = at(&mut self.hits, self.first, other) {
                seen.patterned |= 1 << bit;
                seen.completed |= u64::from(other == number) << bit;
                affected.push(other);
            }
        }
        affected.sort_unstable();
        affected.dedup();
        affected
    }

    /// How long ago the client of a hit asked for the head of the same, if a rule wants to know.
    fn since_head(&self, hit: &Hit) -> Option<Duration> {
        if self.heads == 0 {
            return None;
        }
        let within = self.rules.iter().filter_map(|rule| rule.watched.after_head).max()?;
        let since = hit.time.minus(within);
        let others = self.messages.get(&hit.message)?.iter().rev().filter_map(|number| self.seen(*number));
        let is_same = |other: &Hit| {
            let same = (other.client, other.recipient, other.scope, other.link)
                == (hit.client, hit.recipient, hit.scope, hit.link);
            same && other.is_head && other.is_client_named
        };
        let mut others = others.map(|seen| &seen.hit).take_while(|other| other.time >= since);
        others.find(|other| is_same(other)).map(|other| hit.time.since(other.time))
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
    /// Where those that are like it are enough, the others are no part of it: a reader may have come in between. A hit that
    /// brings nothing new ends the search early.
    fn together(&self, number: u64, bit: usize, list: &VecDeque<u64>, patterned: &mut Vec<(u64, usize)>) {
        let (Some(last), Some(rule)) = (self.seen(number), self.rules.get(bit)) else { return };
        let Some((pattern, within)) = rule.watched.pattern else { return };
        let Some(value) = value_of(last, &last.hit, rule.scope, pattern) else { return };
        let since = last.hit.time.minus(within);
        let others = list.iter().rev().filter_map(|number| Some((*number, self.seen(*number)?)));
        let counted = others.take_while(|(_, seen)| seen.hit.time >= since).filter_map(|(number, seen)| {
            Some((number, seen, value_of(seen, &last.hit, rule.scope, pattern)?))
        });
        let (Pattern::Links(least) | Pattern::Networks(least) | Pattern::Recipients(least)) = pattern;
        let mut others = counted.clone().filter(|(other, ..)| *other != number).peekable();
        // What counts for this client counted for it then, too.
        let is_known = |(_, seen, other): &(u64, &Seen, u128)| {
            *other == value && seen.patterned & (1 << bit) == 0 && seen.hit.client == last.hit.client
        };
        if others.peek().is_none_or(is_known) && least > 1 {
            return;
        }
        let (mut different, mut alike) = (vec![value], vec![value]);
        for (_, seen, other) in others {
            if different.len() < least && !different.contains(&other) {
                different.push(other);
            }
            if is_like(&seen.hit, &last.hit) && !alike.contains(&other) {
                alike.push(other);
            }
            if alike.len() >= least {
                break;
            }
        }
        if different.len() < least {
            return;
        }
        let is_part = |seen: &Seen| alike.len() < least || is_like(&seen.hit, &last.hit);
        let is_new = |seen: &Seen| seen.patterned & (1 << bit) == 0;
        // Hits of one client are all alike: those before one that is known for the pattern are, too.
        let one_client = matches!(pattern, Pattern::Recipients(_));
        // When one of this client completed the pattern, all that were before it and are like it were told.
        let has_told = |seen: &Seen| seen.completed & (1 << bit) != 0 && seen.hit.client == last.hit.client;
        let counted =
            counted.take_while(|(_, seen, _)| if one_client { is_new(seen) } else { !has_told(seen) });
        let new = counted.filter(|(_, seen, _)| is_new(seen) && is_part(seen));
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
            let after_head =
                rule.watched.after_head.is_none_or(|within| seen.since_head.is_some_and(|ago| ago < within));
            let timely = after_head && is_in_time(rule.watched, seen.hit.time, delivered);
            if waits && patterned && surer && timely {
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
        self.heads = self.heads.saturating_sub(usize::from(seen.hit.is_head));
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
fn value_of(seen: &Seen, last: &Hit, scope: Scope, pattern: Pattern) -> Option<u128> {
    let hit = &seen.hit;
    // What is certainly a machine by itself explains itself, and says nothing of others.
    if !scope.covers(hit.scope) || hit.machine == Machine::Certain {
        return None;
    }
    // What others made certain says something of what is like it, and nothing of the reader who comes after it.
    if seen.machine == Machine::Certain && !is_like(hit, last) {
        return None;
    }
    match pattern {
        Pattern::Links(_) if same_reader(hit, last) => hit.link.map(u128::from),
        // Who came by a proxy that named nobody has no network, and nobody can say what else was theirs.
        Pattern::Networks(_) | Pattern::Recipients(_) if !hit.is_client_named => None,
        Pattern::Networks(_) if hit.recipient.is_some() && hit.recipient == last.recipient => {
            Some(hit.network.into())
        }
        Pattern::Recipients(_) => hit.recipient.map(number_of),
        Pattern::Links(_) | Pattern::Networks(_) => None,
    }
}

/// Whether two hits may come from one machine, as far as it shows: by its network or by how it names itself.
fn is_like(one: &Hit, other: &Hit) -> bool {
    one.agent == other.agent || (one.network == other.network && one.is_client_named)
}

/// Whether two hits of one message have one reader, as far as is known: by its token or, where it is shared, the client.
fn same_reader(one: &Hit, other: &Hit) -> bool {
    let is_client = || one.client == other.client && one.is_client_named;
    one.recipient == other.recipient && (one.recipient.is_some() || is_client())
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
