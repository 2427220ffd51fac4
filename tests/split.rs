//! Several recipients in one transaction, each with a copy of their own, through the real Postfix.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use harness::letters::Dice;
use harness::session::Session;
use harness::{NEWSLETTER, Options, SENDER, Site, free_ports, run, run_with_input, said, smtp, wait_for};
use mailtap_milter::driver::{self, Fallback, Handler, Listener, Response, serve};
use mailtap_milter::edits::{Answer, Verdict};
use mailtap_milter::session::Message;
use serde_json::Value;

const USERS: [&str; 3] = ["anna", "ben", "carl"];
const RECIPIENTS: [&str; 3] = ["anna@example.net", "ben@example.net", "carl@example.net"];

/// A site that splits; `refused` is an address that the port for copies does not take.
fn site(refused: &str) -> Site {
    Site::start(&options(refused))
}

fn options(refused: &str) -> Options {
    let [port] = free_ports::<1>();
    let access = match refused {
        "" => String::new(),
        _ => format!(
            " -o {{ smtpd_recipient_restrictions = check_recipient_access inline:{{{refused}=REJECT}} }}"
        ),
    };
    Options {
        changes: vec![
            ("#several_recipients = \"shared\"", "several_recipients = \"split\"".into()),
            ("#address = \"127.0.0.1:10026\"", format!("address = \"127.0.0.1:{port}\"")),
        ],
        mailboxes: vec!["example.net:ben,carl"],
        services: vec![
            format!("127.0.0.1:{port} inet n - n - - smtpd -o smtpd_milters= -o cleanup_service_name=split{access}"),
            "split unix n - n - 0 cleanup -o { header_checks = regexp:{{/^X-Mailtap-(Ref|Campaign):/ INFO}} }".into(),
        ],
        ..Options::default()
    }
}

/// With all that Postfix would add, so that it is the same each time.
fn dated() -> String {
    format!("Message-ID: <1@shop.example>\r\nDate: Tue, 24 Nov 2026 10:00:00 +0000\r\n{NEWSLETTER}")
}

fn mails(site: &Site, user: &str) -> Vec<String> {
    let read = |path| decoded(&String::from_utf8_lossy(&fs::read(path).unwrap()));
    site.mail_files(user).into_iter().map(read).collect()
}

/// Without quoted-printable, of which a token may have more than soft breaks: `=2D` for a `-` that would begin a line. What
/// is no code (a parameter of a header) stays.
fn decoded(mail: &str) -> String {
    let mail = mail.replace("=\n", "");
    let mut parts = mail.split('=');
    let mut text = parts.next().unwrap().to_owned();
    for part in parts {
        match part.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if byte.is_ascii() => text.extend([char::from(byte).to_string().as_str(), &part[2..]]),
            _ => text.extend(["=", part]),
        }
    }
    text
}

#[test]
fn quoted_printable_is_read_whole() {
    assert_eq!(decoded("charset=utf-8 href=3D\"a=\n=2Db=2D\""), "charset=utf-8 href=\"a-b-\"");
}

/// Waits for one mail for each of these, and gives them.
fn one_each(site: &Site) -> BTreeMap<&'static str, String> {
    wait_for("three mails", Duration::from_secs(30), || {
        USERS.iter().all(|user| !mails(site, user).is_empty())
    });
    site.wait_for_empty_queues(Duration::from_secs(30));
    let of = |user| {
        let mut mails = mails(site, user);
        assert_eq!(mails.len(), 1, "{user}");
        (user, mails.remove(0))
    };
    USERS.into_iter().map(of).collect()
}

/// Whose the links of a mail are: a pseudonym, or nobody's.
fn recipient(site: &Site, mail: &str) -> Option<String> {
    let start = format!("{}/c/", site.tracking_url());
    let mut found: Vec<Option<String>> = mail
        .split(&start)
        .skip(1)
        .map(|rest| {
            let token = &rest[..rest.find(['"', '\'', '>']).unwrap()];
            let output = run(site.command().args(["token", "inspect", "--json", token]));
            let token: Value = serde_json::from_str(&output).unwrap();
            assert_eq!(token["valid"], true, "{token}");
            token["recipient"].as_str().map(str::to_owned)
        })
        .collect();
    assert_eq!(found.len(), 2, "{mail}");
    found.dedup();
    assert_eq!(found.len(), 1, "{mail}");
    found.remove(0)
}

