//! A moment, in microseconds since 1970, as GA4 and CloudEvents want it.
//!
//! - Layer: word
//! - Takes: numbers and RFC 3339 text.
//! - Gives: numbers and RFC 3339 text in UTC.
//! - On failure: `ParseError`.
//! - Limits: 1970 to the end of 9998.
//! - See: RFC 3339; the clock itself is `service::clock`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::fmt::temporal::DateTimePrinter;

use super::{ParseError, serde_as_text};

/// Microseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// 9998-12-31T23:59:59.999999Z: RFC 3339 can write it in every time zone.
    pub const MAX: Self = Self(253_370_764_799_999_999);

    /// From microseconds; later than `MAX` becomes `MAX`.
    #[must_use]
    pub fn from_micros(micros: u64) -> Self {
        Self(micros.min(Self::MAX.0))
    }

    /// From milliseconds.
    #[must_use]
    pub fn from_millis(millis: u64) -> Self {
        Self::from_micros(millis.saturating_mul(1_000))
    }

    /// From seconds.
    #[must_use]
    pub fn from_secs(secs: u64) -> Self {
        Self::from_micros(secs.saturating_mul(1_000_000))
    }

    /// Microseconds since 1970.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Whole milliseconds since 1970.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000
    }

    /// Whole seconds since 1970.
    #[must_use]
    pub const fn as_secs(self) -> u64 {
        self.0 / 1_000_000
    }

    /// This moment and a while more, `MAX` at the most.
    #[must_use]
    pub fn plus(self, while_: Duration) -> Self {
        Self::from_micros(self.0.saturating_add(u64::try_from(while_.as_micros()).unwrap_or(u64::MAX)))
    }

    /// This moment less a while, 1970 at the least.
    #[must_use]
    pub fn minus(self, while_: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(while_.as_micros()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; zero if it is not after it.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// Writes its text at the end of another: what `Display` writes, without going through a formatter.
    pub fn push_onto(self, text: &mut String) {
        const PRINTER: DateTimePrinter = DateTimePrinter::new();
        let moment =
            i64::try_from(self.0).ok().and_then(|micros| jiff::Timestamp::from_microsecond(micros).ok());
        if let Some(moment) = moment {
            // To memory, and no later than `MAX`: it cannot fail.
            let _ = PRINTER.print_timestamp(&moment, text);
        }
    }
}

impl FromStr for Timestamp {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = |why| ParseError { what: "time", why };
        let moment: jiff::Timestamp =
            text.parse().map_err(|_| error("it is not RFC 3339, like 2026-11-23T16:25:11Z"))?;
        u64::try_from(moment.as_microsecond()).map(Self::from_micros).map_err(|_| error("it is before 1970"))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = i64::try_from(self.0).map_err(|_| fmt::Error)?;
        let moment = jiff::Timestamp::from_microsecond(micros).map_err(|_| fmt::Error)?;
        write!(f, "{moment}")
    }
}

serde_as_text!(Timestamp);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn text_is_rfc_3339_in_utc() {
        let moment: Timestamp = "2026-11-23T17:58:12.917912+01:00".parse().unwrap();
        assert_eq!(moment.to_string(), "2026-11-23T16:58:12.917912Z");
        assert_eq!(moment.as_secs(), 1_795_453_092);
        assert!("yesterday".parse::<Timestamp>().is_err());
        assert!("1969-12-31T23:59:59Z".parse::<Timestamp>().is_err());
    }

    #[test]
    fn arithmetic_stays_within_the_bounds() {
        let moment = Timestamp::from_secs(10);
        assert_eq!(moment.plus(Duration::from_millis(1_500)).as_micros(), 11_500_000);
        assert_eq!(moment.minus(Duration::from_secs(11)), Timestamp::default());
        assert_eq!(Timestamp::from_micros(u64::MAX), Timestamp::MAX);
        assert_eq!(Timestamp::MAX.to_string(), "9998-12-31T23:59:59.999999Z");
        assert_eq!(moment.since(Timestamp::from_secs(12)), Duration::ZERO);
    }
}
