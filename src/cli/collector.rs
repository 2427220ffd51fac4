//! `mailtap collector`: a strict stand-in for GA4, and a reader of what it recorded.
//!
//! - Layer: cli
//! - Takes: an address, a record file, a fault mode; needs no configuration.
//! - Gives: a server that judges requests as GA4's documentation says; a table of what it accepted.
//! - On failure: exit code 64 for a fault mode that is not known, 66 for a record file that can't be read.
//! - See: `docs/collector.md`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Subcommand, ValueEnum};

use super::exit::{Exit, Failure, OrExit, Result};
use super::print;
use super::terminal::table;
use crate::collector::fault::FaultMode;
use crate::collector::report::{self, Renamed};
use crate::collector::{self, Settings, judge};
use crate::config::units;
use crate::identity::Timestamp;
use crate::relay::map::PARAMS;
use crate::service::process::{self, Plan, Role};
use crate::telemetry;

/// Stand in for GA4: a strict collector for tests and staging.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  mailtap collector --listen 127.0.0.1:8026 --record events.jsonl
  mailtap collector --listen 127.0.0.1:8026 --fail 503:0.2       a fifth of the requests fails
  mailtap collector report events.jsonl
  mailtap collector --tls-cert cert.pem --tls-key key.pem        HTTPS, HTTP/2 if the client can
  curl -d reset:every=10 http://127.0.0.1:8026/collector/fail    change the fault mode while it runs

Fault modes: none, a status from 400 to 599, hang-before, hang-after, reset, slow; each with :SHARE or :every=N."
)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Where to listen.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8026", value_parser = units::address)]
    listen: SocketAddr,
    /// Record every request here, as JSON lines.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Speak TLS with this certificate chain (PEM): HTTP/2 and HTTP/1.1 by ALPN.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Misbehave.
    #[arg(long, value_name = "MODE", default_value = "none")]
    fail: FaultMode,
    /// How strict /debug/mp/collect is where a request does not say.
    #[arg(long, value_enum, default_value = "relaxed")]
    behaviour: Behaviour,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Behaviour {
    /// As production: too much is ignored.
    Relaxed,
    /// As Google recommends for tests: too much is an error.
    Enforce,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the events of a record file as a table
    Report {
        /// The record file.
        file: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// A parameter that [ga4.parameters] gives another name: campaign_id=mail_campaign. May come again.
        #[arg(long, value_name = "OURS=NAME", value_parser = renamed)]
        param: Vec<(String, String)>,
    },
}

fn renamed(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((ours, name)) if PARAMS.contains(&ours) && !name.is_empty() => {
            Ok((ours.to_owned(), name.to_owned()))
        }
        _ => {
            Err("expected one of mailtap's parameters and its name in GA4, like campaign_id=mail_campaign"
                .into())
        }
    }
}

impl Args {
    pub(super) fn run(self) -> Result {
        if let Some(Command::Report { file, json, param }) = self.command {
            return show(&file, json, &param.into_iter().collect());
        }
        telemetry::start_logs("info", telemetry::Format::Auto).or_exit(Exit::Software)?;
        let metrics = telemetry::start_metrics().or_exit(Exit::Software)?;
        let tls = self.tls_cert.zip(self.tls_key);
        let settings = Settings {
            tls: tls.map(|(certificate, key)| collector::Tls { certificate, key }),
            listen: self.listen,
            record: self.record,
            fault: self.fail,
            behaviour: match self.behaviour {
                Behaviour::Relaxed => judge::Behaviour::Relaxed,
                Behaviour::Enforce => judge::Behaviour::Enforce,
            },
        };
        let role = Role::new("collector", move |life| {
            collector::run(settings, life, |address| {
                tracing::info!(%address, "collector: POST /mp/collect, POST /debug/mp/collect, GET /collector/summary");
            })
        });
        let plan = Plan {
            admin: None,
            takes_over: false,
            metrics,
            drain: Duration::from_secs(5),
            refresh: Box::new(|_| {}),
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().build().or_exit(Exit::Software)?;
        runtime.block_on(process::run(vec![role], plan)).or_exit(Exit::Unavailable)
    }
}

fn show(file: &Path, json: bool, renamed: &Renamed) -> Result {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::new(Exit::NoInput, format!("{}: {error}", file.display())))?;
    let report = report::report_renamed(&text, renamed);
    if json {
        return print(serde_json::to_string(&report).or_exit(Exit::Software)? + "\n");
    }
    let rows: Vec<Vec<String>> = report
        .rows
        .iter()
        .map(|row| {
            let time = Timestamp::from_micros(row.time_micros / 1_000_000 * 1_000_000).to_string();
            let (event, campaign, message) = (row.event.clone(), row.campaign.clone(), row.message.clone());
            vec![time, event, campaign, message, row.client.clone(), row.outcome.clone(), row.link.clone()]
        })
        .collect();
    print(table(&["time", "event", "campaign", "message", "client", "outcome", "link"], &rows))?;
    print(format!(
        "{} events, {} of them again, {} lines not readable\n",
        rows.len(),
        report.duplicates,
        report.unreadable
    ))?;
    if rows.is_empty() || report.rows.iter().any(|row| !row.campaign.is_empty()) {
        return Ok(());
    }
    let name = renamed.get("campaign_id").map_or("campaign_id", String::as_str);
    print(format!(
        "note: no event has the parameter {name}; if [ga4.parameters] renames it: --param campaign_id=NAME\n"
    ))
}
