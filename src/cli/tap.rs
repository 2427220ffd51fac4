//! `mailtap tap`: the log role, or one reading of given logs: for their events, or for what is known of their lines.
//!
//! - Layer: cli
//! - Takes: the configured source; with `--once --stdout` the files named, `-` for standard input.
//! - Gives: events in the spool; or events as JSON lines on standard output, and nothing else changed.
//! - On failure: exit code 66 for a file that can't be read.

use std::io::Write as _;
use std::path::PathBuf;

use serde_json::json;

use super::exit::{Exit, Failure, OrExit, Result};
use super::terminal::table;
use super::{assemble, print, roles};
use crate::config::Config;
use crate::service::clock;
use crate::tap::explain::Coverage;
use crate::tap::once::{self, Input};

/// Run the tap: turns Postfix's log into events.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mailtap tap                                            follow the configured log, as a daemon
  mailtap tap --once --stdout /var/log/mail.log          what events would this log give?
  mailtap tap --explain /var/log/mail.log*               how much of these logs is known, and what is not?
  journalctl -o short-iso -u 'postfix*' | mailtap tap --once --stdout -")]
pub(super) struct Args {
    /// Read to the end and stop.
    #[arg(long, requires = "stdout")]
    once: bool,
    /// Print events as JSON lines, and keep no state.
    #[arg(long, requires = "once")]
    stdout: bool,
    /// Tell what share of the lines is known, and the shapes of the others, without names or addresses; needs no
    /// configuration.
    #[arg(long, conflicts_with = "once")]
    explain: bool,
    /// With --explain: as JSON, for scripts.
    #[arg(long, requires = "explain")]
    json: bool,
    /// Logs to read, oldest first, packed (gzip, xz, bzip2, zstd) or not; `-` is standard input.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

impl Args {
    pub(super) fn run(self, load: impl FnOnce() -> Result<Config>) -> Result {
        if self.explain {
            return self.explain();
        }
        let config = &load()?;
        if !self.once {
            if !self.files.is_empty() {
                return Err(Failure::new(
                    Exit::Usage,
                    "files are read with --once --stdout, or with --explain",
                ));
            }
            return roles::run(config, roles::Which::Tap);
        }
        let inputs = self.inputs()?;
        let parts = assemble::tap_parts(config)?;
        let mut output = std::io::BufWriter::new(std::io::stdout().lock());
        let mut broken = None;
        let summary = once::once(inputs, parts, &config.raw.tap.syslog_names, clock::now(), &mut |event| {
            if broken.is_none() {
                broken = writeln!(output, "{}", event.to_json()).err();
            }
        });
        let flushed = output.flush().err();
        let summary = summary.map_err(|error| unread(&error))?;
        match broken.or(flushed) {
            Some(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                return Err(Failure::new(Exit::Io, error));
            }
            _ => {}
        }
        let counts = summary.counts;
        let text = format!(
            "{} lines: {} of Postfix, {} of a shape not known; {} events; {} references verified, {} not; \
             {} attempts without reference; {} lines left out by the logger\n",
            summary.lines,
            counts.lines,
            counts.unknown,
            counts.events,
            counts.refs,
            counts.unverified_refs,
            counts.attempts_without_ref,
            counts.lost_lines
        );
        anstream::stderr().write_all(text.as_bytes()).or_exit(Exit::Io)
    }
    /// Reads the files and tells what is known of their lines.
    fn explain(self) -> Result {
        let json = self.json;
        let coverage = once::explain(self.inputs()?).map_err(|error| unread(&error))?;
        print(if json { as_json(&coverage) } else { for_people(&coverage) })
    }

    fn inputs(self) -> Result<Vec<Input>> {
        if self.files.is_empty() {
            return Err(Failure::new(Exit::Usage, "name files to read, or - for standard input"));
        }
        let input = |path: PathBuf| {
            if path.as_os_str() == "-" {
                Input::Reader(Box::new(std::io::stdin()))
            } else {
                Input::File(path)
            }
        };
        Ok(self.files.into_iter().map(input).collect())
    }
}

fn unread(error: &once::OnceError) -> Failure {
    let why = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    Failure::new(Exit::NoInput, format!("{error}: {why}"))
}

fn as_json(coverage: &Coverage) -> String {
    let shapes: Vec<_> = coverage
        .shapes()
        .into_iter()
        .map(|shape| json!({ "shape": shape.text, "count": shape.count }))
        .collect();
    let object = json!({
        "lines": coverage.lines, "foreign": coverage.foreign, "postfix": coverage.postfix(),
        "relevant": coverage.relevant, "ignored": coverage.ignored, "unknown": coverage.unknown,
        "known_share": coverage.known_share(), "attempts": coverage.attempts, "references": coverage.references,
        "lost": coverage.lost, "unknown_shapes": shapes,
    });
    object.to_string() + "\n"
}

fn for_people(coverage: &Coverage) -> String {
    // Rounded down: 100 % means all.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 10,000")]
    let share = (coverage.known_share() * 10_000.0) as u64;
    let row = |name: &str, count: u64| vec![name.to_owned(), count.to_string()];
    let mut text = table(
        &["lines", "count"],
        &[
            row("all", coverage.lines),
            row("not of Postfix", coverage.foreign),
            row("of Postfix", coverage.postfix()),
            row("  about messages", coverage.relevant),
            row("    attempts to deliver", coverage.attempts),
            row("    references", coverage.references),
            row("  known, and passed over", coverage.ignored),
            row("  of a shape not known", coverage.unknown),
        ],
    );
    text += &format!("\n{}.{:02} % of the lines of Postfix are known\n", share / 100, share % 100);
    if coverage.lost > 0 {
        text += &format!("the logger left out {} lines\n", coverage.lost);
    }
    if coverage.attempts > 0 && coverage.references == 0 {
        text += "no reference is logged: for tracked mail main.cf needs\n  \
                 milter_header_checks = regexp:{{/^X-Mailtap-(Ref|Campaign):/ INFO}}\n";
    }
    let shapes: Vec<_> =
        coverage.shapes().into_iter().map(|shape| vec![shape.count.to_string(), shape.text]).collect();
    if !shapes.is_empty() {
        text += "\n";
        text += &table(&["count", "shape not known"], &shapes);
    }
    text
}
