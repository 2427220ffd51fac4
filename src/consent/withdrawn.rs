//! The list of those who withdrew their consent: pseudonyms, one a line, between a first and a last line that say that nothing
//! is missing.
//!
//! - Layer: decision
//! - Takes: the text of a list.
//! - Gives: who withdrew what; the text again.
//! - On failure: `WithdrawnError` says what is wrong, and where; a list is taken whole or not at all: one that is empty, or cut, as it
//!   is while somebody copies another over it, would have everybody followed again.
//! - Limits: those of the file that it comes from.
//! - See: `docs/privacy.md`, "Consent".

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Consent, Consents, Purpose};
use crate::identity::Pseudonym;

/// The first line of every list.
const FIRST: &str = "# mailtap: withdrawn consents, version 1";
/// The first line without its version.
const FIRST_OF_ANY: &str = "# mailtap: withdrawn consents, version ";
/// The last line of every list.
const LAST: &str = "# end";
const EXPLAINED: &str = "# Recipients who withdrew their consent to be followed: pseudonym, and \"opens\" or \"clicks\" if only that.\n\
                    # Written by `mailtap consent`; other programs may write it too, with the same first and last line.\n";

/// What somebody withdrew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Refused {
    /// Pixels.
    pub opens: bool,
    /// Links.
    pub clicks: bool,
}

impl Refused {
    /// Everything.
    pub const ALL: Self = Self { opens: true, clicks: true };

    const fn word(self) -> &'static str {
        match self {
            Self { opens: true, clicks: false } => " opens",
            Self { opens: false, clicks: true } => " clicks",
            _ => "",
        }
    }
}

/// Who withdrew.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Withdrawn(BTreeMap<Pseudonym, Refused>);

/// Why a text is no such list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WithdrawnError {
    /// It does not begin as every list does.
    #[error(
        "the first line is not `{FIRST}`, as it is in every list that `mailtap consent` makes: this one is empty, cut, or another \
         program's; copy it again from where it is kept (to a new name, then rename it), or add that line, and `{LAST}` as the last one, \
         if all who withdrew are in it"
    )]
    NoBeginning,
    /// A later mailtap made it.
    #[error("the first line is not `{FIRST}`: the list is of another version; use the mailtap that made it")]
    Version,
    /// It does not end as every list does.
    #[error(
        "the last line is not `{LAST}`: the list is cut, or something was added behind its end; copy it again from where it is kept (to \
         a new name, then rename it), or make that line the last one, if all who withdrew are in it"
    )]
    NoEnd,
    /// A line says nothing that is known.
    #[error("line {line}: expected a pseudonym (16 characters), and perhaps \"opens\" or \"clicks\"")]
    Line {
        /// From 1.
        line: usize,
    },
}

impl Withdrawn {
    /// Reads a list.
    ///
    /// # Errors
    /// `WithdrawnError`.
    pub fn parse(text: &str) -> Result<Self, WithdrawnError> {
        let first = text.lines().next().unwrap_or_default().trim_end();
        if first != FIRST {
            let is_other = first.starts_with(FIRST_OF_ANY);
            return Err(if is_other { WithdrawnError::Version } else { WithdrawnError::NoBeginning });
        }
        if text.trim_end().lines().next_back() != Some(LAST) {
            return Err(WithdrawnError::NoEnd);
        }
        let mut list = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let Some(first) = words.next() else { continue };
            let wrong = WithdrawnError::Line { line: number + 1 };
            let recipient = first.parse().map_err(|_| wrong)?;
            let what = match (words.next(), words.next()) {
                (None, _) => Refused::ALL,
                (Some("opens"), None) => Refused { opens: true, clicks: false },
                (Some("clicks"), None) => Refused { opens: false, clicks: true },
                _ => return Err(wrong),
            };
            list.withdraw(recipient, what);
        }
        Ok(list)
    }

    /// The list as text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("{FIRST}\n{EXPLAINED}");
        for (recipient, what) in &self.0 {
            // Writing to a string can't fail.
            let _ = writeln!(text, "{recipient}{}", what.word());
        }
        text + LAST + "\n"
    }

    /// Who withdrew what.
    pub fn iter(&self) -> impl Iterator<Item = (Pseudonym, Refused)> {
        self.0.iter().map(|(recipient, what)| (*recipient, *what))
    }

    /// What one recipient withdrew.
    #[must_use]
    pub fn of(&self, recipient: &Pseudonym) -> Refused {
        self.0.get(recipient).copied().unwrap_or_default()
    }

    /// Notes that somebody withdraws; what they withdrew before stays.
    pub fn withdraw(&mut self, recipient: Pseudonym, what: Refused) {
        let known = self.0.entry(recipient).or_default();
        *known = Refused { opens: known.opens || what.opens, clicks: known.clicks || what.clicks };
    }

    /// Notes that somebody agrees again.
    pub fn allow(&mut self, recipient: Pseudonym, what: Refused) {
        let known = self.of(&recipient);
        let left = Refused { opens: known.opens && !what.opens, clicks: known.clicks && !what.clicks };
        if left == Refused::default() {
            self.0.remove(&recipient);
        } else {
            self.0.insert(recipient, left);
        }
    }
}

