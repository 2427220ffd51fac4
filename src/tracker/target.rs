//! The target of a link: from the signed text to a `Location` header.
//!
//! - Layer: decision
//! - Takes: a target as its author wrote it, from a verified token.
//! - Gives: the same URL in ASCII, its host and its path.
//! - On failure: `TargetError`: what is no web address, or could break a header, is never a redirect.
//! - Limits: a path of 500 bytes is given out for events; the location has no limit of its own.
//! - See: WHATWG URL, RFC 3987 section 3.1, RFC 9110 section 10.2.2.
#![warn(clippy::indexing_slicing)]

use url::Url;

use super::percent;

/// The most bytes of a path that an event carries.
const MAX_PATH_BYTES: usize = 500;

/// Where a click goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    location: String,
    host: String,
    path: Option<String>,
}

/// Why a text can't be redirected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Neither http nor https.
    #[error("the target is neither http nor https")]
    Scheme,
    /// A control character, which could end a header.
    #[error("the target has a control character")]
    Control,
    /// No browser could go there: no host, a wrong port, a host that is none.
    #[error("the target has no valid host")]
    Host,
}

impl Target {
    /// Reads a target.
    ///
    /// Characters that are not ASCII, and blanks, are written as a browser would; nothing else is touched.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        match plain(text) {
            Some((host, path)) => {
                Ok(Self { location: text.to_owned(), host: host.to_owned(), path: reportable_path(path) })
            }
            None => Self::by_url(text),
        }
    }

    fn by_url(text: &str) -> Result<Self, TargetError> {
        if text.chars().any(char::is_control) {
            return Err(TargetError::Control);
        }
        let text = text.trim_end_matches(' ');
        let colon = text.find(':').ok_or(TargetError::Scheme)?;
        let (scheme, rest) = text.split_at_checked(colon).ok_or(TargetError::Scheme)?;
        if !(scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https"))
            || !rest.starts_with("://")
        {
            return Err(TargetError::Scheme);
        }
        let url = Url::parse(text).map_err(|_| TargetError::Host)?;
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(TargetError::Host)?;
        let location = if text.is_ascii() {
            percent::encode_non_ascii(text).into_owned()
        } else {
            to_ascii(text, host)?
        };
        Ok(Self { host: host.to_owned(), path: reportable_path(url.path()), location })
    }

    /// What stands in the `Location` header: visible ASCII only.
    #[must_use]
    pub fn location(&self) -> &str {
        &self.location
    }

    /// The host, in lower case and ASCII.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The path for reports; `None` where it might hold an address.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// Location, host and path.
    pub(super) fn into_parts(self) -> (String, String, Option<String>) {
        (self.location, self.host, self.path)
    }

    /// The same target with a changed location: see `utm`.
    #[must_use]
    pub(super) fn with_location(self, location: String) -> Self {
        Self { location, ..self }
    }
}

/// Host and path of a URL that can be read in one way only, as most can; all others are left to `url`.
///
/// Its host has labels of a-z, 0-9 and hyphens, none of them encoded, and the last one begins with a letter: it is no
/// address. Its path has no character that could be written in another way, and no segment that begins with a full stop.
fn plain(text: &str) -> Option<(&str, &str)> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"))?;
    let (host, rest) = rest.split_at_checked(rest.find(['/', '?', '#']).unwrap_or(rest.len()))?;
    let (path, tail) = rest.split_at_checked(rest.find(['?', '#']).unwrap_or(rest.len()))?;
    let is_label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty() && !label.starts_with("xn--") && label.bytes().all(plain)
    };
    let is_name = host.split('.').all(is_label)
        && host
            .rsplit('.')
            .next()
            .is_some_and(|last| last.starts_with(|first: char| first.is_ascii_lowercase()));
    let unreserved =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'.' | b'_' | b'~');
    let is_path = path.bytes().all(unreserved) && !path.contains("/.");
    let is_plain = is_name && is_path && tail.bytes().all(|byte| byte.is_ascii_graphic());
    is_plain.then_some((host, if path.is_empty() { "/" } else { path }))
}

