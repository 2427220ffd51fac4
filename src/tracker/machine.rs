//! Person or machine: the verdict on one request.
//!
//! - Layer: decision
//! - Takes: what is known of the request, and the rules.
//! - Gives: no, probable or certain, with the name of the rule; which rules wait for what `watch` sees; or what every
//!   rule says, for explanations.
//! - On failure: nothing can fail: what is missing matches no rule that asks for it.
//! - Limits: the first 2,048 bytes of a user agent are looked at.
//! - See: `docs/bots.md`; the answer to a request never depends on the verdict.
#![warn(clippy::indexing_slicing)]

use std::net::IpAddr;
use std::time::Duration;

use super::request::{Method, Request};
use super::rules::{Certainty, Condition, Rule, Rules, Scope, Word};
use super::words::{self, Found};
use crate::event::Machine;
use crate::identity::{MessageId, Timestamp};

const MAX_USER_AGENT_BYTES: usize = 2_048;

/// Clocks of two hosts may differ by so much; a click "before" its message by more says nothing.
const CLOCK_SKEW: Duration = Duration::from_secs(10);

/// The rule that no file can switch off: no person sends HEAD.
pub const HEAD_RULE: &str = "head-request";

/// The verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict<'r> {
    /// Whether a machine did it.
    pub machine: Machine,
    /// The rule that said so.
    pub rule: Option<&'r str>,
}

/// What one rule says, for `explain`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// It matches.
    Matches,
    /// It is switched off.
    Off,
    /// It speaks of opens and this is a click, or the reverse.
    OtherScope,
    /// This condition does not hold.
    Fails(&'static str),
    /// All holds that one request can show; the rest is for `watch` to see.
    Waits,
}

/// What is known of a request.
#[derive(Debug)]
pub struct Evidence<'a> {
    request: Request<'a>,
    scope: Scope,
    user_agent: &'a [u8],
    found: Found,
    now: Timestamp,
    since_sent: Option<Duration>,
}

impl<'a> Evidence<'a> {
    /// Gathers what the rules look at; `scope` is `Open` or `Click`, `message` tells when the mail was accepted.
    #[must_use]
    pub fn new(
        request: Request<'a>,
        scope: Scope,
        message: Option<&MessageId>,
        now: Timestamp,
        rules: &Rules,
    ) -> Self {
        let user_agent = request.header("user-agent").unwrap_or_default().trim_ascii();
        let user_agent = user_agent.get(..user_agent.len().min(MAX_USER_AGENT_BYTES)).unwrap_or_default();
        let since_sent = message.map(MessageId::time).filter(|sent| sent.since(now) <= CLOCK_SKEW);
        Self {
            request,
            scope,
            user_agent,
            now,
            found: rules.words.find(user_agent),
            since_sent: since_sent.map(|sent| now.since(sent)),
        }
    }

    /// The family of the user agent; `rules` are those that the evidence was gathered with.
    #[must_use]
    pub fn agent<'r>(&self, rules: &'r Rules) -> &'r str {
        rules.agent_of(self.user_agent, &self.found)
    }

    /// When it was asked.
    pub(super) const fn time(&self) -> Timestamp {
        self.now
    }

    /// A click or an open.
    pub(super) const fn scope(&self) -> Scope {
        self.scope
    }

    /// Who asked.
    pub(super) const fn client(&self) -> IpAddr {
        self.request.client
    }

    /// Whether only the head of the answer was asked for.
    pub(super) fn is_head(&self) -> bool {
        self.request.method == Method::Head
    }

    /// Whether that is known.
    pub(super) const fn is_client_named(&self) -> bool {
        self.request.is_client_named
    }

    /// What the client calls itself.
    pub(super) const fn user_agent(&self) -> &'a [u8] {
        self.user_agent
    }
}

/// The verdict on a request: the surest rule that matches, the first of several.
#[must_use]
pub fn judge<'r>(evidence: &Evidence<'_>, rules: &'r Rules) -> Verdict<'r> {
    let mut found: Option<&Rule> = None;
    for rule in rules.rules() {
        let better = found.is_none_or(|found| rule.certainty > found.certainty);
        if better && examine(rule, evidence) == Finding::Matches {
            found = Some(rule);
        }
    }
    match found {
        Some(rule) if rule.certainty == Certainty::Certain => {
            Verdict { machine: Machine::Certain, rule: Some(&rule.name) }
        }
        _ if evidence.request.method == Method::Head => {
            Verdict { machine: Machine::Certain, rule: Some(HEAD_RULE) }
        }
        Some(rule) => Verdict { machine: Machine::Probable, rule: Some(&rule.name) },
        None => Verdict { machine: Machine::No, rule: None },
    }
}

/// The rules on what is seen over time whose other conditions hold: bit n is the n-th of them.
#[must_use]
pub fn waiting(evidence: &Evidence<'_>, rules: &Rules) -> u64 {
    let waits = |rule: &Rule| examine(rule, evidence) == Finding::Waits;
    let bits = rules.watched().enumerate().filter(|(_, (rule, _))| waits(rule));
    bits.fold(0, |bits, (number, _)| bits | (1 << number))
}

/// What every rule says of a request, in the order of the file.
#[must_use]
pub fn explain<'r>(evidence: &Evidence<'_>, rules: &'r Rules) -> Vec<(&'r Rule, Finding)> {
    rules.rules().iter().map(|rule| (rule, examine(rule, evidence))).collect()
}

fn examine(rule: &Rule, evidence: &Evidence<'_>) -> Finding {
    if !rule.enabled {
        return Finding::Off;
    }
    if !rule.scope.covers(evidence.scope) {
        return Finding::OtherScope;
    }
    for condition in &rule.conditions {
        if !holds(condition, evidence) {
            return Finding::Fails(match condition {
                Condition::UserAgent(_) | Condition::NoUserAgent(_) => "user agent",
                Condition::Network(_) => "network",
                Condition::Header(_) => "header",
                Condition::NoHeader(_) => "no header",
                Condition::Within(_) => "time since sending",
            });
        }
    }
    if rule.watched.is_some() { Finding::Waits } else { Finding::Matches }
}

fn holds(condition: &Condition, evidence: &Evidence<'_>) -> bool {
    let request = &evidence.request;
    match condition {
        Condition::UserAgent(agents) => {
            agents.iter().any(|agent| agent.names(evidence.user_agent, &evidence.found))
        }
        Condition::NoUserAgent(agents) => {
            !agents.iter().any(|agent| agent.names(evidence.user_agent, &evidence.found))
        }
        Condition::Network(networks) => {
            let client: IpAddr = request.client;
            request.is_client_named && networks.iter().any(|network| network.contains(&client))
        }
        Condition::Header(headers) => headers.iter().any(|(name, word)| {
            request
                .all(name)
                .any(|value| word.as_ref().is_none_or(|word| has_word(&value.to_ascii_lowercase(), word)))
        }),
        Condition::NoHeader(names) => names.iter().all(|name| request.header(name).is_none()),
        Condition::Within(while_) => evidence.since_sent.is_some_and(|since| since < *while_),
    }
}

/// Whether a word stands in a text with no letter or digit touching it: "bot" is not in "Cubot".
fn has_word(text: &[u8], word: &Word) -> bool {
    let length = word.0.needle().len();
    word.0.find_iter(text).any(|at| words::is_whole(text, at, at + length))
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
