//! The tap's sources as a process meets them: files that rotate while it is killed, the journal, standard input.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::{Daemon, free_ports, http, long, mailtap, run, run_with_input, wait_for};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

/// A host with keys and a spool, and a log that this test writes.
struct Host {
    dir: tempfile::TempDir,
    admin: u16,
    reference: String,
    written: u32,
}

impl Host {
    /// With these changes to mailtap.toml: text to replace, and by what.
    fn new(changes: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [admin] = free_ports::<1>();
        let mut command = mailtap();
        command.args([
            "init",
            "--tracking-url",
            "https://t.example.org",
            "--domain",
            "shop.example",
            "--dir",
        ]);
        run(command.arg(dir.path()));
        let path = dir.path().join("mailtap.toml");
        let mut text = fs::read_to_string(&path).unwrap();
        let listen = format!("tap = \"127.0.0.1:{admin}\"");
        for (from, to) in [("#tap = \"127.0.0.1:9742\"", &*listen)].iter().chain(changes) {
            assert!(text.contains(from), "{from} is not in mailtap.toml");
            text = text.replace(from, to);
        }
        fs::write(&path, text).unwrap();
        // Named by some of the changes.
        fs::write(dir.path().join("rules.txt"), "").unwrap();
        let mut host = Self { dir, admin, reference: String::new(), written: 0 };
        let rewrite = ["rewrite", "--sender", "news@shop.example", "--recipient", "ann@example.net"];
        let output = run_with_input(host.command().args(rewrite), b"From: news@shop.example\n\nx\n");
        let message = String::from_utf8(output.stdout).unwrap();
        let reference = message.lines().find_map(|line| line.strip_prefix("X-Mailtap-Ref: ")).unwrap();
        host.reference = reference.trim().to_owned();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = mailtap();
        command.arg("--config").arg(self.path("mailtap.toml"));
        command
    }

    fn start(&self) -> Daemon {
        let log = fs::OpenOptions::new().append(true).create(true).open(self.path("tap.log")).unwrap();
        let mut command = self.command();
        command.arg("tap").stdout(Stdio::null()).stderr(log);
        Daemon::start(&mut command)
    }

