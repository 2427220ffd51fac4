//! Checks `[tracking]`, its hosts, and `[tracker]`.
//!
//! - Layer: edge
//! - Takes: the tables as written.
//! - Gives: `TrackerConfig` and the tracking hosts; what a host leaves out is filled in from the first.
//! - On failure: problems, each with its key and the remedy.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use url::Url;

use super::Checker;
use crate::config::raw::{self, Raw};
use crate::config::units;
use crate::tracker::language::Language;
use crate::tracker::settings::is_segment;
use crate::tracker::terms::{CookieTerms, HandoffTerms, Terms};

/// The path segment of files, at every host's root.
const FILES: &str = ".well-known";
const LONGEST_HOLD: Duration = Duration::from_secs(600);
/// What a process may have open at most, on most systems.
const MOST_CONNECTIONS: u64 = 1_000_000;
/// What libraries of HTTP take, with room to spare; proxies take less.
const LONGEST_URL: u64 = 60_000;
const LONGEST_HANDOFF: Duration = Duration::from_secs(600);

/// `[tracker]`, checked.
#[derive(Debug, Clone)]
pub struct TrackerConfig {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Proxies whose X-Forwarded-For is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether connections begin with a PROXY header.
    pub proxy_protocol: bool,
    /// The site's own rules on machines.
    pub rules_file: Option<PathBuf>,
    /// Tokens older than this are marked late.
    pub late_after: Duration,
    /// A redirect waits this long for the spool.
    pub answer_wait: Duration,
    /// Connections at once.
    pub max_connections: usize,
    /// Of these from one client.
    pub max_connections_per_client: usize,
    /// Bytes of a request's head.
    pub max_head_bytes: usize,
    /// A head may take as long.
    pub head_timeout: Duration,
    /// A connection may say nothing for as long.
    pub idle_timeout: Duration,
    /// A stop may take as long.
    pub drain: Duration,
    /// What becomes of events that wait.
    pub terms: Terms,
    /// Whether a click says that the message was opened.
    pub click_implies_open: bool,
    /// The visitor's cookie.
    pub cookie: CookieTerms,
    /// Hosts that are told who comes, the parameter, and how long it is good for.
    pub handoff: (Vec<String>, String, Duration),
}

/// A tracking host, the first from `[tracking]` and `[tracker]`, the others from `[[tracking.hosts]]`.
#[derive(Debug, Clone)]
pub struct TrackingHost {
    /// Base of tracking URLs, with a slash at its end.
    pub url: String,
    /// All its names, that of `url` first.
    pub names: Vec<String>,
    /// Domains of envelope senders whose links lead here; the first host takes what no other does.
    pub sender_domains: Vec<String>,
    /// Path segments before the token of a link.
    pub click_paths: Vec<String>,
    /// Path segments before the token of a pixel.
    pub open_paths: Vec<String>,
    /// The keys that its links are signed with.
    pub site: Option<String>,
    /// Parameters for targets: name and template.
    pub utm: Vec<(String, String)>,
    /// Hosts of targets that get them.
    pub utm_hosts: Vec<String>,
    /// Streams whose cookies count; empty: those of the properties.
    pub ga_streams: Vec<String>,
    /// Who runs it.
    pub operator: Option<String>,
    /// Linked from its pages.
    pub privacy_url: Option<String>,
    /// Languages of its pages.
    pub languages: Vec<Language>,
    /// Files below `/.well-known/`.
    pub well_known_dir: Option<PathBuf>,
    /// Certificate chain and key.
    pub tls: Option<(PathBuf, PathBuf)>,
}

/// The tracking hosts; never empty.
pub(super) fn hosts(at: &mut Checker<'_>, raw: &Raw) -> Vec<TrackingHost> {
    let (tracking, tracker) = (&raw.tracking, &raw.tracker);
    let mut utm = Vec::new();
    for (name, value) in [("utm_source", &tracker.utm_source), ("utm_medium", &tracker.utm_medium)] {
        if !value.is_empty() {
            utm.push(format!("{name}={value}"));
        }
    }
    if tracker.utm_campaign {
        utm.push("utm_campaign={campaign}".to_owned());
    }
    utm.extend(tracker.utm.iter().cloned());
    let first = raw::TrackingHost {
        url: tracking.url.clone(),
        aliases: tracking.aliases.clone(),
        sender_domains: Vec::new(),
        click_paths: tracking.click_paths.clone(),
        open_paths: tracking.open_paths.clone(),
        site: tracking.site.clone(),
        utm,
        utm_hosts: tracker.utm_hosts.clone(),
        ga_streams: tracker.ga_streams.clone(),
        operator: tracker.operator.clone(),
        privacy_url: tracker.privacy_url.clone(),
        languages: tracker.languages.clone(),
        well_known_dir: tracker.well_known_dir.clone(),
        tls_certificate: tracker.tls_certificate.clone(),
        tls_key: tracker.tls_key.clone(),
    };
    let mut hosts = vec![host(at, "tracking", "tracker", &first)];
    for (number, raw) in tracking.hosts.iter().enumerate() {
        let key = format!("tracking.hosts[{number}]");
        let filled = fill(raw.clone(), &first);
        if raw.sender_domains.is_empty() {
            at.note(
                &format!("{key}.sender_domains"),
                "is missing: the envelope senders whose links lead to this host",
            );
        }
        let host = host(at, &key, &key, &filled);
        if let Some(name) =
            host.names.iter().find(|name| hosts.iter().any(|other| other.names.contains(name)))
        {
            at.note(&key, format!("{name} is named twice"));
        }
        hosts.push(host);
    }
    hosts
}

