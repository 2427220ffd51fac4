//! Google Analytics cookies: who the visitor already is on the site.
//!
//! - Layer: decision
//! - Takes: `Cookie` headers.
//! - Gives: the client id of `_ga` and the session id of `_ga_<stream>`, both only when they are beyond doubt.
//! - On failure: anything unknown is `None`; nothing is guessed.
//! - Limits: numbers of at most 20 digits.
//! - See: `docs/ga4.md` (cookies GA1, GS1, GS2); RFC 6265 section 5.4.
#![warn(clippy::indexing_slicing)]

const MAX_DIGITS: usize = 20;

/// What the cookies say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Visitor {
    /// `<random>.<seconds>` of `_ga`.
    pub client_id: Option<String>,
    /// The session of `_ga_<stream>`: digits.
    pub session_id: Option<String>,
}

/// Reads all `Cookie` headers of a request.
///
/// `streams` are the parts of measurement ids behind `G-`; when there are none, any stream counts. Cookies that
/// contradict each other say nothing.
pub fn visitor<'a>(headers: impl Iterator<Item = &'a [u8]>, streams: &[String]) -> Visitor {
    let mut clients = Only::Nothing;
    let mut sessions = Only::Nothing;
    for header in headers {
        for pair in header.split(|&byte| byte == b';') {
            let Some((name, value)) = split_pair(pair.trim_ascii()) else { continue };
            if name == "_ga" {
                clients.add(client_id(value));
            } else if let Some(stream) = name.strip_prefix("_ga_")
                && is_wanted(stream, streams)
            {
                sessions.add(session_id(value));
            }
        }
    }
    Visitor { client_id: clients.value(), session_id: sessions.value() }
}

fn split_pair(pair: &[u8]) -> Option<(&str, &str)> {
    let at = pair.iter().position(|&byte| byte == b'=')?;
    let (name, value) = pair.split_at_checked(at)?;
    Some((std::str::from_utf8(name).ok()?, std::str::from_utf8(value.get(1..)?).ok()?))
}

fn is_wanted(stream: &str, streams: &[String]) -> bool {
    let is_stream = !stream.is_empty() && stream.bytes().all(|b| b.is_ascii_alphanumeric());
    is_stream && (streams.is_empty() || streams.iter().any(|wanted| wanted == stream))
}

/// `GA1.<depth>.<random>.<seconds>`: the last two.
#[must_use]
pub fn client_id(cookie: &str) -> Option<String> {
    let rest = cookie.strip_prefix("GA1.")?;
    let (depth, id) = rest.split_once('.')?;
    let (random, seconds) = id.split_once('.')?;
    (is_depth(depth) && is_number(random) && is_number(seconds)).then(|| id.to_owned())
}

/// The session of `GS1.<depth>.<session>.<number>.<engaged>.<last>.<timer>…` by its place, or of
/// `GS2.<depth>.s<session>$o<number>$…` by its letter.
#[must_use]
pub fn session_id(cookie: &str) -> Option<String> {
    let (version, rest) = cookie.split_once('.')?;
    let (depth, fields) = rest.split_once('.')?;
    if !is_depth(depth) {
        return None;
    }
    match version {
        "GS1" => first_generation(fields),
        "GS2" => second_generation(fields),
        _ => None,
    }
}

fn first_generation(fields: &str) -> Option<String> {
    let mut fields = fields.split('.');
    let session = fields.next()?;
    // Number, engaged, last and timer were there from the beginning; later versions added more behind them.
    let mut others = 0;
    for field in fields.by_ref().take(4) {
        if !is_number(field) {
            return None;
        }
        others += 1;
    }
    (others == 4 && is_number(session)).then(|| session.to_owned())
}

fn second_generation(fields: &str) -> Option<String> {
    let mut sessions = Only::Nothing;
    for field in fields.split('$') {
        if let Some(session) = field.strip_prefix('s') {
            sessions.add(is_number(session).then(|| session.to_owned()));
        }
    }
    sessions.value()
}

fn is_depth(text: &str) -> bool {
    let (domain, path) = text.split_once('-').unwrap_or((text, "0"));
    is_number(domain) && is_number(path)
}

