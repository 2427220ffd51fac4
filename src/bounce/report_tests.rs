use proptest::prelude::*;

use super::*;
use crate::event::BounceClass;

fn reader(own_hosts: &[&str]) -> Reader {
    let own_hosts: Vec<String> = own_hosts.iter().map(|host| (*host).to_owned()).collect();
    Reader {
        host: "relay1".into(),
        pseudonyms: PseudonymKey::new(&[7; 32]),
        verify_ref: Arc::new(|text| {
            let number = text.strip_prefix("test-ref-")?.parse().ok()?;
            Some(MessageId::new("2026-11-23T16:25:10.5Z".parse().unwrap(), number))
        }),
        classifier: Classifier::built_in(),
        providers: crate::delivery::Providers::default(),
        replies: crate::delivery::Replies::Off,
        own_hosts: Arc::new(move || own_hosts.clone()),
    }
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/data/dsn/{name}.eml", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn read(name: &str) -> Verdict {
    read_bytes(&file(name))
}

fn read_bytes(message: &[u8]) -> Verdict {
    reader(&[]).read(message, "2026-11-24T00:00:00Z".parse().unwrap())
}

fn events(verdict: Verdict) -> Vec<Event> {
    match verdict {
        Verdict::Events(events) => events,
        other => panic!("{other:?}"),
    }
}

fn addressed(event: &Event, address: &str) -> bool {
    event.data.recipient == Some(PseudonymKey::new(&[7; 32]).pseudonym(address))
}

#[test]
fn failures_of_postfix() {
    for (name, recipients) in [
        ("failed-single-1", &["reject@example.net"][..]),
        ("failed-multi-1", &["reject1@example.net", "reject2@example.net"]),
        ("failed-alias-orcpt-1", &["Orig+x@example.net"]),
        ("failed-utf8-1", &["reject-josé@exämple.net"]),
    ] {
        let events = events(read(name));
        assert_eq!(events.len(), recipients.len(), "{name}");
        for (event, recipient) in events.iter().zip(recipients) {
            assert!(addressed(event, recipient), "{name}: {recipient}");
            assert_eq!((event.kind, event.data.class), (Kind::Bounced, Some(BounceClass::Hard)), "{name}");
            assert_eq!((event.data.dsn.as_deref(), event.data.smtp_code), (Some("5.1.1"), Some(550)));
            assert_eq!(event.data.campaign.as_ref().unwrap().as_str(), "spring-2026");
            assert!(event.time.to_string().starts_with("2026-11-23T16:58:"));
            assert!(!event.to_json().contains('@'));
        }
    }
}

#[test]
fn the_sender_domain_is_the_return_paths() {
    assert_eq!(events(read("failed-single-1"))[0].data.sender_domain.as_deref(), Some("example.org"));
    assert_eq!(events(read("failed-utf8-1"))[0].data.sender_domain.as_deref(), Some("xn--exmple-cua.org"));
}

#[test]
fn a_delay_is_deferred_and_success_is_left_to_the_log() {
    let delayed = events(read("delayed-2"));
    assert_eq!((delayed.len(), delayed[0].kind), (1, Kind::Deferred));
    assert_eq!(delayed[0].data.class, Some(BounceClass::Soft));
    assert_eq!(events(read("relayed-1")), []);
}

