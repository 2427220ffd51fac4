//! What a filter wants, and what is agreed.
//!
//! - Layer: decision
//! - Takes: [`Wanted`] of the filter, [`Offer`] of the MTA.
//! - Gives: [`Terms`], the intersection.
//! - On failure: [`NegotiationError`] names what the MTA lacks; the session then passes every message unmodified.
//! - See: Postfix `src/milter/milter8.c`, `milter8_connect`: it drops a filter that takes an action that was not offered

use alloc::string::String;
use alloc::vec::Vec;

use crate::wire::{Actions, MacroLists, MacroStage, NEWEST_VERSION, OLDEST_VERSION, Offer, Protocol};

/// What a filter wants of an MTA.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Wanted {
    /// Actions without which the filter can't work.
    pub required: Actions,
    /// Actions that are taken if offered.
    pub optional: Actions,
    /// Protocol flags that are taken if offered. None is required: the session replies wherever it must.
    pub protocol: Protocol,
    /// Macros to ask for, by stage: names separated by blanks. If there is one list, Postfix sends no macros for the
    /// stages without a list; if there is none, it sends those configured in `milter_*_macros`.
    pub macros: Vec<(MacroStage, String)>,
}

impl Default for Wanted {
    /// Headers and body may be edited; envelope, headers and body are read; the fewest round trips that leave room to
    /// accept a message at the end of its headers.
    fn default() -> Self {
        Self {
            required: Actions::ADD_HEADERS | Actions::CHANGE_HEADERS | Actions::CHANGE_BODY,
            optional: Actions::NONE,
            protocol: Self::FEW_ROUND_TRIPS,
            macros: Vec::new(),
        }
    }
}

impl Wanted {
    /// Protocol flags for a filter that decides at the end of headers and at the end of the message: no CONNECT, HELO,
    /// DATA or unknown commands, no replies in between, header values whole. One that does not look at the headers adds
    /// [`Protocol::NO_REPLY_END_OF_HEADERS`]; the driver finds that out by itself.
    pub const FEW_ROUND_TRIPS: Protocol = Protocol::NO_CONNECT
        .with(Protocol::NO_HELO)
        .with(Protocol::NO_DATA)
        .with(Protocol::NO_UNKNOWN)
        .with(Protocol::NO_REPLY_CONNECT)
        .with(Protocol::NO_REPLY_HELO)
        .with(Protocol::NO_REPLY_MAIL)
        .with(Protocol::NO_REPLY_RCPT)
        .with(Protocol::NO_REPLY_DATA)
        .with(Protocol::NO_REPLY_UNKNOWN)
        .with(Protocol::NO_REPLY_HEADER)
        .with(Protocol::NO_REPLY_BODY)
        .with(Protocol::LEADING_SPACE);

    /// The same for a filter that answers [`Interest::BodyUpTo`](super::Interest): each piece of a body is replied to, so
    /// that the MTA can be told to skip the rest.
    pub const SKIPS_BODIES: Protocol =
        Self::FEW_ROUND_TRIPS.without(Protocol::NO_REPLY_BODY).with(Protocol::SKIP);

    /// Agrees with an MTA.
    ///
    /// # Errors
    /// A required action that the MTA does not offer, or a version older than 2.
    pub fn agree(&self, offer: &Offer) -> Result<Terms, NegotiationError> {
        if offer.version < OLDEST_VERSION {
            return Err(NegotiationError::Version { offered: offer.version });
        }
        let missing = self.required - offer.actions;
        if !missing.is_empty() {
            return Err(NegotiationError::Actions { missing });
        }
        let mut actions = (self.required | self.optional) & offer.actions;
        let asks = !self.macros.is_empty() && offer.actions.contains(Actions::REQUEST_MACROS);
        if asks {
            actions |= Actions::REQUEST_MACROS;
        } else {
            actions = actions - Actions::REQUEST_MACROS;
        }
        let mut protocol = self.protocol & offer.protocol;
        if protocol.contains(Protocol::DATA_1M) {
            protocol = protocol - Protocol::DATA_256K;
        }
        Ok(Terms {
            version: offer.version.min(NEWEST_VERSION),
            actions,
            protocol,
            macros: if asks { MacroLists::join(&self.macros) } else { Vec::new() },
        })
    }
}

/// What filter and MTA agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// The protocol version.
    pub version: u32,
    /// What the filter may do.
    pub actions: Actions,
    /// How the two speak.
    pub protocol: Protocol,
    /// Macro lists in wire form, see [`MacroLists`].
    pub(crate) macros: Vec<u8>,
}

