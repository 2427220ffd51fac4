//! Postfix's queue ids, short and long; a long one tells to the microsecond when the message came.
//!
//! - Layer: decision
//! - Takes: the bytes before the first colon of a message.
//! - Gives: `QueueId`, small enough to be a key of a million of them.
//! - On failure: `None` for bytes that are no queue id.
//! - Limits: 6 to 29 characters; Postfix's longest has 10 of time, one `z` and 11 of inode number.
//! - See: Postfix `src/global/mail_queue.h`, `safe_ultostr.c`, `enable_long_queue_ids`.

#![warn(clippy::indexing_slicing)]

use std::fmt;
use std::hash::{Hash, Hasher};

use crate::identity::Timestamp;

/// A queue id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueueId {
    len: u8,
    bytes: [u8; QueueId::MAX_BYTES],
}

/// The digits of a long queue id, in their order; the inode number uses all but the last.
const DIGITS: &[u8; 52] = b"0123456789BCDFGHJKLMNPQRSTVWXYZbcdfghjklmnpqrstvwxyz";
/// The least digits that the seconds have.
const SECONDS_DIGITS: usize = 6;
/// The digits that the microseconds have.
const MICROS_DIGITS: usize = 4;

impl QueueId {
    /// The most characters that are kept.
    pub const MAX_BYTES: usize = 29;

    /// The queue id that these bytes are.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        if text.len() < 6 || text.len() > Self::MAX_BYTES || text == b"NOQUEUE" {
            return None;
        }
        if !text.iter().all(u8::is_ascii_alphanumeric) {
            return None;
        }
        let mut bytes = [0; Self::MAX_BYTES];
        bytes.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
        Some(Self { len: u8::try_from(text.len()).ok()?, bytes })
    }

    /// The characters.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// When the message came, where the id is a long one.
    #[must_use]
    pub fn arrival(&self) -> Option<Timestamp> {
        let text = self.as_bytes();
        // Short ids are of 0-9A-F: no `z`. In a long one only the last `z` separates (it may be a digit of the time).
        let (time, _) = text.split_at_checked(memchr::memrchr(b'z', text)?)?;
        let seconds_digits =
            time.len().checked_sub(MICROS_DIGITS).filter(|digits| *digits >= SECONDS_DIGITS)?;
        let (seconds, micros) = time.split_at_checked(seconds_digits)?;
        let (seconds, micros) = (number(seconds)?, number(micros)?);
        if micros >= 1_000_000 {
            return None;
        }
        Some(Timestamp::from_micros(seconds.checked_mul(1_000_000)?.checked_add(micros)?))
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0_u64, |sum, digit| {
        let value = memchr::memchr(*digit, DIGITS)?;
        sum.checked_mul(DIGITS.len() as u64)?.checked_add(value as u64)
    })
}

impl Hash for QueueId {
    /// Of the characters alone: the room behind them is as much again.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.as_bytes());
    }
}

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Letters and digits only, by `parse`.
        f.write_str(std::str::from_utf8(self.as_bytes()).unwrap_or_default())
    }
}

impl fmt::Debug for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QueueId({self})")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_long_id_tells_when_the_message_came() {
        let id = QueueId::parse(b"4jYBw46WS8z1TRj1").unwrap();
        assert_eq!(id.arrival().unwrap().to_string(), "2026-11-23T16:58:12.917912Z");
        assert_eq!(id.to_string(), "4jYBw46WS8z1TRj1");
    }

    #[test]
    fn a_short_one_does_not() {
        assert_eq!(QueueId::parse(b"296AC9AC58B").unwrap().arrival(), None);
        assert_eq!(QueueId::parse(b"abcdefz123").unwrap().arrival(), None);
    }

    #[test]
    fn what_is_none() {
        for bad in ["NOQUEUE", "warning x", "short", "", "4jYBw46WS8z1TRj1-", &"A".repeat(30)] {
            assert_eq!(QueueId::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
