//! `mailtap classes print|test`: the rules that tell why a delivery failed.
//!
//! - Layer: cli
//! - Takes: what a server said, as it stands in Postfix's log or in a report.
//! - Gives: the built-in rules; the class of the reply, why, and which rule decided.
//! - On failure: exit code 78 for a rules file that can't be used.
//! - See: `docs/events.md`, "Why a delivery failed".

use clap::Subcommand;
use serde_json::json;

use super::exit::{Exit, Failure, Result};
use super::terminal::{CARE, DIM, paint};
use super::{assemble, print};
use crate::config::Config;
use crate::delivery::class::BUILT_IN;
use crate::delivery::{EnhancedCode, enhanced_code, smtp_code, spoken};

/// Look at the rules that tell why a delivery failed.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the built-in rules, with the form of a file of your own
    Print,
    /// Say what the rules make of a reply, and why
    #[command(after_help = "\
Examples:
  mailtap classes test '550 5.1.1 <ann@example.net>: User unknown'
  mailtap classes test 'host mx.example.net[192.0.2.1] said: 451 4.7.1 Try later (in reply to RCPT TO command)'
  mailtap classes test --dsn 4.4.3 'Host or domain name not found. Name service error for name=example.net'")]
    Test {
        /// What was said: the reply, or the text in brackets of Postfix's log line.
        #[arg(value_name = "TEXT")]
        text: String,
        /// The enhanced status code (`dsn=` in the log). Default: that of the reply.
        #[arg(long, value_name = "CODE")]
        dsn: Option<String>,
        /// The server (`relay=` in the log), to see its provider.
        #[arg(long, value_name = "HOST")]
        relay: Option<String>,
        /// As JSON, for scripts.
        #[arg(long)]
        json: bool,
    },
}

impl Args {
    pub(super) fn run(self, load: impl FnOnce() -> Result<Config>) -> Result {
        let Command::Test { text, dsn, relay, json } = self.command else {
            return print(BUILT_IN);
        };
        let config = load()?;
        let classifier = assemble::classifier(&config)?;
        let text = text.as_bytes();
        let dsn = match dsn {
            Some(code) => Some(EnhancedCode::parse(code.as_bytes()).ok_or_else(|| {
                Failure::new(Exit::Usage, format!("`{code}` is no enhanced status code, like 5.1.1"))
            })?),
            None => enhanced_code(text),
        };
        let smtp = smtp_code(text);
        let verdict = classifier.classify(smtp, dsn, text);
        let provider = relay.as_ref().and_then(|relay| config.providers.of(relay.as_bytes()));
        let (file, line) = match verdict.rule {
            Some(place) if place.built_in => (Some("built-in".to_owned()), Some(place.line)),
            Some(place) => (config.bounce_rules.map(|path| path.display().to_string()), Some(place.line)),
            None => (None, None),
        };
        if json {
            let object = json!({
                "class": verdict.class.as_str(), "reason": &**verdict.why, "rules": file, "line": line,
                "smtp_code": smtp, "dsn": dsn.map(|dsn| dsn.to_string()),
                "provider": provider.map(|word| word.to_string()),
            });
            return print(object.to_string() + "\n");
        }
        print(format!("class:  {}\nreason: {}\n", paint(CARE, verdict.class.as_str()), verdict.why))?;
        let rule = file.zip(line).map_or("none".to_owned(), |(file, line)| format!("{file}, line {line}"));
        let none = || "none".to_owned();
        let codes = format!(
            "SMTP {}, status {}",
            smtp.map_or_else(none, |code| code.to_string()),
            dsn.map_or_else(none, |dsn| dsn.to_string())
        );
        print(
            paint(
                DIM,
                &format!(
                    "rule:   {rule}\ncodes:  {codes}\nwords:  {}",
                    String::from_utf8_lossy(&spoken(text))
                ),
            ) + "\n",
        )?;
        match relay {
            Some(_) => print(format!("provider: {}\n", provider.map_or("none", |word| word))),
            None => Ok(()),
        }
    }
}
