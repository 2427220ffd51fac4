//! Memory of all connections together.
//!
//! - Layer: decision
//! - Takes: what each connection holds.
//! - Gives: whether it may hold more.
//! - On failure: [`Share::set`] says no, and nothing is counted.
//! - Limits: the one it is made with.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Below this a connection is not counted: it costs more to count than to hold.
const FREE_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    used: AtomicUsize,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0) })
    }

    pub(super) fn share(self: &Arc<Self>) -> Share {
        Share { budget: Arc::clone(self), held: 0 }
    }
}

/// What one connection holds; given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    held: usize,
}

impl Share {
    /// Counts `bytes` instead of what was counted before; `false` if that is too much, and then nothing changes.
    pub(super) fn set(&mut self, bytes: usize) -> bool {
        let bytes = if bytes <= FREE_BYTES { 0 } else { bytes };
        if bytes > self.held {
            let more = bytes - self.held;
            let limit = self.budget.limit;
            let fits = |used: usize| used.checked_add(more).filter(|sum| *sum <= limit);
            if self.budget.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
                return false;
            }
        } else {
            self.budget.used.fetch_sub(self.held - bytes, Ordering::Relaxed);
        }
        self.held = bytes;
        true
    }
}

impl Share {
    /// What is counted.
    pub(super) const fn held_bytes(&self) -> usize {
        self.held
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_shares_together_stay_within_the_limit() {
        let budget = Budget::new(1 << 20);
        let (mut one, mut two) = (budget.share(), budget.share());
        assert!(one.set(600_000));
        assert!(!two.set(600_000));
        assert!(two.set(FREE_BYTES));
        assert!(one.set(400_000));
        assert!(two.set(600_000));
        drop(two);
        assert!(one.set(1 << 20));
        drop(one);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }
}
