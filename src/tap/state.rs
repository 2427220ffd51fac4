//! What the tap remembers of messages under way.
//!
//! - Layer: decision
//! - Takes: facts of the log, by origin (host and `syslog_name`) and queue id.
//! - Gives: the message behind a queue id; itself in a form that goes into the checkpoint.
//! - On failure: over the limit the oldest messages are forgotten, and counted.
//! - Limits: `max_tracked` messages, at about 300 bytes each; 60 seconds after `removed` a message is forgotten.
//! - See: lines of several daemons interleave, so `removed` need not be the last one.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::queue_id::QueueId;
use super::waiting::WaitingList;
use crate::identity::{CampaignId, MessageId, Timestamp};

/// How long after its removal a message is kept for late lines.
const KEEP_REMOVED: Duration = Duration::from_secs(60);
/// More hosts and instances than any log has.
const MAX_ORIGINS: usize = 4_096;

/// A queue id of one origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    origin: u16,
    queue_id: QueueId,
}

/// A message under way.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Message {
    /// Counts messages in the order in which they came.
    serial: u64,
    /// Whose reference was logged and verified.
    pub(super) id: Option<MessageId>,
    /// Its campaign.
    pub(super) campaign: Option<Arc<CampaignId>>,
    /// The domain of its envelope sender.
    pub(super) sender_domain: Option<Arc<str>>,
    /// When `removed` was logged.
    removed: Option<Timestamp>,
    /// The recipients that are still deferred, by the pseudonym of the address that is tried.
    pub(super) waiting: WaitingList,
}

/// All messages under way.
#[derive(Debug)]
pub(super) struct State {
    max_tracked: usize,
    next_serial: u64,
    origins: Vec<Origin>,
    /// In boxes: a table of a million is moved when it grows.
    messages: HashMap<Key, Box<Message>>,
    removed: VecDeque<(Timestamp, Key, u64)>,
    domains: HashSet<Arc<str>>,
    campaigns: HashSet<Arc<CampaignId>>,
    pub(super) evicted: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Origin {
    host: Vec<u8>,
    instance: Vec<u8>,
}

impl State {
    pub(super) fn new(max_tracked: usize) -> Self {
        Self {
            max_tracked: max_tracked.max(1),
            next_serial: 0,
            origins: Vec::new(),
            messages: HashMap::new(),
            removed: VecDeque::new(),
            domains: HashSet::new(),
            campaigns: HashSet::new(),
            evicted: 0,
        }
    }

    /// How many messages are remembered.
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// The key, if anything of this origin is remembered.
    pub(super) fn key(&self, host: &[u8], instance: &[u8], queue_id: QueueId) -> Option<Key> {
        let origin = self.origins.iter().position(|o| o.host == host && o.instance == instance)?;
        Some(Key { origin: u16::try_from(origin).ok()?, queue_id })
    }

    /// The message, if it is remembered.
    pub(super) fn message(&mut self, key: Key) -> Option<&mut Message> {
        self.messages.get_mut(&key).map(Box::as_mut)
    }

    /// The message, begun if it is not remembered or if it was removed before: then a new one took its queue id.
    pub(super) fn begin(&mut self, host: &[u8], instance: &[u8], queue_id: QueueId) -> Option<&mut Message> {
        let key = match self.key(host, instance, queue_id) {
            Some(key) => key,
            None => self.new_origin(host, instance, queue_id)?,
        };
        self.forget_if_removed(key);
        if self.messages.len() >= self.max_tracked && !self.messages.contains_key(&key) {
            self.evict();
        }
        let serial = self.next_serial;
        self.next_serial += 1;
        let message = self.messages.entry(key);
        Some(message.or_insert_with(|| Box::new(Message { serial, ..Message::default() })))
    }

    /// The message that had this queue id on the same host, in any instance; of a long queue id also on any other host.
    pub(super) fn message_of(&self, host: &[u8], queue_id: QueueId) -> Option<Key> {
        let find = |is_here: bool| {
            self.origins.iter().enumerate().find_map(|(index, origin)| {
                let key = Key { origin: u16::try_from(index).ok()?, queue_id };
                ((origin.host == host) == is_here && self.messages.contains_key(&key)).then_some(key)
            })
        };
        find(true).or_else(|| queue_id.arrival().and_then(|_| find(false)))
    }

