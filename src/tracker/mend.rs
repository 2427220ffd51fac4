//! Odd bytes in the head of a request of HTTP/1.1: they cost nobody the redirect.
//!
//! - Layer: decision
//! - Takes: the bytes of a connection, in pieces of any size.
//! - Gives: the same bytes, but in a path and query what a URL can't have percent-encoded, as browsers do, and in the value
//!   of a field a space for each control character.
//! - On failure: nothing can fail: what looks like no head passes as it came, and so does all that follows a head with a
//!   body. Neither line ends, nor the blanks between the parts of a line, nor names, nor the fields by which a message is
//!   framed, routed or trusted are ever touched: where a request ends is what it was.
//! - Limits: three bytes for one at most.
//! - See: RFC 9110 section 5.5, which has NUL in a value replaced or refused; RFC 9112 sections 3 and 11.2; case 68 of what
//!   goes wrong elsewhere.
#![warn(clippy::indexing_slicing)]

/// Fields whose values pass as they came.
const KEPT: [&[u8]; 9] = [
    b"connection",
    b"content-length",
    b"expect",
    b"host",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"x-forwarded-for",
];
/// With one of these there may be a body.
const OF_A_BODY: [&[u8]; 2] = [b"content-length", b"transfer-encoding"];
/// Longer than any of them.
const NAME_BYTES: usize = 18;

/// Where in a head the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before a request line, where empty lines are skipped.
    Begin,
    Method,
    /// At the first byte of a target.
    Target,
    /// In a target that is a path.
    Path,
    /// In what is left of a request line.
    Line,
    /// At the first byte of a field, or of the empty line.
    Field,
    /// Behind the CR of the empty line.
    End,
    Name,
    /// In a value that passes as it came.
    Kept,
    /// In any other.
    Value,
    /// Nothing is looked at any more.
    Off,
}

/// What becomes of a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stays,
    Escaped,
    Blank,
}

/// How far one connection is.
#[derive(Debug)]
pub(super) struct Mender {
    at: At,
    has_body: bool,
    /// The field's name as far as it came, in lower case; longer ones are none of those that matter.
    name: [u8; NAME_BYTES],
    length: u8,
}

impl Mender {
    /// At the beginning of a connection.
    pub(super) const fn new() -> Self {
        Self { at: At::Begin, has_body: false, name: [0; NAME_BYTES], length: 0 }
    }

    /// For what is not HTTP/1.1.
    pub(super) const fn off() -> Self {
        Self { at: At::Off, ..Self::new() }
    }

    /// What stands for these bytes; nothing where that is they themselves.
    pub(super) fn mend(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut mended: Option<Vec<u8>> = None;
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            let run = self.run(bytes.get(at..).unwrap_or_default());
            if run > 0 {
                if let Some(mended) = &mut mended {
                    mended.extend_from_slice(bytes.get(at..at + run).unwrap_or_default());
                }
                at += run;
                continue;
            }
            let fate = self.step(*byte);
            if fate != Fate::Stays && mended.is_none() {
                mended = Some(bytes.get(..at).unwrap_or_default().to_vec());
            }
            if let Some(mended) = &mut mended {
                match fate {
                    Fate::Stays => mended.push(*byte),
                    Fate::Blank => mended.push(b' '),
                    Fate::Escaped => mended.extend(format!("%{byte:02X}").bytes()),
                }
            }
            at += 1;
        }
        mended
    }

    /// How many bytes of these change nothing: most of a head are in values, and are looked at all at once.
    fn run(&self, bytes: &[u8]) -> usize {
        match self.at {
            At::Off => bytes.len(),
            At::Line | At::Kept => memchr::memchr(b'\n', bytes).unwrap_or(bytes.len()),
            At::Value => {
                let line = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
                let value = bytes.get(..line).unwrap_or_default();
                let is_plain = !value.iter().fold(false, |odd, byte| odd | is_control(*byte));
                if is_plain { line } else { 0 }
            }
            _ => 0,
        }
    }

    fn step(&mut self, byte: u8) -> Fate {
        self.at = match (self.at, byte) {
            (At::Begin, b'\r' | b'\n') => At::Begin,
            (At::Begin | At::Method, b' ') => At::Target,
            (At::Method, b'\n') => At::Off,
            (At::Begin | At::Method, _) => At::Method,
            (At::Target, b'/') => At::Path,
            (At::Target | At::Path, b' ') => At::Line,
            // What some take for a blank is not for us to judge.
            (At::Target | At::Path, b'\t'..=b'\r') => At::Off,
            (At::Target, _) => At::Line,
            (At::Path, _) => return if is_odd(byte) { Fate::Escaped } else { Fate::Stays },
            (At::Line | At::Kept | At::Value, b'\n') => At::Field,
            (At::Value, _) if is_control(byte) => return Fate::Blank,
            (At::Line | At::Kept | At::Value | At::Off, _) => return Fate::Stays,
            (At::Field, b'\r') => At::End,
            (At::Field | At::End, b'\n') => self.next(),
            // A folded line goes on with what came before it.
            (At::End, _) | (At::Field, b' ' | b'\t') | (At::Name, b'\n') => At::Off,
            (At::Name, b':') => self.value(),
            (At::Field | At::Name, _) => self.name(byte),
        };
        Fate::Stays
    }

    /// Behind a head.
    fn next(&self) -> At {
        if self.has_body { At::Off } else { At::Begin }
    }

    /// A byte of a name.
    fn name(&mut self, byte: u8) -> At {
        if self.at == At::Field {
            self.length = 0;
        }
        if let Some(place) = self.name.get_mut(usize::from(self.length)) {
            *place = byte.to_ascii_lowercase();
            self.length += 1;
        }
        At::Name
    }

    /// Behind a name.
    fn value(&mut self) -> At {
        let name = self.name.get(..usize::from(self.length)).unwrap_or_default();
        self.has_body |= OF_A_BODY.contains(&name);
        if KEPT.contains(&name) { At::Kept } else { At::Value }
    }
}

