//! What a site wants of the visitor's cookie, of the hand-off, and of events that wait.
//!
//! - Layer: word
//! - Takes: values of the configuration.
//! - Gives: them, with their defaults, and whether names can be used.
//! - On failure: nothing can fail.
//! - See: `docs/tracker.md`, `docs/privacy.md`, `docs/handoff.md`.

use std::time::Duration;

/// Of events that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// How long events are held for what may still become known. Default 30 s; zero: not at all.
    pub hold: Duration,
    /// How long an open or click of one recipient and link is only repeated. Default 24 hours.
    pub unique_window: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self { hold: Duration::from_secs(30), unique_window: Duration::from_secs(24 * 3_600) }
    }
}

/// Of the visitor's cookie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CookieTerms {
    /// Its name. Default `__Secure-mt`.
    pub name: String,
    /// How long a browser keeps it, and how long it counts. Default 180 days.
    pub max_age: Duration,
}

impl Default for CookieTerms {
    fn default() -> Self {
        Self { name: "__Secure-mt".into(), max_age: Duration::from_secs(180 * 24 * 3_600) }
    }
}

impl CookieTerms {
    /// Whether a browser takes the name; `__Host-` would need the path `/`.
    #[must_use]
    pub fn is_name(name: &str) -> bool {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        (1..=40).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with("__Host-")
    }
}

/// Of the hand-off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandoffTerms {
    /// Hosts that get one; each by its whole name, in lower case.
    pub hosts: Vec<String>,
    /// The parameter's name. Default `mt`.
    pub parameter: String,
    /// `iss`: the public base URL, without a slash at its end.
    pub issuer: String,
    /// How long it is good for. Default 120 s.
    pub lifetime: Duration,
}

impl HandoffTerms {
    /// Whether a name can be that of the parameter.
    #[must_use]
    pub fn is_parameter(name: &str) -> bool {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        (1..=40).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with("utm_")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_browsers_or_others_have_are_refused() {
        for good in ["mt", "__Secure-mt", "a.b_c-d"] {
            assert!(CookieTerms::is_name(good), "{good}");
        }
        for bad in ["", "a b", "a=b", "a;b", "__Host-mt", "ż"] {
            assert!(!CookieTerms::is_name(bad), "{bad}");
        }
        assert!(HandoffTerms::is_parameter("mt") && !HandoffTerms::is_parameter("utm_source"));
        assert!(!HandoffTerms::is_parameter("a&b") && !HandoffTerms::is_parameter(""));
    }
}
