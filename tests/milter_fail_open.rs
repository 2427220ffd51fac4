//! What goes wrong around the milter, and mail that goes on all the same: a daemon that hangs, a full disk, a broken
//! keyring, behind the real Postfix.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::letters::{Fate, Kind, fate, letter, number};
use harness::session::Session;
use harness::{Daemon, Options, SENDER, Site, run, said, wait_for};

fn site(default_action: &'static str) -> Site {
    Site::start(&Options {
        default_action,
        milter_only: true,
        settings: vec!["milter_content_timeout = 2s", "milter_command_timeout = 2s"],
        ..Options::default()
    })
}

fn original(number: usize) -> String {
    letter(number, Kind::Html(20_000))
}

fn send(site: &Site, number: usize) -> String {
    site.send("anna@example.net", &original(number))
}

/// What became of all letters sent so far, by number; none came twice.
fn fates(site: &Site) -> Vec<(usize, Fate)> {
    site.wait_for_empty_queues(Duration::from_secs(30));
    let mut fates = Vec::new();
    for delivered in site.mailbox() {
        let number = number(&delivered).unwrap();
        fates.push((number, fate(&original(number), &delivered, &site.tracking_url()).unwrap()));
    }
    fates.sort_unstable();
    fates
}

/// How many events wait in the spool.
fn events(site: &Site) -> usize {
    run(site.command().args(["events", "list", "--json"])).lines().count()
}

/// Stops the daemon at the end of letter 1, and before the session of letter 2; gives the answers.
fn hang(site: &Site) -> (String, String) {
    let mailtap = site.mailtap.as_ref().unwrap();
    let mut session = Session::open(site.smtp).unwrap();
    assert!(session.envelope(SENDER, &["anna@example.net"]).unwrap().starts_with("354 "));
    mailtap.pause();
    session.content(&original(1)).unwrap();
    let within = session.answer().unwrap();
    let before = send(site, 2);
    mailtap.signal("CONT");
    (within, before)
}

#[test]
fn a_daemon_that_hangs_delays_mail_with_accept() {
    let site = site("accept");
    let (within, before) = hang(&site);
    assert!(within.starts_with("250 ") && before.starts_with("250 "), "{within} {before}");
    assert!(send(&site, 3).starts_with("250 "));
    assert_eq!(fates(&site), [(1, Fate::AsItCame), (2, Fate::AsItCame), (3, Fate::Rewritten)]);
    assert_eq!(events(&site), 1, "of the letter that was tracked");
}

#[test]
fn a_daemon_that_hangs_defers_mail_with_tempfail() {
    let site = site("tempfail");
    let (within, before) = hang(&site);
    assert!(within.starts_with('4') && before.starts_with('4'), "{within} {before}");
    assert_eq!(fates(&site), []);
    for number in [1, 2] {
        assert!(send(&site, number).starts_with("250 "));
    }
    assert_eq!(fates(&site), [(1, Fate::Rewritten), (2, Fate::Rewritten)]);
    assert_eq!(events(&site), 2, "none of what was refused");
}

/// The milter with a file system of this size for its state, which is seen only by that process and ends with it.
fn on_small_disk(site: &Site, size: &str) -> (Command, PathBuf) {
    let state = site.dir.join("mailtap/state");
    fs::create_dir_all(&state).unwrap();
    let mailtap = site.command();
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command
        .args([
            "--mount",
            "bash",
            "-c",
            "mount -t tmpfs -o size=$1 none \"$2\" && shift 2 && exec \"$@\"",
            "bash",
            size,
        ])
        .arg(&state)
        .arg(mailtap.get_program())
        .args(mailtap.get_args())
        .arg("milter");
    (command, state)
}

/// Runs the milter on a small disk, of which the spool keeps 64 MiB in reserve.
fn start_on_small_disk(site: &mut Site) -> PathBuf {
    let (mut command, state) = on_small_disk(site, "96m");
    site.mailtap = None;
    site.start_mailtap_by(&mut command);
    let pid = site.mailtap.as_ref().unwrap().pid();
    PathBuf::from(format!("/proc/{pid}/root{}", state.display()))
}