impl Terms {
    /// The terms that let every message through: no action, of each message its recipients and the end of its headers,
    /// where it is accepted.
    pub(crate) fn pass_through(offer: &Offer) -> Self {
        let protocol = Wanted::FEW_ROUND_TRIPS | Protocol::NO_HEADERS | Protocol::NO_BODY;
        Self {
            version: offer.version.min(NEWEST_VERSION),
            actions: Actions::NONE,
            protocol: protocol & offer.protocol,
            macros: Vec::new(),
        }
    }

    /// The largest piece of a body that either side sends, in bytes.
    #[must_use]
    pub const fn body_chunk_bytes(&self) -> usize {
        self.protocol.body_chunk_bytes()
    }

    /// Whether the MTA can be told to skip the rest of a body.
    pub(crate) const fn can_skip(&self) -> bool {
        self.protocol.contains(Protocol::SKIP)
    }

    /// Whether header values keep the blank after the colon.
    #[must_use]
    pub const fn leading_space(&self) -> bool {
        self.protocol.contains(Protocol::LEADING_SPACE)
    }

    /// Whether the MTA waits for a reply to the command with this code.
    pub(crate) const fn reply_due(&self, code: u8) -> bool {
        let silent = match code {
            b'D' | b'A' | b'Q' | b'K' => return false,
            b'C' => Protocol::NO_REPLY_CONNECT,
            b'H' => Protocol::NO_REPLY_HELO,
            b'M' => Protocol::NO_REPLY_MAIL,
            b'R' => Protocol::NO_REPLY_RCPT,
            b'T' => Protocol::NO_REPLY_DATA,
            b'U' => Protocol::NO_REPLY_UNKNOWN,
            b'L' => Protocol::NO_REPLY_HEADER,
            b'N' => Protocol::NO_REPLY_END_OF_HEADERS,
            b'B' => Protocol::NO_REPLY_BODY,
            _ => return true,
        };
        !self.protocol.contains(silent)
    }
}

/// Why a filter can't work with an MTA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NegotiationError {
    /// The MTA lets the filter do too little.
    #[error("the MTA does not offer {missing}")]
    Actions {
        /// What it lacks.
        missing: Actions,
    },
    /// The MTA is too old.
    #[error("the MTA speaks protocol version {offered}, older than {OLDEST_VERSION}")]
    Version {
        /// Its version.
        offered: u32,
    },
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use alloc::string::ToString;
    use alloc::vec;

    use super::*;

    #[test]
    fn takes_only_what_is_offered() {
        let wanted = Wanted { optional: Actions::QUARANTINE, ..Wanted::default() };
        let offer = Offer {
            version: 4,
            actions: Actions::from_bits(0x1f),
            protocol: Protocol::NO_HELO | Protocol::NO_RCPT,
        };
        let terms = wanted.agree(&offer).unwrap();
        assert_eq!(terms.version, 4);
        assert_eq!(terms.actions, wanted.required);
        assert_eq!(terms.protocol, Protocol::NO_HELO);
    }

    #[test]
    fn a_newer_mta_is_answered_with_our_version() {
        let offer = Offer { version: 9, ..Offer::POSTFIX };
        assert_eq!(Wanted::default().agree(&offer).unwrap().version, 6);
    }

    #[test]
    fn names_what_is_missing() {
        let offer = Offer { actions: Actions::ADD_HEADERS, ..Offer::POSTFIX };
        let error = Wanted::default().agree(&offer).unwrap_err();
        assert_eq!(error.to_string(), "the MTA does not offer CHANGE_BODY|CHANGE_HEADERS");
        let offer = Offer { version: 1, ..Offer::POSTFIX };
        assert_eq!(Wanted::default().agree(&offer), Err(NegotiationError::Version { offered: 1 }));
    }

    #[test]
    fn macros_are_asked_for_only_where_the_mta_lets() {
        let macros = vec![(MacroStage::EndOfMessage, "i".to_string())];
        let wanted = Wanted { macros, ..Wanted::default() };
        let terms = wanted.agree(&Offer::POSTFIX).unwrap();
        assert_eq!(terms.macros, b"\0\0\0\x05i\0");
        assert!(terms.actions.contains(Actions::REQUEST_MACROS));
        let offer = Offer { actions: Actions::from_bits(0x3f), ..Offer::POSTFIX };
        let terms = wanted.agree(&offer).unwrap();
        assert!(terms.macros.is_empty());
    }

    #[test]
    fn one_chunk_size_is_agreed() {
        let both = Protocol::DATA_256K | Protocol::DATA_1M;
        let wanted = Wanted { protocol: both, ..Wanted::default() };
        let offer = Offer { protocol: both, ..Offer::POSTFIX };
        assert_eq!(wanted.agree(&offer).unwrap().protocol, Protocol::DATA_1M);
        assert_eq!(wanted.agree(&Offer::POSTFIX).unwrap().body_chunk_bytes(), 65_535);
    }
}
