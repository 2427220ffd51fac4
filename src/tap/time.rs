//! The time of a log line, and the year and zone that RFC 3164 leaves out.
//!
//! - Layer: decision
//! - Takes: the text of a line's time; the zone of the log; what else is known of the moment.
//! - Gives: `Timestamp`.
//! - On failure: `None` for a text that is no time; a time that no zone has (a spring night) moves on by the gap.
//! - Limits: without a queue id that tells the time, the year is the latest that is not in the future.
//! - See: RFC 3164 section 4.1.2, RFC 3339, Postfix `log_adhoc.c` (delay).
//!
//! A delivery line of a message with a long queue id needs neither year nor zone: it happened `delay` after the arrival
//! that the queue id tells, and the line's own time agrees with that up to whole quarters of an hour, which is what
//! zones and their summer times differ by. So New Year, the repeated hour of autumn and a log of another zone come out right.

#![warn(clippy::indexing_slicing)]

use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::identity::Timestamp;

/// When a line was logged, as far as it says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LineTime<'a> {
    /// The text itself: what event ids are made of.
    pub text: &'a [u8],
    /// What it says.
    pub moment: Moment,
}

/// A moment that may lack year and zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Complete.
    Exact(Timestamp),
    /// The logger had no clock: RFC 5424 section 6.2.3.
    Unknown,
    /// Month, day, hour, minute and second of an unnamed year, in an unnamed zone.
    Civil {
        /// 1–12.
        month: u8,
        /// 1–31.
        day: u8,
        /// Second of the day, 0–86,400.
        second: u32,
    },
}

const MONTHS: &[u8; 36] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
/// A line may be this far ahead of our clock and still be of this year.
const AHEAD: Duration = Duration::from_secs(25 * 3_600);
/// How far a delivery line may be from arrival plus delay.
const SLACK_MICROS: u64 = 120_000_000;
const SECOND_MICROS: u64 = 1_000_000;
/// What all zones of the world, and their summer times, are multiples of.
const ZONE_STEP_MICROS: u64 = 15 * 60 * SECOND_MICROS;
/// What two zones of the world differ by at the most: -12:00 to +14:00.
const LARGEST_ZONE_MICROS: u64 = 26 * 3_600 * SECOND_MICROS;

impl<'a> LineTime<'a> {
    /// `Nov 23 16:25:11`, the day padded with a blank or a zero; a fraction is passed over.
    #[must_use]
    pub fn civil(text: &'a [u8]) -> Option<Self> {
        let [m, o, n, b' ', d1, d2, b' ', h1, h2, b':', i1, i2, b':', s1, s2, fraction @ ..] = text else {
            return None;
        };
        if !fraction.is_empty() && !fraction.starts_with(b".") {
            return None;
        }
        let name = [*m, *o, *n];
        let month = MONTHS.chunks_exact(3).position(|month| month == name)?;
        let tens = if *d1 == b' ' { b'0' } else { *d1 };
        let day = two_digits(tens, *d2).filter(|day| (1..=31).contains(day))?;
        let hour = two_digits(*h1, *h2).filter(|hour| *hour < 24)?;
        let minute = two_digits(*i1, *i2).filter(|minute| *minute < 60)?;
        let second = two_digits(*s1, *s2).filter(|second| *second <= 60)?;
        let second = u32::from(hour) * 3_600 + u32::from(minute) * 60 + u32::from(second);
        Some(Self { text, moment: Moment::Civil { month: u8::try_from(month).ok()? + 1, day, second } })
    }

    /// `2026-11-23T16:08:08.123456+00:00`.
    #[must_use]
    pub fn iso(text: &'a [u8]) -> Option<Self> {
        let time = std::str::from_utf8(text).ok()?.parse().ok()?;
        Some(Self { text, moment: Moment::Exact(time) })
    }

    /// No time at all, with the text that says so.
    #[must_use]
    pub const fn unknown(text: &'a [u8]) -> Self {
        Self { text, moment: Moment::Unknown }
    }

    /// A moment that is known, with the text it came as.
    #[must_use]
    pub const fn exact(text: &'a [u8], time: Timestamp) -> Self {
        Self { text, moment: Moment::Exact(time) }
    }
}

fn two_digits(tens: u8, ones: u8) -> Option<u8> {
    (tens.is_ascii_digit() && ones.is_ascii_digit()).then(|| (tens - b'0') * 10 + (ones - b'0'))
}

/// Finds the year and the zone.
#[derive(Debug)]
pub struct Resolver {
    zone: TimeZone,
    cached: Option<Cached>,
}

/// The last minute that was resolved: lines come in clusters, and no zone changes within a minute.
#[derive(Debug)]
struct Cached {
    month: u8,
    day: u8,
    minute: u32,
    not_after: Timestamp,
    start: Timestamp,
}

