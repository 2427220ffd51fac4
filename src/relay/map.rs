//! From events to GA4's: names, parameters, client, property.
//!
//! - Layer: decision
//! - Takes: an event.
//! - Gives: the GA4 event with its parameters, the client it belongs to, the property it goes to.
//! - On failure: nothing can fail; what GA4 would not take is `validate`'s matter.
//! - See: `docs/ga4.md`; Google's reference of the Measurement Protocol (GA4, gtag).

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::event::{Event, Kind, Machine};

/// What is hashed before a pseudonym, so that no other use gives the same numbers.
const CLIENT_PURPOSE: &[u8] = b"mailtap ga4 client v1\0";

/// A GA4 event before it is validated.
#[derive(Debug, Clone, PartialEq)]
pub struct Mapped {
    /// GA4's name.
    pub name: &'static str,
    /// Its parameters.
    pub params: Map<String, Value>,
    /// When it happened, in microseconds since 1970.
    pub timestamp_micros: u64,
    /// The client.
    pub client_id: String,
    /// Which of the properties it goes to.
    pub property: usize,
}

/// The GA4 name of a kind of event.
#[must_use]
pub const fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Accepted => "email_sent",
        Kind::Delivered => "email_delivered",
        Kind::Deferred => "email_deferred",
        Kind::Bounced => "email_bounced",
        Kind::Expired => "email_expired",
        Kind::Complained => "email_spam_report",
        Kind::Opened => "email_open",
        Kind::Clicked => "email_click",
    }
}

/// Maps an event; `domains` are the sender domains of each property, none meaning all others.
#[must_use]
pub fn map(event: &Event, domains: &[Vec<String>]) -> Option<Mapped> {
    let data = &event.data;
    let mut params = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            params.insert(key.to_owned(), value);
        }
    };
    let text = |text: &Option<String>| text.clone().map(Value::from);
    put("event_id", Some(json!(event.id.to_string())));
    put("email_id", Some(json!(event.message)));
    put("campaign_id", data.campaign.as_ref().map(|campaign| json!(campaign)));
    put("link_id", data.link.map(|link| json!(link.to_string())));
    put("link_domain", text(&data.link_host));
    put("link_path", text(&data.link_path));
    put("bounce_type", data.class.map(|class| json!(class.as_str())));
    put("bounce_code", text(&data.dsn));
    put("provider", text(&data.provider));
    put("attempt", data.attempt.map(Value::from));
    put("delay_ms", data.delay_ms.map(Value::from));
    put("is_machine", data.machine.map(|machine| json!(machine.as_str())));
    put("machine_rule", text(&data.machine_rule));
    put("late", data.late.filter(|late| *late).map(|_| json!("yes")));
    put("session_id", text(&data.ga_session_id));
    // Without it GA4 does not count the person as active; a machine's visit must not have it.
    let human = matches!(event.kind, Kind::Opened | Kind::Clicked) && data.machine == Some(Machine::No);
    put("engagement_time_msec", human.then(|| json!(1)));
    Some(Mapped {
        name: name(event.kind),
        params,
        timestamp_micros: event.time.as_micros(),
        client_id: client_id(event),
        property: property(event, domains)?,
    })
}

/// The visitor's own client where the event knows it; else one of the recipient; else one of this event alone, because
/// a client must never be shared between people.
#[must_use]
pub fn client_id(event: &Event) -> String {
    if let Some(client) = &event.data.ga_client_id {
        return client.clone();
    }
    let hash = Sha256::new().chain_update(CLIENT_PURPOSE);
    let hash = match &event.data.recipient {
        Some(recipient) => hash.chain_update(recipient.as_bytes()),
        None => hash.chain_update(event.id.as_bytes()),
    };
    let hash = hash.finalize();
    let number = |at: usize| {
        let bytes = hash.iter().skip(at).take(4).fold(0_u32, |number, byte| (number << 8) | u32::from(*byte));
        (bytes & 0x7fff_ffff).max(1)
    };
    format!("{}.{}", number(0), number(4))
}

/// The first property that names the sender's domain, else the one for all others.
fn property(event: &Event, domains: &[Vec<String>]) -> Option<usize> {
    let domain = event.data.sender_domain.as_deref().unwrap_or_default();
    let names = |pattern: &String| match pattern.strip_prefix("*.") {
        Some(parent) => domain.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.')),
        None => pattern == domain,
    };
    let named = domains.iter().position(|patterns| patterns.iter().any(names));
    named.or_else(|| domains.iter().position(Vec::is_empty))
}
