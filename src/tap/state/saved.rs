//! The state in the checkpoint.
//!
//! - Layer: decision
//! - Takes: messages under way.
//! - Gives: the same again.
//! - On failure: messages over the limit are left out, and counted; so are those whose queue id is none.
//! - Limits: `max_tracked` messages.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Message, Origin, State, instance_of};
use crate::identity::{CampaignId, MessageId, Timestamp};
use crate::tap::queue_id::QueueId;
use crate::tap::waiting::WaitingList;

/// The state as it stands in the checkpoint.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Saved {
    origins: Vec<Origin>,
    messages: Vec<SavedMessage>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct SavedMessage {
    /// Which of `origins`.
    origin: usize,
    queue_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<MessageId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    campaign: Option<CampaignId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sender_domain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    active: bool,
    #[serde(default, skip_serializing_if = "WaitingList::is_empty")]
    waiting: WaitingList,
}

impl State {
    /// The state for the checkpoint, in the order in which the messages came.
    pub(in crate::tap) fn save(&self) -> Saved {
        let chains = self.messages.iter();
        let mut messages: Vec<(&QueueId, &Message)> = chains
            .flat_map(|(queue_id, first)| {
                let chain = std::iter::successors(Some(first.as_ref()), |message| message.next.as_deref());
                chain.map(move |message| (queue_id, message))
            })
            .collect();
        messages.sort_unstable_by_key(|(_, message)| message.serial);
        let mut origins: Vec<Origin> = Vec::new();
        let mut indices: HashMap<&Origin, usize> = HashMap::new();
        let messages = messages
            .into_iter()
            .map(|(queue_id, message)| {
                let origin = *indices.entry(&message.origin).or_insert_with(|| {
                    origins.push(message.origin.as_ref().clone());
                    origins.len() - 1
                });
                SavedMessage {
                    origin,
                    queue_id: queue_id.to_string(),
                    id: message.id,
                    campaign: message.campaign.as_deref().cloned(),
                    sender_domain: message.sender_domain.as_deref().map(str::to_owned),
                    removed: message.removed,
                    active: message.is_active,
                    waiting: message.waiting.clone(),
                }
            })
            .collect();
        Saved { origins, messages }
    }

    /// The state of a checkpoint. Messages over the limit are left out, and counted.
    pub(in crate::tap) fn restore(saved: Saved, max_tracked: usize) -> Self {
        let mut state = Self::new(max_tracked);
        // Earlier versions saved whole syslog_names.
        let of_instance = |origin: Origin| {
            let instance = instance_of(&origin.instance).to_vec();
            Arc::new(Origin { instance, ..origin })
        };
        let origins: Vec<Arc<Origin>> = saved.origins.into_iter().map(of_instance).collect();
        let excess = saved.messages.len().saturating_sub(state.max_tracked);
        state.evicted = excess as u64;
        for message in saved.messages.into_iter().skip(excess) {
            let Some(queue_id) = QueueId::parse(message.queue_id.as_bytes()) else { continue };
            let Some(origin) = origins.get(message.origin).cloned() else { continue };
            let origin = state.origins.share(origin.as_ref(), || origin.clone());
            let sender_domain = message.sender_domain.map(|domain| state.domain(&domain));
            let campaign = message.campaign.map(|campaign| state.campaign(&campaign));
            let (id, removed, waiting) = (message.id, message.removed, message.waiting);
            let is_active = message.active;
            let key = state.put(queue_id, |serial| Message {
                serial,
                origin,
                id,
                campaign,
                sender_domain,
                removed,
                is_active,
                waiting,
                next: None,
            });
            if let Some(time) = removed {
                state.removed.push_back((time, key));
            }
        }
        state.removed.make_contiguous().sort_unstable_by_key(|(time, key)| (*time, key.serial));
        state
    }
}
