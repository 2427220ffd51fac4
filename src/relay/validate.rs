//! Every rule of GA4 that an event must keep, checked before it is sent, because GA4 answers 2xx to anything.
//!
//! - Layer: decision
//! - Takes: a mapped event, the time.
//! - Gives: the event, repaired where the rules say how, with the repairs named; or why it can't be sent.
//! - On failure: `Reject`, for the dead letters.
//! - Limits: 25 parameters, names of 40 and values of 100 characters, 72 hours (71 here, for the way).
//! - See: Google's reference and "Limitations" of the Measurement Protocol (GA4, gtag); `docs/ga4.md`.

use std::time::Duration;

use serde_json::Value;

use super::map::Mapped;
use crate::identity::Timestamp;

/// The most events of a request.
pub const MAX_EVENTS: usize = 25;
/// The most bytes of a request's body; Google's limit is 130 kB.
pub const MAX_BODY_BYTES: usize = 129_000;
const MAX_PARAMS: usize = 25;
const MAX_NAME_CHARS: usize = 40;
const MAX_VALUE_CHARS: usize = 100;
/// GA4 takes 72 hours; what is older when it arrives would be moved in time.
pub const MAX_AGE: Duration = Duration::from_secs(71 * 3_600);

const RESERVED_EVENTS: &[&str] = &[
    "ad_activeview",
    "ad_click",
    "ad_exposure",
    "ad_query",
    "ad_reward",
    "adunit_exposure",
    "app_clear_data",
    "app_exception",
    "app_install",
    "app_remove",
    "app_store_refund",
    "app_update",
    "app_upgrade",
    "dynamic_link_app_open",
    "dynamic_link_app_update",
    "dynamic_link_first_open",
    "error",
    "firebase_campaign",
    "firebase_in_app_message_action",
    "firebase_in_app_message_dismiss",
    "firebase_in_app_message_impression",
    "first_open",
    "first_visit",
    "notification_dismiss",
    "notification_foreground",
    "notification_open",
    "notification_receive",
    "notification_send",
    "os_update",
    "session_start",
    "user_engagement",
];
const RESERVED_PREFIXES: &[&str] = &["_", "firebase_", "ga_", "google_", "gtag."];

/// Why an event can't be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// Older than GA4 takes.
    Expired,
    /// A name that GA4 reserves, or of a form that it does not take.
    EventName,
    /// No client id of the form `number.number`, or a cookie value.
    ClientId,
}

impl Reject {
    /// The word in metrics and dead letters.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::EventName => "event_name",
            Self::ClientId => "client_id",
        }
    }
}

/// What was mended in an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// A value that looks like a mail address was left out.
    Address,
    /// A value was cut to 100 characters.
    Cut,
    /// A parameter with a name or type that GA4 does not take was left out.
    Param,
    /// Parameters beyond the 25th were left out.
    TooMany,
    /// A time in the future became now.
    Future,
}

impl Repair {
    /// The word in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Cut => "cut",
            Self::Param => "param",
            Self::TooMany => "too_many_params",
            Self::Future => "future",
        }
    }
}

/// Checks and mends an event.
///
/// # Errors
/// `Reject`.
pub fn validate(mut event: Mapped, now: Timestamp) -> Result<(Mapped, Vec<Repair>), Reject> {
    let mut repairs = Vec::new();
    if !is_name(event.name) || RESERVED_EVENTS.contains(&event.name) {
        return Err(Reject::EventName);
    }
    if !is_client_id(&event.client_id) {
        return Err(Reject::ClientId);
    }
    let time = Timestamp::from_micros(event.timestamp_micros);
    if now.since(time) > MAX_AGE {
        return Err(Reject::Expired);
    }
    if time > now {
        event.timestamp_micros = now.as_micros();
        repairs.push(Repair::Future);
    }
    let mut params = serde_json::Map::new();
    for (name, value) in event.params {
        match param(&name, value) {
            Ok((value, repair)) => {
                repairs.extend(repair);
                if params.len() < MAX_PARAMS {
                    params.insert(name, value);
                } else {
                    repairs.push(Repair::TooMany);
                }
            }
            Err(repair) => repairs.push(repair),
        }
    }
    event.params = params;
    Ok((event, repairs))
}

