//! Tells the source what became of events, until it has taken it.
//!
//! - Layer: role
//! - Takes: deliveries and what became of each.
//! - Gives: every delivery settled once, after what became of it is remembered; the events in hand, so that a second copy of one
//!   never goes out beside it. Dead letters are told of once they are there.
//! - On failure: what the source refuses is told again after a second, and nothing else with it; while there is such, the relay
//!   takes no events. An uncertain event is remembered only after it was settled: killed in between, the next life finds it
//!   again and sets it aside again.
//! - Limits: tells on tasks of its own: a source that takes its time holds up neither requests nor what else is settled.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::breaker::{Breakers, Fate};
use super::happenings::Dead;
use super::memory::Memory;
use crate::event::EventId;
use crate::queue::source::{Settle, Settlement, SourceError, Tag};
use crate::service::clock;

const AGAIN: Duration = Duration::from_secs(1);

/// A delivery, and what became of it.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) tag: Tag,
    /// The event that is no longer in hand once this is settled; none for a second copy of one that still is.
    pub(super) id: Option<EventId>,
    /// The event's own id.
    pub(super) event: EventId,
    /// What the memory has to know before the source does.
    pub(super) note: Noted,
    pub(super) what: Settlement,
    /// What that says of the way to GA4. All deliveries of a request have one fate.
    pub(super) fate: Fate,
}

/// What is written down of an event before it is settled: settled first, it could be sent twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Noted {
    /// Nothing.
    Nothing,
    /// It was sent, and is not to be sent again; of a replay, that goes for its event too.
    Sent,
    /// It certainly did not arrive.
    Unsent,
}

/// What was told: what the source took, and what not.
#[derive(Debug)]
pub(super) struct Told {
    /// It had been refused before.
    again: bool,
    taken: Vec<Settled>,
    /// They come again.
    gone: Vec<Settled>,
    refused: Vec<(Settled, SourceError)>,
}

#[derive(Debug)]
pub(super) struct Settler {
    source: Arc<dyn Settle>,
    memory: Arc<Memory>,
    /// The events that were taken and not yet settled.
    in_hand: HashSet<EventId>,
    /// What is done, to be told now.
    done: Vec<Settled>,
    /// What is to be brought elsewhere, which may take the source longer.
    others: Vec<Settled>,
    refused: Vec<Settled>,
    /// What was refused is being told again.
    retrying: bool,
    telling: JoinSet<Told>,
    /// When to try again what was refused.
    pub(super) again: Option<Instant>,
}

impl Settler {
    pub(super) fn new(source: Arc<dyn Settle>, memory: Arc<Memory>) -> Self {
        Self {
            source,
            memory,
            in_hand: HashSet::new(),
            done: Vec::new(),
            others: Vec::new(),
            refused: Vec::new(),
            retrying: false,
            telling: JoinSet::new(),
            again: None,
        }
    }

    /// Takes an event in hand; `false` if it is already.
    pub(super) fn take(&mut self, id: EventId) -> bool {
        self.in_hand.insert(id)
    }

    /// Has it in hand no longer: nothing was begun with it, and it comes again.
    pub(super) fn release(&mut self, id: EventId) {
        self.in_hand.remove(&id);
    }

    /// Whether something is being told.
    pub(super) fn is_telling(&self) -> bool {
        !self.telling.is_empty()
    }

    /// Whether the source refused something: it should not give more before it has taken that.
    pub(super) fn is_stuck(&self) -> bool {
        self.retrying || !self.refused.is_empty()
    }

    /// What became of the deliveries of one request, or of others that share a fate.
    pub(super) fn add(&mut self, settled: Vec<Settled>, breakers: &mut Breakers) {
        if let Some(first) = settled.first() {
            breakers.note(&first.fate);
        }
        for settled in settled {
            let done = settled.what == Settlement::Done;
            if done { &mut self.done } else { &mut self.others }.push(settled);
        }
    }

