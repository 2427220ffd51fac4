//! Debian's sendmail(8) in front of the milter, as a second MTA beside Postfix.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::letters::{Fate, Kind, fate, letter, number};
use harness::session::Session;
use harness::{Daemon, Options, SENDER, Site, free_ports, long, repository, wait_for};

/// There is none to be had: nothing is checked, unless all tests, or their long forms, were asked for by root.
const UNAVAILABLE: i32 = 69;

struct Sendmail {
    site: Site,
    port: u16,
    _daemon: Daemon,
}

/// A site whose milter listens on TCP, and sendmail in the place of the relaying Postfix.
fn start(flag: &str) -> Option<Sendmail> {
    let [milter, port] = free_ports::<2>();
    let listen = format!("listen = \"inet:127.0.0.1:{milter}\"\n#listen = \"unix:");
    let changes = vec![("listen = \"unix:", listen)];
    let site = Site::start(&Options { milter_only: true, changes, ..Options::default() });
    let mut command = Command::new(repository().join("tests/lib/sendmail"));
    command.args(["start", "--flag", flag, "--port", &port.to_string()]);
    command.args(["--relayhost", &format!("127.0.0.1:{}", site.mx)]);
    command.args(["--milter", &format!("127.0.0.1:{milter}")]);
    command.args(["--owner", &std::process::id().to_string()]);
    command.arg("--dir").arg(site.dir.join("sendmail"));
    command.arg("--cache").arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("sendmail"));
    let mut daemon = site.daemon("sendmail", &mut command);
    let end = Instant::now() + Duration::from_secs(120);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if let Some(code) = daemon.exit_code() {
            let log = site.log("sendmail");
            // Sendmail can be run by root alone, and tests/run is everybody's.
            let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
            let required = is_root && std::env::var_os("MAILTAP_TEST_REQUIRED").is_some();
            let may_lack = code == UNAVAILABLE && !long() && !required;
            assert!(may_lack, "exit code {code}: {log}");
            eprintln!("not checked: {log}");
            return None;
        }
        assert!(Instant::now() < end, "sendmail does not listen: {}", site.log("sendmail"));
        std::thread::sleep(Duration::from_millis(50));
    }
    Some(Sendmail { site, port, _daemon: daemon })
}

impl Sendmail {
    fn send(&self, original: &str) -> String {
        harness::smtp(self.port, SENDER, &["anna@example.net"], original)
    }

    /// What became of the letters, by number, once so many have come.
    fn fates(&self, kinds: &[Kind], count: usize) -> Vec<(usize, Fate)> {
        wait_for("delivery", Duration::from_secs(60), || self.site.mail_files("anna").len() >= count);
        let mut fates = Vec::new();
        for file in self.site.mail_files("anna") {
            let delivered = fs::read_to_string(file).unwrap();
            let number = number(&delivered).unwrap();
            let original = letter(number, kinds[number]);
            fates.push((number, fate(&original, &delivered, &self.site.tracking_url()).unwrap()));
        }
        fates.sort_unstable();
        fates
    }
}

#[test]
fn messages_of_every_size_are_rewritten_and_wait_for_the_milter() {
    let Some(mut sendmail) = start("T") else { return };
    let kinds = [
        Kind::Html(1_000),
        Kind::Html(70_000),
        Kind::Html(300_000),
        Kind::Attachment(5_000_000),
        Kind::Html(2_000),
    ];
    let mut session = Session::open(sendmail.port).unwrap();
    for (number, kind) in kinds[..4].iter().enumerate() {
        let begun = [format!("MAIL FROM:<{SENDER}>"), "RCPT TO:<news@shop.example>".to_owned()];
        assert!(session.commands(&begun[..=number % 2]).unwrap().starts_with("250 "));
        assert!(session.command("RSET").unwrap().starts_with("250 "));
        let answer = session.send(SENDER, &["anna@example.net"], &letter(number, *kind)).unwrap();
        assert!(answer.starts_with("250 "), "{answer}");
    }
    session.command("QUIT").unwrap();

    sendmail.site.mailtap.as_mut().unwrap().kill();
    let last = letter(4, kinds[4]);
    let answer = sendmail.send(&last);
    assert!(answer.starts_with('4'), "{answer}");
    sendmail.site.start_mailtap();
    assert!(sendmail.send(&last).starts_with("250 "));
    let expected: Vec<_> = (0..5).map(|number| (number, Fate::Rewritten)).collect();
    assert_eq!(sendmail.fates(&kinds, 5), expected);
}

#[test]
fn without_the_milter_mail_goes_on_as_it_came() {
    let Some(mut sendmail) = start("") else { return };
    let kinds = [Kind::Html(20_000); 3];
    assert!(sendmail.send(&letter(0, kinds[0])).starts_with("250 "));
    sendmail.site.mailtap.as_mut().unwrap().kill();
    assert!(sendmail.send(&letter(1, kinds[1])).starts_with("250 "));
    sendmail.site.start_mailtap();
    assert!(sendmail.send(&letter(2, kinds[2])).starts_with("250 "));
    let expected = [(0, Fate::Rewritten), (1, Fate::AsItCame), (2, Fate::Rewritten)];
    assert_eq!(sendmail.fates(&kinds, 3), expected);
}
