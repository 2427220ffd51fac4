//! From the configuration to the settings of the tracker, and to the hosts that the milter's links lead to.
//!
//! - Layer: cli
//! - Takes: a checked configuration.
//! - Gives: `tracker::Settings`; the milter's tracking hosts; how our own links begin.
//! - On failure: nothing can fail; `warnings` says what works less well than it could.
//! - See: `docs/tracker.md`.

use url::Url;

use crate::config::{Config, PropertyConfig, TrackingHost};
use crate::filter::campaign::matches_domain;
use crate::filter::hosts::{self, CLICK_SEGMENT, OPEN_SEGMENT};
use crate::tracker::{HandoffTerms, Limits, Rates, Settings, Site, TlsFiles};

/// The tracker's settings; `inherit` where a socket of systemd's can only be its own.
pub(super) fn settings(config: &Config, inherit: bool) -> Settings {
    let tracker = &config.tracker;
    let mut sites = config.tracking_hosts.iter().map(|host| site(config, host));
    Settings {
        listen: tracker.listen,
        trusted_proxies: tracker.trusted_proxies.clone(),
        proxy_protocol: tracker.proxy_protocol,
        site: sites.next().unwrap_or_default(),
        hosts: sites.collect(),
        rules_file: tracker.rules_file.clone(),
        terms: tracker.terms,
        answer_wait: tracker.answer_wait,
        limits: Limits {
            head_bytes: tracker.max_head_bytes,
            head_timeout: tracker.head_timeout,
            idle_timeout: tracker.idle_timeout,
            connections: tracker.max_connections,
            connections_per_client: tracker.max_connections_per_client,
            drain: tracker.drain,
            ..Limits::default()
        },
        rates: Rates::new(config.raw.tracker.client_rate, config.raw.tracker.token_rate),
        inherit,
        ..Settings::default()
    }
}

fn site(config: &Config, host: &TrackingHost) -> Site {
    let stream = |property: &PropertyConfig| property.measurement_id.trim_start_matches("G-").to_owned();
    let streams = match &host.ga_streams[..] {
        [] => config.properties.iter().map(stream).collect(),
        own => own.to_vec(),
    };
    let url = Url::parse(&host.url).ok();
    Site {
        names: host.names.clone(),
        key_site: host.site.clone(),
        base_path: url.map(|url| url.path().trim_end_matches('/').to_owned()).unwrap_or_default(),
        click_paths: host.click_paths.clone(),
        open_paths: host.open_paths.clone(),
        sender_domain: sender_domain(config, host).ok().flatten(),
        late_after: config.tracker.late_after,
        utm: host.utm.clone(),
        utm_hosts: host.utm_hosts.clone(),
        ga_streams: streams,
        click_implies_open: config.tracker.click_implies_open,
        // Both are for https only, and the cookie would be refused otherwise.
        cookie: host.url.starts_with("https://").then(|| config.tracker.cookie.clone()),
        handoff: handoff(config, host),
        operator: host.operator.clone(),
        privacy_url: host.privacy_url.clone(),
        languages: host.languages.clone(),
        well_known: host.well_known_dir.clone(),
        tls: host.tls.clone().map(|(certificate, key)| TlsFiles { certificate, key }),
    }
}

fn handoff(config: &Config, host: &TrackingHost) -> Option<HandoffTerms> {
    let (hosts, parameter, lifetime) = config.tracker.handoff.clone();
    let issuer = host.url.trim_end_matches('/').to_owned();
    (!hosts.is_empty()).then_some(HandoffTerms { hosts, parameter, issuer, lifetime })
}