impl Resolver {
    /// For logs written in this zone.
    #[must_use]
    pub const fn new(zone: TimeZone) -> Self {
        Self { zone, cached: None }
    }

    /// The moment of a line, if nothing is known but that it is not in the future.
    pub fn resolve(&mut self, moment: Moment, now: Timestamp) -> Timestamp {
        let (month, day, second) = match moment {
            Moment::Exact(time) => return time,
            Moment::Unknown => return now,
            Moment::Civil { month, day, second } => (month, day, second),
        };
        let within = Duration::from_secs(u64::from(second % 60));
        let minute = second / 60;
        // The cache is good for the minute it was made in; a New Year must not hide in it.
        let not_after = Timestamp::from_secs(now.plus(AHEAD).as_secs() / 3_600 * 3_600);
        if let Some(cached) = &self.cached
            && (cached.month, cached.day, cached.minute, cached.not_after) == (month, day, minute, not_after)
        {
            return cached.start.plus(within);
        }
        let year = year_of(not_after);
        // A leap day may lie eight years back (1896 to 1904, 2096 to 2104).
        let start = (0..=8)
            .map(|back| year - back)
            .filter_map(|year| self.instant(year, month, day, minute * 60))
            .find(|time| *time <= not_after)
            .unwrap_or(now);
        self.cached = Some(Cached { month, day, minute, not_after, start });
        start.plus(within)
    }

    /// The moment of a delivery line, `delay` after the message's `arrival` in this very queue.
    pub fn resolve_delivery(
        &mut self,
        moment: Moment,
        now: Timestamp,
        arrival: Option<Timestamp>,
        delay: Duration,
    ) -> Timestamp {
        let Some(expected) = arrival.map(|arrival| arrival.plus(delay)) else {
            return self.resolve(moment, now);
        };
        let (month, day, second) = match moment {
            Moment::Exact(time) => return time,
            Moment::Unknown => return expected,
            Moment::Civil { month, day, second } => (month, day, second),
        };
        let Some(nearest) = self.nearest(expected, month, day, second) else {
            return self.resolve(moment, now);
        };
        let shifted = shift_towards(nearest, expected);
        let distance = shifted.as_micros().abs_diff(expected.as_micros());
        let shift = shifted.as_micros().abs_diff(nearest.as_micros());
        // A message that `postsuper -r` queued anew has a younger queue id than its delay counts from: that puts
        // `expected` too late by at most the delay. Only another zone explains more, or a difference the other way.
        let is_another_zone = nearest > expected || u128::from(shift) > delay.as_micros();
        if shift > LARGEST_ZONE_MICROS || distance > SLACK_MICROS || (shift != 0 && !is_another_zone) {
            return self.resolve(moment, now);
        }
        // The line has whole seconds; the queue id and the delay know better while they agree.
        if distance <= 2 * SECOND_MICROS { expected } else { shifted }
    }

    /// Of all moments that the zone calls so, the one nearest to `target`.
    fn nearest(&self, target: Timestamp, month: u8, day: u8, second: u32) -> Option<Timestamp> {
        let year = year_of(target);
        [year - 1, year, year + 1]
            .into_iter()
            .filter_map(|year| civil(year, month, day, second))
            .flat_map(|time| {
                let ambiguous = self.zone.to_ambiguous_timestamp(time);
                [ambiguous.earlier(), ambiguous.later()]
            })
            .filter_map(|time| u64::try_from(time.ok()?.as_microsecond()).ok())
            .map(Timestamp::from_micros)
            .min_by_key(|time| time.as_micros().abs_diff(target.as_micros()))
    }

    fn instant(&self, year: i16, month: u8, day: u8, second: u32) -> Option<Timestamp> {
        let time = self.zone.to_timestamp(civil(year, month, day, second)?).ok()?;
        u64::try_from(time.as_microsecond()).ok().map(Timestamp::from_micros)
    }
}

/// Moves `time` by whole quarters of an hour to where it is nearest to `target`.
fn shift_towards(time: Timestamp, target: Timestamp) -> Timestamp {
    let (time, target) = (time.as_micros(), target.as_micros());
    let steps = (time.abs_diff(target) + ZONE_STEP_MICROS / 2) / ZONE_STEP_MICROS * ZONE_STEP_MICROS;
    Timestamp::from_micros(if time < target { time + steps } else { time.saturating_sub(steps) })
}

fn civil(year: i16, month: u8, day: u8, second: u32) -> Option<DateTime> {
    let second = second.min(86_399);
    let part = |value: u32| i8::try_from(value).ok();
    let (hour, minute, second) = (part(second / 3_600)?, part(second / 60 % 60)?, part(second % 60)?);
    DateTime::new(year, i8::try_from(month).ok()?, i8::try_from(day).ok()?, hour, minute, second, 0).ok()
}

