use std::fmt::Write as _;
use std::sync::Arc;

use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::*;
use crate::delivery::{Classifier, Providers, Replies};
use crate::identity::{MessageId, PseudonymKey};

const NOW: &str = "2026-11-25T00:00:00Z";

/// A correlator that takes `test-ref-0007` for a reference, of a message that came at 16:25:10.5 on 23 November 2026.
fn correlator() -> Correlator {
    Correlator::new(parts(), None)
}

fn parts() -> Parts {
    Parts {
        host: "relay1".into(),
        pseudonyms: PseudonymKey::new(&[7; 32]),
        verify_ref: Arc::new(|text| {
            let number = text.strip_prefix("test-ref-")?.parse().ok()?;
            Some(MessageId::new("2026-11-23T16:25:10.5Z".parse().unwrap(), number))
        }),
        classifier: Classifier::built_in(),
        providers: Providers::default(),
        replies: Replies::Off,
        zone: TimeZone::UTC,
        max_tracked: 1_000,
        own_relays: vec!["gate.example.org".into(), "192.0.2.9".into()],
        copy_recipients: vec!["archive@archive.example".into()],
        units: vec!["postfix.service".into()],
    }
}

fn read(correlator: &mut Correlator, log: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    for line in log.split(|byte| *byte == b'\n').filter_map(Line::parse) {
        correlator.line(&line, NOW.parse().unwrap(), &mut events);
    }
    events
}

fn pseudonym(address: &str) -> Option<Pseudonym> {
    Some(PseudonymKey::new(&[7; 32]).pseudonym(address))
}

/// Reads `test data name.log` and compares with `name.events.jsonl`, which `MAILTAP_BLESS=1` writes anew.
fn golden(name: &str) {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/logs");
    let log = std::fs::read(format!("{directory}/{name}.log")).unwrap();
    let mut correlator = correlator();
    let events = read(&mut correlator, &log);
    let mut text = String::new();
    for event in &events {
        writeln!(text, "{}", event.to_json()).unwrap();
    }
    let expected = format!("{directory}/{name}.events.jsonl");
    if std::env::var_os("MAILTAP_BLESS").is_some() {
        std::fs::write(&expected, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&expected).unwrap(), "{name}");
    assert!(!text.contains('@'), "an address");
    let again: Vec<_> = read(&mut self::correlator(), &log).into_iter().map(|event| event.id).collect();
    let ids: Vec<_> = events.iter().map(|event| event.id).collect();
    assert_eq!(again, ids, "the same ids in a second reading");
    let distinct: std::collections::HashSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len(), "no two events share an id");
    assert_eq!(correlator.counts().unknown, 0, "every line is known");
}

#[test]
fn the_log_of_postfix_3_7() {
    golden("postfix-3.7.11");
}

#[test]
fn the_log_of_postfix_3_7_with_short_queue_ids() {
    golden("postfix-3.7.11-shortid");
}

#[test]
fn the_log_of_postfix_3_11() {
    golden("postfix-3.11.6");
}

#[test]
fn the_log_of_aliases_requeueing_a_content_filter_and_copies() {
    golden("postfix-3.7.11-ways");
}

const HEADER: &str =
    "from unknown[127.0.0.1]; from=<a@News.Example.org> to=<b@example.net> proto=SMTP helo=<x>:";

/// A log of daemon and message by line, one second apart.
fn log(lines: &[(&str, &str)]) -> Vec<u8> {
    let mut log = String::new();
    for (second, (daemon, message)) in lines.iter().enumerate() {
        let (minute, second) = (25 + (11 + second) / 60, (11 + second) % 60);
        let message = message.replace("HEADER", HEADER);
        writeln!(log, "Nov 23 16:{minute}:{second:02} mx postfix/{daemon}[1]: {message}").unwrap();
    }
    log.into_bytes()
}

fn kinds(events: &[Event]) -> Vec<&'static str> {
    events.iter().map(|event| event.kind.as_str().rsplit('.').next().unwrap_or_default()).collect()
}

