//! `[tracking]`, its hosts and `[tracker]` exactly as the file has them.
//!
//! - Layer: word
//! - Takes: TOML.
//! - Gives: their tables, with what a missing key means.
//! - On failure: as for `raw`.
//! - See: `docs/tracker.md`.

use serde::{Deserialize, Serialize};

use super::{text, texts};

table! {
    /// `[tracking]`
    Tracking {
        /// Public base URL of the tracker.
        url: String = text(""),
        /// Further host names under which the tracker is asked for it.
        aliases: Vec<String> = Vec::new(),
        /// Base URLs that it had before: links in forwarded and quoted mail are not tracked twice.
        previous_urls: Vec<String> = Vec::new(),
        /// Longer tracking URLs are not written; the link stays as it is.
        max_url_bytes: u64 = 2_000,
        /// Path segments before the token of a link: the first is written, all are answered.
        click_paths: Vec<String> = texts(&["c"]),
        /// Path segments before the token of a pixel.
        open_paths: Vec<String> = texts(&["o"]),
        /// The keys that this host's links are signed with; empty: those of all.
        site: String = text(""),
        /// Further tracking hosts.
        hosts: Vec<TrackingHost> = Vec::new(),
    }
}

table! {
    /// `[[tracking.hosts]]`; what is empty is as in `[tracking]` and `[tracker]`.
    TrackingHost {
        /// Public base URL.
        url: String = text(""),
        /// Further host names.
        aliases: Vec<String> = Vec::new(),
        /// Domains of envelope senders whose links lead here.
        sender_domains: Vec<String> = Vec::new(),
        /// Path segments before the token of a link.
        click_paths: Vec<String> = Vec::new(),
        /// Path segments before the token of a pixel.
        open_paths: Vec<String> = Vec::new(),
        /// The keys that this host's links are signed with; empty: those of all.
        site: String = text(""),
        /// `utm_…=template`.
        utm: Vec<String> = Vec::new(),
        /// Hosts of targets that get them.
        utm_hosts: Vec<String> = Vec::new(),
        /// Streams whose cookies count.
        ga_streams: Vec<String> = Vec::new(),
        /// Who runs the host.
        operator: String = text(""),
        /// Linked from the pages.
        privacy_url: String = text(""),
        /// Languages of the pages.
        languages: Vec<String> = Vec::new(),
        /// Files below `/.well-known/`; empty: none.
        well_known_dir: String = text(""),
        /// Certificate chain, PEM; empty: that of `[tracker]`.
        tls_certificate: String = text(""),
        /// Its key, PEM.
        tls_key: String = text(""),
    }
}

table! {
    /// `[tracker]`
    Tracker {
        /// Whether `mailtap run` runs it.
        enabled: bool = true,
        /// Address to listen on.
        listen: String = text("127.0.0.1:8025"),
        /// Certificate chain, PEM; empty: plain HTTP.
        tls_certificate: String = text(""),
        /// Its key, PEM.
        tls_key: String = text(""),
        /// Proxies whose X-Forwarded-For is believed.
        trusted_proxies: Vec<String> = texts(&["127.0.0.0/8", "::1/128"]),
        /// Whether every connection begins with a header of the PROXY protocol, version 2.
        proxy_protocol: bool = false,
        /// Rules that tell machines from people; empty: the built-in catalogue.
        rules_file: String = text(""),
        /// Tokens older than this are marked late.
        late_after: String = text("90d"),
        /// A redirect waits this long for the spool.
        answer_wait: String = text("250ms"),
        // What is known of clicks and opens beyond each of them, and of visitors.
        /// Events wait this long for what may still become known of them; 0s: not at all.
        hold: String = text("30s"),
        /// Opens and clicks of one recipient and link are unique once within this time.
        unique_window: String = text("24h"),
        /// A person's click says that the message was opened.
        click_implies_open: bool = false,
        /// Name of the visitor's cookie.
        visitor_cookie: String = text("__Secure-mt"),
        /// How long a browser keeps it.
        visitor_max_age: String = text("180d"),
        /// Hosts of targets that are told who comes; empty: none.
        handoff_hosts: Vec<String> = Vec::new(),
        /// The parameter that tells it.
        handoff_parameter: String = text("mt"),
        /// How long it is good for.
        handoff_lifetime: String = text("120s"),

        /// Added to targets unless they have it: source, medium.
        utm_source: String = text(""),
        /// utm_medium.
        utm_medium: String = text(""),
        /// Add utm_campaign with the campaign id.
        utm_campaign: bool = false,
        /// More of them: `utm_…=template`.
        utm: Vec<String> = Vec::new(),
        /// Hosts of targets that get them, with their subdomains; empty: all.
        utm_hosts: Vec<String> = Vec::new(),
        /// Streams whose `_ga_` cookies count; empty: those of the properties.
        ga_streams: Vec<String> = Vec::new(),
        /// Connections at once.
        max_connections: u64 = 10_000,
        /// Of these from one client.
        max_connections_per_client: u64 = 256,
        /// Bytes of a request's head.
        max_head: String = text("32KiB"),
        /// A request's head, or a TLS handshake, may take as long.
        head_timeout: String = text("10s"),
        /// A connection may say nothing for as long.
        idle_timeout: String = text("75s"),
        /// Requests a second from one client, beyond which they are not recorded; 0: no limit.
        client_rate: u64 = 200,
        /// Requests a minute for one link of one recipient, beyond which they are not recorded; 0: no limit.
        token_rate: u64 = 60,
        /// At a stop, answers and events under way may take as long.
        drain: String = text("15s"),
        /// Who runs the host, as its pages say.
        operator: String = text(""),
        /// Linked from the pages.
        privacy_url: String = text(""),
        /// Languages of the pages; the first where a visitor asks for none of them.
        languages: Vec<String> = texts(&["en", "pl", "de"]),
        /// Files below `/.well-known/`; empty: none.
        well_known_dir: String = text(""),
    }
}
