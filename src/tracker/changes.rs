//! Changes of events that are stored and still held, one after the other, while others are published.
//!
//! - Layer: edge
//! - Takes: changes, in order.
//! - Gives: amendments to the publisher, several at once where nothing depends on what became of one; word of a swap
//!   that came too late.
//! - On failure: an amendment that fails, or comes too late, is counted: the event goes out as it was.
//! - Limits: `MAX_CHANGES` before it asks for patience.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::happenings;
use super::held::{Amended, Change};
use crate::event::EventId;
use crate::queue::{Amendment, Holder};

/// So many at once.
const AMENDED_AT_ONCE: usize = 1_024;
/// With so many waiting, there should be no more events.
const MAX_CHANGES: usize = 10_000;

/// The line of changes.
pub(super) struct Changes {
    publisher: Holder,
    line: VecDeque<Change>,
    under_way: Option<Pin<Box<dyn Future<Output = Option<TooLate>> + Send>>>,
}

/// A swap that could not be: the first of the two was sent already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLate {
    pub(super) person: EventId,
    pub(super) machine: EventId,
}

impl Changes {
    pub(super) const fn new(publisher: Holder) -> Self {
        Self { publisher, line: VecDeque::new(), under_way: None }
    }

    /// Puts more of them into the line.
    pub(super) fn add(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.line.extend(changes);
    }

    /// Whether there is nothing to do.
    pub(super) fn is_done(&self) -> bool {
        self.line.is_empty() && self.under_way.is_none()
    }

    /// Whether more can't be taken in for now.
    pub(super) fn is_full(&self) -> bool {
        self.line.len() >= MAX_CHANGES
    }

    /// Does the next of them. Dropping this early loses nothing: another call goes on.
    pub(super) async fn next(&mut self) -> Option<TooLate> {
        if self.under_way.is_none() {
            let publisher = Arc::clone(&self.publisher);
            self.under_way = Some(match self.line.pop_front()? {
                Change::Amend(amended) => {
                    let mut events = vec![amended];
                    while let Some(Change::Amend(amended)) = self.line.front()
                        && events.len() < AMENDED_AT_ONCE
                    {
                        events.push(amended.clone());
                        self.line.pop_front();
                    }
                    Box::pin(async move {
                        amend(&publisher, events).await;
                        None
                    })
                }
                Change::Swap { first, then, person, machine } => Box::pin(async move {
                    if !amend(&publisher, vec![first]).await {
                        return Some(TooLate { person, machine });
                    }
                    amend(&publisher, vec![then]).await;
                    None
                }),
            });
        }
        let late = self.under_way.as_mut()?.await;
        self.under_way = None;
        late
    }
}

/// Whether all of them were still held.
async fn amend(publisher: &Holder, events: Vec<Amended>) -> bool {
    let amendment = |Amended { event, key }| Amendment { event, first: key };
    let events: Vec<Amendment> = events.into_iter().map(amendment).collect();
    let asked = publisher.amend(&events).await;
    let (amended, late, error) = match asked {
        Ok(held) => {
            let amended = held.iter().filter(|held| **held).count();
            (amended, events.len() - amended, None)
        }
        Err(error) => (0, events.len(), Some(error)),
    };
    happenings::Amended { amended, late, error: error.as_ref() }.emit();
    late == 0
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::queue::testing::event;
    use crate::queue::{Hold, OnStored, Publication, PublishError};

    /// Notes what is amended together; some are not held any more.
    #[derive(Debug, Default)]
    struct Store {
        sent: Vec<EventId>,
        amended: Mutex<Vec<Vec<EventId>>>,
    }

    type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, PublishError>> + Send + 'a>>;

    impl Hold for Store {
        fn publish_all<'a>(&'a self, _: &'a [Publication], _: OnStored) -> Answer<'a, ()> {
            Box::pin(async { Err(PublishError::Closed) })
        }

        fn amend<'a>(&'a self, events: &'a [Amendment]) -> Answer<'a, Vec<bool>> {
            Box::pin(async move {
                let ids: Vec<_> = events.iter().map(|amendment| amendment.event.id).collect();
                let held = ids.iter().map(|id| !self.sent.contains(id)).collect();
                self.amended.lock().unwrap().push(ids);
                // Whoever asks may go meanwhile, and come again.
                tokio::task::yield_now().await;
                Ok(held)
            })
        }
    }

    fn id(number: u64) -> EventId {
        event(number).id
    }

    fn amended(number: u64) -> Amended {
        Amended { event: Arc::new(event(number)), key: None }
    }

    fn swap(first: u64, then: u64) -> Change {
        let (person, machine) = (id(first), id(then));
        Change::Swap { first: amended(first), then: amended(then), person, machine }
    }

    #[tokio::test]
    async fn all_are_done_in_order_whoever_goes_meanwhile() {
        let store = Arc::new(Store { sent: vec![id(6)], ..Store::default() });
        let mut changes = Changes::new(Arc::clone(&store) as Holder);
        let amend = |number| Change::Amend(amended(number));
        changes.add([amend(1), amend(2), swap(3, 4), amend(5), swap(6, 7), amend(8)]);
        let mut late = Vec::new();
        while !changes.is_done() {
            tokio::select! {
                biased;
                was = changes.next() => late.extend(was),
                () = std::future::ready(()) => {}
            }
        }
        let amended = [&[1, 2][..], &[3], &[4], &[5], &[6], &[8]];
        let amended = amended.map(|numbers| numbers.iter().copied().map(id).collect::<Vec<_>>());
        assert_eq!(*store.amended.lock().unwrap(), amended);
        assert_eq!(late, [TooLate { person: id(6), machine: id(7) }]);
        assert!(!changes.is_full());
        changes.add((0..MAX_CHANGES as u64).map(amend));
        assert!(changes.is_full());
    }
}
