//! Tests of the decision on one message.
//!
//! - Layer: decision
//! - Takes: small messages.
//! - Gives: proof of scope, consent, sharing, headers and tokens.
//! - On failure: the test fails.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::consent::Fixed;

const HTML: &str = "From: News <news@example.org>\r\nX-Mailtap-Campaign: spring\r\nMIME-Version: 1.0\r\n\
                    Content-Type: text/html; charset=utf-8\r\n\r\n\
                    <html><body><a href=\"https://www.example.org/?a=1&amp;b=2\">x</a></body></html>\r\n";

fn policy() -> Policy {
    Policy {
        sender_domains: vec!["example.org".into(), "*.lists.example.org".into()],
        share: true,
        campaign_headers: vec!["List-Id".into()],
        campaign_rules: Vec::new(),
        rules: Vec::new(),
        hosts: vec![TrackingHost::at("https://t.example.org/")],
        max_url_bytes: 2_000,
        plan: Plan { own_prefixes: vec!["https://t.example.org/".into()], ..Plan::default() },
    }
}

fn ring() -> Keyring {
    Keyring::new([7; 32], Timestamp::from_secs(1))
}

fn decide_with(
    message: &str,
    sender: &str,
    recipients: &[&str],
    policy: &Policy,
    consents: Fixed,
) -> Decision {
    let recipients: Vec<String> = recipients.iter().map(ToString::to_string).collect();
    let means = Means {
        policy,
        ring: &ring(),
        pseudonyms: &PseudonymKey::new(&[9; 32]),
        consents: &consents,
        now: Timestamp::from_secs(1_795_000_000),
        random: 5,
    };
    decide(message.as_bytes(), Envelope { sender, recipients: &recipients }, &means)
}

const GRANTED: Fixed = Fixed { opens: Consent::Granted, clicks: Consent::Granted };

fn one(message: &str) -> Decision {
    decide_with(message, "<news@example.org>", &["<ann@example.net>"], &policy(), GRANTED)
}

fn tracked(decision: Decision) -> Tracked {
    match decision {
        Decision::Track(tracked) => *tracked,
        Decision::Pass(pass, _) => panic!("passed: {}", pass.as_str()),
    }
}

fn passed(decision: Decision) -> &'static str {
    match decision {
        Decision::Track(_) => panic!("tracked"),
        Decision::Pass(pass, _) => pass.as_str(),
    }
}

fn output(tracked: &Tracked, message: &str) -> String {
    String::from_utf8(tracked.apply(message.as_bytes())).unwrap()
}

fn tokens(output: &str, path: &str) -> Vec<Token> {
    let start = format!("https://t.example.org/{path}/");
    let rest = output.split(&start).skip(1);
    rest.map(|rest| token::verify(&rest[..rest.find('"').unwrap()], &ring()).unwrap().token).collect()
}

#[test]
fn links_pixel_and_headers_carry_what_they_should() {
    let tracked = tracked(one(HTML));
    let output = output(&tracked, HTML);
    let pseudonym = PseudonymKey::new(&[9; 32]).pseudonym("ann@example.net");
    let [Token::Click(click)] = &tokens(&output, "c")[..] else { panic!("{output}") };
    assert_eq!(click.target, "https://www.example.org/?a=1&b=2");
    assert_eq!((click.message, click.recipient, click.link), (tracked.id, Some(pseudonym), 1));
    assert_eq!(click.campaign.as_ref().unwrap().as_str(), "spring");
    let [Token::Open(open)] = &tokens(&output, "o")[..] else { panic!("{output}") };
    assert_eq!((open.message, open.recipient), (tracked.id, Some(pseudonym)));
    assert!(output.contains(&format!(
        "\r\nX-Mailtap-Ref: {}\r\nX-Mailtap-Campaign: spring\r\n\r\n",
        tracked.reference
    )));
    assert_eq!(output.matches("X-Mailtap-Campaign").count(), 1);
    assert_eq!(
        (tracked.data.links, tracked.data.pixel, tracked.data.recipients),
        (Some(1), Some(true), Some(1))
    );
    assert_eq!(tracked.data.sender_domain.as_deref(), Some("example.org"));
    assert!(!format!("{:?}", tracked.data).contains('@'));
}

