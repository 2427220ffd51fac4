//! Lines that came before the one that says what message they are about.
//!
//! - Layer: decision
//! - Takes: attempts and removals of queue ids that are not known.
//! - Gives: those of one queue id, once local(8) says `forwarded as` it: what it forwarded may have arrived by then.
//! - On failure: what is pushed out was mail that is not tracked, as nearly all of it is.
//! - Limits: the last `MAX_LINES` lines; they are not in the checkpoint, since they hold addresses.

#![warn(clippy::indexing_slicing)]

use std::collections::VecDeque;

use super::line::Line;
use super::queue_id::QueueId;
use super::time::{LineTime, Moment};

/// A second of the fastest relay.
const MAX_LINES: usize = 2_000;

/// The last lines of queue ids that are not known.
#[derive(Debug, Default)]
pub(super) struct Early(VecDeque<Kept>);

/// A line, in one piece of memory that is used again.
#[derive(Debug)]
pub(super) struct Kept {
    queue_id: QueueId,
    moment: Moment,
    repeated: u32,
    bytes: Vec<u8>,
    /// Where time, host, instance, daemon and process end; the rest is the message.
    ends: [usize; 5],
}

impl Early {
    /// Keeps a line.
    pub(super) fn push(&mut self, queue_id: QueueId, line: &Line<'_>) {
        let mut bytes = match self.0.len() {
            MAX_LINES => self.0.pop_front().map(|kept| kept.bytes).unwrap_or_default(),
            _ => Vec::new(),
        };
        bytes.clear();
        let mut ends = [0; 5];
        for (part, end) in
            [line.time.text, line.host, line.instance, line.daemon, line.pid].into_iter().zip(&mut ends)
        {
            bytes.extend_from_slice(part);
            *end = bytes.len();
        }
        bytes.extend_from_slice(line.message);
        let (moment, repeated) = (line.time.moment, line.repeated);
        self.0.push_back(Kept { queue_id, moment, repeated, bytes, ends });
    }

    /// Takes the lines of a queue id of this host, in their order.
    pub(super) fn take(&mut self, host: &[u8], queue_id: QueueId) -> Vec<Kept> {
        let is_it = |kept: &Kept| kept.queue_id == queue_id && kept.part(1) == host;
        if !self.0.iter().any(is_it) {
            return Vec::new();
        }
        let (taken, left) = std::mem::take(&mut self.0).into_iter().partition(is_it);
        self.0 = left;
        Vec::from(taken)
    }
}

impl Kept {
    /// The line as it was.
    pub(super) fn line(&self) -> Line<'_> {
        Line {
            time: LineTime { text: self.part(0), moment: self.moment },
            host: self.part(1),
            instance: self.part(2),
            daemon: self.part(3),
            pid: self.part(4),
            repeated: self.repeated,
            message: self.part(5),
        }
    }

    fn part(&self, index: usize) -> &[u8] {
        let start = index.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        let end = self.ends.get(index).copied().unwrap_or(self.bytes.len());
        self.bytes.get(start..end).unwrap_or_default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_as_they_were_and_old_ones_go() {
        let line = |number: usize| format!("Nov 23 16:25:11 mx postfix/relay/smtp[7]: A{number:06}: to=<x>");
        let id = |number: usize| QueueId::parse(format!("A{number:06}").as_bytes()).unwrap();
        let mut early = Early::default();
        for number in 0..MAX_LINES * 2 {
            early.push(id(number), &Line::parse(line(number).as_bytes()).unwrap());
        }
        assert_eq!(early.0.len(), MAX_LINES);
        assert!(early.take(b"mx", id(7)).is_empty());
        let last = MAX_LINES * 2 - 1;
        assert!(early.take(b"gate", id(last)).is_empty());
        let text = line(last);
        let taken = early.take(b"mx", id(last));
        let lines: Vec<_> = taken.iter().map(Kept::line).collect();
        assert_eq!(lines, [Line::parse(text.as_bytes()).unwrap()]);
        assert!(early.take(b"mx", id(last)).is_empty());
    }
}
