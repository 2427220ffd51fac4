//! `mailtap bounce`: reads one returned message, as a pipe(8) transport or by hand.
//!
//! - Layer: cli
//! - Takes: a DSN, a complaint or any other message on standard input.
//! - Gives: events in the spool; with `--stdout` events as JSON lines, and nothing else changed.
//! - On failure: exit code 75 where events could not be stored: Postfix keeps the message and tries again. A broken
//!   configuration, a wrong command line and a defect of ours are 75 too, so that no report is returned to its sender.
//! - See: pipe(8), `docs/postfix.md`.

use std::ffi::OsString;
use std::io::Read;

use super::assemble;
use super::exit::{Exit, Failure, OrExit, Result};
use super::print;
use crate::bounce::{self, MAX_MESSAGE_BYTES, Verdict};
use crate::config::Config;
use crate::queue::Publisher;
use crate::service::clock;
use crate::telemetry;

/// Read one returned message from standard input, as a pipe(8) transport.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mailtap bounce --stdout < returned.eml      what would be recorded?
  master.cf: mailtap-bounce unix - n n - 4 pipe flags=Rq user=mailtap argv=/usr/bin/mailtap bounce")]
pub(super) struct Args {
    /// Print events as JSON lines, and store nothing.
    #[arg(long)]
    stdout: bool,
}

impl Args {
    /// Whatever goes wrong before the message is judged, Postfix must keep it: 75, also for a panic, on whose 101 it would
    /// return the report to its sender.
    pub(super) fn run(self, load: impl FnOnce() -> Result<Config>) -> Result {
        let run = || {
            let config = load().map_err(later)?;
            self.read(&config)
        };
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or_else(|_| {
            Err(Failure::new(Exit::TempFail, "a defect of mailtap: please report the panic above"))
        })
    }

    fn read(self, config: &Config) -> Result {
        telemetry::start_logs(&config.raw.log.level, config.log_format).or_exit(Exit::TempFail)?;
        let mut message = Vec::new();
        let mut input = std::io::stdin().lock();
        input.by_ref().take(MAX_MESSAGE_BYTES as u64).read_to_end(&mut message).or_exit(Exit::TempFail)?;
        // Postfix must be able to write all of it.
        std::io::copy(&mut input, &mut std::io::sink()).or_exit(Exit::TempFail)?;
        let reader = assemble::reader(config).map_err(later)?;
        if self.stdout {
            return match reader.read(&message, clock::now()) {
                Verdict::Events(events) => {
                    print(events.iter().map(|event| event.to_json() + "\n").collect::<String>())
                }
                Verdict::Known => says("known from the log of our own host"),
                Verdict::NotAReport(why) | Verdict::Foreign(why) => says(why),
            };
        }
        let spool = assemble::spool(config).map_err(later)?;
        let publisher: Publisher = std::sync::Arc::new(spool);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(Exit::TempFail)?;
        match runtime.block_on(bounce::run_once(&message, &reader, &publisher, clock::now())) {
            bounce::Exit::TryAgain => Err(Failure::silent(Exit::TempFail)),
            bounce::Exit::Stored(_) | bounce::Exit::NotOurs(_) => Ok(()),
        }
    }
}

fn later(failure: Failure) -> Failure {
    Failure { exit: Exit::TempFail, ..failure }
}

/// Whether a command line is one of `mailtap bounce`, even a wrong one.
pub(super) fn is_asked_for(arguments: impl IntoIterator<Item = OsString>) -> bool {
    let mut arguments = arguments.into_iter().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--config" || argument == "-c" {
            arguments.next();
        } else if !argument.to_string_lossy().starts_with('-') {
            return argument == "bounce";
        }
    }
    false
}

fn says(why: &str) -> Result {
    use std::io::Write;
    writeln!(anstream::stderr(), "nothing to record: {why}").or_exit(Exit::Io)
}
