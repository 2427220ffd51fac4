//! Which of the tracker's few resources a path names.
//!
//! - Layer: decision
//! - Takes: method and path of a request, the paths of the site.
//! - Gives: the resource; for links and pixels with the text of the token.
//! - On failure: `Unknown` and `WrongMethod`.
//! - See: RFC 3986 section 6.2.2.2.
#![warn(clippy::indexing_slicing)]

use std::borrow::Cow;

use super::percent;
use super::request::Method;
use super::settings::{CLICK, OPEN, Site};

/// At the root, and below the base path, where the issuer of hand-offs is (RFC 8615).
const JWK_SET: &str = "/.well-known/jwks.json";

/// A resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route<'a> {
    /// A link, with its token.
    Click(Cow<'a, str>),
    /// The pixel, with its token.
    Open(Cow<'a, str>),
    /// The page that says what this host is.
    Home,
    /// `robots.txt`.
    Robots,
    /// A file below `/.well-known/`, by its name.
    WellKnown(&'a str),
    /// The public keys of hand-offs.
    JwkSet,
    /// Nothing that we have.
    Unknown,
    /// Neither GET nor HEAD.
    WrongMethod,
}

impl<'a> Route<'a> {
    /// Finds the resource.
    #[must_use]
    pub fn of(method: Method, path: &'a str, site: &Site) -> Self {
        if method == Method::Other {
            return Self::WrongMethod;
        }
        match path {
            "/" | "" => return Self::Home,
            "/robots.txt" => return Self::Robots,
            JWK_SET => return Self::JwkSet,
            _ => {}
        }
        // At the root whatever the base path is (RFC 8615 section 3).
        if let Some(name) = path.strip_prefix("/.well-known/") {
            return Self::WellKnown(name);
        }
        let Some(rest) = path.strip_prefix(site.base_path.as_str()) else { return Self::Unknown };
        if matches!(rest, "" | "/") {
            return Self::Home;
        }
        if rest == JWK_SET {
            return Self::JwkSet;
        }
        let Some((segment, token)) = rest.strip_prefix('/').and_then(|rest| rest.split_once('/')) else {
            return Self::Unknown;
        };
        let is =
            |always: &str, names: &[String]| segment == always || names.iter().any(|name| name == segment);
        if is(CLICK, &site.click_paths) {
            Self::Click(token_text(token))
        } else if is(OPEN, &site.open_paths) {
            Self::Open(token_text(token))
        } else {
            Self::Unknown
        }
    }
}

/// The token at the head of the rest of a path.
///
/// Clients escape characters that need no escape, take the full stop or bracket after a URL for a part of it, and add
/// parameters with `&` where there is no `?`. What stands behind the token is cut off: it is not signed, and nobody
/// reads it.
fn token_text(rest: &str) -> Cow<'_, str> {
    match percent::decode(rest) {
        Cow::Borrowed(_) => Cow::Borrowed(rest.get(..token_bytes(rest.as_bytes())).unwrap_or_default()),
        Cow::Owned(decoded) => {
            let token = decoded.get(..token_bytes(&decoded)).unwrap_or_default();
            Cow::Owned(String::from_utf8_lossy(token).into_owned())
        }
    }
}

/// How many bytes of base64url a text begins with.
fn token_bytes(text: &[u8]) -> usize {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    text.iter().position(|byte| !is_token(byte)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route<'a>(path: &'a str, base_path: &str) -> Route<'a> {
        Route::of(Method::Get, path, &Site { base_path: base_path.into(), ..Site::default() })
    }

    #[test]
    fn resources_are_found_below_the_base_path() {
        assert_eq!(route("/c/abc", ""), Route::Click("abc".into()));
        assert_eq!(route("/o/abc", ""), Route::Open("abc".into()));
        assert_eq!(route("/m/x/c/abc", "/m/x"), Route::Click("abc".into()));
        assert_eq!(route("/m/x/", "/m/x"), Route::Home);
        for home in ["/", ""] {
            assert_eq!(route(home, "/m"), Route::Home);
        }
        assert_eq!(route("/robots.txt", "/m"), Route::Robots);
        assert_eq!(route("/.well-known/a/b", "/m"), Route::WellKnown("a/b"));
        for keys in ["/.well-known/jwks.json", "/m/.well-known/jwks.json"] {
            assert_eq!(route(keys, "/m"), Route::JwkSet);
        }
        for unknown in
            ["/c/abc", "/mm/c/abc", "/m/c", "/m/track/abc", "/m//c/abc", "/m/../c/abc", "c/abc", "/M/c/a"]
        {
            assert_eq!(route(unknown, "/m"), Route::Unknown, "{unknown}");
        }
        assert_eq!(Route::of(Method::Other, "/c/abc", &Site::default()), Route::WrongMethod);
    }

    #[test]
    fn what_clients_add_to_a_token_is_cut_off() {
        for path in [
            "/c/a-b_c.",
            "/c/a-b_c)",
            "/c/a-b_c/",
            "/c/a-b_c&x=y",
            "/c/a%2Db%5Fc",
            "/c/a%2db_c%3E",
            "/c/a-b_c%ff",
        ] {
            assert_eq!(route(path, ""), Route::Click("a-b_c".into()), "{path}");
        }
        assert_eq!(route("/c/", ""), Route::Click("".into()));
        assert_eq!(route("/c/../../etc/passwd", ""), Route::Click("".into()));
    }
}
