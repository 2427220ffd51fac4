//! An entry of the journal, as `journalctl -o json` writes it.
//!
//! - Layer: decision
//! - Takes: one line of JSON.
//! - Gives: `JournalLine`: the parts of a log line, the cursor, and how many entries journald says it dropped.
//! - On failure: `None` for what is no entry.
//! - Limits: fields that an entry holds twice, or that are too long for journalctl, count as absent.
//! - See: systemd.journal-fields(7), "Journal JSON Format" of systemd; journald.conf(5), `RateLimitBurst`.

use serde::Deserialize;

use super::line::Line;
use super::loss::{Loss, suppressed};
use super::time::LineTime;
use crate::identity::Timestamp;

/// The message id of journald's "Suppressed N messages from UNIT".
pub const DROPPED_MESSAGE_ID: &str = "a596d6fe7bfa4994828e72309e95d61e";

/// An entry of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalLine {
    /// Where reading goes on after this entry.
    pub cursor: String,
    /// Microseconds since 1970, as text: what event ids are made of.
    time_text: String,
    host: Vec<u8>,
    tag: Vec<u8>,
    pid: Vec<u8>,
    message: Vec<u8>,
    is_dropped_notice: bool,
    dropped: Option<u64>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "__CURSOR")]
    cursor: Field,
    #[serde(rename = "__REALTIME_TIMESTAMP")]
    time: Field,
    #[serde(rename = "_HOSTNAME", default)]
    host: Field,
    #[serde(rename = "SYSLOG_IDENTIFIER", default)]
    tag: Field,
    #[serde(rename = "SYSLOG_PID", default)]
    syslog_pid: Field,
    #[serde(rename = "_PID", default)]
    pid: Field,
    #[serde(rename = "MESSAGE", default)]
    message: Field,
    #[serde(rename = "MESSAGE_ID", default)]
    message_id: Field,
    #[serde(rename = "N_DROPPED", default)]
    dropped: Field,
}

/// Text, or the numbers of the bytes of what is not UTF-8; anything else counts as absent.
#[derive(Deserialize, Default)]
#[serde(untagged)]
enum Field {
    Text(String),
    Bytes(Vec<u8>),
    Other(serde::de::IgnoredAny),
    #[default]
    Absent,
}

impl Field {
    fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Text(text) => text.into_bytes(),
            Self::Bytes(bytes) => bytes,
            Self::Other(_) | Self::Absent => Vec::new(),
        }
    }

    fn into_text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

impl JournalLine {
    /// The entry of a line of JSON.
    #[must_use]
    pub fn parse(json: &[u8]) -> Option<Self> {
        let entry: Entry = serde_json::from_slice(json).ok()?;
        let syslog_pid = entry.syslog_pid.into_bytes();
        Some(Self {
            cursor: entry.cursor.into_text()?,
            time_text: entry.time.into_text()?,
            host: entry.host.into_bytes(),
            tag: entry.tag.into_bytes(),
            pid: if syslog_pid.is_empty() { entry.pid.into_bytes() } else { syslog_pid },
            message: entry.message.into_bytes(),
            is_dropped_notice: entry.message_id.into_text().as_deref() == Some(DROPPED_MESSAGE_ID),
            dropped: entry.dropped.into_text().and_then(|count| count.parse().ok()),
        })
    }

    /// The line that a daemon of Postfix logged, if one did.
    #[must_use]
    pub fn line(&self) -> Option<Line<'_>> {
        let time = Timestamp::from_micros(self.time_text.parse().ok()?);
        let time = LineTime::exact(self.time_text.as_bytes(), time);
        Line::from_parts(time, &self.host, &self.tag, &self.pid, &self.message)
    }

    /// How many entries journald says it dropped, and whose: at least one where it does not say the number.
    #[must_use]
    pub fn dropped(&self) -> Option<Loss<'_>> {
        let said = suppressed(&self.message);
        let lines = || self.dropped.or_else(|| Some(said?.lines)).unwrap_or(1);
        self.is_dropped_notice.then(|| Loss { lines: lines(), unit: said.and_then(|loss| loss.unit) })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_line() {
        let json = br#"{"__CURSOR":"s=1;i=2","__REALTIME_TIMESTAMP":"1795453092917912","_HOSTNAME":"mx","_PID":"7",
            "SYSLOG_IDENTIFIER":"postfix/smtp","SYSLOG_PID":"42","MESSAGE":"A1B2C3D4: removed","X":["a","b"],"Y":null}"#;
        let entry = JournalLine::parse(json).unwrap();
        let line = entry.line().unwrap();
        assert_eq!(
            (line.host, line.instance, line.daemon, line.pid),
            (&b"mx"[..], &b"postfix"[..], &b"smtp"[..], &b"42"[..])
        );
        assert_eq!((line.message, entry.cursor.as_str()), (&b"A1B2C3D4: removed"[..], "s=1;i=2"));
        assert_eq!(entry.dropped(), None);
    }

    #[test]
    fn bytes_and_absence_are_borne() {
        let entry = |fields: &str| {
            JournalLine::parse(
                format!(r#"{{"__CURSOR":"c","__REALTIME_TIMESTAMP":"1","SYSLOG_IDENTIFIER":"postfix/smtp"{fields}}}"#).as_bytes(),
            )
            .unwrap()
        };
        assert_eq!(entry(r#","MESSAGE":[65,255]"#).line().unwrap().message, b"A\xff");
        assert_eq!(entry(r#","MESSAGE":null,"SYSLOG_PID":["1","2"]"#).line().unwrap().message, b"");
        assert_eq!(entry("").line().unwrap().pid, b"");
        assert_eq!(JournalLine::parse(b"{}"), None);
        assert_eq!(JournalLine::parse(b"-- no entries --"), None);
    }

    #[test]
    fn what_journald_dropped_is_known() {
        let json = format!(
            r#"{{"__CURSOR":"c","__REALTIME_TIMESTAMP":"1","SYSLOG_IDENTIFIER":"systemd-journald",
            "MESSAGE_ID":"{DROPPED_MESSAGE_ID}","N_DROPPED":"123","MESSAGE":"Suppressed 123 messages from x.service"}}"#
        );
        let entry = JournalLine::parse(json.as_bytes()).unwrap();
        let loss = Loss { lines: 123, unit: Some(b"x.service") };
        assert_eq!((entry.dropped(), entry.line()), (Some(loss), None));
    }
}
