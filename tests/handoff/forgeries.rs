//! Tokens that a website must not believe, each for one reason.

use data_encoding::BASE64URL_NOPAD;
use mailtap::identity::Timestamp;
use mailtap::keys::jwt::{self, Claims};
use mailtap::keys::ring::{Keyring, Use};
use mailtap::service::clock;
use ring::signature::Ed25519KeyPair;
use serde_json::Value;

use super::{AUDIENCE, ann};

const HEADER: &str = r#"{"alg":"EdDSA","kid":"1","typ":"JWT"}"#;

pub(super) fn all(issuer: &str, keys: &Keyring, good: &str) -> Vec<(&'static str, String)> {
    let mut list = broken(good);
    list.extend(badly_headed(good));
    list.extend(signed(issuer, keys));
    list.extend(signed_by_hand(issuer, keys));
    // A byte altered here and there: every one is the matter of the verifier's own signature check.
    for at in (0..good.len()).step_by(17) {
        let mut bytes = good.to_owned().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        list.push(("an altered byte", String::from_utf8(bytes).unwrap()));
    }
    list
}

/// Not of the form.
fn broken(good: &str) -> Vec<(&'static str, String)> {
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let mut longer = BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap();
    longer.extend([0, 0]);
    vec![
        ("no token", "x".to_owned()),
        ("nothing but dots", "..".to_owned()),
        ("no signature", format!("{signed}.")),
        ("half a signature", format!("{signed}.{}", &signature[..43])),
        ("a signature and more", format!("{signed}.{}", BASE64URL_NOPAD.encode(&longer))),
        ("too many parts", format!("{good}.{signature}")),
        ("padding", format!("{good}=")),
    ]
}

/// The good token's claims and signature below another header.
fn badly_headed(good: &str) -> Vec<(&'static str, String)> {
    let (_, rest) = good.split_once('.').unwrap();
    let headers: [(&str, &[u8]); 8] = [
        ("no algorithm", br#"{"alg":"none","typ":"JWT"}"#),
        ("another algorithm", br#"{"alg":"HS256","kid":"1","typ":"JWT"}"#),
        ("a header of brackets", &[b'['; 1_200]),
        ("a header that is a list", br#"[{"alg":"EdDSA","kid":"1"}]"#),
        ("a header with half a character", br#"{"alg":"EdDSA","kid":"\ud800"}"#),
        ("a header with half a character in a name", br#"{"alg":"EdDSA","\udc00":1,"kid":"1"}"#),
        ("a header that is not UTF-8", b"{\"alg\":\"EdDSA\",\"kid\":\"\xe9\"}"),
        ("a key that is called by a number", br#"{"alg":"EdDSA","kid":1}"#),
    ];
    let mut list: Vec<_> = headers
        .into_iter()
        .map(|(what, header)| (what, format!("{}.{rest}", BASE64URL_NOPAD.encode(header))))
        .collect();
    let none = BASE64URL_NOPAD.encode(headers[0].1);
    list.push(("no algorithm and no signature", format!("{none}.{}.", rest.split('.').next().unwrap())));
    list
}

/// Signed as mailtap does it.
fn signed(issuer: &str, keys: &Keyring) -> Vec<(&'static str, String)> {
    let now = clock::now().as_secs();
    let stranger = Keyring::new_for(Use::Handoff, [5; 32], Timestamp::from_secs(1));
    let long = "x".repeat(2_000);
    vec![
        ("another key by the same name", sign(&stranger, |claims| claims.iss = issuer)),
        ("another issuer", sign(keys, |claims| claims.iss = "http://127.0.0.1:1")),
        ("another audience", sign(keys, |claims| (claims.iss, claims.aud) = (issuer, "example.org"))),
        ("its time is over", sign(keys, |claims| (claims.iss, claims.exp) = (issuer, now - 1))),
        ("it lives too long", sign(keys, |claims| (claims.iss, claims.exp) = (issuer, now + 86_400))),
        ("not made yet", sign(keys, |claims| (claims.iss, claims.iat) = (issuer, now + 60))),
        ("too long", sign(keys, |claims| (claims.iss, claims.jti) = (issuer, &long))),
    ]
}

/// What mailtap never says, with a signature that is good.
fn signed_by_hand(issuer: &str, keys: &Keyring) -> Vec<(&'static str, String)> {
    let claims = serde_json::to_string(&claims(issuer)).unwrap();
    let now = clock::now().as_secs();
    let changed = |name: &str, json: &str| {
        let mut changed: Value = serde_json::from_str(&claims).unwrap();
        changed[name] = serde_json::from_str(json).unwrap();
        changed.to_string()
    };
    let by_hand = |header: &str, claims: &str| {
        let text = format!(
            "{}.{}",
            BASE64URL_NOPAD.encode(header.as_bytes()),
            BASE64URL_NOPAD.encode(claims.as_bytes())
        );
        let file: Value = serde_json::from_str(keys.to_json().expose()).unwrap();
        let seed = BASE64URL_NOPAD.decode(file["keys"][0]["secret"].as_str().unwrap().as_bytes()).unwrap();
        let signature = Ed25519KeyPair::from_seed_unchecked(&seed).unwrap().sign(text.as_bytes());
        format!("{text}.{}", BASE64URL_NOPAD.encode(signature.as_ref()))
    };
    vec![
        ("the key of another algorithm", by_hand(&HEADER.replace("EdDSA", "HS256"), &claims)),
        ("an algorithm in small letters", by_hand(&HEADER.replace("EdDSA", "eddsa"), &claims)),
        ("claims that are a list", by_hand(HEADER, &format!("[{claims}]"))),
        ("claims of brackets", by_hand(HEADER, &"[".repeat(1_200))),
        ("an end in words", by_hand(HEADER, &changed("exp", &format!("\"{}\"", now + 100)))),
        ("no end", by_hand(HEADER, &changed("exp", "null"))),
        ("no beginning", by_hand(HEADER, &changed("iat", "null"))),
        ("an end beyond all numbers", by_hand(HEADER, &changed("exp", "99999999999999999999999"))),
        ("an audience of many", by_hand(HEADER, &changed("aud", &format!("[\"{AUDIENCE}\"]")))),
        ("nobody", by_hand(HEADER, &changed("sub", "null"))),
        ("a number that is not text", by_hand(HEADER, &changed("jti", "7"))),
    ]
}

/// A token of our own, good but for what `change` does.
pub(super) fn sign<'a>(keys: &Keyring, change: impl FnOnce(&mut Claims<'a>)) -> String {
    let mut claims = claims("");
    change(&mut claims);
    jwt::sign(&claims, keys.by_id(1).unwrap()).unwrap()
}

fn claims(issuer: &str) -> Claims<'_> {
    let now = clock::now().as_secs();
    Claims {
        iss: issuer,
        aud: AUDIENCE,
        sub: ann(),
        iat: now,
        exp: now + 100,
        jti: "forged",
        campaign: None,
        link: 1,
    }
}
