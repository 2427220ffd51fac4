//! Every way into Postfix that the milter sees: SMTP in its variants, the sendmail command, very large messages.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::fs;
use std::process::Command;
use std::time::Duration;

use harness::letters::{Fate, Kind, fate, letter, number};
use harness::session::Session;
use harness::{Options, SENDER, Site, run_with_input, said, smtp, wait_for};

const USERS: [&str; 8] = ["u1", "u2", "u3", "u4", "u5", "u6", "u7", "u8"];

fn site(default_action: &'static str) -> Site {
    // The time limit is for a build without optimisation, on a busy machine.
    let patient = ("#message_timeout = \"20s\"", "message_timeout = \"100s\"".to_owned());
    Site::start(&Options {
        default_action,
        milter_only: true,
        settings: vec!["message_size_limit = 100000000"],
        mailboxes: vec!["example.net:u1,u2,u3,u4,u5,u6,u7,u8", "example.net:änne"],
        changes: vec![patient],
        ..Options::default()
    })
}

/// The messages delivered to somebody, once there are so many.
fn mail_of(site: &Site, user: &str, count: usize) -> Vec<String> {
    wait_for(&format!("mail of {user}"), Duration::from_secs(60), || site.mail_files(user).len() >= count);
    site.wait_for_empty_queues(Duration::from_secs(60));
    let files = site.mail_files(user);
    assert_eq!(files.len(), count, "{user}");
    files.iter().map(|file| String::from_utf8_lossy(&fs::read(file).unwrap()).into_owned()).collect()
}

fn assert_rewritten(site: &Site, original: &str, delivered: &str) {
    assert_eq!(fate(original, delivered, &site.tracking_url()), Ok(Fate::Rewritten));
}

#[test]
fn eight_recipients_and_several_messages_a_session() {
    let site = site("tempfail");
    let to_all = letter(1, Kind::Html(3_000));
    let recipients = USERS.map(|user| format!("{user}@example.net"));
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    assert!(smtp(site.smtp, SENDER, &recipients, &to_all).starts_with("250 "));
    for user in USERS {
        assert_rewritten(&site, &to_all, &mail_of(&site, user, 1)[0]);
    }

    let mut session = Session::open(site.smtp).unwrap();
    for number in 2..6 {
        // A transaction that comes to nothing, at each of its stages, leaves nothing behind.
        let begun = [format!("MAIL FROM:<{SENDER}>"), "RCPT TO:<u1@example.net>".to_owned()];
        let begun = session.commands(&begun[..number % 3]).unwrap();
        assert!(begun.is_empty() || begun.starts_with("250 "), "{begun}");
        assert!(session.command("RSET").unwrap().starts_with("250 "));
        let letter = letter(number, Kind::Html(number * 1_000));
        assert!(session.send(SENDER, &["anna@example.net"], &letter).unwrap().starts_with("250 "));
    }
    session.command("QUIT").unwrap();
    for delivered in mail_of(&site, "anna", 4) {
        let number = number(&delivered).unwrap();
        assert_rewritten(&site, &letter(number, Kind::Html(number * 1_000)), &delivered);
    }
    assert_eq!(site.mail_files("u1").len(), 1);
    // No recipient of a transaction that came to nothing was counted to the next.
    let log = site.log("mailtap");
    let lines = |recipients| log.matches(&format!("\"recipients\":{recipients},")).count();
    assert_eq!((lines(8), lines(1)), (1, 4), "{log}");
}

#[test]
fn international_mail() {
    let site = site("tempfail");
    let original = letter(1, Kind::Html(3_000)).replace(
        "From: News <news@shop.example>",
        "From: Zoë <zoë@shop.example>\r\nX-Greeting: Grüße aus 東京",
    );
    let original = original.replace("first line", "première ligne, 最初");
    let mut session = Session::open(site.smtp).unwrap();
    let envelope = [
        "MAIL FROM:<zoë@shop.example> SMTPUTF8 BODY=8BITMIME".to_owned(),
        "RCPT TO:<änne@example.net>".to_owned(),
        "DATA".to_owned(),
    ];
    let answer = session.commands(&envelope).unwrap();
    assert!(answer.starts_with("354 "), "{answer}");
    session.content(&original).unwrap();
    assert!(session.answer().unwrap().starts_with("250 "));
    let delivered = mail_of(&site, "änne", 1).remove(0);
    assert_rewritten(&site, &original, &delivered);
    for kept in ["From: Zoë <zoë@shop.example>", "X-Greeting: Grüße aus 東京"] {
        assert!(delivered.contains(kept), "{delivered}");
    }
    let log = site.log("mailtap");
    assert!(!log.contains("zoë") && !log.contains("änne"), "an address in the log:\n{log}");
}

