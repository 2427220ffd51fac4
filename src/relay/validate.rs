//! Every rule of GA4 that an event must keep, checked before it is sent, because GA4 answers 2xx to anything.
//!
//! - Layer: decision
//! - Takes: a mapped event, the time.
//! - Gives: the event, repaired where the rules say how, with the repairs named; or why it can't be sent.
//! - On failure: `Reject`, for the dead letters.
//! - Limits: 25 parameters, names of 40 and values of 100 characters (UTF-16 units here, the least that can be meant),
//!   72 hours (71 here, for the way), a session of the last 24 hours.
//! - See: Google's reference and "Limitations" of the Measurement Protocol (GA4, gtag); `docs/ga4.md`.

use std::time::Duration;

use serde_json::Value;

use super::map::Mapped;
use crate::identity::{Timestamp, has_address};

/// The most events of a request.
pub const MAX_EVENTS: usize = 25;
/// The most bytes of a request's body; Google's limit is 130 kB.
pub const MAX_BODY_BYTES: usize = 129_000;
const MAX_PARAMS: usize = 25;
const MAX_NAME_CHARS: usize = 40;
const MAX_VALUE_UNITS: usize = 100;
/// GA4 takes 72 hours; what is older when it arrives would be moved in time.
pub const MAX_AGE: Duration = Duration::from_secs(71 * 3_600);
/// GA4 joins an event to a session that began within this time; with an older one it would begin a new one.
const MAX_SESSION_AGE: Duration = Duration::from_secs(24 * 3_600);

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
/// Names that GA4 takes from apps only.
const APP_EVENTS: &[&str] = &["ad_impression", "in_app_purchase", "screen_view"];
/// Names by which GA4's own measurement on the site sends events: it takes them, and its reports count them together.
const MEASURED_EVENTS: &[&str] = &[
    "click",
    "file_download",
    "form_start",
    "form_submit",
    "page_view",
    "scroll",
    "video_start",
    "video_progress",
    "video_complete",
    "view_search_results",
    "view_complete",
];
const RESERVED_PARAMS: &[&str] = &["firebase_conversion", "timestamp_micros", "debug_mode"];
const RESERVED_PREFIXES: &[&str] = &["_", "firebase_", "ga_", "google_", "gtag."];

/// Why an event can't be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// Older than GA4 takes.
    Expired,
    /// A name that GA4 reserves, or of a form that it does not take.
    EventName,
    /// No client id of the form `number.number`.
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

/// Why GA4 does not take a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameFault {
    /// Longer than 40 characters.
    #[error("it has more than 40 characters")]
    Long,
    /// Something else than letters, digits and underscores.
    #[error("a name begins with a letter, and has only letters A to Z, digits and _")]
    Form,
    /// It begins with what GA4 keeps for itself.
    #[error("GA4 reserves names that begin with `{0}`")]
    Prefix(&'static str),
    /// A name of GA4's own.
    #[error("GA4 reserves this name")]
    Reserved,
    /// A name of events in apps.
    #[error("GA4 takes this name from apps only")]
    Apps,
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
    /// A session that is none, or none any more, was left out.
    Session,
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
            Self::Session => "session",
        }
    }
}

/// Checks and mends an event.
///
/// # Errors
/// `Reject`.
pub fn validate<'a>(mut event: Mapped<'a>, now: Timestamp) -> Result<(Mapped<'a>, Vec<Repair>), Reject> {
    let mut repairs = Vec::new();
    if !is_event_name(event.name) {
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
    let mut kept = 0;
    event.params.retain(|name, value| {
        let repair = if name == "session_id" && !is_session(value, time.min(now), now) {
            Err(Repair::Session)
        } else {
            param(name, value)
        };
        let keeps = match repair {
            Ok(_) if kept == MAX_PARAMS => Err(Repair::TooMany),
            other => other,
        };
        kept += usize::from(keeps.is_ok());
        repairs.extend(keeps.as_ref().map_or_else(|repair| Some(*repair), |repair| *repair));
        keeps.is_ok()
    });
    Ok((event, repairs))
}

/// Checks one parameter and mends its value: how it was mended, or why it is left out.
fn param(name: &str, value: &mut Value) -> Result<Option<Repair>, Repair> {
    if !is_param_name(name) {
        return Err(Repair::Param);
    }
    match value {
        Value::String(text) if has_address(text) => Err(Repair::Address),
        Value::String(text) => Ok(cut(text).map(str::len).map(|at| {
            text.truncate(at);
            Repair::Cut
        })),
        Value::Number(_) => Ok(None),
        Value::Bool(_) if name != "engagement_time_msec" => Ok(None),
        Value::Bool(_) | Value::Null | Value::Array(_) | Value::Object(_) => Err(Repair::Param),
    }
}

/// The text without what GA4 would not take; `None` if it takes all of it.
fn cut(text: &str) -> Option<&str> {
    // No character has more units than bytes.
    if text.len() <= MAX_VALUE_UNITS {
        return None;
    }
    let mut units = 0;
    let too_far = text.char_indices().find(|(_, character)| {
        units += character.len_utf16();
        units > MAX_VALUE_UNITS
    });
    too_far.and_then(|(at, _)| text.get(..at))
}

/// Whether this is the session of an event of that `time`, as far as its number tells, which is the second it began in.
fn is_session(value: &Value, time: Timestamp, now: Timestamp) -> bool {
    let text = value.as_str().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let number = value.as_u64().or_else(|| text.and_then(|text| text.parse().ok()));
    number.map(Timestamp::from_secs).is_some_and(|start| start <= time && now.since(start) <= MAX_SESSION_AGE)
}

/// Whether GA4 takes this name for an event of a web stream.
pub(super) fn is_event_name(name: &str) -> bool {
    event_name_fault(name).is_none()
}

/// Whether GA4 takes this name for a parameter, and takes the parameter for nothing else.
pub(super) fn is_param_name(name: &str) -> bool {
    param_name_fault(name).is_none()
}

/// Why GA4 does not take this name for an event of a web stream.
pub(super) fn event_name_fault(name: &str) -> Option<NameFault> {
    let apps = APP_EVENTS.contains(&name).then_some(NameFault::Apps);
    name_fault(name, RESERVED_EVENTS).or(apps)
}

/// Whether GA4's own measurement sends events of this name.
pub(super) fn is_measured_event(name: &str) -> bool {
    MEASURED_EVENTS.contains(&name)
}

/// Why GA4 does not take this name for a parameter.
pub(super) fn param_name_fault(name: &str) -> Option<NameFault> {
    name_fault(name, RESERVED_PARAMS)
}

fn name_fault(name: &str, reserved: &[&str]) -> Option<NameFault> {
    if name.len() > MAX_NAME_CHARS && name.is_ascii() {
        return Some(NameFault::Long);
    }
    if let Some(prefix) = RESERVED_PREFIXES.iter().find(|prefix| name.starts_with(**prefix)) {
        return Some(NameFault::Prefix(prefix));
    }
    let form = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match form {
        false => Some(NameFault::Form),
        true => reserved.contains(&name).then_some(NameFault::Reserved),
    }
}

/// `number.number`.
pub(super) fn is_client_id(text: &str) -> bool {
    let digits =
        |part: &str| !part.is_empty() && part.len() <= 20 && part.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once('.').is_some_and(|(random, time)| digits(random) && digits(time))
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