    /// Begins a message that another one goes on as; `with_waiting` when it is the same in all its recipients.
    pub(super) fn go_on(
        &mut self,
        from: Key,
        host: &[u8],
        instance: &[u8],
        queue_id: QueueId,
        with_waiting: bool,
    ) {
        let Some(before) = self.messages.get_mut(&from) else { return };
        let waiting = if with_waiting { std::mem::take(&mut before.waiting) } else { WaitingList::default() };
        let (id, campaign, sender_domain) =
            (before.id, before.campaign.clone(), before.sender_domain.clone());
        if let Some(message) = self.begin(host, instance, queue_id) {
            message.id = message.id.or(id);
            message.campaign = message.campaign.take().or(campaign);
            message.sender_domain = message.sender_domain.take().or(sender_domain);
            if !waiting.is_empty() {
                message.waiting = waiting;
            }
        }
    }

    fn new_origin(&mut self, host: &[u8], instance: &[u8], queue_id: QueueId) -> Option<Key> {
        if self.origins.len() >= MAX_ORIGINS {
            self.evicted += 1;
            return None;
        }
        self.origins.push(Origin { host: host.to_vec(), instance: instance.to_vec() });
        self.key(host, instance, queue_id)
    }

    pub(super) fn forget(&mut self, key: Key) {
        self.messages.remove(&key);
    }

    /// Forgets a message that has left the queue: its queue id is in use again.
    pub(super) fn forget_if_removed(&mut self, key: Key) {
        if self.messages.get(&key).is_some_and(|message| message.removed.is_some()) {
            self.messages.remove(&key);
        }
    }

    /// Notes that a message left the queue at `time` of the log, and forgets those that left long before.
    pub(super) fn removed(&mut self, key: Key, time: Timestamp) {
        if let Some(message) = self.messages.get_mut(&key) {
            message.removed = Some(time);
            self.removed.push_back((time, key, message.serial));
        }
        while let Some((since, key, serial)) = self.removed.front().copied() {
            if since.plus(KEEP_REMOVED) >= time {
                break;
            }
            self.removed.pop_front();
            if self.messages.get(&key).is_some_and(|message| message.serial == serial) {
                self.messages.remove(&key);
            }
        }
    }

    /// Whether another queue id of any origin has the same message: it was queued anew, by a content filter or another
    /// instance.
    pub(super) fn is_also_queued_as(&self, key: Key, queue_id: QueueId, id: MessageId) -> bool {
        (0..self.origins.len()).filter_map(|origin| u16::try_from(origin).ok()).any(|origin| {
            let other = Key { origin, queue_id };
            other != key && self.messages.get(&other).is_some_and(|message| message.id == Some(id))
        })
    }

    /// One copy of a domain, shared by all messages that have it.
    pub(super) fn domain(&mut self, domain: &str) -> Arc<str> {
        if let Some(known) = self.domains.get(domain) {
            return known.clone();
        }
        if self.domains.len() >= 10_000 {
            self.domains.retain(|domain| Arc::strong_count(domain) > 1);
        }
        let domain: Arc<str> = domain.into();
        self.domains.insert(domain.clone());
        domain
    }

    /// One copy of a campaign, shared likewise.
    pub(super) fn campaign(&mut self, campaign: CampaignId) -> Arc<CampaignId> {
        if let Some(known) = self.campaigns.get(&campaign) {
            return known.clone();
        }
        if self.campaigns.len() >= 10_000 {
            self.campaigns.retain(|campaign| Arc::strong_count(campaign) > 1);
        }
        let campaign = Arc::new(campaign);
        self.campaigns.insert(campaign.clone());
        campaign
    }

    /// Forgets the oldest part of all messages at once, so that each costs little.
    fn evict(&mut self) {
        let mut serials: Vec<u64> = self.messages.values().map(|message| message.serial).collect();
        let oldest = (serials.len() / 64).min(serials.len().saturating_sub(1));
        let (_, limit, _) = serials.select_nth_unstable(oldest);
        let limit = *limit;
        let before = self.messages.len();
        self.messages.retain(|_, message| message.serial > limit);
        self.evicted += (before - self.messages.len()) as u64;
    }
}

/// The state as it stands in the checkpoint.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Saved {
    origins: Vec<Origin>,
    messages: Vec<SavedMessage>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct SavedMessage {
    origin: u16,
    queue_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<MessageId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    campaign: Option<CampaignId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sender_domain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "WaitingList::is_empty")]
    waiting: WaitingList,
}

