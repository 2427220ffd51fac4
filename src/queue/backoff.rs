//! How long to wait before the next try: longer each time, and never as long as everybody else.
//!
//! - Layer: decision
//! - Takes: a random number for each wait.
//! - Gives: waits between a half and the whole of a step that doubles.
//! - On failure: nothing can fail.
//! - Limits: from 200 ms to 30 s.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);

/// The waits of one thing that fails and fails again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure.
    #[must_use]
    pub fn failed(&mut self, random: u32) -> Duration {
        let step = FIRST.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(LONGEST);
        self.failures = (self.failures + 1).min(16);
        let half = step / 2;
        half + half.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    /// It works again.
    pub fn worked(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_longest_and_fall_back_when_it_works() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.failed(0), FIRST / 2);
        assert_eq!(backoff.failed(u32::MAX), FIRST * 2);
        for _ in 0..100 {
            let wait = backoff.failed(u32::MAX);
            assert!(wait <= LONGEST);
        }
        assert_eq!(backoff.failed(0), LONGEST / 2);
        backoff.worked();
        assert_eq!(backoff.failed(u32::MAX), FIRST);
    }
}
