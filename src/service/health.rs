//! What is ready and what is not, and why: the truth behind `/readyz`.
//!
//! - Layer: edge
//! - Takes: reports of the parts of a process.
//! - Gives: the parts that are not ready, each with its reason.
//! - On failure: a poisoned lock is read as it stands.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The health of all parts of a process. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<&'static str, State>>>);

#[derive(Debug, Clone)]
enum State {
    Starting,
    Ready,
    Trouble(String),
}

impl Health {
    /// Registers a part, as not ready yet.
    #[must_use]
    pub fn component(&self, name: &'static str) -> Component {
        self.lock().insert(name, State::Starting);
        Component { health: self.clone(), name }
    }

    /// The parts that are not ready, with the reason; empty means ready.
    #[must_use]
    pub fn troubles(&self) -> Vec<(&'static str, String)> {
        let trouble = |(name, state): (&&'static str, &State)| match state {
            State::Ready => None,
            State::Starting => Some((*name, "starting".to_owned())),
            State::Trouble(why) => Some((*name, why.clone())),
        };
        self.lock().iter().filter_map(trouble).collect()
    }

    /// Whether every part has got past its start, in whatever state it is.
    #[must_use]
    pub fn has_started(&self) -> bool {
        !self.lock().values().any(|state| matches!(state, State::Starting))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The hand that a part of the process reports with.
#[derive(Debug, Clone)]
pub struct Component {
    health: Health,
    name: &'static str,
}

impl Component {
    /// The part works.
    pub fn ready(&self) {
        self.health.lock().insert(self.name, State::Ready);
    }

    /// The part does not work; `why` is shown to administrators and holds no personal data.
    pub fn not_ready(&self, why: impl Into<String>) {
        self.health.lock().insert(self.name, State::Trouble(why.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_ready_only_after_it_said_so() {
        let health = Health::default();
        let milter = health.component("milter");
        let tap = health.component("tap");
        assert_eq!(health.troubles().len(), 2);
        milter.ready();
        assert!(!health.has_started());
        tap.not_ready("log file missing");
        assert!(health.has_started());
        assert_eq!(health.troubles(), [("tap", "log file missing".to_owned())]);
        tap.ready();
        assert!(health.troubles().is_empty());
    }
}
