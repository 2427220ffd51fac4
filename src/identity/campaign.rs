//! The campaign id: what groups messages in reports.
//!
//! - Layer: word
//! - Takes: text from a header, a token or the configuration.
//! - Gives: an id that is safe in a header, a log line, a token and a GA4 parameter.
//! - On failure: `ParseError`, or with `from_header` the nearest id that is safe.
//! - Limits: 1–40 bytes, so that Postfix 3.7 logs `X-Mailtap-Campaign: <id>` whole within its 60 characters.

use std::fmt;
use std::str::FromStr;

use super::{ParseError, has_address, serde_as_text};

/// A campaign id: 1–40 of the characters `A–Z a–z 0–9 . _ : / + = -`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CampaignId(String);

impl CampaignId {
    /// The most bytes an id can have.
    pub const MAX_BYTES: usize = 40;

    /// Makes an id of a header value as applications write it: other characters become `-`, the rest is cut.
    ///
    /// Gives `None` where nothing is left, and where the value holds an at sign in any form: it may be an address.
    #[must_use]
    pub fn from_header(value: &str) -> Option<Self> {
        let value = value.trim();
        if has_address(value) {
            return None;
        }
        let mut id = String::with_capacity(Self::MAX_BYTES);
        for character in value.chars() {
            if id.len() == Self::MAX_BYTES {
                break;
            }
            match character {
                c if is_allowed(c) => id.push(c),
                _ if id.ends_with('-') || id.is_empty() => {}
                _ => id.push('-'),
            }
        }
        let id = id.trim_end_matches('-');
        (!id.is_empty()).then(|| Self(id.to_owned()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_allowed(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | ':' | '/' | '+' | '=' | '-')
}

impl FromStr for CampaignId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = |why| Err(ParseError { what: "campaign id", why });
        if text.is_empty() {
            return error("it is empty");
        }
        if text.len() > Self::MAX_BYTES {
            return error("it is longer than 40 characters");
        }
        if !text.chars().all(is_allowed) {
            return error("it has a character other than letters, digits and . _ : / + = -");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for CampaignId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CampaignId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CampaignId({})", self.0)
    }
}

serde_as_text!(CampaignId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_value_becomes_a_safe_id() {
        let of = |value| CampaignId::from_header(value).map(|id| id.to_string());
        assert_eq!(of(" spring-2026 "), Some("spring-2026".into()));
        assert_eq!(of("Spring sale: day 1!"), Some("Spring-sale:-day-1".into()));
        assert_eq!(of("żółw"), Some("w".into()));
        for address in [
            "ann@example.org",
            "ann%40example.org",
            "x-ann%2540example.org",
            "ann&#64;example.org",
            "ann＠example.org",
        ] {
            assert_eq!(of(address), None, "an address is never a campaign id: {address}");
        }
        assert_eq!(of("  \t"), None);
        assert_eq!(of(&"x".repeat(99)), Some("x".repeat(40)));
    }

    #[test]
    fn an_id_is_checked_strictly() {
        assert!("a.b_c:d/e+f=g-1".parse::<CampaignId>().is_ok());
        for bad in ["", "a b", "a@b", "ä", "a\r\nb", &"x".repeat(41)] {
            assert!(bad.parse::<CampaignId>().is_err(), "{bad:?}");
        }
    }
}
