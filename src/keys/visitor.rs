//! The token in a visitor's cookie: who they were when they followed a link of their own.
//!
//! - Layer: decision
//! - Takes: a pseudonym, the time and a key; or a text and the keyring.
//! - Gives: 47 characters of base64url; or the pseudonym and when the cookie was given.
//! - On failure: `TokenError`, as for the tokens of links; those are never taken for this one, nor this one for those.
//! - See: `docs/token-format.md`, kind 4.

use data_encoding::BASE64URL_NOPAD;
use hmac::Mac as _;

use super::ring::{Key, KeyId, Keyring};
use super::token::{Standing, TokenError};
use crate::identity::{Pseudonym, Timestamp};

const HEAD: u8 = 0x14;
const PURPOSE: &[u8] = b"mailtap visitor v1\0";
const MAC_BYTES: usize = 16;
/// Head, key id, pseudonym, seconds, MAC.
const BYTES: usize = 1 + 2 + Pseudonym::BYTES + 4 + MAC_BYTES;

/// Who has the cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visitor {
    /// The recipient whose link was followed.
    pub recipient: Pseudonym,
    /// When, in whole seconds.
    pub issued: Timestamp,
}

/// Signs a visitor's token.
#[must_use]
pub fn sign(visitor: &Visitor, key: &Key) -> String {
    let mut bytes = Vec::with_capacity(BYTES);
    bytes.push(HEAD);
    bytes.extend_from_slice(&key.id.to_be_bytes());
    bytes.extend_from_slice(visitor.recipient.as_bytes());
    let seconds = u32::try_from(visitor.issued.as_secs()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&seconds.to_be_bytes());
    let mac = key.mac().chain_update(PURPOSE).chain_update(&bytes).finalize().into_bytes();
    bytes.extend_from_slice(mac.get(..MAC_BYTES).unwrap_or_default());
    BASE64URL_NOPAD.encode(&bytes)
}

/// A visitor's token whose signature holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signed {
    /// What it says.
    pub visitor: Visitor,
    /// The key that signed it.
    pub key_id: KeyId,
    /// What the key is worth today.
    pub standing: Standing,
}

/// Checks a visitor's token at a tracking host and reads it; one by a revoked key, or by a key of another host, is none.
///
/// # Errors
/// See [`TokenError`].
pub fn verify(text: &str, keys: &Keyring, site: Option<&str>) -> Result<Visitor, TokenError> {
    let Signed { visitor, key_id, standing } = inspect(text, keys)?;
    if standing == Standing::Revoked {
        return Err(TokenError::UnknownKey(key_id));
    }
    let is_for = keys.by_id(key_id).is_some_and(|key| key.is_for(site));
    if is_for { Ok(visitor) } else { Err(TokenError::Site) }
}

/// Checks the signature of a visitor's token and reads it, whatever its key is worth and whichever host it is for.
///
/// # Errors
/// See [`TokenError`].
pub fn inspect(text: &str, keys: &Keyring) -> Result<Signed, TokenError> {
    if text.len() != BASE64URL_NOPAD.encode_len(BYTES) {
        return Err(TokenError::Encoding);
    }
    let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| TokenError::Encoding)?;
    let (signed, mac) = bytes.split_at_checked(BYTES - MAC_BYTES).ok_or(TokenError::Layout)?;
    let rest = signed.strip_prefix(&[HEAD]).ok_or(TokenError::Version)?;
    let (key_id, rest) = rest.split_first_chunk().ok_or(TokenError::Layout)?;
    let (recipient, rest) = rest.split_first_chunk::<{ Pseudonym::BYTES }>().ok_or(TokenError::Layout)?;
    let seconds = rest.first_chunk().ok_or(TokenError::Layout)?;
    let key_id = KeyId::from_be_bytes(*key_id);
    let key = keys.by_id(key_id).ok_or(TokenError::UnknownKey(key_id))?;
    let expected = key.mac().chain_update(PURPOSE).chain_update(signed);
    expected.verify_truncated_left(mac).map_err(|_| TokenError::Mac)?;
    let issued = Timestamp::from_secs(u32::from_be_bytes(*seconds).into());
    let visitor = Visitor { recipient: Pseudonym::from(*recipient), issued };
    let standing = if key.revoked.is_some() { Standing::Revoked } else { Standing::Good };
    Ok(Signed { visitor, key_id, standing })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::keys::token;

    fn ring() -> Keyring {
        let secret: [u8; 32] = std::array::from_fn(|at| u8::try_from(at).unwrap());
        Keyring::new(secret, Timestamp::from_secs(1_795_000_000))
    }

    #[test]
    fn the_documented_vectors_hold() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../docs/token-format.json")).unwrap();
        let list = vectors["visitor"].as_array().unwrap();
        assert!(list.len() >= 2);
        for vector in list {
            let recipient = vector["recipient"].as_str().unwrap().parse().unwrap();
            let issued = Timestamp::from_secs(vector["issued"].as_u64().unwrap());
            let text = vector["token"].as_str().unwrap();
            assert_eq!(sign(&Visitor { recipient, issued }, ring().by_id(1).unwrap()), text);
            assert_eq!(verify(text, &ring(), None).unwrap(), Visitor { recipient, issued });
            assert!(token::verify(text, &ring()).is_err(), "no link is made of a cookie");
        }
        for vector in vectors["valid"].as_array().unwrap() {
            assert!(verify(vector["token"].as_str().unwrap(), &ring(), None).is_err(), "no cookie of a link");
        }
    }

    #[test]
    fn every_altered_byte_and_length_is_refused() {
        let visitor =
            Visitor { recipient: Pseudonym::from([0x11; 12]), issued: Timestamp::from_secs(1_795_453_080) };
        let good = sign(&visitor, ring().by_id(1).unwrap());
        assert_eq!(good.len(), 47);
        let bytes = BASE64URL_NOPAD.decode(good.as_bytes()).unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                assert!(
                    verify(&BASE64URL_NOPAD.encode(&bad), &ring(), None).is_err(),
                    "byte {at}, bit {bit}"
                );
            }
            assert!(verify(&good[..at], &ring(), None).is_err());
        }
        assert!(verify(&format!("{good}A"), &ring(), None).is_err());
        // The last character has two bits that are not used.
        assert!(
            "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
                .chars()
                .filter(|last| !good.ends_with(*last))
                .all(|last| verify(&format!("{}{last}", &good[..46]), &ring(), None).is_err())
        );
    }

    #[test]
    fn a_key_that_leaked_or_went_vouches_for_nobody() {
        let visitor = Visitor { recipient: Pseudonym::from([0x11; 12]), issued: Timestamp::from_secs(1) };
        let mut ring = ring();
        let text = sign(&visitor, ring.by_id(1).unwrap());
        ring.rotate([9; 32], Timestamp::from_secs(2), Timestamp::from_secs(2)).unwrap();
        let now = Timestamp::from_secs(1_795_000_001);
        ring.revoke(1, now).unwrap();
        assert_eq!(verify(&text, &ring, None), Err(TokenError::UnknownKey(1)));
        let signed = inspect(&text, &ring).unwrap();
        assert_eq!((signed.visitor, signed.standing), (visitor, Standing::Revoked));
    }
}
