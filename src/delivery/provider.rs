//! The provider behind a relay, from a short list of names that a site may extend.
//!
//! - Layer: decision
//! - Takes: the relay as Postfix logs it (`host[address]:port`), or the Remote-MTA of a DSN.
//! - Gives: a word of few, so that it may be a label and a GA4 parameter.
//! - On failure: `None` for hosts of others: a recipient's own domain is never given out.
//! - See: the MX records of the providers, which the suffixes below are of.

#![warn(clippy::indexing_slicing)]

use std::sync::Arc;

/// Suffix of the MX host, in lower case, and the provider's word.
const PROVIDERS: &[(&str, &str)] = &[
    ("google.com", "gmail"),
    ("googlemail.com", "gmail"),
    ("outlook.com", "microsoft"),
    ("hotmail.com", "microsoft"),
    ("outlook.de", "microsoft"),
    ("mx.microsoft", "microsoft"),
    ("protection.office365.us", "microsoft"),
    ("yahoodns.net", "yahoo"),
    ("icloud.com", "apple"),
    ("apple.com", "apple"),
    ("gmx.net", "gmx"),
    ("web.de", "gmx"),
    ("mail.com", "gmx"),
    ("t-online.de", "t-online"),
    ("kundenserver.de", "ionos"),
    ("ionos.com", "ionos"),
    ("orange.fr", "orange"),
    ("free.fr", "free"),
    ("laposte.net", "laposte"),
    ("ovh.net", "ovh"),
    ("libero.it", "libero"),
    ("seznam.cz", "seznam"),
    ("wp.pl", "wp"),
    ("onet.pl", "onet"),
    ("mail.ru", "mailru"),
    ("yandex.ru", "yandex"),
    ("yandex.net", "yandex"),
    ("qq.com", "qq"),
    ("netease.com", "netease"),
    ("zoho.com", "zoho"),
    ("zoho.eu", "zoho"),
    ("protonmail.ch", "proton"),
    ("messagingengine.com", "fastmail"),
    ("comcast.net", "comcast"),
    ("pphosted.com", "proofpoint"),
    ("ppe-hosted.com", "proofpoint"),
    ("mimecast.com", "mimecast"),
    ("barracudanetworks.com", "barracuda"),
    ("messagelabs.com", "broadcom"),
    ("iphmx.com", "cisco"),
];

/// The list: a site's own entries first.
#[derive(Debug, Clone)]
pub struct Providers(Vec<(Box<str>, Arc<str>)>);

impl Default for Providers {
    fn default() -> Self {
        Self(PROVIDERS.iter().map(|(suffix, word)| ((*suffix).into(), (*word).into())).collect())
    }
}

impl Providers {
    /// The built-in list behind these entries, each `mx.example.net=word`; without a word the suffix has no provider.
    ///
    /// # Errors
    /// What is wrong with the first entry that can't be read.
    pub fn extended(entries: &[String]) -> Result<Self, String> {
        let mut all = Vec::new();
        for entry in entries {
            let (suffix, word) = entry.split_once('=').ok_or_else(|| wrong(entry))?;
            let is_suffix = !suffix.is_empty()
                && suffix
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
            let is_word = word.len() <= 40
                && word
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
            if !is_suffix || !is_word {
                return Err(wrong(entry));
            }
            all.push((suffix.trim_start_matches('.').into(), word.into()));
        }
        all.extend(Self::default().0);
        Ok(Self(all))
    }

    /// The provider's word.
    #[must_use]
    pub fn of(&self, relay: &[u8]) -> Option<&Arc<str>> {
        // Google writes `mx.example.net. (192.0.2.1, the server for the domain example.net.)`.
        let relay = relay.trim_ascii_start();
        let end = relay.iter().position(|byte| matches!(byte, b'[' | b':' | b' ')).unwrap_or(relay.len());
        let host = relay.get(..end)?;
        let host = host.strip_suffix(b".").unwrap_or(host);
        let (_, word) = self.0.iter().find(|(suffix, _)| is_within(host, suffix.as_bytes()))?;
        (!word.is_empty()).then_some(word)
    }
}

fn wrong(entry: &str) -> String {
    format!(
        "`{entry}` is not like \"mx.example.net=word\", the word of lower-case letters, digits and hyphens"
    )
}

/// Whether the host is the domain or lies below it.
fn is_within(host: &[u8], domain: &[u8]) -> bool {
    let Some((head, tail)) = host.len().checked_sub(domain.len()).and_then(|at| host.split_at_checked(at))
    else {
        return false;
    };
    tail.eq_ignore_ascii_case(domain) && (head.is_empty() || head.ends_with(b"."))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn relays_have_providers() {
        for (relay, word) in [
            ("gmail-smtp-in.l.google.com[142.250.1.27]:25", Some("gmail")),
            ("example-com.mail.protection.OUTLOOK.com[52.101.1.1]:25", Some("microsoft")),
            ("mta6.am0.yahoodns.net[67.195.228.94]:25", Some("yahoo")),
            ("mx01.mail.icloud.com.", Some("apple")),
            ("mx.notgoogle.com[192.0.2.1]:25", None),
            ("google.com.example.net[192.0.2.1]:25", None),
            ("127.0.0.1[127.0.0.1]:21126", None),
            ("none", None),
            ("", None),
        ] {
            assert_eq!(Providers::default().of(relay.as_bytes()).map(|word| &**word), word, "{relay}");
        }
    }

    #[test]
    fn a_sites_own_come_first() {
        let own = ["mx.partner.example=partner", "google.com=workspace", "qq.com="].map(str::to_owned);
        let providers = Providers::extended(&own).unwrap();
        let of = |relay: &str| providers.of(relay.as_bytes()).map(|word| word.to_string());
        assert_eq!(of("a.MX.partner.example[192.0.2.1]:25").as_deref(), Some("partner"));
        assert_eq!(of("aspmx.l.google.com[192.0.2.1]:25").as_deref(), Some("workspace"));
        assert_eq!(of("mx.qq.com[192.0.2.1]:25"), None);
        assert_eq!(of("mx.web.de[192.0.2.1]:25").as_deref(), Some("gmx"));
        for wrong in ["", "x", "=x", "a b=x", "a.example=Big", "a.example=a@b"] {
            assert!(Providers::extended(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }
}
