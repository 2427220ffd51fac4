use super::*;

fn class(smtp: u16, dsn: &str, text: &str) -> &'static str {
    let smtp = (smtp != 0).then_some(smtp);
    Classifier::built_in().classify(smtp, EnhancedCode::parse(dsn.as_bytes()), text.as_bytes()).class.as_str()
}

#[test]
fn the_built_in_rules_can_be_read() {
    assert!(parse(BUILT_IN, true).unwrap().len() > 50);
}

#[test]
fn replies_of_the_wild() {
    for (smtp, dsn, text, expected) in [
        (550, "5.1.1", "host x said: 550 5.1.1 <x>: user unknown (in reply to RCPT TO command)", "hard"),
        (550, "5.1.1", "The email account that you tried to reach does not exist. gsmtp", "hard"),
        (550, "5.0.0", "550 No such user - psmtp", "hard"),
        (550, "5.5.0", "550 5.5.0 Requested action not taken: mailbox unavailable (S2017062302).", "hard"),
        (552, "5.2.2", "552-5.2.2 The recipient's inbox is out of storage space.", "mailbox-full"),
        (452, "4.2.2", "452-4.2.2 The email account that you tried to reach is over quota.", "mailbox-full"),
        (450, "4.2.1", "450 4.2.1 mailbox busy", "soft"),
        (421, "4.7.0", "421-4.7.0 Our system has detected an unusual rate of unsolicited mail", "rate-limit"),
        (
            421,
            "4.7.0",
            "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to user complaints",
            "rate-limit",
        ),
        (
            554,
            "5.7.1",
            "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org",
            "block",
        ),
        (550, "5.7.1", "550 5.7.1 part of their network is on our block list (S3140).", "block"),
        (
            550,
            "5.7.26",
            "550-5.7.26 Unauthenticated email from example.org is not accepted due to DMARC policy",
            "policy",
        ),
        (450, "4.7.1", "450 4.7.1 <x>: Recipient address rejected: Greylisted", "policy"),
        (552, "5.3.4", "552 5.3.4 Message size exceeds fixed limit", "policy"),
        (0, "4.4.1", "connect to x[192.0.2.1]:25: Connection refused", "network"),
        (0, "4.4.2", "lost connection with x[y] while sending RCPT TO", "network"),
        (
            0,
            "5.4.4",
            "Host or domain name not found. Name service error for name=x type=A: Host not found",
            "hard",
        ),
        (
            0,
            "4.4.3",
            "Host or domain name not found. Name service error for name=x type=MX: Host not found, try again",
            "network",
        ),
        (
            550,
            "5.1.1",
            "host mx1.antispamcloud.com[192.0.2.1] said: 550 5.1.1 User unknown (in reply to RCPT TO command)",
            "hard",
        ),
        (550, "5.1.1", "550 5.1.1 <spam@example.net>: Recipient address rejected: User unknown", "hard"),
        (550, "5.0.0", "host mail.sorbs.test[192.0.2.1] said: 550 <virus@sorbs.test>: no such user", "hard"),
        (0, "4.4.1", "connect to dkim.spamhaus.test[192.0.2.1]:25: Connection refused", "network"),
        (550, "5.1.1", "550 5.1.1 <x> recipient is unknown; see our spam policy", "hard"),
        (550, "5.2.2", "550 5.2.2 <x> no spam, but over quota", "mailbox-full"),
        (550, "5.7.1", "550 5.7.1 This message looks like spam", "policy"),
        (
            550,
            "5.2.1",
            "550-5.2.1 The user you are trying to contact is receiving mail at a rate that",
            "rate-limit",
        ),
        (550, "5.2.1", "550 5.2.1 The email account that you tried to reach is disabled.", "hard"),
        (0, "5.1.1", "unknown user: \"spam\"", "hard"),
        (0, "5.0.0", "", "unknown"),
        (0, "", "", "unknown"),
    ] {
        assert_eq!(class(smtp, dsn, text), expected, "{text}");
    }
}

#[test]
fn an_administrators_rules_come_first() {
    let rules =
        Classifier::extended("# ours\n\npolicy 550 * \"Our Partner\" the partner's own filter\n").unwrap();
    let verdict = rules.classify(Some(550), EnhancedCode::parse(b"5.1.1"), b"550 5.1.1 our partner says no");
    assert_eq!((verdict.class, &**verdict.why), (BounceClass::Policy, "the partner's own filter"));
    assert_eq!(verdict.rule, Some(Place { built_in: false, line: 3 }));
    assert_eq!(rules.classify(Some(550), EnhancedCode::parse(b"5.1.1"), b"").class, BounceClass::Hard);
}

#[test]
fn rules_that_cannot_be_read_name_their_line() {
    for (rules, line) in [
        ("nonsense", 1),
        ("\nsoftly 4* * * x", 2),
        ("soft 4x * * x", 1),
        ("soft 4* 4.x * x", 1),
        ("soft 4* * \"open", 1),
        ("soft 4* * \"\" x", 1),
        ("soft 4* * phrase x", 1),
        ("soft 4* * *", 1),
    ] {
        assert_eq!(Classifier::extended(rules).unwrap_err().line, line, "{rules}");
    }
}

#[test]
fn what_is_tried_again_is_never_hard() {
    let ours = "hard * * \"gone\" it is gone\n";
    let rules = Classifier::extended(ours).unwrap();
    let phrases = BUILT_IN.lines().filter_map(|line| line.split('"').nth(1)).chain(["gone", ""]);
    for phrase in phrases {
        for (smtp, dsn) in [
            (None, "4.4.3"),
            (None, "4.1.1"),
            (None, "4.0.0"),
            (Some(450), ""),
            (Some(550), "4.2.1"),
            (Some(421), "4.7.0"),
        ] {
            let dsn = EnhancedCode::parse(dsn.as_bytes());
            let verdict = rules.classify(smtp, dsn, phrase.as_bytes());
            assert_ne!(verdict.class, BounceClass::Hard, "{smtp:?} {dsn:?} {phrase}");
        }
    }
    assert_eq!(rules.classify(Some(550), None, b"gone").class, BounceClass::Hard);
}
