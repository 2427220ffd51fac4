//! How daemons start, and say why they can't: metrics, logs, exit codes, limits.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::{Options, Site, http, run_with_input, said, wait_for};
use serde_json::Value;

fn site(changes: Vec<(&'static str, String)>) -> Site {
    Site::start(&Options { without_postfix: true, changes, ..Options::default() })
}

#[test]
fn every_metric_of_a_running_process_says_what_it_means_and_begins_at_zero() {
    // Any file stands for a log, since there is no Postfix.
    let log = ("\"{dir}/relay/log/maillog\"", "\"{dir}/ga4-secret\"".to_owned());
    let site = site(vec![log]);
    let metrics = String::from_utf8(http(site.admin, "GET", "/metrics", &[]).unwrap().body).unwrap();
    let names: Vec<&str> =
        metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(names.len() > 60, "{metrics}");
    for name in names {
        assert!(metrics.contains(&format!("# HELP {name} ")), "{name} is not described");
    }
    for begins in [
        "mailtap_config_failures_total 0",
        "mailtap_config_restart_needed 0",
        "mailtap_milter_copies_total{result=\"uncertain\"} 0",
        "mailtap_milter_answers_lost_total 0",
        "mailtap_tap_lost_lines_total 0",
        "mailtap_tracker_lost_total{reason=\"queue-full\"} 0",
        "mailtap_relay_uncertain_total 0",
        "mailtap_relay_put_off_total 0",
        "mailtap_spool_expired_total{fate=\"dropped\"} 0",
    ] {
        assert!(metrics.lines().any(|line| line == begins), "{begins} is missing in:\n{metrics}");
    }
}

/// Mail comes first: what keeps links from being answered is told, and keeps nobody's mail.
#[test]
fn a_tracker_that_can_not_listen_takes_no_milter_with_it() {
    let mut site = site(vec![("\"{dir}/relay/log/maillog\"", "\"{dir}/ga4-secret\"".to_owned())]);
    site.mailtap.as_mut().unwrap().stop();
    let other = TcpListener::bind(("127.0.0.1", site.tracker)).unwrap();
    fs::remove_file(site.dir.join("mailtap.log")).unwrap();
    let mut command = site.command();
    site.begin_mailtap_by(command.arg("run"));
    let shown = |site: &Site| http(site.admin, "GET", "/readyz", &[]).map(|answer| answer.body);
    wait_for("a milter beside a tracker without its address", Duration::from_secs(30), || {
        let text = String::from_utf8(shown(&site).unwrap_or_default()).unwrap();
        text.contains("can't listen on 127.0.0.1") && UnixStream::connect(site.milter_socket()).is_ok()
    });
    let log = site.log("mailtap");
    assert_eq!(log.matches("the tracker can't begin").count(), 1, "{log}");
    assert!(log.contains("ss -ltnp"), "{log}");
    drop(other);
    wait_for("the tracker", Duration::from_secs(30), || site.is_ready());
    assert_eq!(site.mailtap.as_mut().unwrap().stop(), Some(0));
    // By itself it is its supervisor's matter.
    let _other = TcpListener::bind(("127.0.0.1", site.tracker)).unwrap();
    let output = site.command().arg("tracker").output().unwrap();
    assert_eq!(output.status.code(), Some(69), "{}", said(&output));
}

/// Sets up a site whose mailtap has ended.
fn stopped(changes: Vec<(&'static str, String)>) -> Site {
    let mut site =
        Site::start(&Options { milter_only: true, without_postfix: true, changes, ..Options::default() });
    site.mailtap.as_mut().unwrap().stop();
    site
}

fn edit(site: &Site, from: &str, to: &str) {
    let text = fs::read_to_string(site.config()).unwrap();
    assert!(text.contains(from), "{from}: {text}");
    fs::write(site.config(), text.replace(from, to)).unwrap();
}

/// The last line of a start that fails, and the exit code.
fn failed_start(site: &Site) -> (Value, Option<i32>) {
    let output = site.command().arg("milter").output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    (lines.last().expect("something is said").clone(), output.status.code())
}

#[test]
fn a_start_that_fails_is_told_in_the_logs_own_format_with_the_remedy() {
    let site = stopped(Vec::new());
    let listen = format!("listen = \"unix:{}\"", site.milter_socket().display());

    let other = UnixListener::bind(site.milter_socket()).unwrap();
    let (last, code) = failed_start(&site);
    let message = last["message"].as_str().unwrap();
    assert_eq!((code, &last["level"], &last["exit_code"]), (Some(69), &"ERROR".into(), &69.into()), "{last}");
    assert!(message.contains("another process answers on it; `ss -xlp`"), "{message}");
    drop(other);

    // A name that can't be looked up now may be later: systemd has to try again, which it does not after 78.
    edit(&site, &listen, "listen = \"inet:milter.internal.invalid:8893\"");
    let (last, code) = failed_start(&site);
    let message = last["message"].as_str().unwrap();
    assert_eq!(code, Some(69), "{message}");
    assert!(
        message.contains("milter.listen: the name milter.internal.invalid does not resolve ("),
        "{message}"
    );
    let checked = said(&site.command().args(["config", "check"]).output().unwrap());
    assert!(
        checked.contains("milter.internal.invalid does not resolve") && checked.contains(": ok"),
        "{checked}"
    );
    let via = ["rewrite", "--via-milter", "inet:milter.internal.invalid:8893", "--sender", "a@b.example"];
    let output =
        run_with_input(site.command().args(via).args(["--recipient", "c@d.example"]), b"A: b\r\n\r\n");
    assert_eq!(output.status.code(), Some(69), "{}", said(&output));
    assert!(said(&output).contains("lookup"), "{}", said(&output));

    // For people, as a line of text.
    edit(&site, "#format = \"auto\"", "format = \"text\"");
    let output = site.command().arg("milter").output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.lines().last().unwrap().starts_with("mailtap: milter: milter.listen: "), "{text}");
}

#[test]
fn files_may_be_open_as_many_as_the_hard_limit_says_and_too_few_are_told() {
    let mut site = stopped(vec![("#max_connections = 1000\n", "max_connections = 100\n".to_owned())]);
    let limited = |site: &mut Site, (soft, hard): (u32, u32)| {
        let mailtap = site.command();
        let mut command = Command::new("bash");
        command.args(["-c", &format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$@\""), "bash"]);
        command.arg(mailtap.get_program()).args(mailtap.get_args()).arg("milter").stdin(Stdio::null());
        fs::remove_file(site.dir.join("mailtap.log")).unwrap();
        site.start_mailtap_by(&mut command);
        let pid = site.mailtap.as_ref().unwrap().pid();
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let soft: u32 = line.split_whitespace().nth(3).unwrap().parse().unwrap();
        assert_eq!(site.mailtap.as_mut().unwrap().stop(), Some(0));
        (soft, site.log("mailtap"))
    };
    let (soft, log) = limited(&mut site, (64, 800));
    assert_eq!(soft, 800);
    assert!(!log.contains("LimitNOFILE"), "{log}");
    let (soft, log) = limited(&mut site, (64, 700));
    assert_eq!(soft, 700);
    assert!(log.contains("milter.max_connections") && log.contains("LimitNOFILE=756"), "{log}");
}
