//! From `Raw` to `Config`: every value with its unit, every file named, all problems at once.
//!
//! - Layer: edge
//! - Takes: `Raw` and the directory of its file.
//! - Gives: `Config`.
//! - On failure: problems, each with its key and the remedy. Files are looked at, secrets are read.

mod amqp;
mod ga4;
mod milter;
mod relay;
mod rules;
pub(super) mod tracker;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::mapping;
use super::parse::Problem;
use super::raw::Raw;
use super::units;
use super::{CampaignSource, Config, SplitConfig, TapSource};
use crate::consent::{Consent, Fixed, SiteConsent};
use crate::delivery::{Providers, Replies};
use crate::keys;
use crate::keys::ring::Use;
use crate::rewrite::{DEFAULT_LOGIN_PATTERNS, LinkPatterns, PixelAt, check_pixel};
use crate::service::files;
use crate::service::secret::Secret;
use crate::telemetry::{self, Format};

const MAX_SECRET_BYTES: u64 = 4_096;
/// Collects what is wrong while values are read.
pub(super) struct Checker<'a> {
    dir: &'a Path,
    pub(super) problems: Vec<Problem>,
}

impl<'a> Checker<'a> {
    pub(super) const fn new(dir: &'a Path) -> Self {
        Self { dir, problems: Vec::new() }
    }

    fn note(&mut self, key: &str, what: impl Into<String>) {
        self.problems.push(Problem::new(key, what));
    }

    fn ok<T: Default>(&mut self, key: &str, result: Result<T, String>) -> T {
        self.some(key, result).unwrap_or_default()
    }

    fn some<T>(&mut self, key: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|what| self.note(key, what)).ok()
    }

    fn one_of<T: Copy + Default>(&mut self, key: &str, text: &str, words: &[(&str, T)]) -> T {
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return *value;
        }
        let list: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        self.note(key, format!("`{text}` is not one of: {}", list.join(", ")));
        T::default()
    }

    /// A path relative to the configuration's directory; `credential:NAME` is one of systemd's.
    fn path(&self, text: &str) -> PathBuf {
        match (text.strip_prefix("credential:"), std::env::var_os("CREDENTIALS_DIRECTORY")) {
            (Some(name), Some(directory)) => Path::new(&directory).join(name),
            _ => self.dir.join(text),
        }
    }

    /// What to say where a credential is asked for outside of the unit that has it: no problem for who does not need it.
    fn elsewhere(key: &str, text: &str) -> Option<String> {
        let outside = text.starts_with("credential:") && std::env::var_os("CREDENTIALS_DIRECTORY").is_none();
        outside.then(|| {
            format!(
                "{key}: {text} is there only within its systemd unit; or name a file that this user can read"
            )
        })
    }

    fn existing(&mut self, key: &str, text: &str) -> PathBuf {
        let path = self.path(text);
        if Self::elsewhere(key, text).is_none()
            && let Err(error) = fs::metadata(&path)
        {
            self.note(key, format!("{}: {error}", path.display()));
        }
        path
    }

    /// As `existing`, for what a command makes: `remedy` says which.
    fn made(&mut self, key: &str, text: &str, remedy: &str) -> PathBuf {
        let path = self.path(text);
        if Self::elsewhere(key, text).is_none()
            && let Err(error) = fs::metadata(&path)
        {
            self.note(key, format!("{}: {error}; {remedy}", path.display()));
        }
        path
    }

    /// A secret from a file; none, and why, where it is a credential of a unit.
    fn secret(&mut self, key: &str, text: &str) -> Result<Secret<String>, String> {
        Self::elsewhere(key, text).map_or_else(|| Ok(self.secret_here(key, text)), Err)
    }

    fn secret_here(&mut self, key: &str, text: &str) -> Secret<String> {
        let path = self.path(text);
        let read = files::is_open_to_others(&path).and_then(|open| {
            let credential = text.starts_with("credential:");
            Ok((open && !credential, files::read_limited(&path, MAX_SECRET_BYTES)?))
        });
        match read {
            Ok((true, _)) => {
                let path = path.display();
                self.note(key, format!("{path}: others can read this secret; run: chmod 600 {path}"));
            }
            Ok((false, bytes)) => match String::from_utf8(bytes) {
                Ok(text) if !text.trim().is_empty() => return Secret::new(text.trim().to_owned()),
                _ => self.note(key, format!("{}: empty, or not text", path.display())),
            },
            Err(error) => self.note(key, format!("{}: {error}", path.display())),
        }
        Secret::default()
    }

    fn count(&mut self, key: &str, number: u64) -> usize {
        if number == 0 {
            self.note(key, "0 is too few");
        }
        usize::try_from(number).unwrap_or(usize::MAX)
    }

    fn up_to(&mut self, key: &str, number: u64, most: u64) -> usize {
        if number > most {
            self.note(key, format!("must not be more than {most}"));
        }
        self.count(key, number)
    }

    fn size(&mut self, key: &str, text: &str) -> usize {
        usize::try_from(self.ok(key, units::bytes(text))).unwrap_or(usize::MAX)
    }

    fn domains(&mut self, key: &str, list: &[String]) -> Vec<String> {
        list.iter().filter_map(|text| self.some(key, units::domain_pattern(text))).collect()
    }

    fn address(&mut self, key: &str, text: &str) -> Option<SocketAddr> {
        if text.is_empty() { None } else { self.some(key, units::address(text)) }
    }
}

