//! Names and numbers of GA4's documentation.
//!
//! - Layer: decision
//! - Takes: names, values.
//! - Gives: what is wrong with them.
//! - On failure: nothing can fail.
//! - See: Google's "Reference", "Limitations" and "Reserved names" of the Measurement Protocol (GA4, gtag).

pub(super) const MAX_BODY_BYTES: usize = 130_000;
pub(super) const MAX_EVENTS: usize = 25;
pub(super) const MAX_PARAMS: usize = 25;
pub(super) const MAX_USER_PROPERTIES: usize = 25;
pub(super) const MAX_USER_ID_CHARS: usize = 256;
pub(super) const MAX_USER_PROPERTY_CHARS: usize = 36;
pub(super) const HOURS_72_MICROS: u64 = 72 * 3_600 * 1_000_000;
const MAX_NAME_CHARS: usize = 40;
const MAX_USER_PROPERTY_NAME_CHARS: usize = 24;

const RESERVED: &[&str] = &[
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
    // For apps; a client_id is a web stream's.
    "ad_impression",
    "in_app_purchase",
    "screen_view",
];
/// What a website's own tag sends by itself: sent from elsewhere too, it counts twice.
const AUTOMATIC: &[&str] = &[
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
const RESERVED_USER_PROPERTIES: &[&str] = &[
    "first_open_time",
    "first_visit_time",
    "last_deep_link_referrer",
    "user_id",
    "first_open_after_install",
];
const PREFIXES: &[&str] = &["_", "firebase_", "ga_", "google_", "gtag."];

/// How many characters the value of a parameter may have.
pub(super) fn max_value_chars(param: &str) -> usize {
    match param {
        "page_title" => 300,
        "page_referrer" => 420,
        "page_location" => 1_000,
        _ => 100,
    }
}

pub(super) fn is_automatic(event: &str) -> bool {
    AUTOMATIC.contains(&event)
}

/// What is wrong with the name of an event: Google's words and code.
pub(super) fn event_name_problem(index: usize, name: &str) -> Option<(String, &'static str)> {
    let at = format!("Event at index: [{index}] has");
    if name.is_empty() {
        return Some((format!("{at} no name."), "VALUE_REQUIRED"));
    }
    if RESERVED.contains(&name) {
        return Some((format!("{at} name [{name}] which is reserved."), "NAME_RESERVED"));
    }
    if has_prefix(name) || !name.starts_with(|first: char| first.is_ascii_alphabetic()) {
        let text = format!("{at} invalid name [{name}]. Names must start with an alphabetic character.");
        return Some((text, "NAME_INVALID"));
    }
    if !is_of_form(name) {
        let text =
            format!("{at} invalid name [{name}]. Only alphanumeric characters and underscores are allowed.");
        return Some((text, "NAME_INVALID"));
    }
    let text = format!("{at} name [{name}] of more than {MAX_NAME_CHARS} characters.");
    (name.len() > MAX_NAME_CHARS).then_some((text, "NAME_INVALID"))
}

/// What is wrong with the name of a parameter.
pub(super) fn param_name_problem(name: &str) -> Option<(&'static str, &'static str)> {
    if name == "firebase_conversion" {
        return Some(("reserved", "NAME_RESERVED"));
    }
    let wrong = !is_of_form(name) || has_prefix(name) || name.len() > MAX_NAME_CHARS;
    wrong.then_some(("invalid name", "NAME_INVALID"))
}

/// What is wrong with the name of a user property.
pub(super) fn user_property_name_problem(name: &str) -> Option<(&'static str, &'static str)> {
    if RESERVED_USER_PROPERTIES.contains(&name) {
        return Some(("reserved", "NAME_RESERVED"));
    }
    let wrong = !is_of_form(name) || has_prefix(name) || name.len() > MAX_USER_PROPERTY_NAME_CHARS;
    wrong.then_some(("invalid name", "NAME_INVALID"))
}

/// `number.number`, or the whole value of a `_ga` cookie.
pub(super) fn is_client_id(text: &str) -> bool {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let parts: Vec<&str> = text.split('.').collect();
    match parts.as_slice() {
        [random, time] => number(random) && number(time),
        ["GA1", depth, random, time] => depth.split('-').all(number) && number(random) && number(time),
        _ => false,
    }
}

/// Whether a text looks as if it held a mail address, which Google's policy forbids anywhere.
pub(super) fn may_hold_address(text: &str) -> bool {
    ["@", "%40", "%2540", "\u{ff20}"].iter().any(|at| text.contains(at))
}

fn has_prefix(name: &str) -> bool {
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn is_of_form(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
