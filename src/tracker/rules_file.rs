//! The rules file: TOML, read strictly, checked whole.
//!
//! - Layer: decision
//! - Takes: the text of a rules file, version 1 or 2.
//! - Gives: `Rules`.
//! - On failure: `RulesError` with the line or the rule's name; a file is taken whole or not at all.
//! - Limits: those of `rules`.
//! - See: `docs/bots.md`; `rules.toml`, whose head explains the format.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use super::rules::{CATALOGUE, Certainty, Condition, Pattern, Rule, Rules, Scope, UserAgent, Watched, Word};
use super::words::Words;

/// Version 1 knows neither agents nor what is seen over time.
const VERSIONS: std::ops::RangeInclusive<u32> = 1..=2;
const MAX_RULES: usize = 1_000;
/// They are kept as bits of one number for every request that is watched.
const MAX_WATCHED: usize = 64;
const MAX_NAME_BYTES: usize = 60;
/// The most that can be asked to be seen together: as much as is kept of one message or client.
pub(super) const MAX_COUNT: usize = 50;
/// The longest time over which anything is counted.
const MAX_WHILE: Duration = Duration::from_secs(600);

/// Why a text is no rules file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// Not TOML, an unknown key, a wrong type.
    #[error("line {line}: {message}")]
    Toml {
        /// Line, from 1.
        line: usize,
        /// What the reader said.
        message: String,
    },
    /// Written for another mailtap.
    #[error("version {0} is not known to this mailtap")]
    Version(u32),
    /// Too many.
    #[error(
        "more than {MAX_RULES} rules, or {MAX_WATCHED} of those with burst_, sweep_, _delivery or after_head_ms, or too many words"
    )]
    TooMany,
    /// One rule can't work.
    #[error("rule {rule:?}: {problem}")]
    Rule {
        /// Its name.
        rule: String,
        /// What is wrong.
        problem: String,
    },
    /// One family of user agents can't work.
    #[error("agent {agent:?}: {problem}")]
    Agent {
        /// Its name.
        agent: String,
        /// What is wrong.
        problem: String,
    },
    /// A named network can't be read.
    #[error("networks.{name}: {text:?} is not a network like 192.0.2.0/24")]
    Network {
        /// The name.
        name: String,
        /// What stands there.
        text: String,
    },
    /// A set of networks whose name can't stand in events.
    #[error("networks.{name}: a name has 1–60 of A-Z, a-z, 0-9, ., _ and -")]
    NetworkName {
        /// The name.
        name: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    version: u32,
    #[serde(default)]
    networks: BTreeMap<String, Vec<String>>,
    #[serde(default, rename = "agent")]
    agents: Vec<RawAgent>,
    #[serde(default, rename = "rule")]
    rules: Vec<RawRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAgent {
    name: String,
    #[serde(default)]
    missing: bool,
    #[serde(default)]
    exact: Vec<String>,
    #[serde(default)]
    words: Vec<String>,
    #[serde(default)]
    parts: Vec<String>,
    #[serde(default)]
    ends: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    name: String,
    scope: Scope,
    certainty: Certainty,
    #[serde(default = "yes")]
    enabled: bool,
    #[serde(default)]
    user_agent_missing: bool,
    #[serde(default)]
    user_agent_exact: Vec<String>,
    #[serde(default)]
    user_agent_words: Vec<String>,
    #[serde(default)]
    user_agent_parts: Vec<String>,
    #[serde(default)]
    user_agent_ends: Vec<String>,
    #[serde(default)]
    user_agent_without: Vec<String>,
    networks: Option<Vec<String>>,
    #[serde(default)]
    headers: Vec<String>,
    #[serde(default)]
    no_headers: Vec<String>,
    within_ms: Option<u64>,
    burst_links: Option<usize>,
    burst_networks: Option<usize>,
    sweep_recipients: Option<usize>,
    in_ms: Option<u64>,
    after_delivery_ms: Option<u64>,
    #[serde(default)]
    before_delivery: bool,
    after_head_ms: Option<u64>,
}

const fn yes() -> bool {
    true
}

impl Rules {
    /// Reads a rules file.
    ///
    /// # Errors
    /// See [`RulesError`].
    pub fn parse(text: &str) -> Result<Self, RulesError> {
        let file = read(text)?;
        let version = file.version;
        if file.rules.len() > MAX_RULES {
            return Err(RulesError::TooMany);
        }
        let networks = named_networks(&file.networks)?;
        let mut words = Words::default();
        let mut names = BTreeSet::new();
        let mut rules = Vec::with_capacity(file.rules.len());
        for raw in file.rules {
            let name = raw.name.clone();
            let problem = |problem: String| RulesError::Rule { rule: name.clone(), problem };
            if !is_name(&name) {
                return Err(problem("a name has 1–60 of a-z, 0-9 and -".into()));
            }
            if !names.insert(name.clone()) {
                return Err(problem("there are two of this name".into()));
            }
            let rule = check(raw, &networks, &mut words).map_err(problem)?;
            if version == 1 && rule.watched.is_some() {
                return Err(problem(
                    "burst_, sweep_, _delivery and after_head_ms need version = 2 at the top of the file"
                        .into(),
                ));
            }
            rules.push(rule);
        }
        // A file of version 1 says nothing of user agents: those of the catalogue count.
        let agents = if version == 1 { read(CATALOGUE)?.agents } else { file.agents };
        let agents = agents.into_iter().map(|raw| agent(raw, &mut words)).collect::<Result<_, _>>()?;
        let watched: Vec<usize> = rules
            .iter()
            .enumerate()
            .filter(|(_, rule): &(usize, &Rule)| rule.enabled && rule.watched.is_some())
            .map(|(number, _)| number)
            .collect();
        if watched.len() > MAX_WATCHED {
            return Err(RulesError::TooMany);
        }
        let words = words.compile().ok_or(RulesError::TooMany)?;
        Ok(Self { rules, networks: networks.into_iter().collect(), agents, words, watched })
    }
}

fn read(text: &str) -> Result<RawFile, RulesError> {
    let file: RawFile = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start).min(text.len());
        let line = text.bytes().take(at).filter(|&byte| byte == b'\n').count() + 1;
        RulesError::Toml { line, message: error.message().to_owned() }
    })?;
    if !VERSIONS.contains(&file.version) {
        return Err(RulesError::Version(file.version));
    }
    if file.version == 1
        && let Some(agent) = file.agents.first()
    {
        let problem = "needs version = 2 at the top of the file".to_owned();
        return Err(RulesError::Agent { agent: agent.name.clone(), problem });
    }
    Ok(file)
}

