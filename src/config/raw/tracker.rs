//! `[tracking]` and `[tracker]` exactly as the file has them.
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
        /// Base URLs that it had before: links in forwarded and quoted mail are not tracked twice.
        previous_urls: Vec<String> = Vec::new(),
        /// Longer tracking URLs are not written; the link stays as it is.
        max_url_bytes: u64 = 2_000,
    }
}

table! {
    /// `[tracker]`
    Tracker {
        /// Whether `mailtap run` runs it.
        enabled: bool = true,
        /// Address to listen on.
        listen: String = text("127.0.0.1:8025"),
        /// Proxies whose X-Forwarded-For is believed.
        trusted_proxies: Vec<String> = texts(&["127.0.0.0/8", "::1/128"]),
        /// Rules that tell machines from people; empty: the built-in catalogue.
        rules_file: String = text(""),
        /// Tokens older than this are marked late.
        late_after: String = text("90d"),
        /// A redirect waits this long for the spool.
        answer_wait: String = text("250ms"),
        /// Added to targets unless they have it: source, medium.
        utm_source: String = text(""),
        /// utm_medium.
        utm_medium: String = text(""),
        /// Add utm_campaign with the campaign id.
        utm_campaign: bool = false,
        /// Connections at once.
        max_connections: u64 = 10_000,
        /// Linked from the page at the root.
        privacy_url: String = text(""),
    }
}
