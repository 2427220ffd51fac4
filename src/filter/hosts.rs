//! Which tracking host the links of a message lead to.
//!
//! - Layer: decision
//! - Takes: the domain of the envelope sender, the site's tracking hosts.
//! - Gives: the host: its base URL, its paths, the keys that sign for it.
//! - On failure: a domain that no host names belongs to the first.
//! - See: `docs/tracker.md`, "Several hosts".

use super::campaign::matches_domain;

/// The path segment before the token of a link, where the site names no other.
pub const CLICK_SEGMENT: &str = "c";
/// The path segment before the token of a pixel, where the site names no other.
pub const OPEN_SEGMENT: &str = "o";

/// A tracking host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackingHost {
    /// Domains of envelope senders; `*.` patterns.
    pub sender_domains: Vec<String>,
    /// Base of its URLs, with a slash at its end.
    pub url: String,
    /// The path segment before the token of a link.
    pub click: String,
    /// The path segment before the token of a pixel.
    pub open: String,
    /// The keys that sign for it; nothing: those of all.
    pub site: Option<String>,
}

impl TrackingHost {
    /// A host for all senders.
    #[must_use]
    pub fn at(url: impl Into<String>) -> Self {
        Self {
            sender_domains: Vec::new(),
            url: url.into(),
            click: CLICK_SEGMENT.to_owned(),
            open: OPEN_SEGMENT.to_owned(),
            site: None,
        }
    }
}

/// The host for a sender: the first that names the domain, else the first of all.
#[must_use]
pub fn host_for<'a>(hosts: &'a [TrackingHost], domain: &str) -> Option<&'a TrackingHost> {
    let names =
        |host: &&TrackingHost| host.sender_domains.iter().any(|pattern| matches_domain(pattern, domain));
    hosts.iter().find(names).or_else(|| hosts.first())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_has_the_host_that_names_it_or_the_first() {
        let named = |url: &str, domains: &[&str]| TrackingHost {
            sender_domains: domains.iter().copied().map(str::to_owned).collect(),
            ..TrackingHost::at(url)
        };
        let hosts = [named("a", &[]), named("b", &["b.example", "*.b.example"]), named("c", &["c.example"])];
        let host = |domain: &str| host_for(&hosts, domain).map(|host| host.url.as_str());
        for (domain, url) in [
            ("a.example", "a"),
            ("b.example", "b"),
            ("x.b.example", "b"),
            ("c.example", "c"),
            ("x.c.example", "a"),
            ("", "a"),
        ] {
            assert_eq!(host(domain), Some(url), "{domain}");
        }
        assert_eq!(host_for(&[], "a.example"), None);
    }
}
