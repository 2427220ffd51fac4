//! A reply within what a mail system says about an attempt: its SMTP code, its enhanced status code, its words.
//!
//! - Layer: decision
//! - Takes: bytes of a log line or a DSN.
//! - Gives: numbers; words without the names and addresses that are only echoed in them.
//! - On failure: `None` where there is no such code.
//! - Limits: of words the first `SPOKEN_BYTES`.
//! - See: RFC 5321 section 4.2, RFC 3463 section 2.

#![warn(clippy::indexing_slicing)]

use std::fmt;

use memchr::{memchr, memmem};
use serde::{Deserialize, Serialize};

/// An enhanced status code, like 5.1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EnhancedCode {
    /// 2, 4 or 5.
    pub class: u8,
    /// What it is about: addressing, mailbox, mail system, network, protocol, content, policy.
    pub subject: u16,
    /// The particulars.
    pub detail: u16,
}

impl EnhancedCode {
    /// The code at the beginning of a text; what follows must not be a digit or a dot.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (class, rest) = number(text.trim_ascii())?;
        let (subject, rest) = number(rest.strip_prefix(b".")?)?;
        let (detail, rest) = number(rest.strip_prefix(b".")?)?;
        if !matches!(class, 2 | 4 | 5) || matches!(rest.first(), Some(b'.')) {
            return None;
        }
        Some(Self { class: u8::try_from(class).ok()?, subject, detail })
    }

    /// Whether it says nothing: x.0.0 is what Postfix writes where the reply has no enhanced code.
    #[must_use]
    pub const fn is_generic(self) -> bool {
        self.subject == 0 && self.detail == 0
    }
}

impl fmt::Display for EnhancedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

/// One to three digits, and what follows them.
fn number(text: &[u8]) -> Option<(u16, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if !(1..=3).contains(&digits) {
        return None;
    }
    let (digits, rest) = text.split_at_checked(digits)?;
    Some((std::str::from_utf8(digits).ok()?.parse().ok()?, rest))
}

/// The three-digit code of the server's reply within what Postfix (or another MTA) says about an attempt: the text
/// begins with it, or it follows `said: ` or `refused to talk to me: `.
#[must_use]
pub fn smtp_code(text: &[u8]) -> Option<u16> {
    leading_code(reply_in(text)?)
}

/// The server's reply in such a text.
pub(super) fn reply_in(text: &[u8]) -> Option<&[u8]> {
    let text = text.trim_ascii_start();
    if leading_code(text).is_some() {
        return Some(text);
    }
    [&b" said: "[..], b" refused to talk to me: "].iter().find_map(|before| {
        let reply = text.get(memmem::find(text, before)? + before.len()..)?;
        leading_code(reply).map(|_| reply)
    })
}

/// How much of a text is looked at.
const SPOKEN_BYTES: usize = 4_096;
/// The longest address in angle brackets: a local part of 64 bytes and a domain of 255.
const LONGEST_ADDRESS: usize = 320;

/// The words of the reply, or of the mail system itself where there is none, in lower case: without addresses, without
/// the names of hosts that are followed by their address and, in the system's own words, without any name of a host or a
/// user. What a phrase is found in must not be a name.
#[must_use]
pub fn spoken(text: &[u8]) -> Vec<u8> {
    let reply = reply_in(text);
    let words = reply.unwrap_or(text);
    let words = without_brackets(&words.get(..SPOKEN_BYTES).unwrap_or(words).to_ascii_lowercase());
    let mut spoken = Vec::with_capacity(words.len());
    for word in words.split(u8::is_ascii_whitespace) {
        spoken.extend_from_slice(without_names(word, reply.is_none()));
        spoken.push(b' ');
    }
    spoken.pop();
    spoken
}

/// `<address>` becomes `<>`; a `<https://…>` stays.
fn without_brackets(words: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(words.len());
    let mut rest = words;
    while let Some((before, after)) = memchr(b'<', rest).and_then(|at| rest.split_at_checked(at + 1)) {
        kept.extend_from_slice(before);
        let near = after.get(..LONGEST_ADDRESS).unwrap_or(after);
        let end = memchr(b'>', near).unwrap_or(0);
        let (inner, tail) = after.split_at_checked(end).unwrap_or((b"", after));
        if memmem::find(inner, b"://").is_some() {
            kept.extend_from_slice(inner);
        }
        rest = tail;
    }
    kept.extend_from_slice(rest);
    kept
}

