//! What the tap makes of a real Postfix's log: every transport that can be run privately, and every way a message takes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::process::{Command, Stdio};
use std::time::Duration;

use harness::{Daemon, NEWSLETTER, Options, Site, free_ports, wait_for};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

/// A site whose relay has these settings, and whose events stay in the spool.
fn site(relay: &[(&str, &str)], mx: &[(&str, &str)]) -> Site {
    site_with(Vec::new(), relay, mx)
}

/// The same, with changes to mailtap.toml.
fn site_with(changes: Vec<(&'static str, String)>, relay: &[(&str, &str)], mx: &[(&str, &str)]) -> Site {
    let owned = |options: &[(&str, &str)]| -> Vec<String> {
        options.iter().flat_map(|(option, value)| [format!("--{option}"), (*value).to_owned()]).collect()
    };
    let calm = [
        // Nothing is tried again until the test says so.
        ("set", "minimal_backoff_time = 1000s"),
        ("set", "maximal_backoff_time = 1000s"),
        ("set", "queue_run_delay = 1000s"),
    ];
    let mut all = vec![
        ("[relay]\n#enabled = true", "[relay]\nenabled = false".to_owned()),
        ("#copy_recipients = []", "copy_recipients = [\"archive@archive.example\"]".to_owned()),
    ];
    all.extend(changes);
    Site::start(&Options {
        changes: all,
        relay: owned(&[&calm[..], relay].concat()),
        mx: owned(&[&[("mailboxes", "team.example:bert,cora")][..], mx].concat()),
        ..Options::default()
    })
}

/// A server that takes everything, or answers a command with 4xx.
fn sink(port: u16, options: &[&str]) -> Daemon {
    let mut command = Command::new("/usr/sbin/smtp-sink");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let sink = Daemon::start(
        command.args(["-u", "nobody"]).args(options).arg(format!("127.0.0.1:{port}")).arg("20"),
    );
    wait_for("smtp-sink", LIMIT, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    sink
}

/// What the tap or the bounce role told of a recipient: `kind class attempt`, sorted.
fn told(site: &Site, address: &str) -> Vec<String> {
    let recipient = site.pseudonym(address);
    let events = site.events();
    let of_recipient = events.iter().filter(|event| event["data"]["recipient"] == recipient.as_str());
    let kind = |event: &Value| event["type"].as_str().unwrap().rsplit('.').next().unwrap().to_owned();
    let mut told: Vec<String> = of_recipient
        .filter(|event| kind(event) != "accepted")
        .map(|event| {
            let class = event["data"]["class"].as_str().unwrap_or("-");
            let attempt = event["data"]["attempt"].as_u64().unwrap_or_default();
            format!("{} {class} {attempt}", kind(event))
        })
        .collect();
    // Two roles publish; the attempts tell the order.
    told.sort();
    told
}

fn wait_until_told(site: &Site, address: &str, expected: &[&str]) {
    let end = std::time::Instant::now() + LIMIT;
    while told(site, address) != expected {
        let told = told(site, address);
        assert!(std::time::Instant::now() < end, "{address}: {told:?}, expected {expected:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The log and the tap are at rest, so that what comes too often would be seen.
fn assert_told(site: &Site, expected: &[(&str, &[&str])]) {
    for (address, expected) in expected {
        wait_until_told(site, address, expected);
    }
    std::thread::sleep(Duration::from_secs(1));
    for (address, expected) in expected {
        assert_eq!(told(site, address), *expected, "{address}");
    }
    assert_eq!(metric(site, "mailtap_tap_lines_total{kind=\"unknown\"}"), 0, "lines of a shape not known");
}

/// A metric, or the sum over its labels; 0 before it is there.
fn metric(site: &Site, name: &str) -> u64 {
    let text = String::from_utf8(harness::http(site.admin, "GET", "/metrics", &[]).unwrap().body).unwrap();
    let of_name = text.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ') || rest.starts_with('{'))
    });
    of_name.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// The queue id of the message to this recipient.
fn queue_id(site: &Site, recipient: &str) -> String {
    let log = site.maillog();
    let line = log.lines().find(|line| line.contains(&format!(": to=<{recipient}>"))).unwrap();
    line.split(' ').nth(5).unwrap().trim_end_matches(':').to_owned()
}

fn send(site: &Site, recipients: &[&str]) {
    for recipient in recipients {
        assert!(site.send(recipient, NEWSLETTER).starts_with("250 "), "{recipient}");
    }
}

/// Hands a message to the sendmail command of the relay.
fn submit(site: &Site, recipient: &str) {
    let mut command = Command::new("/usr/sbin/sendmail");
    command.arg("-C").arg(site.dir.join("relay/config")).args(["-i", "-f", harness::SENDER, recipient]);
    let output = harness::run_with_input(&mut command, NEWSLETTER.replace("\r\n", "\n").as_bytes());
    assert!(output.status.success(), "{}", harness::said(&output));
}

#[test]
fn every_transport() {
    let [lmtp] = free_ports::<1>();
    let transports = format!(
        "transport_maps = inline:{{ pipe.example=code:, void.example=discard:, lmtp.example=lmtp:inet:127.0.0.1:{lmtp}, \
         {{error.example = error:5.7.1 not here}}, {{retry.example = retry:4.3.2 not now}}, relay.example=relay:[127.0.0.1]:{{mx}} }}"
    );
    let site = site(
        &[
            ("set", &transports),
            // virtual(8).
            ("mailboxes", "own.example:dora"),
            ("set", "mydestination = local.example"),
            (
                "set",
                "alias_maps = inline:{ {staff = bert@team.example, cora@team.example} {one = bert@team.example} }",
            ),
            ("set", "virtual_alias_domains = alias.example"),
            (
                "set",
                "virtual_alias_maps = inline:{ {team@alias.example = bert@team.example, cora@team.example} }",
            ),
            (
                "master",
                "code unix - n n - - pipe flags=R user=nobody argv=/bin/sh -c {cat >/dev/null; exit ${user}}",
            ),
        ],
        &[("mailboxes", "relay.example:anna")],
    );
    let _lmtp = sink(lmtp, &["-L"]);
    let hello = |recipients: &[&str]| send(&site, recipients);
    hello(&[
        "anna@example.net",
        "nobody@example.net",
        "0@pipe.example",
        "67@pipe.example",
        "75@pipe.example",
    ]);
    hello(&["dora@own.example"]);
    hello(&["x@void.example", "x@lmtp.example", "anna@relay.example", "x@relay.example"]);
    // smtpd(8) would refuse these itself.
    submit(&site, "x@error.example");
    submit(&site, "x@retry.example");
    hello(&["team@alias.example", "staff@local.example", "one@local.example"]);
    assert_told(
        &site,
        &[
            ("anna@example.net", &["delivered - 1"]),
            ("nobody@example.net", &["bounced hard 1"]),
            ("0@pipe.example", &["delivered - 1"]),
            ("67@pipe.example", &["bounced hard 1"]),
            ("75@pipe.example", &["deferred soft 1"]),
            ("dora@own.example", &["delivered - 1"]),
            ("x@void.example", &[]),
            ("x@lmtp.example", &["delivered - 1"]),
            ("x@error.example", &["bounced policy 1"]),
            ("x@retry.example", &["deferred soft 1"]),
            ("anna@relay.example", &["delivered - 1"]),
            ("x@relay.example", &["bounced hard 1"]),
            ("team@alias.example", &["delivered - 1", "delivered - 1"]),
            ("staff@local.example", &["delivered - 1", "delivered - 1"]),
            ("one@local.example", &["delivered - 1"]),
        ],
    );
}

#[test]
fn deferred_then_sent_held_and_requeued() {
    let [late] = free_ports::<1>();
    let transports = format!("transport_maps = inline:{{ late.example=smtp:[127.0.0.1]:{late} }}");
    // An instance among several: it logs as `postfix-out`, and its relay(8) as `postfix-out/relay`.
    let site = site(&[("name", "out"), ("set", &transports)], &[]);
    let busy = sink(late, &["-r", "rcpt"]);
    let (late_one, held, requeued) = ("late@late.example", "held@late.example", "requeued@late.example");
    send(&site, &[late_one, held, requeued]);
    for recipient in [late_one, held, requeued] {
        wait_until_told(&site, recipient, &["deferred soft 1"]);
    }
    site.relay_command("postqueue", &["-f"]);
    for recipient in [late_one, held, requeued] {
        wait_until_told(&site, recipient, &["deferred soft 1", "deferred soft 2"]);
    }
    let held_id = queue_id(&site, held);
    site.relay_command("postsuper", &["-h", &held_id]);
    drop(busy);
    let _open = sink(late, &[]);
    site.relay_command("postsuper", &["-r", &queue_id(&site, requeued)]);
    site.relay_command("postqueue", &["-f"]);
    let twice = ["deferred soft 1", "deferred soft 2"];
    let sent = ["deferred soft 1", "deferred soft 2", "delivered - 3"];
    assert_told(&site, &[(late_one, &sent), (held, &twice), (requeued, &sent)]);
    site.relay_command("postsuper", &["-H", &held_id]);
    site.relay_command("postqueue", &["-f"]);
    assert_told(&site, &[(late_one, &sent), (held, &sent), (requeued, &sent)]);
}

#[test]
fn given_up_after_the_queue_lifetime() {
    let [nobody] = free_ports::<1>();
    let transports = format!("transport_maps = inline:{{ late.example=smtp:[127.0.0.1]:{nobody} }}");
    let site = site(&[("set", &transports), ("set", "maximal_queue_lifetime = 2s")], &[]);
    send(&site, &["expired@late.example", "anna@example.net"]);
    wait_until_told(&site, "expired@late.example", &["deferred network 1"]);
    std::thread::sleep(Duration::from_secs(2));
    site.relay_command("postqueue", &["-f"]);
    let expired = ["deferred network 1", "deferred network 2", "expired network 2"];
    assert_told(&site, &[("expired@late.example", &expired), ("anna@example.net", &["delivered - 1"])]);
}

#[test]
fn a_content_filter_and_a_copy_for_the_archive() {
    let [back] = free_ports::<1>();
    let filter = format!("content_filter = smtp:[127.0.0.1]:{back}");
    let reinject = format!(
        "127.0.0.1:{back} inet n - n - - smtpd -o syslog_name=postfix/reinject -o content_filter= -o receive_override_options=no_milters,no_address_mappings"
    );
    let site = site(
        &[
            ("set", &filter),
            ("master", &reinject),
            ("set", "smtp_send_xforward_command = yes"),
            ("set", "smtpd_authorized_xforward_hosts = 127.0.0.0/8"),
            ("set", "always_bcc = archive@archive.example"),
        ],
        &[("mailboxes", "archive.example:archive")],
    );
    send(&site, &["anna@example.net", "nobody@example.net"]);
    assert_told(
        &site,
        &[
            ("anna@example.net", &["delivered - 1"]),
            ("nobody@example.net", &["bounced hard 1"]),
            ("archive@archive.example", &[]),
        ],
    );
    assert_eq!(site.mail_files("archive").len(), 2);
}

#[test]
fn returned_mail_through_a_pipe_transport() {
    let pipe = "mailtap-bounce unix - n n - 4 pipe flags=Rq user=nobody argv={dir}/program --config {dir}/mailtap/mailtap.toml bounce";
    let site = site(
        &[("set", "transport_maps = inline:{ news@shop.example=mailtap-bounce: }"), ("master", pipe)],
        // This one takes mail for a domain, and finds out later that it can't deliver it.
        &[
            ("set", "relay_domains = late.example, later.example"),
            ("set", "smtpd_relay_restrictions = permit_mynetworks, reject"),
            (
                "set",
                "transport_maps = inline:{ late.example=code: later.example=code: news@shop.example=smtp:[127.0.0.1]:{smtp} }",
            ),
            (
                "master",
                "code unix - n n - - pipe flags=R user=nobody argv=/bin/sh -c {cat >/dev/null; exit ${user}}",
            ),
        ],
    );
    let spool = site.give_to_nobody();
    send(&site, &["67@late.example", "nobody@example.net"]);
    wait_until_told(&site, "67@late.example", &["bounced hard 0", "delivered - 1"]);
    // Refused at once, and returned by the relay itself: its log and its report tell the same.
    let returned = |site: &Site| {
        let log = site.maillog();
        log.lines()
            .filter(|line| line.contains("relay=mailtap-bounce") && line.contains("status=sent"))
            .count()
    };
    wait_for("both reports", LIMIT, || returned(&site) == 2);
    assert_told(&site, &[("nobody@example.net", &["bounced hard 1"])]);
    let owner = |owner: &str| harness::run(Command::new("chown").arg(owner).arg(&spool));
    harness::run(Command::new("chmod").arg("0700").arg(&spool));
    // What can't be stored stays in Postfix's queue.
    owner("root");
    send(&site, &["67@later.example"]);
    let deferred = |site: &Site| {
        let log = site.maillog();
        log.lines()
            .filter(|line| line.contains("relay=mailtap-bounce") && line.contains("status=deferred"))
            .count()
    };
    wait_for("a report that waits", LIMIT, || deferred(&site) == 1);
    owner("nobody");
    site.relay_command("postqueue", &["-f"]);
    assert_told(
        &site,
        &[
            ("67@late.example", &["bounced hard 0", "delivered - 1"]),
            ("67@later.example", &["bounced hard 0", "delivered - 1"]),
        ],
    );
    wait_for("an empty queue", LIMIT, || site.relay_command("postqueue", &["-p"]).contains("is empty"));
}

#[test]
fn a_missing_setting_is_said_once() {
    let site = site(&[("set", "milter_header_checks =")], &[]);
    let recipients = ["anna@example.net"; 3];
    send(&site, &recipients);
    let said = || site.log("mailtap").matches("milter_header_checks = regexp").count();
    let counted = || metric(&site, "mailtap_tap_unlogged_messages_total");
    wait_for("three messages", LIMIT, || counted() == 3);
    assert_eq!(said(), 1, "{}", site.log("mailtap"));
    send(&site, &recipients);
    wait_for("three more", LIMIT, || counted() == 6);
    assert_eq!((said(), metric(&site, "mailtap_tap_refs_missing_total")), (1, 1));
    assert_eq!(told(&site, "anna@example.net"), [""; 0]);
}

/// A service of cleanup(8) that logs our headers, whoever added them.
const LOGGING: &str = "logging unix n - n - 0 cleanup -o nested_header_checks= \
    -o { header_checks = regexp:{{/^X-Mailtap-(Ref|Campaign):/ INFO}} }";

#[test]
fn only_what_a_cleanup_service_does_not_log_is_missing() {
    let [bare, filtered, back, late_logged, back_logged, copies, late] = free_ports::<7>();
    let smtpd = |port: u16, options: &str| format!("127.0.0.1:{port} inet n - n - - smtpd {options}");
    let services = [
        smtpd(bare, "-o cleanup_service_name=bare"),
        "bare unix n - n - 0 cleanup -o milter_header_checks= -o syslog_name=postfix/bare".to_owned(),
        smtpd(filtered, &format!("-o content_filter=smtp:[127.0.0.1]:{back}")),
        smtpd(back, "-o smtpd_milters="),
        smtpd(
            late_logged,
            &format!("-o cleanup_service_name=bare -o content_filter=smtp:[127.0.0.1]:{back_logged}"),
        ),
        smtpd(back_logged, "-o smtpd_milters= -o cleanup_service_name=logging"),
        smtpd(copies, "-o smtpd_milters= -o cleanup_service_name=logging"),
        LOGGING.to_owned(),
    ];
    let transports = format!("transport_maps = inline:{{ late.example=smtp:[127.0.0.1]:{late} }}");
    let mut relay: Vec<(&str, &str)> = services.iter().map(|service| ("master", service.as_str())).collect();
    relay.push(("set", &transports));
    let split = vec![
        ("#several_recipients = \"shared\"", "several_recipients = \"split\"".to_owned()),
        ("#address = \"127.0.0.1:10026\"", format!("address = \"127.0.0.1:{copies}\"")),
    ];
    let site = site_with(split, &relay, &[("mailboxes", "own.example:dora,emil,finn,gerd,hans")]);
    let send = |port: u16, recipients: &[&str]| {
        let answer = harness::smtp(port, harness::SENDER, recipients, NEWSLETTER);
        assert!(answer.starts_with("250 "), "{recipients:?}: {answer}");
    };
    send(site.smtp, &["anna@example.net"]);
    send(site.smtp, &["dora@own.example", "emil@own.example"]);
    send(filtered, &["finn@own.example"]);
    send(late_logged, &["gerd@own.example"]);
    send(bare, &["late@late.example"]);
    for _ in 0..3 {
        send(bare, &["hans@own.example"]);
    }
    let counted = || metric(&site, "mailtap_tap_unlogged_messages_total");
    wait_for("three messages", LIMIT, || counted() == 3);
    assert!(site.log("mailtap").contains("\"outcome\":\"split\""), "{}", site.log("mailtap"));
    assert_told(
        &site,
        &[
            ("anna@example.net", &["delivered - 1"]),
            ("dora@own.example", &["delivered - 1"]),
            ("emil@own.example", &["delivered - 1"]),
            ("gerd@own.example", &["delivered - 1"]),
            ("hans@own.example", &[]),
            ("late@late.example", &[]),
        ],
    );
    assert_eq!(counted(), 3, "what is queued still is not missing");
    let _sink = sink(late, &[]);
    site.relay_command("postqueue", &["-f"]);
    wait_for("the fourth", LIMIT, || counted() == 4);
    let log = site.log("mailtap");
    let said: Vec<&str> = log.lines().filter(|line| line.contains("did not log its X-Mailtap-Ref")).collect();
    let [said] = said[..] else { panic!("{said:?}") };
    let said: Value = serde_json::from_str(said).unwrap();
    assert_eq!((&said["level"], &said["syslog_name"]), (&"WARN".into(), &"postfix/bare".into()), "{said}");
    let maillog = site.maillog();
    let first = format!(": {}: to=<hans@own.example>", said["queue_id"].as_str().unwrap());
    assert!(maillog.contains(&first), "{said}");
    assert_eq!(metric(&site, "mailtap_tap_refs_missing_total"), 1, "{log}");
}

#[test]
fn copies_whose_headers_are_not_logged_are_missing() {
    let [copies] = free_ports::<1>();
    let port =
        format!("127.0.0.1:{copies} inet n - n - - smtpd -o smtpd_milters= -o cleanup_service_name=silent");
    let silent = "silent unix n - n - 0 cleanup -o syslog_name=postfix/copies";
    let split = vec![
        ("#several_recipients = \"shared\"", "several_recipients = \"split\"".to_owned()),
        ("#address = \"127.0.0.1:10026\"", format!("address = \"127.0.0.1:{copies}\"")),
    ];
    let relay = [("master", port.as_str()), ("master", silent)];
    let site = site_with(split, &relay, &[("mailboxes", "own.example:dora,emil")]);
    send(&site, &["anna@example.net"]);
    let both = ["dora@own.example", "emil@own.example"];
    let answer = harness::smtp(site.smtp, harness::SENDER, &both, NEWSLETTER);
    assert!(answer.starts_with("250 "), "{answer}");
    wait_for("two copies", LIMIT, || metric(&site, "mailtap_tap_unlogged_messages_total") == 2);
    let log = site.log("mailtap");
    let said: Vec<&str> = log.lines().filter(|line| line.contains("did not log its X-Mailtap-Ref")).collect();
    let [said] = said[..] else { panic!("{said:?}") };
    assert!(said.contains("postfix/copies") && said.contains("split.address"), "{said}");
    assert_told(&site, &[("anna@example.net", &["delivered - 1"]), (both[0], &[]), (both[1], &[])]);
}

/// Mail goes from one instance to the next, which delivers it. Both logs are followed; each instance has its name.
#[test]
fn two_instances_on_one_host() {
    let [out] = free_ports::<1>();
    let relayhost = format!("relayhost = [127.0.0.1]:{out}");
    let mut site = site(&[("set", &relayhost)], &[]);
    let (mx, dir) = (site.mx, site.dir.join("out"));
    let instance = |action: &str| {
        let mut command = Command::new(harness::repository().join("tests/lib/postfix"));
        command.arg(action).arg("--dir").arg(&dir);
        if action == "start" {
            command.args(["--port", &out.to_string(), "--name", "out"]);
            command.args(["--relayhost", &format!("127.0.0.1:{mx}")]);
            command.args(["--set", "header_checks = regexp:{{/^X-Mailtap-(Ref|Campaign):/ INFO}}"]);
            command.args(["--set", "nested_header_checks ="]);
            command.args(["--owner", &std::process::id().to_string()]);
        }
        harness::run(&mut command);
    };
    instance("start");
    let config = std::fs::read_to_string(site.config()).unwrap();
    let both = format!("/relay/log/maillog\", \"{}\"]", dir.join("log/maillog").display());
    let config = config.replace("/relay/log/maillog\"]", &both);
    // Of two files nobody knows which line came first: that the next instance took a message is no delivery yet.
    let own = config.replace("#own_relays = []", &format!("own_relays = [\"127.0.0.1:{out}\"]"));
    assert!(own.contains(&both) && own != config);
    std::fs::write(site.config(), own).unwrap();
    site.mailtap.take().unwrap().stop();
    site.start_mailtap();
    send(&site, &["anna@example.net", "nobody@example.net"]);
    assert_told(
        &site,
        &[("anna@example.net", &["delivered - 1"]), ("nobody@example.net", &["bounced hard 1"])],
    );
    let log = std::fs::read_to_string(dir.join("log/maillog")).unwrap();
    assert!(log.contains(" postfix-out/smtp[") && site.maillog().contains(" postfix/smtp["), "{log}");
    assert_eq!(metric(&site, "mailtap_tap_unlogged_messages_total"), 0);
    instance("stop");
}