const REF: (&str, &str) =
    ("cleanup", "A1B2C3D4: milter-header-info: header X-Mailtap-Ref: test-ref-1 HEADER");

fn outcome(status: &str) -> String {
    format!(
        "A1B2C3D4: to=<B@example.net>, relay=mx.example.net[192.0.2.1]:25, delay=1, delays=1/0/0/0, {status}"
    )
}

#[test]
fn attempts_are_counted_and_expiry_returns_who_still_waits() {
    let deferred =
        outcome("dsn=4.2.1, status=deferred (host x[y] said: 450 4.2.1 busy (in reply to RCPT TO command))");
    let sent = outcome("dsn=2.0.0, status=sent (250 2.0.0 ok)").replace("B@", "c@");
    let events = read(
        &mut correlator(),
        &log(&[
            REF,
            ("cleanup", "A1B2C3D4: milter-header-info: header X-Mailtap-Campaign: spring HEADER"),
            ("smtp", &deferred),
            ("smtp", &deferred.replace("B@", "c@")),
            ("smtp", &deferred),
            ("smtp", &sent),
            ("qmgr", "A1B2C3D4: from=<a@news.example.org>, status=expired, returned to sender"),
            ("qmgr", "A1B2C3D4: removed"),
            ("smtp", &deferred),
        ]),
    );
    assert_eq!(kinds(&events), ["deferred", "deferred", "deferred", "delivered", "expired", "deferred"]);
    let attempts: Vec<_> = events.iter().map(|event| event.data.attempt.unwrap()).collect();
    assert_eq!(attempts, [1, 1, 2, 2, 2, 1]);
    let expired = &events[4];
    assert_eq!(expired.data.recipient, pseudonym("b@example.net"));
    assert_eq!((expired.data.dsn.as_deref(), expired.data.smtp_code), (Some("4.2.1"), Some(450)));
    assert_eq!(expired.data.sender_domain.as_deref(), Some("news.example.org"));
    assert_eq!(expired.data.campaign.as_ref().unwrap().as_str(), "spring");
    assert_eq!(expired.data.delay_ms, Some(6_500));
}

#[test]
fn a_queue_id_used_again_is_another_message() {
    let sent = outcome("dsn=2.0.0, status=sent (250 2.0.0 ok)");
    for beginning in [
        ("smtpd", "A1B2C3D4: client=unknown[127.0.0.1]"),
        ("pickup", "A1B2C3D4: uid=0 from=<root>"),
        ("cleanup", "A1B2C3D4: message-id=<x>"),
    ] {
        let mut correlator = correlator();
        let lines = [
            REF,
            ("smtp", &*sent),
            ("qmgr", "A1B2C3D4: removed"),
            ("smtp", &*sent),
            beginning,
            ("smtp", &*sent),
        ];
        assert_eq!(kinds(&read(&mut correlator, &log(&lines))), ["delivered", "delivered"], "{beginning:?}");
        assert_eq!(correlator.counts().attempts_without_ref, 1);
    }
}

#[test]
fn what_is_no_delivery_is_no_event() {
    let mut correlator = correlator();
    let events = read(
        &mut correlator,
        &log(&[
            REF,
            ("cleanup", "D4D4D4D4: info: header X-Mailtap-Ref: test-ref-1 HEADER"),
            (
                "smtp",
                &outcome(
                    "dsn=2.0.0, status=sent (250 2.0.0 from MTA(smtp:[127.0.0.1]:10025): 250 2.0.0 Ok: queued as D4D4D4D4)",
                ),
            ),
            ("discard", &outcome("dsn=2.0.0, status=sent (silently)")),
            ("smtp", &outcome("dsn=2.0.0, status=deliverable (250 ok)")),
            (
                "smtp",
                &outcome("dsn=2.0.0, status=sent (250 ok)").replace("mx.example.net", "gate.example.org"),
            ),
            ("smtp", &outcome("dsn=2.0.0, status=sent (250 ok)").replace("192.0.2.1", "192.0.2.9")),
            ("smtp", &outcome("dsn=2.0.0, status=sent (250 2.0.0 Ok: queued as E5E5E5E5)")),
        ]),
    );
    assert_eq!(kinds(&events), ["delivered"], "only the one that another server queued");
    let counts = correlator.counts();
    assert_eq!((counts.handed_on, counts.discarded, counts.probes), (3, 1, 1));
}

