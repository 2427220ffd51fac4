//! The event id: a hash of what happened, so that finding it twice gives the same id.
//!
//! - Layer: word
//! - Takes: the parts that make a happening what it is, in a fixed order.
//! - Gives: 16 bytes of SHA-256, 22 characters of base64url as text.
//! - On failure: `EventError::Id` for a text that is none.
//! - Limits: parts of any length; each is preceded by its length, so that no two lists run together.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest, Sha256};

use super::EventError;

/// The id of an event.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId([u8; EventId::BYTES]);

impl EventId {
    /// Length in bytes.
    pub const BYTES: usize = 16;

    /// Begins an id; `what` keeps the ids of different kinds of happening apart.
    pub fn of(what: &str) -> EventIdBuilder {
        EventIdBuilder(Sha256::new()).part("mailtap event v1").part(what)
    }

    /// The id as bytes, for compact storage.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl From<[u8; Self::BYTES]> for EventId {
    fn from(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }
}

/// An id in the making.
#[derive(Debug)]
#[must_use]
pub struct EventIdBuilder(Sha256);

impl EventIdBuilder {
    /// Adds a part of what happened.
    pub fn part(mut self, part: impl AsRef<[u8]>) -> Self {
        let part = part.as_ref();
        self.0.update((part.len() as u64).to_be_bytes());
        self.0.update(part);
        self
    }

    /// The id of the parts so far.
    #[must_use]
    pub fn finish(self) -> EventId {
        let mut id = [0; EventId::BYTES];
        for (to, from) in id.iter_mut().zip(self.0.finalize()) {
            *to = from;
        }
        EventId(id)
    }
}

impl FromStr for EventId {
    type Err = EventError;

    fn from_str(text: &str) -> Result<Self, EventError> {
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| EventError::Id)?;
        bytes.try_into().map(Self).map_err(|_| EventError::Id)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64URL_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventId({self})")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_same_parts_give_the_same_id_and_others_another() {
        let id = |a: &str, b: &str| EventId::of("delivery").part(a).part(b).finish();
        assert_eq!(id("ab", "c"), id("ab", "c"));
        assert_ne!(id("ab", "c"), id("a", "bc"));
        assert_ne!(EventId::of("delivery").finish(), EventId::of("click").finish());
        assert_eq!(id("ab", "c").to_string().parse::<EventId>().unwrap(), id("ab", "c"));
        assert_eq!(id("ab", "c").to_string().len(), 22);
    }
}