fn fill(mut host: raw::TrackingHost, first: &raw::TrackingHost) -> raw::TrackingHost {
    let texts = [(&mut host.operator, &first.operator), (&mut host.privacy_url, &first.privacy_url)];
    for (own, first) in texts.into_iter().filter(|(own, _)| own.is_empty()) {
        own.clone_from(first);
    }
    let lists = [
        (&mut host.click_paths, &first.click_paths),
        (&mut host.open_paths, &first.open_paths),
        (&mut host.utm, &first.utm),
        (&mut host.utm_hosts, &first.utm_hosts),
        (&mut host.ga_streams, &first.ga_streams),
        (&mut host.languages, &first.languages),
    ];
    for (own, first) in lists.into_iter().filter(|(own, _)| own.is_empty()) {
        own.clone_from(first);
    }
    host
}

/// `key` and `more` are the tables that the values stand in.
fn host(at: &mut Checker<'_>, key: &str, more: &str, raw: &raw::TrackingHost) -> TrackingHost {
    let url = base(at, &format!("{key}.url"), &raw.url);
    let mut names: Vec<String> =
        Url::parse(&url).ok().and_then(|url| url.host_str().map(str::to_owned)).into_iter().collect();
    for alias in &raw.aliases {
        let alias =
            if alias.parse::<IpAddr>().is_ok() { Ok(alias.clone()) } else { units::domain_pattern(alias) };
        let alias = alias.and_then(|name| match name.starts_with("*.") {
            true => Err(format!("`{name}`: an alias is one name")),
            false => Ok(name.to_ascii_lowercase()),
        });
        names.extend(at.some(&format!("{key}.aliases"), alias));
    }
    let (click_paths, open_paths) = (&raw.click_paths, &raw.open_paths);
    paths(at, &format!("{key}.click_paths"), click_paths, open_paths, "o");
    paths(at, &format!("{key}.open_paths"), open_paths, click_paths, "c");
    let site = (!raw.site.is_empty()).then(|| raw.site.clone());
    if let Some(site) = site.as_deref().filter(|site| !crate::keys::ring::is_site(site)) {
        at.note(
            &format!("{key}.site"),
            format!("`{site}`: 1 to 40 letters, digits, - or _, as given to `keys rotate --site`"),
        );
    }
    if !(raw.privacy_url.is_empty()
        || raw.privacy_url.starts_with("https://")
        || raw.privacy_url.starts_with("http://"))
    {
        at.note(&format!("{more}.privacy_url"), "must begin with https:// (or http://)");
    }
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    TrackingHost {
        url,
        names,
        sender_domains: at.domains(&format!("{key}.sender_domains"), &raw.sender_domains),
        click_paths: click_paths.clone(),
        open_paths: open_paths.clone(),
        site,
        utm: utm(at, &format!("{more}.utm"), &raw.utm),
        utm_hosts: at.domains(&format!("{more}.utm_hosts"), &raw.utm_hosts),
        ga_streams: streams(at, &format!("{more}.ga_streams"), &raw.ga_streams),
        operator: text(&raw.operator),
        privacy_url: text(&raw.privacy_url),
        languages: languages(at, &format!("{more}.languages"), &raw.languages),
        well_known_dir: text(&raw.well_known_dir)
            .map(|dir| at.existing(&format!("{more}.well_known_dir"), &dir)),
        tls: tls(at, more, raw),
    }
}

fn tls(at: &mut Checker<'_>, key: &str, raw: &raw::TrackingHost) -> Option<(PathBuf, PathBuf)> {
    match (raw.tls_certificate.as_str(), raw.tls_key.as_str()) {
        ("", "") => None,
        ("", _) | (_, "") => {
            at.note(key, "tls_certificate and tls_key come together");
            None
        }
        (certificate, key_file) => Some((
            at.existing(&format!("{key}.tls_certificate"), certificate),
            at.existing(&format!("{key}.tls_key"), key_file),
        )),
    }
}