fn pseudonym(site: &Site, address: &str) -> String {
    run(site.command().args(["pseudonym", address])).trim().to_owned()
}

#[test]
fn each_recipient_gets_a_copy_of_their_own() {
    let site = site("");
    let answer = smtp(site.smtp, SENDER, &RECIPIENTS, NEWSLETTER);
    assert!(answer.starts_with("250 "), "{answer}");
    let mails = one_each(&site);
    for (user, mail) in &mails {
        assert_eq!(recipient(&site, mail), Some(pseudonym(&site, &format!("{user}@example.net"))), "{user}");
        assert_eq!(mail.matches("X-Mailtap-Ref:").count(), 1);
        assert!(!mail.contains("\n\n\n"), "nothing is added at the end: {mail}");
    }
    site.wait_for_events(&[("email_sent", 3), ("email_delivered", 3)]);
    assert!(site.log("mailtap").contains("\"outcome\":\"split\""), "{}", site.log("mailtap"));
}

#[test]
fn who_can_have_no_copy_shares_the_original() {
    let site = site("ben@example.net");
    assert!(smtp(site.smtp, SENDER, &RECIPIENTS, NEWSLETTER).starts_with("250 "));
    let mails = one_each(&site);
    assert!(recipient(&site, &mails["anna"]).is_some() && recipient(&site, &mails["carl"]).is_some());
    assert_eq!(
        recipient(&site, &mails["ben"]),
        Some(pseudonym(&site, "ben@example.net")),
        "the only one left"
    );
    // Ben's copy, which nobody took, is counted nowhere.
    site.wait_for_events(&[("email_sent", 3), ("email_delivered", 3)]);
}

/// A rule that leaves nothing for the first recipient concerns nobody else.
#[test]
fn a_rule_for_one_recipient_leaves_the_others_their_copies() {
    let mut options = options("");
    options.mailboxes.push("quiet.example:dora");
    let rule =
        "[[policy.rules]]\nrecipient_domains = [\"quiet.example\"]\nclicks = false\nopens = false\n[split]\n";
    options.changes.push(("\n[split]\n", format!("\n{rule}")));
    let site = Site::start(&options);
    let to = ["dora@quiet.example", RECIPIENTS[0], RECIPIENTS[1], RECIPIENTS[2]];
    assert!(smtp(site.smtp, SENDER, &to, NEWSLETTER).starts_with("250 "));
    for (user, mail) in &one_each(&site) {
        assert_eq!(recipient(&site, mail), Some(pseudonym(&site, &format!("{user}@example.net"))), "{user}");
    }
    let quiet = mails(&site, "dora");
    assert_eq!(quiet.len(), 1);
    assert!(!quiet[0].contains(&site.tracking_url()), "{}", quiet[0]);
    site.wait_for_events(&[("email_sent", 4), ("email_delivered", 4)]);
}

#[test]
fn without_the_port_the_message_is_shared() {
    let site = Site::start(&Options {
        changes: vec![
            ("#several_recipients = \"shared\"", "several_recipients = \"split\"".into()),
            ("#address = \"127.0.0.1:10026\"", format!("address = \"127.0.0.1:{}\"", free_ports::<1>()[0])),
        ],
        mailboxes: vec!["example.net:ben,carl"],
        ..Options::default()
    });
    assert!(smtp(site.smtp, SENDER, &RECIPIENTS, NEWSLETTER).starts_with("250 "));
    let mails = one_each(&site);
    assert!(mails.values().all(|mail| recipient(&site, mail).is_none()));
    assert!(site.log("mailtap").contains("no_connection"));
}

/// A milter after mailtap that has the client try again, the first times.
#[derive(Debug)]
struct Later(AtomicUsize);

impl Handler for Later {
    async fn message(&self, _: Message, _: &Fallback) -> Response {
        let left = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        let verdict = if left.is_ok() { Verdict::TempFail } else { Verdict::Accept };
        Answer::from(verdict).into()
    }
}

/// Listens on a thread of its own, for as long as the test runs.
fn later_milter(times: usize) -> u16 {
    let (ready, port) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
            ready.send(listener.tcp_address().unwrap().port()).unwrap();
            let later = Arc::new(Later(AtomicUsize::new(times)));
            serve(listener, later, driver::Settings::default(), std::future::pending()).await;
        });
    });
    port.recv().unwrap()
}

