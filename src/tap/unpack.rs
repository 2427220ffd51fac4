//! What packed a rotated log, and a reader that undoes it.
//!
//! - Layer: edge
//! - Takes: the first bytes of a file; the file itself.
//! - Gives: the unpacked content, forwards.
//! - On failure: `io::Error`; one that comes from the file has a number of the system's, one that comes from damage has none.
//! - Limits: gzip, xz, bzip2 and zstd, of one stream or several; xz and zstd need a window of at most 128 MiB. lz4 is known, and
//!   not read.
//! - See: RFC 1952, RFC 8878; logrotate(8), `compresscmd`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use bzip2::read::MultiBzDecoder;
use flate2::read::MultiGzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// As many bytes as tell.
pub(super) const MAGIC_BYTES: usize = 10;
/// `xz -9` has 64 MiB.
const MAX_WINDOW_BYTES: u64 = 128 * 1024 * 1024;
/// What xz needs beside its window.
const XZ_KIB: u32 = 160 * 1024;

/// What packed a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packer {
    Gzip,
    Xz,
    Bzip2,
    Zstd,
    Lz4,
}

/// The unpacked content of a file.
pub(super) type Unpacked = Box<dyn Read + Send>;

impl Packer {
    /// What packed a file that begins so, if anything did.
    pub(super) fn of(magic: &[u8]) -> Option<Self> {
        match magic {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            // The first block's mark, or that of an empty file.
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31 | 0x17, ..] => Some(Self::Bzip2),
            // A frame, or one to be skipped, as pzstd begins.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            [0x04, 0x22, 0x4d, 0x18, ..] => Some(Self::Lz4),
            _ => None,
        }
    }

    /// A reader of the unpacked content, from its beginning.
    pub(super) fn unpack(self, file: File) -> io::Result<Unpacked> {
        let file = BufReader::new(file);
        Ok(match self {
            Self::Gzip => Box::new(MultiGzDecoder::new(file)),
            Self::Xz => Box::new(XzReader::new_mem_limit(file, true, XZ_KIB)),
            Self::Bzip2 => Box::new(MultiBzDecoder::new(file)),
            Self::Zstd => Box::new(Zstd::new(file)),
            Self::Lz4 => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "packed with lz4: unpack it first"));
            }
        })
    }
}

/// All frames of a file.
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    is_in_frame: bool,
}

impl<R: BufRead> Zstd<R> {
    fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_WINDOW_BYTES);
        Self { source, decoder, is_in_frame: false }
    }

    /// Begins the next frame; `false` at the end.
    fn begin(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    io::copy(&mut (&mut self.source).take(length.into()), &mut io::sink())?;
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.is_in_frame && !self.begin()? {
                return Ok(0);
            }
            self.is_in_frame = true;
            if self.decoder.can_collect() > 0 {
                return self.decoder.read(piece);
            }
            if !self.decoder.is_finished() {
                let some = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.source, some).map_err(io::Error::other)?;
                continue;
            }
            self.is_in_frame = false;
            let (stored, counted) =
                (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum());
            if stored.is_some() && stored != counted {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a checksum differs"));
            }
        }
    }
}
