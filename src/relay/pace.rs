//! How many requests a property may get within an hour.
//!
//! - Layer: decision
//! - Takes: the limit; the time since the relay began.
//! - Gives: whether a request may go now, and when the next one may.
//! - On failure: nothing can fail.
//! - Limits: in no span of an hour more than the limit; at once a 360th of it, then evenly. What an earlier life of the relay
//!   sent is not known.
//! - See: `docs/ga4.md`; the generic cell rate algorithm (a token bucket without tokens).

use std::time::Duration;

use super::later::Later;

const HOUR: Duration = Duration::from_secs(3_600);
/// At once may go what ten seconds allow.
const BURSTS: u64 = 360;

/// The pace of one property.
#[derive(Debug)]
pub(super) struct Pace {
    /// From one request to the next, once the burst is used up.
    interval: Duration,
    /// How far `rested` may be ahead.
    ahead: Duration,
    /// When the whole burst may go again.
    rested: Duration,
}

impl Pace {
    /// Of so many requests an hour; `None` for 0: no limit.
    pub(super) fn new(per_hour: u64) -> Option<Self> {
        let per_hour = u32::try_from(per_hour).unwrap_or(u32::MAX);
        let burst = u32::try_from(u64::from(per_hour) / BURSTS).unwrap_or(u32::MAX).max(1);
        // So many that a burst and an hour of this are no more than the limit.
        let evenly = per_hour.checked_sub(burst)?.saturating_add(1);
        let interval = HOUR / evenly + Duration::from_nanos(1);
        Some(Self { interval, ahead: interval.saturating_mul(burst - 1), rested: Duration::ZERO })
    }

    /// When the next request may go.
    pub(super) fn next(&self) -> Duration {
        self.rested.saturating_sub(self.ahead)
    }

    /// Whether a request may go now.
    pub(super) fn allows(&self, now: Duration) -> bool {
        self.next() <= now
    }

    /// A request goes now.
    pub(super) fn take(&mut self, now: Duration) {
        self.rested = self.rested.max(now).saturating_add(self.interval);
    }
}

/// The paces of all properties.
#[derive(Debug)]
pub(super) struct Paces(Vec<Paced>);

#[derive(Debug)]
struct Paced {
    pace: Pace,
    later: Later,
    /// It was told that events wait.
    is_told: bool,
}

impl Paces {
    /// All with the same limit; 0: none. `waits`: for how long their source can put off deliveries, shortest first.
    pub(super) fn new(properties: usize, per_hour: u64, waits: &[Duration]) -> Self {
        let paced = |_| {
            let pace = Pace::new(per_hour)?;
            Some(Paced { later: Later::new(pace.interval, waits), pace, is_told: false })
        };
        Self((0..properties).filter_map(paced).collect())
    }

    /// How many more requests of a property may be under way.
    pub(super) fn allowed(&self, property: usize, now: Duration) -> usize {
        let holds = self.0.get(property).is_some_and(|paced| !paced.pace.allows(now));
        if holds { 0 } else { usize::MAX }
    }

    /// A request of this property goes now.
    pub(super) fn take(&mut self, property: usize, now: Duration) {
        self.0.get_mut(property).into_iter().for_each(|paced| paced.pace.take(now));
    }

    /// What is to be told: the properties whose events begin to wait (`true`), and those that have caught up.
    pub(super) fn news(&mut self, waits: impl Fn(usize) -> bool, now: Duration) -> Vec<(usize, bool)> {
        let mut news = Vec::new();
        for (property, paced) in self.0.iter_mut().enumerate() {
            let begins = waits(property) && !paced.pace.allows(now);
            let ends = !waits(property) && paced.pace.rested <= now;
            if (!paced.is_told && begins) || (paced.is_told && ends) {
                paced.is_told = begins;
                news.push((property, begins));
            }
        }
        news
    }

    /// When to look again.
    pub(super) fn next(&self, waits: impl Fn(usize) -> bool, now: Duration) -> Option<Duration> {
        let of = |(property, paced): (usize, &Paced)| match waits(property) {
            true => (!paced.pace.allows(now)).then(|| paced.pace.next()),
            false => (paced.is_told && paced.pace.rested > now).then_some(paced.pace.rested),
        };
        self.0.iter().enumerate().filter_map(of).min()
    }