    fn start_with_input(&self) -> Child {
        let log = fs::OpenOptions::new().append(true).create(true).open(self.path("tap.log")).unwrap();
        self.command().arg("tap").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    fn log(&self) -> String {
        harness::log_text(&self.path("tap.log"))
    }

    /// The next message's two lines: its reference, and its delivery.
    fn message(&mut self) -> [(&'static str, String); 2] {
        self.written += 1;
        let (id, reference) = (format!("A{:07}", self.written), &self.reference);
        let header = format!(
            "{id}: milter-header-info: header X-Mailtap-Ref: {reference} from x[192.0.2.1]; from=<news@shop.example> \
             to=<r@example.net> proto=ESMTP helo=<x>:"
        );
        let sent = format!(
            "{id}: to=<r@example.net>, relay=mx.example.net[192.0.2.1]:25, delay=1, delays=1/0/0/0, dsn=2.0.0, \
             status=sent (250 2.0.0 ok)"
        );
        [("cleanup", header), ("smtp", sent)]
    }

    fn lines(&mut self) -> String {
        let lines = self.message().map(|(daemon, text)| line(daemon, &text));
        lines.concat()
    }

    /// How often each queue id is in the spool.
    fn stored(&self) -> BTreeMap<String, usize> {
        let mut stored = BTreeMap::new();
        // The tap makes it when it has come so far.
        if !self.path("state/spool/spool.db").exists() {
            return stored;
        }
        for event in run(self.command().args(["spool", "export"])).lines() {
            let event: Value = serde_json::from_str(event).unwrap();
            *stored.entry(event["data"]["queue_id"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        stored
    }

    /// Every message that was written is an event, once.
    fn assert_each_once(&self) {
        let count = self.written as usize;
        let end = Instant::now() + LIMIT;
        while self.stored().len() < count {
            let stored = self.stored();
            let missing: Vec<String> = (1..=self.written)
                .map(|number| format!("A{number:07}"))
                .filter(|id| !stored.contains_key(id))
                .collect();
            assert!(Instant::now() < end, "missing: {missing:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
        std::thread::sleep(Duration::from_millis(300));
        let stored = self.stored();
        assert_eq!((stored.len(), stored.values().all(|often| *often == 1)), (count, true));
    }

    fn metric(&self, name: &str) -> Option<String> {
        let answer = http(self.admin, "GET", "/metrics", &[])?;
        let text = String::from_utf8(answer.body).ok()?;
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.rsplit(' ').next().map(str::to_owned)
    }
}

fn line(daemon: &str, text: &str) -> String {
    format!("Nov 23 16:25:11 mx postfix/{daemon}[7]: {text}\n")
}

/// A log that a daemon writes and logrotate rotates, `.1` to `.2` to `.3`.
struct Log {
    path: PathBuf,
    file: File,
    /// Written to the renamed file still: the daemon was not told yet.
    is_renamed: bool,
}

impl Log {
    fn new(path: PathBuf) -> Self {
        Self { file: append(&path), path, is_renamed: false }
    }

    fn rotated(&self, number: u32) -> PathBuf {
        PathBuf::from(format!("{}.{number}", self.path.display()))
    }

    fn rotate(&mut self) {
        self.reopen();
        for number in (1..8).rev() {
            rename(&self.rotated(number), &self.rotated(number + 1));
        }
        rename(&self.path, &self.rotated(1));
        self.is_renamed = true;
    }

    fn reopen(&mut self) {
        if self.is_renamed {
            self.file = append(&self.path);
            self.is_renamed = false;
        }
    }
}

fn append(path: &Path) -> File {
    File::options().create(true).append(true).open(path).unwrap()
}

#[allow(clippy::disallowed_methods, reason = "a log is rotated")]
fn rename(from: &Path, to: &Path) {
    let _ = fs::rename(from, to);
}

/// The same numbers for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

#[test]
fn two_logs_rotate_while_the_tap_is_killed() {
    let mut host = Host::new(&[("#files = [\"/var/log/mail.log\"]", "files = [\"a.log\", \"b.log\"]")]);
    let seed = std::env::var("MAILTAP_TAP_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    let mut dice = Dice(seed);
    let mut logs = [Log::new(host.path("a.log")), Log::new(host.path("b.log"))];
    let mut tap = host.start();
    // What was rotated before the tap ever ran is not its matter.
    wait_for("the first checkpoint", LIMIT, || host.path("state/tap.json").exists());
    let (mut kills, mut rotations) = (0, 0);
    for _ in 0..if long() { 2_000 } else { 150 } {
        let log = &mut logs[dice.roll(2) as usize];
        match dice.roll(12) {
            0 => {
                log.rotate();
                rotations += 1;
            }
            1 | 2 => log.reopen(),
            3 => {
                tap.kill();
                kills += 1;
                // Away for a while, or back at once.
                if dice.roll(2) == 0 {
                    tap = host.start();
                }
            }
            4 if !tap.is_running() => tap = host.start(),
            _ => {
                for _ in 0..=dice.roll(5) {
                    let text = host.lines();
                    // In pieces, as they may be seen.
                    let (first, rest) = text.split_at(dice.roll(text.len() as u64) as usize);
                    log.file.write_all(first.as_bytes()).unwrap();
                    std::thread::sleep(Duration::from_millis(dice.roll(3)));
                    log.file.write_all(rest.as_bytes()).unwrap();
                }
            }
        }
        std::thread::sleep(Duration::from_millis(dice.roll(40)));
    }
    logs.iter_mut().for_each(Log::reopen);
    if !tap.is_running() {
        tap = host.start();
    }
    host.assert_each_once();
    println!("seed {seed}: {} messages, {rotations} rotations, {kills} kills", host.written);
    assert!(kills > 3 && rotations > 3);
    assert_eq!(tap.stop(), Some(0));
    for loss in ["lines may be lost", "not read, since"] {
        assert!(!host.log().contains(loss), "{}", host.log());
    }
}

#[test]
fn what_the_logger_dropped_is_an_error_and_a_metric_and_a_stop_reads_what_is_there() {
    let mut host = Host::new(&[("#source = \"file\"", "source = \"stdin\"")]);
    let mut tap = host.start_with_input();
    let mut stdin = tap.stdin.take().unwrap();
    for unit in ["nginx.service", "postfix@-.service"] {
        writeln!(stdin, "Nov 23 16:25:11 mx systemd-journald[1]: Suppressed 9 messages from {unit}").unwrap();
    }
    stdin.flush().unwrap();
    wait_for("the metric", LIMIT, || host.metric("mailtap_tap_lost_lines_total").as_deref() == Some("9"));
    let log = host.log();
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("the logger dropped lines")).collect();
    assert!(errors.len() == 1 && errors[0].contains("ERROR"), "{log}");
    let lines: String = (0..400).map(|_| host.lines()).collect();
    stdin.write_all(lines.as_bytes()).unwrap();
    run(Command::new("kill").arg("-TERM").arg(tap.id().to_string()));
    assert!(tap.wait().unwrap().success());
    drop(stdin);
    host.assert_each_once();
}

#[test]
fn rules_are_read_again_at_a_reload() {
    let mut host = Host::new(&[
        ("#source = \"file\"", "source = \"stdin\""),
        ("#bounce_rules_file = \"\"", "bounce_rules_file = \"rules.txt\""),
        ("#replies = \"off\"", "replies = \"scrubbed\""),
    ]);
    let rules = host.path("rules.txt");
    let class = |name: &str| format!("{name} * * \"strange answer\" rule of {name}\n");
    fs::write(&rules, class("soft")).unwrap();
    let mut tap = host.start_with_input();
    let mut stdin = tap.stdin.take().unwrap();
    wait_for("the tap", LIMIT, || host.metric("").is_some());
    let mut send = |host: &mut Host| {
        let [header, (daemon, sent)] = host.message();
        let said = "bounced (host mx.example.net[192.0.2.1] said: 550 <r@example.net> strange answer)";
        let bounced = sent.replace("dsn=2.0.0", "dsn=5.0.0").replace("sent (250 2.0.0 ok)", said);
        let text = line(header.0, &header.1) + &line(daemon, &bounced);
        stdin.write_all(text.as_bytes()).unwrap();
    };
    let told = |host: &Host| {
        let count = host.written as usize;
        wait_for("the event", LIMIT, || host.stored().len() == count);
        let events = run(host.command().args(["spool", "export"]));
        let event: Value = serde_json::from_str(events.lines().last().unwrap()).unwrap();
        assert_eq!(event["data"]["reply"], "550 … strange answer");
        format!("{} {}", event["data"]["class"].as_str().unwrap(), event["data"]["reason"].as_str().unwrap())
    };
    let hangup = |tap: &Child| run(Command::new("kill").arg("-HUP").arg(tap.id().to_string()));
    send(&mut host);
    assert_eq!(told(&host), "soft rule of soft");
    fs::write(&rules, class("block")).unwrap();
    hangup(&tap);
    wait_for("the reload", LIMIT, || host.log().contains("bounce rules read again"));
    send(&mut host);
    assert_eq!(told(&host), "block rule of block");
    fs::write(&rules, "nonsense").unwrap();
    hangup(&tap);
    wait_for("a word", LIMIT, || host.log().contains("bounce rules change nothing"));
    fs::write(&rules, class("soft")).unwrap();
    send(&mut host);
    assert_eq!(told(&host), "block rule of block");
    drop(stdin);
    tap.wait().unwrap();
}

/// Where a journal can be written without journald: Debian's package systemd-journal-remote.
const JOURNAL_REMOTE: &str = "/lib/systemd/systemd-journal-remote";

/// Entries in the journal export format, added to a journal file.
fn add_to_journal(journal: &Path, entries: &str) {
    let output =
        run_with_input(Command::new(JOURNAL_REMOTE).arg("-o").arg(journal).arg("-"), entries.as_bytes());
    assert!(output.status.success(), "{}", harness::said(&output));
}

fn entry(number: u32, identifier: &str, unit: &str, message: &str, more: &str) -> String {
    format!(
        "__REALTIME_TIMESTAMP={}\n__MONOTONIC_TIMESTAMP={}\n_BOOT_ID=0123456789abcdef0123456789abcdef\n_HOSTNAME=mx\n\
         SYSLOG_IDENTIFIER={identifier}\nSYSLOG_FACILITY=2\nSYSLOG_PID=7\n_SYSTEMD_UNIT={unit}\n{more}MESSAGE={message}\n\n",
        1_795_451_111_000_000_u64 + u64::from(number) * 1_000,
        1_000_000 + u64::from(number) * 1_000,
    )
}

#[test]
fn a_real_journal_is_read_on_after_a_kill() {
    if !Path::new(JOURNAL_REMOTE).exists() {
        assert!(!long(), "tests/lib/install systemd-journal-remote");
        eprintln!("passed over: {JOURNAL_REMOTE} is not there");
        return;
    }
    let mut host = Host::new(&[("#source = \"file\"", "source = \"journal\"")]);
    let journal = host.path("test.journal");
    // journalctl itself, on a file of ours.
    let bin = host.path("bin");
    fs::create_dir(&bin).unwrap();
    let script = format!("#!/bin/sh\nexec /usr/bin/journalctl --file '{}' \"$@\"\n", journal.display());
    fs::write(bin.join("journalctl"), script).unwrap();
    run(Command::new("chmod").arg("0755").arg(bin.join("journalctl")));
    let start = |host: &Host| {
        let log = fs::OpenOptions::new().append(true).create(true).open(host.path("tap.log")).unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        Daemon::start(host.command().arg("tap").env("PATH", path).stdout(Stdio::null()).stderr(log))
    };
    let dropped = |count: u32, unit: &str| {
        let more = format!("MESSAGE_ID=a596d6fe7bfa4994828e72309e95d61e\nN_DROPPED={count}\n");
        let text = format!("Suppressed {count} messages from {unit}");
        entry(count, "systemd-journald", "systemd-journald.service", &text, &more)
    };
    let mut number = 0;
    let mut messages = |host: &mut Host| {
        let mut text = String::new();
        for _ in 0..50 {
            for (daemon, message) in host.message() {
                number += 1;
                text += &entry(number, &format!("postfix/{daemon}"), "postfix@-.service", &message, "");
            }
        }
        text
    };
    let first = messages(&mut host);
    add_to_journal(&journal, &(first + &dropped(5, "nginx.service") + &dropped(9, "postfix@-.service")));
    let mut tap = start(&host);
    host.assert_each_once();
    wait_for("the metric", LIMIT, || host.metric("mailtap_tap_lost_lines_total").as_deref() == Some("9"));
    // Saved at least once, so that the next run goes on after a cursor; what came since is read again.
    wait_for("a checkpoint", LIMIT, || {
        host.metric("mailtap_tap_checkpoints_total").is_some_and(|count| count != "0")
    });
    let second = messages(&mut host);
    add_to_journal(&journal, &second);
    host.assert_each_once();
    tap.kill();
    let third = messages(&mut host);
    add_to_journal(&journal, &third);
    let mut tap = start(&host);
    host.assert_each_once();
    assert_eq!(tap.stop(), Some(0));
}

/// The most memory a process has had, in KiB.
fn peak(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// A stream of lines that have nothing to do with tracked mail: 24 MiB, or 1 GiB in the long form.
#[test]
fn a_log_of_unrelated_lines_takes_no_memory() {
    let host = Host::new(&[]);
    let mut tap = host
        .command()
        .args(["tap", "--once", "--stdout", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = std::io::BufWriter::new(tap.stdin.take().unwrap());
    let (mut bytes, mut number, mut highest) = (0_u64, 0_u64, 0);
    let size: u64 = if long() { 1 << 30 } else { 24 << 20 };
    let begun = Instant::now();
    while bytes < size {
        number += 1;
        let id = format!("{:05X}{:07X}", number % 0xF_FFFF, number);
        let mut text = String::new();
        for (daemon, message) in [
            ("smtpd", format!("{id}: client=c{number}.example.net[192.0.2.1]")),
            ("cleanup", format!("{id}: message-id=<{number}@host{number}.example.net>")),
            ("qmgr", format!("{id}: from=<s{number}@d{number}.example>, size=1, nrcpt=1 (queue active)")),
            (
                "smtp",
                format!(
                    "{id}: to=<r{number}@d{number}.example>, relay=mx{number}.example[192.0.2.1]:25, delay=1, delays=1/0/0/0, dsn=4.4.1, status=deferred (connect to x: Connection refused)"
                ),
            ),
            (
                "smtp",
                format!(
                    "Trusted TLS connection established to mx{number}.example[192.0.2.1]:25: TLSv1.3 with cipher X"
                ),
            ),
            (
                "smtpd",
                format!("NOQUEUE: reject: RCPT from x[192.0.2.1]: 550 5.1.1 <a{number}@b>: x; from=<> to=<>"),
            ),
        ] {
            text += &format!(
                "Nov 23 16:25:11 h{number} postfix-{}/{daemon}[{number}]: {message}\n",
                number % 1_000
            );
        }
        text += &format!("Nov 23 16:25:11 mx sshd[{number}]: something else {number}\n");
        stdin.write_all(text.as_bytes()).unwrap();
        bytes += text.len() as u64;
        if number % 5_000 == 0 {
            // A line that does not end for a while.
            stdin.write_all(&[b'x'; 1 << 20]).unwrap();
            bytes += 1 << 20;
            highest = highest.max(peak(tap.id()).unwrap_or_default());
        }
    }
    stdin.flush().unwrap();
    highest = highest.max(peak(tap.id()).unwrap_or_default());
    drop(stdin);
    let output = tap.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", harness::said(&output));
    println!("{} MiB in {:?}: {} KiB of memory at the most", bytes >> 20, begun.elapsed(), highest);
    assert!(highest > 0 && highest < 64 * 1024, "{highest} KiB");
    assert!(harness::said(&output).contains(" 0 events"), "{}", harness::said(&output));
}