fn named_networks(raw: &BTreeMap<String, Vec<String>>) -> Result<BTreeMap<String, Vec<IpNet>>, RulesError> {
    let read = |(name, texts): (&String, &Vec<String>)| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !(1..=MAX_NAME_BYTES).contains(&name.len()) || !name.bytes().all(allowed) {
            return Err(RulesError::NetworkName { name: name.clone() });
        }
        let networks = texts.iter().map(|text| {
            text.parse().map_err(|_| RulesError::Network { name: name.clone(), text: text.clone() })
        });
        Ok((name.clone(), networks.collect::<Result<Vec<_>, _>>()?))
    };
    raw.iter().map(read).collect()
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(allowed)
}

fn agent(raw: RawAgent, words: &mut Words) -> Result<(String, Vec<UserAgent>), RulesError> {
    let problem = |problem: &str| RulesError::Agent { agent: raw.name.clone(), problem: problem.into() };
    if !is_name(&raw.name) {
        return Err(problem("a name has 1–60 of a-z, 0-9 and -"));
    }
    if [&raw.words, &raw.parts, &raw.ends].into_iter().flatten().any(|text| text.trim().is_empty()) {
        return Err(problem("an empty text is in everything"));
    }
    let mut ways = Vec::new();
    if raw.missing {
        ways.push(UserAgent::Missing);
    }
    ways.extend(raw.exact.iter().cloned().map(UserAgent::Exact));
    ways.extend(raw.words.iter().map(|text| UserAgent::Word(words.add(text, true))));
    ways.extend(raw.parts.iter().map(|text| UserAgent::Word(words.add(text, false))));
    ways.extend(raw.ends.iter().cloned().map(UserAgent::End));
    if ways.is_empty() {
        return Err(problem("it has no condition"));
    }
    Ok((raw.name, ways))
}