fn is_number(text: &str) -> bool {
    (1..=MAX_DIGITS).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// One value, however often it is said; none when two things are said.
enum Only {
    Nothing,
    One(String),
    Doubt,
}

impl Only {
    fn add(&mut self, value: Option<String>) {
        let Some(value) = value else { return };
        *self = match std::mem::replace(self, Self::Doubt) {
            Self::Nothing => Self::One(value),
            Self::One(known) if known == value => Self::One(known),
            _ => Self::Doubt,
        };
    }

    fn value(self) -> Option<String> {
        match self {
            Self::One(value) => Some(value),
            _ => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(headers: &[&[u8]], streams: &[&str]) -> (Option<String>, Option<String>) {
        let streams: Vec<String> = streams.iter().map(|s| (*s).to_owned()).collect();
        let visitor = visitor(headers.iter().copied(), &streams);
        (visitor.client_id, visitor.session_id)
    }

    #[test]
    fn the_documented_forms_are_read() {
        let client = Some("1234567890.1700000000".to_owned());
        let session = Some("1700000123".to_owned());
        assert_eq!(client_id("GA1.1.1234567890.1700000000"), client);
        assert_eq!(client_id("GA1.2-2.1234567890.1700000000"), client);
        assert_eq!(session_id("GS1.1.1700000123.4.1.1700000456.0.0.0"), session);
        assert_eq!(session_id("GS1.1.1700000123.4.1.1700000456.0"), session);
        assert_eq!(session_id("GS2.1.s1700000123$o4$g1$t1700000456$j60$l0$h0"), session);
        assert_eq!(session_id("GS2.1.o4$x$s1700000123$dAbC"), session, "any order, unknown keys");
        assert_eq!(
            read(
                &[
                    b"theme=dark; _ga=GA1.1.1234567890.1700000000;_ga_ABC1=GS2.1.s1700000123$o4",
                    b"_gid=GA1.1.1.2"
                ],
                &[]
            ),
            (client, session)
        );
    }

    #[test]
    fn anything_else_is_nothing() {
        for other in [
            "",
            "GA1",
            "GA1.1",
            "GA1.1.5",
            "GA1.1.a.5",
            "GA1.1.5.",
            "GA1..1.2",
            "GA2.1.1.2",
            "GA1.1.1.2.3",
            "GA1.1.-1.2",
            "ga1.1.1.2",
            " GA1.1.1.2",
            "GA1.1.111111111111111111111.2",
            "1.2",
        ] {
            assert_eq!(client_id(other), None, "{other:?}");
        }
        for other in [
            "",
            "GS1",
            "GS1.1",
            "GS1.1.1700000123",
            "GS1.1.1700000123.4.1",
            "GS1.1.x.4.1.1.0",
            "GS2.1.o4$g1",
            "GS2.1.s",
            "GS2.1.s17x$o4",
            "GS2.1.s1$s2",
            "GS3.1.s1700000123$o4",
            "GS2.s1700000123$o4",
            "GS1.1.1.4.x.1.0",
        ] {
            assert_eq!(session_id(other), None, "{other:?}");
        }
    }

    #[test]
    fn contradictions_say_nothing_unless_the_stream_is_known() {
        let two = b"_ga_A=GS2.1.s1$o1; _ga_B=GS2.1.s2$o1; _ga=GA1.1.1.2; _ga=GA1.1.3.4".as_slice();
        assert_eq!(read(&[two], &[]), (None, None));
        assert_eq!(read(&[two], &["B"]), (None, Some("2".into())));
        assert_eq!(read(&[b"_ga=GA1.1.1.2", b"_ga=GA1.1.1.2"], &[]), (Some("1.2".into()), None));
        assert_eq!(read(&[b"_ga_=GS2.1.s1$o1; _gat_X=GS2.1.s1$o1"], &[]), (None, None));
    }

    proptest! {
        #[test]
        fn no_header_panics_and_only_digits_come_out(header in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut all = b"_ga=GA1.1.".to_vec();
            all.extend(&header);
            all.extend(b"; _ga_X=GS2.1.s");
            all.extend(&header);
            for bytes in [&header, &all] {
                let visitor = visitor([bytes.as_slice()].into_iter(), &[]);
                let texts = visitor.client_id.iter().chain(&visitor.session_id);
                for text in texts {
                    prop_assert!(text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'));
                }
            }
        }
    }
}