fn year_of(time: Timestamp) -> i16 {
    i64::try_from(time.as_micros())
        .ok()
        .and_then(|micros| jiff::Timestamp::from_microsecond(micros).ok())
        .map_or(1970, |time| TimeZone::UTC.to_datetime(time).year())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn resolved(line: &str, zone: &str, now: &str) -> String {
        let moment = LineTime::civil(line.as_bytes()).unwrap().moment;
        Resolver::new(TimeZone::get(zone).unwrap()).resolve(moment, at(now)).to_string()
    }

    #[test]
    fn the_year_is_the_latest_that_is_not_in_the_future() {
        let zone = "Europe/Berlin";
        assert_eq!(resolved("Dec 31 23:59:59", zone, "2027-01-01T00:10:00Z"), "2026-12-31T22:59:59Z");
        assert_eq!(resolved("Jan  1 00:00:01", zone, "2026-12-31T23:05:00Z"), "2026-12-31T23:00:01Z");
        assert_eq!(resolved("Jan 01 00:00:01", zone, "2026-12-31T22:59:00Z"), "2026-12-31T23:00:01Z");
        assert_eq!(resolved("Nov 23 12:00:00", zone, "2026-11-22T00:00:00Z"), "2025-11-23T11:00:00Z");
        assert_eq!(resolved("Feb 29 12:00:00", zone, "2026-11-22T00:00:00Z"), "2024-02-29T11:00:00Z");
    }

    #[test]
    fn summer_time_is_the_zones() {
        let now = "2026-12-01T00:00:00Z";
        assert_eq!(resolved("Jul  1 12:00:00", "Europe/Berlin", now), "2026-07-01T10:00:00Z");
        assert_eq!(
            resolved("Mar 29 02:30:00", "Europe/Berlin", now),
            "2026-03-29T01:30:00Z",
            "a time that was not"
        );
        assert_eq!(
            resolved("Oct 25 02:30:00", "Europe/Berlin", now),
            "2026-10-25T00:30:00Z",
            "the first of two"
        );
    }

    fn delivered(line: &str, zone: &str, arrival: &str, delay_ms: u64) -> String {
        let moment = LineTime::civil(line.as_bytes()).unwrap().moment;
        let mut resolver = Resolver::new(TimeZone::get(zone).unwrap());
        let now = at("2030-01-01T00:00:00Z");
        resolver.resolve_delivery(moment, now, Some(at(arrival)), Duration::from_millis(delay_ms)).to_string()
    }

    #[test]
    fn a_long_queue_id_gives_year_zone_and_fraction() {
        // The repeated hour of autumn: 02:30 summer time and 02:30 winter time.
        let of = |arrival| delivered("Oct 25 02:30:00", "Europe/Berlin", arrival, 250);
        assert_eq!(of("2026-10-25T00:30:00.1Z"), "2026-10-25T00:30:00.35Z");
        assert_eq!(of("2026-10-25T01:30:00.1Z"), "2026-10-25T01:30:00.35Z");
        // A log in another zone than the configured one, years ago, over New Year.
        let line = "Jan  1 05:29:59";
        assert_eq!(delivered(line, "UTC", "2024-12-30T23:59:59.5Z", 86_400_300), "2024-12-31T23:59:59.8Z");
        // Queued anew after two hours: the queue id is younger than the message.
        assert_eq!(
            delivered("Nov 23 10:00:30", "UTC", "2029-11-23T10:00:29Z", 7_200_900),
            "2029-11-23T10:00:30Z"
        );
        // Half a minute late: the line's own second counts.
        assert_eq!(delivered("Nov 23 10:00:30", "UTC", "2026-11-23T10:00:00Z", 10), "2026-11-23T10:00:30Z");
    }

    #[test]
    fn an_arrival_that_cannot_be_is_no_help() {
        let line = "Nov 23 10:07:00";
        assert_eq!(delivered(line, "UTC", "2026-11-23T10:00:00Z", 0), "2029-11-23T10:07:00Z");
        assert_eq!(delivered(line, "UTC", "2026-06-01T00:00:00Z", 0), "2029-11-23T10:07:00Z");
    }

    #[test]
    fn other_texts_are_no_times() {
        for bad in
            ["", "Nov 23 16:25:1", "Nix 23 16:25:11", "Nov 32 16:25:11", "Nov 23 24:00:00", "Nov 23 1x:25:11"]
        {
            assert_eq!(LineTime::civil(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(LineTime::iso(b"2026-11-23"), None);
        assert_eq!(LineTime::iso("2026-11-23T16:25:1\u{e9}Z".as_bytes()), None);
    }
}
