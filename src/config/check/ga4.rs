//! `[ga4]` and `[[ga4.properties]]`: where events go.
//!
//! - Layer: edge
//! - Takes: `Raw`.
//! - Gives: the properties, the one of `[ga4]` last.
//! - On failure: problems; what all properties share is told of once. Secrets are never repeated.

use url::Url;

use super::Checker;
use crate::config::raw::{Ga4, Raw};
use crate::config::{PropertyConfig, units};
use crate::service::secret::Secret;

pub(super) fn properties(at: &mut Checker<'_>, raw: &Raw) -> Vec<PropertyConfig> {
    let ga4 = &raw.ga4;
    let mut properties = Vec::new();
    let takes_any =
        !ga4.properties.is_empty() || !ga4.measurement_id.is_empty() || !ga4.api_secret_file.is_empty();
    let common = common(at, ga4, takes_any);
    for (number, property) in ga4.properties.iter().enumerate() {
        let key = format!("ga4.properties[{number}]");
        let url = if property.url.is_empty() { &ga4.url } else { &property.url };
        if property.sender_domains.is_empty() && property.campaigns.is_empty() {
            at.note(
                &format!("{key}.sender_domains"),
                "is missing: the domains (or campaigns) whose events go to this property",
            );
        }
        let sender_domains = at.domains(&format!("{key}.sender_domains"), &property.sender_domains);
        let campaigns = property.campaigns.iter();
        let campaigns = campaigns
            .filter_map(|text| at.some(&format!("{key}.campaigns"), units::campaign_pattern(text)))
            .collect();
        let (id, file) = (&property.measurement_id, &property.api_secret_file);
        let checked = one_property(at, &common, &key, id, file, url);
        properties.push(PropertyConfig { campaigns, sender_domains, ..checked });
    }
    if !ga4.measurement_id.is_empty()
        || (raw.relay.enabled && properties.is_empty() && !ga4.api_secret_file.is_empty())
    {
        properties.push(one_property(
            at,
            &common,
            "ga4",
            &ga4.measurement_id,
            &ga4.api_secret_file,
            &ga4.url,
        ));
    }
    properties
}

/// What is the same for all properties, looked at once.
struct Common<'a> {
    path: &'a str,
    /// The token of the preview, or why it is not there.
    preview: Option<Result<Secret<String>, String>>,
}

fn common<'a>(at: &mut Checker<'_>, ga4: &'a Ga4, takes_any: bool) -> Common<'a> {
    if !ga4.path.starts_with('/') || ga4.path.contains(['?', '#', ' ']) {
        at.note("ga4.path", "must be a path, like \"/mp/collect\"");
    } else if debugs(&ga4.path) {
        at.note("ga4.path", "is that of Google's validation, which records nothing: use \"/mp/collect\"");
    }
    let preview =
        (takes_any && !ga4.preview_file.is_empty()).then(|| at.secret("ga4.preview_file", &ga4.preview_file));
    Common { path: &ga4.path, preview }
}

/// Whether a path leads to where requests are judged and not recorded.
fn debugs(path: &str) -> bool {
    path.split('/').any(|part| part.eq_ignore_ascii_case("debug"))
}

fn one_property(
    at: &mut Checker<'_>,
    common: &Common<'_>,
    key: &str,
    measurement_id: &str,
    api_secret_file: &str,
    url: &str,
) -> PropertyConfig {
    let id = measurement_id
        .strip_prefix("G-")
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    if !id {
        at.note(
            &format!("{key}.measurement_id"),
            "must be G- and letters or digits, as GA4 shows it under Data streams",
        );
    }
    let is_plain = |url: &Url| url.username().is_empty() && url.query().is_none() && url.fragment().is_none();
    let url = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && is_plain(url));
    let is_googles = |url: &&Url| url.host_str().is_some_and(|host| host.ends_with("google-analytics.com"));
    if let Some(url) = &url
        && (debugs(url.path()) || (is_googles(&url) && url.path() != "/"))
    {
        at.note(&format!("{key}.url"), "must end with the host: ga4.path is added to it");
    }
    if url.is_none() {
        let why = "must begin with https:// (or http://), and have no user, query or fragment";
        at.note(&format!("{key}.url"), why);
    }
    let mut missing = common.preview.as_ref().and_then(|preview| preview.clone().err());
    let mut known = |secret: Result<Secret<String>, String>| secret.map_err(|why| missing = Some(why)).ok();
    let api_secret = if api_secret_file.is_empty() {
        // Only a server-side GTM of one's own does without.
        if url.as_ref().is_some_and(|url| is_googles(&url)) {
            at.note(
                &format!("{key}.api_secret_file"),
                "is missing: Google needs the API secret, in a file of mode 0600",
            );
        }
        None
    } else {
        known(at.secret(&format!("{key}.api_secret_file"), api_secret_file))
    };
    let url = url.map(|url| url.as_str().trim_end_matches('/').to_owned()).unwrap_or_default();
    PropertyConfig {
        campaigns: Vec::new(),
        sender_domains: Vec::new(),
        measurement_id: measurement_id.to_owned(),
        api_secret,
        url,
        path: common.path.to_owned(),
        preview: common.preview.clone().and_then(Result::ok),
        missing,
    }
}