#[test]
fn a_full_disk_lets_mail_through_as_it_came() {
    let mut site = site("tempfail");
    let state = start_on_small_disk(&mut site);
    assert!(send(&site, 1).starts_with("250 "));

    let fill = state.join("fill");
    let mut file = fs::File::create(&fill).unwrap();
    while file.write_all(&[0; 65_536]).is_ok() {}
    // An event may still find room where the last one ended; its message is tracked, then.
    let mut next = 2;
    while fates(&site).iter().filter(|(_, fate)| *fate == Fate::AsItCame).count() < 4 {
        assert!(next < 60 && send(&site, next).starts_with("250 "));
        next += 1;
    }
    let first = fates(&site).iter().position(|(_, fate)| *fate == Fate::AsItCame).unwrap();
    let refused = next - 1;
    assert!(site.log("mailtap").contains("\"reason\":\"event_refused\""));
    assert!(!site.log("mailtap").contains("stored too late"), "what was refused was not stored");
    let ready = || harness::http(site.admin, "GET", "/readyz", &[]).unwrap();
    let refusing = ready();
    assert_eq!(refusing.status, 503);
    let text = String::from_utf8_lossy(&refusing.body);
    assert!(text.contains("the spool refuses events"), "{text}");
    drop(file);
    fs::remove_file(&fill).unwrap();
    wait_for("events to be stored again", Duration::from_secs(15), || {
        assert!(send(&site, next).starts_with("250 "));
        next += 1;
        fates(&site)[next - 2].1 == Fate::Rewritten
    });
    assert_eq!(ready().status, 200);
    let fates = fates(&site);
    assert_eq!(fates[0], (1, Fate::Rewritten));
    assert!(fates[first..refused].iter().all(|(_, fate)| *fate == Fate::AsItCame), "{fates:?}");
    assert_eq!(fates.len(), next - 1);
    assert!(site.mailtap.as_mut().unwrap().is_running());
}

#[test]
fn a_full_disk_at_the_start_is_named() {
    let site = site("tempfail");
    for size in ["4k", "16k", "64k"] {
        let (mut command, state) = on_small_disk(&site, size);
        let refused = command.output().unwrap();
        let text = said(&refused);
        assert_eq!(refused.status.code(), Some(69), "{size}: {text}");
        for part in [state.to_str().unwrap(), "df ", "state_dir"] {
            assert!(text.contains(part), "{size}: {part}: {text}");
        }
    }
}

#[test]
fn a_broken_keyring_at_reload_changes_nothing() {
    let site = site("accept");
    let keyring = site.dir.join("mailtap/keyring.json");
    let good = fs::read(&keyring).unwrap();
    for (number, content, mode) in [(1, &b"{broken"[..], 0o600), (2, &good[..], 0o644)] {
        fs::write(&keyring, content).unwrap();
        fs::set_permissions(&keyring, fs::Permissions::from_mode(mode)).unwrap();
        let complaints = || site.log("mailtap").matches("can't be read again: the one in use stays").count();
        let before = complaints();
        site.mailtap.as_ref().unwrap().signal("HUP");
        wait_for("a complaint", Duration::from_secs(10), || complaints() > before);
        assert!(send(&site, number).starts_with("250 "));
        let log = site.log("mailtap");
        let line = log.lines().rfind(|line| line.contains("can't be read again")).unwrap();
        assert!(
            line.contains("keys.keyring") && (line.contains("restore it") || line.contains("chmod 600")),
            "{line}"
        );
    }
    assert_eq!(fates(&site), [(1, Fate::Rewritten), (2, Fate::Rewritten)]);
}

