//! Messages that the milter marked, and whose reference never came to the log.
//!
//! - Layer: decision
//! - Takes: what the milter of this process marked; what the log says of queue ids; the time.
//! - Gives: each message that left the queue without a logged reference, and whether that is worth a word.
//! - On failure: what goes beyond the limits is not checked.
//! - Limits: 100,000 marked messages that were not logged yet, each for a day; the last 2,000 messages; 64 cleanup
//!   services.
//! - See: `docs/decisions/0012-unlogged-headers.md`.
//!
//! A mark is told before Postfix logs what comes of it, but the log may be read before the news are: so a piece of the log
//! is judged at its end, once all news are in. That of a copy comes a moment later than its log. A reference counts under whatever queue id it is logged: a content filter
//! gives a message another one, and the headers may be logged there only. It may be a moment late, hence `PATIENCE`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::queue_id::QueueId;
use crate::identity::{MessageId, Timestamp};

/// How long after a message has left the queue its reference may still be logged, by a filter that it was handed to.
const PATIENCE: Duration = Duration::from_secs(10);
const MAX_MARKED: usize = 100_000;
const MAX_AGE: Duration = Duration::from_secs(86_400);
const SWEEP_EVERY: Duration = Duration::from_secs(3_600);
/// The last messages that cleanup(8) has seen: a mark comes a moment after, that of a copy perhaps when it has left.
const MAX_RECENT: usize = 2_000;
const MAX_SERVICES: usize = 64;
/// Where a service does log references, one message without may be one whose milter's answer got lost.
const DOUBT: Duration = Duration::from_secs(3_600);
const BEYOND_DOUBT: usize = 3;

/// A message that left the queue without its reference in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Its queue id.
    pub queue_id: QueueId,
    /// The `syslog_name` of the cleanup(8) that took it in; where that is not known, that of its instance.
    pub service: String,
    /// Whether it is a copy of a split message.
    pub is_copy: bool,
    /// Whether it should be said: once for each service.
    pub is_news: bool,
}

/// What is known of marked messages.
#[derive(Debug, Default)]
pub(super) struct Unlogged {
    marked: HashMap<QueueId, Marked>,
    queue_ids: HashMap<MessageId, QueueId>,
    /// What this piece of the log says, in its order.
    steps: Vec<Step>,
    left: VecDeque<(Timestamp, QueueId, MessageId)>,
    recent: HashMap<QueueId, Recent>,
    recent_order: VecDeque<QueueId>,
    services: Vec<Service>,
    has_marks: bool,
    lost_at: Option<Timestamp>,
    swept: Option<Timestamp>,
}

/// One of the last messages that cleanup(8) has seen.
#[derive(Debug)]
struct Recent {
    service: Arc<[u8]>,
    is_logged: bool,
    has_left: bool,
}

#[derive(Debug)]
struct Marked {
    message: MessageId,
    is_copy: bool,
    since: Timestamp,
    /// The name of its cleanup(8).
    service: Option<Arc<[u8]>>,
    has_left: bool,
}

#[derive(Debug)]
enum Step {
    Logged { queue_id: QueueId, message: Option<MessageId> },
    Moved { before: QueueId, queue_id: QueueId },
    Refused(QueueId),
    Left { queue_id: QueueId, instance: Arc<[u8]> },
}

#[derive(Debug)]
struct Service {
    name: Arc<[u8]>,
    logs_references: bool,
    is_said: bool,
    missing: VecDeque<Timestamp>,
}

impl Unlogged {
    /// Whether the milter has marked anything so far.
    pub(super) const fn has_marks(&self) -> bool {
        self.has_marks
    }

    /// The milter marked a message, or a copy of one.
    pub(super) fn marked(&mut self, queue_id: QueueId, message: MessageId, is_copy: bool, now: Timestamp) {
        self.has_marks = true;
        let recent = self.recent.get(&queue_id);
        if self.marked.len() >= MAX_MARKED || recent.is_some_and(|recent| recent.is_logged) {
            return;
        }
        let service = recent.map(|recent| recent.service.clone());
        let has_left = recent.is_some_and(|recent| recent.has_left);
        self.forget(queue_id);
        self.marked.insert(queue_id, Marked { message, is_copy, since: now, service, has_left });
        self.queue_ids.insert(message, queue_id);
        if has_left {
            self.left.push_back((now.plus(PATIENCE), queue_id, message));
        }
    }

    /// cleanup(8) of this name takes a message in.
    pub(super) fn cleaned(&mut self, queue_id: QueueId, syslog_name: &[u8]) {
        let Some(name) = self.service(syslog_name).map(|service| service.name.clone()) else { return };
        if let Some(marked) = self.marked.get_mut(&queue_id) {
            marked.service = Some(name.clone());
            marked.has_left = false;
        }
        let recent = Recent { service: name, is_logged: false, has_left: false };
        if self.recent.insert(queue_id, recent).is_none() {
            self.recent_order.push_back(queue_id);
        }
        if self.recent_order.len() > MAX_RECENT
            && let Some(oldest) = self.recent_order.pop_front()
        {
            self.recent.remove(&oldest);
        }
    }

