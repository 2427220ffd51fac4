//! For how long to put off what a property's hourly limit holds back.
//!
//! - Layer: decision
//! - Takes: the time between two requests of the property; for how long its source can put off deliveries; the time since the
//!   relay began.
//! - Gives: how many requests to keep at hand, and how many of the others to put off for which time.
//! - On failure: nothing can fail.
//! - Limits: what is at hand lasts until the shortest time is over, what was put off for that one until the next longer one is, and
//!   so on: the property is never without work while some is put off, and hardly anything is put off more often than it has to be.
//!   What another relay puts off, or an earlier life of this one did, is not known.
//! - See: `docs/ga4.md`; `pace`.

use std::collections::VecDeque;
use std::time::Duration;

/// What comes back is somewhat later than its time: it waits behind others in the queue.
const SLACK: f64 = 1.25;
/// What is put off within a sixteenth of a time counts as one.
const GRAIN: u32 = 16;

/// What was put off of one property.
#[derive(Debug)]
pub(super) struct Later {
    /// From one request to the next.
    interval: Duration,
    /// Shortest first.
    waits: Vec<Wait>,
}

/// A time for which requests can be put off, and what is.
#[derive(Debug)]
struct Wait {
    time: Duration,
    /// Until when, and how many.
    out: VecDeque<(Duration, usize)>,
}

impl Later {
    /// Nothing is put off yet. `waits`: shortest first.
    pub(super) fn new(interval: Duration, waits: &[Duration]) -> Self {
        let waits = waits.iter().map(|time| Wait { time: *time, out: VecDeque::new() }).collect();
        Self { interval, waits }
    }

    /// How many requests to keep at hand; `None`: all, since none can be put off.
    pub(super) fn kept(&self) -> Option<usize> {
        self.waits.first().map(|shortest| self.lasting(shortest.time))
    }

    /// So many requests are put off beyond those `at_hand`: for which times, the first ones for the shortest.
    pub(super) fn put_off(&mut self, at_hand: usize, count: usize, now: Duration) -> Vec<(usize, Duration)> {
        let next: Vec<Option<Duration>> =
            self.waits.iter().skip(1).map(|wait| Some(wait.time)).chain([None]).collect();
        let (interval, mut covered, mut left) = (self.interval, at_hand, count);
        let mut put_off = Vec::new();
        for (wait, next) in self.waits.iter_mut().zip(next) {
            let Some(next) = next else {
                put_off.push((left, wait.time));
                break;
            };
            covered = covered.saturating_add(wait.out(now));
            let here = left.min(lasting(interval, next).saturating_sub(covered));
            wait.add(here, now);
            (covered, left) = (covered.saturating_add(here), left - here);
            put_off.push((here, wait.time));
        }
        put_off.retain(|(count, _)| *count > 0);
        put_off
    }

    fn lasting(&self, time: Duration) -> usize {
        lasting(self.interval, time)
    }
}

impl Wait {
    /// How many are put off now.
    fn out(&mut self, now: Duration) -> usize {
        while self.out.front().is_some_and(|(until, _)| *until <= now) {
            self.out.pop_front();
        }
        self.out.iter().map(|(_, count)| count).sum()
    }

    fn add(&mut self, count: usize, now: Duration) {
        let until = now.saturating_add(self.time);
        match self.out.back_mut() {
            Some((last, with)) if until.saturating_sub(*last) < self.time / GRAIN => *with += count,
            _ if count > 0 => self.out.push_back((until, count)),
            _ => {}
        }
    }
}

/// How many requests last for so long: one that goes as soon as it may, and the others after it.
fn lasting(interval: Duration, time: Duration) -> usize {
    let intervals = time.mul_f64(SLACK).as_nanos().div_ceil(interval.as_nanos().max(1));
    usize::try_from(intervals).unwrap_or(usize::MAX).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn later(interval: Duration) -> Later {
        Later::new(interval, &[seconds(10), seconds(60), seconds(600)])
    }

    #[test]
    fn what_is_at_hand_lasts_until_the_shortest_time_is_over_and_so_on() {
        let mut later = later(seconds(2));
        assert_eq!(later.kept(), Some(8), "12.5 seconds");
        assert_eq!(later.put_off(8, 5, seconds(0)), [(5, seconds(10))]);
        // 75 seconds are 39 requests, 750 seconds 376.
        let all = later.put_off(8, 1_000, seconds(1));
        assert_eq!(all, [(26, seconds(10)), (337, seconds(60)), (637, seconds(600))]);
        assert_eq!(later.put_off(8, 10, seconds(2)), [(10, seconds(600))]);
        // What was put off for ten seconds is back.
        assert_eq!(later.put_off(8, 10, seconds(12)), [(10, seconds(10))]);
        assert_eq!(later.put_off(8, 400, seconds(500)).first(), Some(&(31, seconds(10))));
    }

    #[test]
    fn without_a_time_nothing_is_put_off_and_with_one_all_the_same() {
        let mut none = Later::new(seconds(1), &[]);
        assert_eq!((none.kept(), none.put_off(0, 5, seconds(0))), (None, Vec::new()));
        let mut one = Later::new(seconds(60), &[seconds(1)]);
        assert_eq!((one.kept(), one.put_off(2, 5, seconds(0))), (Some(2), vec![(5, seconds(1))]));
    }

    #[test]
    fn what_is_remembered_does_not_grow() {
        let mut later = later(Duration::from_millis(1));
        for millis in 0..120_000 {
            later.put_off(0, 1_000, Duration::from_millis(millis));
        }
        assert!(later.waits.iter().all(|wait| wait.out.len() <= 20), "{later:?}");
    }
}
