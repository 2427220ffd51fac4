//! `mailtap bots print|test`: the rules that tell machines from people.
//!
//! - Layer: cli
//! - Takes: a request's user agent, address and headers.
//! - Gives: the catalogue; the verdict on the request, and what every rule said.
//! - On failure: exit code 78 for a rules file that can't be used.
//! - See: `docs/bots.md`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use serde_json::json;

use super::exit::{Exit, Failure, OrExit, Result};
use super::terminal::{CARE, DIM, GOOD, paint};
use super::{assemble_tracker, bots_replay, print};
use crate::config::{Config, units};
use crate::event::Machine;
use crate::identity::MessageId;
use crate::service::clock;
use crate::tracker;
use crate::tracker::machine::{Evidence, Finding, explain, judge};
use crate::tracker::request::{Method, Request};
use crate::tracker::rules::{CATALOGUE, Rules, Scope};

/// Look at the rules that tell machines from people.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the built-in catalogue, to copy and change
    Print,
    /// Say what the rules make of a request, and why
    #[command(after_help = "\
Examples:
  mailtap bots test --user-agent 'Mozilla/5.0' --ip 192.0.2.1 --scope open
  mailtap bots test --user-agent curl/8.0 --ip 192.0.2.1 --after 1s --header 'Purpose: prefetch'
  mailtap bots test --burst requests.jsonl")]
    Test {
        /// The User-Agent header; leave it out for a request without one.
        #[arg(long, value_name = "TEXT")]
        user_agent: Option<String>,
        /// The client's address.
        #[arg(long, value_name = "ADDRESS", required_unless_present = "burst")]
        ip: Option<IpAddr>,
        /// A click or an open.
        #[arg(long, value_enum, default_value = "click")]
        scope: Kind,
        /// How long after the message was sent: 500ms, 30s, 2h.
        #[arg(long, value_name = "TIME", value_parser = units::duration)]
        after: Option<Duration>,
        /// A further header; may be repeated.
        #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header)]
        headers: Vec<(String, String)>,
        /// Instead: requests and deliveries one after the other, one JSON object a line.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["user_agent", "ip", "after", "headers"])]
        burst: Option<PathBuf>,
        /// As JSON, for scripts.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Click,
    Open,
}

impl Args {
    pub(super) fn run(self, load: impl FnOnce() -> Result<Config>) -> Result {
        let Command::Test { user_agent, ip, scope, after, headers, burst, json } = self.command else {
            return print(CATALOGUE);
        };
        let rules = rules(&load()?)?;
        if let Some(path) = burst {
            return bots_replay::run(&path, &rules, json);
        }
        // Clap asks for it where there is no file.
        let ip = ip.unwrap_or(IpAddr::from([0, 0, 0, 0])).to_canonical();
        let agents = headers.iter().filter(|(name, _)| name == "user-agent").count();
        if agents + usize::from(user_agent.is_some()) > 1 {
            return Err(Failure::new(
                Exit::Usage,
                "a request has one User-Agent: --user-agent or --header, once",
            ));
        }
        let mut owned: Vec<(String, String)> =
            user_agent.map(|agent| ("user-agent".to_owned(), agent)).into_iter().collect();
        owned.extend(headers);
        let headers: Vec<(&str, &[u8])> =
            owned.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        let (method, is_client_named) = (Method::Get, true);
        let request = Request { method, path: "/", headers: &headers, client: ip, is_client_named };
        let scope = match scope {
            Kind::Click => Scope::Click,
            Kind::Open => Scope::Open,
        };
        let now = clock::now();
        let message = after.map(|after| MessageId::new(now.minus(after), 0));
        let evidence = Evidence::new(request, scope, message.as_ref(), now, &rules);
        let verdict = judge(&evidence, &rules);
        if json {
            let (network, agent) = (rules.network_of(ip), evidence.agent(&rules));
            let rules: Vec<_> = explain(&evidence, &rules)
                .into_iter()
                .map(|(rule, finding)| {
                    let (says, condition) = words(finding);
                    json!({ "rule": rule.name, "says": says, "condition": condition })
                })
                .collect();
            let object = json!({ "machine": verdict.machine, "rule": verdict.rule, "network": network, "agent": agent, "rules": rules });
            return print(object.to_string() + "\n");
        }
        let style = if verdict.machine == Machine::No { GOOD } else { CARE };
        let rule = verdict.rule.map(|rule| format!(" ({rule})")).unwrap_or_default();
        print(format!("machine: {}{rule}\n", paint(style, verdict.machine.as_str())))?;
        print(format!("network: {}\nagent: {}\n", rules.network_of(ip), evidence.agent(&rules)))?;
        for (rule, finding) in explain(&evidence, &rules) {
            let what = match words(finding) {
                (says @ "matches", _) => paint(CARE, says),
                (says, Some(condition)) => paint(DIM, &format!("{says}: {condition}")),
                (says, None) => paint(DIM, says),
            };
            print(format!("  {:<28} {what}\n", rule.name))?;
        }
        Ok(())
    }
}

/// What a rule says, and the condition that fails.
const fn words(finding: Finding) -> (&'static str, Option<&'static str>) {
    match finding {
        Finding::Matches => ("matches", None),
        Finding::Off => ("switched off", None),
        Finding::OtherScope => ("not for this", None),
        Finding::Waits => ("if others show it: see --burst", None),
        Finding::Fails(condition) => ("no", Some(condition)),
    }
}

/// A header as the option takes it; its name in lower case.
fn header(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_lowercase(), value.trim().to_owned()))
        }
        _ => Err("a header has a name and a colon, as in 'Purpose: prefetch'".into()),
    }
}

fn rules(config: &Config) -> Result<Rules> {
    tracker::load_rules(&assemble_tracker::settings(config, false)).or_exit(Exit::Config)
}
