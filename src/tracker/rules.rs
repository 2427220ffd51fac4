//! The rules that tell machines from people, as data.
//!
//! - Layer: decision
//! - Takes: the text of a rules file, TOML.
//! - Gives: checked rules, in their order.
//! - On failure: `RulesError` with the line or the rule's name; a file is taken whole or not at all.
//! - Limits: 1,000 rules; names of 1–60 characters, since they stand in events.
//! - See: `docs/tracker.md`, "Rules"; `rules.toml`, the catalogue that comes with mailtap.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;
use memchr::memmem::Finder;
use serde::Deserialize;

const VERSION: u32 = 1;
const MAX_RULES: usize = 1_000;
const MAX_NAME_BYTES: usize = 60;

/// The catalogue that comes with mailtap.
pub const CATALOGUE: &str = include_str!("rules.toml");

/// What a rule speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Loaded pixels.
    Open,
    /// Followed links.
    Click,
    /// Both.
    Both,
}

/// How sure a rule is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Certainty {
    /// A person may be behind it.
    Probable,
    /// It is a machine.
    Certain,
}

/// One rule: all its conditions must hold.
#[derive(Debug, Clone)]
pub struct Rule {
    /// What stands in events as `machine_rule`.
    pub name: String,
    /// What it speaks of.
    pub scope: Scope,
    /// How sure it is.
    pub certainty: Certainty,
    /// Whether it is in force.
    pub enabled: bool,
    pub(super) conditions: Vec<Condition>,
}

/// What must hold.
#[derive(Debug, Clone)]
pub(super) enum Condition {
    /// The client names itself in one of these ways.
    UserAgent(Vec<UserAgent>),
    /// The client's address is in one of these networks.
    Network(Vec<IpNet>),
    /// One of these headers is there, and has the word if one is given. Names in lower case.
    Header(Vec<(String, Option<Word>)>),
    /// None of these headers is there. Names in lower case.
    NoHeader(Vec<String>),
    /// The message was accepted less than this ago.
    Within(Duration),
}

/// How a client names itself.
#[derive(Debug, Clone)]
pub(super) enum UserAgent {
    /// Not at all.
    Missing,
    /// In just these words.
    Exact(String),
    /// With this whole word in it, in any letter case.
    Word(Word),
    /// With this text in it, in any letter case.
    Part(Word),
    /// With this text at its end.
    End(String),
}

/// A text to search for, in lower case.
#[derive(Debug, Clone)]
pub(super) struct Word(pub(super) Finder<'static>);

impl Word {
    fn new(text: &str) -> Self {
        Self(Finder::new(text.to_ascii_lowercase().as_bytes()).into_owned())
    }
}

/// All rules, in their order.
#[derive(Debug, Clone)]
pub struct Rules(Vec<Rule>);

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
    #[error("more than 1,000 rules")]
    TooMany,
    /// One rule can't work.
    #[error("rule {rule:?}: {problem}")]
    Rule {
        /// Its name.
        rule: String,
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
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    version: u32,
    #[serde(default)]
    networks: BTreeMap<String, Vec<String>>,
    #[serde(default, rename = "rule")]
    rules: Vec<RawRule>,
}

#[derive(Deserialize)]
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
    networks: Option<Vec<String>>,
    #[serde(default)]
    headers: Vec<String>,
    #[serde(default)]
    no_headers: Vec<String>,
    within_ms: Option<u64>,
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
        let file: RawFile = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start).min(text.len());
            let line = text.bytes().take(at).filter(|&byte| byte == b'\n').count() + 1;
            RulesError::Toml { line, message: error.message().to_owned() }
        })?;
        if file.version != VERSION {
            return Err(RulesError::Version(file.version));
        }
        if file.rules.len() > MAX_RULES {
            return Err(RulesError::TooMany);
        }
        let networks = named_networks(&file.networks)?;
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
            rules.push(check(raw, &networks).map_err(problem)?);
        }
        Ok(Self(rules))
    }

    /// The rules, in their order.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.0
    }
}

fn named_networks(raw: &BTreeMap<String, Vec<String>>) -> Result<BTreeMap<String, Vec<IpNet>>, RulesError> {
    let read = |(name, texts): (&String, &Vec<String>)| {
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

fn check(raw: RawRule, named: &BTreeMap<String, Vec<IpNet>>) -> Result<Rule, String> {
    let lists =
        [&raw.user_agent_words, &raw.user_agent_parts, &raw.user_agent_ends, &raw.headers, &raw.no_headers];
    if lists.into_iter().flatten().any(|text| text.trim().is_empty()) {
        return Err("an empty text is in everything".into());
    }
    let mut conditions = Vec::new();
    let mut agents = Vec::new();
    if raw.user_agent_missing {
        agents.push(UserAgent::Missing);
    }
    agents.extend(raw.user_agent_exact.into_iter().map(UserAgent::Exact));
    agents.extend(raw.user_agent_words.iter().map(|text| UserAgent::Word(Word::new(text))));
    agents.extend(raw.user_agent_parts.iter().map(|text| UserAgent::Part(Word::new(text))));
    agents.extend(raw.user_agent_ends.into_iter().map(UserAgent::End));
    if !agents.is_empty() {
        conditions.push(Condition::UserAgent(agents));
    }
    if let Some(texts) = &raw.networks {
        let networks = networks(texts, named)?;
        if networks.is_empty() && raw.enabled {
            return Err("its networks are empty; fill them in, or set enabled = false".into());
        }
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
    if conditions.is_empty() {
        return Err("it has no condition".into());
    }
    let (name, scope, certainty, enabled) = (raw.name, raw.scope, raw.certainty, raw.enabled);
    Ok(Rule { name, scope, certainty, enabled, conditions })
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
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    const RULE: &str = "version = 1\n[[rule]]\nname = \"a\"\nscope = \"both\"\ncertainty = \"certain\"\n";

    fn error(text: &str) -> String {
        Rules::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn the_catalogue_is_sound() {
        let rules = Rules::parse(CATALOGUE).unwrap();
        assert!(rules.rules().len() > 10);
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        assert_eq!(error("version = 2"), "version 2 is not known to this mailtap");
        assert!(error(&format!("{RULE}colour = 1")).starts_with("line 6: unknown field"), "{}", error(RULE));
        assert_eq!(error(RULE), "rule \"a\": it has no condition");
        assert_eq!(error(&format!("{RULE}networks = []")).matches("enabled = false").count(), 1);
        assert!(error(&format!("{RULE}networks = [\"gogle\"]")).contains("\"gogle\" is neither"));
        assert!(error(&format!("{RULE}user_agent_words = [\"\"]")).contains("empty"));
        assert!(error(&RULE.replace("\"a\"", "\"A b\"")).contains("a name has"));
        let twice = format!("{RULE}within_ms = 1\n{}within_ms = 1", RULE.trim_start_matches("version = 1\n"));
        assert!(error(&twice).contains("two of this name"));
        assert!(error("version = 1\n[networks]\nx = [\"10.0.0.0/33\"]").contains("networks.x"));
    }
}
