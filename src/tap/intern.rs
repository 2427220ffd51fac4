//! One copy of each value, shared by all messages that have it.
//!
//! - Layer: decision
//! - Takes: values that many messages have in common.
//! - Gives: `Arc`s of one copy.
//! - On failure: nothing can fail.
//! - Limits: values that nobody has any more go in sweeps; each sweep doubles what is let in before the next one, so that
//!   a value costs the same however many there are.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// Below so many values nothing is swept.
const FEW: usize = 1_024;

/// The values that are shared.
#[derive(Debug)]
pub(super) struct Interned<T: ?Sized> {
    known: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T: ?Sized> Default for Interned<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), sweep_at: FEW }
    }
}

impl<T: ?Sized + Eq + Hash> Interned<T> {
    /// The shared copy; made if there is none.
    pub(super) fn share<Q>(&mut self, value: &Q, make: impl FnOnce() -> Arc<T>) -> Arc<T>
    where
        Arc<T>: Borrow<Q>,
        Q: ?Sized + Eq + Hash,
    {
        if let Some(known) = self.known.get(value) {
            return known.clone();
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|value| Arc::strong_count(value) > 1);
            self.sweep_at = (self.known.len() * 2).max(FEW);
        }
        let value = make();
        self.known.insert(value.clone());
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweeps_are_few_while_everything_lives_and_leave_nothing_that_does_not() {
        let mut interned: Interned<str> = Interned::default();
        let mut held = Vec::new();
        let mut sweeps = 0;
        for number in 0..200_000 {
            let text = format!("{number}.example");
            let before = interned.sweep_at;
            held.push(interned.share(text.as_str(), || text.as_str().into()));
            sweeps += u32::from(interned.sweep_at != before);
        }
        assert!(sweeps <= 10, "{sweeps} sweeps over 200,000 values that live");
        let first = interned.share("0.example", || "another".into());
        assert!(Arc::ptr_eq(&first, &held[0]));
        drop((held, first));
        for number in 0..300_000 {
            let text = format!("{number}.test");
            interned.share(text.as_str(), || text.as_str().into());
        }
        assert!(interned.known.len() <= FEW, "what nobody has is gone");
    }
}
