//! Tells the source what became of events, until it has taken it.
//!
//! - Layer: role
//! - Takes: deliveries and what became of each.
//! - Gives: every delivery settled once; the events in hand, so that a second copy of one never goes out beside it.
//! - On failure: what the source or the memory refuses is told again after a second. An uncertain event is remembered
//!   only after it was settled: killed in between, the next life finds it again and sets it aside again.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::breaker::{Breakers, Fate};
use super::happenings::QueueTrouble;
use crate::event::EventId;
use crate::queue::dedupe::Dedupe;
use crate::queue::source::{Settlement, Source, Tag};
use crate::service::clock;

const AGAIN: Duration = Duration::from_secs(1);

/// A delivery, and what became of it.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) tag: Tag,
    /// The event that is no longer in hand once this is settled; none for a second copy of one that still is.
    pub(super) id: Option<EventId>,
    pub(super) what: Settlement,
    /// What that says of the way to GA4. All deliveries of a request have one fate.
    pub(super) fate: Fate,
}

#[derive(Debug, Default)]
pub(super) struct Settler {
    /// The events that were taken and not yet settled.
    in_hand: HashSet<EventId>,
    open: Vec<Settled>,
    /// Uncertain events, settled and not yet remembered.
    uncertain: Vec<EventId>,
    /// When to try again what was refused.
    pub(super) again: Option<Instant>,
}

impl Settler {
    /// Takes an event in hand; `false` if it is already.
    pub(super) fn take(&mut self, id: EventId) -> bool {
        self.in_hand.insert(id)
    }

    /// Whether it is time to try again what was refused.
    pub(super) fn is_due(&self) -> bool {
        self.again.is_some_and(|again| again <= Instant::now())
    }

    pub(super) async fn settle(
        &mut self,
        source: &mut Box<dyn Source>,
        dedupe: &Dedupe,
        breakers: &mut Breakers,
        settled: Vec<Settled>,
    ) {
        if let Some(first) = settled.first() {
            breakers.note(first.fate);
        }
        self.open.extend(settled);
        self.again = None;
        if !self.open.is_empty() {
            let outcomes = self.open.iter().map(|settled| (settled.tag, settled.what.clone())).collect();
            match source.settle(outcomes).await {
                Ok(()) => self.close(),
                Err(error) => self.refused(error.to_string()),
            }
        }
        if !self.uncertain.is_empty() {
            match dedupe.remember(&self.uncertain, clock::now()).await {
                Ok(()) => {
                    for id in self.uncertain.drain(..) {
                        self.in_hand.remove(&id);
                    }
                }
                Err(error) => self.refused(error.to_string()),
            }
        }
    }

    fn close(&mut self) {
        for settled in self.open.drain(..) {
            match (settled.id, settled.what) {
                (Some(id), Settlement::Uncertain) => self.uncertain.push(id),
                (Some(id), _) => {
                    self.in_hand.remove(&id);
                }
                (None, _) => {}
            }
        }
    }

    fn refused(&mut self, why: String) {
        QueueTrouble { why }.emit();
        self.again = Some(Instant::now() + AGAIN);
    }
}
