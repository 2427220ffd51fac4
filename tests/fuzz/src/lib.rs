//! What each fuzz target does with its bytes. A finding goes into `corpus/<target>/` and stays there.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::sync::{Arc, LazyLock};

use mailtap::bounce;
use mailtap::collector::judge::{Behaviour, judge};
use mailtap::consent::{Consent, Fixed};
use mailtap::delivery::Classifier;
use mailtap::event::Event;
use mailtap::filter::campaign::campaign;
use mailtap::filter::decide::{Decision, Envelope, Means, Policy, decide};
use mailtap::filter::header::{HeaderEdits, fields};
use mailtap::filter::hosts::TrackingHost;
use mailtap::identity::{PseudonymKey, Timestamp};
use mailtap::keys::ring::Keyring;
use mailtap::keys::token;
use mailtap::rewrite::{Mint, PixelAt, Plan, apply, rewrite};
use mailtap::tap::journal_line::JournalLine;
use mailtap::tap::once::{Input, explain, once};
use mailtap::tracker::{cookies, target};
use mailtap_milter::client::{Editor, Mail, Mailbox, refusal};
use mailtap_milter::edits::{Answer, Edit};
use mailtap_milter::session::{Event as Milter, Interest, Message, Session, SessionLimits, Unseen, Wanted};
use mailtap_milter::wire::{Actions, Command, Frame, Reply};