/// Sends by the sendmail command of the relay.
fn sendmail(site: &Site, arguments: &[&str], message: &str) {
    let mut command = Command::new("/usr/sbin/sendmail");
    command.arg("-C").arg(site.dir.join("relay/config")).args(["-i", "-f", SENDER]).args(arguments);
    let output = run_with_input(&mut command, message.replace("\r\n", "\n").as_bytes());
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn the_sendmail_command_in_good_and_bad_times() {
    let mut site = site("tempfail");
    let named = letter(1, Kind::Html(90_000));
    sendmail(&site, &["anna@example.net", "u1@example.net"], &named);
    for user in ["anna", "u1"] {
        assert_rewritten(&site, &named, &mail_of(&site, user, 1)[0]);
    }
    let in_header = letter(2, Kind::Html(2_000)).replace("To: you", "To: u2@example.net");
    sendmail(&site, &["-t"], &in_header);
    assert_rewritten(&site, &in_header, &mail_of(&site, "u2", 1)[0]);

    // Without the milter, what was handed in waits for it.
    site.mailtap.as_mut().unwrap().kill();
    let early = letter(3, Kind::Html(2_000));
    sendmail(&site, &["u3@example.net"], &early);
    wait_for("pickup to try", Duration::from_secs(30), || {
        site.maillog().contains("connect to Milter service unix:mailtap/milter.sock")
    });
    assert!(site.mail_files("u3").is_empty());
    site.start_mailtap();
    assert_rewritten(&site, &early, &mail_of(&site, "u3", 1)[0]);
}

#[test]
fn without_milter_the_sendmail_command_delivers_with_accept() {
    let mut site = site("accept");
    site.mailtap.as_mut().unwrap().kill();
    let original = letter(1, Kind::Html(2_000));
    sendmail(&site, &["anna@example.net"], &original);
    let delivered = mail_of(&site, "anna", 1).remove(0);
    assert_eq!(fate(&original, &delivered, &site.tracking_url()), Ok(Fate::AsItCame));
}

const HUGE: Kind = Kind::Attachment(30_000_000);

#[test]
fn thirty_megabytes_are_rewritten_with_tempfail() {
    let site = site("tempfail");
    let original = letter(1, HUGE);
    assert!(original.len() > 30_000_000);
    assert!(site.send("anna@example.net", &original).starts_with("250 "));
    assert_rewritten(&site, &original, &mail_of(&site, "anna", 1)[0]);
}

/// With `accept` the answer has to fit the send buffer, which the system limits.
#[test]
fn thirty_megabytes_pass_or_are_rewritten_whole_with_accept() {
    let site = site("accept");
    let original = letter(1, HUGE);
    assert!(site.send("anna@example.net", &original).starts_with("250 "));
    let fate = fate(&original, &mail_of(&site, "anna", 1)[0], &site.tracking_url());
    let granted: usize = fs::read_to_string("/proc/sys/net/core/wmem_max").unwrap().trim().parse().unwrap();
    // The kernel doubles what is asked for, and three quarters of that are counted on.
    if granted / 2 * 3 > original.len() + 100_000 {
        assert_eq!(fate, Ok(Fate::Rewritten));
    } else {
        assert_eq!(fate, Ok(Fate::AsItCame));
        assert!(site.log("mailtap").contains("\"reason\":\"answer_too_large\""));
        let metrics = harness::http(site.admin, "GET", "/metrics", &[]).unwrap();
        let counted = "mailtap_milter_messages_total{outcome=\"failed\",reason=\"answer_too_large\"} 1";
        let metrics = String::from_utf8(metrics.body).unwrap();
        assert!(metrics.contains(counted), "{metrics}");
    }
}