fn utm(at: &mut Checker<'_>, key: &str, list: &[String]) -> Vec<(String, String)> {
    let mut parameters: Vec<(String, String)> = Vec::new();
    for text in list {
        match text.split_once('=') {
            Some((name, template)) => {
                if let Err(error) = crate::tracker::utm::UtmParameter::new(name, template) {
                    at.note(key, format!("`{name}`: {error}"));
                }
                parameters.push((name.to_owned(), template.to_owned()));
            }
            None => at.note(key, format!("`{text}` is not like \"utm_source=news\"")),
        }
    }
    parameters
}

fn languages(at: &mut Checker<'_>, key: &str, list: &[String]) -> Vec<Language> {
    if list.is_empty() {
        at.note(key, "is empty: name at least one language");
    }
    let known = Language::ALL.map(Language::as_str).join(", ");
    let language = |text: &String| {
        let found = Language::ALL.into_iter().find(|language| language.as_str() == text);
        if found.is_none() {
            at.note(key, format!("`{text}` is not one of: {known}"));
        }
        found
    };
    list.iter().filter_map(language).collect()
}

fn paths(at: &mut Checker<'_>, key: &str, list: &[String], others: &[String], reserved: &str) {
    if list.is_empty() {
        at.note(key, "is empty: name at least one path");
    }
    for path in list {
        if !is_segment(path) {
            at.note(key, format!("`{path}`: letters, digits and - . _ ~ only"));
        }
        if path == FILES {
            at.note(
                key,
                format!("`{path}` is where files are (RFC 8615), and no link could be: take another name"),
            );
        }
        if others.contains(path) || path == reserved {
            at.note(key, format!("`{path}` can't be both a link's and a pixel's"));
        }
    }
}

fn base(at: &mut Checker<'_>, key: &str, text: &str) -> String {
    if text.is_empty() {
        at.note(key, "is missing: the public URL of the tracker, like \"https://t.example.org\"");
        return String::new();
    }
    at.some(key, base_url(text).and_then(is_answered)).unwrap_or_default()
}

/// A base URL below which the tracker answers links.
fn is_answered(url: String) -> Result<String, String> {
    let path = url.splitn(4, '/').nth(3).unwrap_or_default().trim_end_matches('/');
    if path.is_empty() {
        return Ok(url);
    }
    if path.split('/').next() == Some(FILES) {
        return Err(format!(
            "`{url}`: below /{FILES}/ are files (RFC 8615), and no link could be: take another path, or none"
        ));
    }
    match path.split('/').find(|segment| !is_segment(segment)) {
        Some(segment) => Err(format!(
            "`{url}`: the path has `{segment}`; letters, digits and - . _ ~ only, between single slashes"
        )),
        None => Ok(url),
    }
}

pub(super) fn previous_tracking_urls(at: &mut Checker<'_>, list: &[String]) -> Vec<String> {
    let numbered = list.iter().enumerate();
    numbered
        .filter_map(|(number, text)| at.some(&format!("tracking.previous_urls[{number}]"), base_url(text)))
        .collect()
}

/// The base URL with a slash at its end.
fn base_url(text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|error| format!("`{text}`: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err("must begin with https:// (or http://) and a host".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
        return Err("must have no user, query or fragment".to_owned());
    }
    Ok(format!("{}/", url.as_str().trim_end_matches('/')))
}

pub(super) fn tracker(at: &mut Checker<'_>, raw: &Raw) -> TrackerConfig {
    let tracker = &raw.tracker;
    let mut networks: Vec<IpNet> = Vec::new();
    for text in &tracker.trusted_proxies {
        match text.parse::<IpNet>().or_else(|_| text.parse().map(|ip: IpAddr| ip.into())) {
            Ok(network) => networks.push(network),
            Err(_) => {
                at.note(
                    "tracker.trusted_proxies",
                    format!("`{text}` is not a network, like \"127.0.0.0/8\""),
                );
            }
        }
    }
    if tracker.proxy_protocol && networks.is_empty() {
        at.note("tracker.proxy_protocol", "needs trusted_proxies: nobody else may connect");
    }
    let rules =
        (!tracker.rules_file.is_empty()).then(|| at.existing("tracker.rules_file", &tracker.rules_file));
    let listen = at.some("tracker.listen", units::address(&tracker.listen));
    TrackerConfig {
        listen: listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0))),
        trusted_proxies: networks,
        proxy_protocol: tracker.proxy_protocol,
        rules_file: rules,
        late_after: at.ok("tracker.late_after", units::duration(&tracker.late_after)),
        answer_wait: at.ok("tracker.answer_wait", units::duration(&tracker.answer_wait)),
        max_connections: at.up_to("tracker.max_connections", tracker.max_connections, MOST_CONNECTIONS),
        max_connections_per_client: at
            .count("tracker.max_connections_per_client", tracker.max_connections_per_client),
        max_head_bytes: head_bytes(at, raw),
        head_timeout: some_time(at, "tracker.head_timeout", &tracker.head_timeout),
        idle_timeout: some_time(at, "tracker.idle_timeout", &tracker.idle_timeout),
        drain: at.ok("tracker.drain", units::duration(&tracker.drain)),
        terms: terms(at, tracker),
        click_implies_open: tracker.click_implies_open,
        cookie: cookie(at, tracker),
        handoff: handoff(at, tracker),
    }
}