/// Checks one parameter: the value to send, or why it is left out.
fn param(name: &str, value: Value) -> Result<(Value, Option<Repair>), Repair> {
    if !is_name(name) || name == "firebase_conversion" {
        return Err(Repair::Param);
    }
    match value {
        Value::String(text) if has_address(&text) => Err(Repair::Address),
        Value::String(text) if text.chars().count() > MAX_VALUE_CHARS => {
            Ok((text.chars().take(MAX_VALUE_CHARS).collect::<String>().into(), Some(Repair::Cut)))
        }
        Value::String(_) | Value::Number(_) | Value::Bool(_) => Ok((value, None)),
        Value::Null | Value::Array(_) | Value::Object(_) => Err(Repair::Param),
    }
}

fn is_name(name: &str) -> bool {
    let form = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.len() <= MAX_NAME_CHARS
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    form && !RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// `number.number`.
fn is_client_id(text: &str) -> bool {
    let digits =
        |part: &str| !part.is_empty() && part.len() <= 20 && part.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once('.').is_some_and(|(random, time)| digits(random) && digits(time))
}

/// Whether a text may hold a mail address, also percent-encoded or with a wide at sign.
#[must_use]
pub fn has_address(text: &str) -> bool {
    text.contains(['@', '\u{ff20}', '\u{fe6b}'])
        || text.contains("%40")
        || text.to_ascii_lowercase().contains("%2540")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: u64 = 1_795_000_000;

    fn event() -> Mapped {
        Mapped {
            name: "email_click",
            params: serde_json::Map::new(),
            timestamp_micros: NOW * 1_000_000,
            client_id: "1.2".into(),
            property: 0,
        }
    }

    fn checked(event: Mapped) -> Result<(Mapped, Vec<Repair>), Reject> {
        validate(event, Timestamp::from_secs(NOW))
    }

    fn with(name: &str, value: Value) -> (Mapped, Vec<Repair>) {
        let mut event = event();
        event.params.insert(name.into(), value);
        checked(event).unwrap()
    }

    #[test]
    fn time_has_a_limit_on_each_side() {
        let at = |micros: u64| checked(Mapped { timestamp_micros: micros, ..event() });
        let oldest = (NOW - 71 * 3_600) * 1_000_000;
        assert!(at(oldest).is_ok());
        assert_eq!(at(oldest - 1), Err(Reject::Expired));
        assert_eq!(at(NOW * 1_000_000).unwrap().1, []);
        let (mended, repairs) = at(NOW * 1_000_000 + 1).unwrap();
        assert_eq!((mended.timestamp_micros, repairs), (NOW * 1_000_000, vec![Repair::Future]));
    }

    #[test]
    fn values_have_100_characters() {
        let (kept, repairs) = with("p", json!("ż".repeat(100)));
        assert_eq!((kept.params["p"].as_str().unwrap().chars().count(), repairs), (100, vec![]));
        let (cut, repairs) = with("p", json!("ż".repeat(101)));
        assert_eq!((cut.params["p"].as_str().unwrap().chars().count(), repairs), (100, vec![Repair::Cut]));
    }

    #[test]
    fn names_have_40_characters_and_a_form() {
        assert_eq!(with(&"n".repeat(40), json!(1)).1, []);
        for bad in [&"n".repeat(41)[..], "", "1a", "a-b", "ä", "_x", "ga_x", "google_x", "firebase_x"] {
            let (event, repairs) = with(bad, json!(1));
            assert_eq!((event.params.len(), repairs), (0, vec![Repair::Param]), "{bad}");
        }
    }

    #[test]
    fn there_are_25_parameters_at_the_most() {
        let mut event = event();
        (0..25).for_each(|n| drop(event.params.insert(format!("p{n}"), json!(n))));
        assert_eq!(checked(event.clone()).unwrap().1, []);
        event.params.insert("p25".into(), json!(25));
        let (cut, repairs) = checked(event).unwrap();
        assert_eq!((cut.params.len(), repairs), (25, vec![Repair::TooMany]));
    }

    #[test]
    fn addresses_never_leave() {
        for bad in ["ann@example.org", "x=ann%40example.org", "ann＠example.org", "a%2540b", "A%2540B"] {
            let (event, repairs) = with("link_path", json!(bad));
            assert_eq!((event.params.len(), repairs), (0, vec![Repair::Address]), "{bad}");
        }
        assert_eq!(with("link_path", json!("/a%4b")).1, []);
    }

    #[test]
    fn nulls_and_lists_are_left_out() {
        for bad in [json!(null), json!([1]), json!({})] {
            assert_eq!(with("p", bad).1, [Repair::Param]);
        }
    }

    #[test]
    fn clients_are_two_numbers() {
        for bad in ["", "1", "1.", ".2", "a.b", "1.2.3", "GA1.1.1.2"] {
            assert_eq!(checked(Mapped { client_id: bad.into(), ..event() }), Err(Reject::ClientId), "{bad}");
        }
    }
}
