//! What the tap remembers of messages under way.
//!
//! - Layer: decision
//! - Takes: facts of the log, by origin (host and instance) and queue id.
//! - Gives: the message behind a queue id; itself in a form that goes into the checkpoint.
//! - On failure: over the limit the oldest messages are forgotten, and counted.
//! - Limits: `max_tracked` messages, at about 350 bytes each; 60 seconds after `removed` a message is forgotten.
//! - See: lines of several daemons interleave, so `removed` need not be the last one.
//!
//! An instance is a `syslog_name` up to its first slash: `postfix/submission`, and Debian's `postfix/relay`, are daemons of
//! `postfix` that were given a name of their own, while `postfix-out` is another instance. Where a daemon has a name of
//! quite another form, the queue id decides among the instances of its host: no two messages of one host have the same at
//! the same time, unless their queues are on different file systems.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
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
fn instance_of(syslog_name: &[u8]) -> &[u8] {
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

    /// How many of them have a reference.
    pub(super) fn with_id(&self) -> u64 {
        let chains = self.messages.values().map(Box::as_ref);
        let all = chains.flat_map(|first| std::iter::successors(Some(first), |m| m.next.as_deref()));
        all.filter(|message| message.id.is_some()).count() as u64
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

/// The state as it stands in the checkpoint.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Saved {
    origins: Vec<Origin>,
    messages: Vec<SavedMessage>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct SavedMessage {
    /// Which of `origins`.
    origin: usize,
    queue_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<MessageId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    campaign: Option<CampaignId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sender_domain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    active: bool,
    #[serde(default, skip_serializing_if = "WaitingList::is_empty")]
    waiting: WaitingList,
}

impl State {
    /// The state for the checkpoint, in the order in which the messages came.
    pub(super) fn save(&self) -> Saved {
        let chains = self.messages.iter();
        let mut messages: Vec<(&QueueId, &Message)> = chains
            .flat_map(|(queue_id, first)| {
                let chain = std::iter::successors(Some(first.as_ref()), |message| message.next.as_deref());
                chain.map(move |message| (queue_id, message))
            })
            .collect();
        messages.sort_unstable_by_key(|(_, message)| message.serial);
        let mut origins: Vec<Origin> = Vec::new();
        let mut indices: HashMap<&Origin, usize> = HashMap::new();
        let messages = messages
            .into_iter()
            .map(|(queue_id, message)| {
                let origin = *indices.entry(&message.origin).or_insert_with(|| {
                    origins.push(message.origin.as_ref().clone());
                    origins.len() - 1
                });
                SavedMessage {
                    origin,
                    queue_id: queue_id.to_string(),
                    id: message.id,
                    campaign: message.campaign.as_deref().cloned(),
                    sender_domain: message.sender_domain.as_deref().map(str::to_owned),
                    removed: message.removed,
                    active: message.is_active,
                    waiting: message.waiting.clone(),
                }
            })
            .collect();
        Saved { origins, messages }
    }

    /// The state of a checkpoint. Messages over the limit are left out, and counted.
    pub(super) fn restore(saved: Saved, max_tracked: usize) -> Self {
        let mut state = Self::new(max_tracked);
        // Earlier versions saved whole syslog_names.
        let of_instance = |origin: Origin| {
            let instance = instance_of(&origin.instance).to_vec();
            Arc::new(Origin { instance, ..origin })
        };
        let origins: Vec<Arc<Origin>> = saved.origins.into_iter().map(of_instance).collect();
        let excess = saved.messages.len().saturating_sub(state.max_tracked);
        state.evicted = excess as u64;
        for message in saved.messages.into_iter().skip(excess) {
            let Some(queue_id) = QueueId::parse(message.queue_id.as_bytes()) else { continue };
            let Some(origin) = origins.get(message.origin).cloned() else { continue };
            let origin = state.origins.share(origin.as_ref(), || origin.clone());
            let sender_domain = message.sender_domain.map(|domain| state.domain(&domain));
            let campaign = message.campaign.map(|campaign| state.campaign(&campaign));
            let (id, removed, waiting) = (message.id, message.removed, message.waiting);
            let is_active = message.active;
            let key = state.put(queue_id, |serial| Message {
                serial,
                origin,
                id,
                campaign,
                sender_domain,
                removed,
                is_active,
                waiting,
                next: None,
            });
            if let Some(time) = removed {
                state.removed.push_back((time, key));
            }
        }
        state.removed.make_contiguous().sort_unstable_by_key(|(time, key)| (*time, key.serial));
        state
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::delivery::EnhancedCode;
    use crate::event::BounceClass;
    use crate::identity::Pseudonym;
    use crate::tap::waiting::Waiting;

    fn id(text: &str) -> QueueId {
        QueueId::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn the_oldest_are_forgotten_over_the_limit() {
        let mut state = State::new(100);
        for number in 0..1_000 {
            state.begin(b"mx", b"postfix", id(&format!("A{number:06}")), None);
            assert!(state.len() <= 100);
        }
        assert_eq!(state.evicted + state.len() as u64, 1_000);
        assert!(state.key(b"mx", b"postfix", id("A000999")).and_then(|key| state.message(key)).is_some());
    }

    #[test]
    fn any_number_of_hosts_comes_and_goes() {
        let mut state = State::new(100);
        for number in 0..100_000_u64 {
            let host = format!("host{number}");
            let key = state.begin(host.as_bytes(), b"postfix", id(&format!("A{number:06}")), None);
            state.removed(key, Timestamp::from_secs(number * 61));
        }
        assert_eq!((state.evicted, state.len()), (0, 1));
    }

    #[test]
    fn removed_messages_are_kept_a_minute_and_a_used_again_id_is_not_theirs() {
        let mut state = State::new(100);
        let at = Timestamp::from_secs;
        let a = state.begin(b"mx", b"postfix", id("AAAAAA"), None);
        let b = state.begin(b"mx", b"postfix", id("BBBBBB"), None);
        state.removed(a, at(100));
        state.removed(b, at(150));
        assert_eq!(state.len(), 2);
        state.removed(b, at(161));
        assert_eq!(state.len(), 1, "the first one's minute is over");
        let again = state.begin(b"mx", b"postfix", id("BBBBBB"), None);
        state.message(again).unwrap().id = Some(MessageId::from([1; 10]));
        state.removed(a, at(1_000));
        assert_eq!(
            state.message(again).unwrap().id,
            Some(MessageId::from([1; 10])),
            "a new message of the same id stays"
        );
        assert!(state.message(b).is_none());
    }

    #[test]
    fn one_queue_id_in_two_instances_is_two_messages() {
        let mut state = State::new(100);
        let (first, second) = (MessageId::from([1; 10]), MessageId::from([2; 10]));
        for (host, name, message) in [(b"mx", &b"postfix"[..], first), (b"mx", b"postfix-out/relay", second)]
        {
            let key = state.begin(host, name, id("AAAAAA"), Some(message));
            state.message(key).unwrap().id = Some(message);
        }
        let mut of = |name: &[u8]| {
            let key = state.key(b"mx", name, id("AAAAAA")).unwrap();
            state.message(key).unwrap().id
        };
        assert_eq!(of(b"postfix/relay"), Some(first));
        assert_eq!(of(b"postfix-out"), Some(second));
        assert_eq!(state.key(b"gate", b"postfix", id("AAAAAA")), None);
        let key = state.key(b"mx", b"postfix", id("AAAAAA")).unwrap();
        state.forget(key);
        assert_eq!((state.len(), state.own_key(b"mx", b"postfix", id("AAAAAA"))), (1, None));
        assert!(state.key(b"mx", b"reinject", id("AAAAAA")).is_some(), "the only one on this host");
    }

    #[test]
    fn what_was_saved_comes_back() {
        let mut state = State::new(10);
        let domain = state.domain("example.org");
        let waiting = Waiting {
            attempts: 3,
            class: BounceClass::Soft,
            dsn: EnhancedCode::parse(b"4.2.1"),
            smtp_code: Some(450),
            reason: Some("the mailbox takes no mail now".into()),
            provider: Some("gmail".into()),
        };
        let campaign = state.campaign(&"spring".parse().unwrap());
        let key = state.begin(b"m\xffx", b"postfix/relay", id("AAAAAA"), None);
        let message = state.message(key).unwrap();
        message.id = Some(MessageId::from([7; 10]));
        message.campaign = Some(campaign);
        message.sender_domain = Some(domain);
        message.waiting.insert(Pseudonym::from([2; 12]), Pseudonym::from([1; 12]), waiting);
        state.begin(b"gate", b"postfix", id("AAAAAA"), None);
        let saved = state.save();
        let json = serde_json::to_string(&saved).unwrap();
        let again = State::restore(serde_json::from_str(&json).unwrap(), 10);
        assert_eq!(again.messages, state.messages);
        assert_eq!(again.save(), saved);
    }
}
