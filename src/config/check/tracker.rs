//! Checks `[tracking]` and `[tracker]`.
//!
//! - Layer: edge
//! - Takes: the tables as written.
//! - Gives: `TrackerConfig`, and the base URLs of links.
//! - On failure: problems, each with its key and the remedy.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use url::Url;

use super::Checker;
use crate::config::raw::Raw;
use crate::config::units;

/// `[tracker]`, checked.
#[derive(Debug, Clone)]
pub struct TrackerConfig {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Proxies whose X-Forwarded-For is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// The site's own rules on machines.
    pub rules_file: Option<PathBuf>,
    /// Tokens older than this are marked late.
    pub late_after: Duration,
    /// A redirect waits this long for the spool.
    pub answer_wait: Duration,
    /// Connections at once.
    pub max_connections: usize,
}

pub(super) fn tracking_url(at: &mut Checker<'_>, text: &str) -> String {
    if text.is_empty() {
        at.note("tracking.url", "is missing: the public URL of the tracker, like \"https://t.example.org\"");
        return String::new();
    }
    at.some("tracking.url", base_url(text)).unwrap_or_default()
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
        match text.parse::<IpNet>().or_else(|_| text.parse().map(|ip: std::net::IpAddr| ip.into())) {
            Ok(network) => networks.push(network),
            Err(_) => {
                at.note(
                    "tracker.trusted_proxies",
                    format!("`{text}` is not a network, like \"127.0.0.0/8\""),
                );
            }
        }
    }
    let rules =
        (!tracker.rules_file.is_empty()).then(|| at.existing("tracker.rules_file", &tracker.rules_file));
    let listen = at.some("tracker.listen", units::address(&tracker.listen));
    TrackerConfig {
        listen: listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0))),
        trusted_proxies: networks,
        rules_file: rules,
        late_after: at.ok("tracker.late_after", units::duration(&tracker.late_after)),
        answer_wait: at.ok("tracker.answer_wait", units::duration(&tracker.answer_wait)),
        max_connections: at.count("tracker.max_connections", tracker.max_connections),
    }
}
