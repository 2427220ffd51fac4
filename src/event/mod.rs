//! What happened: the events of the whole product and their wire form.
//!
//! - Layer: word
//! - Takes: facts that the roles found out.
//! - Gives: CloudEvents 1.0 in JSON, the same bytes' meaning in spool, AMQP, `events tail` and `tap --stdout`.
//! - On failure: `EventError` names the attribute that is wrong, never its value.
//! - Limits: an event in JSON has at most `Event::MAX_BYTES`.
//! - See: CloudEvents 1.0 JSON format; `docs/event.schema.json`, which a test holds equal to this module.

mod data;
mod id;
mod json;
mod wire;

pub use data::{BounceClass, Data, Machine};
pub use id::{EventId, EventIdBuilder};
pub use wire::EventError;

use crate::identity::{MessageId, Timestamp};

/// One thing that happened to one message, for one recipient where that is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The same for the same happening, however often it is read or found: what duplicates are known by.
    pub id: EventId,
    /// Where it was seen: `mailtap/<role>/<host>`.
    pub source: String,
    /// What happened.
    pub kind: Kind,
    /// When it happened (not when it was read).
    pub time: Timestamp,
    /// The message that it happened to.
    pub message: MessageId,
    /// The particulars.
    pub data: Data,
}

impl Event {
    /// The most bytes of JSON an event may have.
    pub const MAX_BYTES: usize = 16 * 1024;
}

/// What can happen. The text form is the CloudEvents `type` and the AMQP routing key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The milter saw the message, and it goes out tracked.
    Accepted,
    /// The next server took responsibility for it.
    Delivered,
    /// Delivery failed for now; Postfix tries again.
    Deferred,
    /// Delivery failed for good.
    Bounced,
    /// Postfix gave up after its queue lifetime.
    Expired,
    /// The recipient called it spam (RFC 5965).
    Complained,
    /// The pixel was loaded.
    Opened,
    /// A link was followed.
    Clicked,
}

impl Kind {
    /// Every kind, in the order in which they tend to happen.
    pub const ALL: [Self; 8] = [
        Self::Accepted,
        Self::Delivered,
        Self::Deferred,
        Self::Bounced,
        Self::Expired,
        Self::Complained,
        Self::Opened,
        Self::Clicked,
    ];

    /// The CloudEvents `type` and AMQP routing key.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "mailtap.message.accepted",
            Self::Delivered => "mailtap.message.delivered",
            Self::Deferred => "mailtap.message.deferred",
            Self::Bounced => "mailtap.message.bounced",
            Self::Expired => "mailtap.message.expired",
            Self::Complained => "mailtap.message.complained",
            Self::Opened => "mailtap.message.opened",
            Self::Clicked => "mailtap.link.clicked",
        }
    }

    /// The kind that a `type` names; `None` for anything else.
    #[must_use]
    pub fn from_type(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