/// A word without the name that it is: `b"word"`, `name=word`, `word[192.0.2.1]:25:`, `user@word`.
fn without_names(word: &[u8], are_own_words: bool) -> &[u8] {
    if memchr(b'@', word).is_some() {
        return b"";
    }
    if let Some((_, after)) = memchr(b'[', word).and_then(|at| word.split_at_checked(at))
        && matches!(after, [b'[', first, ..] if first.is_ascii_hexdigit() || *first == b':')
    {
        return after;
    }
    if !are_own_words {
        return word;
    }
    let (key, value) = match memchr(b'=', word).and_then(|at| word.split_at_checked(at + 1)) {
        Some((key, value)) => (key, value),
        None => (&b""[..], word),
    };
    if value.starts_with(b"\"") || is_host(value) { key } else { word }
}

/// `mx.example.net`, with whatever is around it.
pub(super) fn is_host(word: &[u8]) -> bool {
    let is_edge = |byte: &u8| !byte.is_ascii_alphanumeric();
    let start = word.iter().position(|byte| !is_edge(byte)).unwrap_or(word.len());
    let end = word.iter().rposition(|byte| !is_edge(byte)).map_or(start, |last| last + 1);
    let name = word.get(start..end).unwrap_or_default();
    let is_name =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_') || *byte >= 0x80;
    memchr(b'.', name).is_some() && name.iter().all(is_name) && name.iter().any(u8::is_ascii_alphabetic)
}

/// The enhanced status code within the reply.
#[must_use]
pub fn enhanced_code(text: &[u8]) -> Option<EnhancedCode> {
    let reply = reply_in(text).unwrap_or(text);
    reply.split(|byte| matches!(byte, b' ' | b'-' | b'#' | b'(')).take(8).find_map(EnhancedCode::parse)
}

fn leading_code(text: &[u8]) -> Option<u16> {
    let (code, rest) = number(text)?;
    let ends = matches!(rest.first(), None | Some(b' ' | b'-' | b'\r' | b'\n' | b'\t'));
    (ends && (200..600).contains(&code)).then_some(code)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_found_where_they_stand() {
        assert_eq!(smtp_code(b"250 2.0.0 Ok: queued as X"), Some(250));
        assert_eq!(
            smtp_code(b"host x[y] said: 550-5.7.1 one 550 5.7.1 two (in reply to RCPT TO command)"),
            Some(550)
        );
        assert_eq!(smtp_code(b"host x[y] refused to talk to me: 421 4.7.0 later"), Some(421));
        for none in ["connect to x[y]:25: Connection refused", "12345", "550x", "", "999 x", "20 x"] {
            assert_eq!(smtp_code(none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn names_are_not_spoken() {
        for (text, expected) in [
            (
                "host mx1.antispamcloud.com[192.0.2.1] said: 550 5.1.1 <spam@example.net>: User unknown (in reply to RCPT TO command)",
                "550 5.1.1 <>: user unknown (in reply to rcpt to command)",
            ),
            ("host sorbs.test[2001:db8::1] refused to talk to me: 421 4.7.0 Later", "421 4.7.0 later"),
            (
                "554 5.7.1 Client host mail.spamcop.test[192.0.2.1] blocked using zen.spamhaus.org; <https://spamhaus.org/x>",
                "554 5.7.1 client host [192.0.2.1] blocked using zen.spamhaus.org; <https://spamhaus.org/x>",
            ),
            ("550 spam@example.net unknown", "550  unknown"),
            (
                "Host or domain name not found. Name service error for name=spam.example type=MX: Host not found",
                "host or domain name not found. name service error for name= type=mx: host not found",
            ),
            (
                "connect to dkim.example[192.0.2.1]:25: Connection refused",
                "connect to [192.0.2.1]:25: connection refused",
            ),
            ("unknown user: \"virus\"", "unknown user: "),
            ("mail for spam.example loops back to myself", "mail for  loops back to myself"),
            ("a <b", "a <b"),
            ("", ""),
        ] {
            assert_eq!(String::from_utf8(spoken(text.as_bytes())).unwrap(), expected);
        }
    }

    #[test]
    fn enhanced_codes_are_checked() {
        let code = EnhancedCode::parse(b" 5.1.10 (bad)").unwrap();
        assert_eq!((code.class, code.subject, code.detail, code.to_string()), (5, 1, 10, "5.1.10".into()));
        for none in ["", "5.1", "3.1.1", "5.1.1.1", "5.1.1111", "a.b.c", "5..1"] {
            assert_eq!(EnhancedCode::parse(none.as_bytes()), None, "{none}");
        }
    }
}
