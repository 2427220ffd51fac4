//! The class of a failed delivery: hard, soft, block, …, by rules that are data.
//!
//! - Layer: decision
//! - Takes: SMTP code, enhanced status code, and the text of the reply.
//! - Gives: `Verdict`: the class and why; the first rule that fits decides.
//! - On failure: `BounceClass::Unknown` where no rule fits; `RuleError` with its line for rules that can't be read.
//! - Limits: the first 4,096 bytes of a text are looked at.
//! - See: `class_rules.txt` for the form and the built-in rules, RFC 3463, RFC 5248.

#![warn(clippy::indexing_slicing)]

use memchr::memmem::Finder;

use super::reply::EnhancedCode;
use crate::event::BounceClass;

const BUILT_IN: &str = include_str!("class_rules.txt");
/// How much of a text is looked at.
const TEXT_BYTES: usize = 4_096;

/// The rules, in their order.
#[derive(Debug, Clone)]
pub struct Classifier(Vec<Rule>);

/// What a rule said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict<'a> {
    /// The class.
    pub class: BounceClass,
    /// The rule's explanation, for people.
    pub why: &'a str,
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
    why: String,
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
        Self(parse(BUILT_IN).unwrap_or_default())
    }

    /// These rules first, then the built-in ones.
    ///
    /// # Errors
    /// See [`RuleError`].
    pub fn extended(rules: &str) -> Result<Self, RuleError> {
        let mut all = parse(rules)?;
        all.extend(Self::built_in().0);
        Ok(Self(all))
    }

    /// The class of a failure.
    #[must_use]
    pub fn classify(&self, smtp_code: Option<u16>, dsn: Option<EnhancedCode>, text: &[u8]) -> Verdict<'_> {
        let smtp = smtp_code.map(|code| code.to_string()).unwrap_or_default();
        let dsn = dsn.filter(|code| !code.is_generic()).map(|code| code.to_string()).unwrap_or_default();
        let text = text.get(..TEXT_BYTES).unwrap_or(text).to_ascii_lowercase();
        self.0.iter().find(|rule| rule.fits(&smtp, &dsn, &text)).map_or(
            Verdict { class: BounceClass::Unknown, why: "no rule fits" },
            |rule| Verdict { class: rule.class, why: &rule.why },
        )
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
    fn parse(line: &str) -> Result<Self, &'static str> {
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
        Ok(Self { class, smtp, dsn, phrase, why: why.to_owned() })
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

fn parse(rules: &str) -> Result<Vec<Rule>, RuleError> {
    rules
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line.trim()))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| Rule::parse(line).map_err(|why| RuleError { line: number, why }))
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
