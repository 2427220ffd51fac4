//! Who and what an event speaks of: message ids, pseudonyms, campaign ids, GA4 client ids, times.
//!
//! - Layer: word
//! - Takes: bytes, text and a key from the caller.
//! - Gives: types that cannot hold an address, a subject or any other personal data.
//! - On failure: `ParseError` names the kind of value and what is wrong with it, never the value.
//! - Limits: campaign ids 1–40 visible ASCII characters; message ids 10 bytes; pseudonyms 12 bytes.

mod address;
mod campaign;
mod message_id;
mod pseudonym;
mod time;

pub use address::has_address;
pub use campaign::CampaignId;
pub use message_id::MessageId;
pub use pseudonym::{Pseudonym, PseudonymKey};
pub use time::Timestamp;

/// Why a text is not the value that it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a {what}: {why}")]
pub struct ParseError {
    /// The kind of value that was expected.
    pub what: &'static str,
    /// What is wrong with the text.
    pub why: &'static str,
}

/// Serialises a type through its text form.
macro_rules! serde_as_text {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
use serde_as_text;