#[test]
fn reports_of_others() {
    let exchange = events(read("made-exchange"));
    assert!(addressed(&exchange[0], "c4@partner.example"));
    assert_eq!(exchange[0].data.class, Some(BounceClass::MailboxFull));
    assert_eq!(exchange[0].data.provider.as_deref(), Some("microsoft"));
    let complaint = events(read("made-complaint"));
    assert_eq!((complaint.len(), complaint[0].kind), (1, Kind::Complained));
    assert!(addressed(&complaint[0], "dan@provider.example"));
    assert_eq!(complaint[0].time.to_string(), "2026-11-23T18:00:00Z");
    let qmail = "From: MAILER-DAEMON@x\r\nSubject: failure notice\r\n\r\nHi. This is the qmail-send program at x.\r\n\r\n\
                 <e@x.example>:\r\nSorry, no mailbox here by that name. (#5.1.1)\r\n\r\n--- Below this line is a copy\r\n\r\n\
                 Return-Path: <a@example.org>\r\nX-Mailtap-Ref: test-ref-0045\r\n\r\nhi\r\n";
    let qmail = events(read_bytes(qmail.as_bytes()));
    assert!(addressed(&qmail[0], "e@x.example"));
    assert_eq!(qmail[0].data.class, Some(BounceClass::Hard));
}

#[test]
fn the_forms_of_big_providers() {
    let hard = BounceClass::Hard;
    for (name, provider, code) in [
        ("made-gmail", Some("gmail"), Some("5.1.1")),
        ("made-domino", None, Some("5.1.1")),
        ("made-exchange-online", None, Some("5.1.10")),
        ("made-yahoo", None, None),
    ] {
        let events = events(read(name));
        assert!(events.len() == 1 && addressed(&events[0], "gone@partner.example"), "{name}: {events:?}");
        let data = &events[0].data;
        assert_eq!((events[0].kind, data.class), (Kind::Bounced, Some(hard)), "{name}");
        assert_eq!((data.provider.as_deref(), data.dsn.as_deref()), (provider, code), "{name}");
        assert_eq!(data.reason.as_deref().map(str::is_empty), Some(false), "{name}");
        assert_eq!(data.campaign.as_ref().unwrap().as_str(), "spring-2026", "{name}");
    }
    for name in ["made-jmrp", "made-yahoo-complaint"] {
        let events = events(read(name));
        assert!(events.len() == 1 && addressed(&events[0], "dan@provider.example"), "{name}: {events:?}");
        assert_eq!(events[0].kind, Kind::Complained, "{name}");
    }
    for name in [
        "made-gmail",
        "made-domino",
        "made-exchange-online",
        "made-yahoo",
        "made-jmrp",
        "made-yahoo-complaint",
    ] {
        let forged = String::from_utf8(file(name)).unwrap().replace("test-ref-", "forged-ref-");
        assert!(matches!(read_bytes(forged.as_bytes()), Verdict::Foreign(_)), "{name}");
    }
    let of_another =
        String::from_utf8(file("made-jmrp")).unwrap().replace("staff@hotmail.com", "staff@x.example");
    assert!(!matches!(read_bytes(of_another.as_bytes()), Verdict::Events(_)));
}

#[test]
fn reports_without_the_usual_structure() {
    for (name, recipient, class) in [
        ("made-qmail", "gone@partner.example", BounceClass::Hard),
        ("made-exim", "full@partner.example", BounceClass::MailboxFull),
        ("made-exchange-old", "gone@partner.example", BounceClass::Hard),
        ("made-sendmail-old", "gone@partner.example", BounceClass::Hard),
        ("made-text-headers", "gone@partner.example", BounceClass::Hard),
        ("made-envelope-id", "gone@partner.example", BounceClass::Hard),
    ] {
        let events = events(read(name));
        assert_eq!(events.len(), 1, "{name}: {events:?}");
        assert!(addressed(&events[0], recipient), "{name}");
        assert_eq!((events[0].kind, events[0].data.class), (Kind::Bounced, Some(class)), "{name}");
        assert!(!events[0].to_json().contains('@'));
        let forged = String::from_utf8(file(name)).unwrap().replace("test-ref-", "forged-ref-");
        assert!(matches!(read_bytes(forged.as_bytes()), Verdict::Foreign(_)), "{name}");
        // With another line end.
        let crlf = String::from_utf8(file(name)).unwrap().replace('\n', "\r\n");
        assert_eq!(self::events(read_bytes(crlf.as_bytes())).len(), 1, "{name} with CRLF");
    }
}

