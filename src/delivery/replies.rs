//! What a server said, for events: not at all, without names, or as it came.
//!
//! - Layer: decision
//! - Takes: the text of an attempt, and the addresses it was about.
//! - Gives: text for the event, if the site wants it.
//! - On failure: `None` where nothing is left.
//! - Limits: `MAX_CHARS`. Scrubbing takes what looks like an address or a host, and the recipient's name; a name that the
//!   server puts otherwise stays.

#![warn(clippy::indexing_slicing)]

use super::reply::{is_host, reply_in};

/// As `docs/event.schema.json` has it.
const MAX_CHARS: usize = 1_000;
/// What stands for a name.
const GONE: &str = "…";

/// Whether replies go into events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Replies {
    /// They don't.
    #[default]
    Off,
    /// Without names, as far as these can be found.
    Scrubbed,
    /// As they came.
    Full,
}

impl Replies {
    /// The reply as it goes into an event about these addresses.
    #[must_use]
    pub fn of(self, text: &[u8], addresses: &[&[u8]]) -> Option<String> {
        let text = match self {
            Self::Off => return None,
            Self::Scrubbed => scrubbed(reply_in(text).unwrap_or(text), addresses),
            Self::Full => String::from_utf8_lossy(text).into_owned(),
        };
        let text: String = text.trim().chars().take(MAX_CHARS).collect();
        (!text.is_empty()).then_some(text)
    }
}

fn scrubbed(text: &[u8], addresses: &[&[u8]]) -> String {
    let names: Vec<String> = addresses.iter().flat_map(|address| names(address)).collect();
    let text = String::from_utf8_lossy(text);
    let words = text.split_whitespace().map(|word| if is_name(word, &names) { GONE } else { word });
    words.collect::<Vec<_>>().join(" ")
}

/// Local part and domain, in lower case, without quotes.
fn names(address: &[u8]) -> impl Iterator<Item = String> {
    let address = String::from_utf8_lossy(address).to_lowercase();
    let (local, domain) = address.rsplit_once('@').unwrap_or((&address, ""));
    let local = local.trim_matches('"');
    let without_tag = local.split('+').next().unwrap_or_default();
    let all = [local, without_tag, domain].map(str::to_owned);
    all.into_iter().filter(|name| !name.is_empty())
}

fn is_name(word: &str, names: &[String]) -> bool {
    let lower = word.to_lowercase();
    let is_address = lower.contains('@')
        || lower.contains("%40")
        || lower.contains("=40")
        || lower.contains("://")
        || word.contains('<') && word.contains('>')
        || word.contains('[') && word.contains(']');
    let bare = lower.trim_matches(|c: char| !c.is_alphanumeric());
    is_address || is_host(word.as_bytes()) || is_ip(bare) || names.iter().any(|name| name == bare)
}

fn is_ip(word: &str) -> bool {
    word.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "host mx.partner.example[192.0.2.1] said: 550 5.1.1 <Anna+x@partner.example>: user \"anna\" unknown \
                        at partner.example 2001:db8::1, see https://partner.example/?a=anna%40x (in reply to RCPT TO command)";

    #[test]
    fn names_go_and_words_stay() {
        let of = |replies: Replies| replies.of(TEXT.as_bytes(), &[b"anna+x@partner.example"]);
        assert_eq!(of(Replies::Off), None);
        assert_eq!(of(Replies::Full).as_deref(), Some(TEXT));
        assert_eq!(
            of(Replies::Scrubbed).as_deref(),
            Some("550 5.1.1 … user … unknown at … … see … (in reply to RCPT TO command)")
        );
        assert_eq!(Replies::Full.of(b" ", &[]), None);
        assert_eq!(Replies::Full.of(&b"x".repeat(5_000), &[]).map(|text| text.len()), Some(MAX_CHARS));
    }
}
