//! The provider behind a relay, from a short list of names.
//!
//! - Layer: decision
//! - Takes: the relay as Postfix logs it (`host[address]:port`), or the Remote-MTA of a DSN.
//! - Gives: a word of few, so that it may be a label and a GA4 parameter.
//! - On failure: `None` for hosts of others: a recipient's own domain is never given out.
//! - See: the MX records of the providers, which the suffixes below are of.

#![warn(clippy::indexing_slicing)]

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

/// The provider's word.
#[must_use]
pub fn provider(relay: &[u8]) -> Option<&'static str> {
    let end = relay.iter().position(|byte| matches!(byte, b'[' | b':')).unwrap_or(relay.len());
    let host = relay.get(..end)?.trim_ascii();
    let host = host.strip_suffix(b".").unwrap_or(host);
    PROVIDERS.iter().find(|(suffix, _)| is_within(host, suffix.as_bytes())).map(|(_, word)| *word)
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
            assert_eq!(provider(relay.as_bytes()), word, "{relay}");
        }
    }
}