    /// cleanup(8) of this name logged a reference: of this message, if it could be verified.
    pub(super) fn logged(&mut self, queue_id: QueueId, message: Option<MessageId>, syslog_name: &[u8]) {
        if let Some(service) = self.service(syslog_name) {
            service.logs_references = true;
        }
        self.steps.push(Step::Logged { queue_id, message });
    }

    /// A message was queued anew.
    pub(super) fn moved(&mut self, before: QueueId, queue_id: QueueId) {
        self.steps.push(Step::Moved { before, queue_id });
    }

    /// A message was refused or discarded after all.
    pub(super) fn refused(&mut self, queue_id: QueueId) {
        self.steps.push(Step::Refused(queue_id));
    }

    /// A message left the queue of this instance.
    pub(super) fn left(&mut self, queue_id: QueueId, instance: &[u8]) {
        let name = self.service(instance).map_or_else(|| instance.into(), |service| service.name.clone());
        self.steps.push(Step::Left { queue_id, instance: name });
    }

    /// Lines of the log were lost, which is said elsewhere: no setting need be wrong.
    pub(super) fn lines_lost(&mut self, now: Timestamp) {
        self.lost_at = Some(now);
    }

    /// Services of this name are known to log references.
    pub(super) fn logs_references(&mut self, syslog_name: &[u8]) {
        if let Some(service) = self.service(syslog_name) {
            service.logs_references = true;
        }
    }

    /// What is missing at the end of a piece of the log, all news being in.
    pub(super) fn settle(&mut self, now: Timestamp) -> Vec<Missing> {
        for step in std::mem::take(&mut self.steps) {
            self.step(step, now);
        }
        let mut missing = Vec::new();
        while let Some((due, queue_id, message)) = self.left.front().copied() {
            if due > now {
                break;
            }
            self.left.pop_front();
            let marked = self.marked.get(&queue_id);
            let Some(marked) = marked.filter(|marked| marked.message == message && marked.has_left) else {
                continue;
            };
            let (name, is_copy) = (marked.service.clone().unwrap_or_default(), marked.is_copy);
            self.forget(queue_id);
            let is_news = self.is_news(&name, now);
            let service = String::from_utf8_lossy(&name).into_owned();
            missing.push(Missing { queue_id, service, is_copy, is_news });
        }
        self.sweep(now);
        missing
    }

    fn step(&mut self, step: Step, now: Timestamp) {
        match step {
            Step::Logged { queue_id, message } => {
                if let Some(recent) = self.recent.get_mut(&queue_id) {
                    recent.is_logged = true;
                }
                let elsewhere = message.and_then(|message| self.queue_ids.get(&message).copied());
                self.forget(queue_id);
                elsewhere.into_iter().for_each(|queue_id| self.forget(queue_id));
            }
            Step::Moved { before, queue_id } => {
                // The milter may have marked it anew.
                if !self.marked.contains_key(&queue_id)
                    && let Some(marked) = self.marked.remove(&before)
                {
                    self.queue_ids.insert(marked.message, queue_id);
                    self.marked.insert(queue_id, Marked { has_left: false, ..marked });
                }
                self.forget(before);
            }
            Step::Refused(queue_id) => self.forget(queue_id),
            Step::Left { queue_id, instance } => {
                if let Some(recent) = self.recent.get_mut(&queue_id) {
                    recent.has_left = true;
                }
                if let Some(marked) = self.marked.get_mut(&queue_id).filter(|marked| !marked.has_left) {
                    marked.has_left = true;
                    marked.service.get_or_insert(instance);
                    self.left.push_back((now.plus(PATIENCE), queue_id, marked.message));
                }
            }
        }
    }

    fn forget(&mut self, queue_id: QueueId) {
        if let Some(marked) = self.marked.remove(&queue_id) {
            self.queue_ids.remove(&marked.message);
        }
    }

    /// Whether one more message without reference should be said of a service.
    fn is_news(&mut self, name: &[u8], now: Timestamp) -> bool {
        let lost = self.lost_at.is_some_and(|lost_at| lost_at.plus(DOUBT) > now);
        let Some(service) = self.service(name) else { return false };
        if service.is_said || lost {
            return false;
        }
        service.missing.retain(|earlier| earlier.plus(DOUBT) > now);
        service.missing.push_back(now);
        service.is_said = !service.logs_references || service.missing.len() >= BEYOND_DOUBT;
        service.is_said
    }

    fn service(&mut self, name: &[u8]) -> Option<&mut Service> {
        let at = match self.services.iter().position(|service| *service.name == *name) {
            Some(at) => at,
            None if self.services.len() >= MAX_SERVICES => return None,
            None => {
                let (name, missing) = (Arc::from(name), VecDeque::new());
                self.services.push(Service { name, logs_references: false, is_said: false, missing });
                self.services.len() - 1
            }
        };
        self.services.get_mut(at)
    }

    /// Mail that never leaves the queue, or leaves it where nobody looks, is let go.
    fn sweep(&mut self, now: Timestamp) {
        if self.swept.is_some_and(|swept| swept.plus(SWEEP_EVERY) > now) {
            return;
        }
        self.swept = Some(now);
        self.marked.retain(|_, marked| marked.since.plus(MAX_AGE) > now);
        let marked = &self.marked;
        self.queue_ids.retain(|_, queue_id| marked.contains_key(queue_id));
    }
}

#[cfg(test)]
#[path = "unlogged_tests.rs"]
mod tests;
