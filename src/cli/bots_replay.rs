//! `mailtap bots test --burst`: what the rules make of requests one after the other.
//!
//! - Layer: cli
//! - Takes: a file of facts, one JSON object a line: messages accepted and delivered, clicks and opens.
//! - Gives: for each click and open the verdict on it alone, and the last one, with their rules.
//! - On failure: exit code 65 with the line that can't be read.
//! - Limits: 16 MiB.
//! - See: `docs/bots.md`.

use std::collections::BTreeMap;
use std::hash::RandomState;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::exit::{Exit, Failure, OrExit, Result};
use super::print;
use super::terminal::{CARE, GOOD, paint, table};
use crate::event::{EventId, Machine};
use crate::identity::{MessageId, Pseudonym, PseudonymKey, Timestamp};
use crate::service::{clock, files};
use crate::tracker::hit::watched_hit;
use crate::tracker::machine::{Evidence, judge};
use crate::tracker::request::{Method, Request};
use crate::tracker::rules::{Rules, Scope};
use crate::tracker::watch::{Fact, Limits, Watch};

const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;
/// Long enough to see every correction, however late.
const HOLD: Duration = Duration::from_secs(24 * 3_600);

/// One line of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// When, in milliseconds since any moment.
    at_ms: u64,
    /// A message that mailtap accepted then.
    accepted: Option<String>,
    /// A message that was delivered then, to `recipient` if that is given.
    delivered: Option<String>,
    /// click or open.
    hit: Option<Kind>,
    message: Option<String>,
    recipient: Option<String>,
    #[serde(default = "first")]
    link: u16,
    #[serde(default = "anywhere")]
    ip: IpAddr,
    user_agent: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    head: bool,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Click,
    Open,
}

const fn first() -> u16 {
    1
}

fn anywhere() -> IpAddr {
    IpAddr::from([203, 0, 113, 9])
}

/// What is known of one click or open.
struct Row {
    line: usize,
    at_ms: u64,
    what: String,
    alone: (Machine, Option<String>),
    last: (Machine, Option<String>),
}

/// Reads, replays and explains.
pub(super) fn run(path: &Path, rules: &Rules, as_json: bool) -> Result {
    let bytes = files::read_limited(path, MAX_FILE_BYTES).or_exit(Exit::NoInput)?;
    let text = String::from_utf8(bytes).or_exit(Exit::Data)?;
    let rows = replay(&text, rules)?;
    if as_json {
        return rows.iter().try_for_each(|row| {
            let verdict =
                |(machine, rule): &(Machine, Option<String>)| json!({ "machine": machine, "rule": rule });
            let (alone, last) = (verdict(&row.alone), verdict(&row.last));
            let object = json!({ "line": row.line, "at_ms": row.at_ms, "alone": alone, "last": last });
            print(object.to_string() + "\n")
        });
    }
    let shown = |(machine, rule): &(Machine, Option<String>)| {
        let style = if *machine == Machine::No { GOOD } else { CARE };
        let rule = rule.as_ref().map(|rule| format!(" ({rule})")).unwrap_or_default();
        paint(style, &format!("{}{rule}", machine.as_str()))
    };
    let cells = |row: &Row| {
        let (alone, last) = (shown(&row.alone), shown(&row.last));
        vec![row.line.to_string(), format!("{} ms", row.at_ms), row.what.clone(), alone, last]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    print(table(&["line", "at", "what", "alone", "in the end"], &rows))
}

fn replay(text: &str, rules: &Rules) -> Result<Vec<Row>> {
    let begin = clock::now().minus(HOLD);
    let hasher = RandomState::new();
    let mut watch = Watch::new(rules, HOLD, Limits::default());
    let mut accepted: BTreeMap<String, Timestamp> = BTreeMap::new();
    let mut rows: Vec<(EventId, Row)> = Vec::new();
    for (number, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let number = number + 1;
        let wrong = |what: String| Failure::new(Exit::Data, format!("line {number}: {what}"));
        let line: Line = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        let now = begin.plus(Duration::from_millis(line.at_ms));
        let mut id_of = |name: &str| {
            // What nobody said when it was accepted was so an hour before.
            let at = accepted.entry(name.to_owned()).or_insert_with(|| now.minus(Duration::from_secs(3_600)));
            MessageId::new(*at, number_of(name))
        };
        let recipient = line.recipient.as_deref().map(pseudonym);
        let fact = match (&line.accepted, &line.delivered, line.hit, &line.message) {
            (Some(name), None, None, None) => {
                accepted.insert(name.clone(), now);
                continue;
            }
            (None, Some(name), None, None) => Fact::Delivered { message: id_of(name), recipient, time: now },
            (None, None, Some(kind), Some(name)) => {
                let scope = match kind {
                    Kind::Click => Scope::Click,
                    Kind::Open => Scope::Open,
                };
                let message = id_of(name);
                let mut headers: Vec<(String, String)> =
                    line.headers.iter().map(|(name, value)| (name.to_lowercase(), value.clone())).collect();
                headers.extend(line.user_agent.iter().map(|agent| ("user-agent".to_owned(), agent.clone())));
                let headers: Vec<(&str, &[u8])> =
                    headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
                let method = if line.head { Method::Head } else { Method::Get };
                let (client, is_client_named) = (line.ip, true);
                let request = Request { method, path: "/", headers: &headers, client, is_client_named };
                let evidence = Evidence::new(request, scope, Some(&message), now, rules);
                let verdict = judge(&evidence, rules);
                let alone = (verdict.machine, verdict.rule.map(str::to_owned));
                let id = EventId::of("replay").part(number.to_be_bytes()).finish();
                let hit = watched_hit(&evidence, rules, &hasher, (id, message, recipient), verdict.machine);
                let link = matches!(kind, Kind::Click).then_some(line.link);
                let what = link.map_or("open".to_owned(), |link| format!("click {link}"));
                let last = alone.clone();
                rows.push((id, Row { line: number, at_ms: line.at_ms, what, alone, last }));
                Fact::Hit(crate::tracker::watch::Hit { link, ..hit })
            }
            _ => return Err(wrong("expected one of accepted, delivered, or hit with message".into())),
        };
        for correction in watch.observe(fact, now) {
            if let Some((_, row)) = rows.iter_mut().find(|(id, _)| *id == correction.id) {
                row.last = (correction.machine, Some(correction.rule.to_string()));
            }
        }
    }
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

/// Names in the file may be anything; the same name is the same thing.
fn pseudonym(name: &str) -> Pseudonym {
    PseudonymKey::new(&[0; PseudonymKey::BYTES]).pseudonym(name)
}

fn number_of(name: &str) -> u32 {
    let bytes = pseudonym(name);
    bytes.as_bytes().iter().take(4).fold(0, |number, byte| (number << 8) | u32::from(*byte))
}

#[cfg(test)]
#[path = "bots_replay_tests.rs"]
mod tests;