pub(super) fn check(raw: Raw, dir: &Path) -> (Config, Vec<Problem>) {
    let mut at = Checker::new(dir);
    let (mapping, unmapped) = mapping::mapping(&raw.ga4);
    at.problems.extend(unmapped);
    let formats = [("auto", Format::Auto), ("text", Format::Text), ("json", Format::Json)];
    let _ = at.some("log.level", telemetry::directives(&raw.log.level));
    let log_format = at.one_of("log.format", &raw.log.format, &formats);
    let config = Config {
        state_dir: dir.join(&raw.state_dir),
        host: host(&mut at, &raw.host),
        log_format,
        admin: admin(&mut at, &raw),
        keyring: at.made("keys.keyring", &raw.keys.keyring, &no_keyring()),
        pseudonym_key: at.made("keys.pseudonym_key", &raw.keys.pseudonym_key, keys::NO_PSEUDONYM_KEY),
        tracking_hosts: tracker::hosts(&mut at, &raw),
        previous_tracking_urls: tracker::previous_tracking_urls(&mut at, &raw.tracking.previous_urls),
        sender_domains: at.domains("policy.sender_domains", &raw.policy.sender_domains),
        link_patterns: link_patterns(&mut at, &raw),
        skip_link_hosts: at.domains("policy.skip_link_hosts", &raw.policy.skip_link_hosts),
        only_link_hosts: at.domains("policy.only_link_hosts", &raw.policy.only_link_hosts),
        pixel_at: at.one_of(
            "policy.pixel_at",
            &raw.policy.pixel_at,
            &[("end", PixelAt::End), ("top", PixelAt::Top), ("both", PixelAt::Both)],
        ),
        rules: rules::rules(&mut at, &raw),
        max_message_bytes: at.size("policy.max_message", &raw.policy.max_message),
        share: at.one_of(
            "policy.several_recipients",
            &raw.policy.several_recipients,
            &[("shared", true), ("split", true), ("skip", false)],
        ),
        split: split(&mut at, &raw),
        campaigns: campaigns(&mut at, &raw),
        consent: consent(&mut at, &raw),
        withdrawn_file: withdrawn_file(&mut at, &raw),
        handoff_keys: handoff_keys(&mut at, &raw),
        milter: milter::milter(&mut at, &raw),
        tap_source: tap_source(&mut at, &raw),
        time_zone: time_zone(&mut at, &raw.tap.time_zone),
        bounce_rules: bounce_rules(&mut at, &raw),
        providers: at.ok("delivery.providers", Providers::extended(&raw.delivery.providers)),
        replies: at.one_of(
            "delivery.replies",
            &raw.delivery.replies,
            &[("off", Replies::Off), ("scrubbed", Replies::Scrubbed), ("full", Replies::Full)],
        ),
        tracker: tracker::tracker(&mut at, &raw),
        spool_max_bytes: relay::spool_max_bytes(&mut at, &raw.spool.max_bytes),
        spool_full_sync: at.one_of("spool.sync", &raw.spool.sync, &[("full", true), ("normal", false)]),
        spool_max_age: relay::max_age(&mut at, &raw.spool.max_age),
        spool_drops_old: at.one_of(
            "spool.too_old",
            &raw.spool.too_old,
            &[("dead-letter", false), ("drop", true)],
        ),
        dedupe: relay::dedupe(&mut at, &raw.spool.dedupe),
        amqp: amqp::amqp(&mut at, &raw),
        relay: relay::relay(&mut at, &raw),
        properties: ga4::properties(&mut at, &raw),
        mapping,
        path: std::path::PathBuf::new(),
        raw,
    };
    policy(&mut at, &config);
    (config, at.problems)
}