    /// Begins to tell what there is.
    pub(super) fn tell(&mut self) {
        let mut again = Vec::new();
        if self.again.is_some_and(|again| again <= Instant::now()) {
            self.again = None;
            self.retrying = true;
            again = std::mem::take(&mut self.refused);
        }
        let (done, others) = (std::mem::take(&mut self.done), std::mem::take(&mut self.others));
        for (settled, again) in [(done, false), (others, false), (again, true)] {
            if !settled.is_empty() {
                let (source, memory) = (self.source.clone(), self.memory.clone());
                self.telling.spawn(async move { tell(&*source, &memory, settled, again).await });
            }
        }
    }

    /// Waits until something was told. May be dropped while it waits.
    pub(super) async fn told(&mut self) -> Option<Told> {
        match self.telling.join_next().await? {
            Ok(told) => Some(told),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => None,
            },
        }
    }

    /// Takes note of what was told.
    pub(super) fn close(&mut self, told: Told, breakers: &mut Breakers) {
        for id in told.taken.iter().chain(&told.gone).filter_map(|settled| settled.id) {
            self.in_hand.remove(&id);
        }
        for settled in &told.taken {
            if let Settlement::Dead { reason } = &settled.what {
                Dead { id: settled.event, reason }.emit();
            }
        }
        self.retrying &= !told.again;
        if let Some((_, error)) = told.refused.first() {
            breakers.unsettled(error.to_string());
            self.again.get_or_insert_with(|| Instant::now() + AGAIN);
        }
        self.refused.extend(told.refused.into_iter().map(|(settled, _)| settled));
        if !self.is_stuck() {
            breakers.all_settled();
        }
    }
}

async fn tell(source: &dyn Settle, memory: &Memory, mut settled: Vec<Settled>, again: bool) -> Told {
    note(memory, &mut settled).await;
    let outcomes = settled.iter().map(|settled| (settled.tag, settled.what.clone())).collect();
    let mut unsettled: HashMap<Tag, SourceError> = source.settle(outcomes).await.into_iter().collect();
    let (mut taken, mut gone, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for settled in settled {
        match unsettled.remove(&settled.tag) {
            Some(SourceError::Gone) => gone.push(settled),
            Some(error) => refused.push((settled, error)),
            None => taken.push(settled),
        }
    }
    let uncertain = taken.iter().filter(|settled| settled.what == Settlement::Uncertain);
    let uncertain: Vec<EventId> = uncertain.filter_map(|settled| settled.id).collect();
    write(memory, Write::Aside, &uncertain).await;
    Told { again, taken, gone, refused }
}

/// Writes down, once and for all of them in one go, what has to be known before they are settled.
async fn note(memory: &Memory, settled: &mut [Settled]) {
    let noted = |note| settled.iter().filter(move |settled| settled.note == note);
    let both = |settled: &Settled| {
        let own = (settled.id != Some(settled.event)).then_some(settled.event);
        settled.id.into_iter().chain(own)
    };
    let sent: Vec<EventId> = noted(Noted::Sent).flat_map(both).collect();
    let unsent: Vec<EventId> = noted(Noted::Unsent).filter_map(|settled| settled.id).collect();
    write(memory, Write::Sent, &sent).await;
    write(memory, Write::Unsent, &unsent).await;
    settled.iter_mut().for_each(|settled| settled.note = Noted::Nothing);
}

#[derive(Debug, Clone, Copy)]
enum Write {
    Sent,
    Unsent,
    Aside,
}

/// Goes on until it is written.
async fn write(memory: &Memory, what: Write, ids: &[EventId]) {
    let dedupe = &memory.dedupe;
    loop {
        let written = match what {
            Write::Sent => dedupe.remember(ids, clock::now()).await,
            Write::Unsent => dedupe.abandon(ids).await,
            Write::Aside => dedupe.set_aside(ids, clock::now()).await,
        };
        let Err(error) = written else {
            if !ids.is_empty() {
                memory.works();
            }
            return;
        };
        memory.failed(&error);
        tokio::time::sleep(AGAIN).await;
    }
}
