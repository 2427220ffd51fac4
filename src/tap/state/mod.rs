//! What the tap remembers of messages under way.
//!
//! - Layer: decision
//! - Takes: facts of the log, by origin (host and instance) and queue id.
//! - Gives: the message behind a queue id; itself in a form that goes into the checkpoint.
//! - On failure: over the limit the oldest messages are forgotten, and counted.
//! - Limits: `max_tracked` messages, at about 330 bytes each; 60 seconds after `removed` a message is forgotten.
//! - See: lines of several daemons interleave, so `removed` need not be the last one.
//!
//! An instance is a `syslog_name` up to its first slash: `postfix/submission`, and Debian's `postfix/relay`, are daemons of
//! `postfix` that were given a name of their own, while `postfix-out` is another instance. Where a daemon has a name of
//! quite another form, the queue id decides among the instances of its host: no two messages of one host have the same at
//! the same time, unless their queues are on different file systems.

mod saved;

pub(super) use saved::Saved;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use memchr::memchr;
use serde::{Deserialize, Serialize};

use super::intern::Interned;
use super::queue_id::QueueId;
use super::waiting::WaitingList;
use crate::identity::{CampaignId, MessageId, Timestamp};

/// How long after its removal a message is kept for late lines.
const KEEP_REMOVED: Duration = Duration::from_secs(60);

/// A message that is or was remembered: no later one has the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    queue_id: QueueId,
    serial: u64,
}

/// A message under way.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Message {
    /// Counts messages in the order in which they came.
    serial: u64,
    /// Where its queue is.
    origin: Arc<Origin>,
    /// Whose reference was logged and verified.
    pub(super) id: Option<MessageId>,
    /// Its campaign.
    pub(super) campaign: Option<Arc<CampaignId>>,
    /// The domain of its envelope sender.
    pub(super) sender_domain: Option<Arc<str>>,
    /// When `removed` was logged.
    removed: Option<Timestamp>,
    /// Whether qmgr(8) has it: cleanup(8) has logged all its headers then.
    pub(super) is_active: bool,
    /// The recipients that are still deferred.
    pub(super) waiting: WaitingList,
    /// Another one with the same queue id, elsewhere.
    next: Option<Box<Message>>,
}

/// All messages under way.
#[derive(Debug)]
pub(super) struct State {
    max_tracked: usize,
    next_serial: u64,
    len: usize,
    /// In boxes: a table of a million is moved when it grows.
    messages: HashMap<QueueId, Box<Message>>,
    removed: VecDeque<(Timestamp, Key)>,
    origins: Interned<Origin>,
    domains: Interned<str>,
    campaigns: Interned<CampaignId>,
    pub(super) evicted: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Origin {
    host: Vec<u8>,
    instance: Vec<u8>,
}

/// The instance of a `syslog_name`.
pub(super) fn instance_of(syslog_name: &[u8]) -> &[u8] {
    let end = memchr(b'/', syslog_name).unwrap_or(syslog_name.len());
    syslog_name.get(..end).unwrap_or(syslog_name)
}

impl State {
    pub(super) fn new(max_tracked: usize) -> Self {
        Self {
            max_tracked: max_tracked.max(1),
            next_serial: 0,
            len: 0,
            messages: HashMap::new(),
            removed: VecDeque::new(),
            origins: Interned::default(),
            domains: Interned::default(),
            campaigns: Interned::default(),
            evicted: 0,
        }
    }

    /// Host and instance of those that have a reference.
    pub(super) fn origins_with_id(&self) -> HashSet<(&[u8], &[u8])> {
        let chains = self.messages.values().map(Box::as_ref);
        let all = chains.flat_map(|first| std::iter::successors(Some(first), |m| m.next.as_deref()));
        let with_id = all.filter(|message| message.id.is_some());
        with_id.map(|message| (message.origin.host.as_slice(), message.origin.instance.as_slice())).collect()
    }

