//! Reads the journal, through journalctl.
//!
//! - Layer: edge
//! - Takes: filters, and the cursor of the last run.
//! - Gives: a child process that writes entries as JSON to a pipe, and ends with this process.
//! - On failure: `io::Error` where it can't be started.
//! - See: journalctl(1), systemd.journal-fields(7).

use std::io;
use std::process::Stdio;

use tokio::process::{Child, Command};

use super::journal_line::DROPPED_MESSAGE_ID;

/// Which entries are read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JournalFilter {
    /// Units, like `postfix@-.service`.
    pub units: Vec<String>,
    /// Identifiers, like `postfix/smtp`.
    pub identifiers: Vec<String>,
}

/// The arguments: the entries of the filter, or of the mail facility if there is none, and journald's own notices of
/// what it dropped.
pub(super) fn arguments(filter: &JournalFilter, cursor: Option<&str>) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["--output=json", "--all", "--quiet", "--no-pager", "--follow", "--no-tail"]
            .map(str::to_owned)
            .into();
    if let Some(cursor) = cursor {
        arguments.push(format!("--after-cursor={cursor}"));
    }
    let units = filter.units.iter().map(|unit| format!("_SYSTEMD_UNIT={unit}"));
    let identifiers = filter.identifiers.iter().map(|identifier| format!("SYSLOG_IDENTIFIER={identifier}"));
    let mut matches: Vec<String> = units.chain(identifiers).collect();
    if matches.is_empty() {
        matches.push("SYSLOG_FACILITY=2".to_owned());
    }
    matches.push(format!("MESSAGE_ID={DROPPED_MESSAGE_ID}"));
    for (index, one) in matches.into_iter().enumerate() {
        if index > 0 {
            arguments.push("+".to_owned());
        }
        arguments.push(one);
    }
    arguments
}

/// Starts journalctl; its standard output is piped.
pub(super) fn start(program: &str, filter: &JournalFilter, cursor: Option<&str>) -> io::Result<Child> {
    Command::new(program)
        .args(arguments(filter, cursor))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_is_alternatives() {
        let filter =
            JournalFilter { units: vec!["a.service".into()], identifiers: vec!["postfix/smtp".into()] };
        let all = arguments(&filter, Some("s=1;i=2"));
        let tail: Vec<_> = all.iter().skip(6).map(String::as_str).collect();
        let dropped = format!("MESSAGE_ID={DROPPED_MESSAGE_ID}");
        assert_eq!(
            tail,
            [
                "--after-cursor=s=1;i=2",
                "_SYSTEMD_UNIT=a.service",
                "+",
                "SYSLOG_IDENTIFIER=postfix/smtp",
                "+",
                &dropped
            ]
        );
        assert_eq!(
            arguments(&JournalFilter::default(), None).get(6).map(String::as_str),
            Some("SYSLOG_FACILITY=2")
        );
    }
}