/// The sender domain that clicks at a host are counted for: any of the host's, as all have the same GA4 property.
///
/// The error says why there is none.
fn sender_domain(config: &Config, host: &TrackingHost) -> Result<Option<String>, &'static str> {
    let links = hosts(config);
    let leads_here = |domain: &str| hosts::host_for(&links, domain).is_some_and(|of| of.url == host.url);
    let domains =
        || config.sender_domains.iter().filter(|domain| leads_here(domain.trim_start_matches("*.")));
    let exact = domains().find(|domain| !domain.starts_with("*."));
    // A pattern's own property is that of what is below it.
    let property = |domain: &String| {
        let domain = domain.replacen("*.", "x.", 1);
        let named = |property: &PropertyConfig| {
            property.sender_domains.iter().any(|pattern| matches_domain(pattern, &domain))
        };
        let position = config.properties.iter().position(named);
        position.or_else(|| config.properties.iter().position(PropertyConfig::takes_all_others))
    };
    let mut properties = domains().map(property);
    let first = properties.next();
    if !properties.all(|other| Some(other) == first) {
        return Err(
            "its sender domains have several GA4 properties, and a click does not say which: give each \
                    property's domains a [[tracking.hosts]] of their own",
        );
    }
    match (exact, first.flatten()) {
        (Some(domain), _) => Ok(Some(domain.clone())),
        (None, Some(property))
            if config.properties.get(property).is_some_and(|property| !property.takes_all_others()) =>
        {
            Err(
                "all its sender domains are patterns, and their GA4 property is not the one for all others: list one \
                 domain without `*.`",
            )
        }
        _ => Ok(None),
    }
}

/// What works less well than it could.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let of = |host: &TrackingHost| {
        let why = sender_domain(config, host).err()?;
        Some(format!("clicks and opens at {} have no GA4 property: {why}", host.url))
    };
    let everybody = config.tracker.trusted_proxies.iter().find(|network| network.prefix_len() == 0);
    let believed = everybody.filter(|_| config.raw.tracker.enabled).map(|network| {
        format!(
            "tracker.trusted_proxies = [\"{network}\"]: whoever connects is believed any X-Forwarded-For, and passes for any client; name the \
             proxies only"
        )
    });
    config.tracking_hosts.iter().filter_map(of).chain(believed).collect()
}

/// Where the milter's links lead.
pub(super) fn hosts(config: &Config) -> Vec<hosts::TrackingHost> {
    let first_of = |paths: &[String], usual: &str| paths.first().cloned().unwrap_or_else(|| usual.to_owned());
    let host = |host: &TrackingHost| hosts::TrackingHost {
        sender_domains: host.sender_domains.clone(),
        url: host.url.clone(),
        click: first_of(&host.click_paths, CLICK_SEGMENT),
        open: first_of(&host.open_paths, OPEN_SEGMENT),
        site: host.site.clone(),
    };
    config.tracking_hosts.iter().map(host).collect()
}

/// How our own links begin, now and formerly, whichever scheme a proxy or an editor gave them.
pub(super) fn own_prefixes(config: &Config) -> Vec<String> {
    let mut prefixes = Vec::new();
    let mut add = |base: &str, segments: &mut dyn Iterator<Item = &str>| {
        let Some((_, rest)) = base.split_once("://") else { return };
        // Not the whole host: the site's own pages may be there too.
        for segment in segments {
            for scheme in ["https", "http"] {
                let prefix = format!("{scheme}://{rest}{segment}/");
                if !prefixes.contains(&prefix) {
                    prefixes.push(prefix);
                }
            }
        }
    };
    for host in &config.tracking_hosts {
        let own = host.click_paths.iter().chain(&host.open_paths).map(String::as_str);
        let segments: Vec<&str> = [CLICK_SEGMENT, OPEN_SEGMENT].into_iter().chain(own).collect();
        add(&host.url, &mut segments.iter().copied());
        for alias in host.names.iter().skip(1) {
            if let Ok(mut url) = Url::parse(&host.url)
                && url.set_host(Some(alias)).is_ok()
            {
                add(url.as_str(), &mut segments.iter().copied());
            }
        }
    }
    let all = config.tracking_hosts.iter().flat_map(|host| host.click_paths.iter().chain(&host.open_paths));
    let segments: Vec<&str> =
        [CLICK_SEGMENT, OPEN_SEGMENT].into_iter().chain(all.map(String::as_str)).collect();
    for base in &config.previous_tracking_urls {
        add(base, &mut segments.iter().copied());
    }
    prefixes
}
