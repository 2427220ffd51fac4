//! The header of a log line: time, host, `syslog_name/daemon[pid]:`, and the message after it.
//!
//! - Layer: decision
//! - Takes: one line of bytes, without its end.
//! - Gives: `Line`, borrowing from it; nothing for a line that no Postfix daemon wrote.
//! - On failure: `None`: a log holds many other lines, and they are no errors.
//! - Limits: allocates nothing; bytes that are not UTF-8 pass through.
//! - See: RFC 3164 section 4.1, RFC 5424 section 6, Postfix `src/global/maillog_client.c`, `postlogd(8)`.

#![warn(clippy::indexing_slicing)]

use memchr::{memchr, memrchr};

use super::time::LineTime;

/// A line that a Postfix daemon logged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line<'a> {
    /// When, as far as the line says.
    pub time: LineTime<'a>,
    /// The host as the line names it; empty where it does not.
    pub host: &'a [u8],
    /// Postfix's `syslog_name`: `postfix`, `postfix-out`, `postfix/submission`.
    pub instance: &'a [u8],
    /// The daemon: `smtp`, `qmgr`, `cleanup`, … and any other name a transport was given.
    pub daemon: &'a [u8],
    /// The process id; empty where the line has none.
    pub pid: &'a [u8],
    /// How often the logger says this line came; 1 unless it collapsed repetitions.
    pub repeated: u32,
    /// What the daemon said.
    pub message: &'a [u8],
}

/// The longest time of RFC 3164: `Nov 23 16:25:11`.
const CIVIL_BYTES: usize = 15;

impl<'a> Line<'a> {
    /// The line, in any of the forms that syslog daemons and `postlogd` write; `None` unless its tag is
    /// `something/daemon`.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let line = if line.first()? == &b'<' { after_priority(line)? } else { line };
        if line.first()?.is_ascii_digit() {
            return match line.strip_prefix(b"1 ") {
                Some(rest) => Self::rfc5424(rest),
                None => Self::iso(line),
            };
        }
        let fraction = match line.get(CIVIL_BYTES) {
            Some(b'.') => {
                line.get(CIVIL_BYTES + 1..)?.iter().take_while(|byte| byte.is_ascii_digit()).count() + 1
            }
            _ => 0,
        };
        let (time, rest) = line.split_at_checked(CIVIL_BYTES + fraction)?;
        let time = LineTime::civil(time)?;
        Self::host_and_tag(time, rest.strip_prefix(b" ")?)
    }

    /// A line whose header came apart already, as from the journal.
    #[must_use]
    pub fn from_parts(
        time: LineTime<'a>,
        host: &'a [u8],
        tag: &'a [u8],
        pid: &'a [u8],
        message: &'a [u8],
    ) -> Option<Self> {
        let slash = memrchr(b'/', tag)?;
        let (instance, daemon) = tag.split_at_checked(slash)?;
        let daemon = daemon.get(1..)?;
        if instance.is_empty() || daemon.is_empty() {
            return None;
        }
        let (repeated, message) = unfold_repetition(without_solaris_id(message));
        Some(Self { time, host, instance, daemon, pid, repeated, message })
    }

    fn iso(line: &'a [u8]) -> Option<Self> {
        let (time, rest) = split_word(line)?;
        Self::host_and_tag(LineTime::iso(time)?, rest)
    }

    fn host_and_tag(time: LineTime<'a>, rest: &'a [u8]) -> Option<Self> {
        let (host, rest) = split_word(rest)?;
        // The tag ends at the first of `[` and `:`; neither can be part of a syslog_name in use.
        let tag_end = rest.iter().position(|byte| matches!(byte, b'[' | b':' | b' '))?;
        let (tag, rest) = rest.split_at_checked(tag_end)?;
        let (pid, rest) = match rest.strip_prefix(b"[") {
            Some(rest) => {
                let end = memchr(b']', rest)?;
                let (pid, rest) = rest.split_at_checked(end)?;
                (pid, rest.get(1..)?)
            }
            None => (&b""[..], rest),
        };
        let message = rest.strip_prefix(b":")?;
        Self::from_parts(time, host, tag, pid, message.strip_prefix(b" ").unwrap_or(message))
    }

    /// `TIME HOST APP PID MSGID SD MSG`, after the priority and the version.
    fn rfc5424(rest: &'a [u8]) -> Option<Self> {
        let (time, rest) = split_word(rest)?;
        let (host, rest) = split_word(rest)?;
        let (tag, rest) = split_word(rest)?;
        let (pid, rest) = split_word(rest)?;
        let (_, rest) = split_word(rest)?;
        let message = after_structured_data(rest)?;
        let nil = |field: &'a [u8]| if field == b"-" { &b""[..] } else { field };
        let time = if time == b"-" { LineTime::unknown(time) } else { LineTime::iso(time)? };
        Self::from_parts(time, nil(host), tag, nil(pid), message)
    }
}

/// Up to the next blank, and what follows it.
fn split_word(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (word, rest) = bytes.split_at_checked(memchr(b' ', bytes)?)?;
    Some((word, rest.get(1..)?))
}