#[test]
fn a_message_goes_on_under_another_queue_id() {
    let sent = outcome("dsn=2.0.0, status=sent (250 2.0.0 ok)");
    let again = sent.replace("A1B2C3D4", "D4D4D4D4");
    let deferred = outcome("dsn=4.4.1, status=deferred (x)");
    let forwarded = outcome("dsn=2.0.0, status=sent (forwarded as D4D4D4D4)");
    let told = |lines: &[(&str, &str)]| {
        let events = read(&mut correlator(), &log(&[&[REF][..], lines].concat()));
        let attempts: Vec<_> = events.iter().map(|event| event.data.attempt.unwrap()).collect();
        (kinds(&events).join(" "), attempts)
    };
    let requeued = ("pickup", "D4D4D4D4: uid=102 from=<news@shop.example> orig_id=A1B2C3D4");
    assert_eq!(
        told(&[("smtp", &deferred), requeued, ("smtp", &again)]),
        ("deferred delivered".into(), vec![1, 2])
    );
    let filtered =
        ("smtpd", "D4D4D4D4: client=x[192.0.2.1], orig_queue_id=A1B2C3D4, orig_client=y[192.0.2.2]");
    let queued = outcome("dsn=2.0.0, status=sent (250 2.0.0 Ok: queued as D4D4D4D4)");
    assert_eq!(told(&[filtered, ("smtp", &queued), ("smtp", &again)]), ("delivered".into(), vec![1]));
    assert_eq!(told(&[("local", &forwarded), ("smtp", &again)]), ("delivered".into(), vec![1]));
    // What was forwarded was quicker than the word of it.
    let removed = ("qmgr", "D4D4D4D4: removed");
    assert_eq!(told(&[("smtp", &again), removed, ("local", &forwarded)]), ("delivered".into(), vec![1]));
    let twice = [("smtp", &*again), ("local", &*forwarded), ("smtp", &*again)];
    assert_eq!(told(&twice), ("delivered delivered".into(), vec![1, 1]), "each once, and no more");
    // Any server can say so.
    assert_eq!(told(&[("smtp", &forwarded), ("smtp", &again)]), ("delivered".into(), vec![1]));
    // The same inode, the same short queue id.
    let same = ("pickup", "A1B2C3D4: uid=102 from=<news@shop.example> orig_id=A1B2C3D4");
    assert_eq!(
        told(&[("smtp", &deferred), same, ("smtp", &sent)]),
        ("deferred delivered".into(), vec![1, 2])
    );
    let unknown = ("smtpd", "D4D4D4D4: client=x[192.0.2.1], orig_queue_id=E5E5E5E5");
    assert_eq!(told(&[unknown, ("smtp", &again)]).0, "");
}

/// Of two files the second instance's may be read later than the first one's.
#[test]
fn a_delivery_that_was_none_is_noticed() {
    let own = log(&[
        (
            "cleanup",
            "A1B2C3D4: milter-header-info: header X-Mailtap-Ref: test-ref-0001 from x[127.0.0.1]; from=<a@b>",
        ),
        ("smtp", &outcome("dsn=2.0.0, status=sent (250 2.0.0 Ok: queued as B2B2B2B2)")),
    ]);
    let next = |reference: &str| {
        let text = format!("B2B2B2B2: info: header X-Mailtap-Ref: {reference} from x[127.0.0.1]; from=<a@b>");
        log(&[("cleanup", &text)])
    };
    for (first, second, expected) in [
        (own.clone(), next("test-ref-0001"), (1, 1, 0)),
        (next("test-ref-0001"), own.clone(), (0, 0, 1)),
        (own.clone(), next("test-ref-0002"), (1, 0, 0)),
    ] {
        let mut correlator = correlator();
        let events = read(&mut correlator, &[first, second].concat());
        let counts = correlator.counts();
        assert_eq!((events.len(), counts.counted_early, counts.handed_on), expected);
    }
}

