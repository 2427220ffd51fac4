//! Tests of the token format, the documented test vectors among them.
//!
//! - Layer: decision
//! - Takes: `docs/token-format.json`, the vectors that other languages test with too.
//! - Gives: proof that code and document agree.
//! - On failure: the test fails.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::identity::Timestamp;

fn ring() -> Keyring {
    let secret: [u8; 32] = std::array::from_fn(|at| u8::try_from(at).unwrap());
    Keyring::new(secret, Timestamp::from_secs(1_795_000_000))
}

fn click() -> Token {
    Token::Click(Click {
        message: MessageId::new(Timestamp::from_millis(1_795_453_080_123), 0xdead_beef),
        recipient: Some(Pseudonym::from([0x11; 12])),
        link: 3,
        campaign: Some("spring-2026".parse().unwrap()),
        target: "https://www.example.org/shop?a=1&b=2#top".into(),
    })
}

fn sign_by(ring: &Keyring, token: &Token) -> String {
    sign(token, ring.by_id(1).unwrap())
}

#[test]
fn the_documented_vectors_hold() {
    let vectors: serde_json::Value =
        serde_json::from_str(include_str!("../../docs/token-format.json")).unwrap();
    let secret =
        data_encoding::HEXLOWER.decode(vectors["key"]["secret_hex"].as_str().unwrap().as_bytes()).unwrap();
    let ring = Keyring::new(secret.try_into().unwrap(), Timestamp::default());
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    for vector in vectors["valid"].as_array().unwrap() {
        let message = text(&vector["message_id"]).unwrap().parse().unwrap();
        let recipient = text(&vector["recipient"]).map(|r| r.parse().unwrap());
        let campaign = text(&vector["campaign"]).map(|c| c.parse().unwrap());
        let token = match vector["kind"].as_str().unwrap() {
            "click" => Token::Click(Click {
                message,
                recipient,
                campaign,
                link: u16::try_from(vector["link"].as_u64().unwrap()).unwrap(),
                target: text(&vector["target"]).unwrap(),
            }),
            "open" => Token::Open(Open { message, recipient, campaign }),
            _ => Token::Ref(Ref { message }),
        };
        assert_eq!(sign_by(&ring, &token), vector["token"].as_str().unwrap(), "{}", vector["name"]);
        assert_eq!(
            verify(vector["token"].as_str().unwrap(), &ring).unwrap().token,
            token,
            "{}",
            vector["name"]
        );
    }
    for vector in vectors["invalid"].as_array().unwrap() {
        let error = verify(vector["token"].as_str().unwrap(), &ring).unwrap_err();
        assert_eq!(error.as_str(), vector["error"].as_str().unwrap(), "{}", vector["name"]);
    }
}

#[test]
fn every_altered_character_is_refused() {
    let ring = ring();
    let good = sign_by(&ring, &click());
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=+/.%";
    for at in 0..good.len() {
        for other in alphabet.chars().filter(|&c| !good[at..].starts_with(c)) {
            let mut bad = good.clone();
            bad.replace_range(at..=at, &other.to_string());
            assert!(verify(&bad, &ring).is_err(), "position {at}, {other}");
        }
        assert!(verify(&good[..at], &ring).is_err(), "cut at {at}");
    }
    assert!(verify(&format!("{good}A"), &ring).is_err());
    assert!(verify(&format!("{good}="), &ring).is_err());
}

#[test]
fn a_token_of_one_kind_is_none_of_another() {
    let ring = ring();
    let message = MessageId::new(Timestamp::from_secs(1), 1);
    let open = sign_by(&ring, &Token::Open(Open { message, recipient: None, campaign: None }));
    let mut bytes = BASE64URL_NOPAD.decode(open.as_bytes()).unwrap();
    bytes[0] = VERSION | KIND_CLICK;
    assert_eq!(verify(&BASE64URL_NOPAD.encode(&bytes), &ring), Err(TokenError::Mac));
}

#[test]
fn a_reference_fits_the_header_that_postfix_logs() {
    let reference = Token::Ref(Ref { message: MessageId::new(Timestamp::from_secs(1), 1) });
    let header = format!("X-Mailtap-Ref: {}", sign_by(&ring(), &reference));
    assert!(header.len() <= 60, "{}", header.len());
    assert!(format!("X-Mailtap-Campaign: {}", "x".repeat(CampaignId::MAX_BYTES)).len() <= 60);
}

#[test]
fn a_revoked_key_is_told_apart_and_a_removed_one_is_unknown() {
    let mut ring = ring();
    let now = Timestamp::from_secs(1_795_000_100);
    let text = sign_by(&ring, &click());
    ring.rotate([9; 32], now, now).unwrap();
    assert_eq!(verify(&text, &ring).unwrap().standing, Standing::Good);
    ring.revoke(1, now).unwrap();
    assert_eq!(verify(&text, &ring).unwrap().standing, Standing::Revoked);
    ring.remove(1, now).unwrap();
    assert_eq!(verify(&text, &ring), Err(TokenError::UnknownKey(1)));
}

#[test]
fn only_the_web_is_a_target() {
    let ring = ring();
    for bad in
        ["", "https://", "javascript:alert(1)", "//example.org/", "ftp://example.org/", "data:text/html,x"]
    {
        let Token::Click(click) = click() else { unreachable!() };
        let token = Token::Click(Click { target: bad.into(), ..click });
        assert_eq!(verify(&sign_by(&ring, &token), &ring), Err(TokenError::Layout), "{bad}");
    }
}

proptest! {
    #[test]
    fn any_fields_come_back(
        millis in 0..1u64 << 48,
        random: u32,
        recipient: Option<[u8; 12]>,
        campaign in proptest::option::of("[A-Za-z0-9._:/+=-]{1,40}"),
        link: u16,
        rest in ".{1,300}",
    ) {
        let message = MessageId::new(Timestamp::from_millis(millis), random);
        let recipient = recipient.map(Pseudonym::from);
        let campaign = campaign.map(|c| c.parse().unwrap());
        let ring = ring();
        for token in [
            Token::Click(Click {
                message, recipient, link, campaign: campaign.clone(), target: format!("https://{rest}")
            }),
            Token::Open(Open { message, recipient, campaign }),
            Token::Ref(Ref { message }),
        ] {
            prop_assert_eq!(verify(&sign_by(&ring, &token), &ring).unwrap().token, token);
        }
    }

    #[test]
    fn any_text_is_refused_without_a_panic(text in "\\PC*", bytes: Vec<u8>) {
        prop_assert!(verify(&text, &ring()).is_err());
        prop_assert!(verify(&BASE64URL_NOPAD.encode(&bytes), &ring()).is_err());
    }
}