fn check(raw: RawRule, named: &BTreeMap<String, Vec<IpNet>>, words: &mut Words) -> Result<Rule, String> {
    let lists = [
        &raw.user_agent_words,
        &raw.user_agent_parts,
        &raw.user_agent_ends,
        &raw.user_agent_without,
        &raw.headers,
        &raw.no_headers,
    ];
    if lists.into_iter().flatten().any(|text| text.trim().is_empty()) {
        return Err("an empty text is in everything".into());
    }
    let mut conditions = Vec::new();
    let watched = watched(&raw)?;
    let mut written = format!("{raw:?}");
    let mut agents = Vec::new();
    if raw.user_agent_missing {
        agents.push(UserAgent::Missing);
    }
    agents.extend(raw.user_agent_exact.into_iter().map(UserAgent::Exact));
    agents.extend(raw.user_agent_words.iter().map(|text| UserAgent::Word(words.add(text, true))));
    agents.extend(raw.user_agent_parts.iter().map(|text| UserAgent::Word(words.add(text, false))));
    agents.extend(raw.user_agent_ends.into_iter().map(UserAgent::End));
    if !agents.is_empty() {
        conditions.push(Condition::UserAgent(agents));
    }
    if !raw.user_agent_without.is_empty() {
        let without = raw.user_agent_without.iter().map(|text| UserAgent::Word(words.add(text, false)));
        conditions.push(Condition::NoUserAgent(without.collect()));
    }
    if let Some(texts) = &raw.networks {
        let networks = networks(texts, named)?;
        if networks.is_empty() && raw.enabled {
            return Err("its networks are empty; fill them in, or set enabled = false".into());
        }
        written = format!("{written}{networks:?}");
        conditions.push(Condition::Network(networks));
    }
    if !raw.headers.is_empty() {
        conditions.push(Condition::Header(raw.headers.iter().map(|text| header(text)).collect()));
    }
    if !raw.no_headers.is_empty() {
        let names = raw.no_headers.iter().map(|name| name.trim().to_ascii_lowercase());
        conditions.push(Condition::NoHeader(names.collect()));
    }
    if let Some(within_ms) = raw.within_ms {
        conditions.push(Condition::Within(Duration::from_millis(within_ms)));
    }
    if conditions.is_empty() && watched.is_none() {
        return Err("it has no condition".into());
    }
    let (name, scope, certainty, enabled) = (raw.name, raw.scope, raw.certainty, raw.enabled);
    Ok(Rule { name, scope, certainty, enabled, written: written.into(), conditions, watched })
}

/// What other requests and the delivery must show.
fn watched(raw: &RawRule) -> Result<Option<Watched>, String> {
    let counts = [
        raw.burst_links.map(Pattern::Links),
        raw.burst_networks.map(Pattern::Networks),
        raw.sweep_recipients.map(Pattern::Recipients),
    ];
    let mut counts = counts.into_iter().flatten();
    let pattern = match (counts.next(), counts.next(), raw.in_ms) {
        (None, _, None) => None,
        (Some(pattern), None, Some(in_ms)) => {
            let (Pattern::Links(least) | Pattern::Networks(least) | Pattern::Recipients(least)) = pattern;
            if !(2..=MAX_COUNT).contains(&least) {
                return Err(format!("{least} can't be seen together: from 2 to {MAX_COUNT}"));
            }
            let while_ = Duration::from_millis(in_ms);
            if while_.is_zero() || while_ > MAX_WHILE {
                return Err("in_ms is from 1 to 600000".into());
            }
            if raw.scope == Scope::Open && matches!(pattern, Pattern::Links(_)) {
                return Err("opens have no links: burst_links needs the scope click or both".into());
            }
            Some((pattern, while_))
        }
        (_, Some(_), _) => {
            return Err("one of burst_links, burst_networks and sweep_recipients is enough".into());
        }
        _ => return Err("burst_links, burst_networks or sweep_recipients, and in_ms, go together".into()),
    };
    if raw.before_delivery && raw.after_delivery_ms.is_some() {
        return Err("nothing is both before_delivery and after it".into());
    }
    let after_delivery = raw.after_delivery_ms.map(Duration::from_millis);
    if after_delivery.is_some_and(|after| after.is_zero() || after > MAX_WHILE) {
        return Err("after_delivery_ms is from 1 to 600000".into());
    }
    let after_head = raw.after_head_ms.map(Duration::from_millis);
    if after_head.is_some_and(|after| after.is_zero() || after > MAX_WHILE) {
        return Err("after_head_ms is from 1 to 600000".into());
    }
    let watched = Watched { pattern, after_delivery, before_delivery: raw.before_delivery, after_head };
    Ok(Some(watched).filter(|watched| *watched != Watched::default()))
}

/// Networks, each written out or by the name of a set.
fn networks(texts: &[String], named: &BTreeMap<String, Vec<IpNet>>) -> Result<Vec<IpNet>, String> {
    let mut networks = Vec::new();
    for text in texts {
        match (named.get(text), text.parse()) {
            (Some(set), _) => networks.extend(set),
            (None, Ok(network)) => networks.push(network),
            (None, Err(_)) => {
                return Err(format!("{text:?} is neither a network nor the name of a set of networks"));
            }
        }
    }
    Ok(networks)
}

/// `Name` or `Name: word`.
fn header(text: &str) -> (String, Option<Word>) {
    match text.split_once(':') {
        Some((name, word)) => (name.trim().to_ascii_lowercase(), Some(Word::new(word.trim()))),
        None => (text.trim().to_ascii_lowercase(), None),
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