/// Whoever should read the log does not, or can't write it down: neither mail nor reload nor stop waits for that.
#[test]
fn a_log_that_nobody_takes_holds_up_nothing() {
    let mut site = site("tempfail");
    let (_unread, mut full_pipe) = std::io::pipe().unwrap();
    full_pipe.write_all(&vec![b'.'; 65_536]).unwrap();
    let full_disk = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (unread, no_reader) = std::io::pipe().unwrap();
    drop(unread);
    let mut number = 0;
    for stderr in [Stdio::from(full_pipe), Stdio::from(full_disk), Stdio::from(no_reader)] {
        assert_eq!(site.mailtap.as_mut().unwrap().stop(), Some(0));
        let milter = Daemon::start(site.command().arg("milter").stdout(Stdio::null()).stderr(stderr));
        site.mailtap = Some(milter);
        wait_for("the milter", Duration::from_secs(30), || site.is_ready());
        for _ in 0..3 {
            number += 1;
            assert!(send(&site, number).starts_with("250 "));
            site.mailtap.as_ref().unwrap().signal("HUP");
        }
        let metrics = harness::http(site.admin, "GET", "/metrics", &[]).unwrap();
        let metrics = String::from_utf8(metrics.body).unwrap();
        let rewritten = metrics
            .lines()
            .find(|line| line.starts_with("mailtap_milter_messages_total{outcome=\"rewritten\""));
        assert!(rewritten.is_some_and(|line| line.ends_with(" 3")), "{metrics}");
    }
    let expected: Vec<_> = (1..=number).map(|number| (number, Fate::Rewritten)).collect();
    assert_eq!(fates(&site), expected);
}

/// The milter begins without its keyring, so that no mail waits, and takes it as soon as it is there; where it is beside others,
/// they wait for it.
#[test]
fn a_broken_keyring_at_the_start_lets_mail_through_until_it_is_mended() {
    let mut site = site("tempfail");
    let keyring = site.dir.join("mailtap/keyring.json");
    let good = fs::read(&keyring).unwrap();
    for (role, number, content, mode, remedy) in
        [("milter", 1_usize, &b"{broken"[..], 0o600, "restore it"), ("run", 3, &good[..], 0o644, "chmod 600")]
    {
        assert_eq!(site.mailtap.as_mut().unwrap().stop(), Some(0));
        fs::write(&keyring, content).unwrap();
        fs::set_permissions(&keyring, fs::Permissions::from_mode(mode)).unwrap();
        let alone = site.command().arg("tap").output().unwrap();
        let text = said(&alone);
        assert_eq!(alone.status.code(), Some(78), "{text}");
        assert!(text.contains(keyring.to_str().unwrap()) && text.contains(remedy), "{text}");

        site.mailtap = Some(site.daemon("mailtap", site.command().arg(role)));
        let starts = || site.log("mailtap").matches("milter listens").count();
        wait_for("the socket", Duration::from_secs(30), || starts() == 1 + number.div_ceil(2));
        let log = site.log("mailtap");
        let line = log.lines().rfind(|line| line.contains("until it can be read")).unwrap();
        for part in ["ERROR", "keys.keyring", keyring.to_str().unwrap(), remedy] {
            assert!(line.contains(part), "{part}: {line}");
        }
        let answer = send(&site, number);
        assert!(answer.starts_with("250 "), "{answer}");
        let ready = harness::http(site.admin, "GET", "/readyz", &[]).unwrap();
        let text = String::from_utf8_lossy(&ready.body).into_owned();
        assert!(ready.status == 503 && text.contains("keyring"), "{text}");
        let waits =
            ["tap", "tracker"].iter().filter(|role| text.contains(&format!("{role}: waits for the keyring")));
        assert_eq!(waits.count(), if role == "run" { 2 } else { 0 }, "{text}");

        fs::write(&keyring, &good).unwrap();
        fs::set_permissions(&keyring, fs::Permissions::from_mode(0o600)).unwrap();
        wait_for("the keyring to be read", Duration::from_secs(20), || site.is_ready());
        assert!(send(&site, number + 1).starts_with("250 "));
    }
    let passed = site.log("mailtap").matches("\"reason\":\"no_key\"").count();
    assert_eq!(passed, 2);
    let expected = [(1, Fate::AsItCame), (2, Fate::Rewritten), (3, Fate::AsItCame), (4, Fate::Rewritten)];
    assert_eq!(fates(&site), expected);
}
