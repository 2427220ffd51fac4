//! The list of those who withdrew their consent: pseudonyms, one a line.
//!
//! - Layer: decision
//! - Takes: the text of a list.
//! - Gives: who withdrew what; the text again.
//! - On failure: `WithdrawnError` names the line; a list is taken whole or not at all.
//! - Limits: those of the file that it comes from.
//! - See: `docs/privacy.md`, "Consent".

use std::collections::BTreeMap;

use super::{Consent, Consents, Purpose};
use crate::identity::Pseudonym;

const HEAD: &str = "# Recipients who withdrew their consent to be followed: pseudonym, and \"opens\" or \"clicks\" if only that.\n\
                    # Written by `mailtap consent`; lines of other programs are welcome.\n";

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
#[error("line {line}: expected a pseudonym (16 characters), and perhaps \"opens\" or \"clicks\"")]
pub struct WithdrawnError {
    /// Line, from 1.
    pub line: usize,
}

impl Withdrawn {
    /// Reads a list.
    ///
    /// # Errors
    /// `WithdrawnError`.
    pub fn parse(text: &str) -> Result<Self, WithdrawnError> {
        let mut list = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let Some(first) = words.next() else { continue };
            let wrong = WithdrawnError { line: number + 1 };
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
        self.0
            .iter()
            .fold(HEAD.to_owned(), |text, (recipient, what)| format!("{text}{recipient}{}\n", what.word()))
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
        let commented = list.to_text().replace('\n', "   # asked by letter\r\n\n");
        assert_eq!(Withdrawn::parse(&commented), Ok(list));
        for bad in ["ann@example.org", "AQEBAQEBAQEBAQEB everything", "AQEBAQEBAQEBAQEB opens clicks", "zzz"]
        {
            let error = Withdrawn::parse(&format!("# first\n{bad}")).unwrap_err();
            assert_eq!(error.line, 2, "{bad}");
            assert!(!error.to_string().contains(bad));
        }
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
