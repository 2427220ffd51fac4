//! The pseudonym: a recipient without an address.
//!
//! - Layer: word
//! - Takes: an address as a milter, a log line or a DSN gives it, and the pseudonym key.
//! - Gives: the same 12 bytes for the same mailbox, everywhere and for as long as the key lives.
//! - On failure: nothing can fail; what is no address is hashed as it stands.
//! - See: RFC 5321 section 2.4 (letter case), RFC 5890 (A-labels), `docs/token-format.md`.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{ParseError, serde_as_text};

/// What is hashed before the address, so that no other use of the key can give the same bytes.
const PURPOSE: &[u8] = b"mailtap recipient v1\0";

/// The first 12 bytes of HMAC-SHA256 over the normalised address; 16 characters of base64url as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pseudonym([u8; Pseudonym::BYTES]);

impl Pseudonym {
    /// Length in bytes.
    pub const BYTES: usize = 12;

    /// The pseudonym as it stands in tokens.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl From<[u8; Self::BYTES]> for Pseudonym {
    fn from(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }
}

impl FromStr for Pseudonym {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = |why| ParseError { what: "pseudonym", why };
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| error("it is not base64url"))?;
        bytes.try_into().map(Self).map_err(|_| error("it has not 12 bytes"))
    }
}

impl fmt::Display for Pseudonym {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64URL_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for Pseudonym {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pseudonym({self})")
    }
}

serde_as_text!(Pseudonym);

/// The key of all pseudonyms of a site. Whoever has it can test whether an address is behind a pseudonym.
#[derive(Clone)]
pub struct PseudonymKey(Hmac<Sha256>);

impl PseudonymKey {
    /// Length of the secret in bytes.
    pub const BYTES: usize = 32;

    /// The key made of a secret.
    #[must_use]
    pub fn new(secret: &[u8; Self::BYTES]) -> Self {
        // A key of the block length is taken as it is: HMAC pads a shorter one with zeros (RFC 2104).
        let mut block = [0; 64];
        let (head, _) = block.split_at_mut(Self::BYTES);
        head.copy_from_slice(secret);
        Self(Hmac::new(&block.into()))
    }

    /// The pseudonym of an address, with or without angle brackets.
    #[must_use]
    pub fn pseudonym(&self, address: &str) -> Pseudonym {
        let mut mac = self.0.clone();
        mac.update(PURPOSE);
        mac.update(normalise(address).as_bytes());
        let mut bytes = [0; Pseudonym::BYTES];
        for (to, from) in bytes.iter_mut().zip(mac.finalize().into_bytes()) {
            *to = from;
        }
        Pseudonym(bytes)
    }
}

impl fmt::Debug for PseudonymKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PseudonymKey([redacted])")
    }
}

/// Brings the spellings of one mailbox together: brackets, blanks, quotes without need and letter case go, the domain
/// becomes ASCII. Local parts are case-sensitive by RFC 5321, but no provider that delivers mail treats them so.
fn normalise(address: &str) -> String {
    let address = address.trim();
    let address = address.strip_prefix('<').and_then(|a| a.strip_suffix('>')).unwrap_or(address);
    let Some((local, domain)) = address.rsplit_once('@') else {
        return address.to_lowercase();
    };
    let domain = domain.trim_end_matches('.');
    let domain = idna::domain_to_ascii(domain).unwrap_or_else(|_| domain.to_lowercase());
    format!("{}@{domain}", unquote(local).to_lowercase())
}

/// The local part without the quotes and backslashes of RFC 5321.
fn unquote(local: &str) -> String {
    let Some(quoted) = local.strip_prefix('"').and_then(|l| l.strip_suffix('"')) else {
        return local.to_owned();
    };
    let mut plain = String::with_capacity(quoted.len());
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        plain.push(if character == '\\' { characters.next().unwrap_or('\\') } else { character });
    }
    plain
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn key() -> PseudonymKey {
        PseudonymKey::new(&[7; 32])
    }

    #[test]
    fn spellings_of_one_mailbox_join() {
        let one = key().pseudonym("ann.smith@example.org");
        for same in [
            "<ann.smith@example.org>",
            "Ann.Smith@EXAMPLE.org",
            "\"ann.smith\"@example.org",
            " ann.smith@example.org. ",
        ] {
            assert_eq!(key().pseudonym(same), one, "{same}");
        }
        assert_eq!(key().pseudonym("josé@exämple.net"), key().pseudonym("JOSÉ@xn--exmple-cua.net"));
    }

    #[test]
    fn mailboxes_and_keys_stay_apart() {
        assert_ne!(key().pseudonym("ann@example.org"), key().pseudonym("bob@example.org"));
        assert_ne!(
            key().pseudonym("ann@example.org"),
            PseudonymKey::new(&[8; 32]).pseudonym("ann@example.org")
        );
    }

    #[test]
    fn the_key_is_hmac_of_the_secret_as_others_compute_it() {
        // printf 'mailtap recipient v1\0ann@example.org' | openssl dgst -sha256 -mac HMAC -macopt hexkey:0707…07
        let expected = Hmac::<Sha256>::new_from_slice(&[7; 32])
            .unwrap()
            .chain_update(b"mailtap recipient v1\0ann@example.org")
            .finalize()
            .into_bytes();
        assert_eq!(key().pseudonym("ann@example.org").as_bytes()[..], expected[..12]);
    }

    #[test]
    fn text_comes_back_and_the_key_does_not_show() {
        let one = key().pseudonym("ann@example.org");
        assert_eq!(one.to_string().parse::<Pseudonym>().unwrap(), one);
        assert_eq!(format!("{:?}", key()), "PseudonymKey([redacted])");
    }
}
