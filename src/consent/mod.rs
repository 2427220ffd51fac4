//! Consent: whether a recipient may be followed, at sending time and again at event time.
//!
//! - Layer: decision
//! - Takes: a pseudonym and a purpose.
//! - Gives: a decision; where several sources speak, the most restrictive one.
//! - On failure: a source that can't answer counts as `Denied`.
//! - See: `docs/privacy.md`.

use std::fmt;

use crate::identity::Pseudonym;

/// What following would mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A pixel.
    Opens,
    /// Rewritten links.
    Clicks,
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
        }
    }
}