/// Carl shares the original, which a later milter defers: with each try the others would get a copy more.
#[test]
fn a_later_milters_451_brings_no_second_copies() {
    let mut options = options("carl@example.net");
    let milters = format!("smtpd_milters = unix:mailtap/milter.sock, inet:127.0.0.1:{}", later_milter(3));
    options.relay.extend(["--set".into(), milters]);
    let site = Site::start(&options);
    for _ in 0..3 {
        let answer = smtp(site.smtp, SENDER, &RECIPIENTS, &dated());
        assert!(answer.starts_with("451 "), "{answer}");
    }
    assert!(smtp(site.smtp, SENDER, &RECIPIENTS, &dated()).starts_with("250 "));
    one_each(&site);
}

/// What Postfix has taken is not remembered, whenever the milter stops: the same mail again is other mail.
#[test]
fn a_stop_keeps_the_same_mail_from_nobody() {
    let mut site = site("");
    for round in 1..=6 {
        assert!(smtp(site.smtp, SENDER, &RECIPIENTS, &dated()).starts_with("250 "));
        assert_eq!(site.mailtap.take().unwrap().stop(), Some(0));
        site.start_mailtap();
        wait_for("one more for each", Duration::from_secs(30), || {
            USERS.iter().all(|user| mails(&site, user).len() == round)
        });
    }
    assert!(!site.log("mailtap").contains("ERROR"), "{}", site.log("mailtap"));
}

/// Sends by the sendmail command of the relay.
fn sendmail(site: &Site, recipients: &[&str]) {
    let mut command = Command::new("/usr/sbin/sendmail");
    command.arg("-C").arg(site.dir.join("relay/config")).args(["-i", "-f", SENDER]).args(recipients);
    let output = run_with_input(&mut command, NEWSLETTER.replace("\r\n", "\n").as_bytes());
    assert!(output.status.success(), "{}", said(&output));
}

/// Waits until each of these has mail, and gives how much.
fn counts<const N: usize>(site: &Site, users: [&str; N]) -> [usize; N] {
    wait_for("mail for each", Duration::from_secs(60), || {
        users.iter().all(|user| !mails(site, user).is_empty())
    });
    site.wait_for_empty_queues(Duration::from_secs(60));
    users.map(|user| mails(site, user).len())
}

/// Addresses that Postfix rewrites: it does not know them by what it showed the milter, and can't take them off the original.
const ODD: [&str; 4] = ["bob", "user%example.net", "dot@example.net.", "@hop.example:rt@example.net"];
const ODD_USERS: [&str; 5] = ["bob", "user", "dot", "rt", "carl"];

fn odd_options(refused: &str) -> Options {
    let mut options = options(refused);
    options.mailboxes.extend(["example.net:user,dot,rt", "relay.test:bob"]);
    options
}

#[test]
fn nobody_gets_two_where_somebody_keeps_the_original() {
    let site = Site::start(&odd_options("carl@example.net"));
    sendmail(&site, &[&ODD[..], &["carl@example.net"]].concat());
    assert_eq!(counts(&site, ODD_USERS), [1; 5], "by sendmail");
    let to = [&ODD[1..], &["anna@example.net", "Anna@EXAMPLE.net", "carl@example.net"]].concat();
    assert!(smtp(site.smtp, SENDER, &to, NEWSLETTER).starts_with("250 "));
    wait_for("carl's second", Duration::from_secs(60), || mails(&site, "carl").len() == 2);
    assert_eq!(counts(&site, ["user", "dot", "rt", "anna"]), [2, 2, 2, 1], "by SMTP");
}

#[test]
fn sendmail_gives_each_a_copy_where_all_can_have_one() {
    let site = Site::start(&odd_options(""));
    sendmail(&site, &[&ODD[..], &["carl@example.net", "carl@EXAMPLE.net"]].concat());
    assert_eq!(counts(&site, ODD_USERS), [1; 5]);
    assert!(site.log("mailtap").contains("\"outcome\":\"split\""), "{}", site.log("mailtap"));
    let carl = &mails(&site, "carl")[0];
    assert_eq!(recipient(&site, carl), Some(pseudonym(&site, "carl@example.net")));
}

