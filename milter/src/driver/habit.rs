//! Whether a reply at the end of headers pays.
//!
//! - Layer: decision
//! - Takes: of each message, whether it was accepted at the end of its headers.
//! - Gives: whether the next connection should have the MTA wait for a reply there.
//! - On failure: nothing can fail. A wrong guess costs time, never an answer.
//! - Limits: looks back over about [`MEMORY`] messages.

use std::sync::atomic::{AtomicU32, Ordering};

/// How many messages count, roughly: the last one counts for one in so many.
const MEMORY: u32 = 64;
/// All messages.
const ALL: u32 = 1 << 16;
/// From this share on it pays: a reply that is waited for costs both sides about what it costs to send a body of some ten
/// KiB, and messages may be much larger.
const PAYS: u32 = ALL / 16;

/// The share of messages that were accepted at the end of their headers, lately.
#[derive(Debug)]
pub(super) struct Habit(AtomicU32);

impl Default for Habit {
    /// Nothing is known yet: replies are asked for.
    fn default() -> Self {
        Self(AtomicU32::new(ALL))
    }
}

impl Habit {
    /// Counts a message. Two at the same moment may count for one: it is an estimate.
    pub(super) fn note(&self, accepted: bool) {
        let share = self.0.load(Ordering::Relaxed);
        let now = share - share.div_ceil(MEMORY) + if accepted { ALL / MEMORY } else { 0 };
        self.0.store(now.min(ALL), Ordering::Relaxed);
    }

    /// Whether enough messages end with their headers to have the MTA wait there.
    pub(super) fn reply_pays(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= PAYS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_pays_while_some_messages_end_with_their_headers() {
        let habit = Habit::default();
        assert!(habit.reply_pays(), "nothing is known yet");
        let until_it_does_not = (1..1_000).find(|_| {
            habit.note(false);
            !habit.reply_pays()
        });
        assert!(until_it_does_not.is_some_and(|count| (100..200).contains(&count)), "{until_it_does_not:?}");
        (0..10_000).for_each(|_| habit.note(false));
        assert!((1..=5).any(|_| {
            habit.note(true);
            habit.reply_pays()
        }));
        // One in eight is enough, one in fifty is not.
        (0..10_000).for_each(|number| habit.note(number % 8 == 0));
        assert!(habit.reply_pays());
        (0..10_000).for_each(|number| habit.note(number % 50 == 1));
        assert!(!habit.reply_pays());
        (0..10_000).for_each(|_| habit.note(true));
        assert!(habit.reply_pays());
    }
}