#[test]
fn daemons_with_a_name_of_their_own_are_of_the_same_instance() {
    let sent = outcome("dsn=2.0.0, status=sent (250 2.0.0 ok)");
    let again = sent.replace("A1B2C3D4", "D4D4D4D4");
    let filtered = "D4D4D4D4: client=x[192.0.2.1], orig_queue_id=A1B2C3D4, orig_client=y[192.0.2.2]";
    let told = |lines: &[(&str, &str)]| kinds(&read(&mut correlator(), &log(lines))).join(" ");
    // As Debian's master.cf has it, and with a name that has nothing of `postfix`.
    assert_eq!(told(&[REF, ("relay/smtp", &sent), ("qmgr", "A1B2C3D4: removed")]), "delivered");
    assert_eq!(told(&[REF, ("10025/smtpd", filtered), ("relay/smtp", &again)]), "delivered");
    let mut text = String::from_utf8(log(&[REF, ("smtpd", filtered), ("smtp", &again)])).unwrap();
    text = text.replace("postfix/smtpd", "reinject/smtpd");
    assert_eq!(kinds(&read(&mut correlator(), text.as_bytes())), ["delivered"]);
    // The `removed` was lost, and the queue id is used again by mail that is not tracked.
    let client = ("submission/smtpd", "A1B2C3D4: client=x[192.0.2.1]");
    assert_eq!(told(&[REF, client, ("relay/smtp", &sent)]), "");
    // Another instance that has the same queue id at the same time.
    let mut text = String::from_utf8(log(&[REF, client, ("relay/smtp", &sent), ("smtp", &sent)])).unwrap();
    text = text.replace("postfix/submission", "postfix-out/submission");
    assert_eq!(kinds(&read(&mut correlator(), text.as_bytes())), ["delivered", "delivered"]);
}

#[test]
fn two_aliases_of_one_address_expire_each() {
    let line = |original: &str| {
        format!(
            "A1B2C3D4: to=<b@example.net>, orig_to=<{original}>, relay=none, delay=1, delays=1/0/0/0, dsn=4.4.1, \
             status=deferred (connect to x[192.0.2.1]:25: Connection refused)"
        )
    };
    let (one, two) = (line("one@alias.example"), line("two@alias.example"));
    let expired = "A1B2C3D4: from=<a@news.example.org>, status=expired, returned to sender";
    let lines = [REF, ("smtp", &*one), ("smtp", &*two), ("smtp", &*one), ("qmgr", expired)];
    let events = read(&mut correlator(), &log(&lines));
    assert_eq!(kinds(&events), ["deferred", "deferred", "deferred", "expired", "expired"]);
    let of: std::collections::HashMap<_, _> =
        events[3..].iter().map(|event| (event.data.recipient, event.data.attempt)).collect();
    assert_eq!(of[&pseudonym("one@alias.example")], Some(2));
    assert_eq!(of[&pseudonym("two@alias.example")], Some(1));
}

#[test]
fn what_is_held_and_released_is_still_known() {
    let sent = outcome("dsn=2.0.0, status=sent (250 2.0.0 ok)");
    for hold in [
        (
            "cleanup",
            "A1B2C3D4: milter-hold: END-OF-MESSAGE from x[192.0.2.1]: milter triggers HOLD action; from=<a@b> to=<c@d>",
        ),
        ("postsuper", "A1B2C3D4: placed on hold"),
    ] {
        let events = read(
            &mut correlator(),
            &log(&[REF, hold, ("postsuper", "A1B2C3D4: released from hold"), ("smtp", &sent)]),
        );
        assert_eq!(kinds(&events), ["delivered"], "{hold:?}");
    }
}