    /// How many messages are remembered.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// The message that has this queue id in this instance, or else in another one of its host.
    pub(super) fn key(&self, host: &[u8], syslog_name: &[u8], queue_id: QueueId) -> Option<Key> {
        self.own_key(host, syslog_name, queue_id)
            .or_else(|| self.find(queue_id, |message| message.origin.host == host))
    }

    /// The message that has this queue id in this very instance.
    pub(super) fn own_key(&self, host: &[u8], syslog_name: &[u8], queue_id: QueueId) -> Option<Key> {
        self.find(queue_id, |message| message.is_of(host, syslog_name))
    }

    fn find(&self, queue_id: QueueId, is_it: impl Fn(&Message) -> bool) -> Option<Key> {
        let found = self.all_of(queue_id).find(|message| is_it(message))?;
        Some(Key { queue_id, serial: found.serial })
    }

    /// All messages with a queue id: one, but for chance.
    fn all_of(&self, queue_id: QueueId) -> impl Iterator<Item = &Message> {
        let first = self.messages.get(&queue_id).map(Box::as_ref);
        std::iter::successors(first, |message| message.next.as_deref())
    }

    /// The message, if it is remembered.
    pub(super) fn message(&mut self, key: Key) -> Option<&mut Message> {
        let mut at = self.messages.get_mut(&key.queue_id).map(Box::as_mut)?;
        while at.serial != key.serial {
            at = at.next.as_deref_mut()?;
        }
        Some(at)
    }

    /// The message, begun if it is not remembered, if it was removed before, or if it is known to be another one than
    /// `id`: then a new one took its queue id.
    pub(super) fn begin(
        &mut self,
        host: &[u8],
        syslog_name: &[u8],
        queue_id: QueueId,
        id: Option<MessageId>,
    ) -> Key {
        let is_own = |message: &Message| message.is_of(host, syslog_name);
        if let Some(key) = self.key(host, syslog_name, queue_id)
            && let Some(message) = self.message(key)
        {
            let is_another = id.is_some() && message.id.is_some() && message.id != id;
            if message.removed.is_none() && !is_another {
                return key;
            }
            if is_own(message) {
                self.forget(key);
            }
        }
        self.insert(host, syslog_name, queue_id)
    }

    fn insert(&mut self, host: &[u8], syslog_name: &[u8], queue_id: QueueId) -> Key {
        if self.len >= self.max_tracked {
            self.evict();
        }
        let origin = Origin { host: host.to_vec(), instance: instance_of(syslog_name).to_vec() };
        let origin = self.origins.share(&origin, || Arc::new(origin.clone()));
        self.put(queue_id, |serial| Message {
            serial,
            origin,
            id: None,
            campaign: None,
            sender_domain: None,
            removed: None,
            is_active: false,
            waiting: WaitingList::default(),
            next: None,
        })
    }

    fn put(&mut self, queue_id: QueueId, make: impl FnOnce(u64) -> Message) -> Key {
        let serial = self.next_serial;
        self.next_serial += 1;
        self.len += 1;
        let mut message = Box::new(make(serial));
        match self.messages.entry(queue_id) {
            Entry::Vacant(entry) => {
                entry.insert(message);
            }
            Entry::Occupied(mut entry) => {
                message.next = entry.get_mut().next.take();
                entry.get_mut().next = Some(message);
            }
        }
        Key { queue_id, serial }
    }

    /// The message that had this queue id on the same host, in any instance; of a long queue id also on any other host.
    pub(super) fn message_of(&self, host: &[u8], queue_id: QueueId) -> Option<Key> {
        let here = self.find(queue_id, |message| message.origin.host == host);
        here.or_else(|| queue_id.arrival().and_then(|_| self.find(queue_id, |_| true)))
    }