/// A target: its name and what it does.
pub type Target = (&'static str, fn(&[u8]));

pub const ALL: &[Target] = &[
    ("token", token),
    ("event", event),
    ("inbox", inbox),
    ("keyring", keyring),
    ("message", message),
    ("mime", mime),
    ("transfer", transfer),
    ("html", html),
    ("text", text),
    ("header", header),
    ("log", log),
    ("journal", journal),
    ("returned", returned),
    ("frame", frame),
    ("session", session),
    ("client", client),
    ("tracker", tracker),
    ("proxy", proxy),
    ("collector", collector),
];

fn ring() -> Keyring {
    Keyring::new(std::array::from_fn(|at| at as u8), Timestamp::from_secs(1))
}

const NOW: Timestamp = Timestamp::MAX;

/// Any text is refused, unless it is one of ours, which then comes out the same.
pub fn token(bytes: &[u8]) {
    let ring = ring();
    if let Ok(verified) = token::verify(&String::from_utf8_lossy(bytes), &ring) {
        assert_eq!(token::sign(&verified.token, ring.by_id(1).unwrap()).as_bytes(), bytes);
    }
}

/// An inbox file of the spool, as a kill or a bad disk leaves it: each byte is a part of one record, or of none.
pub fn inbox(bytes: &[u8]) {
    let (records, skipped) = mailtap::queue::spool::survey(bytes);
    // A record has its magic, length, sum, kind and id at least.
    assert!(records * 29 + skipped <= bytes.len());
    assert!(skipped == bytes.len() || records > 0);
}

/// What is read as an event is written as the same event.
pub fn event(bytes: &[u8]) {
    if let Ok(event) = Event::from_json(bytes) {
        assert_eq!(Event::from_json(event.to_json().as_bytes()).unwrap(), event);
    }
}

pub fn keyring(bytes: &[u8]) {
    if let Ok(ring) = Keyring::from_json(bytes) {
        let json = ring.to_json();
        assert_eq!(Keyring::from_json(json.expose().as_bytes()).unwrap().to_json().expose(), json.expose());
    }
}

/// The whole decision on a message: never a panic, and without a change the same bytes.
pub fn message(bytes: &[u8]) {
    let policy = Policy {
        sender_domains: vec!["example.org".into()],
        share: true,
        campaign_headers: vec!["List-Id".into(), "X-SMTPAPI".into(), "X-MSYS-API".into()],
        campaign_rules: Vec::new(),
        rules: Vec::new(),
        hosts: vec![TrackingHost::at("https://t.example.org/")],
        max_url_bytes: 2_000,
        plan: Plan { own_prefixes: vec!["https://t.example.org/".into()], text: true, ..Plan::default() },
    };
    let recipients = ["ann@example.net".to_owned()];
    let ring = ring();
    let means = Means {
        policy: &policy,
        ring: &ring,
        pseudonyms: &PseudonymKey::new(&[9; 32]),
        consents: &Fixed { clicks: Consent::Granted, opens: Consent::Granted },
        now: NOW,
        random: 1,
    };
    let envelope = Envelope { sender: "a@example.org", recipients: &recipients };
    if let Decision::Track(tracked) = decide(bytes, envelope, &means) {
        let output = tracked.apply(bytes);
        assert_eq!(tracked.rewrites(), !tracked.report.patches.is_empty());
        // Every byte outside of the patches and of our own headers is there, and a second pass finds our reference.
        assert!(
            output.ends_with(
                &bytes[tracked.report.patches.last().map_or(bytes.len(), |patch| patch.range.end)..]
            )
        );
        assert!(matches!(decide(&output, envelope, &means), Decision::Pass(..)));
    }
    rewritten(bytes, false);
}

const BASE: &str = "https://t.example.org/c/";

/// Made once: its patterns are an automaton.
static PLAN: LazyLock<Plan> = LazyLock::new(|| Plan {
    own_prefixes: vec![BASE.into()],
    text: true,
    pixel_at: PixelAt::Both,
    rewrite_dkim_signed: true,
    ..Plan::default()
});

struct Marks;

impl Mint for Marks {
    fn link(&mut self, _: &str, number: u16) -> Option<String> {
        Some(format!("{BASE}{number:->100}--"))
    }

    fn pixel(&mut self) -> Option<String> {
        Some(format!("{BASE}pixel"))
    }
}

/// What must hold for every message: no line gets too long, a second pass changes nothing more, and, where the text is its own
/// encoding, nothing comes in but tracking URLs and pixels.
fn rewritten(message: &[u8], own_encoding: bool) {
    let report = rewrite(message, &PLAN, &mut Marks);
    let output = apply(message, &report.patches);
    if report.patches.is_empty() {
        assert_eq!(output, message);
        return;
    }
    assert!(
        output.split(|byte| *byte == b'\n').all(|line| line.strip_suffix(b"\r").unwrap_or(line).len() <= 998)
    );
    for patch in report.patches.iter().filter(|_| own_encoding) {
        let come = String::from_utf8(patch.bytes.clone()).unwrap();
        assert!(come.is_empty() || come.contains(BASE), "{come}");
        assert!(come.len() < 400, "{come}");
    }
    // What an opt-out said in a mark that was taken out is not known any more.
    let text = String::from_utf8_lossy(message).to_lowercase();
    if !["notrack", "mailtap", "data-msys", "=\n", "=\r\n", "base64"].iter().any(|mark| text.contains(mark)) {
        let again = rewrite(&output, &PLAN, &mut Marks);
        assert!(again.patches.is_empty(), "{:?}", again.links);
    }
}

fn part(header: &str, body: &[u8]) -> Vec<u8> {
    [header.as_bytes(), b"\r\n\r\n", body].concat()
}

/// Delimiters and headers of parts.
pub fn mime(bytes: &[u8]) {
    rewritten(&part("Content-Type: multipart/mixed; boundary=b", bytes), false);
}

/// Bodies in a transfer encoding.
pub fn transfer(bytes: &[u8]) {
    for encoding in ["quoted-printable", "base64"] {
        let header =
            format!("Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}");
        rewritten(&part(&header, bytes), false);
    }
}

/// HTML and AMP.
pub fn html(bytes: &[u8]) {
    for kind in ["text/html; charset=utf-8", "text/html; charset=gbk", "text/x-amp-html"] {
        rewritten(&part(&format!("Content-Type: {kind}"), bytes), true);
    }
}

/// Links in plain text.
pub fn text(bytes: &[u8]) {
    for kind in ["charset=utf-8", "charset=iso-8859-1", "format=flowed; delsp=yes"] {
        rewritten(&part(&format!("Content-Type: text/plain; {kind}"), bytes), true);
    }
}

pub fn header(bytes: &[u8]) {
    let (fields, end) = fields(bytes);
    assert!(end <= bytes.len());
    assert_eq!(HeaderEdits::default().apply(bytes), bytes);
    let headers = ["X-SMTPAPI", "X-MSYS-API", "Feedback-ID", "List-Id", "X-MC-Tags", "X-SES-MESSAGE-TAGS"];
    if let Some(id) = campaign(&fields, &headers.map(str::to_owned), &[], "") {
        assert!(!id.as_str().contains('@') && id.as_str().len() <= 40);
    }
}

fn classifier() -> Classifier {
    Classifier::built_in()
}

/// Log lines: no panic, and never an address in an event or in a shape.
pub fn log(bytes: &[u8]) {
    let ring = ring();
    let parts = mailtap::tap::correlate::Parts {
        host: "mx".into(),
        pseudonyms: PseudonymKey::new(&[9; 32]),
        verify_ref: Arc::new(move |text| match token::verify(text, &ring).ok()?.token {
            token::Token::Ref(reference) => Some(reference.message),
            _ => None,
        }),
        classifier: classifier(),
        providers: mailtap::delivery::Providers::default(),
        replies: mailtap::delivery::Replies::Scrubbed,
        zone: jiff::tz::TimeZone::UTC,
        max_tracked: 100,
        own_relays: Vec::new(),
        copy_recipients: Vec::new(),
        units: Vec::new(),
    };
    let input = Input::Reader(Box::new(std::io::Cursor::new(bytes.to_owned())));
    let summary =
        once(vec![input], parts, &[], NOW, &mut |event| assert!(!event.to_json().contains('@'))).unwrap();
    assert!(summary.foreign <= summary.lines);
    let input = Input::Reader(Box::new(std::io::Cursor::new(bytes.to_owned())));
    let coverage = explain(vec![input]).unwrap();
    assert_eq!((coverage.lines, coverage.foreign), (summary.lines, summary.foreign));
    assert!(coverage.shapes().iter().all(|shape| !shape.text.contains('@')));
}

pub fn journal(bytes: &[u8]) {
    if let Some(entry) = JournalLine::parse(bytes) {
        let _ = (entry.line().is_some(), entry.dropped());
    }
}

/// Returned mail: no panic, no event without a reference of ours, never an address in an event.
pub fn returned(bytes: &[u8]) {
    let reader = bounce::Reader {
        host: "mx".into(),
        pseudonyms: PseudonymKey::new(&[9; 32]),
        verify_ref: Arc::new(|_| Some("0123456789abcdef".parse().unwrap())),
        classifier: classifier(),
        providers: mailtap::delivery::Providers::default(),
        replies: mailtap::delivery::Replies::Scrubbed,
        own_hosts: std::sync::Arc::new(Vec::new),
    };
    if let bounce::Verdict::Events(events) = reader.read(bytes, NOW) {
        assert!(events.iter().all(|event| !event.to_json().contains('@')));
    }
}

/// Frames, commands and replies: what can be read is written as it was.
pub fn frame(bytes: &[u8]) {
    let Ok(Some((frame, used))) = Frame::decode(bytes, 1 << 20) else { return };
    let mut written = Vec::new();
    frame.encode(&mut written);
    assert_eq!(written, &bytes[..used]);
    if let Ok(command) = Command::decode(frame) {
        let mut written = Vec::new();
        command.encode(&mut written);
        let (again, _) = Frame::decode(&written, 1 << 20).unwrap().unwrap();
        assert_eq!(Command::decode(again).unwrap(), command);
    }
    if let Ok(reply) = Reply::decode(frame) {
        let mut written = Vec::new();
        reply.encode(&mut written);
        let (again, _) = Frame::decode(&written, 1 << 20).unwrap().unwrap();
        assert_eq!(Reply::decode(again).unwrap(), reply);
    }
}

/// A whole session, fed in pieces whose sizes the bytes themselves give: with a filter that lets everything pass, one that
/// edits within small limits, and one that has no room for it.
pub fn session(bytes: &[u8]) {
    let mut everything = Wanted::default();
    everything.optional = Actions::VERSION_6;
    everything.protocol = Wanted::SKIPS_BODIES;
    let mut small = SessionLimits::default();
    small.answer_room_bytes = Some(300);
    let message = &mut small.message;
    (message.message_bytes, message.header_bytes, message.headers, message.recipients) = (200, 100, 3, 2);
    play(Session::new(Wanted::default(), SessionLimits::default()), bytes, false);
    play(Session::new(everything, small), bytes, true);
    play(Session::passing_through(Unseen::Connections, SessionLimits::default()), bytes, true);
}

/// An edit of every kind, with the message's own bytes in it; the session refuses what is not sound.
fn edits(message: &Message) -> Answer {
    let sender = || message.sender().address.clone();
    let body = message.body().to_vec();
    let mut edits = vec![
        Edit::AddHeader { name: b"X-Added".to_vec(), value: body.iter().copied().take(40).collect() },
        Edit::InsertHeader { index: 1, name: b"X-Inserted".to_vec(), value: sender() },
        Edit::AddRecipient { address: sender(), args: b"NOTIFY=NEVER".to_vec() },
        Edit::ChangeSender { address: sender(), args: Vec::new() },
        Edit::Quarantine { reason: b"why".to_vec() },
        Edit::ReplaceBody([b"new ", body.as_slice()].concat()),
    ];
    for header in message.headers() {
        edits.push(Edit::ChangeHeader { index: 1, name: header.name.to_vec(), value: header.value.to_vec() });
    }
    let gone =
        message.recipients().iter().map(|path| Edit::DeleteRecipient { address: path.address.clone() });
    edits.extend(gone);
    Answer::edited(edits)
}

fn play(mut session: Session, bytes: &[u8], edit: bool) {
    let mut rest = bytes;
    while let Some((&size, after)) = rest.split_first() {
        let (piece, after) = after.split_at(usize::from(size).min(after.len()));
        rest = after;
        session.receive(piece);
        loop {
            match session.poll() {
                Ok(Some(Milter::Headers)) => {
                    let interest = if edit { Interest::BodyUpTo(size.into()) } else { Interest::Body };
                    session.answer_headers(interest);
                }
                Ok(Some(Milter::Message(message))) => {
                    let answer = if edit { edits(&message) } else { Answer::unmodified() };
                    let _ = session.answer(&answer);
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
        // Whole replies, whatever came.
        let mut out = session.outgoing();
        while let Some((frame, used)) = Frame::decode(out, 1 << 20).unwrap() {
            Reply::decode(frame).unwrap();
            out = &out[used..];
        }
        assert!(out.is_empty());
        let waiting = session.outgoing().len();
        session.sent(waiting);
        if size == 0 && session.give_up(Unseen::Stopping) {
            assert!(session.message().is_none());
        }
    }
}

/// Whatever a filter replies to the end of a message, the client makes a mail of it, or refuses.
pub fn client(bytes: &[u8]) {
    let text = b"Subject: one\r\nsubject:two\r\nReceived: x\r\n\r\nbody\r\n";
    let mail = Mail::parse(Mailbox::new("<a@example.org>"), vec![Mailbox::new("<b@example.net>")], text);
    let mut editor = Editor::new(mail, Actions::VERSION_6, true);
    let mut rest = bytes;
    while let Ok(Some((frame, used))) = Frame::decode(rest, 1 << 20) {
        rest = &rest[used..];
        let Ok(reply) = Reply::decode(frame) else { break };
        if refusal(&reply).is_some() || matches!(reply, Reply::Accept | Reply::Continue) {
            break;
        }
        if editor.apply(&reply).is_err() {
            return;
        }
    }
    let (mail, _) = editor.finish();
    assert!(mail.to_bytes().len() <= 2 * (bytes.len() + text.len()) + 64);
}

/// The PROXY header: read as soon as it is whole, and never past its end.
pub fn proxy(bytes: &[u8]) {
    if let Ok(Some(header)) = mailtap::tracker::proxy::parse(bytes) {
        assert!(header.bytes <= bytes.len() && header.bytes <= mailtap::tracker::proxy::MAX_BYTES);
        let whole = &bytes[..header.bytes];
        assert_eq!(mailtap::tracker::proxy::parse(whole), Ok(Some(header)));
        assert_eq!(mailtap::tracker::proxy::missing(whole), 0);
        for end in 0..whole.len() {
            assert!(mailtap::tracker::proxy::missing(&whole[..end]) <= whole.len() - end);
            assert_eq!(mailtap::tracker::proxy::parse(&whole[..end]), Ok(None));
        }
    }
}

pub fn tracker(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = (cookies::client_id(&text), cookies::session_id(&text));
    if let Ok(target) = target::Target::parse(&text) {
        let location = target.location();
        assert!(location.bytes().all(|byte| byte.is_ascii_graphic()), "{location:?}");
        assert!(location.get(..4).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http")));
    }
}

pub fn collector(bytes: &[u8]) {
    for behaviour in [Behaviour::Relaxed, Behaviour::Enforce] {
        assert!(
            !judge(bytes, 1, behaviour).verdicts.is_empty() || bytes.windows(2).any(|pair| pair == b"[]")
        );
    }
}