impl State {
    /// The state for the checkpoint, in the order in which the messages came.
    pub(super) fn save(&self) -> Saved {
        let mut messages: Vec<_> = self.messages.iter().collect();
        messages.sort_unstable_by_key(|(_, message)| message.serial);
        let messages = messages
            .into_iter()
            .map(|(key, message)| SavedMessage {
                origin: key.origin,
                queue_id: key.queue_id.to_string(),
                id: message.id,
                campaign: message.campaign.as_deref().cloned(),
                sender_domain: message.sender_domain.as_deref().map(str::to_owned),
                removed: message.removed,
                waiting: message.waiting.clone(),
            })
            .collect();
        Saved { origins: self.origins.clone(), messages }
    }

    /// The state of a checkpoint. Messages over the limit are left out, and counted.
    pub(super) fn restore(saved: Saved, max_tracked: usize) -> Self {
        let mut state = Self::new(max_tracked);
        state.origins = saved.origins;
        let excess = saved.messages.len().saturating_sub(state.max_tracked);
        state.evicted = excess as u64;
        for message in saved.messages.into_iter().skip(excess) {
            let Some(queue_id) = QueueId::parse(message.queue_id.as_bytes()) else { continue };
            let key = Key { origin: message.origin, queue_id };
            let serial = state.next_serial;
            state.next_serial += 1;
            if let Some(time) = message.removed {
                state.removed.push_back((time, key, serial));
            }
            let sender_domain = message.sender_domain.map(|domain| state.domain(&domain));
            let campaign = message.campaign.map(|campaign| state.campaign(campaign));
            let (id, removed, waiting) = (message.id, message.removed, message.waiting);
            let message = Message { serial, id, campaign, sender_domain, removed, waiting };
            state.messages.insert(key, Box::new(message));
        }
        state.removed.make_contiguous().sort_unstable_by_key(|(time, _, serial)| (*time, *serial));
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
            state.begin(b"mx", b"postfix", id(&format!("A{number:06}"))).unwrap();
            assert!(state.len() <= 100);
        }
        assert_eq!(state.evicted + state.len() as u64, 1_000);
        assert!(state.key(b"mx", b"postfix", id("A000999")).and_then(|key| state.message(key)).is_some());
    }

    #[test]
    fn removed_messages_are_kept_a_minute_and_a_used_again_id_is_not_theirs() {
        let mut state = State::new(100);
        let at = Timestamp::from_secs;
        state.begin(b"mx", b"postfix", id("AAAAAA")).unwrap();
        state.begin(b"mx", b"postfix", id("BBBBBB")).unwrap();
        let key = |state: &State, text| state.key(b"mx", b"postfix", id(text)).unwrap();
        let (a, b) = (key(&state, "AAAAAA"), key(&state, "BBBBBB"));
        state.removed(a, at(100));
        state.removed(b, at(150));
        assert_eq!(state.len(), 2);
        state.removed(b, at(161));
        assert_eq!(state.len(), 1, "the first one's minute is over");
        state.begin(b"mx", b"postfix", id("BBBBBB")).unwrap().id = Some(MessageId::from([1; 10]));
        state.removed(a, at(1_000));
        assert_eq!(
            state.message(b).unwrap().id,
            Some(MessageId::from([1; 10])),
            "a new message of the same id stays"
        );
    }

    #[test]
    fn what_was_saved_comes_back() {
        let mut state = State::new(10);
        let domain = state.domain("example.org");
        let waiting = Waiting {
            original: Pseudonym::from([1; 12]),
            attempts: 3,
            class: BounceClass::Soft,
            dsn: EnhancedCode::parse(b"4.2.1"),
            smtp_code: Some(450),
        };
        let message = state.begin(b"m\xffx", b"postfix", id("AAAAAA")).unwrap();
        message.id = Some(MessageId::from([7; 10]));
        message.campaign = Some(Arc::new("spring".parse().unwrap()));
        message.sender_domain = Some(domain);
        message.waiting.insert(Pseudonym::from([2; 12]), waiting);
        let saved = state.save();
        let json = serde_json::to_string(&saved).unwrap();
        let again = State::restore(serde_json::from_str(&json).unwrap(), 10);
        assert_eq!(again.messages, state.messages);
        assert_eq!(again.save(), saved);
    }
}
