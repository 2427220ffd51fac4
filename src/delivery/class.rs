//! The class of a failed delivery: hard, soft, block, …, by rules that are data.
//!
//! - Layer: decision
//! - Takes: SMTP code, enhanced status code, and the text of the reply.
//! - Gives: `Verdict`: the class and why; the first rule that fits decides.
//! - On failure: `BounceClass::Unknown` where no rule fits; `RuleError` with its line for rules that can't be read.
//! - Limits: the first 4,096 bytes of a text are looked at, and of these the reply alone (`reply::spoken`).
//! - See: `class_rules.txt` for the form and the built-in rules, RFC 3463, RFC 5248.
//!
//! What is tried again is never `hard`: rules of this class are passed over for codes of 4xx and 4.x.x.

#![warn(clippy::indexing_slicing)]

use std::sync::Arc;

use memchr::memmem::Finder;

use super::reply::{EnhancedCode, spoken};
use crate::event::BounceClass;

/// The rules that come with mailtap, as text.
pub const BUILT_IN: &str = include_str!("class_rules.txt");
/// An explanation goes into events.
const WHY_CHARS: usize = 100;

/// The rules, in their order.
#[derive(Debug, Clone)]
pub struct Classifier {
    rules: Vec<Rule>,
    none: Arc<str>,
}

/// What a rule said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict<'a> {
    /// The class.
    pub class: BounceClass,
    /// The rule's explanation, for people.
    pub why: &'a Arc<str>,
    /// Which rule it was; `None` if none fits.
    pub rule: Option<Place>,
}

/// Where a rule stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Whether it came with mailtap.
    pub built_in: bool,
    /// From 1.
    pub line: usize,
}

/// Why a rule can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bounce rules, line {line}: {why}")]
pub struct RuleError {
    /// From 1.
    pub line: usize,
    /// What is wrong.
    pub why: &'static str,
}

#[derive(Debug, Clone)]
struct Rule {
    class: BounceClass,
    smtp: Pattern,
    dsn: Pattern,
    phrase: Option<Finder<'static>>,
    why: Arc<str>,
    place: Place,
}

/// `*` for anything, `4*` for a beginning, or the whole.
#[derive(Debug, Clone)]
enum Pattern {
    Any,
    Begins(String),
    Is(String),
}

impl Classifier {
    /// The rules that come with mailtap.
    #[must_use]
    pub fn built_in() -> Self {
        // A test reads the built-in rules; if they could not be read, everything would be `unknown`.
        Self { rules: parse(BUILT_IN, true).unwrap_or_default(), none: "no rule fits".into() }
    }

    /// These rules first, then the built-in ones.
    ///
    /// # Errors
    /// See [`RuleError`].
    pub fn extended(rules: &str) -> Result<Self, RuleError> {
        let mut all = parse(rules, false)?;
        let Self { rules, none } = Self::built_in();
        all.extend(rules);
        Ok(Self { rules: all, none })
    }

    /// The class of a failure.
    #[must_use]
    pub fn classify(&self, smtp_code: Option<u16>, dsn: Option<EnhancedCode>, text: &[u8]) -> Verdict<'_> {
        let is_temporary = dsn.map_or(smtp_code.is_some_and(|code| code / 100 == 4), |code| code.class == 4);
        let smtp = smtp_code.map(|code| code.to_string()).unwrap_or_default();
        let dsn = dsn.filter(|code| !code.is_generic()).map(|code| code.to_string()).unwrap_or_default();
        let text = spoken(text);
        let fits = |rule: &&Rule| {
            !(is_temporary && rule.class == BounceClass::Hard) && rule.fits(&smtp, &dsn, &text)
        };
        match self.rules.iter().find(fits) {
            Some(rule) => Verdict { class: rule.class, why: &rule.why, rule: Some(rule.place) },
            None => Verdict { class: BounceClass::Unknown, why: &self.none, rule: None },
        }
    }
}

impl Default for Classifier {
    fn default() -> Self {
        Self::built_in()
    }
}

impl Rule {
    fn fits(&self, smtp: &str, dsn: &str, text: &[u8]) -> bool {
        self.smtp.fits(smtp)
            && self.dsn.fits(dsn)
            && self.phrase.as_ref().is_none_or(|phrase| phrase.find(text).is_some())
    }

    /// `CLASS SMTP DSN "PHRASE" WHY`.
    fn parse(line: &str, place: Place) -> Result<Self, &'static str> {
        let mut rest = line;
        let mut word = || {
            let (word, tail) = rest.trim_start().split_once(char::is_whitespace)?;
            rest = tail.trim_start();
            Some(word)
        };
        let class = word().and_then(class_of).ok_or("the first word is no class")?;
        let smtp =
            word().and_then(Pattern::parse).ok_or("the second word is no SMTP code, like 550, 5* or *")?;
        let dsn = word()
            .and_then(Pattern::parse)
            .ok_or("the third word is no status code, like 5.1.1, 5.1.* or *")?;
        let (phrase, why) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let (phrase, why) = quoted.split_once('"').ok_or("the phrase has no closing quote")?;
                if phrase.is_empty() {
                    return Err("the phrase is empty");
                }
                (Some(Finder::new(&phrase.to_ascii_lowercase()).into_owned()), why)
            }
            None => (None, rest.strip_prefix('*').ok_or("the phrase is neither quoted nor *")?),
        };
        let why = why.trim();
        if why.is_empty() {
            return Err("the explanation is missing");
        }
        if why.contains('@') || why.chars().count() > WHY_CHARS {
            return Err("the explanation is longer than 100 characters, or holds an @: it goes into events");
        }
        Ok(Self { class, smtp, dsn, phrase, why: why.into(), place })
    }
}

impl Pattern {
    fn parse(word: &str) -> Option<Self> {
        let plain = |text: &str| text.chars().all(|c| c.is_ascii_digit() || c == '.');
        match word.strip_suffix('*') {
            Some("") => Some(Self::Any),
            Some(start) => plain(start).then(|| Self::Begins(start.to_owned())),
            None => plain(word).then(|| Self::Is(word.to_owned())),
        }
    }

    fn fits(&self, text: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Begins(start) => text.starts_with(start.as_str()),
            Self::Is(whole) => text == whole,
        }
    }
}

fn parse(rules: &str, built_in: bool) -> Result<Vec<Rule>, RuleError> {
    rules
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line.trim()))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(line, text)| {
            Rule::parse(text, Place { built_in, line }).map_err(|why| RuleError { line, why })
        })
        .collect()
}

fn class_of(word: &str) -> Option<BounceClass> {
    use BounceClass::{Block, Hard, MailboxFull, Network, Policy, RateLimit, Soft, Unknown};
    [Hard, Soft, MailboxFull, Block, Policy, RateLimit, Network, Unknown]
        .into_iter()
        .find(|class| class.as_str() == word)
}

#[cfg(test)]
#[path = "class_tests.rs"]
mod tests;
