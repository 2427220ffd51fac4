//! The headers that mailtap gives to messages, and how they are read.
//!
//! - Layer: edge
//! - Takes: the properties of a message.
//! - Gives: texts and numbers.
//! - On failure: a header of another type counts as none.
//! - Limits: numbers up to 1,000,000.

use lapin::BasicProperties;
use lapin::types::AMQPValue as Value;

/// Counts deliveries across retries; the broker's own count begins anew in each queue.
pub(in crate::queue) const ATTEMPTS: &str = "x-mailtap-attempts";
/// Why a message is dead, or waits.
pub(in crate::queue) const REASON: &str = "x-mailtap-reason";
/// What became of a dead letter: `dead`, `uncertain` or `malformed`.
pub(in crate::queue) const STATE: &str = "x-mailtap-state";
/// Since when a letter is dead, in milliseconds since 1970.
pub(in crate::queue) const SINCE: &str = "x-mailtap-since";
/// What a replayed event is known by instead of its id.
pub(in crate::queue) const REPLAY: &str = "x-mailtap-replay";
/// The number of the work queue that an event belongs to, where there are several. Without `x-`: by such headers an exchange
/// does not choose.
pub(in crate::queue) const PARTITION: &str = "mailtap-partition";
/// Whose event it is, as a pseudonym: what work queues are chosen by.
pub(in crate::queue) const RECIPIENT: &str = "x-mailtap-recipient";
/// The broker's word for why it first brought a message elsewhere: after a wait for its next try, that it was over.
pub(in crate::queue) const BROKERS_REASON: &str = "x-first-death-reason";

/// A header with a text.
pub(in crate::queue) fn text(properties: &BasicProperties, name: &str) -> Option<String> {
    match value(properties, name) {
        Some(Value::LongString(text)) => std::str::from_utf8(text.as_bytes()).ok().map(str::to_owned),
        Some(Value::ShortString(text)) => Some(text.to_string()),
        _ => None,
    }
}

/// A header with a number, whatever type the broker or another client gave it; 0 if there is none.
pub(in crate::queue) fn number(properties: &BasicProperties, name: &str) -> u32 {
    let number = match value(properties, name) {
        Some(Value::LongLongInt(number)) => u32::try_from(*number).ok(),
        Some(Value::LongInt(number)) => u32::try_from(*number).ok(),
        Some(Value::LongUInt(number)) => Some(*number),
        Some(Value::ShortInt(number)) => u32::try_from(*number).ok(),
        Some(Value::ShortShortInt(number)) => u32::try_from(*number).ok(),
        Some(Value::LongString(_)) => text(properties, name).and_then(|text| text.parse().ok()),
        _ => None,
    };
    number.unwrap_or(0).min(1_000_000)
}

/// The broker's word for why it brought a message where it is; its list of these begins with the last one.
pub(in crate::queue) fn last_death(properties: &BasicProperties) -> Option<String> {
    let Some(Value::FieldArray(deaths)) = value(properties, "x-death") else { return None };
    let Some(Value::FieldTable(last)) = deaths.as_slice().first() else { return None };
    match last.inner().get("reason")? {
        Value::LongString(reason) => std::str::from_utf8(reason.as_bytes()).ok().map(str::to_owned),
        Value::ShortString(reason) => Some(reason.to_string()),
        _ => None,
    }
}

fn value<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a Value> {
    properties.headers().as_ref().and_then(|headers| headers.inner().get(name))
}