#[test]
fn mail_of_others_passes_as_it_came() {
    let of = |sender| passed(decide_with(HTML, sender, &["a@example.net"], &policy(), GRANTED));
    assert_eq!(of("<>"), "null_sender");
    assert_eq!(of(""), "null_sender");
    assert_eq!(of("news@other.example"), "out_of_scope");
    assert_eq!(of("news@badexample.org"), "out_of_scope");
    assert_eq!(of("news@sub.example.org"), "out_of_scope");
    assert_eq!(passed(decide_with(HTML, "a@example.org", &[], &policy(), GRANTED)), "no_recipient");
    tracked(decide_with(HTML, "bounce+1=2@x.lists.example.org", &["a@example.net"], &policy(), GRANTED));
    tracked(decide_with(HTML, "news@EXAMPLE.ORG.", &["a@example.net"], &policy(), GRANTED));
}

#[test]
fn a_message_is_tracked_once() {
    let first = output(&tracked(one(HTML)), HTML);
    assert_eq!(passed(one(&first)), "already_tracked");
    let forged = HTML.replace("From:", "X-Mailtap-Ref: EwABforged\r\nFrom:");
    let output = output(&tracked(one(&forged)), &forged);
    assert!(!output.contains("forged") && output.matches("X-Mailtap-Ref").count() == 1, "{output}");
}

#[test]
fn a_mark_that_was_taken_out_still_counts_at_the_next_hop() {
    let marked = HTML.replace("<a href", "<a data-mailtap-track=off href");
    let first = tracked(one(&marked));
    let text = output(&first, &marked);
    assert_eq!(first.data.links, Some(0));
    assert!(!text.contains("data-mailtap-track"), "{text}");
    assert_eq!(passed(one(&text)), "already_tracked");
}

#[test]
fn nothing_to_rewrite_still_gets_headers() {
    let plain = "From: a@example.org\r\nSubject: s\r\n\r\nhello\r\n";
    let tracked = tracked(one(plain));
    assert!(!tracked.rewrites());
    assert_eq!(
        output(&tracked, plain),
        format!("From: a@example.org\r\nSubject: s\r\nX-Mailtap-Ref: {}\r\n\r\nhello\r\n", tracked.reference)
    );
}

#[test]
fn several_recipients_share_tokens_without_recipient_or_get_none() {
    let two = ["a@example.net", "b@example.net"];
    let shared = tracked(decide_with(HTML, "n@example.org", &two, &policy(), GRANTED));
    let output_shared = output(&shared, HTML);
    let [Token::Click(click)] = &tokens(&output_shared, "c")[..] else { panic!() };
    assert_eq!((click.recipient, shared.data.recipient, shared.data.recipients), (None, None, Some(2)));
    let skip = Policy { share: false, ..policy() };
    let skipped = tracked(decide_with(HTML, "n@example.org", &two, &skip, GRANTED));
    assert!(!skipped.rewrites());
}

#[test]
fn consent_decides() {
    let with = |opens, clicks| {
        decide_with(HTML, "n@example.org", &["a@example.net"], &policy(), Fixed { opens, clicks })
    };
    assert_eq!(passed(with(Consent::Denied, Consent::Denied)), "no_consent");
    let clicks = output(&tracked(with(Consent::Denied, Consent::Granted)), HTML);
    assert_eq!((tokens(&clicks, "c").len(), tokens(&clicks, "o").len()), (1, 0));
    let opens = output(&tracked(with(Consent::Granted, Consent::Denied)), HTML);
    assert_eq!((tokens(&opens, "c").len(), tokens(&opens, "o").len()), (0, 1));
}

#[test]
fn an_application_can_ask_for_less_and_its_header_goes() {
    let message = HTML.replace("From:", "X-Mailtap-Track: no\r\nFrom:");
    let tracked = tracked(one(&message));
    assert!(!tracked.rewrites());
    assert!(!output(&tracked, &message).contains("X-Mailtap-Track"));
}