#[test]
fn an_answer_that_quotes_our_message_is_no_bounce() {
    let answer = "From: Anna <anna@partner.example>\nTo: bounce@example.org\nSubject: Re: hello\n\n\
        I could not be delivered from this. Out of office.\n\n> To: anna@partner.example\n> X-Mailtap-Ref: test-ref-0057\n\n";
    assert_eq!(read_bytes(answer.as_bytes()), Verdict::NotAReport("no report"));
    let vacation = answer.replace("Subject:", "Auto-Submitted: auto-replied\nSubject:");
    assert_eq!(read_bytes(vacation.as_bytes()), Verdict::NotAReport("an automatic answer"));
}

#[test]
fn only_whom_the_message_was_for_can_fail() {
    let report = |headers: &str, text: &str, to: &str| {
        let message = format!(
            "From: postmaster@partner.example\nTo: news@shop.example\nSubject: Undeliverable: hello\n{headers}\n{text}\n\n\
             > From: news@shop.example\n{to}> X-Mailtap-Ref: test-ref-0057\n\n"
        );
        read_bytes(message.as_bytes())
    };
    let to = "> To: Anna <anna@partner.example>\n";
    let away = "I am away. Mail to me could not be delivered; ask chef@other.example.";
    // An out-of-office reply, by whoever writes it.
    let answer = report("Auto-Submitted: auto-replied (vacation)\n", away, to);
    assert_eq!(answer, Verdict::NotAReport("an automatic answer"));
    // Who is named but was no recipient is not the one that failed.
    let events = events(report("", away, to));
    assert!(events.len() == 1 && addressed(&events[0], "anna@partner.example"), "{events:?}");
    let two = "> To: anna@partner.example, bert@partner.example\n";
    let of_bert =
        self::events(report("", "<BERT@partner.example> unknown. Undelivered, says chef@other.example", two));
    assert!(of_bert.len() == 1 && addressed(&of_bert[0], "bert@partner.example"), "{of_bert:?}");
    assert_eq!(report("", away, two), Verdict::NotAReport("no report"));
    // Nothing is known of the recipient.
    let told = self::events(report("", "Undeliverable: gone@partner.example", ""));
    assert!(told.len() == 1 && addressed(&told[0], "gone@partner.example"));
}

#[test]
fn undeliverable_for_a_reason_is_a_bounce_and_for_some_hours_a_delay() {
    let report = |text: &str| {
        let message = format!(
            "From: postmaster@partner.example\nTo: news@shop.example\nSubject: Mail\n\n{text}\n\n\
             > To: anna@partner.example\n> X-Mailtap-Ref: test-ref-0057\n\n"
        );
        events(read_bytes(message.as_bytes()))[0].kind
    };
    let reason = "Your message could not be delivered for the following reason: 550 5.1.1 user unknown";
    assert_eq!(report(reason), Kind::Bounced);
    for time in ["4 hours", "more than 4 hours", "the last 4 hours"] {
        assert_eq!(
            report(&format!("The message could not be delivered for {time}.")),
            Kind::Deferred,
            "{time}"
        );
    }
}