    /// How many requests are to be kept waiting of each property that is held now.
    pub(super) fn kept(&self, now: Duration) -> Vec<(usize, usize)> {
        let held = self.0.iter().enumerate().filter(|(_, paced)| !paced.pace.allows(now));
        held.filter_map(|(property, paced)| Some((property, paced.later.kept()?))).collect()
    }

    /// So many requests of this property are put off beyond those at hand: for which times, the first ones for the shortest.
    pub(super) fn put_off(
        &mut self,
        property: usize,
        at_hand: usize,
        count: usize,
        now: Duration,
    ) -> Vec<(usize, Duration)> {
        let paced = self.0.get_mut(property);
        paced.map(|paced| paced.later.put_off(at_hand, count, now)).unwrap_or_default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// When requests go that are all there from the beginning, `pauses` left out.
    fn went(per_hour: u64, count: usize, pauses: &[(Duration, Duration)]) -> Vec<Duration> {
        let mut pace = Pace::new(per_hour).unwrap();
        let mut now = Duration::ZERO;
        let next = |_| {
            now = now.max(pace.next());
            now = pauses.iter().find(|(from, to)| (*from..*to).contains(&now)).map_or(now, |(_, to)| *to);
            assert!(pace.allows(now));
            pace.take(now);
            now
        };
        (0..count).map(next).collect()
    }

    fn most_in_an_hour(went: &[Duration]) -> usize {
        let within = |from: &Duration| went.iter().filter(|at| (*from..*from + HOUR).contains(*at)).count();
        went.iter().map(within).max().unwrap()
    }

    #[test]
    fn no_hour_has_more_than_the_limit_and_hardly_one_has_less() {
        for limit in [1_u64, 2, 3, 359, 360, 719, 720, 721, 1_000] {
            let count = usize::try_from(limit).unwrap();
            let all = went(limit, 3 * count + 3, &[]);
            let most = most_in_an_hour(&all);
            assert!(most <= count && most * 100 >= count * 99, "{most} of {limit}");
            // A rest in between, after which the burst may go again.
            let rest = (Duration::from_secs(1_000), Duration::from_secs(3_000));
            assert!(most_in_an_hour(&went(limit, 2 * count + 2, &[rest])) <= count, "{limit} after a rest");
        }
    }

    #[test]
    fn a_burst_goes_at_once_and_the_rest_evenly() {
        let all = went(3_600, 30, &[]);
        assert_eq!(all.iter().filter(|at| **at == Duration::ZERO).count(), 10);
        let gaps = all[10..].windows(2).map(|two| two[1] - two[0]);
        assert!(
            gaps.into_iter().all(|gap| gap > Duration::from_secs(1) && gap < Duration::from_millis(1_003))
        );
    }

    #[test]
    fn none_is_no_limit_and_the_largest_has_sense() {
        assert!(Pace::new(0).is_none());
        for large in [100_000_000, u64::from(u32::MAX), u64::MAX] {
            let mut pace = Pace::new(large).unwrap();
            (0..100_000).for_each(|_| {
                assert!(pace.allows(Duration::ZERO));
                pace.take(Duration::ZERO);
            });
        }
    }

    #[test]
    fn it_is_told_once_that_events_wait_and_once_that_they_have_caught_up() {
        let second = Duration::from_secs;
        let mut paces = Paces::new(2, 60, &[second(10)]);
        assert_eq!(paces.allowed(1, second(0)), usize::MAX);
        paces.take(1, second(0));
        assert_eq!((paces.allowed(0, second(0)), paces.allowed(1, second(59))), (usize::MAX, 0));
        assert_eq!(paces.news(|_| false, second(1)), [], "nothing waits");
        assert_eq!(paces.news(|_| true, second(1)), [(1, true)]);
        assert_eq!(paces.news(|_| true, second(2)), []);
        assert_eq!(paces.next(|_| true, second(2)).unwrap().as_secs(), 60);
        assert_eq!(paces.kept(second(50)), [(1, 2)]);
        paces.take(1, second(61));
        assert_eq!(paces.news(|property| property == 1, second(61)), [], "it goes on to wait");
        assert_eq!(paces.news(|_| false, second(62)), []);
        assert_eq!(paces.next(|_| false, second(62)).unwrap().as_secs(), 121);
        assert_eq!(paces.news(|_| false, second(122)), [(1, false)]);
        assert_eq!(paces.next(|_| false, second(122)), None);
    }
}
