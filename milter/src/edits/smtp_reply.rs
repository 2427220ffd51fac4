//! An SMTP reply of the filter's own.
//!
//! - Layer: word
//! - Takes: code, enhanced code and text.
//! - Gives: the wire form, every line with both codes, `%` doubled as Sendmail wants it (Postfix halves it again).
//! - On failure: [`SmtpReplyError`] for a code that MTAs do not take from a filter.
//! - Limits: text lines of at most 400 bytes; what is no printable ASCII becomes `?`.
//! - See: Postfix `src/milter/milter8.c` (4xx and 5xx only); RFC 3463

use alloc::format;
use alloc::string::String;

/// The longest line of text, in bytes.
const LINE_BYTES: usize = 400;

/// A reply such as `550 5.7.1 Not wanted here`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmtpReply {
    wire: String,
}

/// Why a reply can't be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SmtpReplyError {
    /// Only 400 to 599 are possible.
    #[error("SMTP code {code} is not a refusal")]
    Code {
        /// The code.
        code: u16,
    },
    /// The enhanced code belongs to another class than the code, or has a part above 999.
    #[error("enhanced status code does not go with SMTP code {code}")]
    Enhanced {
        /// The code.
        code: u16,
    },
}

impl SmtpReply {
    /// A reply; `text` may have several lines.
    ///
    /// # Errors
    /// A code outside 400–599, an enhanced code of another class.
    pub fn new(code: u16, enhanced: (u16, u16, u16), text: &str) -> Result<Self, SmtpReplyError> {
        if !(400..600).contains(&code) {
            return Err(SmtpReplyError::Code { code });
        }
        let (class, subject, detail) = enhanced;
        if class != code / 100 || subject > 999 || detail > 999 {
            return Err(SmtpReplyError::Enhanced { code });
        }
        let mut wire = String::new();
        let mut lines = text.lines().peekable();
        loop {
            let line = lines.next().unwrap_or_default();
            let more = lines.peek().is_some();
            let mark = if more { '-' } else { ' ' };
            wire.push_str(&format!("{code}{mark}{class}.{subject}.{detail} "));
            for character in line.chars().take(LINE_BYTES) {
                match character {
                    '%' => wire.push_str("%%"),
                    ' '..='~' => wire.push(character),
                    _ => wire.push('?'),
                }
            }
            if !more {
                return Ok(Self { wire });
            }
            wire.push_str("\r\n");
        }
    }

    pub(crate) fn wire(&self) -> &[u8] {
        self.wire.as_bytes()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_its_codes() {
        let reply = SmtpReply::new(550, (5, 7, 1), "100% no\nreally\u{e9}\r\0").unwrap();
        assert_eq!(reply.wire, "550-5.7.1 100%% no\r\n550 5.7.1 really???");
        assert_eq!(SmtpReply::new(451, (4, 0, 0), "").unwrap().wire, "451 4.0.0 ");
    }

    #[test]
    fn only_refusals() {
        assert_eq!(SmtpReply::new(250, (2, 0, 0), ""), Err(SmtpReplyError::Code { code: 250 }));
        assert_eq!(SmtpReply::new(550, (4, 0, 0), ""), Err(SmtpReplyError::Enhanced { code: 550 }));
    }
}
