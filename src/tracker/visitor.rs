//! The visitor's cookie: who followed a link of their own stays known where a token is everybody's.
//!
//! - Layer: decision
//! - Takes: `Cookie` headers, the keyring, the site's terms; a recipient and the time.
//! - Gives: whose browser it is, if that is beyond doubt; the `Set-Cookie` header.
//! - On failure: anything else is nobody's.
//! - Limits: one name; two cookies that contradict each other say nothing.
//! - See: `docs/privacy.md`, "The visitor's cookie"; RFC 6265 sections 4.1 and 5.4, RFC 6265bis section 4.1.3 (prefixes).

use std::time::Duration;

use super::settings::Site;
use super::terms::CookieTerms;
use crate::identity::{Pseudonym, Timestamp};
use crate::keys::ring::Keyring;
use crate::keys::visitor::{self, Visitor};

/// Clocks of two hosts may differ by so much.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Whose browser it is.
pub(super) fn recipient<'a>(
    headers: impl Iterator<Item = &'a [u8]>,
    terms: &CookieTerms,
    key_site: Option<&str>,
    keys: &Keyring,
    now: Timestamp,
) -> Option<Pseudonym> {
    let mut found: Option<Pseudonym> = None;
    for value in values(headers, terms) {
        let Ok(value) = std::str::from_utf8(value) else { continue };
        let Ok(Visitor { recipient, issued }) = visitor::verify(value, keys, key_site) else { continue };
        let is_fresh = now.since(issued) <= terms.max_age && issued.since(now) <= CLOCK_SKEW;
        if is_fresh && found.is_some_and(|other| other != recipient) {
            return None;
        }
        found = found.or(is_fresh.then_some(recipient));
    }
    found
}

/// The values of all cookies of this name.
fn values<'a>(
    headers: impl Iterator<Item = &'a [u8]>,
    terms: &CookieTerms,
) -> impl Iterator<Item = &'a [u8]> {
    let pairs = headers.flat_map(|header| header.split(|&byte| byte == b';'));
    pairs.filter_map(|pair| pair.trim_ascii().strip_prefix(terms.name.as_bytes())?.strip_prefix(b"="))
}

/// Whether the browser brings a cookie of this name, good or not.
pub(super) fn has_cookie<'a>(headers: impl Iterator<Item = &'a [u8]>, terms: &CookieTerms) -> bool {
    values(headers, terms).next().is_some()
}

/// The header that takes the cookie away.
pub(super) fn forget(terms: &CookieTerms, site: &Site) -> String {
    let (name, base_path) = (&terms.name, &site.base_path);
    format!("{name}=; Max-Age=0; Path={base_path}/; Secure; HttpOnly; SameSite=Lax")
}

/// The header that gives a browser its cookie.
pub(super) fn set_cookie(
    recipient: Pseudonym,
    terms: &CookieTerms,
    site: &Site,
    keys: &Keyring,
    now: Timestamp,
) -> Option<String> {
    let key = keys.signing_for(site.key_site.as_deref(), now)?;
    let value = visitor::sign(&Visitor { recipient, issued: now }, key);
    let CookieTerms { name, max_age } = terms;
    let (base_path, seconds) = (&site.base_path, max_age.as_secs());
    Some(format!("{name}={value}; Max-Age={seconds}; Path={base_path}/; Secure; HttpOnly; SameSite=Lax"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_secs(1_795_453_080 + secs)
    }

    fn site(base_path: &str) -> Site {
        Site { base_path: base_path.into(), ..Site::default() }
    }

    fn ring() -> Keyring {
        Keyring::new([7; 32], Timestamp::from_secs(1))
    }

    fn read(headers: &[&str], now: Timestamp) -> Option<Pseudonym> {
        recipient(headers.iter().map(|text| text.as_bytes()), &CookieTerms::default(), None, &ring(), now)
    }

    #[test]
    fn a_cookie_comes_back_until_it_is_too_old() {
        let ann = Pseudonym::from([1; 12]);
        let header = set_cookie(ann, &CookieTerms::default(), &site("/m"), &ring(), at(0)).unwrap();
        let (pair, attributes) = header.split_once("; ").unwrap();
        assert_eq!(attributes, "Max-Age=15552000; Path=/m/; Secure; HttpOnly; SameSite=Lax");
        assert_eq!(read(&[&format!("a=b; {pair}; c=d")], at(5)), Some(ann));
        assert_eq!(read(&["a=b", pair, pair], at(15_552_000)), Some(ann));
        assert_eq!(read(&[pair], at(15_552_001)), None);
        assert_eq!(read(&[pair], Timestamp::from_secs(1_795_453_080 - 61)), None, "not given yet");
    }

    #[test]
    fn what_is_altered_doubtful_or_anothers_names_nobody() {
        let pair = |who: u8| {
            let header =
                set_cookie(Pseudonym::from([who; 12]), &CookieTerms::default(), &site(""), &ring(), at(0))
                    .unwrap();
            header.split_once("; ").unwrap().0.to_owned()
        };
        assert_eq!(read(&[&pair(1), &pair(2)], at(1)), None);
        let good = pair(1);
        for at_byte in 0..good.len() {
            for other in [b'A', b'_', b'=', b' ', b'"', 0xff] {
                let mut bytes = good.clone().into_bytes();
                if bytes[at_byte] != other {
                    bytes[at_byte] = other;
                    let found =
                        recipient([&bytes[..]].into_iter(), &CookieTerms::default(), None, &ring(), at(1));
                    assert_eq!(found, None, "{at_byte} {other}");
                }
            }
        }
        let strange = Keyring::new([8; 32], Timestamp::from_secs(1));
        let header = [good.as_bytes()];
        assert_eq!(recipient(header.into_iter(), &CookieTerms::default(), None, &strange, at(1)), None);
    }
}
