//! The rules that tell machines from people, as data.
//!
//! - Layer: decision
//! - Takes: checked values of a rules file.
//! - Gives: rules in their order, sets of networks, families of user agents.
//! - On failure: nothing can fail here; `rules_file` reads and checks.
//! - Limits: 1,000 rules, 64 of them on what is seen over time; names of 1–60 characters, since they stand in events.
//! - See: `docs/bots.md`; `rules.toml`, the catalogue that comes with mailtap.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use memchr::memmem::Finder;
use serde::Deserialize;

use super::words::{Found, Words};

pub use super::rules_file::RulesError;

/// The catalogue that comes with mailtap.
pub const CATALOGUE: &str = include_str!("rules.toml");

/// What an event says of a network or user agent that is none of those with a name.
pub const OTHER: &str = "other";

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

impl Scope {
    /// Whether a rule of this scope speaks of a click, or of an open.
    #[must_use]
    pub fn covers(self, one: Self) -> bool {
        self == Self::Both || self == one
    }
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
    /// All that is written of it, sets of networks written out.
    pub(super) written: std::sync::Arc<str>,
    /// What one request shows.
    pub(super) conditions: Vec<Condition>,
    /// What only other requests and the delivery show.
    pub(super) watched: Option<Watched>,
}

/// What must hold of a request.
#[derive(Debug, Clone)]
pub(super) enum Condition {
    /// The client names itself in one of these ways.
    UserAgent(Vec<UserAgent>),
    /// It does so in none of these.
    NoUserAgent(Vec<UserAgent>),
    /// The client's address is in one of these networks.
    Network(Vec<IpNet>),
    /// One of these headers is there, and has the word if one is given. Names in lower case.
    Header(Vec<(String, Option<Word>)>),
    /// None of these headers is there. Names in lower case.
    NoHeader(Vec<String>),
    /// The message was accepted less than this ago.
    Within(Duration),
}

/// What must hold of a request among others, and of the delivery of its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Watched {
    /// So many within a time.
    pub pattern: Option<(Pattern, Duration)>,
    /// The message was delivered, less than this ago.
    pub after_delivery: Option<Duration>,
    /// The message was delivered only later.
    pub before_delivery: bool,
    /// The same client asked for the head of the same, less than this ago.
    pub after_head: Option<Duration>,
}

/// What is counted over a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// Different links of one message and recipient.
    Links(usize),
    /// Different networks (/24, /48) that ask for one message and recipient.
    Networks(usize),
    /// Different recipients that one client (network and user agent) asks for.
    Recipients(usize),
}

/// How a client names itself.
#[derive(Debug, Clone)]
pub(super) enum UserAgent {
    /// Not at all.
    Missing,
    /// In just these words.
    Exact(String),
    /// With this text in it: its number among the words of all rules.
    Word(usize),
    /// With this text at its end.
    End(String),
}

impl UserAgent {
    pub(super) fn names(&self, user_agent: &[u8], found: &Found) -> bool {
        match self {
            Self::Missing => user_agent.is_empty(),
            Self::Exact(text) => user_agent == text.as_bytes(),
            Self::Word(number) => found.has(*number),
            Self::End(text) => user_agent.ends_with(text.as_bytes()),
        }
    }
}

/// A text to search for, in lower case.
#[derive(Debug, Clone)]
pub(super) struct Word(pub(super) Finder<'static>);

impl Word {
    pub(super) fn new(text: &str) -> Self {
        Self(Finder::new(text.to_ascii_lowercase().as_bytes()).into_owned())
    }
}

/// All rules, in their order, with the sets and families that events name.
#[derive(Debug, Clone)]
pub struct Rules {
    pub(super) rules: Vec<Rule>,
    pub(super) networks: Vec<(String, Vec<IpNet>)>,
    pub(super) agents: Vec<(String, Vec<UserAgent>)>,
    pub(super) words: Words,
    /// The numbers of the rules in force that need to see more than one request.
    pub(super) watched: Vec<usize>,
}

impl Rules {
    /// The rules, in their order.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The first set of networks, by name, that an address is in.
    #[must_use]
    pub fn network_of(&self, client: IpAddr) -> &str {
        let has = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&client));
        self.networks.iter().find(|(_, networks)| has(networks)).map_or(OTHER, |(name, _)| name)
    }

    pub(super) fn agent_of(&self, user_agent: &[u8], found: &Found) -> &str {
        let names = |ways: &[UserAgent]| ways.iter().any(|way| way.names(user_agent, found));
        self.agents.iter().find(|(_, ways)| names(ways)).map_or(OTHER, |(name, _)| name)
    }

    /// The rules that need to see more than one request, in their order.
    pub(super) fn watched(&self) -> impl Iterator<Item = (&Rule, Watched)> {
        let rule = |number: &usize| self.rules.get(*number);
        self.watched.iter().filter_map(rule).filter_map(|rule| Some((rule, rule.watched?)))
    }
}
