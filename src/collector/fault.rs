//! How the collector misbehaves when told to.
//!
//! - Layer: decision
//! - Takes: text like `500`, `503:0.2`, `hang-after:every=10`.
//! - Gives: for each request, by its number and a random share, the fault to play.
//! - On failure: a sentence that lists the modes.

use std::str::FromStr;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Answers with this status.
    Status(u16),
    /// Reads nothing and never answers.
    HangBefore,
    /// Reads and keeps the request, and never answers.
    HangAfter,
    /// Reads and keeps the request, and closes the connection.
    Reset,
    /// Answers after two seconds.
    Slow,
}

/// When it goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
enum When {
    Always,
    Share(f64),
    Every(u64),
}

/// A fault mode.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FaultMode(Option<(Fault, When)>);

/// A fault mode that is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no fault mode: none, a status from 400 to 599, hang-before, hang-after, reset, slow; \
     for some requests only: 503:0.2 (a share), reset:every=10"
)]
pub struct UnknownFault(String);

impl FaultMode {
    /// No faults.
    pub const NONE: Self = Self(None);

    /// The fault for request `number` (from 1); `random` is between 0 and 1.
    #[must_use]
    pub fn fault(&self, number: u64, random: f64) -> Option<Fault> {
        let (fault, when) = self.0?;
        let hit = match when {
            When::Always => true,
            When::Share(share) => random < share,
            When::Every(every) => number.is_multiple_of(every),
        };
        hit.then_some(fault)
    }
}

impl FromStr for FaultMode {
    type Err = UnknownFault;

    fn from_str(text: &str) -> Result<Self, UnknownFault> {
        let unknown = || UnknownFault(text.to_owned());
        let (word, when) = text.split_once(':').map_or((text, None), |(word, when)| (word, Some(when)));
        let fault = match word {
            "none" => return Ok(Self::NONE),
            "hang-before" => Fault::HangBefore,
            "hang-after" => Fault::HangAfter,
            "reset" => Fault::Reset,
            "slow" => Fault::Slow,
            "4xx" => Fault::Status(400),
            status => {
                let status = status.parse().ok().filter(|status| (400..600).contains(status));
                Fault::Status(status.ok_or_else(unknown)?)
            }
        };
        let when = match when {
            None => When::Always,
            Some(when) => match when.strip_prefix("every=") {
                Some(every) => {
                    When::Every(every.parse().ok().filter(|every| *every > 0).ok_or_else(unknown)?)
                }
                None => {
                    let share = when.parse().ok().filter(|share| (0.0..=1.0).contains(share));
                    When::Share(share.ok_or_else(unknown)?)
                }
            },
        };
        Ok(Self(Some((fault, when))))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_and_hit_when_they_should() {
        let mode = |text: &str| text.parse::<FaultMode>().unwrap();
        assert_eq!(mode("none").fault(1, 0.0), None);
        assert_eq!(mode("503").fault(1, 0.9), Some(Fault::Status(503)));
        assert_eq!(
            (mode("reset:0.2").fault(1, 0.1), mode("reset:0.2").fault(1, 0.3)),
            (Some(Fault::Reset), None)
        );
        let every = mode("hang-after:every=3");
        assert_eq!((every.fault(2, 0.0), every.fault(3, 0.0)), (None, Some(Fault::HangAfter)));
        for bad in ["", "200", "boom", "503:2", "503:every=0", "503:x"] {
            assert!(bad.parse::<FaultMode>().is_err(), "{bad}");
        }
    }
}