/// Writes an internationalised URL in ASCII, part by part, so that no other character changes.
fn to_ascii(text: &str, host: &str) -> Result<String, TargetError> {
    let authority_at = text.find("://").ok_or(TargetError::Scheme)? + 3;
    let (head, rest) = text.split_at_checked(authority_at).ok_or(TargetError::Scheme)?;
    let end = rest.find(['/', '\\', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at_checked(end).ok_or(TargetError::Host)?;
    let (user, host_port) = match authority.rsplit_once('@') {
        Some((user, host_port)) => (Some(user), host_port),
        None => (None, authority),
    };
    let (name, port) = match host_port.rsplit_once(':') {
        Some((name, port)) if !host_port.ends_with(']') => (name, Some(port)),
        _ => (host_port, None),
    };
    let mut location = String::with_capacity(text.len() * 2);
    location.push_str(head);
    if let Some(user) = user {
        location.push_str(&percent::encode_non_ascii(user));
        location.push('@');
    }
    location.push_str(if name.is_ascii() { name } else { host });
    if let Some(port) = port {
        location.push(':');
        location.push_str(port);
    }
    location.push_str(&percent::encode_non_ascii(tail));
    // Our reading of the authority and a browser's must be one, or the link would lead elsewhere.
    let same_host = Url::parse(&location).is_ok_and(|url| url.host_str() == Some(host));
    if location.bytes().all(|byte| byte.is_ascii_graphic()) && same_host {
        Ok(location)
    } else {
        Err(TargetError::Host)
    }
}

/// The path, cut, unless an address may be in it.
fn reportable_path(path: &str) -> Option<String> {
    // `%40` is `@`; `%2540` is what a careless second encoding makes of it.
    let is_encoded = || path.contains('%') && (path.contains("%40") || path.contains("%2540"));
    if path.contains('@') || is_encoded() {
        return None;
    }
    // A path that `url` gives out is ASCII.
    Some(path.get(..path.len().min(MAX_PATH_BYTES)).unwrap_or_default().to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn location(text: &str) -> String {
        Target::parse(text).unwrap().location().to_owned()
    }

    #[test]
    fn an_ascii_target_is_not_touched() {
        for same in [
            "https://example.org",
            "https://e.com?x=1",
            "HTTPS://E.com/Up",
            "http://e.com/a,b!c$d*e@f'g|h?f[0]=x&q={x}&&z=#sec/tion?",
            "https://e.com/100%/%zz?%#%",
            "https://user:pw@e.com:8443/../a/./b//c",
            "http://[2001:db8::1]:8080/",
            "https://e.com/share?u=1&href=http://g.ca/",
            "https://e.com/?q=a&amp;b",
            "http://1.2.3.4/\\x",
        ] {
            assert_eq!(location(same), same);
        }
    }

    #[test]
    fn case_8_an_iri_becomes_ascii_and_nothing_else_changes() {
        assert_eq!(
            location("https://пример.рф/путь?q=ż#ö"),
            "https://xn--e1afmkfd.xn--p1ai/%D0%BF%D1%83%D1%82%D1%8C?q=%C5%BC#%C3%B6"
        );
        assert_eq!(location("https://e.com:81/ü%zz?a=b&&c#"), "https://e.com:81/%C3%BC%zz?a=b&&c#");
        assert_eq!(
            location("https://ü:ö@Bücher.example:81"),
            "https://%C3%BC:%C3%B6@xn--bcher-kva.example:81"
        );
        assert_eq!(location("https://e.com/a b "), "https://e.com/a%20b");
    }

    #[test]
    fn what_is_no_web_address_is_refused() {
        for (text, error) in [
            ("javascript:alert(1)", TargetError::Scheme),
            ("ftp://e.com/", TargetError::Scheme),
            ("//e.com/", TargetError::Scheme),
            ("http:e.com", TargetError::Scheme),
            ("", TargetError::Scheme),
            ("https://e.com/\r\nSet-Cookie: a=b", TargetError::Control),
            ("https://e.com/\0", TargetError::Control),
            ("https://e.com/\u{85}x", TargetError::Control),
            ("https://e.com/\u{7f}", TargetError::Control),
            ("https://", TargetError::Host),
            ("https://e.com:99999/", TargetError::Host),
            ("https://[::1", TargetError::Host),
            ("https://exa mple.com/", TargetError::Host),
        ] {
            assert_eq!(Target::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn reports_get_host_and_path_but_no_address() {
        let target = Target::parse("https://user@Shop.Example:444/a/b?mail=ann@example.org#x").unwrap();
        assert_eq!((target.host(), target.path()), ("shop.example", Some("/a/b")));
        for secret in ["/u/ann@example.org", "/u/ann%40example.org", "/u/ann%2540example.org"] {
            assert_eq!(Target::parse(&format!("https://e.com{secret}")).unwrap().path(), None);
        }
        let long = Target::parse(&format!("https://e.com/{}", "ż".repeat(400))).unwrap();
        assert_eq!(long.path().unwrap().len(), MAX_PATH_BYTES);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_not_plain() {
        assert_eq!(plain("https://shop.example/a/b.html?x=@#y"), Some(("shop.example", "/a/b.html")));
        assert_eq!(plain("http://a.b-c.example?q"), Some(("a.b-c.example", "/")));
        for other in [
            "https://Shop.example/",
            "https://u@shop.example/",
            "https://shop.example:443/",
            "https://shop.example./",
            "https://1.2.3.4/",
            "https://1.0x7f/",
            "https://[::1]/",
            "https://xn--e1afmkfd.example/",
            "https://a.xn--p1ai/",
            "https://shop.example\\@evil.example/",
            "https://shop.example/a/../b",
            "https://shop.example/%2e%2e/b",
            "https://shop.example/a b",
            "https://shop.example/?a b",
            "https://shop.example/?\u{7f}",
            "https:///shop.example/",
            "HTTPS://shop.example/",
            "https://",
        ] {
            assert_eq!(plain(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn a_plain_target_is_what_url_reads(
            text in "https?://[a-z0-9-]{1,6}(\\.[a-zA-Z0-9-]{0,5}){0,3}[:@\\\\.]?(/[a-zA-Z0-9_~.%@-]{0,5}){0,3}([?#][ -~]{0,8})?",
        ) {
            if plain(&text).is_some() {
                prop_assert_eq!(Target::parse(&text), Target::by_url(&text));
            }
        }

        #[test]
        fn no_target_panics_and_every_location_is_a_safe_header(text in "(https?://)?\\PC{0,80}") {
            if let Ok(target) = Target::parse(&text) {
                prop_assert!(target.location().bytes().all(|byte| byte.is_ascii_graphic()));
                let ours = Url::parse(target.location()).unwrap();
                let theirs = Url::parse(&text).unwrap();
                prop_assert_eq!(ours.host_str(), theirs.host_str());
            }
        }

        #[test]
        fn any_bytes_are_safe(text in proptest::collection::vec(any::<char>(), 0..60)) {
            let text: String = text.into_iter().collect();
            for text in [format!("https://{text}"), format!("http://e.com/{text}"), text] {
                if let Ok(target) = Target::parse(&text) {
                    prop_assert!(target.location().bytes().all(|byte| byte.is_ascii_graphic()));
                }
            }
        }
    }
}
