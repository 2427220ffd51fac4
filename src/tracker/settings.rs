//! What an administrator decides about the tracker.
//!
//! - Layer: word
//! - Takes: values of the configuration.
//! - Gives: `Settings` for the role, with `Site` for its decisions and `Limits` for its sockets.
//! - On failure: `problems` lists all that can't work.
//! - See: `docs/tracker.md`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::language::Language;
use super::rate::Rate;
use super::terms::{CookieTerms, HandoffTerms, Terms};

/// The files of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain, PEM, the host's own certificate first.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// The path segment of clicks that always answers.
pub(super) const CLICK: &str = "c";
/// The path segment of opens that always answers.
pub(super) const OPEN: &str = "o";

/// All of the tracker's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Where to listen, plain HTTP. Default `127.0.0.1:8025`: behind a proxy on the same host.
    pub listen: SocketAddr,
    /// The proxies whose `X-Forwarded-For` is believed. Default: loopback.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether every connection begins with a PROXY header (version 2), which only `trusted_proxies` may send. Default: no.
    pub proxy_protocol: bool,
    /// What is answered and what is recorded, for hosts that no other is for.
    pub site: Site,
    /// The same for further tracking hosts, each with its names.
    pub hosts: Vec<Site>,
    /// The file of rules that tell machines from people; `None` (default) means the catalogue that comes with mailtap.
    pub rules_file: Option<PathBuf>,
    /// What becomes of events that wait.
    pub terms: Terms,
    /// How long an answer waits for its event to be stored. Default 250 ms; then it goes out, and storing goes on.
    pub answer_wait: Duration,
    /// How many events may wait to be stored; beyond it they are lost, and counted. Default 20,000.
    pub queue_events: usize,
    /// Against slow and greedy clients.
    pub limits: Limits,
    /// Beyond them requests are answered and not recorded.
    pub rates: Rates,
    /// Whether a socket that systemd hands over comes before `listen`. Default: no.
    pub inherit: bool,
}

/// How often what may be recorded; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// Requests of one IPv4 address or IPv6 /64, with sixteen times as many for a /48. Default 200 a second.
    pub client: Option<Rate>,
    /// Requests for one link, or the pixel, of one recipient. Default 60 a minute.
    pub token: Option<Rate>,
}

impl Rates {
    /// Requests a second of a client, ten seconds of them at once; a minute of a token. 0 is no limit.
    #[must_use]
    pub fn new(client: u64, token: u64) -> Self {
        Self {
            client: Rate::new(client, Duration::from_secs(1), client.saturating_mul(10)),
            token: Rate::new(token, Duration::from_secs(60), token),
        }
    }
}

impl Default for Rates {
    fn default() -> Self {
        Self::new(200, 60)
    }
}

/// What is answered and what is recorded at one tracking host.
#[derive(Debug, Clone, PartialEq)]
pub struct Site {
    /// Its host names, in lower case and without port. Default: none, which is enough for the first.
    pub names: Vec<String>,
    /// The keys that its links are signed with beside those for all (`keys rotate --site`). Default: only those for all.
    pub key_site: Option<String>,
    /// The path of the base URL, without a slash at its end. Default: empty.
    pub base_path: String,
    /// Path segments before the token of a click, beside `c`, which always answers. Default: none.
    pub click_paths: Vec<String>,
    /// Path segments before the token of a pixel, beside `o`, which always answers. Default: none.
    pub open_paths: Vec<String>,
    /// The sender domain (and so the GA4 property) that it stands for. Default: none.
    pub sender_domain: Option<String>,
    /// From which age on a click or an open is recorded as late. Default 90 days.
    pub late_after: Duration,
    /// Parameters to add to targets: names (`utm_…`) and templates (`{campaign}`, `{link}`). Default: none.
    pub utm: Vec<(String, String)>,
    /// Hosts whose URLs get these parameters, with their subdomains; empty (default) means all.
    pub utm_hosts: Vec<String>,
    /// Streams whose `_ga_<stream>` cookie counts: measurement ids without `G-`. Empty (default) means any.
    pub ga_streams: Vec<String>,
    /// Whether a click of a person says that the message was opened. Default: no.
    pub click_implies_open: bool,
    /// The visitor's cookie, where one may be given. Default: none.
    pub cookie: Option<CookieTerms>,
    /// The hand-off, where there is one. Default: none.
    pub handoff: Option<HandoffTerms>,
    /// Who runs this host, as shown on its pages. Default: nobody named.
    pub operator: Option<String>,
    /// The privacy notice that the pages link to. Default: none.
    pub privacy_url: Option<String>,
    /// The languages of its pages; the first where a visitor asks for none of them. Default: English.
    pub languages: Vec<Language>,
    /// The directory of its files below `/.well-known/`. Default: none.
    pub well_known: Option<PathBuf>,
    /// Its certificate; where no host has one, HTTP is plain. Default: none.
    pub tls: Option<TlsFiles>,
}

