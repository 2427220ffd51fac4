//! What a log file holds, packed or not, read at any position.
//!
//! - Layer: edge
//! - Takes: a path.
//! - Gives: bytes at a position of the unpacked content.
//! - On failure: `io::Error`. A packed file that ends early, or is damaged, may be in the making: `Ok(0)` until it changes.
//! - Limits: packed content is read forwards; going back unpacks it from its beginning.
//! - See: `unpack` for what can be unpacked.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::rotation::modified_ns;
use super::unpack::{MAGIC_BYTES, Packer, Unpacked};

const SKIP_BYTES: usize = 64 * 1024;

/// An open file.
#[derive(Debug)]
pub(super) enum Content {
    /// As it stands.
    Plain(File),
    /// Packed.
    Packed(Box<Packed>),
}

/// A file that is packed.
pub(super) struct Packed {
    file: File,
    packer: Packer,
    decoder: Option<Unpacked>,
    /// How much of the unpacked content the decoder gave.
    at: u64,
    /// Size and time of the file when it was found to end early.
    broken_at: Option<(u64, i64)>,
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packed")
            .field("file", &self.file)
            .field("packer", &self.packer)
            .finish_non_exhaustive()
    }
}

impl Content {
    /// Opens a file; it is packed if it begins so.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let mut magic = [0; MAGIC_BYTES];
        let read = file.read_at(&mut magic, 0)?;
        let Some(packer) = Packer::of(magic.get(..read).unwrap_or_default()) else {
            return Ok(Self::Plain(file));
        };
        Ok(Self::Packed(Box::new(Packed { file, packer, decoder: None, at: 0, broken_at: None })))
    }

    /// The file itself: identity, time and size as it is stored.
    pub(super) fn metadata(&self) -> io::Result<Metadata> {
        match self {
            Self::Plain(file) => file.metadata(),
            Self::Packed(packed) => packed.file.metadata(),
        }
    }

    /// Whether the last reading found a packed file that is not whole.
    pub(super) fn is_damaged(&self) -> bool {
        matches!(self, Self::Packed(packed) if packed.broken_at.is_some() && packed.decoder.is_none())
    }

    /// Reads a piece of the unpacked content; 0 at its end.
    pub(super) fn read_at(&mut self, piece: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            let read = match self {
                Self::Plain(file) => file.read_at(piece, offset),
                Self::Packed(packed) => packed.read_at(piece, offset),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// The first bytes of the unpacked content, as many as there are.
    pub(super) fn head(&mut self, bytes: usize) -> io::Result<Vec<u8>> {
        let mut head = vec![0; bytes];
        let mut filled = 0;
        while let Some(room) = head.get_mut(filled..).filter(|room| !room.is_empty()) {
            match self.read_at(room, filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        head.truncate(filled);
        Ok(head)
    }

    /// Whether the unpacked content has at least so many bytes.
    pub(super) fn reaches(&mut self, bytes: u64) -> io::Result<bool> {
        match self {
            Self::Plain(file) => Ok(file.metadata()?.len() >= bytes),
            Self::Packed(packed) => packed.go_to(bytes),
        }
    }
}

impl Packed {
    fn read_at(&mut self, piece: &mut [u8], offset: u64) -> io::Result<usize> {
        if !self.go_to(offset)? {
            return Ok(0);
        }
        self.read(piece)
    }

    /// Goes to a position; `false` if the content ends before it.
    fn go_to(&mut self, offset: u64) -> io::Result<bool> {
        if self.decoder.is_none() || self.at > offset {
            let metadata = self.file.metadata()?;
            if self.broken_at == Some((metadata.len(), modified_ns(&metadata))) {
                return Ok(false);
            }
            let mut file = self.file.try_clone()?;
            file.seek(SeekFrom::Start(0))?;
            self.decoder = Some(self.packer.unpack(file)?);
            self.at = 0;
        }
        let mut skipped = vec![0; SKIP_BYTES.min(usize::try_from(offset - self.at).unwrap_or(SKIP_BYTES))];
        while self.at < offset {
            let want = usize::try_from(offset - self.at).unwrap_or(SKIP_BYTES).min(skipped.len());
            let Some(room) = skipped.get_mut(..want) else { break };
            if self.read(room)? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        let Some(decoder) = &mut self.decoder else { return Ok(0) };
        match decoder.read(piece) {
            Ok(read) => {
                self.at += read as u64;
                Ok(read)
            }
            Err(error) if is_damage(&error) => {
                // Tried again from the beginning when the file has changed.
                self.decoder = None;
                let metadata = self.file.metadata()?;
                self.broken_at = Some((metadata.len(), modified_ns(&metadata)));
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }
}

/// The file ends too early, or is not packed from some point on: it can be read, but not understood.
fn is_damage(error: &io::Error) -> bool {
    error.raw_os_error().is_none() && error.kind() != io::ErrorKind::Interrupted
}

impl Read for Content {
    /// Reads on from where the last call ended; not to be mixed with `read_at`.
    fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(piece),
            Self::Packed(packed) => {
                let at = packed.at;
                packed.read_at(piece, at)
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn packed(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn packed_content_reads_like_plain() {
        let directory = tempfile::tempdir().unwrap();
        let text: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let (plain, gzip) = (directory.path().join("a"), directory.path().join("b"));
        fs::write(&plain, &text).unwrap();
        // Two members, as `cat a.gz b.gz` makes them.
        fs::write(&gzip, [packed(&text[..1_000]), packed(&text[1_000..])].concat()).unwrap();
        let mut plain = Content::open(&plain).unwrap();
        let mut gzip = Content::open(&gzip).unwrap();
        for offset in [0, 10, 999, 1_000, 500_000, 3, 799_999, 800_000, 900_000] {
            let (mut one, mut other) = ([0; 1], [0; 1]);
            let expected = plain.read_at(&mut one, offset).unwrap();
            assert_eq!(gzip.read_at(&mut other, offset).unwrap(), expected, "{offset}");
            assert_eq!(one, other, "{offset}");
        }
        assert_eq!(gzip.head(1_024).unwrap(), text[..1_024]);
        assert!(gzip.reaches(800_000).unwrap() && !gzip.reaches(800_001).unwrap());
        let mut all = Vec::new();
        let mut again = Content::open(&directory.path().join("b")).unwrap();
        again.read_to_end(&mut all).unwrap();
        assert_eq!(all, text);
    }

    /// Packed by the tools themselves, in two pieces: `tests/data/logs/README.md`.
    fn fixture(ending: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data/logs/packed/postfix-3.7.11.log")
            .with_extension(format!("log.{ending}"))
    }

    #[test]
    fn other_tools_files_read_like_plain() {
        let text = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/logs/postfix-3.7.11.log"));
        for ending in ["xz", "bz2", "zst"] {
            let mut content = Content::open(&fixture(ending)).unwrap();
            assert!(matches!(content, Content::Packed(_)), "{ending}");
            for offset in [0, 999, 1_000, 20_000, 3, text.len() - 1] {
                let mut one = [0; 1];
                assert_eq!(content.read_at(&mut one, offset as u64).unwrap(), 1, "{ending} {offset}");
                assert_eq!(one[0], text[offset], "{ending} {offset}");
            }
            let mut all = Vec::new();
            Content::open(&fixture(ending)).unwrap().read_to_end(&mut all).unwrap();
            assert_eq!(all, text, "{ending}");
            assert!(!content.reaches(text.len() as u64 + 1).unwrap() && !content.is_damaged(), "{ending}");
        }
        let error = Content::open(&fixture("lz4")).unwrap().head(1).unwrap_err();
        assert_eq!(error.to_string(), "packed with lz4: unpack it first");
    }

    #[test]
    fn damage_is_noticed_in_files_of_every_tool() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        for ending in ["xz", "bz2", "zst"] {
            let whole = fs::read(fixture(ending)).unwrap();
            for end in [20, whole.len() / 2, whole.len() - 1] {
                fs::write(&path, &whole[..end]).unwrap();
                let mut content = Content::open(&path).unwrap();
                let mut all = Vec::new();
                content.read_to_end(&mut all).unwrap();
                assert!(content.is_damaged(), "{ending} {end}");
                fs::write(&path, &whole).unwrap();
                assert!(content.reaches(40_000).unwrap(), "{ending}: whole by now");
            }
            let mut flipped = whole.clone();
            flipped[whole.len() * 2 / 3] ^= 0x10;
            fs::write(&path, &flipped).unwrap();
            let mut content = Content::open(&path).unwrap();
            while content.read(&mut [0; 4_096]).unwrap() > 0 {}
            assert!(content.is_damaged(), "{ending}: a bit flipped");
        }
    }

    #[test]
    fn a_file_in_the_making_is_read_on_when_it_grows() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.gz");
        let whole = packed(&(0..20_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let mut content = Content::open(&path).unwrap();
        let half = content.head(80_000).unwrap().len();
        assert!(half < 80_000);
        assert_eq!(content.read_at(&mut [0; 10], half as u64).unwrap(), 0);
        assert!(content.is_damaged());
        fs::write(&path, &whole).unwrap();
        assert_eq!(content.head(80_000).unwrap().len(), 80_000);
        assert!(!content.is_damaged());
    }
}
