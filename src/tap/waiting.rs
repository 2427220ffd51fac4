//! The recipients of a message that are still deferred.
//!
//! - Layer: decision
//! - Takes: outcomes, by the pseudonym of the address that is tried.
//! - Gives: how often each was tried, and what was said last.
//! - On failure: nothing can fail.
//! - Limits: kept in one piece of memory without slack, for nearly every message has one recipient.

use serde::{Deserialize, Serialize};

use crate::delivery::EnhancedCode;
use crate::event::BounceClass;
use crate::identity::Pseudonym;

/// A recipient that waits for the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Waiting {
    /// The recipient before aliases.
    pub(super) original: Pseudonym,
    /// How many attempts there were.
    pub(super) attempts: u32,
    /// The last failure's class.
    pub(super) class: BounceClass,
    /// The last failure's enhanced status code.
    pub(super) dsn: Option<EnhancedCode>,
    /// The last failure's SMTP code.
    pub(super) smtp_code: Option<u16>,
}

/// All of them, by pseudonym and in its order.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct WaitingList(Vec<(Pseudonym, Waiting)>);

impl WaitingList {
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, to: &Pseudonym) -> Option<&Waiting> {
        let at = self.position(to).ok()?;
        self.0.get(at).map(|(_, waiting)| waiting)
    }

    pub(super) fn insert(&mut self, to: Pseudonym, waiting: Waiting) {
        match self.position(&to) {
            Ok(at) => {
                if let Some((_, known)) = self.0.get_mut(at) {
                    *known = waiting;
                }
            }
            Err(at) => {
                if self.0.is_empty() {
                    self.0.reserve_exact(1);
                }
                self.0.insert(at, (to, waiting));
            }
        }
    }

    pub(super) fn remove(&mut self, to: &Pseudonym) {
        if let Ok(at) = self.position(to) {
            self.0.remove(at);
        }
    }

    fn position(&self, to: &Pseudonym) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.as_bytes().cmp(to.as_bytes()))
    }
}

impl IntoIterator for WaitingList {
    type Item = (Pseudonym, Waiting);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn waiting(attempts: u32) -> Waiting {
        let original = Pseudonym::from([0; 12]);
        Waiting { original, attempts, class: BounceClass::Soft, dsn: None, smtp_code: None }
    }

    proptest! {
        #[test]
        fn it_is_a_map(steps in proptest::collection::vec((0_u8..12, any::<bool>()), 0..60)) {
            let mut model = BTreeMap::new();
            let mut list = WaitingList::default();
            for (index, (name, is_removal)) in steps.into_iter().enumerate() {
                let (to, value) = (Pseudonym::from([name; 12]), waiting(index as u32));
                if is_removal {
                    model.remove(&name);
                    list.remove(&to);
                } else {
                    model.insert(name, value);
                    list.insert(to, value);
                }
                prop_assert_eq!(list.get(&to), model.get(&name));
                prop_assert_eq!(list.is_empty(), model.is_empty());
            }
            let all: Vec<_> = list.into_iter().map(|(_, waiting)| waiting).collect();
            prop_assert_eq!(all, model.into_values().collect::<Vec<_>>());
        }
    }
}
