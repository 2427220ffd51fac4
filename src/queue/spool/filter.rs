//! Which events an administrator means.
//!
//! - Layer: edge
//! - Takes: what is known of an event.
//! - Gives: whether it is meant; `admin` asks the database the same.
//! - On failure: nothing can fail; what is no event is not meant by a filter that asks for something of it.

use super::State;
use crate::event::{Event, EventId, Kind};
use crate::identity::{CampaignId, Pseudonym, Timestamp};

/// Which events; an empty filter means all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// In one of these states; none means any.
    pub states: Vec<State>,
    /// With this id.
    pub id: Option<EventId>,
    /// Of this kind.
    pub kind: Option<Kind>,
    /// Of this campaign.
    pub campaign: Option<CampaignId>,
    /// About this recipient.
    pub recipient: Option<Pseudonym>,
    /// With this text in the reason, whatever its case.
    pub reason: Option<String>,
    /// That happened at this time or later.
    pub since: Option<Timestamp>,
    /// That happened before this time.
    pub until: Option<Timestamp>,
}

impl Filter {
    /// Dead letters: what is dead or uncertain.
    #[must_use]
    pub fn dead_letters() -> Self {
        Self { states: vec![State::Dead, State::Uncertain], ..Self::default() }
    }

    /// Whether it lets an event through that stands so; the same as in the database, for events that are elsewhere.
    #[must_use]
    pub fn lets_through(&self, state: State, reason: Option<&str>, event: Option<&Event>) -> bool {
        let of_event = |asked: bool, holds: &dyn Fn(&Event) -> bool| !asked || event.is_some_and(holds);
        let has_reason = |wanted: &String| {
            reason.is_some_and(|reason| reason.to_lowercase().contains(&wanted.to_lowercase()))
        };
        (self.states.is_empty() || self.states.contains(&state))
            && self.reason.as_ref().is_none_or(has_reason)
            && of_event(self.id.is_some(), &|event| Some(event.id) == self.id)
            && of_event(self.kind.is_some(), &|event| Some(event.kind) == self.kind)
            && of_event(self.campaign.is_some(), &|event| event.data.campaign == self.campaign)
            && of_event(self.recipient.is_some(), &|event| event.data.recipient == self.recipient)
            && of_event(self.since.is_some(), &|event| self.since.is_none_or(|since| event.time >= since))
            && of_event(self.until.is_some(), &|event| self.until.is_none_or(|until| event.time < until))
    }
}