/// What no path and no query has, and what none takes for a blank.
const fn is_odd(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' | 0..=0x1f | 0x7f..)
}

/// A control character, but for a tab and the end of a line.
const fn is_control(byte: u8) -> bool {
    matches!(byte, 0..=0x08 | 0x0b | 0x0c | 0x0e..=0x1f | 0x7f)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mended(bytes: &[u8]) -> Vec<u8> {
        Mender::new().mend(bytes).unwrap_or_else(|| bytes.to_vec())
    }

    #[track_caller]
    fn check(bytes: &[u8], expected: &[u8]) {
        let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
        assert_eq!(text(&mended(bytes)), text(expected));
    }

    #[track_caller]
    fn stays(bytes: &[u8]) {
        assert_eq!(Mender::new().mend(bytes), None, "{}", bytes.escape_ascii());
    }

    #[test]
    fn case_68_odd_bytes_of_a_target_are_escaped_and_of_a_value_are_blanks() {
        check(
            b"GET /c/t>?a=\xe4\"<b>\0 HTTP/1.1\r\nHost: t\r\nUser-Agent: a\0b\x7fc\r\n\r\nGET /{ HTTP/1.0\n\nGET /\xff HTTP/1.1\r\n",
            b"GET /c/t%3E?a=%E4%22%3Cb%3E%00 HTTP/1.1\r\nHost: t\r\nUser-Agent: a b c\r\n\r\nGET /%7B HTTP/1.0\n\nGET /%FF HTTP/1.1\r\n",
        );
        // Bytes beyond ASCII stay in values: there they are allowed.
        check(b"GET / HTTP/1.1\r\nX: \xe4\"<\t\x01\r\n", b"GET / HTTP/1.1\r\nX: \xe4\"<\t \r\n");
        stays(b"\r\nGET /c/t?a=%E4&b=[1]#x HTTP/1.1\r\nHost: t\r\nSec-CH-UA: \"a\";v=\"1\"\r\n\r\n");
    }

    #[test]
    fn what_frames_routes_or_names_is_never_touched() {
        for head in [
            &b"GET\0 / HTTP/1.1\r\n"[..],
            b"GET /\tHTTP/1.1\r\nX: \0\r\n",
            b"GET /a\x0b\0 HTTP/1.1\r\nX: \0\r\n",
            b"GET /a\r\0 HTTP/1.1\r\n",
            b"GET http://t\0/\xe4 HTTP/1.1\r\n",
            b"GET / HTTP/1.1\0\xe4\r\n",
            b"GET / HTTP/1.1\r\nHost: t\0\r\nContent-length: 1\0\r\nTRANSFER-Encoding:\x0bchunked\r\nX-Forwarded-For: \0\r\n",
            b"GET / HTTP/1.1\r\nX\0Y: a\r\n",
            b"GET / HTTP/1.1\r\nX: a\r\n b\0c\r\nY: \0\r\n",
            b"GET / HTTP/1.1\r\nX\n: \0",
            b"GET / HTTP/1.1\r\n\rX: \0",
            // Behind a head with a body nobody knows where the next one begins.
            b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\nGET /\xe4 HTTP/1.1\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nGET /\xe4 HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\xe4\r\n\r\n",
        ] {
            stays(head);
        }
        assert_eq!(Mender::off().mend(b"GET /\xe4 HTTP/1.1\r\n"), None);
    }

    proptest! {
        #[test]
        fn pieces_are_mended_as_the_whole_is(
            bytes in proptest::collection::vec(
                prop_oneof![
                    any::<u8>().prop_map(|byte| vec![byte]),
                    prop_oneof![Just("GET /"), Just(" HTTP/1.1\r\n"), Just("\r\n"), Just("X: "), Just("Content-Length: ")]
                        .prop_map(|text| text.as_bytes().to_vec()),
                ],
                0..60,
            ),
            cuts in proptest::collection::vec(0..200_usize, 0..6),
        ) {
            let bytes = bytes.concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut mender = Mender::new();
            let mut pieces = Vec::new();
            for pair in cuts.windows(2) {
                let piece = &bytes[pair[0]..pair[1]];
                pieces.extend(mender.mend(piece).unwrap_or_else(|| piece.to_vec()));
            }
            prop_assert_eq!(&pieces, &mended(&bytes));
            // Lines, their blanks and their colons are where they were.
            let frame = |bytes: &[u8]| {
                let lines: Vec<_> = bytes.split(|byte| *byte == b'\n').map(|line| line.ends_with(b"\r")).collect();
                (lines, bytes.iter().filter(|byte| b"\r\n:\t".contains(byte)).count())
            };
            prop_assert_eq!(frame(&pieces), frame(&bytes));
            prop_assert_eq!(mended(&pieces), pieces, "once is enough");
        }
    }
}