#[test]
fn what_the_logger_left_out_is_counted_where_it_matters() {
    let lost = |before: (&str, &str), notice: &str| {
        let mut correlator = correlator();
        read(&mut correlator, &log(&[REF, before]));
        match Line::parse(notice.as_bytes()) {
            Some(line) => correlator.line(&line, NOW.parse().unwrap(), &mut Vec::new()),
            None => correlator.other(notice.as_bytes()),
        }
        correlator.counts().lost_lines
    };
    let sent = outcome("dsn=2.0.0, status=sent (250 2.0.0 ok)");
    let untagged = "Nov 23 16:25:13 mx last message repeated 3 times";
    assert_eq!(lost(("smtp", &sent), untagged), 3);
    assert_eq!(lost(("smtp", &sent), "Nov 23 16:25:13 mx postfix/smtp[1]: last message repeated 3 times"), 3);
    assert_eq!(lost(("smtpd", "connect from x[192.0.2.1]"), untagged), 0);
    assert_eq!(lost(("smtp", &sent), "Nov 23 16:25:13 mx rsyslogd: imuxsock lost 7 messages from pid 1"), 7);
    assert_eq!(
        lost(
            ("smtp", &sent),
            "Nov 23 16:25:13 mx systemd-journald[1]: Suppressed 9 messages from postfix.service"
        ),
        9
    );
    assert_eq!(
        lost(
            ("smtp", &sent),
            "Nov 23 16:25:13 mx systemd-journald[1]: Suppressed 9 messages from nginx.service"
        ),
        0
    );
}

#[test]
fn the_reason_and_the_provider_come_with_the_class() {
    let busy = outcome("dsn=4.2.1, status=deferred (host x[y] said: 450 4.2.1 <b@example.net> busy)")
        .replace("mx.example.net", "mx.l.google.com");
    let expired = "A1B2C3D4: from=<a@news.example.org>, status=expired, returned to sender";
    let log = log(&[REF, ("smtp", &busy), ("qmgr", expired)]);
    let of = |replies: Replies| {
        let mut correlator = Correlator::new(Parts { replies, ..parts() }, None);
        let saved = serde_json::from_str(&serde_json::to_string(&correlator.save()).unwrap()).unwrap();
        let mut events = read(&mut correlator, &log);
        events.extend(read(&mut Correlator::new(parts(), Some(saved)), b""));
        events
    };
    for event in of(Replies::Off) {
        assert_eq!(event.data.reason.as_deref(), Some("the mailbox takes no mail now"));
        assert_eq!((event.data.provider.as_deref(), event.data.reply), (Some("gmail"), None));
    }
    let replies = |replies| of(replies).into_iter().filter_map(|event| event.data.reply).collect::<Vec<_>>();
    assert_eq!(replies(Replies::Scrubbed), ["450 4.2.1 … busy"]);
    assert_eq!(replies(Replies::Full), ["host x[y] said: 450 4.2.1 <b@example.net> busy"]);
}

#[test]
fn tls_before_3_11_is_the_connections() {
    let sent = outcome("dsn=2.0.0, status=sent (250 2.0.0 ok)");
    let other = sent.replace("A1B2C3D4", "D4D4D4D4");
    let again = other.replace(", delay=", ", conn_use=2, delay=");
    let second = ("cleanup", "D4D4D4D4: milter-header-info: header X-Mailtap-Ref: test-ref-2 HEADER");
    let tls = |word: &str| {
        format!(
            "{word} TLS connection established to mx.example.net[192.0.2.1]:25: TLSv1.3 with cipher X (256/256 bits)"
        )
    };
    let told = |lines: &[(&str, &str)]| -> Vec<Option<String>> {
        let events = read(&mut correlator(), &log(&[&[REF, second][..], lines].concat()));
        events.into_iter().map(|event| event.data.tls).collect()
    };
    let (untrusted, verified) = (tls("Untrusted"), tls("Verified"));
    let some = |word: &str| Some(word.to_owned());
    assert_eq!(
        told(&[("smtp", &untrusted), ("smtp", &sent), ("smtp", &sent), ("smtp", &again)]),
        [some("untrusted"), some("untrusted"), some("untrusted")]
    );
    // Another connection of the same process, of which nothing was said.
    assert_eq!(
        told(&[("smtp", &verified), ("smtp", &sent), ("smtp", &other), ("smtp", &sent)]),
        [some("verified"), None, None]
    );
    // Another server, another process.
    assert_eq!(told(&[("smtp", &untrusted), ("smtp", &sent.replace("192.0.2.1", "192.0.2.2"))]), [None]);
    assert_eq!(told(&[("relay/smtp", &untrusted), ("smtp", &sent)]), [None]);
    let since_3_11 = sent.replace("dsn=2", "tls=may, dsn=2");
    assert_eq!(told(&[("smtp", &untrusted), ("smtp", &since_3_11)]), [some("may")]);
}

