//! Messages that Postfix would refuse once they are rewritten, at both sides of `message_size_limit`: by SMTP and by sendmail.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::fmt::Write;
use std::process::Command;
use std::time::Duration;

use harness::letters::{Fate, Kind, fate, letter, number};
use harness::{Options, SENDER, Site, http, run_with_input, said, smtp, wait_for};

const LIMIT: usize = 200_000;
/// What Postfix takes as it comes: the envelope and `Received:` are part of its queue file.
const MOST: usize = LIMIT - 1_800;

/// A letter with this number, of forty links and so many bytes, most of them in lines as long.
fn letter_of(number: usize, size: usize, line: usize) -> String {
    let text = letter(number, Kind::Html(40 * 500));
    let (head, tail) = text.split_at(text.find("<p>last line").unwrap());
    let mut filling = String::new();
    let left = size - text.len();
    while filling.len() + 2 * line + 4 <= left {
        let _ = write!(filling, "{}\r\n", "x".repeat(line));
    }
    let _ = write!(filling, "{}\r\n", "y".repeat(left - filling.len() - 2));
    let whole = [head, &filling, tail].concat();
    assert_eq!(whole.len(), size);
    whole
}

#[test]
fn what_would_be_too_large_passes_as_it_came() {
    let site = Site::start(&Options {
        milter_only: true,
        relay: vec![
            "--set".into(),
            format!("message_size_limit = {LIMIT}"),
            "--set".into(),
            "transport_maps = inline:{many.example=discard:}".into(),
        ],
        mailboxes: vec!["example.net:ben"],
        ..Options::default()
    });
    let mut recipients: Vec<String> =
        (0..40).map(|number| format!("nobody-{number:0>20}@many.example")).collect();
    recipients.push("ben@example.net".into());
    let many: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let mut sent = Vec::new();
    let mut send = |to: &[&str], size, line| {
        let letter = letter_of(sent.len(), size, line);
        let answer = smtp(site.smtp, SENDER, to, &letter);
        assert!(
            answer.starts_with("250 "),
            "{} recipients, {size} bytes in lines of {line}: {answer}",
            to.len()
        );
        sent.push(letter);
    };
    for line in [3, 70, 500] {
        // Rewriting adds less than this.
        for size in (MOST - 12_000..=MOST - if line > 127 { MOST / line } else { 0 }).step_by(400) {
            send(&["anna@example.net"], size, line);
        }
    }
    let envelope: usize = many.iter().map(|address| 3 * address.len() + 25).sum();
    for size in (MOST - envelope - 12_000..=MOST - envelope).step_by(1_000) {
        send(&many, size, 70);
    }
    for size in [MOST - 20_000, MOST - 3_000] {
        let letter = letter_of(sent.len(), size, 70);
        let mut command = Command::new("/usr/sbin/sendmail");
        command.arg("-C").arg(site.dir.join("relay/config")).args(["-i", "-f", SENDER, "anna@example.net"]);
        let output = run_with_input(&mut command, letter.replace("\r\n", "\n").as_bytes());
        assert!(output.status.success(), "{}", said(&output));
        sent.push(letter);
    }
    let count = || site.mail_files("anna").len() + site.mail_files("ben").len();
    wait_for("all mail", Duration::from_secs(120), || count() >= sent.len());
    site.wait_for_empty_queues(Duration::from_secs(60));
    assert_eq!(count(), sent.len());

    let url = site.tracking_url();
    let mut fates = (0, 0);
    for file in site.mail_files("anna").into_iter().chain(site.mail_files("ben")) {
        let delivered = std::fs::read_to_string(file).unwrap();
        match fate(&sent[number(&delivered).unwrap()], &delivered, &url).unwrap() {
            Fate::Rewritten => fates.0 += 1,
            Fate::AsItCame => fates.1 += 1,
        }
    }
    assert!(fates.0 > 20 && fates.1 > 20, "rewritten, as they came: {fates:?}");
    let log = site.log("mailtap");
    assert!(log.contains(&format!("\"message_size_limit\":{LIMIT}")), "asked for: {log}");
    assert_eq!(log.matches("\"reason\":\"message_size_limit\"").count(), fates.1);
    let metrics = String::from_utf8(http(site.admin, "GET", "/metrics", &[]).unwrap().body).unwrap();
    let counted = format!(
        "mailtap_milter_messages_total{{outcome=\"failed\",reason=\"message_size_limit\"}} {}",
        fates.1
    );
    assert!(metrics.contains(&counted), "{counted}: {metrics}");
    assert!(!site.maillog().contains("too big"), "{}", site.maillog());
}
