//! The message id: mailtap's own name of one message, carried by tokens, headers and events.
//!
//! - Layer: word
//! - Takes: a time and 32 random bits, or 16 characters of text.
//! - Gives: an id that sorts by time and needs no database.
//! - On failure: `ParseError`.
//! - See: RFC 4648 section 7 (base32hex, here in lower case).

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32HEX_NOPAD;

use super::{ParseError, Timestamp, serde_as_text};

/// 48 bits of milliseconds since 1970 and 32 random bits; 16 characters of lower-case base32hex as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId([u8; MessageId::BYTES]);

impl MessageId {
    /// Length in bytes.
    pub const BYTES: usize = 10;

    /// The id of a message that came at `now`; `random` makes it unique within its millisecond.
    #[must_use]
    pub fn new(now: Timestamp, random: u32) -> Self {
        let mut id = [0; Self::BYTES];
        let [_, _, millis @ ..] = now.as_millis().to_be_bytes();
        let (time, rest) = id.split_at_mut(6);
        time.copy_from_slice(&millis);
        rest.copy_from_slice(&random.to_be_bytes());
        Self(id)
    }

    /// When the message came, to the millisecond.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        let [a, b, c, d, e, f, ..] = self.0;
        Timestamp::from_millis(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
    }

    /// The id as it stands in tokens.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl From<[u8; Self::BYTES]> for MessageId {
    fn from(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }
}

impl FromStr for MessageId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = |why| ParseError { what: "message id", why };
        if text.len() != 16 {
            return Err(error("it has not 16 characters"));
        }
        let bytes = BASE32HEX_NOPAD
            .decode(text.to_ascii_uppercase().as_bytes())
            .map_err(|_| error("it has a character other than 0-9 and a-v"))?;
        bytes.try_into().map(Self).map_err(|_| error("it has not 10 bytes"))
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32HEX_NOPAD.encode(&self.0).to_ascii_lowercase())
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageId({self})")
    }
}

serde_as_text!(MessageId);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn text_and_time_come_back() {
        let now = Timestamp::from_millis(1_795_453_080_123);
        let id = MessageId::new(now, 0xdead_beef);
        assert_eq!(id.time(), now);
        assert_eq!(id.to_string().len(), 16);
        assert_eq!(id.to_string().parse::<MessageId>().unwrap(), id);
        assert_eq!(id.to_string().to_uppercase().parse::<MessageId>().unwrap(), id);
    }

    #[test]
    fn ids_sort_by_time() {
        let early = MessageId::new(Timestamp::from_millis(1_000), u32::MAX);
        let late = MessageId::new(Timestamp::from_millis(1_001), 0);
        assert!(early < late && early.to_string() < late.to_string());
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in ["", "0123456789abcde", "0123456789abcdef0", "0123456789abcdez", "ä123456789abcde"] {
            assert!(bad.parse::<MessageId>().is_err(), "{bad:?}");
        }
    }
}
