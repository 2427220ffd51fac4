//! The command line as administrators and scripts meet it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::installed::{Installed, installed};
use harness::{mailtap, run, run_with_input, said};
use mailtap::event::{Data, Event, EventId, Kind};
use mailtap::identity::{MessageId, Timestamp};
use mailtap::queue::spool::{self, Outcome, Spool};
use mailtap::queue::{Hold, OnStored, Publication};
use mailtap::service::clock;
use serde_json::Value;
use sha2::Digest as _;

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
    assert_eq!(definitions["queues"][0]["vhost"], "mail", "that of the address");
    assert_eq!(site.json(&["amqp", "definitions", "--vhost", "other"])["queues"][0]["vhost"], "other");
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
fn usage_errors_are_64_and_help_is_not_an_error() {
    assert_eq!(mailtap().arg("--nonsense").output().unwrap().status.code(), Some(64));
    assert_eq!(mailtap().args(["collector", "--fail", "boom"]).output().unwrap().status.code(), Some(64));
    for arguments in [&["--help"][..], &["run", "--help"], &["keys", "--help"], &["--version"]] {
        assert_eq!(mailtap().args(arguments).output().unwrap().status.code(), Some(0), "{arguments:?}");
    }
    assert!(run(mailtap().arg("man")).contains(".TH mailtap 1"));
    assert!(!run(mailtap().args(["man", "amqp"])).contains("help(1)"), "there is no such page");
    assert!(run(mailtap().args(["man", "keys", "rotate"])).contains(".TH mailtap-keys-rotate 1"));
    assert_eq!(mailtap().args(["man", "nonsense"]).output().unwrap().status.code(), Some(64));
    let pages = tempfile::tempdir().unwrap();
    let pages_dir = pages.path().join("share/man1");
    run(mailtap().args(["man", "--dir"]).arg(&pages_dir));
    // Every page that another one refers to is there.
    let mut referred = 0;
    for page in fs::read_dir(&pages_dir).unwrap() {
        let text = fs::read_to_string(page.unwrap().path()).unwrap().replace("\\-", "-");
        for reference in text.lines().filter_map(|line| line.strip_suffix("(1)")) {
            assert!(pages_dir.join(format!("{reference}.1")).exists(), "{reference}");
            referred += 1;
        }
    }
    assert!(referred > 30, "{referred}");
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
fn a_pending_key_that_is_given_up_is_not_said_to_come_back() {
    let site = installed(&[]);
    let rotated = run(&mut site.command(&["keys", "rotate", "--activate-in", "1h"]));
    assert!(rotated.contains("rotate: key 2, now pending until 20"), "{rotated}");
    assert_eq!(run(&mut site.command(&["keys", "retire", "2"])), "retire: key 2, now retired\n");
    assert_eq!(run(&mut site.command(&["keys", "revoke", "2"])), "revoke: key 2, now revoked\n");
}

#[test]
fn an_empty_variable_names_no_configuration() {
    let site = installed(&[]);
    run(site.command(&["config", "check"]).env("MAILTAP_CONFIG", ""));
    run(mailtap().args(["config", "check"]).env("MAILTAP_CONFIG", site.config()));
    let output =
        mailtap().args(["keys", "list", "--config", "/nowhere"]).env("MAILTAP_CONFIG", "").output().unwrap();
    assert!(said(&output).contains("/nowhere: "), "{}", said(&output));
    run(mailtap().arg("--help").env("MAILTAP_CONFIG", ""));
}

#[test]
fn consents_are_withdrawn_by_address_or_pseudonym() {
    let site = installed(&[]);
    let text = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), text.replace("#withdrawn_file = \"\"", "withdrawn_file = \"withdrawn.list\""))
        .unwrap();
    run(&mut site.command(&["consent", "init"]));
    // A pseudonym may begin like an option.
    for (who, more) in [("-AEBAQEBAQEBAQEB", &["--only", "opens"][..]), ("ann@example.net", &[])] {
        let said = site.json(&[&["consent", "withdraw", who, "--json"][..], more].concat());
        assert_eq!(
            (&said["opens_withdrawn"], &said["clicks_withdrawn"]),
            (&true.into(), &more.is_empty().into())
        );
        assert_eq!(site.json(&["consent", "list", who, "--json"])["opens_withdrawn"], true);
    }
    let list = fs::read_to_string(site.config().with_file_name("withdrawn.list")).unwrap();
    assert_eq!(list.lines().filter(|line| !line.starts_with('#')).count(), 2, "{list}");
    assert_eq!(site.json(&["consent", "allow", "-AEBAQEBAQEBAQEB", "--json"])["opens_withdrawn"], false);
}