fn stops(site: &Site, reason: &str) -> usize {
    let metrics = harness::http(site.admin, "GET", "/metrics", &[]).unwrap();
    let metrics = String::from_utf8(metrics.body).unwrap();
    let name = format!("mailtap_milter_split_stops_total{{reason=\"{reason}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
}

fn readiness(site: &Site) -> String {
    String::from_utf8(harness::http(site.admin, "GET", "/readyz", &[]).unwrap().body).unwrap()
}

/// It takes connections and says nothing.
#[test]
fn a_port_that_hangs_delays_few_messages() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("address = \"{}\"", silent.local_addr().unwrap());
    let mut options = options("");
    options.changes[1].1 = address;
    let site = Site::start(&options);
    let begun = Instant::now();
    for _ in 0..12 {
        assert!(smtp(site.smtp, SENDER, &RECIPIENTS, NEWSLETTER).starts_with("250 "));
    }
    let (waited, away) = (stops(&site, "no_connection"), stops(&site, "port_away"));
    // The first one waits for all its time; then one every five seconds finds out.
    assert!(waited + away == 12 && away >= 6, "{waited} waited, {away} did not, in {:?}", begun.elapsed());
    assert!(readiness(&site).contains("split: the port for copies"), "{}", readiness(&site));
    let log = site.log("mailtap");
    assert_eq!(log.matches("the port for copies (split.address) does not answer").count(), 1, "{log}");
    let mails = counts(&site, USERS);
    assert_eq!(mails, [12; 3]);
}

#[test]
fn a_port_that_refuses_everybody_is_told_once() {
    let mut options = options("");
    options.services[0] += " -o smtpd_recipient_restrictions=reject";
    let site = Site::start(&options);
    for _ in 0..5 {
        assert!(smtp(site.smtp, SENDER, &RECIPIENTS, NEWSLETTER).starts_with("250 "));
    }
    let log = site.log("mailtap");
    assert_eq!(log.matches("refuses every recipient").count(), 1, "{log}");
    assert!(readiness(&site).contains("refuses every recipient"), "{}", readiness(&site));
    assert_eq!(counts(&site, USERS), [5; 3]);
}

/// A client that tries again until the server says 250, while the milter is killed: nobody is left out, and nobody gets two
/// but for a copy that was under way at the moment of a kill.
#[test]
fn kills_in_between_leave_nobody_out() {
    let mut site = site("");
    let messages = if harness::long() { 600 } else { 40 };
    let (smtp_port, done) = (site.smtp, AtomicBool::new(false));
    let mut kills = 0;
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            for number in 0..messages {
                let message = format!("Message-ID: <{number}@shop.example>\r\nDate: Tue, 24 Nov 2026 10:00:00 +0000\r\n{NEWSLETTER}");
                let end = Instant::now() + Duration::from_secs(60);
                loop {
                    let answer = Session::open(smtp_port).and_then(|mut session| session.send(SENDER, &RECIPIENTS, &message));
                    if answer.is_ok_and(|answer| answer.starts_with("250 ")) {
                        break;
                    }
                    assert!(Instant::now() < end, "message {number} is never taken");
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut dice = Dice(7);
        while !done.load(Ordering::Relaxed) && !client.is_finished() {
            std::thread::sleep(Duration::from_millis(20 + dice.below(300) as u64));
            site.mailtap.take().unwrap().kill();
            kills += 1;
            site.start_mailtap();
        }
        client.join().unwrap();
    });
    site.wait_for_empty_queues(Duration::from_secs(60));
    let mut twice = 0;
    for user in USERS {
        let mut counts = vec![0; messages];
        for mail in mails(&site, user) {
            let start = mail.find("Message-ID: <").unwrap() + "Message-ID: <".len();
            let number: usize = mail[start..].split('@').next().unwrap().parse().unwrap();
            counts[number] += 1;
        }
        for (number, count) in counts.into_iter().enumerate() {
            assert!(count >= 1, "{user} never got message {number}");
            twice += count - 1;
        }
    }
    assert!(kills > 0 && twice <= kills, "{twice} mails too many after {kills} kills");
    println!("{messages} messages, {kills} kills, {twice} copies twice");
}