fn no_keyring() -> String {
    format!("copy it from another host or restore it, or make the first one: {}", keys::maker(Use::Tokens))
}

fn policy(at: &mut Checker<'_>, config: &Config) {
    if config.raw.policy.sender_domains.is_empty() {
        at.note(
            "policy.sender_domains",
            "is missing: list the domains of the envelope senders whose mail is tracked",
        );
    }
    if let Err(error) = check_pixel(&config.raw.policy.pixel) {
        at.note("policy.pixel", error.why);
    }
    if config.raw.tracking.max_url_bytes < 200 {
        at.note("tracking.max_url_bytes", "is below 200, which no tracking URL fits");
    }
    let limits = &config.raw.policy;
    // The token has two bytes for a link's number; the walk through the parts goes one call deeper for each level.
    at.up_to("policy.max_links", limits.max_links, u16::MAX.into());
    at.up_to("policy.max_parts", limits.max_parts, 100_000);
    at.up_to("policy.max_depth", limits.max_depth, 100);
    at.count("tap.max_tracked", config.raw.tap.max_tracked);
}

fn host(at: &mut Checker<'_>, text: &str) -> String {
    let host = if text.is_empty() {
        fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "localhost".into())
    } else {
        text.to_owned()
    };
    let host = host.trim().to_owned();
    if host.is_empty() || !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)) {
        at.note("host", "expected a host name of letters, digits, dots and hyphens");
    }
    host
}

fn admin(at: &mut Checker<'_>, raw: &Raw) -> Vec<(&'static str, Option<SocketAddr>)> {
    let admin = &raw.admin;
    [
        ("run", &admin.run),
        ("milter", &admin.milter),
        ("tap", &admin.tap),
        ("tracker", &admin.tracker),
        ("relay", &admin.relay),
        ("forward", &admin.forward),
    ]
    .into_iter()
    .map(|(role, text)| (role, at.address(&format!("admin.{role}"), text)))
    .collect()
}

fn campaigns(at: &mut Checker<'_>, raw: &Raw) -> Vec<CampaignSource> {
    let mut campaigns = Vec::new();
    for (number, rule) in raw.policy.campaign_rules.iter().enumerate() {
        let key = format!("policy.campaign_rules[{number}]");
        let campaign =
            at.some(&format!("{key}.campaign"), rule.campaign.parse().map_err(|error| format!("{error}")));
        if rule.sender.is_empty() {
            at.note(&format!("{key}.sender"), "is missing: an address, a domain, or *.domain");
        }
        if let Some(campaign) = campaign {
            campaigns.push(CampaignSource { sender: rule.sender.to_lowercase(), campaign });
        }
    }
    campaigns
}

fn consent(at: &mut Checker<'_>, raw: &Raw) -> SiteConsent {
    let words = [("granted", Some(Consent::Granted)), ("denied", Some(Consent::Denied))];
    let mut of = |key, text| at.one_of(key, text, &words).unwrap_or(Consent::Denied);
    let fixed = Fixed {
        clicks: of("consent.clicks", &raw.consent.clicks),
        opens: of("consent.opens", &raw.consent.opens),
    };
    SiteConsent { fixed, identity: of("consent.identity", &raw.consent.identity) }
}

