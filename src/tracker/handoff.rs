//! The hand-off to a website's backend: who came, in a parameter of the target.
//!
//! - Layer: decision
//! - Takes: a target, the site's terms, the hand-off's keyring, who comes.
//! - Gives: the target with the parameter behind its own, before its fragment.
//! - On failure: the target as it was: a host that is not listed, no https, a parameter of that name, no key.
//! - See: `docs/handoff.md`; the answer never depends on the verdict, so machines get one too.

use super::target::Target;
use super::terms::HandoffTerms;
use super::utm;
use crate::identity::{CampaignId, Pseudonym, Timestamp};
use crate::keys::jwt::{self, Claims};
use crate::keys::ring::Keyring;

/// Who comes, by which link.
#[derive(Debug, Clone, Copy)]
pub(super) struct Comer<'a> {
    pub(super) recipient: Pseudonym,
    pub(super) campaign: Option<&'a CampaignId>,
    pub(super) link: u16,
    /// Never the same twice.
    pub(super) jti: &'a str,
}

/// The target with the parameter.
pub(super) fn hand_off(
    target: Target,
    terms: &HandoffTerms,
    keys: &Keyring,
    comer: Comer<'_>,
    now: Timestamp,
) -> Target {
    match location(&target, terms, keys, comer, now) {
        Some(location) => target.with_location(location),
        None => target,
    }
}

fn location(
    target: &Target,
    terms: &HandoffTerms,
    keys: &Keyring,
    comer: Comer<'_>,
    now: Timestamp,
) -> Option<String> {
    let host = target.host();
    let location = target.location();
    let is_https = location.get(..8).is_some_and(|head| head.eq_ignore_ascii_case("https://"));
    if !is_https || !terms.hosts.iter().any(|listed| listed == host) {
        return None;
    }
    let (front, fragment) = match location.split_once('#') {
        Some((front, fragment)) => (front, Some(fragment)),
        None => (location, None),
    };
    let query = front.split_once('?').map(|(_, query)| query);
    if query.is_some_and(|query| utm::has(query, &terms.parameter)) {
        return None;
    }
    let claims = Claims {
        iss: &terms.issuer,
        aud: host,
        sub: comer.recipient,
        iat: now.as_secs(),
        exp: now.plus(terms.lifetime).as_secs(),
        jti: comer.jti,
        campaign: comer.campaign,
        link: comer.link,
    };
    let jwt = jwt::sign(&claims, keys.signing(now)?)?;
    let between = match query {
        None => "?",
        Some(query) if query.is_empty() || query.ends_with('&') => "",
        Some(_) => "&",
    };
    let fragment = fragment.map(|fragment| format!("#{fragment}")).unwrap_or_default();
    Some(format!("{front}{between}{}={jwt}{fragment}", terms.parameter))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn handed(target: &str) -> String {
        let terms = HandoffTerms {
            hosts: vec!["www.example.org".into()],
            parameter: "mt".into(),
            issuer: "https://t.example.org".into(),
            lifetime: Duration::from_secs(120),
        };
        let keys = Keyring::new([7; 32], Timestamp::from_secs(1));
        let comer = Comer { recipient: Pseudonym::from([1; 12]), campaign: None, link: 1, jti: "j" };
        let now = Timestamp::from_secs(1_795_453_080);
        let location =
            hand_off(Target::parse(target).unwrap(), &terms, &keys, comer, now).location().to_owned();
        let Some(at) = location.find("mt=ey") else { return location };
        let end = location[at..].find('#').map_or(location.len(), |end| at + end);
        format!("{}JWT{}", &location[..at + 3], &location[end..])
    }

    #[test]
    fn the_parameter_comes_last_and_disturbs_nothing() {
        for (from, to) in [
            ("https://www.example.org", "https://www.example.org?mt=JWT"),
            ("https://www.example.org/a?b=2&a=1#x?y", "https://www.example.org/a?b=2&a=1&mt=JWT#x?y"),
            ("https://www.example.org/?", "https://www.example.org/?mt=JWT"),
            ("https://www.example.org/?a&#", "https://www.example.org/?a&mt=JWT#"),
            ("HTTPS://www.example.org/", "HTTPS://www.example.org/?mt=JWT"),
        ] {
            assert!(handed(from).eq_ignore_ascii_case(to), "{from}: {}", handed(from));
        }
    }

    #[test]
    fn nobody_else_gets_one() {
        for target in [
            "http://www.example.org/",
            "https://example.org/",
            "https://www.example.org.evil.example/",
            "https://evil.example/?www.example.org",
            "https://www.example.org/?mt=own",
            "https://www.example.org/?m%74=own",
        ] {
            assert!(!handed(target).contains("JWT"), "{target}");
        }
    }
}
