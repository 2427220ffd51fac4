//! Under which queue ids other servers took what was counted as delivered.
//!
//! - Layer: decision
//! - Takes: deliveries that ended with `queued as`; logged references.
//! - Gives: whether a delivery was none: one of our own instances had taken the message, and its log came later.
//! - On failure: what is pushed out is not noticed.
//! - Limits: the last `MAX_TAKEN` deliveries.
//!
//! Of two log files nobody knows which line came first. Where the second instance's headers are read after the first one's
//! delivery, it was counted already, and can't be taken back.

use std::collections::{HashMap, VecDeque};

use super::queue_id::QueueId;
use crate::identity::MessageId;

/// Some seconds of a fast relay.
const MAX_TAKEN: usize = 2_000;

/// The last deliveries.
#[derive(Debug, Default)]
pub(super) struct Taken {
    messages: HashMap<QueueId, MessageId>,
    order: VecDeque<QueueId>,
}

impl Taken {
    /// A server took a message under this queue id of its own.
    pub(super) fn push(&mut self, queue_id: QueueId, message: MessageId) {
        if self.messages.insert(queue_id, message).is_none() {
            self.order.push_back(queue_id);
        }
        if self.order.len() > MAX_TAKEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.messages.remove(&oldest);
        }
    }

    /// Whether this message, which is logged under this queue id now, was counted as delivered to it.
    pub(super) fn was(&self, queue_id: QueueId, message: MessageId) -> bool {
        self.messages.get(&queue_id) == Some(&message)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_last_are_remembered() {
        let id = |number: usize| QueueId::parse(format!("A{number:06}").as_bytes()).unwrap();
        let message = MessageId::from([1; 10]);
        let mut taken = Taken::default();
        for number in 0..MAX_TAKEN * 3 {
            taken.push(id(number / 2), message);
        }
        assert_eq!((taken.messages.len(), taken.order.len()), (MAX_TAKEN, MAX_TAKEN));
        let last = id((MAX_TAKEN * 3 - 1) / 2);
        assert!(taken.was(last, message) && !taken.was(last, MessageId::from([2; 10])));
        assert!(!taken.was(id(7), message));
    }
}