#[test]
fn a_newsletter_within_the_message_is_not_the_message() {
    let sent = outcome("dsn=2.0.0, status=sent (250 2.0.0 ok)");
    let header = |number| format!("A1B2C3D4: info: header X-Mailtap-Ref: test-ref-{number} {HEADER}");
    let (own, nested) = (header(1), header(2));
    let active = "A1B2C3D4: from=<a@news.example.org>, size=1, nrcpt=1 (queue active)";
    let of = |lines: &[(&str, &str)]| {
        let events = read(&mut correlator(), &log(lines));
        let numbers: Vec<_> = events.iter().map(|event| event.message).collect();
        numbers
    };
    let first = of(&[("cleanup", &own), ("qmgr", active), ("smtp", &sent)]);
    let second = of(&[("cleanup", &nested), ("smtp", &sent)]);
    assert_eq!(of(&[("cleanup", &own), ("cleanup", &nested), ("qmgr", active), ("smtp", &sent)]), first);
    // The same queue id later, after lost lines.
    assert_eq!(of(&[("cleanup", &own), ("qmgr", active), ("cleanup", &nested), ("smtp", &sent)]), second);
}

#[test]
fn what_is_refused_is_counted() {
    let mut correlator = correlator();
    let refused =
        "reject: RCPT from x[192.0.2.1]: 550 5.1.6 <a@b>: Recipient address rejected: t; from=<> to=<a@b>";
    let by_milter = "milter-reject: END-OF-MESSAGE from x[192.0.2.1]: 5.7.1 no; from=<a@b> to=<c@d>";
    let lines = [
        ("smtpd", format!("NOQUEUE: {refused}")),
        ("postscreen", format!("NOQUEUE: {refused}")),
        ("smtpd", format!("NOQUEUE: {by_milter}")),
        ("cleanup", format!("A1B2C3D4: {by_milter}")),
        ("cleanup", "A1B2C3D4: reject: header Subject: x from x[192.0.2.1]; from=<a@b>: 5.7.1 no".to_owned()),
        ("smtpd", "NOQUEUE: lost connection after DATA (14 bytes) from x[192.0.2.1]".to_owned()),
    ];
    let lines: Vec<(&str, &str)> = lines.iter().map(|(daemon, text)| (*daemon, text.as_str())).collect();
    read(&mut correlator, &log(&lines));
    let counts = correlator.counts();
    let refused = [
        counts.refused_by_smtpd,
        counts.refused_by_postscreen,
        counts.refused_by_milter,
        counts.refused_for_content,
    ];
    assert_eq!((refused, counts.unknown), ([1, 1, 2, 1], 0));
}

#[test]
fn copies_are_no_deliveries() {
    let copy =
        outcome("dsn=2.0.0, status=sent (250 2.0.0 ok)").replace("B@example.net", "Archive@archive.example");
    let mut correlator = correlator();
    assert!(read(&mut correlator, &log(&[REF, ("smtp", &copy)])).is_empty());
    assert_eq!(correlator.counts().copies, 1);
}

#[test]
fn the_recipient_is_the_one_before_aliases() {
    let line = "A1B2C3D4: to=<target@example.net>, orig_to=<Alias@example.net>, relay=local, delay=1, delays=1/0/0/0, \
                dsn=2.0.0, status=sent (delivered to mailbox)";
    let events =
        read(&mut correlator(), &log(&[REF, ("local", line), ("local", &line.replace("target", "other"))]));
    assert_eq!(events[0].data.recipient, pseudonym("alias@example.net"));
    assert_eq!(events[1].data.recipient, pseudonym("alias@example.net"));
    assert_ne!(events[0].id, events[1].id);
}

