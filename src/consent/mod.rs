//! Consent: whether a recipient may be followed, at sending time and again at event time.
//!
//! - Layer: decision
//! - Takes: a pseudonym and a purpose.
//! - Gives: a decision; where several sources speak, the most restrictive one.
//! - On failure: a source that can't answer counts as `Denied`.
//! - See: `docs/privacy.md`.

pub mod file;
mod withdrawn;

pub use withdrawn::{Refused, Withdrawn, WithdrawnError};

use std::fmt;
use std::sync::Arc;

use crate::identity::Pseudonym;

/// What following would mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A pixel.
    Opens,
    /// Rewritten links.
    Clicks,
    /// A cookie that names the visitor, and a hand-off of who it is to a website.
    Identity,
}

/// What a recipient agreed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Consent {
    /// They said no, or nothing where silence means no.
    Denied,
    /// They may be followed.
    Granted,
}

/// Knows what recipients agreed to.
pub trait Consents: Send + Sync + fmt::Debug {
    /// Decides for one recipient; `None` is a copy that several recipients share.
    fn decide(&self, recipient: Option<&Pseudonym>, purpose: Purpose) -> Consent;
}

/// One answer for everybody: the policy of a site that keeps consent elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct Fixed {
    /// The answer for pixels.
    pub opens: Consent,
    /// The answer for links.
    pub clicks: Consent,
}

impl Consents for Fixed {
    fn decide(&self, _recipient: Option<&Pseudonym>, purpose: Purpose) -> Consent {
        match purpose {
            Purpose::Opens => self.opens,
            Purpose::Clicks => self.clicks,
            // Whoever has nothing more to say allows no more than was asked for.
            Purpose::Identity => Consent::Denied,
        }
    }
}

/// The answer of a site for everybody, identity included.
#[derive(Debug, Clone, Copy)]
pub struct SiteConsent {
    /// For pixels and links.
    pub fixed: Fixed,
    /// For cookie and hand-off.
    pub identity: Consent,
}

impl Consents for SiteConsent {
    fn decide(&self, recipient: Option<&Pseudonym>, purpose: Purpose) -> Consent {
        match purpose {
            Purpose::Identity => self.identity,
            _ => self.fixed.decide(recipient, purpose),
        }
    }
}

/// Several sources, of which the strictest wins.
#[derive(Debug, Clone)]
pub struct Strictest(pub Vec<Arc<dyn Consents>>);

impl Consents for Strictest {
    fn decide(&self, recipient: Option<&Pseudonym>, purpose: Purpose) -> Consent {
        let said = self.0.iter().map(|source| source.decide(recipient, purpose));
        // Where there is no source nobody agreed.
        said.min().unwrap_or(Consent::Denied)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strictest_source_wins() {
        let (yes, no) = (Consent::Granted, Consent::Denied);
        let site = |fixed, identity| -> Arc<dyn Consents> {
            Arc::new(SiteConsent { fixed: Fixed { opens: fixed, clicks: fixed }, identity })
        };
        for (one, other, expected) in [(yes, yes, yes), (yes, no, no), (no, yes, no), (no, no, no)] {
            let sources = Strictest(vec![site(one, one), site(other, other)]);
            for purpose in [Purpose::Opens, Purpose::Clicks, Purpose::Identity] {
                assert_eq!(sources.decide(None, purpose), expected);
            }
        }
        assert_eq!(Strictest(Vec::new()).decide(None, Purpose::Clicks), no);
        assert_eq!(Fixed { opens: yes, clicks: yes }.decide(None, Purpose::Identity), no);
    }
}
