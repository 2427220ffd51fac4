//! The command line as administrators and scripts meet it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use harness::{mailtap, run, run_with_input, said};
use mailtap::event::{Data, Event, EventId, Kind};
use mailtap::identity::{MessageId, Timestamp};
use mailtap::queue::spool::{self, Outcome, Spool};
use mailtap::queue::{Hold, OnStored, Publication};
use mailtap::service::clock;
use serde_json::Value;

struct Installed {
    dir: tempfile::TempDir,
    printed: String,
}

fn installed(more: &[&str]) -> Installed {
    let dir = tempfile::tempdir().unwrap();
    let mut command = mailtap();
    command.args(["init", "--tracking-url", "https://t.example.org", "--domain", "example.org", "--dir"]);
    let printed = run(command.arg(dir.path()).args(more));
    Installed { dir, printed }
}

impl Installed {
    fn config(&self) -> PathBuf {
        self.dir.path().join("mailtap.toml")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = mailtap();
        command.arg("--config").arg(self.config()).args(arguments);
        command
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&run(&mut self.command(arguments))).unwrap()
    }

    fn rewrite(&self, sender: &str, message: &[u8]) -> Output {
        run_with_input(
            &mut self.command(&["rewrite", "--sender", sender, "--recipient", "ann@example.net"]),
            message,
        )
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn init_makes_a_configuration_that_works_and_overwrites_nothing() {
    let site = installed(&[]);
    assert_eq!(mode(&site.dir.path().join("keyring.json")), 0o600);
    assert_eq!(mode(&site.dir.path().join("pseudonym.key")), 0o600);
    assert!(site.printed.contains("smtpd_milters = {"), "{}", site.printed);
    let checked = run(&mut site.command(&["config", "check"]));
    assert!(checked.contains("ok"), "{checked}");
    let postfix = run(&mut site.command(&["postfix"]));
    assert!(
        postfix.contains("milter_header_checks = regexp:{{/^X-Mailtap-(Ref|Campaign):/ INFO}}"),
        "{postfix}"
    );
    let before = fs::read(site.dir.path().join("keyring.json")).unwrap();
    let mut again = mailtap();
    again.args(["init", "--tracking-url", "https://t.example.org", "--domain", "example.org", "--dir"]);
    let again = again.arg(site.dir.path()).output().unwrap();
    assert_eq!(again.status.code(), Some(73), "{}", said(&again));
    assert_eq!(fs::read(site.dir.path().join("keyring.json")).unwrap(), before);
}

#[test]
fn init_with_everything_keeps_secrets_in_files() {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    fs::write(&secret, "MARKER-GA4\n").unwrap();
    let secret = secret.to_str().unwrap();
    let amqp = "amqps://user:MARKER-AMQP@broker.example.org:5671/mail";
    let site = installed(&["--ga4", "G-ABC123", "--ga4-secret-file", secret, "--amqp", amqp]);
    run(&mut site.command(&["config", "check"]));
    for shown in [
        run(&mut site.command(&["config", "show"])),
        run(&mut site.command(&["config", "show", "--json"])),
        fs::read_to_string(site.config()).unwrap(),
        site.printed.clone(),
    ] {
        assert!(!shown.contains("MARKER"), "{shown}");
    }
    assert_eq!(mode(&site.dir.path().join("ga4.secret")), 0o600);
    assert_eq!(mode(&site.dir.path().join("amqp.password")), 0o600);
    assert_eq!(site.json(&["config", "show", "--json"])["ga4"]["measurement_id"], "G-ABC123");
    let definitions = site.json(&["amqp", "definitions"]);
    assert!(definitions["queues"].as_array().unwrap().iter().any(|queue| queue["name"] == "mailtap.ga4"));
}

#[test]
fn init_that_can_not_work_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("new");
    let mut command = mailtap();
    command.args(["init", "--tracking-url", "not a url", "--domain", "exa mple", "--dir"]).arg(&target);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    let said = said(&output);
    assert!(said.contains("tracking.url") && said.contains("policy.sender_domains"), "{said}");
    assert!(!target.exists());
}