fn terms(at: &mut Checker<'_>, tracker: &raw::Tracker) -> Terms {
    let hold = at.ok("tracker.hold", units::duration(&tracker.hold));
    if hold > LONGEST_HOLD {
        at.note("tracker.hold", "is above 10m: nothing is learnt so late, and memory is held for it");
    }
    Terms { hold, unique_window: some_time(at, "tracker.unique_window", &tracker.unique_window) }
}

fn cookie(at: &mut Checker<'_>, tracker: &raw::Tracker) -> CookieTerms {
    if !CookieTerms::is_name(&tracker.visitor_cookie) {
        at.note(
            "tracker.visitor_cookie",
            "must be 1 to 40 letters, digits, -, _ or ., and not begin with __Host-",
        );
    }
    let name = tracker.visitor_cookie.to_ascii_lowercase();
    if ["_ga", "_gid", "_gcl", "_gac", "fpid", "fplc", "fpau", "fpgsid"]
        .iter()
        .any(|theirs| name.starts_with(theirs))
    {
        at.note(
            "tracker.visitor_cookie",
            "is a cookie of Google's, which it would overwrite: take another name",
        );
    }
    let max_age = some_time(at, "tracker.visitor_max_age", &tracker.visitor_max_age);
    CookieTerms { name: tracker.visitor_cookie.clone(), max_age }
}

/// Streams by what their cookies are named after: a measurement id without its `G-`.
fn streams(at: &mut Checker<'_>, key: &str, raw: &[String]) -> Vec<String> {
    let streams: Vec<String> = raw.iter().map(|stream| stream.trim_start_matches("G-").to_owned()).collect();
    for stream in &streams {
        if stream.is_empty() || !stream.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            at.note(key, format!("\"{stream}\" is no measurement id, which looks like G-ABCDE12345"));
        }
    }
    streams
}

fn handoff(at: &mut Checker<'_>, tracker: &raw::Tracker) -> (Vec<String>, String, Duration) {
    let mut hosts = at.domains("tracker.handoff_hosts", &tracker.handoff_hosts);
    if hosts.iter().any(|host| host.starts_with("*.")) {
        at.note("tracker.handoff_hosts", "takes whole names: a token is meant for one host");
    }
    hosts.iter_mut().for_each(|host| host.make_ascii_lowercase());
    if !HandoffTerms::is_parameter(&tracker.handoff_parameter) {
        at.note(
            "tracker.handoff_parameter",
            "must be 1 to 40 letters, digits, - or _, and not begin with utm_",
        );
    }
    let lifetime = some_time(at, "tracker.handoff_lifetime", &tracker.handoff_lifetime);
    if lifetime > LONGEST_HANDOFF {
        at.note("tracker.handoff_lifetime", "is above 10m: verifiers believe nothing that lives longer");
    }
    (hosts, tracker.handoff_parameter.clone(), lifetime)
}

fn head_bytes(at: &mut Checker<'_>, raw: &Raw) -> usize {
    let text = &raw.tracker.max_head;
    let bytes = at.size("tracker.max_head", text);
    if !(crate::tracker::settings::Limits::MIN_HEAD_BYTES..=1 << 20).contains(&bytes) {
        at.note("tracker.max_head", "must be 8KiB to 1MiB");
    } else if raw.tracking.max_url_bytes > LONGEST_URL.min(bytes as u64 / 2) {
        at.note(
            "tracking.max_url_bytes",
            format!(
                "must be at most half of tracker.max_head ({text}), and {LONGEST_URL}: the other half is for the headers of browsers, and a \
                 longer link would be answered 431"
            ),
        );
    }
    bytes
}

fn some_time(at: &mut Checker<'_>, key: &str, text: &str) -> Duration {
    let time = at.ok(key, units::duration(text));
    if time.is_zero() {
        at.note(key, "must be longer than nothing");
    }
    time
}
