//! The receive buffer of a connection.
//!
//! - Layer: decision
//! - Takes: bytes in pieces of any size, copied in or read in place.
//! - Gives: whole frames, one after the other.
//! - On failure: [`FrameError`] from the first bad length.
//! - Limits: starts at 4 KiB and grows while a frame needs it, up to twice the frame limit; given back by [`Inbox::shrink`].
//!   What a peer announces allocates at most thirty-two times what it has sent.

#![warn(clippy::indexing_slicing)]

use alloc::vec::Vec;

use crate::wire::{Frame, FrameError};

/// The size that a buffer starts with, in bytes.
const SMALL_BYTES: usize = 4 << 10;
/// How much more than what is there a frame's announcement may allocate, as a factor.
const MOST_GROWTH: usize = 32;

#[derive(Debug)]
pub(crate) struct Inbox {
    /// Its length is the buffer's size; what counts lies between `start` and `end`.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    frame_limit: usize,
}

impl Inbox {
    pub(crate) const fn new(frame_limit: usize) -> Self {
        Self { bytes: Vec::new(), start: 0, end: 0, frame_limit }
    }

    /// The next whole frame.
    pub(crate) fn frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let waiting = self.bytes.get(self.start..self.end).unwrap_or_default();
        let Some((frame, size)) = Frame::decode(waiting, self.frame_limit)? else { return Ok(None) };
        self.start += size;
        Ok(Some(frame))
    }

    /// Whether a whole frame waits.
    #[cfg(feature = "tokio")]
    pub(crate) fn has_frame(&self) -> Result<bool, FrameError> {
        let waiting = self.bytes.get(self.start..self.end).unwrap_or_default();
        Ok(Frame::decode(waiting, self.frame_limit)?.is_some())
    }

    /// The code of the next frame, as soon as it is there.
    #[cfg(feature = "tokio")]
    pub(crate) fn next_code(&self) -> Option<u8> {
        self.bytes.get(self.start..self.end)?.get(4).copied()
    }

    /// Room to read into, never empty; to be followed by [`Inbox::filled`].
    pub(crate) fn room(&mut self) -> &mut [u8] {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
        if self.end == self.bytes.len() {
            if self.start > self.bytes.len() / 2 {
                self.bytes.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            } else {
                self.grow();
            }
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// Makes room for the frame that waits for its end in one step, where so much of it is there; else doubles.
    fn grow(&mut self) {
        let waiting = self.bytes.get(self.start..self.end).unwrap_or_default();
        let frame = Frame::size(waiting, self.frame_limit).ok().flatten().unwrap_or_default();
        let held = self.bytes.len();
        let whole = self.start.saturating_add(frame);
        let doubled = (held * 2).max(SMALL_BYTES);
        let size = if whole > held && whole <= held * MOST_GROWTH { whole } else { doubled };
        self.bytes.resize(size, 0);
    }

    /// Counts the first `count` bytes of the room as received.
    pub(crate) fn filled(&mut self, count: usize) {
        self.end = self.end.saturating_add(count).min(self.bytes.len());
    }

    /// Copies bytes in.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = self.room();
            let count = room.len().min(bytes.len());
            let (now, later) = bytes.split_at_checked(count).unwrap_or((bytes, &[]));
            if let Some(room) = room.get_mut(..now.len()) {
                room.copy_from_slice(now);
            }
            self.filled(now.len());
            bytes = later;
        }
    }

    /// The bytes received and not yet taken as frames.
    pub(crate) const fn waiting_bytes(&self) -> usize {
        self.end - self.start
    }

    /// The memory held, in bytes.
    pub(crate) const fn held_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Gives memory back when nothing waits.
    pub(crate) fn shrink(&mut self) {
        if self.waiting_bytes() == 0 {
            self.bytes = Vec::new();
            self.start = 0;
            self.end = 0;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use alloc::vec;

    use super::*;

    #[test]
    fn an_announcement_allocates_nothing() {
        let mut inbox = Inbox::new(1 << 20);
        inbox.push(&(1_u32 << 20).to_be_bytes());
        assert_eq!(inbox.frame(), Ok(None));
        assert!(!inbox.room().is_empty());
        assert!(inbox.held_bytes() <= SMALL_BYTES);
    }

    #[test]
    fn a_long_frame_gets_its_room_at_once() {
        let mut frame = vec![];
        Frame { code: b'B', data: &vec![7; 65_535] }.encode(&mut frame);
        let mut inbox = Inbox::new(1 << 20);
        inbox.push(&frame[..SMALL_BYTES]);
        assert_eq!(inbox.room().len(), frame.len() - SMALL_BYTES);
        inbox.push(&frame[SMALL_BYTES..]);
        assert_eq!(inbox.frame().unwrap().unwrap().data.len(), 65_535);
        assert_eq!(inbox.held_bytes(), frame.len());
        // One that is much longer than what has come gets it by and by.
        let mut inbox = Inbox::new(1 << 20);
        inbox.push(&(1_u32 << 20).to_be_bytes());
        inbox.push(&[b'B'; SMALL_BYTES]);
        assert_eq!(inbox.held_bytes(), 2 * SMALL_BYTES);
    }

    #[test]
    fn the_buffer_stays_within_twice_the_longest_frame() {
        let mut inbox = Inbox::new(1 << 20);
        let mut frame = vec![];
        Frame { code: b'B', data: &vec![7; 65_535] }.encode(&mut frame);
        for _ in 0..20 {
            for piece in frame.chunks(1_000) {
                inbox.push(piece);
            }
            assert_eq!(inbox.frame().unwrap().unwrap().data.len(), 65_535);
        }
        assert!(inbox.held_bytes() <= 2 * frame.len(), "{}", inbox.held_bytes());
        inbox.shrink();
        assert_eq!(inbox.held_bytes(), 0);
    }

    #[test]
    fn shrinking_keeps_what_waits() {
        let mut inbox = Inbox::new(1 << 20);
        inbox.push(&[0; 20_000]);
        inbox.shrink();
        assert_eq!(inbox.waiting_bytes(), 20_000);
    }
}