/// Root prepares what another user runs: nothing that it makes may keep that user out at the next start.
#[test]
fn what_root_makes_belongs_to_whom_the_directory_belongs_to() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let outer = tempfile::tempdir().unwrap();
    fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let dir = outer.path().join("etc");
    fs::create_dir(&dir).unwrap();
    chown(&dir, Some(12_345), Some(23_456)).unwrap();
    let secret = outer.path().join("secret");
    fs::write(&secret, "s3cret").unwrap();
    let mut init = mailtap();
    init.args(["init", "--tracking-url", "https://t.example.org", "--domain", "example.org", "--dir"])
        .arg(&dir);
    run(init.args(["--ga4", "G-ABC123", "--ga4-secret-file"]).arg(&secret));
    let config = dir.join("mailtap.toml");
    let command = |arguments: &[&str]| {
        let mut command = mailtap();
        command.arg("--config").arg(&config).args(arguments);
        command
    };
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replace("#withdrawn_file = \"\"", "withdrawn_file = \"withdrawn.list\"");
    fs::write(&config, text.replace("#handoff_hosts = []", "handoff_hosts = [\"www.example.org\"]")).unwrap();
    for arguments in [&["consent", "init"][..], &["keys", "--use", "handoff", "init"], &["keys", "rotate"]] {
        run(&mut command(arguments));
    }
    let names = || {
        let entries = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap());
        entries.map(|entry| (entry.file_name(), entry.metadata().unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(names().len(), 8, "{:?}", names());
    for (name, meta) in names() {
        assert_eq!((meta.uid(), meta.gid()), (12_345, 23_456), "{name:?}");
    }
    let ok = run(&mut command(&["config", "check"]));
    assert!(ok.contains(": ok"), "{ok}");
    // Who runs the services is known by whom the directories belong to.
    let keyring = dir.join("keyring.json");
    chown(&keyring, Some(0), Some(0)).unwrap();
    let output = command(&["config", "check"]).output().unwrap();
    let text = said(&output);
    assert_eq!(output.status.code(), Some(78), "{text}");
    assert!(text.contains(&format!("keys.keyring: {0}: 12345, ", keyring.display())), "{text}");
    assert!(text.contains(&format!("run: chown 12345:23456 {}", keyring.display())), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    chown(&keyring, Some(12_345), Some(23_456)).unwrap();
    fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let output = command(&["config", "check"]).output().unwrap();
    assert!(
        said(&output).contains(&format!("{} keeps them out", outer.path().display())),
        "{}",
        said(&output)
    );
    // A line of audit that is lost is said, though the change is made.
    let audit = dir.join("keyring.audit.jsonl");
    fs::remove_file(&audit).unwrap();
    fs::create_dir(&audit).unwrap();
    let output = command(&["keys", "rotate"]).output().unwrap();
    assert_eq!(output.status.code(), Some(74), "{}", said(&output));
    let text = said(&output);
    assert!(text.contains("keyring.audit.jsonl") && text.contains("the change is made"), "{text}");
    assert!(String::from_utf8(output.stdout).unwrap().contains("rotate: key 3, now active"), "{text}");
}

#[test]
fn a_lost_keyring_can_be_made_anew_and_never_over_another() {
    let site = installed(&[]);
    fs::remove_file(site.dir.path().join("keyring.json")).unwrap();
    let missing = site.command(&["keys", "list"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(66));
    assert!(said(&missing).contains("make the first one: `mailtap keys init`"), "{}", said(&missing));
    let missing = site.command(&["keys", "--use", "handoff", "list"]).output().unwrap();
    assert!(said(&missing).contains("`mailtap keys --use handoff init`"), "{}", said(&missing));
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
    let client = run(&mut site.command(&["pseudonym", "ann@example.net", "--client-id"]));
    let both = site.json(&["pseudonym", "ann@example.net", "--json"]);
    assert_eq!((&both["pseudonym"], &both["client_id"]), (&one.trim().into(), &client.trim().into()));
    // As docs/ga4.md has it.
    let hashed = [
        &b"mailtap ga4 client v1\0"[..],
        &data_encoding::BASE64URL_NOPAD.decode(one.trim().as_bytes()).unwrap(),
    ];
    let hash = sha2::Sha256::digest(hashed.concat());
    let word = |at: usize| u32::from_be_bytes(hash[at..at + 4].try_into().unwrap()) & 0x7fff_ffff;
    assert_eq!(client.trim(), format!("{}.{}", word(0), word(4)));
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
