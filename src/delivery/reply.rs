//! The codes within a reply: the SMTP code and the enhanced status code.
//!
//! - Layer: decision
//! - Takes: bytes of a log line or a DSN.
//! - Gives: numbers.
//! - On failure: `None` where there is no such code.
//! - See: RFC 5321 section 4.2, RFC 3463 section 2.

#![warn(clippy::indexing_slicing)]

use std::fmt;

use memchr::memmem;
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
    let text = text.trim_ascii_start();
    if let Some(code) = leading_code(text) {
        return Some(code);
    }
    [&b" said: "[..], b" refused to talk to me: "].iter().find_map(|before| {
        let at = memmem::find(text, before)?;
        leading_code(text.get(at + before.len()..)?)
    })
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
    fn enhanced_codes_are_checked() {
        let code = EnhancedCode::parse(b" 5.1.10 (bad)").unwrap();
        assert_eq!((code.class, code.subject, code.detail, code.to_string()), (5, 1, 10, "5.1.10".into()));
        for none in ["", "5.1", "3.1.1", "5.1.1.1", "5.1.1111", "a.b.c", "5..1"] {
            assert_eq!(EnhancedCode::parse(none.as_bytes()), None, "{none}");
        }
    }
}
