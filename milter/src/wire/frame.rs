//! Frames: a length of four bytes, a code, data.
//!
//! - Layer: word
//! - Takes: the bytes received so far.
//! - Gives: the first frame and its size on the wire; `Ok(None)` when more bytes are needed.
//! - On failure: [`FrameError`] for a length of zero or above the limit, as soon as the length is there.
//! - Limits: [`DEFAULT_FRAME_LIMIT_BYTES`]. A header travels in one frame, and Postfix passes headers of 60,000 bytes,
//!   so a limit of 64 KiB would break connections.
//! - See: Postfix `src/milter/milter8.c`, `vmilter8_write_cmd`

#![warn(clippy::indexing_slicing)]

use alloc::vec::Vec;

/// The longest frame taken unless configured otherwise, in bytes, its code included: 1 MiB, the most that any protocol
/// version can agree on.
pub const DEFAULT_FRAME_LIMIT_BYTES: usize = 1 << 20;

/// The bytes of the length field.
const LENGTH_BYTES: usize = 4;

/// One frame, borrowed from the receive buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The command or reply code.
    pub code: u8,
    /// What follows the code.
    pub data: &'a [u8],
}

/// Why bytes can't be a frame. The connection can't be used any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A length of zero leaves no room for the code.
    #[error("frame of length 0")]
    Empty,
    /// The length is above the limit.
    #[error("frame of {length} bytes, above the limit of {limit}")]
    TooLong {
        /// The length announced, in bytes.
        length: usize,
        /// The limit, in bytes.
        limit: usize,
    },
}

impl<'a> Frame<'a> {
    /// Reads the first frame; the number is its size on the wire, in bytes.
    ///
    /// # Errors
    /// A length of zero, or above `limit_bytes`.
    pub fn decode(bytes: &'a [u8], limit_bytes: usize) -> Result<Option<(Self, usize)>, FrameError> {
        let Some(size) = Self::size(bytes, limit_bytes)? else { return Ok(None) };
        let Some(payload) = bytes.get(LENGTH_BYTES..size) else { return Ok(None) };
        Ok(payload.split_first().map(|(code, data)| (Self { code: *code, data }, size)))
    }

    /// The size on the wire of the first frame, in bytes, as soon as its length is there.
    ///
    /// # Errors
    /// A length of zero, or above `limit_bytes`.
    pub fn size(bytes: &[u8], limit_bytes: usize) -> Result<Option<usize>, FrameError> {
        let Some(field) = bytes.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*field)).unwrap_or(usize::MAX);
        if length == 0 {
            return Err(FrameError::Empty);
        }
        if length > limit_bytes {
            return Err(FrameError::TooLong { length, limit: limit_bytes });
        }
        Ok(length.checked_add(LENGTH_BYTES))
    }

    /// Appends the frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_frame(out, self.code, |out| out.extend_from_slice(self.data));
    }
}

/// Appends a frame whose data `write` appends.
pub(crate) fn put_frame(out: &mut Vec<u8>, code: u8, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, code]);
    write(out);
    let length = u32::try_from(out.len() - start - LENGTH_BYTES).unwrap_or(u32::MAX);
    if let Some(field) = out.get_mut(start..).and_then(<[u8]>::first_chunk_mut::<LENGTH_BYTES>) {
        *field = length.to_be_bytes();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_every_byte() {
        let bytes = [0, 0, 0, 3, b'H', b'x', 0];
        for end in 0..bytes.len() {
            assert_eq!(Frame::decode(&bytes[..end], 10), Ok(None), "{end} bytes");
        }
        let (frame, size) = Frame::decode(&bytes, 10).unwrap().unwrap();
        assert_eq!((frame, size), (Frame { code: b'H', data: b"x\0" }, 7));
    }

    #[test]
    fn refuses_before_the_data_is_there() {
        assert_eq!(Frame::decode(&[0, 0, 0, 0], 10), Err(FrameError::Empty));
        assert_eq!(Frame::decode(&[0, 0, 0, 11], 10), Err(FrameError::TooLong { length: 11, limit: 10 }));
        assert_eq!(Frame::decode(&[0, 0, 0, 10], 10), Ok(None));
    }

    #[test]
    fn a_header_of_postfix_fits_the_default() {
        assert_eq!(Frame::size(&102_401_u32.to_be_bytes(), DEFAULT_FRAME_LIMIT_BYTES), Ok(Some(102_405)));
    }
}
