//! `mailtap config check` and `mailtap postfix` as administrators meet them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use harness::installed::installed;
use harness::{run, said};

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
    for cut in ["", "# mailtap: withdrawn consents, version 1\n"] {
        fs::write(path("withdrawn.list"), cut).unwrap();
        let output = site.command(&["config", "check"]).output().unwrap();
        assert_eq!(output.status.code(), Some(78), "{cut}");
        assert!(said(&output).contains("copy it again"), "{}", said(&output));
        assert_eq!(site.command(&["consent", "init"]).output().unwrap().status.code(), Some(73));
    }
    fs::remove_file(path("withdrawn.list")).unwrap();
    run(&mut site.command(&["consent", "init"]));
    let output = site.command(&["config", "check"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

#[test]
fn what_works_less_well_than_it_seems_is_a_warning() {
    let site = installed(&["--log-file", "/nowhere/mail.log"]);
    let checked = run(&mut site.command(&["config", "check"]));
    assert!(checked.contains("warning: tap.files: /nowhere/mail.log is not there"), "{checked}");
    assert!(
        checked.contains("tap.source = \"journal\"") && !checked.contains("trusted_proxies"),
        "{checked}"
    );
    let text = fs::read_to_string(site.config()).unwrap();
    let proxies = "#trusted_proxies = [\"127.0.0.0/8\", \"::1/128\"]";
    assert!(text.contains(proxies));
    for everybody in ["0.0.0.0/0", "::/0"] {
        let proxies = text.replace(proxies, &format!("trusted_proxies = [\"127.0.0.1\", \"{everybody}\"]"));
        fs::write(site.config(), proxies).unwrap();
        let checked = run(&mut site.command(&["config", "check"]));
        let warning = format!("warning: tracker.trusted_proxies = [\"{everybody}\"]");
        assert!(checked.contains(&warning) && checked.contains(": ok"), "{checked}");
    }
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
