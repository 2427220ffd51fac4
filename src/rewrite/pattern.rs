//! Links that are left alone by what their path or query says: logins, confirmations, unsubscribing.
//!
//! - Layer: decision
//! - Takes: patterns; path and query of a link.
//! - Gives: whether some pattern is met.
//! - On failure: a text that is no pattern is an error with the reason, never its content.
//! - Limits: one pass over path and query, however many patterns there are; 1 MiB for the automaton.

use std::sync::{Arc, LazyLock};

use aho_corasick::{AhoCorasick, AhoCorasickBuilder, MatchKind};

use super::plan::PatternError;

/// Links that log in, confirm, reset or unsubscribe: left alone by default.
pub const DEFAULT_LOGIN_PATTERNS: &[&str] = &[
    "/login",
    "/log-in",
    "/signin",
    "/sign-in",
    "/sign_in",
    "/sso",
    "/oauth",
    "/oauth2",
    "/auth",
    "/otp",
    "/2fa",
    "/mfa",
    "/magic",
    "/magic-link",
    "/magiclink",
    "/magic_link",
    "/passwordless",
    "/one-time",
    "/onetime",
    "/password",
    "/reset",
    "/reset-password",
    "/password-reset",
    "/reset_password",
    "/password_reset",
    "/resetpassword",
    "/passwordreset",
    "/verify",
    "/verify-email",
    "/verify_email",
    "/verification",
    "/confirm",
    "/confirm-email",
    "/confirmation",
    "/activate",
    "/activation",
    "/invite",
    "/invitation",
    "/accept-invitation",
    "/unsubscribe",
    "/unsub",
    "/optout",
    "/opt-out",
    "/opt_out",
    "/abmelden",
    "/desinscription",
    "token=",
    "access_token=",
    "auth_token=",
    "login_token=",
    "reset_token=",
    "reset_password_token=",
    "confirmation_token=",
    "invitation_token=",
    "verification_token=",
    "verify_token=",
    "otp=",
    "oobcode=",
    "one_time_code=",
    "magic=",
    "ticket=",
    "unsubscribe=",
];

/// Patterns of links. `/login` is a whole path segment (or several: `/auth/callback`), `token=` the name of a query
/// parameter, anything else a piece of the path or the query. Letter case does not matter. Clones share the automaton.
#[derive(Debug, Clone, Default)]
pub struct LinkPatterns {
    texts: Arc<[String]>,
    kinds: Arc<[PatternKind]>,
    /// `None` when there is nothing to look for.
    automaton: Option<AhoCorasick>,
    /// Some piece holds a slash, which may be one of those that a path is thought to have at its ends.
    slashed: bool,
    /// How segments and parameters begin; `None` where pieces have to be looked for everywhere.
    beginnings: Option<Arc<Beginnings>>,
}

/// Tells of nearly every path and query by the first two signs of its segments and parameters that no pattern is met.
#[derive(Debug)]
struct Beginnings([u32; 32]);

impl Beginnings {
    fn of(texts: &[String], kinds: &[PatternKind]) -> Option<Self> {
        let mut table = [0_u32; 32];
        for (text, kind) in texts.iter().zip(kinds) {
            let word = match kind {
                PatternKind::Segments => text.as_bytes().get(1..)?,
                PatternKind::Parameter => text.as_bytes(),
                PatternKind::Piece => return None,
            };
            let row = table.get_mut(usize::from(*word.first()? & 31))?;
            // Behind a word of one sign anything may follow.
            *row |= word.get(1).map_or(u32::MAX, |second| 1 << (second & 31));
        }
        Some(Self(table))
    }

