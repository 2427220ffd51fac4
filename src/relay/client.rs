//! Whose event it is, as GA4 counts people.
//!
//! - Layer: decision
//! - Takes: an event.
//! - Gives: the `client_id`: the visitor's own, else one of the recipient, else one of this event alone.
//! - On failure: a cookie's client that is not `number.number` counts as none.
//! - See: `docs/ga4.md`.

use sha2::{Digest, Sha256};

use super::validate::is_client_id;
use crate::event::Event;
use crate::identity::Pseudonym;

/// What is hashed before a pseudonym, so that no other use gives the same numbers.
const PURPOSE: &[u8] = b"mailtap ga4 client v1\0";

/// The client of the visitor's own `_ga` cookie.
#[must_use]
pub fn visitor(event: &Event) -> Option<&str> {
    event.data.ga_client_id.as_deref().filter(|client| is_client_id(client))
}

/// The visitor's own client where the event knows it; else one of the recipient; else one of this event alone, because
/// a client must never be shared between people.
#[must_use]
pub fn client_id(event: &Event) -> String {
    if let Some(client) = visitor(event) {
        return client.to_owned();
    }
    match &event.data.recipient {
        Some(recipient) => of_recipient(recipient),
        None => derived(event.id.as_bytes()),
    }
}

/// The client of all events of a recipient, but those with the visitor's own.
#[must_use]
pub fn of_recipient(recipient: &Pseudonym) -> String {
    derived(recipient.as_bytes())
}

fn derived(from: &[u8]) -> String {
    let hash = Sha256::new().chain_update(PURPOSE).chain_update(from).finalize();
    let number = |at: usize| {
        let bytes = hash.iter().skip(at).take(4).fold(0_u32, |number, byte| (number << 8) | u32::from(*byte));
        (bytes & 0x7fff_ffff).max(1)
    };
    format!("{}.{}", number(0), number(4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::testing::event;

    #[test]
    fn the_derivation_never_changes() {
        let mut known = event(1);
        known.data.recipient = Some([7; 12].into());
        // Computed apart: SHA-256("mailtap ga4 client v1\0" || 12 × 0x07), two big-endian u32 without the top bit.
        assert_eq!(client_id(&known), "1874639415.1537898770");
    }

    #[test]
    fn a_cookie_counts_only_in_its_form() {
        let mut event = event(1);
        event.data.recipient = Some([7; 12].into());
        let derived = client_id(&event);
        for bad in ["", "1", "1.", "a.b", "1.2.3", "GA1.1.1.2", "1.2@x"] {
            event.data.ga_client_id = Some(bad.into());
            assert_eq!((visitor(&event), client_id(&event)), (None, derived.clone()), "{bad}");
        }
        event.data.ga_client_id = Some("1234567890.1700000000".into());
        assert_eq!(client_id(&event), "1234567890.1700000000");
    }
}
