//! `[amqp]`: how RabbitMQ is reached, and what is there.
//!
//! - Layer: edge
//! - Takes: `Raw`.
//! - Gives: `AmqpConfig`; none where no URL is given.
//! - On failure: problems. A URL may hold a password: it is never repeated.

use std::time::Duration;

use url::Url;

use super::Checker;
use crate::config::raw::Raw;
use crate::config::{AmqpConfig, units};
use crate::service::files;
use crate::service::secret::Secret;

/// The longest wait before a try; GA4 takes events for 72 hours.
const LONGEST_RETRY: Duration = Duration::from_secs(24 * 3_600);

const LONGEST_PREFIX: usize = 100;

pub(super) fn amqp(at: &mut Checker<'_>, raw: &Raw) -> Option<AmqpConfig> {
    let amqp = &raw.amqp;
    if amqp.url.is_empty() {
        if !amqp.urls.is_empty() {
            at.note("amqp.url", "is missing: the first address goes here, amqp.urls has the others");
        }
        return None;
    }
    let prefetch = at.count("amqp.prefetch", amqp.prefetch);
    if prefetch > usize::from(u16::MAX) {
        at.note("amqp.prefetch", "must be at most 65535");
    }
    let delivery_limit = at.count("amqp.delivery_limit", amqp.delivery_limit);
    let (password, missing) = match amqp.password_file.as_str() {
        "" => (None, None),
        file => match at.secret("amqp.password_file", file) {
            Ok(password) => (Some(password), None),
            Err(why) => (None, Some(why)),
        },
    };
    let others = amqp.urls.iter().enumerate().map(|(number, url)| (format!("amqp.urls[{number}]"), url));
    let urls = std::iter::once(("amqp.url".to_owned(), &amqp.url)).chain(others);
    let has_file = !amqp.password_file.is_empty();
    let urls: Vec<_> =
        urls.filter_map(|(key, text)| url(at, &key, text, password.as_ref(), has_file)).collect();
    let tls = amqp.url.starts_with("amqps:") || amqp.urls.iter().any(|url| url.starts_with("amqps:"));
    for (key, value) in [("ca_file", &amqp.ca_file), ("client_certificate", &amqp.client_certificate)] {
        if !tls && !value.is_empty() {
            at.note(&format!("amqp.{key}"), "has no meaning without an address that begins with amqps://");
        }
    }
    Some(AmqpConfig {
        urls,
        missing,
        ca_file: (!amqp.ca_file.is_empty()).then(|| at.existing("amqp.ca_file", &amqp.ca_file)),
        client_certificate: client_certificate(at, raw),
        declare: at.one_of("amqp.topology", &amqp.topology, &[("declare", true), ("check", false)]),
        prefix: prefix(at, &amqp.prefix),
        prefetch: u16::try_from(prefetch).unwrap_or(u16::MAX),
        delivery_limit: u32::try_from(delivery_limit).unwrap_or(u32::MAX),
        consumer_timeout: consumer_timeout(at, raw),
        partitions: partitions(at, raw),
        retry_after: retry_after(at, &amqp.retry_after),
    })
}

/// RabbitMQ's names have at most 255 bytes, and those that begin with `amq.` are its own.
fn prefix(at: &mut Checker<'_>, text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte);
    if text.is_empty()
        || text.len() > LONGEST_PREFIX
        || !text.bytes().all(is_plain)
        || text.starts_with("amq.")
    {
        at.note(
            "amqp.prefix",
            "must be 1 to 100 letters, digits, dots, hyphens, underscores or colons, and not begin with \"amq.\": the names of all \
             exchanges and queues begin with it",
        );
    }
    text.to_owned()
}

fn url(
    at: &mut Checker<'_>,
    key: &str,
    text: &str,
    password: Option<&Secret<String>>,
    has_password_file: bool,
) -> Option<Secret<String>> {
    let mut url = match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "amqp" | "amqps") && url.host_str().is_some() => url,
        _ => {
            at.note(key, "must be like amqp://user@host:5672/vhost or amqps://…");
            return None;
        }
    };
    if has_password_file && url.password().is_some() {
        at.note(
            key,
            "has a password beside amqp.password_file: take it out of the address, others may read that",
        );
    }
    if let Some(password) = password
        && url.set_password(Some(password.expose())).is_err()
    {
        at.note(key, "can't take a password");
    }
    Some(Secret::new(url.into()))
}

fn client_certificate(at: &mut Checker<'_>, raw: &Raw) -> Option<(std::path::PathBuf, std::path::PathBuf)> {
    let (certificate, key) = (&raw.amqp.client_certificate, &raw.amqp.client_key);
    match (certificate.is_empty(), key.is_empty()) {
        (true, true) => return None,
        (true, false) => {
            at.note("amqp.client_certificate", "is missing: amqp.client_key has no meaning alone");
            return None;
        }
        (false, true) => {
            at.note("amqp.client_key", "is missing: the file with the key of amqp.client_certificate");
            return None;
        }
        (false, false) => {}
    }
    let certificate = at.existing("amqp.client_certificate", certificate);
    let path = at.existing("amqp.client_key", key);
    if !key.starts_with("credential:") && files::is_open_to_others(&path).unwrap_or(false) {
        let path = path.display();
        at.note("amqp.client_key", format!("{path}: others can read this secret; run: chmod 600 {path}"));
    }
    Some((certificate, path))
}

/// The number of work queues; and that this relay's are among them.
fn partitions(at: &mut Checker<'_>, raw: &Raw) -> u16 {
    let count = raw.amqp.partitions;
    if !(1..=1_000).contains(&count) {
        at.note("amqp.partitions", "must be from 1 to 1000");
    }
    if let Some(number) = raw.relay.queues.iter().find(|number| !(1..=count).contains(number)) {
        at.note("relay.queues", format!("there is no queue {number}: amqp.partitions is {count}"));
    }
    u16::try_from(count).unwrap_or(u16::MAX)
}

fn consumer_timeout(at: &mut Checker<'_>, raw: &Raw) -> Duration {
    let timeout = at.ok("amqp.consumer_timeout", units::duration(&raw.amqp.consumer_timeout));
    let request = units::duration(&raw.relay.timeout).unwrap_or_default();
    // A third to wait for a request's turn, a third for the request.
    if timeout <= request * 3 {
        at.note(
            "amqp.consumer_timeout",
            "must be more than three times relay.timeout: the broker's own consumer_timeout, 30m unless somebody changed it",
        );
    }
    timeout
}

fn retry_after(at: &mut Checker<'_>, list: &[String]) -> Vec<Duration> {
    let mut waits: Vec<Duration> =
        list.iter().filter_map(|text| at.some("amqp.retry_after", units::duration(text))).collect();
    waits.sort();
    waits.dedup();
    if waits.is_empty() {
        at.note("amqp.retry_after", "is empty: what can't be sent now has to wait somewhere");
    }
    if waits.iter().any(|wait| wait.is_zero() || *wait > LONGEST_RETRY) {
        at.note("amqp.retry_after", "each must be more than 0 and at most 24h");
    }
    waits
}