#[test]
fn attempts_of_one_second_and_repetitions_stay_apart() {
    let one = outcome("dsn=4.4.1, status=deferred (x)");
    let text = format!(
        "Nov 23 16:25:11 mx postfix/cleanup[1]: {}\nNov 23 16:25:12 mx postfix/smtp[1]: {one}\nNov 23 16:25:12 mx \
         postfix/smtp[1]: {}\nNov 23 16:25:13 mx postfix/smtp[1]: message repeated 2 times: [ {one}]\n",
        REF.1.replace("HEADER", HEADER),
        one.replace("delay=1,", "delay=1.2,"),
    );
    let events = read(&mut correlator(), text.as_bytes());
    let ids: std::collections::HashSet<_> = events.iter().map(|event| event.id).collect();
    assert_eq!((events.len(), ids.len()), (4, 4));
}

#[test]
fn saved_state_goes_on_where_it_was() {
    let log =
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/logs/postfix-3.7.11.log")).unwrap();
    let whole = read(&mut correlator(), &log);
    for cut in (0..log.len()).step_by(997) {
        let cut = log[..cut].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let mut first = correlator();
        let mut events = read(&mut first, &log[..cut]);
        let saved = serde_json::from_str(&serde_json::to_string(&first.save()).unwrap()).unwrap();
        events.extend(read(&mut Correlator::new(parts(), Some(saved)), &log[cut..]));
        assert!(events == whole, "cut at {cut}");
    }
}

#[test]
fn other_instances_can_be_left_out() {
    let sent = outcome("dsn=2.0.0, status=sent (250 2.0.0 ok)");
    for (name, events) in [("postfix", 1), ("postfix-out", 0), ("post", 0)] {
        let mut correlator = self::correlator().only(vec![name.into()]);
        let text = String::from_utf8(log(&[REF, ("smtp", &sent)]))
            .unwrap()
            .replace("postfix/smtp", "postfix/relay/smtp");
        assert_eq!(
            read(&mut correlator, text.replace("postfix/cleanup", "postfix/relay/cleanup").as_bytes()).len(),
            events
        );
    }
}

#[test]
fn returned_mail_that_passes_by_is_not_the_message_within() {
    let sent = outcome("dsn=2.0.0, status=sent (250 2.0.0 ok)");
    let nested = "A1B2C3D4: info: header X-Mailtap-Ref: test-ref-1 from x[192.0.2.1]; from=<> to=<b@x> proto=SMTP helo=<x>:";
    assert!(read(&mut correlator(), &log(&[("cleanup", nested), ("smtp", &sent)])).is_empty());
}

#[test]
fn references_of_others_and_mail_without_any_are_counted() {
    let mut correlator = correlator();
    let sent = outcome("dsn=2.0.0, status=sent (250 2.0.0 ok)");
    let foreign = "A1B2C3D4: milter-header-info: header X-Mailtap-Ref: of-another-site HEADER";
    assert!(read(&mut correlator, &log(&[("cleanup", foreign), ("smtp", &sent)])).is_empty());
    assert_eq!((correlator.counts().unverified_refs, correlator.counts().attempts_without_ref), (1, 1));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
        read(&mut correlator(), &text);
        let mut line = b"Nov 23 16:25:11 mx postfix/smtp[1]: ".to_vec();
        line.extend(text);
        read(&mut correlator(), &line);
    }

    /// Real lines, damaged: no panic, and never an address in an event.
    #[test]
    fn damaged_lines_give_no_address_away(
        at in 0_usize..60_000, cut in 0_usize..300, with in proptest::collection::vec(any::<u8>(), 0..8),
    ) {
        let log = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/logs/postfix-3.11.6.log"));
        let at = at.min(log.len());
        let mut damaged = log[..at].to_vec();
        damaged.extend(with);
        damaged.extend(&log[(at + cut).min(log.len())..]);
        for event in read(&mut correlator(), &damaged) {
            prop_assert!(!event.to_json().contains('@'));
        }
    }
}
