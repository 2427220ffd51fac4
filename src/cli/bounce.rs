//! `mailtap bounce`: reads one returned message, as a pipe(8) transport or by hand.
//!
//! - Layer: cli
//! - Takes: a DSN, a complaint or any other message on standard input.
//! - Gives: events in the spool; with `--stdout` events as JSON lines, and nothing else changed.
//! - On failure: exit code 75 where events could not be stored: Postfix keeps the message and tries again. A broken
//!   configuration is 75 too, so that no report is returned to its sender.
//! - See: pipe(8), `docs/postfix.md`.

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
    pub(super) fn run(self, config: &Config) -> Result {
        telemetry::start_logs(&config.raw.log.level, config.log_format).or_exit(Exit::TempFail)?;
        let mut message = Vec::new();
        let mut input = std::io::stdin().lock();
        input.by_ref().take(MAX_MESSAGE_BYTES as u64).read_to_end(&mut message).or_exit(Exit::TempFail)?;
        // Postfix must be able to write all of it.
        std::io::copy(&mut input, &mut std::io::sink()).or_exit(Exit::TempFail)?;
        let reader =
            assemble::reader(config).map_err(|failure| Failure { exit: Exit::TempFail, ..failure })?;
        if self.stdout {
            return match reader.read(&message, clock::now()) {
                Verdict::Events(events) => {
                    print(events.iter().map(|event| event.to_json() + "\n").collect::<String>())
                }
                Verdict::Known => says("known from the log of our own host"),
                Verdict::NotAReport(why) | Verdict::Foreign(why) => says(why),
            };
        }
        let spool = assemble::spool(config).map_err(|failure| Failure { exit: Exit::TempFail, ..failure })?;
        let publisher: Publisher = std::sync::Arc::new(spool);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(Exit::TempFail)?;
        // A panic would end with 101, on which Postfix returns the report to its sender.
        let run = || runtime.block_on(bounce::run_once(&message, &reader, &publisher, clock::now()));
        let Ok(exit) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) else {
            return Err(Failure::new(Exit::TempFail, "a defect of mailtap: please report the panic above"));
        };
        match exit {
            bounce::Exit::TryAgain => Err(Failure::silent(Exit::TempFail)),
            bounce::Exit::Stored(_) | bounce::Exit::NotOurs(_) => Ok(()),
        }
    }
}

fn says(why: &str) -> Result {
    use std::io::Write;
    writeln!(anstream::stderr(), "nothing to record: {why}").or_exit(Exit::Io)
}