/// Millions of at signs, brackets, colons and quotation marks: what was quadratic took minutes.
#[test]
fn big_reports_cost_no_more_than_their_size() {
    let size = 512 << 10;
    let begun = std::time::Instant::now();
    for filling in [
        "@",
        "a@",
        "a.b@c.d ",
        "<",
        "<a@b.c>",
        "id:<x@y.z>\n",
        "> X-Mailtap-Ref\n",
        "550 ",
        ":\n",
        "\n>\n",
        "> ",
        "=\n",
        "a: b\n",
    ] {
        let filled = filling.repeat(size / filling.len());
        for message in [
            format!(
                "From: MAILER-DAEMON@x.example\nSubject: failure notice\n\nundelivered\n\n{filled}\n\n> X-Mailtap-Ref: test-ref-1\n\n"
            ),
            format!(
                "From: MAILER-DAEMON@x.example\nSubject: failure notice\n\nundelivered\n\n> X-Mailtap-Ref: test-ref-1\n> To: {filled}\n\n"
            ),
            format!(
                "From: MAILER-DAEMON@x.example\nX-Failed-Recipients: {filled}\n\nx\n------ This is a copy of \n\nX-Mailtap-Ref: test-ref-1\n\n"
            ),
            format!(
                "From: x\nContent-Type: multipart/report; boundary=b\n\n--b\nContent-Type: message/delivery-status\n\nFinal-Recipient: {filled}\n\n--b\nContent-Type: message/rfc822\n\nX-Mailtap-Ref: test-ref-1\n{filled}\n--b--\n"
            ),
        ] {
            let _ = read_bytes(message.as_bytes());
        }
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(60), "{:?}", begun.elapsed());
}

#[test]
fn our_own_hosts_report_is_known_from_the_log() {
    let message = file("failed-single-1");
    let now = Timestamp::from_secs(2_000_000_000);
    for own in ["MX.test.invalid", "*.Test.invalid"] {
        assert_eq!(reader(&[own]).read(&message, now), Verdict::Known);
    }
    for other in ["test.invalid", "*.mx.test.invalid", "*", "*x.test.invalid", "*invalid"] {
        assert!(matches!(reader(&[other]).read(&message, now), Verdict::Events(_)), "{other}");
    }
    let of_another = String::from_utf8(message).unwrap().replace("X-Postfix-Queue-ID", "X-Other");
    assert!(matches!(reader(&["mx.test.invalid"]).read(of_another.as_bytes(), now), Verdict::Events(_)));
}

#[test]
fn what_is_no_report_of_ours_changes_nothing() {
    assert_eq!(read("made-vacation"), Verdict::NotAReport("an automatic answer"));
    assert_eq!(read_bytes(b"From: a@x\n\nhello\n"), Verdict::NotAReport("no report"));
    assert_eq!(read_bytes(b""), Verdict::NotAReport("not a message"));
    let forged = String::from_utf8(file("failed-single-1")).unwrap().replace("test-ref-", "forged-ref-");
    assert_eq!(read_bytes(forged.as_bytes()), Verdict::Foreign("with a reference that can't be verified"));
    let without = forged.replace("X-Mailtap-Ref", "X-Other");
    assert_eq!(read_bytes(without.as_bytes()), Verdict::Foreign("without a reference"));
}

#[test]
fn a_final_report_counts_once_and_a_delay_each_time() {
    let again = |name: &str| {
        let first = events(read(name))[0].id;
        let other = String::from_utf8(file(name)).unwrap().replace("Message-Id: <4", "Message-Id: <5");
        (first, events(read(name))[0].id, events(read_bytes(other.as_bytes()))[0].id)
    };
    let (first, same, other) = again("failed-single-1");
    assert!(first == same && first == other);
    let (first, same, other) = again("delayed-2");
    assert!(first == same && first != other);
}

proptest! {
    #[test]
    fn damaged_reports_neither_panic_nor_give_addresses_away(
        at in 0_usize..3_000, cut in 0_usize..200, with in proptest::collection::vec(any::<u8>(), 0..8), which in 0_usize..4,
    ) {
        let message = file(["failed-multi-1", "delayed-2", "made-exchange", "made-complaint"][which]);
        let at = at.min(message.len());
        let damaged = [&message[..at], &with, &message[(at + cut).min(message.len())..]].concat();
        if let Verdict::Events(events) = read_bytes(&damaged) {
            for event in events {
                prop_assert!(!event.to_json().contains('@'));
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic(message in proptest::collection::vec(any::<u8>(), 0..300)) {
        read_bytes(&message);
    }
}