    /// Begins a message that another one goes on as; `with_waiting` when it is the same in all its recipients.
    pub(super) fn go_on(
        &mut self,
        from: Key,
        host: &[u8],
        syslog_name: &[u8],
        queue_id: QueueId,
        with_waiting: bool,
    ) {
        let Some(before) = self.message(from) else { return };
        let waiting = if with_waiting { std::mem::take(&mut before.waiting) } else { WaitingList::default() };
        let (id, campaign, sender_domain) =
            (before.id, before.campaign.clone(), before.sender_domain.clone());
        let key = self.begin(host, syslog_name, queue_id, None);
        if let Some(message) = self.message(key) {
            message.id = message.id.or(id);
            message.campaign = message.campaign.take().or(campaign);
            message.sender_domain = message.sender_domain.take().or(sender_domain);
            if !waiting.is_empty() {
                message.waiting = waiting;
            }
        }
    }

    pub(super) fn forget(&mut self, key: Key) {
        let Entry::Occupied(mut entry) = self.messages.entry(key.queue_id) else { return };
        let mut dropped = 0;
        let is_left = retain(entry.get_mut(), &mut |message| {
            let stays = message.serial != key.serial;
            dropped += usize::from(!stays);
            stays
        });
        if !is_left {
            entry.remove();
        }
        self.len -= dropped;
    }

    /// Forgets a message that has left the queue: its queue id is in use again.
    pub(super) fn forget_if_removed(&mut self, key: Key) {
        if self.message(key).is_some_and(|message| message.removed.is_some()) {
            self.forget(key);
        }
    }

    /// Notes that a message left the queue at `time` of the log, and forgets those that left long before.
    pub(super) fn removed(&mut self, key: Key, time: Timestamp) {
        if let Some(message) = self.message(key) {
            message.removed = Some(time);
            self.removed.push_back((time, key));
        }
        while let Some((since, key)) = self.removed.front().copied() {
            if since.plus(KEEP_REMOVED) >= time {
                break;
            }
            self.removed.pop_front();
            self.forget(key);
        }
    }

    /// Whether another queue id of any origin has the same message: it was queued anew, by a content filter or another
    /// instance.
    pub(super) fn is_also_queued_as(&self, key: Key, queue_id: QueueId, id: MessageId) -> bool {
        self.all_of(queue_id).any(|message| message.serial != key.serial && message.id == Some(id))
    }

    /// One copy of a domain, shared by all messages that have it.
    pub(super) fn domain(&mut self, domain: &str) -> Arc<str> {
        self.domains.share(domain, || domain.into())
    }

    /// One copy of a campaign, shared likewise.
    pub(super) fn campaign(&mut self, campaign: &CampaignId) -> Arc<CampaignId> {
        self.campaigns.share(campaign, || Arc::new(campaign.clone()))
    }

    /// Forgets the oldest part of all messages at once, so that each costs little.
    fn evict(&mut self) {
        let chains = self.messages.values().map(Box::as_ref);
        let all = chains.flat_map(|first| std::iter::successors(Some(first), |m| m.next.as_deref()));
        let mut serials: Vec<u64> = all.map(|message| message.serial).collect();
        let oldest = (serials.len() / 64).min(serials.len().saturating_sub(1));
        let (_, limit, _) = serials.select_nth_unstable(oldest);
        let limit = *limit;
        let mut dropped = 0;
        self.messages.retain(|_, first| {
            retain(first, &mut |message| {
                let stays = message.serial > limit;
                dropped += usize::from(!stays);
                stays
            })
        });
        self.len -= dropped;
        self.evicted += dropped as u64;
    }
}

impl Message {
    fn is_of(&self, host: &[u8], syslog_name: &[u8]) -> bool {
        self.origin.host == host && self.origin.instance == instance_of(syslog_name)
    }
}

/// Keeps some messages of those with one queue id; `false` if none is left.
fn retain(first: &mut Box<Message>, keep: &mut impl FnMut(&Message) -> bool) -> bool {
    while !keep(first) {
        match first.next.take() {
            Some(next) => *first = next,
            None => return false,
        }
    }
    let mut at = first;
    while let Some(mut next) = at.next.take() {
        if keep(&next) {
            at = at.next.insert(next);
        } else {
            at.next = next.next.take();
        }
    }
    true
}

#[cfg(test)]
mod tests;
