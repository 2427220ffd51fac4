//! Postfix's log as the tap reads it: lines for messages that a milter has seen, and rotation.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use mailtap::service::clock;

use crate::harness::letters::Dice;

/// How many rotated logs stay.
const KEPT: usize = 6;

/// A log that is written to by one at a time.
pub struct Maillog {
    path: PathBuf,
    file: File,
    dice: Dice,
    left: usize,
    lines_a_file: usize,
    pub rotations: usize,
}

/// What Postfix says of one attempt to deliver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    Sent,
    Deferred,
    Bounced,
}

impl Maillog {
    /// Begins a log that is rotated about every so many lines.
    pub fn create(path: &Path, lines_a_file: usize, seed: u64) -> Self {
        let file = File::options().append(true).create(true).open(path).unwrap();
        let path = path.to_owned();
        Self { path, file, dice: Dice(seed), left: lines_a_file, lines_a_file, rotations: 0 }
    }

    /// What cleanup(8) and qmgr(8) say when a message has come.
    pub fn queued(&mut self, queue_id: &str, reference: &str, campaign: &str) {
        let about =
            "from unknown[127.0.0.1]; from=<news@shop.example> to=<x@example.net> proto=ESMTP helo=<x>:";
        self.line("smtpd", &format!("{queue_id}: client=unknown[127.0.0.1]"));
        self.line("cleanup", &format!("{queue_id}: message-id=<{queue_id}@shop.example>"));
        for (name, value) in [("Ref", reference), ("Campaign", campaign)] {
            let header = format!("header X-Mailtap-{name}: {value}");
            self.line("cleanup", &format!("{queue_id}: milter-header-info: {header} {about}"));
        }
        self.line("qmgr", &format!("{queue_id}: from=<news@shop.example>, size=900, nrcpt=1 (queue active)"));
    }

    /// What smtp(8) says of an attempt, and qmgr(8) of the end.
    pub fn attempt(&mut self, queue_id: &str, recipient: &str, status: Status) {
        let (dsn, status, said) = match status {
            Status::Sent => ("2.0.0", "sent", "(250 2.0.0 Ok: queued as 4jYBPZ46Gt)"),
            Status::Deferred => (
                "4.2.1",
                "deferred",
                "(host mx[192.0.2.1] said: 450 4.2.1 busy (in reply to RCPT TO command))",
            ),
            Status::Bounced => (
                "5.1.1",
                "bounced",
                "(host mx[192.0.2.1] said: 550 5.1.1 unknown (in reply to RCPT TO command))",
            ),
        };
        let (relay, delays) = ("relay=mx[192.0.2.1]:25", "delay=0.13, delays=0.05/0.03/0/0.05");
        self.line(
            "smtp",
            &format!("{queue_id}: to=<{recipient}>, {relay}, {delays}, dsn={dsn}, status={status} {said}"),
        );
        if dsn != "4.2.1" {
            self.line("qmgr", &format!("{queue_id}: removed"));
        }
    }

    fn line(&mut self, daemon: &str, text: &str) {
        if self.left == 0 {
            self.rotate();
        }
        self.left -= 1;
        let line = format!("{} relay1 postfix/{daemon}[1234]: {text}\n", clock::now());
        // A reader may find half a line.
        let (first, second) = line.split_at(if self.dice.below(8) == 0 { line.len() / 2 } else { 0 });
        self.file.write_all(first.as_bytes()).unwrap();
        if !first.is_empty() {
            std::thread::yield_now();
        }
        self.file.write_all(second.as_bytes()).unwrap();
    }

    #[allow(clippy::disallowed_methods, reason = "this is what logrotate does")]
    fn rotate(&mut self) {
        let numbered = |number: usize| self.path.with_file_name(format!("maillog.{number}"));
        for number in (1..KEPT).rev() {
            let _ = fs::rename(numbered(number), numbered(number + 1));
        }
        fs::rename(&self.path, numbered(1)).unwrap();
        self.file = File::options().append(true).create(true).open(&self.path).unwrap();
        self.left = self.lines_a_file / 2 + self.dice.below(self.lines_a_file);
        self.rotations += 1;
    }
}
