//! What the relay would do with events, without doing it.
//!
//! - Layer: decision
//! - Takes: events, the mapping, what each property takes, the time.
//! - Gives: the requests that would go out, the events that can't and why.
//! - On failure: nothing can fail.

use super::batch::{self, Request};
use super::map::Mapping;
use super::property::Takes;
use super::validate::{self, Repair};
use crate::event::{Event, EventId};
use crate::identity::Timestamp;

/// What would happen.
#[derive(Debug, Clone, PartialEq)]
pub struct DryRun {
    /// The requests.
    pub requests: Vec<Request<EventId>>,
    /// What would be mended first.
    pub repairs: Vec<(EventId, Repair)>,
    /// What would be a dead letter, and why.
    pub dead: Vec<(EventId, &'static str)>,
    /// What is of a type that is switched off.
    pub off: Vec<EventId>,
}

/// Maps, checks and batches events.
#[must_use]
pub fn dry_run(events: &[Event], mapping: &Mapping, takes: &[Takes], now: Timestamp) -> DryRun {
    let (mut good, mut repairs, mut dead, mut off) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for event in events {
        if !mapping.is_sent(event.kind) {
            off.push(event.id);
            continue;
        }
        let Some(mapped) = mapping.map(event, takes) else {
            dead.push((event.id, "no_property"));
            continue;
        };
        match validate::validate(mapped, now) {
            Ok((mapped, mended)) => {
                repairs.extend(mended.into_iter().map(|repair| (event.id, repair)));
                good.push((mapped, event.id));
            }
            Err(reject) => dead.push((event.id, reject.as_str())),
        }
    }
    DryRun { requests: batch::batch(good), repairs, dead, off }
}