    /// Whether some word of a text, at its beginning or behind a mark, begins like a pattern. Letter case is in the bits that
    /// are not looked at.
    fn may_be_in(&self, text: &str, is_mark: impl Fn(u8) -> bool) -> bool {
        let bytes = text.as_bytes();
        let begins = |word: &[u8]| {
            let [first, second, ..] = *word else { return true };
            self.0.get(usize::from(first & 31)).is_some_and(|row| row & (1 << (second & 31)) != 0)
        };
        let mut behind = true;
        for (at, byte) in bytes.iter().enumerate() {
            if behind && begins(bytes.get(at..).unwrap_or_default()) {
                return true;
            }
            behind = is_mark(*byte);
        }
        false
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PatternKind {
    /// The slash after it is not part of the automaton's text: the path may end there.
    Segments,
    Parameter,
    Piece,
}

impl LinkPatterns {
    /// Reads patterns.
    ///
    /// # Errors
    /// When a pattern leaves nothing to look for, or all together are too large.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, PatternError> {
        let error = |why| PatternError { what: "link pattern", why };
        let read: Vec<_> = patterns
            .into_iter()
            .map(read)
            .collect::<Option<_>>()
            .ok_or_else(|| error("nothing to look for"))?;
        let (texts, kinds): (Vec<String>, Vec<PatternKind>) = read.into_iter().unzip();
        if texts.is_empty() {
            return Ok(Self::default());
        }
        let automaton = AhoCorasickBuilder::new()
            .match_kind(MatchKind::Standard)
            .ascii_case_insensitive(true)
            .build(&texts)
            .map_err(|_| error("too many patterns"))?;
        let slashed =
            texts.iter().zip(&kinds).any(|(text, kind)| *kind == PatternKind::Piece && text.contains('/'));
        let beginnings = Beginnings::of(&texts, &kinds).map(Arc::new);
        Ok(Self { texts: texts.into(), kinds: kinds.into(), automaton: Some(automaton), slashed, beginnings })
    }

    /// The patterns of [`DEFAULT_LOGIN_PATTERNS`].
    #[must_use]
    pub fn logins() -> Self {
        static LOGINS: LazyLock<LinkPatterns> = LazyLock::new(|| {
            // A test has them all read.
            LinkPatterns::new(DEFAULT_LOGIN_PATTERNS.iter().copied()).unwrap_or_default()
        });
        LOGINS.clone()
    }

    /// Whether a link is of one of these patterns; `path` is what follows the host, `query` what follows the question mark.
    pub(super) fn matches(&self, path: &str, query: &str) -> bool {
        let Some(automaton) = &self.automaton else { return false };
        if self.slashed || !(path.is_empty() || path.starts_with('/')) {
            return self.matches_with_slashes(automaton, path, query);
        }
        let none = self.beginnings.as_ref().is_some_and(|beginnings| {
            let path = path.strip_prefix('/').unwrap_or_default();
            !beginnings.may_be_in(path, |b| b == b'/')
                && !beginnings.may_be_in(query, |b| matches!(b, b'&' | b';'))
        });
        if none {
            return false;
        }
        let kind = |found: aho_corasick::Match| self.kinds.get(found.pattern().as_usize());
        let in_path = automaton.find_overlapping_iter(path).any(|found| match kind(found) {
            Some(PatternKind::Segments) => matches!(path.as_bytes().get(found.end()), None | Some(b'/')),
            Some(PatternKind::Piece) => true,
            _ => false,
        });
        in_path
            || automaton.find_overlapping_iter(query).any(|found| match kind(found) {
                Some(PatternKind::Parameter) => {
                    let before = found.start().checked_sub(1).and_then(|at| query.as_bytes().get(at));
                    matches!(before, None | Some(b'&' | b';'))
                }
                Some(PatternKind::Piece) => true,
                _ => false,
            })
    }

    /// As [`Self::matches`], for a path that is given slashes at its ends.
    fn matches_with_slashes(&self, automaton: &AhoCorasick, path: &str, query: &str) -> bool {
        // With a slash at both ends, and between path and query what no pattern of ours can hold.
        let path = path.trim_matches('/');
        let mut text = String::with_capacity(path.len() + query.len() + 3);
        for piece in ["/", path, "/", "\n", query] {
            text.push_str(piece);
        }
        let (bytes, query_start) = (text.as_bytes(), path.len() + 3);
        automaton.find_overlapping_iter(&text).any(|found| match self.kinds.get(found.pattern().as_usize()) {
            Some(PatternKind::Segments) => found.end() < query_start && bytes.get(found.end()) == Some(&b'/'),
            Some(PatternKind::Parameter) => {
                found.start() >= query_start
                    && matches!(bytes.get(found.start() - 1), Some(b'\n' | b'&' | b';'))
            }
            Some(PatternKind::Piece) => true,
            None => false,
        })
    }
}

impl PartialEq for LinkPatterns {
    fn eq(&self, other: &Self) -> bool {
        self.texts == other.texts && self.kinds == other.kinds
    }
}

impl Eq for LinkPatterns {}

fn read(pattern: &str) -> Option<(String, PatternKind)> {
    let pattern = pattern.trim().to_ascii_lowercase();
    if let Some(segments) = pattern.strip_prefix('/') {
        let segments = segments.trim_end_matches('/');
        return (!segments.is_empty()).then(|| (format!("/{segments}"), PatternKind::Segments));
    }
    if pattern.is_empty() || pattern.contains('\n') {
        return None;
    }
    let is_parameter = pattern.len() > 1 && pattern.ends_with('=');
    Some((pattern, if is_parameter { PatternKind::Parameter } else { PatternKind::Piece }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(pattern: &str) -> LinkPatterns {
        LinkPatterns::new([pattern]).unwrap()
    }

    #[test]
    fn whole_segments() {
        let login = of("/login");
        for path in ["/user/login", "/login", "/login/", "/a//LogIn//", "login", "/login/x"] {
            assert!(login.matches(path, ""), "{path}");
        }
        for (path, query) in
            [("/blogin", ""), ("/login.html", ""), ("/loginx/", ""), ("/", "a=/login"), ("", "/login/")]
        {
            assert!(!login.matches(path, query), "{path} {query}");
        }
        assert!(of("/auth/callback/").matches("/v1/auth/callback", "x"));
    }

    #[test]
    fn whole_parameters() {
        let token = of("token=");
        for query in ["token=x", "a=1&TOKEN=x", "a=1;token="] {
            assert!(token.matches("/", query), "{query}");
        }
        for (path, query) in [("/", "mytoken=x"), ("/token=x", ""), ("/", "token"), ("/a&token=x", "")] {
            assert!(!token.matches(path, query), "{path} {query}");
        }
    }

    #[test]
    fn pieces_anywhere() {
        assert!(of("secret").matches("/my-Secrets", ""));
        assert!(of("secret").matches("/", "a=secret"));
        assert!(!of("ab").matches("/a", "b"));
    }

    #[test]
    fn overlapping_patterns_are_all_tried() {
        let patterns = LinkPatterns::new(["auth_token=", "token=", "/reset", "/reset-password"]).unwrap();
        assert!(patterns.matches("/reset-password", ""));
        assert!(patterns.matches("/reset", ""));
        assert!(!patterns.matches("/reset-passwords", "my_auth_token=1"));
    }

    #[test]
    fn what_is_no_pattern() {
        for bad in ["/", " ", "", "//"] {
            assert!(LinkPatterns::new([bad]).is_err(), "{bad}");
        }
        assert!(!LinkPatterns::default().matches("/login", ""));
    }

    #[test]
    fn both_ways_to_look_say_the_same() {
        let all = ["/login", "/a/b", "token=", "/t", "secret"];
        for patterns in [&all[..], &all[..4], &all[..3]] {
            both_ways_say_the_same_of(&LinkPatterns::new(patterns.iter().copied()).unwrap());
        }
    }

    fn both_ways_say_the_same_of(patterns: &LinkPatterns) {
        let automaton = patterns.automaton.as_ref().unwrap();
        let paths = [
            "",
            "/",
            "//",
            "/login",
            "/login/",
            "//x//LOGIN//",
            "/logins",
            "/x/a/b",
            "/a/bc",
            "/token=",
            "/mysecrets",
            "/t",
            "/x/T/",
            "/tt",
        ];
        for path in paths {
            for query in ["", "token=", "x&token=1", "xtoken=1", "/login/", "a=secret", ";TOKEN=b"] {
                let slow = patterns.matches_with_slashes(automaton, path, query);
                assert_eq!(patterns.matches(path, query), slow, "{path} {query}");
            }
        }
    }

    #[test]
    fn every_default_pattern_is_one() {
        assert_eq!(LinkPatterns::logins().texts.len(), DEFAULT_LOGIN_PATTERNS.len());
    }
}
