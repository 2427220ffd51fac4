//! The words that open a connection.
//!
//! - Layer: word
//! - Takes: the data of an option negotiation, either way.
//! - Gives: version, actions, protocol flags, and what follows them.
//! - On failure: `None` when fewer than 12 bytes are there.
//! - See: Postfix `src/milter/milter8.c`, `milter8_connect`

#![warn(clippy::indexing_slicing)]

use alloc::vec::Vec;

use super::{Actions, Protocol};

/// The newest protocol version spoken here.
pub const NEWEST_VERSION: u32 = 6;
/// The oldest protocol version spoken here.
pub const OLDEST_VERSION: u32 = 2;

/// What one side offers, or what the other takes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// The protocol version.
    pub version: u32,
    /// What the filter may do.
    pub actions: Actions,
    /// How the two speak.
    pub protocol: Protocol,
}

impl Offer {
    /// What Postfix 2.6 and later offers.
    pub const POSTFIX: Self =
        Self { version: NEWEST_VERSION, actions: Actions::VERSION_6, protocol: Protocol::POSTFIX };

    pub(crate) fn split(data: &[u8]) -> Option<(Self, &[u8])> {
        let (version, rest) = split_u32(data)?;
        let (actions, rest) = split_u32(rest)?;
        let (protocol, rest) = split_u32(rest)?;
        Some((
            Self { version, actions: Actions::from_bits(actions), protocol: Protocol::from_bits(protocol) },
            rest,
        ))
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        for word in [self.version, self.actions.bits(), self.protocol.bits()] {
            out.extend_from_slice(&word.to_be_bytes());
        }
    }
}

pub(crate) fn split_u32(data: &[u8]) -> Option<(u32, &[u8])> {
    let (word, rest) = data.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*word), rest))
}
