//! The particulars of an event: the CloudEvents `data` object.
//!
//! - Layer: word
//! - Takes: what a role knows.
//! - Gives: one flat object; what is not known is left out.
//! - On failure: an unknown key or a wrong type is an error of `wire`.
//! - See: `docs/events.md` for the meaning of each member, `docs/event.schema.json`.

use serde::{Deserialize, Serialize};

use crate::identity::{CampaignId, Pseudonym};

/// Everything that an event can say. No member can hold an address, a subject, or the address of a client; but for
/// `reply`, which is absent unless a site has asked for it, and never goes to GA4.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// The campaign the message belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub campaign: Option<CampaignId>,
    /// The recipient's pseudonym; absent where several recipients share one copy and the event can't tell which.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipient: Option<Pseudonym>,
    /// The sender's domain (the company's own): chooses the GA4 property.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender_domain: Option<String>,
    /// Postfix's queue id on the host of the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_id: Option<String>,

    /// Accepted: how many links were rewritten.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub links: Option<u32>,
    /// Accepted: whether a pixel was added.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pixel: Option<bool>,
    /// Accepted: how many envelope recipients the message has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipients: Option<u32>,

    /// Delivery: the enhanced status code, like `5.1.1` (RFC 3463).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dsn: Option<String>,
    /// Delivery: what kind of failure it was; absent for what succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<BounceClass>,
    /// Delivery: why that class, in a few words of the rule that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Delivery: what the server said. Only where the site has asked for it: it may name people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
    /// Delivery: which attempt this was, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Delivery: milliseconds since Postfix took the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// Delivery: the three-digit SMTP reply, where there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smtp_code: Option<u16>,
    /// Delivery: the receiving provider, like `gmail`, from a short list; absent for others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Delivery: Postfix's word for the TLS level (3.11 and later), or for the trust in the connection (before).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,

    /// Click: the number of the link within the message, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<u16>,
    /// Click: the host of the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_host: Option<String>,
    /// Click: the path of the target, without query and fragment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_path: Option<String>,
    /// Open and click: whether a machine did it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    /// Open and click: the name of the rule that said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_rule: Option<String>,
    /// Open and click: the name of the set of networks that the client is in, `other` for none; never its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Open and click: the family of the client's user agent, `other` for none that is known; never its text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Open and click: a person did what only a machine had done before; it counts as the first of a person.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<bool>,
    /// Open: nobody loaded the pixel, but a followed link says that the message was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub implied: Option<bool>,
    /// Open and click: whether the link was older than the site counts as fresh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late: Option<bool>,
    /// Open and click: whether it is the first of its recipient (and link) within the tracker's window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unique: Option<bool>,
    /// Open and click: the GA4 client id of the visitor's own `_ga` cookie.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ga_client_id: Option<String>,
    /// Open and click: the GA4 session id of the visitor's own `_ga_<stream>` cookie.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ga_session_id: Option<String>,
}

/// Why a delivery failed, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BounceClass {
    /// The mailbox or domain does not exist: never try again.
    Hard,
    /// A passing trouble of the receiving side.
    Soft,
    /// The mailbox is over its quota.
    MailboxFull,
    /// The sender's address or domain is on a block list, or its reputation is too low.
    Block,
    /// A rule of the receiver: content, authentication, size.
    Policy,
    /// The receiver asked to send slower.
    RateLimit,
    /// No connection, no route, DNS, TLS.
    Network,
    /// Nothing more can be said.
    Unknown,
}

impl BounceClass {
    /// The word in events, the configuration and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hard => "hard",
            Self::Soft => "soft",
            Self::MailboxFull => "mailbox-full",
            Self::Block => "block",
            Self::Policy => "policy",
            Self::RateLimit => "rate-limit",
            Self::Network => "network",
            Self::Unknown => "unknown",
        }
    }
}

/// Whether a machine opened or clicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Machine {
    /// Nothing speaks for a machine.
    No,
    /// Something does, but a person may be behind it.
    Probable,
    /// It is one.
    Certain,
}

impl Machine {
    /// The word in events and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Probable => "probable",
            Self::Certain => "certain",
        }
    }
}
