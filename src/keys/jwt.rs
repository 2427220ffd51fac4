//! The hand-off: who comes, told to a website's own backend in a short-lived signed JWT.
//!
//! - Layer: decision
//! - Takes: claims and a key of the hand-off's own keyring; that keyring.
//! - Gives: a compact JWS by EdDSA (Ed25519); the public keys as a JWK set.
//! - On failure: `None` for a secret that makes no key, which 32 bytes always do.
//! - See: RFC 7519 (JWT), RFC 7515 section 7.1, RFC 8037 (Ed25519 in JOSE), RFC 7517 (JWK set); `docs/handoff.md`.
//!   Signed with `ring`, which is here anyway for TLS: two JSON objects and one signature need no library of their own,
//!   and there is no code here that reads or verifies a JWT, where the traps of JWT lie.

use data_encoding::BASE64URL_NOPAD;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde::Serialize;
use serde_json::json;

use super::ring::{Key, Keyring, State};
use crate::identity::{CampaignId, Pseudonym, Timestamp};

/// What the JWT says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Claims<'a> {
    /// The tracker, by its public base URL without a slash at its end.
    pub iss: &'a str,
    /// The host that it is meant for.
    pub aud: &'a str,
    /// Who comes.
    pub sub: Pseudonym,
    /// When it was made, in seconds since 1970.
    pub iat: u64,
    /// When it ends.
    pub exp: u64,
    /// Never given twice: the backend takes each once.
    pub jti: &'a str,
    /// The campaign of the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub campaign: Option<&'a CampaignId>,
    /// The number of the link.
    pub link: u16,
}

/// Signs claims.
#[must_use]
pub fn sign(claims: &Claims<'_>, key: &Key) -> Option<String> {
    let pair = pair(key)?;
    let header = json!({ "alg": "EdDSA", "kid": key.id.to_string(), "typ": "JWT" });
    let mut text = BASE64URL_NOPAD.encode(header.to_string().as_bytes());
    text.push('.');
    // Strings and numbers only: serialising them to memory cannot fail.
    BASE64URL_NOPAD.encode_append(&serde_json::to_vec(claims).unwrap_or_default(), &mut text);
    let signature = pair.sign(text.as_bytes());
    text.push('.');
    BASE64URL_NOPAD.encode_append(signature.as_ref(), &mut text);
    Some(text)
}

/// The public keys that may have signed, or will soon: all but those that leaked.
#[must_use]
pub fn jwk_set(ring: &Keyring, now: Timestamp) -> String {
    let trusted = ring.keys().iter().filter(|key| ring.state(key, now) != State::Revoked);
    let jwk = |key: &Key| {
        let public = BASE64URL_NOPAD.encode(pair(key)?.public_key().as_ref());
        let kid = key.id.to_string();
        Some(json!({ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": kid, "x": public }))
    };
    let keys: Vec<_> = trusted.filter_map(jwk).collect();
    json!({ "keys": keys }).to_string()
}

fn pair(key: &Key) -> Option<Ed25519KeyPair> {
    Ed25519KeyPair::from_seed_unchecked(key.secret()).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ring::signature::{ED25519, UnparsedPublicKey};
    use serde_json::Value;

    use super::*;

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_secs(secs)
    }

    fn claims() -> Claims<'static> {
        Claims {
            iss: "https://t.example.org",
            aud: "www.example.org",
            sub: Pseudonym::from([0x11; 12]),
            iat: 1_795_453_080,
            exp: 1_795_453_200,
            jti: "abc",
            campaign: None,
            link: 3,
        }
    }

    fn decode(part: &str) -> Value {
        serde_json::from_slice(&BASE64URL_NOPAD.decode(part.as_bytes()).unwrap()).unwrap()
    }

    /// As a website would: by the published set alone.
    fn verify(jwt: &str, set: &str) -> Option<Value> {
        let (signed, signature) = jwt.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header = BASE64URL_NOPAD.decode(header.as_bytes()).ok()?;
        let header: Value = serde_json::from_slice(&header).ok()?;
        let set: Value = serde_json::from_str(set).unwrap();
        let key = set["keys"].as_array()?.iter().find(|key| key["kid"] == header["kid"])?;
        let public = BASE64URL_NOPAD.decode(key["x"].as_str()?.as_bytes()).unwrap();
        let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).ok()?;
        UnparsedPublicKey::new(&ED25519, public).verify(signed.as_bytes(), &signature).ok()?;
        (header["alg"] == "EdDSA").then(|| decode(claims))
    }

    #[test]
    fn the_key_is_that_of_rfc_8032() {
        // RFC 8032 section 7.1, test 1: secret and public key.
        let hex = |text: &str| data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap();
        let secret = hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60");
        let ring = Keyring::new(secret.try_into().unwrap(), at(1));
        let set: Value = serde_json::from_str(&jwk_set(&ring, at(2))).unwrap();
        let public = BASE64URL_NOPAD.decode(set["keys"][0]["x"].as_str().unwrap().as_bytes()).unwrap();
        assert_eq!(public, hex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"));
    }

    #[test]
    fn a_website_verifies_by_the_published_set() {
        let ring = Keyring::new([7; 32], at(1));
        let jwt = sign(&claims(), ring.signing(at(2)).unwrap()).unwrap();
        let said = verify(&jwt, &jwk_set(&ring, at(2))).unwrap();
        assert_eq!(
            (&said["sub"], &said["link"], &said["campaign"]),
            (&"ERERERERERERERER".into(), &3.into(), &Value::Null)
        );
        assert!(
            jwt.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)),
            "fits a query"
        );
        let other = Keyring::new([8; 32], at(1));
        assert_eq!(verify(&jwt, &jwk_set(&other, at(2))), None);
    }

    #[test]
    fn no_altered_byte_verifies() {
        let ring = Keyring::new([7; 32], at(1));
        let set = jwk_set(&ring, at(2));
        let jwt = sign(&claims(), ring.signing(at(2)).unwrap()).unwrap();
        for at in 0..jwt.len() {
            for other in [b'A', b'B', b'_', b'.'] {
                let mut bytes = jwt.clone().into_bytes();
                if bytes[at] != other {
                    bytes[at] = other;
                    assert_eq!(verify(std::str::from_utf8(&bytes).unwrap(), &set), None, "{at}");
                }
            }
            assert_eq!(verify(&jwt[..at], &set), None);
        }
    }

    #[test]
    fn the_set_has_pending_active_and_retired_keys_and_no_leaked_one() {
        let mut ring = Keyring::new([1; 32], at(1));
        ring.rotate([2; 32], at(2), at(2)).unwrap();
        ring.rotate([3; 32], at(2), at(100)).unwrap();
        let kids = |ring: &Keyring| -> Vec<String> {
            let set: Value = serde_json::from_str(&jwk_set(ring, at(50))).unwrap();
            set["keys"]
                .as_array()
                .unwrap()
                .iter()
                .map(|key| key["kid"].as_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(kids(&ring), ["1", "2", "3"]);
        ring.revoke(1, at(50)).unwrap();
        assert_eq!(kids(&ring), ["2", "3"]);
        assert!(!jwk_set(&ring, at(50)).contains(&BASE64URL_NOPAD.encode(&[2; 32])), "no secret in it");
    }
}
