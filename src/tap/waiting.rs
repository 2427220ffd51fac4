//! The recipients of a message that are still deferred.
//!
//! - Layer: decision
//! - Takes: outcomes, by the pseudonym of the address that is tried.
//! - Gives: how often each was tried, and what was said last.
//! - On failure: nothing can fail.
//! - Limits: kept in one piece of memory without slack, for nearly every message has one recipient.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::delivery::EnhancedCode;
use crate::event::BounceClass;
use crate::identity::Pseudonym;

/// A recipient that waits for the next attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Waiting {
    /// How many attempts there were.
    pub(super) attempts: u32,
    /// The last failure's class.
    pub(super) class: BounceClass,
    /// The last failure's enhanced status code.
    pub(super) dsn: Option<EnhancedCode>,
    /// The last failure's SMTP code.
    pub(super) smtp_code: Option<u16>,
    /// Why that class.
    #[serde(default, with = "shared", skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<Arc<str>>,
    /// Whose server it was.
    #[serde(default, with = "shared", skip_serializing_if = "Option::is_none")]
    pub(super) provider: Option<Arc<str>>,
}

/// Text that many have in common.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[allow(clippy::ref_option, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(text: &Option<Arc<str>>, to: S) -> Result<S::Ok, S::Error> {
        text.as_deref().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Arc<str>>, D::Error> {
        Ok(Option::<String>::deserialize(from)?.map(Into::into))
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Recipient {
    /// The recipient before aliases: two of them may lead to one address.
    original: Pseudonym,
    #[serde(flatten)]
    waiting: Waiting,
}

/// All of them, by the pseudonyms of the address that is tried and of the one before aliases, and in their order.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct WaitingList(Vec<(Pseudonym, Recipient)>);

impl WaitingList {
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, to: &Pseudonym, original: &Pseudonym) -> Option<&Waiting> {
        let at = self.position(to, original).ok()?;
        self.0.get(at).map(|(_, recipient)| &recipient.waiting)
    }

    pub(super) fn insert(&mut self, to: Pseudonym, original: Pseudonym, waiting: Waiting) {
        match self.position(&to, &original) {
            Ok(at) => {
                if let Some((_, known)) = self.0.get_mut(at) {
                    known.waiting = waiting;
                }
            }
            Err(at) => {
                if self.0.is_empty() {
                    self.0.reserve_exact(1);
                }
                self.0.insert(at, (to, Recipient { original, waiting }));
            }
        }
    }

    pub(super) fn remove(&mut self, to: &Pseudonym, original: &Pseudonym) {
        if let Ok(at) = self.position(to, original) {
            self.0.remove(at);
        }
    }

    /// All of them: the address that is tried, the one before aliases, and what was said last.
    pub(super) fn into_all(self) -> impl Iterator<Item = (Pseudonym, Pseudonym, Waiting)> {
        self.0.into_iter().map(|(to, recipient)| (to, recipient.original, recipient.waiting))
    }

    fn position(&self, to: &Pseudonym, original: &Pseudonym) -> Result<usize, usize> {
        let wanted = (to.as_bytes(), original.as_bytes());
        self.0.binary_search_by(|(to, recipient)| (to.as_bytes(), recipient.original.as_bytes()).cmp(&wanted))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn waiting(attempts: u32) -> Waiting {
        let (class, reason) = (BounceClass::Soft, Some("a reason".into()));
        Waiting { attempts, class, dsn: None, smtp_code: None, reason, provider: None }
    }

    proptest! {
        #[test]
        fn it_is_a_map(steps in proptest::collection::vec((0_u8..6, 0_u8..3, any::<bool>()), 0..60)) {
            let mut model = BTreeMap::new();
            let mut list = WaitingList::default();
            for (index, (to, original, is_removal)) in steps.into_iter().enumerate() {
                let (name, value) = ((to, original), waiting(index as u32));
                let (to, original) = (Pseudonym::from([to; 12]), Pseudonym::from([original; 12]));
                if is_removal {
                    model.remove(&name);
                    list.remove(&to, &original);
                } else {
                    model.insert(name, value.clone());
                    list.insert(to, original, value.clone());
                }
                prop_assert_eq!(list.get(&to, &original), model.get(&name));
                prop_assert_eq!(list.is_empty(), model.is_empty());
            }
            let all: Vec<_> = list.into_all().map(|(_, _, waiting)| waiting).collect();
            prop_assert_eq!(all, model.into_values().collect::<Vec<_>>());
        }
    }

    #[test]
    fn earlier_checkpoints_are_read() {
        let json = r#"[["AQEBAQEBAQEBAQEB",{"original":"AgICAgICAgICAgIC","attempts":3,"class":"soft","dsn":null,"smtp_code":450}]]"#;
        let list: WaitingList = serde_json::from_str(json).unwrap();
        let known = list.get(&Pseudonym::from([1; 12]), &Pseudonym::from([2; 12]));
        assert_eq!(known.map(|waiting| waiting.attempts), Some(3));
    }
}