#[test]
fn a_url_that_would_be_too_long_stays() {
    let short = Policy { max_url_bytes: 80, ..policy() };
    let tracked = tracked(decide_with(HTML, "n@example.org", &["a@example.net"], &short, GRANTED));
    assert!(!tracked.rewrites());
}

#[test]
fn a_rule_for_recipients_decides_and_deliveries_are_still_followed() {
    let rule = |clicks, opens| rules::Rule {
        recipient_domains: vec!["example.net".into()],
        clicks,
        opens,
        ..rules::Rule::default()
    };
    let with = |rule, recipients: &[&str]| {
        let policy = Policy { rules: vec![rule], ..policy() };
        let tracked = tracked(decide_with(HTML, "news@example.org", recipients, &policy, GRANTED));
        (tracked.data.links, tracked.data.pixel)
    };
    assert_eq!(with(rule(None, Some(false)), &["ann@example.net"]), (Some(1), Some(false)));
    assert_eq!(with(rule(Some(false), None), &["ann@example.net"]), (Some(0), Some(true)));
    assert_eq!(with(rule(Some(false), None), &["ann@example.com"]), (Some(1), Some(true)));
    assert_eq!(with(rule(Some(false), None), &["ann@example.com", "b@example.net"]), (Some(0), Some(true)));
    assert_eq!(with(rule(Some(false), Some(false)), &["ann@example.net"]), (Some(0), Some(false)));
}

#[test]
fn a_rule_never_overrides_consent() {
    let rule = rules::Rule { clicks: Some(true), opens: Some(true), ..rules::Rule::default() };
    let policy = Policy { rules: vec![rule], ..policy() };
    let denied = Fixed { opens: Consent::Denied, clicks: Consent::Granted };
    let tracked = tracked(decide_with(HTML, "news@example.org", &["ann@example.net"], &policy, denied));
    assert_eq!((tracked.data.links, tracked.data.pixel), (Some(1), Some(false)));
}

#[test]
fn pixels_at_both_ends_are_one_open() {
    let mut policy = policy();
    policy.plan.pixel_at = rewrite::PixelAt::Both;
    let tracked = tracked(decide_with(HTML, "news@example.org", &["ann@example.net"], &policy, GRANTED));
    let output = output(&tracked, HTML);
    let [Token::Open(first), Token::Open(second)] = &tokens(&output, "o")[..] else { panic!("{output}") };
    assert_eq!((first.message, first.recipient), (second.message, second.recipient));
    let urls: Vec<&str> = output.split("https://t.example.org/o/").skip(1).collect();
    let token = |rest: &str| rest[..rest.find('"').unwrap()].to_owned();
    assert_eq!(token(urls[0]), token(urls[1]), "the same URL, which caches and the tracker count once");
}

/// What Postfix says of a message to a milter; it cuts bodies anywhere, within a link too.
fn wire_of(message: &str) -> Vec<u8> {
    use mailtap_milter::wire::{Command, EnvelopePath, Offer, Texts};
    let path = |address| EnvelopePath { address, args: Texts::new(b"") };
    let (head, body) = message.split_once("\r\n\r\n").unwrap();
    let mut wire = Vec::new();
    Command::Negotiate(Offer::POSTFIX).encode(&mut wire);
    Command::Mail(path(b"<news@example.org>")).encode(&mut wire);
    Command::Rcpt(path(b"<ann@example.net>")).encode(&mut wire);
    Command::Data.encode(&mut wire);
    for line in head.split("\r\n") {
        let (name, value) = line.split_once(':').unwrap();
        Command::Header { name: name.as_bytes(), value: value.as_bytes() }.encode(&mut wire);
    }
    Command::EndOfHeaders.encode(&mut wire);
    for piece in body.as_bytes().chunks(37) {
        Command::Body(piece).encode(&mut wire);
    }
    Command::EndOfMessage(b"").encode(&mut wire);
    wire
}

