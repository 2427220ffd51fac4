use super::*;

fn line(daemon: &'static str, message: &'static str) -> Line<'static> {
    let text = format!("Nov 23 16:25:11 mx postfix/{daemon}[1]: {message}");
    Line::parse(Box::leak(text.into_boxed_str()).as_bytes()).unwrap()
}

fn delivered(message: &'static str) -> Delivery<'static> {
    match Record::parse(&line("smtp", message)) {
        Record::Delivery(delivery) => delivery,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_delivery_of_every_version() {
    let old = delivered(
        "4jYBB00QDXz1TRYx: to=<t@example.net>, orig_to=<a@example.net>, relay=mx.example[192.0.2.1]:25, conn_use=2, \
         delay=0.09, delays=0.04/0/0/0.04, dsn=2.0.0, status=sent (250 2.0.0 Ok: queued as SINK12)",
    );
    assert_eq!((old.to, old.orig_to), (&b"t@example.net"[..], Some(&b"a@example.net"[..])));
    assert_eq!((old.relay, old.dsn, old.tls), (&b"mx.example[192.0.2.1]:25"[..], Some(&b"2.0.0"[..]), None));
    assert_eq!((old.status, old.text), (Status::Sent, &b"250 2.0.0 Ok: queued as SINK12"[..]));
    assert_eq!(old.delay(), Some(Duration::from_millis(90)));
    let new = delivered(
        "296AC9AC58B: to=<t@example.net>, relay=none, delay=145, delays=145/0/0/0, tls=may:none, later=x, dsn=4.4.1, \
         status=SOFTBOUNCE (connect to x[y]:25: Connection refused)",
    );
    assert_eq!((new.tls, new.status), (Some(&b"may:none"[..]), Status::Deferred));
    assert_eq!(new.delay(), Some(Duration::from_secs(145)));
}

#[test]
fn the_text_is_free_and_may_be_cut() {
    let free = delivered(
        "296AC9AC58B: to=<a>, relay=none, delay=0, delays=0/0/0/0, dsn=5.7.1, status=bounced (said: 550 line (two) \
         with > and , status=sent (fake) 550 x)",
    );
    assert_eq!(free.status, Status::Bounced);
    assert_eq!(free.text, b"said: 550 line (two) with > and , status=sent (fake) 550 x");
    let cut = delivered(
        "296AC9AC58B: to=<a>, relay=none, delay=0, delays=0/0/0/0, dsn=5.7.1, status=bounced (said: 55",
    );
    assert_eq!(cut.text, b"said: 55");
    let none =
        delivered("296AC9AC58B: to=<a>, relay=none, delay=x, delays=0/0/0/0, dsn=5.7.1, status=bounced");
    assert_eq!((none.text, none.delay()), (&b""[..], None));
}

#[test]
fn addresses_of_every_shape() {
    for address in [
        "",
        "a@example.net",
        "\"a,b>c\"@example.net",
        "\"a>, relay=x\"@example.net",
        "\"a\\\">, relay=x\"@example.net",
        "jos\u{e9}@ex\u{e4}mple.net",
        "a>b@example.net",
        "a b@example.net",
        "\"open@example.net",
        "\"",
    ] {
        for with_orig in ["", ", orig_to=<\"o>, relay=y\"@example.net>"] {
            let text = format!(
                "4jYBB00QDXz1TRYx: to=<{address}>{with_orig}, relay=local, delay=0, delays=0/0/0/0, dsn=2.0.0, status=sent (x)"
            );
            let delivery = delivered(Box::leak(text.into_boxed_str()));
            assert_eq!(String::from_utf8_lossy(delivery.to), address);
            assert_eq!(delivery.orig_to.is_some(), !with_orig.is_empty());
            assert_eq!(delivery.relay, b"local");
        }
    }
}

#[test]
fn our_headers_in_both_forms() {
    let tail = "from unknown[127.0.0.1]; from=<a@relay.test> to=<b@x.test> proto=SMTP helo=<vm>:";
    for action in ["milter-header-info", "info", "warning"] {
        let text = format!("4jY8ly71d9z1SS6J: {action}: header X-Mailtap-Ref: EwABAbCd-_ {tail}");
        let Record::Header(header) = Record::parse(&line("cleanup", Box::leak(text.into_boxed_str()))) else {
            panic!("{action}");
        };
        assert_eq!(
            (header.name, header.value, header.sender),
            (Name::Ref, &b"EwABAbCd-_"[..], Some(&b"a@relay.test"[..]))
        );
    }
    let text =
        "4jY8ly71d9z1SS6J: milter-header-info: header X-Mailtap-Campaign: spring from local; from=<> to=<b>:";
    let Record::Header(header) = Record::parse(&line("cleanup", text)) else { panic!() };
    assert_eq!((header.name, header.value, header.sender), (Name::Campaign, &b"spring"[..], Some(&b""[..])));
    let other = "4jY8ly71d9z1SS6J: info: header Subject: X-Mailtap-Ref: x from local; from=<> to=<b>:";
    assert_eq!(Record::parse(&line("cleanup", other)), Record::Irrelevant);
}

#[test]
fn the_life_of_a_message() {
    let id = QueueId::parse(b"296AC9AC58B").unwrap();
    for (daemon, message, expected) in [
        (
            "smtpd",
            "296AC9AC58B: client=unknown[127.0.0.1], sasl_method=PLAIN",
            Record::Arrived { queue_id: id, origin: None },
        ),
        ("pickup", "296AC9AC58B: uid=0 from=<root>", Record::Arrived { queue_id: id, origin: None }),
        ("cleanup", "296AC9AC58B: message-id=<>", Record::MessageId(id)),
        (
            "qmgr",
            "296AC9AC58B: from=<\"s p\"@example.org>, size=265, nrcpt=2 (queue active)",
            Record::Active { queue_id: id, sender: b"\"s p\"@example.org" },
        ),
        ("qmgr", "296AC9AC58B: from=<>, status=expired, returned to sender", Record::Expired(id)),
        ("qmgr", "296AC9AC58B: from=<a@b>, status=force-expired, returned to sender", Record::Expired(id)),
        ("qmgr", "296AC9AC58B: removed", Record::Removed(id)),
        ("cleanup", "296AC9AC58B: removed (canceled)", Record::Removed(id)),
        (
            "bounce",
            "296AC9AC58B: sender non-delivery notification: 351249AC58C",
            Record::Notification { queue_id: id },
        ),
        (
            "cleanup",
            "296AC9AC58B: milter-reject: END-OF-MESSAGE from x: 5.7.1 t; from=<> to=<>",
            Record::Refused { queue_id: Some(id), by: Refuser::Milter },
        ),
        ("smtp", "296AC9AC58B: status=deferred (bounce failed)", Record::Irrelevant),
        (
            "smtpd",
            "NOQUEUE: reject: RCPT from x[1]: 550 5.1.6 <a>: x; from=<> to=<> proto= helo=<>",
            Record::Refused { queue_id: None, by: Refuser::Smtpd },
        ),
        ("smtpd", "last message repeated 3 times", Record::Repeated(3)),
        (
            "smtp",
            "296AC9AC58B: to=<a>, relay=none, delay=0, delays=0/0/0/0, dsn=2.0.0, status=odd (x)",
            Record::Unknown,
        ),
        ("smtp", "296AC9AC58B: nothing known", Record::Unknown),
        ("smtp", "nothing known", Record::Unknown),
    ] {
        assert_eq!(Record::parse(&line(daemon, message)), expected, "{message}");
    }
}

#[test]
fn probes_are_no_deliveries() {
    for word in
        ["deliverable", "undeliverable", "undeliverable-but-not-cached", "relayed", "expanded", "delivered"]
    {
        let text =
            format!("296AC9AC58B: to=<a>, relay=none, delay=0, delays=0/0/0/0, dsn=2.0.0, status={word} (x)");
        assert_eq!(delivered(Box::leak(text.into_boxed_str())).status, Status::Probe);
    }
}
