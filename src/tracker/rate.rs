//! How often one client, or one link of one recipient, may be counted.
//!
//! - Layer: decision
//! - Takes: what asks, and the time, as arguments.
//! - Gives: whether it is within its rate.
//! - On failure: nothing can fail. Two askers who share both their cells share a rate.
//! - Limits: a table of 65,536 cells, whoever asks; one cell is eight bytes.
//! - See: the generic cell rate algorithm, ITU-T I.371; `docs/tracker.md`, "Limits".

use std::hash::{BuildHasher, Hash};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const CELLS: usize = 1 << 16;
/// An IPv6 /48 is a site of many lines: it may ask for as much as this many of them.
const LINES_OF_A_SITE: u64 = 16;

/// A rate: one each `every`, and `burst` of them at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    every_ns: u64,
    burst: u64,
}

impl Rate {
    /// `count` each `per`, and as many as `burst` at once; `None`, no limit, for 0.
    #[must_use]
    pub fn new(count: u64, per: Duration, burst: u64) -> Option<Self> {
        let per_ns = u64::try_from(per.as_nanos()).unwrap_or(u64::MAX);
        let every_ns = per_ns.checked_div(count)?.max(1);
        Some(Self { every_ns, burst: burst.max(1) })
    }

    const fn times(self, factor: u64) -> Self {
        let every_ns = self.every_ns / factor;
        Self { every_ns: if every_ns == 0 { 1 } else { every_ns }, burst: self.burst.saturating_mul(factor) }
    }

    /// How far ahead of the time an asker may be.
    const fn patience_ns(self) -> u64 {
        self.every_ns.saturating_mul(self.burst - 1)
    }
}

/// Who asked when, in a table that never grows.
pub struct Table<S> {
    /// Each the time, in nanoseconds, at which its asker would be back at zero.
    cells: Box<[AtomicU64]>,
    hasher: S,
}

impl<S> std::fmt::Debug for Table<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("cells", &self.cells.len()).finish_non_exhaustive()
    }
}

impl<S: BuildHasher> Table<S> {
    /// An empty table; `hasher` is keyed, so that nobody can choose whom to share cells with.
    pub fn new(hasher: S) -> Self {
        Self { cells: (0..CELLS).map(|_| AtomicU64::new(0)).collect(), hasher }
    }

    /// Counts one more, at `now` since any fixed moment; whether it is within the rate.
    ///
    /// Each asker has two cells and is over its rate only when both are: one shared with a greedy asker does not cost it.
    pub fn allows(&self, asker: impl Hash, rate: Rate, now: Duration) -> bool {
        let hash = self.hasher.hash_one(asker);
        let now_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let mut within = false;
        for place in [hash, hash >> 32] {
            #[allow(clippy::cast_possible_truncation, reason = "the low bits are the place")]
            let cell = self.cells.get(place as usize % CELLS);
            within |= cell.is_some_and(|cell| take(cell, rate, now_ns));
        }
        within
    }
}

fn take(cell: &AtomicU64, rate: Rate, now_ns: u64) -> bool {
    let next = |at: u64| {
        let at = at.max(now_ns);
        (at - now_ns <= rate.patience_ns()).then(|| at.saturating_add(rate.every_ns))
    };
    cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
}

/// Whether a client is within its rate, as an IPv4 address, or an IPv6 /64 and its /48.
pub fn allows_client<S: BuildHasher>(table: &Table<S>, client: IpAddr, rate: Rate, now: Duration) -> bool {
    match client.to_canonical() {
        IpAddr::V4(address) => table.allows((4_u8, address), rate, now),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            let line = table.allows((64_u8, Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0)), rate, now);
            let site = (48_u8, Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0));
            line && table.allows(site, rate.times(LINES_OF_A_SITE), now)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::hash::{BuildHasherDefault, DefaultHasher};

    use super::*;

    fn table() -> Table<BuildHasherDefault<DefaultHasher>> {
        Table::new(BuildHasherDefault::default())
    }

    fn at(ms: u64) -> Duration {
        Duration::from_millis(1_000_000 + ms)
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let (table, rate) = (table(), Rate::new(10, Duration::from_secs(1), 5).unwrap());
        let passed = |now| (0..20).filter(|_| table.allows("a", rate, at(now))).count();
        assert_eq!((passed(0), passed(99), passed(100), passed(350)), (5, 0, 1, 2));
        assert_eq!(passed(100_000), 5, "a pause gives the burst again, and no more");
        assert_eq!(
            (0..20).filter(|_| table.allows("b", rate, at(0))).count(),
            5,
            "another asker has its own"
        );
        assert!(Rate::new(0, Duration::from_secs(1), 5).is_none());
    }

    #[test]
    fn a_clock_that_steps_back_gives_nothing_away_and_locks_nobody_out() {
        let (table, rate) = (table(), Rate::new(10, Duration::from_secs(1), 5).unwrap());
        assert!((0..5).all(|_| table.allows("a", rate, at(1_000))));
        assert!(!table.allows("a", rate, at(1_000)) && !table.allows("a", rate, at(0)));
        assert!(table.allows("a", rate, at(1_100)));
    }

    #[test]
    fn addresses_of_one_line_are_one_client_and_a_site_has_many_lines() {
        let (table, rate) = (table(), Rate::new(1, Duration::from_secs(1), 3).unwrap());
        let asks = |address: &str| allows_client(&table, address.parse().unwrap(), rate, at(0));
        assert!(asks("192.0.2.1") && asks("::ffff:192.0.2.1") && asks("192.0.2.1") && !asks("192.0.2.1"));
        assert!(asks("192.0.2.2"));
        assert!(asks("2001:db8::1") && asks("2001:db8::2") && asks("2001:db8::3") && !asks("2001:db8::4"));
        let lines = (0..1_000).filter(|line| asks(&format!("2001:db8:1:{line:x}::1"))).count();
        assert_eq!(lines, 3 * 16, "a /48 is not endless");
    }

    #[test]
    fn a_crowd_of_greedy_clients_costs_others_little() {
        let (table, rate) = (table(), Rate::new(1, Duration::from_secs(1), 2).unwrap());
        for greedy in 0..5_000_u32 {
            for _ in 0..4 {
                table.allows(("greedy", greedy), rate, at(0));
            }
        }
        let refused = (0..1_000_u32).filter(|quiet| !table.allows(("quiet", *quiet), rate, at(0))).count();
        // Both cells taken: (1 - e^(-10,000 / 65,536))² is 2 %.
        assert!(refused < 50, "{refused}");
    }
}