/// Against slow and greedy clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes of a request's head. Default 32 KiB; at least 8 KiB.
    pub head_bytes: usize,
    /// The most headers of a request. Default 100.
    pub headers: usize,
    /// How long a client may take to send the head of a request. Default 10 s.
    pub head_timeout: Duration,
    /// How long a connection may stay open without a request. Default 75 s.
    pub idle_timeout: Duration,
    /// The most connections at once. Default 8,192; further ones wait in the backlog of the system.
    pub connections: usize,
    /// The most connections at once from one IPv4 address or IPv6 /64; trusted proxies are exempt. Default 256.
    pub connections_per_client: usize,
    /// How long a stop may take: two thirds for answers under way, the rest for events not stored yet. Default 15 s.
    pub drain: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        let loopback = [IpNet::new_assert(Ipv4Addr::new(127, 0, 0, 0).into(), 8), {
            IpNet::new_assert(std::net::Ipv6Addr::LOCALHOST.into(), 128)
        }];
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8025)),
            trusted_proxies: loopback.into(),
            proxy_protocol: false,
            site: Site::default(),
            hosts: Vec::new(),
            rules_file: None,
            terms: Terms::default(),
            answer_wait: Duration::from_millis(250),
            queue_events: 20_000,
            limits: Limits::default(),
            rates: Rates::default(),
            inherit: false,
        }
    }
}

impl Default for Site {
    fn default() -> Self {
        Self {
            names: Vec::new(),
            key_site: None,
            base_path: String::new(),
            click_paths: Vec::new(),
            open_paths: Vec::new(),
            sender_domain: None,
            late_after: Duration::from_secs(90 * 24 * 3600),
            utm: Vec::new(),
            utm_hosts: Vec::new(),
            ga_streams: Vec::new(),
            click_implies_open: false,
            cookie: None,
            handoff: None,
            operator: None,
            privacy_url: None,
            languages: vec![Language::En],
            well_known: None,
            tls: None,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: Self::MIN_HEAD_BYTES * 4,
            headers: 100,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            connections: 8_192,
            connections_per_client: 256,
            drain: Duration::from_secs(15),
        }
    }
}

impl Limits {
    /// The least `head_bytes` that the HTTP library can work with.
    pub const MIN_HEAD_BYTES: usize = 8 * 1024;
}

impl Settings {
    /// The settings of all hosts.
    pub fn sites(&self) -> impl Iterator<Item = &Site> {
        std::iter::once(&self.site).chain(&self.hosts)
    }

    /// All that can't work, each as `key: what is wrong`; the names and templates of `utm` are checked by
    /// `UtmParameter::new`.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> = self.sites().flat_map(Site::problems).collect();
        let mut check = |good: bool, problem: &str| {
            if !good {
                problems.push(problem.to_owned());
            }
        };
        let limits = &self.limits;
        check(limits.head_bytes >= Limits::MIN_HEAD_BYTES, "limits.head_bytes: at least 8 KiB");
        check(limits.headers > 0, "limits.headers: at least 1");
        check(limits.connections > 0, "limits.connections: at least 1");
        check(limits.connections_per_client > 0, "limits.connections_per_client: at least 1");
        check(!limits.head_timeout.is_zero(), "limits.head_timeout: longer than nothing");
        check(!limits.idle_timeout.is_zero(), "limits.idle_timeout: longer than nothing");
        check(self.queue_events > 0, "queue_events: at least 1");
        problems
    }
}

impl Site {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |good: bool, problem: &str| {
            if !good {
                problems.push(problem.to_owned());
            }
        };
        let path = &self.base_path;
        let path_works =
            path.is_empty() || (path.starts_with('/') && path.split('/').skip(1).all(is_segment));
        check(
            path_works,
            "base_path: begins with a slash, ends without one, and has only unreserved characters",
        );
        let segments = || self.click_paths.iter().chain(&self.open_paths);
        check(
            segments().all(|path| is_segment(path)),
            "click_paths, open_paths: letters, digits and - . _ ~ only",
        );
        let both = self.click_paths.iter().any(|path| self.open_paths.contains(path) || path == OPEN)
            || self.open_paths.iter().any(|path| path == CLICK);
        check(!both, "click_paths, open_paths: must differ, also from `c` and `o`");
        let privacy_works = self
            .privacy_url
            .as_ref()
            .is_none_or(|url| url.starts_with("https://") || url.starts_with("http://"));
        check(privacy_works, "privacy_url: begins with https://");
        problems
    }
}

/// A path segment that no browser or proxy rewrites.
#[must_use]
pub fn is_segment(text: &str) -> bool {
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    !matches!(text, "" | "." | "..") && text.bytes().all(unreserved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_work_and_every_mistake_is_named_at_once() {
        assert_eq!(Settings::default().problems(), Vec::<String>::new());
        let mut wrong = Settings { queue_events: 0, ..Settings::default() };
        wrong.limits.head_bytes = 100;
        wrong.site.open_paths = vec!["c".into()];
        wrong.site.base_path = "mail/".into();
        wrong.site.privacy_url = Some("javascript:x".into());
        assert_eq!(wrong.problems().len(), 5, "{:?}", wrong.problems());
        for bad in ["/", "/a/", "a", "/a//b", "/a?b", "/ä", "/a/../b"] {
            let site = Site { base_path: bad.into(), ..Site::default() };
            assert_eq!(site.problems().len(), 1, "{bad}");
        }
    }
}