/// The message that comes out of what was said, in these pieces.
fn read_in_pieces<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> String {
    use mailtap_milter::session::{Event, Interest, Session, SessionLimits, Wanted};
    let mut session = Session::new(Wanted::default(), SessionLimits::default());
    let mut messages = Vec::new();
    for piece in pieces {
        session.receive(piece);
        while let Some(event) = session.poll().unwrap() {
            match event {
                Event::Headers => session.answer_headers(Interest::Body),
                Event::Message(message) => messages.push(String::from_utf8(message.to_bytes()).unwrap()),
                _ => {}
            }
        }
    }
    assert_eq!(messages.len(), 1);
    messages.remove(0)
}

/// A newsletter as Postfix sends it to a milter, cut in two at every byte and into pieces of every small size: it is always the same message,
/// with the same links.
#[test]
fn a_message_in_any_pieces_is_rewritten_the_same() {
    let wire = wire_of(HTML);
    let whole = output(&tracked(one(HTML)), HTML);
    for at in 0..=wire.len() {
        let message = read_in_pieces([&wire[..at], &wire[at..]].into_iter());
        assert_eq!(message, HTML, "split at {at}");
    }
    for size in 1..80 {
        let message = read_in_pieces(wire.chunks(size));
        assert_eq!(output(&tracked(one(&message)), &message), whole, "pieces of {size}");
    }
}

#[test]
fn newsletters_in_random_pieces_are_rewritten_the_same() {
    use rand::{RngExt as _, SeedableRng as _};
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/newsletters");
    let mut newsletters = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "html") {
            continue;
        }
        let html = std::fs::read_to_string(&path).unwrap().replace('\n', "\r\n");
        if html.lines().any(|line| line.len() > 998) {
            continue; // No mail without a transfer encoding.
        }
        newsletters += 1;
        let message = format!("MIME-Version: 1.0\r\nContent-Type: text/html; charset=utf-8\r\n\r\n{html}");
        let whole = output(&tracked(one(&message)), &message);
        assert_ne!(whole, message, "{}", path.display());
        let wire = wire_of(&message);
        for seed in 0..4 {
            let mut dice = rand::rngs::StdRng::seed_from_u64(seed);
            let (mut pieces, mut rest) = (Vec::new(), &wire[..]);
            while !rest.is_empty() {
                let (piece, more) = rest.split_at(dice.random_range(1..=rest.len().min(4_000)));
                pieces.push(piece);
                rest = more;
            }
            let read = read_in_pieces(pieces.into_iter());
            assert!(read == message, "{}, seed {seed}", path.display());
            assert!(output(&tracked(one(&read)), &read) == whole, "{}, seed {seed}", path.display());
        }
    }
    assert!(newsletters >= 10, "only {newsletters} newsletters");
}

#[test]
fn no_token_or_header_names_a_recipient() {
    let recipients = ["ann@example.net", "hidden.bcc@example.com"];
    let marks = ["ann", "hidden", "example.net", "example.com"];
    for count in [1, 2] {
        let tracked =
            tracked(decide_with(HTML, "news@example.org", &recipients[..count], &policy(), GRANTED));
        let output = output(&tracked, HTML);
        // Tokens are base64url: what they hold is looked into, too.
        let tokens = output.split("https://t.example.org/").skip(1);
        let held =
            tokens.map(|rest| rest[2..rest.find('"').unwrap()].to_owned()).chain([tracked.reference.clone()]);
        for token in held {
            for offset in 0..4 {
                let cut = &token[offset..offset + (token.len() - offset) / 4 * 4];
                let bytes = data_encoding::BASE64URL_NOPAD.decode(cut.as_bytes()).unwrap_or_default();
                let text = String::from_utf8_lossy(&bytes).to_lowercase();
                assert!(!marks.iter().any(|mark| text.contains(mark)), "{text}");
            }
        }
        let changed = output.replace(HTML, "");
        assert!(!marks.iter().any(|mark| changed.contains(mark)), "{changed}");
        assert!(!format!("{:?}", tracked.data).contains("hidden"));
    }
}