fn withdrawn_file(at: &mut Checker<'_>, raw: &Raw) -> Option<PathBuf> {
    let file = &raw.consent.withdrawn_file;
    let path = (!file.is_empty()).then(|| at.path(file))?;
    if !path.exists() {
        at.note(
            "consent.withdrawn_file",
            format!("{}: is not there; `mailtap consent init` makes it", path.display()),
        );
    }
    Some(path)
}

fn handoff_keys(at: &mut Checker<'_>, raw: &Raw) -> Option<PathBuf> {
    if raw.tracker.handoff_hosts.is_empty() {
        return None;
    }
    let path = at.path(&raw.keys.handoff);
    if raw.tracker.enabled && !path.exists() {
        at.note(
            "keys.handoff",
            format!("{}: is not there; `mailtap keys --use handoff init` makes it", path.display()),
        );
    }
    Some(path)
}

fn link_patterns(at: &mut Checker<'_>, raw: &Raw) -> LinkPatterns {
    let logins = if raw.policy.skip_login_links { DEFAULT_LOGIN_PATTERNS } else { &[] };
    let own = raw.policy.skip_link_patterns.iter().map(String::as_str);
    LinkPatterns::new(logins.iter().copied().chain(own)).unwrap_or_else(|error| {
        at.note(
            "policy.skip_link_patterns",
            format!("{error}; write \"/account\", \"session=\" or a piece of path or query"),
        );
        LinkPatterns::default()
    })
}

fn split(at: &mut Checker<'_>, raw: &Raw) -> Option<SplitConfig> {
    let address = at.some("split.address", units::address(&raw.split.address));
    let max_recipients = at.count("split.max_recipients", raw.split.max_recipients);
    let timeout = at.ok("split.timeout", units::duration(&raw.split.timeout));
    if raw.policy.several_recipients != "split" {
        return None;
    }
    // Beyond it the driver would let the original go to those who have their copies already.
    let message_timeout = units::duration(&raw.milter.message_timeout).unwrap_or(timeout * 2);
    if timeout * 2 > message_timeout {
        at.note("split.timeout", "must be at most half of milter.message_timeout");
    }
    if raw.milter.default_action != "tempfail" {
        at.note(
            "policy.several_recipients",
            "\"split\" needs milter.default_action = \"tempfail\": with \"accept\", a milter that dies after it has sent copies \
             would have Postfix send the original to the same recipients",
        );
    }
    if units::duration(&raw.milter.drain).is_ok_and(|drain| drain < message_timeout) {
        at.note("milter.drain", "must not be shorter than milter.message_timeout where mail is split");
    }
    Some(SplitConfig { address: address?, max_recipients, timeout })
}

fn tap_source(at: &mut Checker<'_>, raw: &Raw) -> TapSource {
    match raw.tap.source.as_str() {
        "file" => {
            if raw.tap.files.is_empty() {
                at.note("tap.files", "is empty: name Postfix's log file, or set tap.source = \"journal\"");
            }
            TapSource::Files(raw.tap.files.iter().map(|file| at.path(file)).collect())
        }
        "journal" => TapSource::Journal(raw.tap.units.clone()),
        "stdin" => TapSource::Stdin,
        other => {
            at.note("tap.source", format!("`{other}` is not one of: file, journal, stdin"));
            TapSource::Stdin
        }
    }
}

fn bounce_rules(at: &mut Checker<'_>, raw: &Raw) -> Option<PathBuf> {
    let name = &raw.delivery.bounce_rules_file;
    if name.is_empty() {
        return None;
    }
    let path = at.path(name);
    if let Err(error) = super::classifier(Some(&path)) {
        at.note("delivery.bounce_rules_file", error);
    }
    Some(path)
}

fn time_zone(at: &mut Checker<'_>, text: &str) -> jiff::tz::TimeZone {
    if text.is_empty() {
        return jiff::tz::TimeZone::system();
    }
    let zone = jiff::tz::TimeZone::get(text);
    zone.unwrap_or_else(|_| {
        at.note(
            "tap.time_zone",
            format!("`{text}` is not a time zone of this system, like \"Europe/Warsaw\""),
        );
        jiff::tz::TimeZone::UTC
    })
}