#[test]
fn a_wrong_configuration_is_one_report_and_78() {
    let site = installed(&[]);
    let text = fs::read_to_string(site.config()).unwrap();
    let text = text.replace("#answer_wait = \"250ms\"", "answer_wait = \"250\"\nlisten_on = 1");
    let text = text.replace("[spool]", "[spool]\ndedupe = \"95h\"");
    fs::write(site.config(), text.replace("#keyring = \"keyring.json\"", "keyring = \"nowhere\"")).unwrap();
    for arguments in
        [&["config", "check"][..], &["run"], &["milter"], &["rewrite", "--sender", "a", "--recipient", "b"]]
    {
        let output = site.command(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(78), "{arguments:?}");
        let said = said(&output);
        for part in ["4 problems", "tracker.answer_wait", "tracker.listen_on", "keys.keyring", "spool.dedupe"]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}

#[test]
fn files_that_cannot_be_used_are_found_by_the_check() {
    let site = installed(&[]);
    let path = |name: &str| site.config().with_file_name(name);
    let text = fs::read_to_string(site.config()).unwrap();
    let text = text.replace("#handoff_hosts = []", "handoff_hosts = [\"www.example.org\"]");
    let text = text.replace("#withdrawn_file = \"\"", "withdrawn_file = \"withdrawn.list\"");
    fs::write(site.config(), text).unwrap();
    for (name, content) in [("handoff.json", "{}"), ("withdrawn.list", "anna@example.net\n")] {
        fs::write(path(name), content).unwrap();
        fs::set_permissions(path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let output = site.command(&["config", "check"]).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    let wrong = said(&output);
    for part in [
        "keys.handoff: ",
        "handoff.json",
        "keys --use handoff init",
        "consent.withdrawn_file: ",
        "withdrawn.list",
    ] {
        assert!(wrong.contains(part), "{part}: {wrong}");
    }
    assert!(!wrong.contains("anna"), "{wrong}");
    fs::remove_file(path("handoff.json")).unwrap();
    run(&mut site.command(&["keys", "--use", "handoff", "init"]));
    fs::write(path("withdrawn.list"), "").unwrap();
    let output = site.command(&["config", "check"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

/// What `mailtap postfix` prints fits the milter's own patience, and a session is kept as long as Postfix goes on with it.
#[test]
fn the_milters_patience_fits_postfixs() {
    let site = installed(&[]);
    let printed = run(&mut site.command(&["postfix"]));
    assert!(printed.contains("command_timeout=30s, content_timeout=120s"), "{printed}");
    assert!(!run(&mut site.command(&["config", "check"])).contains("idle_timeout"));
    let text = fs::read_to_string(site.config()).unwrap();
    let text = text.replace("#message_timeout = \"20s\"", "message_timeout = \"300s\"");
    let text = text.replace("#drain = \"20s\"", "drain = \"90s\"");
    fs::write(site.config(), text.replace("#idle_timeout = \"7210s\"", "idle_timeout = \"5m\"")).unwrap();
    let printed = run(&mut site.command(&["postfix"]));
    assert!(printed.contains("command_timeout=100s, content_timeout=360s"), "{printed}");
    let checked = run(&mut site.command(&["config", "check"]));
    assert!(
        checked.contains("warning: milter.idle_timeout") && checked.contains("smtpd_timeout"),
        "{checked}"
    );
    assert!(!checked.contains("  "), "{checked}");
    assert!(!checked.contains("milter.socket_mode"), "{checked}");
    let text = text.replace("#socket_mode = \"0660\"", "socket_mode = \"0600\"");
    fs::write(site.config(), text).unwrap();
    let checked = run(&mut site.command(&["config", "check"]));
    assert!(
        checked.contains("warning: milter.socket_mode = \"0600\": only the user of mailtap can connect"),
        "{checked}"
    );
}

/// The Postfix that is asked is the one that the configuration names, not the default one.
#[test]
fn the_settings_are_for_the_postfix_that_the_configuration_names() {
    let site = installed(&["--postfix-queue-dir", "/srv/queue-out"]);
    let path = |name: &str| site.dir.path().join(name);
    fs::create_dir(path("bin")).unwrap();
    let script = "#!/bin/sh\nif [ \"$1\" = -c ]; then cat \"$2/queue\"; else echo /var/spool/postfix; fi\n";
    fs::write(path("bin/postconf"), script).unwrap();
    fs::set_permissions(path("bin/postconf"), fs::Permissions::from_mode(0o755)).unwrap();
    for (name, queue) in [("in", "/srv/queue-in\n"), ("out", "/srv/queue-out\n")] {
        fs::create_dir(path(name)).unwrap();
        fs::write(path(name).join("queue"), queue).unwrap();
    }
    let text = fs::read_to_string(site.config()).unwrap();
    let search = format!("{}:{}", path("bin").display(), std::env::var("PATH").unwrap());
    let printed = |directories: &str| {
        let dirs = "#postfix_config_dirs = [\"/etc/postfix\"]";
        fs::write(site.config(), text.replace(dirs, &format!("postfix_config_dirs = {directories}")))
            .unwrap();
        run(site.command(&["postfix"]).env("PATH", &search))
    };
    let of_out = printed("[\"out\"]");
    assert!(of_out.contains("smtpd_milters = { unix:mailtap/milter.sock,"), "{of_out}");
    assert!(!of_out.contains("is not below") && !of_out.contains("can't be asked"), "{of_out}");
    let of_both = printed("[\"in\", \"out\", \"gone\"]");
    assert!(of_both.contains("smtpd_milters = { unix:mailtap/milter.sock,"), "{of_both}");
    assert!(of_both.contains("milter.sock is not below /srv/queue-in: "), "{of_both}");
    assert!(of_both.contains("gone (milter.postfix_config_dirs) can't be asked"), "{of_both}");
    let of_in = printed("[\"in\"]");
    assert!(of_in.contains("smtpd_milters = { unix:/srv/queue-out/mailtap/milter.sock,"), "{of_in}");
}

#[test]
fn a_certificate_that_is_no_pair_is_found_by_the_check_as_are_names_of_googles() {
    let site = installed(&[]);
    let path = |name: &str| site.config().with_file_name(name);
    let pair = rcgen::generate_simple_self_signed(["t.example.org".to_owned()]).unwrap();
    fs::write(path("t.pem"), pair.cert.pem()).unwrap();
    let write_key = |key: &rcgen::KeyPair| {
        fs::write(path("t.key"), key.serialize_pem()).unwrap();
        fs::set_permissions(path("t.key"), fs::Permissions::from_mode(0o600)).unwrap();
    };
    write_key(&rcgen::KeyPair::generate().unwrap());
    let text = fs::read_to_string(site.config()).unwrap();
    // Keys of the same names stand in the sample of another host.
    let (before, tracker) = text.split_once("\n[tracker]").unwrap();
    let tracker = tracker
        .replace("#tls_certificate = \"\"", "tls_certificate = \"t.pem\"")
        .replace("#tls_key = \"\"", "tls_key = \"t.key\"");
    let text = format!("{before}\n[tracker]{tracker}");
    fs::write(site.config(), &text).unwrap();
    let output = site.command(&["config", "check"]).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(
        said(&output).contains("tls_certificate, tls_key: ") && said(&output).contains("t.pem"),
        "{}",
        said(&output)
    );
    write_key(&pair.signing_key);
    run(&mut site.command(&["config", "check"]));
    let google = tracker
        .replace("#visitor_cookie = \"__Secure-mt\"", "visitor_cookie = \"_ga\"")
        .replace("#ga_streams = []", "ga_streams = [\"UA-1\"]");
    fs::write(site.config(), format!("{before}\n[tracker]{google}")).unwrap();
    let output = site.command(&["config", "check"]).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    for part in ["tracker.visitor_cookie: ", "tracker.ga_streams: "] {
        assert!(said(&output).contains(part), "{part}: {}", said(&output));
    }
}

#[test]
fn a_name_that_ga4s_own_measurement_uses_is_a_warning() {
    let site = installed(&[]);
    let text = fs::read_to_string(site.config()).unwrap();
    let bounced = "#bounced = \"email_bounced\"";
    assert!(text.contains(bounced));
    for (name, warned) in [("page_view", true), ("click", true), ("clicks", false), ("", false)] {
        fs::write(site.config(), text.replace(bounced, &format!("bounced = \"{name}\""))).unwrap();
        let checked = run(&mut site.command(&["config", "check"]));
        assert_eq!(checked.contains("warning: ga4.events.bounced: "), warned, "{name}: {checked}");
        assert!(checked.contains(": ok"), "{checked}");
    }
}

#[test]
fn usage_errors_are_64_and_help_is_not_an_error() {
    assert_eq!(mailtap().arg("--nonsense").output().unwrap().status.code(), Some(64));
    assert_eq!(mailtap().args(["collector", "--fail", "boom"]).output().unwrap().status.code(), Some(64));
    for arguments in [&["--help"][..], &["run", "--help"], &["keys", "--help"], &["--version"]] {
        assert_eq!(mailtap().args(arguments).output().unwrap().status.code(), Some(0), "{arguments:?}");
    }
    assert!(run(mailtap().arg("man")).contains(".TH mailtap"));
    assert!(run(mailtap().args(["completions", "bash"])).contains("mailtap"));
}

#[test]
fn keys_live_as_documented() {
    let site = installed(&[]);
    let rotated = site.json(&["keys", "rotate", "--activate-in", "1h", "--json"]);
    assert_eq!((&rotated["id"], &rotated["key"]["state"]), (&2.into(), &"pending".into()));
    let states = |site: &Installed| -> Vec<String> {
        let list = site.json(&["keys", "list", "--json"]);
        list["keys"].as_array().unwrap().iter().map(|key| key["state"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(states(&site), ["active", "pending"]);
    let refused = site.command(&["keys", "revoke", "1"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(64), "{}", said(&refused));
    run(&mut site.command(&["keys", "rotate"]));
    assert_eq!(states(&site), ["retired", "pending", "active"]);
    run(&mut site.command(&["keys", "revoke", "1"]));
    run(&mut site.command(&["keys", "remove", "1"]));
    assert_eq!(states(&site), ["pending", "active"]);
    let audit = fs::read_to_string(site.dir.path().join("keyring.audit.jsonl")).unwrap();
    let actions: Vec<Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let actions: Vec<&str> = actions.iter().map(|entry| entry["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["keys.rotate", "keys.rotate", "keys.revoke", "keys.remove"]);
    let secrets = fs::read_to_string(site.dir.path().join("keyring.json")).unwrap();
    assert!(secrets.contains("secret") && !audit.contains("secret"));
}

#[test]
fn a_lost_keyring_can_be_made_anew_and_never_over_another() {
    let site = installed(&[]);
    fs::remove_file(site.dir.path().join("keyring.json")).unwrap();
    assert_eq!(site.command(&["keys", "list"]).output().unwrap().status.code(), Some(66));
    assert_eq!(site.json(&["keys", "init", "--json"])["key"]["state"], "active");
    assert_eq!(site.command(&["keys", "init"]).output().unwrap().status.code(), Some(73));
    fs::set_permissions(site.dir.path().join("keyring.json"), fs::Permissions::from_mode(0o644)).unwrap();
    let open = site.command(&["keys", "list"]).output().unwrap();
    assert_eq!(open.status.code(), Some(78));
    assert!(said(&open).contains("chmod 600"));
}

#[test]
fn tokens_and_pseudonyms_can_be_looked_into() {
    let site = installed(&[]);
    let message = b"From: a@example.org\r\nX-Mailtap-Campaign: spring\r\n\r\nhello\r\n";
    let output = site.rewrite("a@example.org", message);
    let text = String::from_utf8(output.stdout).unwrap();
    let reference = text.lines().find_map(|line| line.strip_prefix("X-Mailtap-Ref: ")).unwrap();
    let shown = site.json(&["token", "inspect", "--json", reference]);
    assert_eq!((&shown["valid"], &shown["kind"], &shown["key_id"]), (&true.into(), &"ref".into(), &1.into()));
    assert!(run(&mut site.command(&["token", "inspect", reference])).contains("valid"));
    let mut altered = reference.to_owned();
    altered.replace_range(20..21, if &altered[20..21] == "A" { "B" } else { "A" });
    let refused = site.command(&["token", "inspect", "--json", &altered]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let refused: Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!((&refused["valid"], &refused["error"]), (&false.into(), &"mac".into()));
    let one = run(&mut site.command(&["pseudonym", "Ann@Example.NET"]));
    assert_eq!(one, run(&mut site.command(&["pseudonym", "<ann@example.net>"])));
    assert_eq!(one.trim().len(), 16);
}

#[test]
fn rewrite_leaves_what_is_out_of_scope_byte_for_byte() {
    let site = installed(&[]);
    let html = "<a href=\"https://www.example.org/\">x</a>";
    let odd = format!("From: a@other.example\nX-Odd :  v\nContent-Type: text/html\n\n{html}\r\nmixed\n\0");
    let output = site.rewrite("a@other.example", odd.as_bytes());
    assert!(output.status.success());
    assert_eq!(output.stdout, odd.as_bytes());
    let plain = "From: a@example.org\nSubject:  two   spaces\n\nno link here\n";
    let output = String::from_utf8(site.rewrite("a@example.org", plain.as_bytes()).stdout).unwrap();
    let (head, tail) = output.split_once("X-Mailtap-Ref: ").unwrap();
    assert_eq!(head, "From: a@example.org\nSubject:  two   spaces\n");
    assert_eq!(tail.split_once('\n').unwrap().1, "\nno link here\n");
}

#[test]
fn rewrite_tracks_links_and_says_why_not() {
    let site = installed(&[]);
    let message = "From: a@example.org\nMIME-Version: 1.0\nContent-Type: text/html; charset=utf-8\n\n\
                   <html><body><a href=\"https://www.example.org/?a=1&amp;b=2\">x</a>\n\
                   <a href=\"mailto:a@example.org\">y</a>\n\
                   <a clicktracking=off href=\"https://www.example.org/no\">z</a></body></html>\n";
    let mut command = site.command(&[
        "rewrite",
        "--sender",
        "a@example.org",
        "--recipient",
        "ann@example.net",
        "--explain",
    ]);
    let output = run_with_input(command.arg("--json"), message.as_bytes());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("https://t.example.org/c/") && text.contains("https://t.example.org/o/"), "{text}");
    assert!(!text.contains("\r\n"), "line endings of the input are kept");
    let why: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(why["outcome"], "rewritten");
    let links = why["links"].as_array().unwrap();
    assert_eq!(
        (links[0]["number"].as_u64(), links[0]["target"].as_str()),
        (Some(1), Some("https://www.example.org/?a=1&b=2"))
    );
    assert!(links.iter().any(|link| link["number"].is_null() && link["reason"].is_string()), "{why}");
    let token = text.split("https://t.example.org/c/").nth(1).unwrap().split('"').next().unwrap();
    let shown = site.json(&["token", "inspect", "--json", token]);
    assert_eq!(shown["target"], "https://www.example.org/?a=1&b=2");
}

#[test]
fn rules_on_machines_can_be_tried() {
    let site = installed(&[]);
    let test = |more: &[&str]| site.json(&[&["bots", "test", "--json", "--ip", "192.0.2.1"], more].concat());
    let browser = "Mozilla/5.0 (X11; Linux x86_64; rv:142.0) Gecko/20100101 Firefox/142.0";
    assert_eq!(test(&["--user-agent", browser])["machine"], "no");
    assert_ne!(test(&["--user-agent", "curl/8.0"])["machine"], "no");
    let prefetched = test(&["--user-agent", browser, "--header", "Purpose: prefetch"]);
    assert_eq!(prefetched["machine"], "certain");
    let matching = prefetched["rules"].as_array().unwrap().iter().filter(|rule| rule["says"] == "matches");
    assert!(matching.clone().any(|rule| rule["rule"] == prefetched["rule"]), "{prefetched}");
    assert_eq!(
        test(&["--header", "User-Agent: curl/8.0"])["agent"],
        test(&["--user-agent", "curl/8.0"])["agent"]
    );
    let network = |ip: &str| site.json(&["bots", "test", "--json", "--ip", ip])["network"].clone();
    assert_eq!(network("::ffff:40.92.1.1"), network("40.92.1.1"), "as the tracker has it");
    for wrong in [&["--header", "prefetch"][..], &["--user-agent", "a", "--header", "user-agent: b"]] {
        let output =
            site.command(&[&["bots", "test", "--ip", "192.0.2.1"], wrong].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{wrong:?}: {}", said(&output));
    }
    let text = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), text.replace("#rules_file = \"\"", "rules_file = \"bots.toml\"")).unwrap();
    fs::write(site.config().with_file_name("bots.toml"), "version = 2\nnonsense = 1\n").unwrap();
    for arguments in [&["bots", "test", "--ip", "192.0.2.1"][..], &["config", "check"]] {
        let output = site.command(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(78), "{arguments:?}");
        assert!(said(&output).contains("bots.toml"), "{}", said(&output));
    }
    assert!(run(mailtap().args(["bots", "print"])).contains("[[rule]]"));
}

#[test]
fn tap_reads_a_log_once_and_touches_nothing() {
    let site = installed(&[]);
    let output = site.rewrite("a@example.org", b"From: a@example.org\r\n\r\nhello\r\n");
    let text = String::from_utf8(output.stdout).unwrap();
    let reference = text.lines().find_map(|line| line.strip_prefix("X-Mailtap-Ref: ")).unwrap();
    let log = site.dir.path().join("mail.log");
    let lines = format!(
        "Nov 23 16:25:11 mx postfix/cleanup[1]: 4jYB9z5F1Wz1TRLv: milter-header-info: header X-Mailtap-Ref: {reference} from \
         unknown[127.0.0.1]; from=<a@example.org> to=<ann@example.net> proto=ESMTP helo=<x>:\n\
         Nov 23 16:25:12 mx postfix/smtp[2]: 4jYB9z5F1Wz1TRLv: to=<ann@example.net>, relay=mx.example.net[192.0.2.1]:25, \
         delay=0.5, delays=0.1/0/0.2/0.2, dsn=2.0.0, status=sent (250 2.0.0 Ok: queued as X)\n"
    );
    fs::write(&log, lines).unwrap();
    let before: Vec<_> = fs::read_dir(site.dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let once = || run(site.command(&["tap", "--once", "--stdout"]).arg(&log));
    let events = once();
    let event: Value = serde_json::from_str(events.trim()).unwrap();
    assert_eq!(
        (&event["type"], &event["data"]["dsn"]),
        (&"mailtap.message.delivered".into(), &"2.0.0".into())
    );
    assert_eq!(events, once(), "the same log gives the same ids");
    let after: Vec<_> = fs::read_dir(site.dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(before.len(), after.len());
}

#[test]
fn rules_hosts_and_the_pixels_place_come_from_the_configuration() {
    let site = installed(&[]);
    let text = fs::read_to_string(site.config()).unwrap();
    let text = text
        .replace("#only_link_hosts = []", "only_link_hosts = [\"*.example.org\"]")
        .replace("#skip_link_hosts = []", "skip_link_hosts = [\"cdn.example.org\"]")
        .replace("#pixel_at = \"end\"", "pixel_at = \"both\"");
    let rule = "[[policy.rules]]\nrecipient_domains = [\"example.net\"]\nopens = false\n";
    let message = b"From: a@example.org\r\nContent-Type: text/html\r\n\r\n<body>\r\n<a href=https://www.example.org/>1</a>\r\n\
                    <a href=https://cdn.example.org/>2</a>\r\n<a href=https://example.com/>3</a>\r\n</body>\r\n";
    let output = |text: &str| {
        fs::write(site.config(), text).unwrap();
        String::from_utf8(site.rewrite("a@example.org", message).stdout).unwrap()
    };
    let without = output(&text);
    assert_eq!((without.matches("/c/").count(), without.matches("/o/").count()), (1, 2), "{without}");
    assert!(
        without.contains("<a href=https://cdn.example.org/>2") && without.contains("https://example.com/>3")
    );
    let with =
        output(&text.replace("# Whether recipients may be", &format!("{rule}\n# Whether recipients may be")));
    assert_eq!((with.matches("/c/").count(), with.matches("/o/").count()), (1, 0), "{with}");
}

/// Changes keys of a site's configuration and rewrites.
fn rewritten_with(changes: &[(&str, &str)], message: &str) -> String {
    let site = installed(&[]);
    let mut text = fs::read_to_string(site.config()).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    fs::write(site.config(), text).unwrap();
    let output = site.rewrite("a@example.org", message.as_bytes());
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Each key, a message, and how many links are tracked without and with it.
#[test]
fn keys_of_the_policy_do_what_they_say() {
    let html = |head: &str, body: &str| {
        format!("From: a@example.org\r\n{head}Content-Type: text/html\r\n\r\n<body>{body}</body>\r\n")
    };
    let link = "<a href=\"https://www.example.org/a\">x</a>";
    let amp = "From: a@example.org\r\nContent-Type: text/x-amp-html\r\n\r\n<html amp4email><body><a href=\"https://www.example.org/a\">x</a></body></html>\r\n";
    let invitation = format!(
        "From: a@example.org\r\nContent-Type: multipart/alternative; boundary=b\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\n\
        <body>{link}</body>\r\n--b\r\nContent-Type: text/calendar; method=REQUEST; name=i.ics\r\n\r\nBEGIN:VCALENDAR\r\n--b--\r\n"
    );
    let cases: &[(&str, &str, String, [usize; 2])] = &[
        (
            "#outlook_comments = true",
            "outlook_comments = false",
            html("", &format!("<!--[if mso]>{link}<![endif]-->")),
            [1, 0],
        ),
        (
            "#skip_visible_urls = false",
            "skip_visible_urls = true",
            html("", "<a href=\"https://www.example.org/a\">www.example.org/a</a>"),
            [1, 0],
        ),
        ("#amp_parts = true", "amp_parts = false", amp.to_owned(), [1, 0]),
        (
            "#previous_urls = []",
            "previous_urls = [\"https://www.example.org\"]",
            html("", "<a href=\"https://www.example.org/c/a\">x</a>"),
            [1, 0],
        ),
        ("#skip_link_patterns = []", "skip_link_patterns = [\"/a\"]", html("", link), [1, 0]),
        (
            "#rewrite_auto_generated = false",
            "rewrite_auto_generated = true",
            html("Auto-Submitted: auto-generated\r\n", link),
            [0, 1],
        ),
        (
            "#rewrite_auto_replies = false",
            "rewrite_auto_replies = true",
            html("Auto-Submitted: auto-replied\r\n", link),
            [0, 1],
        ),
        ("#rewrite_invitations = false", "rewrite_invitations = true", invitation.clone(), [0, 1]),
        ("#max_links = 1000", "max_links = 1", html("", &link.repeat(3)), [3, 1]),
        (
            "#max_parts = 500",
            "max_parts = 2",
            invitation.replace("text/calendar; method=REQUEST; name=i.ics", "text/plain"),
            [1, 0],
        ),
        (
            "#max_depth = 20",
            "max_depth = 1",
            invitation
                .replace("text/calendar; method=REQUEST; name=i.ics", "multipart/mixed; boundary=c")
                .replace("BEGIN:VCALENDAR", "--c\r\n\r\nx\r\n--c--"),
            [1, 0],
        ),
    ];
    for (from, to, message, expected) in cases {
        let links = |changes: &[(&str, &str)]| {
            rewritten_with(changes, message).matches("https://t.example.org/c/").count()
        };
        assert_eq!([links(&[]), links(&[(from, to)])], *expected, "{to}");
    }
}

#[test]
fn the_explanation_for_people_names_everything_and_touches_no_terminal() {
    let site = installed(&[]);
    let message = "From: a@example.org\r\nX-Mailtap-Track: clicks\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\
        Content-Type: text/html; charset=utf-8\r\n\r\n<body><a href=\"https://www.example.org/a\">x</a>\r\n<a href=\"https://e.com/\x1B[2J\">y</a></body>\r\n--b\r\n\
        Content-Type: image/png\r\nContent-Disposition: attachment\r\n\r\nx\r\n--b--\r\n";
    let explain = |more: &[&str]| {
        let arguments =
            [&["rewrite", "--sender", "a@example.org", "--recipient", "ann@example.net", "--explain"], more]
                .concat();
        String::from_utf8(run_with_input(&mut site.command(&arguments), message.as_bytes()).stderr).unwrap()
    };
    let text = explain(&[]);
    for part in [
        "message    rewritten\n",
        "part -     multipart/mixed: its parts follow\n",
        "part 1     text/html, utf-8: rewritten\n",
        "part 2     image/png: left: The part is an attachment",
        "line 8     https://www.example.org/a\n           link 1\n",
        "line 9     https://e.com/\u{241B}[2J\n           left: The link is not a URL that a browser would follow. (bad_url)\n",
        "pixel      none: Opens are not tracked in this message.\n",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    assert!(!text.contains('\x1B'), "{text}");
    let json: Value = serde_json::from_str(&explain(&["--json"])).unwrap();
    assert_eq!(
        (&json["tracked"], &json["left"]["bad_url"], &json["unlisted_links"]),
        (&1.into(), &1.into(), &0.into())
    );
    assert_eq!((&json["opt_out"]["clicks"], &json["opt_out"]["opens"]), (&true.into(), &false.into()));
    assert_eq!((&json["parts"][0]["what"], &json["links"][1]["line"]), (&"opened".into(), &9.into()));
}

#[test]
fn rewrite_shows_what_changes_without_colours_in_a_pipe() {
    let site = installed(&[]);
    let rewrite = ["rewrite", "--sender", "a@example.org", "--recipient", "ann@example.net", "--diff"];
    let html =
        data_encoding::BASE64.encode(b"<p>hello</p>\r\n<a href=\"https://www.example.org/\">x</a>\r\n");
    let head = "From: a@example.org\r\nX-Mailtap-Track: yes\r\nContent-Type: text/html\r\nContent-Transfer-Encoding: base64";
    let message = format!("{head}\r\n\r\n{html}\r\n");
    let output = run_with_input(&mut site.command(&rewrite), message.as_bytes());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{text}");
    for part in [
        "\n-X-Mailtap-Track: yes\n",
        "\n+X-Mailtap-Ref: ",
        "--- part 1, text/html, as it came\n",
        "\n <p>hello</p>\n-<a href=\"https://www.example.org/\">x</a>\n+<a href=\"https://t.example.org/c/",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    assert!(!text.contains('\x1B') && !text.contains("Content-Transfer-Encoding: base64\n\n"), "{text}");
    let output = run_with_input(
        &mut site.command(&rewrite),
        b"From: a@example.org\r\nDKIM-Signature: v=1\r\n\r\nx\r\n",
    );
    assert!(
        String::from_utf8(output.stdout).unwrap().contains("nothing changes: The message carries a DKIM")
    );
    let colours = run_with_input(site.command(&rewrite).env("CLICOLOR_FORCE", "1"), message.as_bytes());
    assert!(String::from_utf8(colours.stdout).unwrap().contains("\x1B[32m+X-Mailtap-Ref: "));
    let none = run_with_input(site.command(&rewrite).env("NO_COLOR", "1"), message.as_bytes());
    assert!(!String::from_utf8(none.stdout).unwrap().contains('\x1B'));
}

#[test]
fn the_tap_explains_logs_without_a_configuration() {
    let log = harness::repository().join("tests/data/logs/postfix-3.7.11.log");
    let dir = tempfile::tempdir().unwrap();
    let strange = dir.path().join("strange.log");
    let text = std::fs::read_to_string(&log).unwrap()
        + "Nov 23 17:00:00 mx postfix/smtpd[1]: strange news 17 of Anna <anna@example.net>\n"
        + "Nov 23 17:00:00 mx postfix/smtpd[1]: strange news 18 of Bert <bert@example.net>\n";
    std::fs::write(&strange, text).unwrap();
    let mut packed = std::process::Command::new("gzip");
    run(packed.arg("--keep").arg(&strange));
    let explain = |file: &std::path::Path, more: &[&str]| {
        run(mailtap().args(["--config", "/nonexistent", "tap", "--explain"]).args(more).arg(file))
    };
    assert!(explain(&log, &[]).contains("100.00 % of the lines of Postfix are known"));
    for file in [strange.clone(), strange.with_extension("log.gz")] {
        let seen: serde_json::Value = serde_json::from_str(&explain(&file, &["--json"])).unwrap();
        assert_eq!((&seen["unknown"], &seen["foreign"]), (&2.into(), &0.into()));
        let shape = serde_json::json!({ "shape": "smtpd: strange news N of … <…>", "count": 2 });
        assert_eq!(seen["unknown_shapes"], serde_json::json!([shape]));
    }
    let none = mailtap().args(["--config", "/nonexistent", "tap", "--explain"]).output().unwrap();
    assert_eq!(none.status.code(), Some(64), "{}", said(&none));
}

#[test]
fn rules_of_bounce_classes_can_be_tried() {
    let installed = installed(&[]);
    let printed = run(mailtap().args(["classes", "print"]));
    assert!(printed.contains("# CLASS  SMTP  STATUS  PHRASE  EXPLANATION"));
    let said = "host mx.spam.example[192.0.2.1] said: 550 5.7.1 <virus@example.net>: Our partner's list";
    let test = |more: &[&str]| installed.json(&[&["classes", "test", "--json", said][..], more].concat());
    let built_in = test(&["--relay", "mx.partner.example[192.0.2.1]:25"]);
    assert_eq!((&built_in["class"], &built_in["rules"]), (&"policy".into(), &"built-in".into()));
    assert_eq!((&built_in["dsn"], &built_in["provider"]), (&"5.7.1".into(), &Value::Null));
    assert_eq!(test(&["--dsn", "5.1.1"])["class"], "hard");
    // Rules and providers of the site's own.
    let rules = installed.dir.path().join("rules.txt");
    fs::write(&rules, "# ours\nblock 550 * \"our partner's list\" the partner blocks us\n").unwrap();
    let config = fs::read_to_string(installed.config()).unwrap();
    let config = config
        .replace("#bounce_rules_file = \"\"", "bounce_rules_file = \"rules.txt\"")
        .replace("#providers = []", "providers = [\"partner.example=partner\"]");
    fs::write(installed.config(), config).unwrap();
    let own = test(&["--relay", "mx.partner.example[192.0.2.1]:25"]);
    assert_eq!((&own["class"], &own["reason"]), (&"block".into(), &"the partner blocks us".into()));
    assert_eq!((&own["line"], &own["provider"]), (&2.into(), &"partner".into()));
    let for_people = run(&mut installed.command(&["classes", "test", said]));
    assert!(for_people.contains("block") && !for_people.contains("virus"), "{for_people}");
    fs::write(&rules, "softly * * * x\n").unwrap();
    let output = installed.command(&["config", "check"]).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(
        self::said(&output).contains("delivery.bounce_rules_file: ")
            && self::said(&output).contains("line 1")
    );
}

#[test]
fn a_report_is_kept_whatever_is_wrong_with_the_command() {
    let installed = installed(&[]);
    let exit = |command: &mut Command| run_with_input(command, b"Subject: x\n\nx\n").status.code();
    for arguments in [&["bounce", "--no-such-option"][..], &["bounce", "x"], &["--no-such-option", "bounce"]]
    {
        assert_eq!(exit(&mut installed.command(arguments)), Some(75), "{arguments:?}");
    }
    assert_eq!(exit(mailtap().args(["--config", "/does/not/exist", "bounce"])), Some(75));
    assert_eq!(exit(mailtap().args(["--config", "bounce", "nonsense"])), Some(64));
    assert_eq!(exit(&mut installed.command(&["bounce"])), Some(0));
}

#[tokio::test]
async fn the_spool_says_what_waits_and_until_when() {
    let site = installed(&[]);
    let missing = site.command(&["spool", "status"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(69), "{}", said(&missing));
    let event = |number: u8| Event {
        id: EventId::of("test").part([number]).finish(),
        source: "mailtap/tracker/www".into(),
        kind: Kind::Clicked,
        time: Timestamp::from_secs(1_795_453_000),
        message: MessageId::new(Timestamp::from_secs(1_795_453_000), 7),
        data: Data { link: Some(number.into()), ..Data::default() },
    };
    let directory = site.dir.path().join("state/spool");
    let spool = Spool::open(spool::Settings { directory, ..spool::Settings::default() }).unwrap();
    let until = Timestamp::from_secs(clock::now().as_secs() + 3_600);
    let held = Publication { held_until: Some(until), ..event(1).into() };
    spool.publish_all(&[event(0).into()], OnStored::new(|| {})).await.unwrap();
    let lost = spool.claim(1, Duration::from_secs(60), clock::now()).await.unwrap();
    spool.settle(vec![(lost[0].seq, Outcome::Uncertain)]).await.unwrap();
    spool.publish_all(&[held, event(2).into(), event(3).into()], OnStored::new(|| {})).await.unwrap();

    let peeked = run(&mut site.command(&["spool", "peek", "--json", "--max", "2"]));
    let peeked: Vec<Value> = peeked.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let links: Vec<_> = peeked.iter().map(|line| line["event"]["data"]["link"].as_u64()).collect();
    assert_eq!(links, [Some(1), Some(2)], "in the order of publishing, what is dead is left out");
    assert_eq!(peeked[0]["due"], serde_json::to_value(until).unwrap());
    let peeked = run(&mut site.command(&["spool", "peek"]));
    assert_eq!(peeked.matches(&format!("due {until}")).count(), 1, "{peeked}");
    assert_eq!(peeked.matches("  pending").count(), 2, "{peeked}");

    let status = site.json(&["spool", "status", "--json"]);
    assert_eq!((&status["pending"], &status["not_due"]), (&3.into(), &1.into()), "{status}");
    let status = run(&mut site.command(&["spool", "status"]));
    assert!(status.contains("waiting    3 ") && status.contains(", 1 of them not due"), "{status}");
    assert!(status.contains("1, 1 of them uncertain"), "{status}");
    let uncertain = run(&mut site.command(&["dead", "list", "--reason", "uncertain", "--json"]));
    assert_eq!(uncertain.lines().count(), 1, "{uncertain}");
    let exported = run(&mut site.command(&["spool", "export"]));
    let exported: Vec<_> =
        exported.lines().map(|line| Event::from_json(line.as_bytes()).unwrap().data.link).collect();
    assert_eq!(exported, [0, 1, 2, 3].map(Some));
}