impl Consents for Withdrawn {
    /// A token that several share names nobody: nothing can be found for it.
    fn decide(&self, recipient: Option<&Pseudonym>, purpose: Purpose) -> Consent {
        let refused = recipient.map(|recipient| self.of(recipient)).unwrap_or_default();
        let is_refused = match purpose {
            Purpose::Opens => refused.opens,
            // Who does not want their clicks known does not want to be known by them.
            Purpose::Clicks | Purpose::Identity => refused.clicks,
        };
        if is_refused { Consent::Denied } else { Consent::Granted }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ann() -> Pseudonym {
        Pseudonym::from([1; 12])
    }

    #[test]
    fn a_list_comes_back_and_a_wrong_line_is_named_but_not_shown() {
        let mut list = Withdrawn::default();
        list.withdraw(ann(), Refused::ALL);
        list.withdraw(Pseudonym::from([2; 12]), Refused { opens: true, clicks: false });
        assert_eq!(Withdrawn::parse(&list.to_text()), Ok(list.clone()));
        let text = list.to_text();
        let marked = text.lines().map(|line| match line.starts_with('#') {
            true => format!("{line}\r\n"),
            false => format!("{line}   # asked by letter\r\n\n"),
        });
        assert_eq!(Withdrawn::parse(&marked.collect::<String>()), Ok(list));
        for bad in ["ann@example.org", "AQEBAQEBAQEBAQEB everything", "AQEBAQEBAQEBAQEB opens clicks", "zzz"]
        {
            let error = Withdrawn::parse(&format!("{FIRST}\n{bad}\n{LAST}")).unwrap_err();
            assert_eq!(error, WithdrawnError::Line { line: 2 }, "{bad}");
            assert!(!error.to_string().contains(bad));
        }
    }

    #[test]
    fn no_part_of_a_list_passes_for_the_whole() {
        let mut list = Withdrawn::default();
        for number in 1..4 {
            list.withdraw(Pseudonym::from([number; 12]), Refused::ALL);
        }
        let text = list.to_text();
        // All but the line's end behind the last one.
        for end in 0..text.len() - 1 {
            let part = Withdrawn::parse(&text[..end]);
            assert!(
                matches!(part, Err(WithdrawnError::NoBeginning | WithdrawnError::NoEnd)),
                "{end}: {part:?}"
            );
        }
        assert_eq!(Withdrawn::parse(text.trim_end()), Ok(list));
        let added = format!("{text}{}\n", ann());
        assert_eq!(Withdrawn::parse(&added), Err(WithdrawnError::NoEnd));
        assert_eq!(Withdrawn::parse(&text.replace("version 1", "version 2")), Err(WithdrawnError::Version));
        let old = "# Recipients who withdrew\nAQEBAQEBAQEBAQEB\n";
        assert_eq!(Withdrawn::parse(old), Err(WithdrawnError::NoBeginning));
    }

    #[test]
    fn each_purpose_is_withdrawn_and_given_again_by_itself() {
        let mut list = Withdrawn::default();
        let decide = |list: &Withdrawn| {
            [Purpose::Opens, Purpose::Clicks]
                .map(|purpose| list.decide(Some(&ann()), purpose) == Consent::Granted)
        };
        assert_eq!(decide(&list), [true, true]);
        list.withdraw(ann(), Refused { opens: true, clicks: false });
        assert_eq!(decide(&list), [false, true]);
        list.withdraw(ann(), Refused { opens: false, clicks: true });
        assert_eq!(decide(&list), [false, false]);
        assert_eq!(list.decide(None, Purpose::Opens), Consent::Granted);
        list.allow(ann(), Refused { opens: true, clicks: false });
        assert_eq!(decide(&list), [true, false]);
        list.allow(ann(), Refused::ALL);
        assert_eq!(list, Withdrawn::default());
    }
}