/// What follows `<22>`.
fn after_priority(line: &[u8]) -> Option<&[u8]> {
    let digits = line.get(1..)?.iter().take(4).position(|byte| *byte == b'>')?;
    line.get(digits + 2..)
}

fn after_structured_data(rest: &[u8]) -> Option<&[u8]> {
    let mut rest = rest;
    if let Some(nil) = rest.strip_prefix(b"-") {
        rest = nil;
    }
    while let Some(element) = rest.strip_prefix(b"[") {
        rest = element.get(end_of_element(element)? + 1..)?;
    }
    let message = rest.strip_prefix(b" ")?;
    Some(message.strip_prefix(b"\xef\xbb\xbf").unwrap_or(message))
}

/// The position of the `]` that ends an element; one within a quoted value is escaped (RFC 5424, 6.3.3).
fn end_of_element(element: &[u8]) -> Option<usize> {
    let mut escaped = false;
    element.iter().position(|byte| {
        let end = *byte == b']' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        end
    })
}

/// Solaris and its heirs put `[ID 197553 mail.info] ` before the text.
fn without_solaris_id(message: &[u8]) -> &[u8] {
    if !message.starts_with(b"[ID ") {
        return message;
    }
    memchr(b']', message).and_then(|end| message.get(end + 2..)).unwrap_or(message)
}

/// `message repeated 3 times: [ TEXT]`, as rsyslog writes with `$RepeatedMsgReduction on`.
fn unfold_repetition(message: &[u8]) -> (u32, &[u8]) {
    unfold(message).unwrap_or((1, message))
}

fn unfold(message: &[u8]) -> Option<(u32, &[u8])> {
    let (count, rest) = split_word(message.strip_prefix(b"message repeated ")?)?;
    let text = rest.strip_prefix(b"times: [")?.strip_suffix(b"]")?;
    let count = std::str::from_utf8(count).ok()?.parse().ok()?;
    Some((count, text.strip_prefix(b" ").unwrap_or(text)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parts(line: &str) -> Option<(String, String, String, String, String)> {
        let line = Line::parse(line.as_bytes())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Some((text(line.host), text(line.instance), text(line.daemon), text(line.pid), text(line.message)))
    }

    #[test]
    fn every_form_of_header_gives_the_same_parts() {
        let expected = ("mx", "postfix/submission", "smtpd", "506", "connect from unknown[127.0.0.1]");
        for header in [
            "Nov  3 16:25:11 mx postfix/submission/smtpd[506]: ",
            "Nov 03 16:25:11 mx postfix/submission/smtpd[506]: ",
            "<22>Nov  3 16:25:11 mx postfix/submission/smtpd[506]: ",
            "2026-11-03T16:25:11.123456+01:00 mx postfix/submission/smtpd[506]: ",
            "<22>2026-11-03T16:25:11Z mx postfix/submission/smtpd[506]: ",
            "<22>1 2026-11-03T16:25:11.1Z mx postfix/submission/smtpd 506 - - ",
            "1 2026-11-03T16:25:11.1Z mx postfix/submission/smtpd 506 - - ",
            "<22>1 - mx postfix/submission/smtpd 506 - - ",
            "Nov  3 16:25:11.123456 mx postfix/submission/smtpd[506]: ",
            "<22>Nov  3 16:25:11.1 mx postfix/submission/smtpd[506]: ",
            "<22>1 2026-11-03T16:25:11.1Z mx postfix/submission/smtpd 506 - [a b=\"c\\]\"][d] \u{feff}",
            "Nov  3 16:25:11 mx postfix/submission/smtpd[506]: [ID 197553 mail.info] ",
        ] {
            let (host, instance, daemon, pid, message) =
                parts(&format!("{header}connect from unknown[127.0.0.1]")).unwrap();
            assert_eq!((&*host, &*instance, &*daemon, &*pid, &*message), expected, "{header}");
        }
    }

    #[test]
    fn lines_of_others_are_none() {
        for other in [
            "",
            "\r",
            "<",
            "<22>",
            "Nov  3 16:25:11 mx kernel: [123] postfix/smtp[1]: x",
            "Nov  3 16:25:11 mx sshd[1]: x",
            "Nov  3 16:25:11",
            "Nov  3 16:25:11.",
            "Nov  3 16:25:11.1",
            "1 ",
            "2026-11-03T16:25:11Z",
            "Nov  3 16:25:11 mx /smtp[1]: x",
            "--- rsyslog restarted ---",
            "Nov  3 16:25:11 mx postfix/smtp[1",
        ] {
            assert_eq!(Line::parse(other.as_bytes()), None, "{other:?}");
        }
    }

    #[test]
    fn repetitions_are_unfolded() {
        let line =
            Line::parse(b"Nov  3 16:25:11 mx postfix/smtp[1]: message repeated 3 times: [ A: removed]")
                .unwrap();
        assert_eq!((line.repeated, line.message), (3, &b"A: removed"[..]));
    }
}
