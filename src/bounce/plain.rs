//! Bounces without a machine-readable part: qmail's, and those of Exim that name the failed recipients in a header.
//!
//! - Layer: decision
//! - Takes: the header and the body of a message.
//! - Gives: failed recipients with what was said, and where the returned message begins.
//! - On failure: `None` for what is no such bounce.
//! - Limits: the first 100 recipients.
//! - See: qmail-send(8) and QSBMF; Exim `src/deliver.c` (X-Failed-Recipients).

#![warn(clippy::indexing_slicing)]

use memchr::memmem;

use super::dsn::{Action, Recipient};
use super::fields::{Field, value};
use crate::delivery::EnhancedCode;

const MAX_RECIPIENTS: usize = 100;

/// A bounce without structure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plain<'a> {
    pub(super) recipients: Vec<Recipient>,
    /// From where the returned message's header begins.
    pub(super) returned: &'a [u8],
}

impl<'a> Plain<'a> {
    /// The bounce that this message is.
    pub(super) fn parse(header: &[Field], body: &'a [u8]) -> Option<Self> {
        Self::exim(header, body).or_else(|| Self::qmail(body))
    }

    fn exim(header: &[Field], body: &'a [u8]) -> Option<Self> {
        let failed = value(header, "X-Failed-Recipients")?;
        let at = memmem::find(body, b"------ This is a copy of ")?;
        let (text, returned) = body.split_at_checked(at)?;
        let recipients = failed
            .split(|byte| *byte == b',')
            .map(<[u8]>::trim_ascii)
            .filter(|address| address.contains(&b'@'))
            .take(MAX_RECIPIENTS)
            .map(|address| recipient(address, text))
            .collect();
        Some(Self { recipients, returned: after_line(returned) })
    }

    /// `Hi. This is the qmail-send program at …`, then a paragraph `<address>:` for each recipient, then a line that
    /// begins with `-` and the message.
    fn qmail(body: &'a [u8]) -> Option<Self> {
        let text = body.trim_ascii_start();
        if !text.starts_with(b"Hi. This is the") {
            return None;
        }
        let end = memmem::find(text, b"\n-").map(|at| at + 1)?;
        let (text, returned) = text.split_at_checked(end)?;
        let mut recipients: Vec<Recipient> = Vec::new();
        for paragraph in paragraphs(text) {
            let Some(rest) = paragraph.strip_prefix(b"<") else { continue };
            let Some(end) = memmem::find(rest, b">:") else { continue };
            let Some((address, said)) = rest.split_at_checked(end) else { continue };
            if recipients.len() < MAX_RECIPIENTS && address.contains(&b'@') {
                recipients.push(recipient(address, said));
            }
        }
        Some(Self { recipients, returned: after_line(returned) })
    }
}

fn recipient(address: &[u8], said: &[u8]) -> Recipient {
    // qmail writes `(#5.1.1)`, others the reply itself.
    let status = said
        .split(|byte| !(byte.is_ascii_digit() || *byte == b'.'))
        .filter_map(EnhancedCode::parse)
        .find(|code| code.class == 5);
    Recipient {
        address: address.to_vec(),
        action: Action::Failed,
        status,
        remote_mta: Vec::new(),
        diagnostic: said.to_vec(),
    }
}

fn paragraphs(text: &[u8]) -> Vec<&[u8]> {
    let mut paragraphs = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.iter().position(|byte| !byte.is_ascii_whitespace()) {
        rest = rest.get(start..).unwrap_or_default();
        let ends = [memmem::find(rest, b"\n\n"), memmem::find(rest, b"\r\n\r\n")];
        let end = ends.into_iter().flatten().min().unwrap_or(rest.len());
        let Some((paragraph, tail)) = rest.split_at_checked(end) else { break };
        paragraphs.push(paragraph);
        rest = tail;
    }
    paragraphs
}

/// What follows the line and the blank lines after it.
fn after_line(text: &[u8]) -> &[u8] {
    let end = text.iter().position(|byte| *byte == b'\n').map_or(text.len(), |at| at + 1);
    text.get(end..).unwrap_or_default().trim_ascii_start()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::bounce::fields::header;

    #[test]
    fn qmail_names_them_in_paragraphs() {
        let body = b"Hi. This is the qmail-send program at mx.example.\r\nI'm afraid I wasn't able to deliver.\r\n\r\n\
            <a@x.example>:\r\n192.0.2.1 does not like recipient.\r\nRemote host said: 550 5.1.1 unknown\r\n\r\n\
            <b@x.example>:\r\nSorry, no mailbox here by that name. (#5.1.1)\r\n\r\n\
            --- Below this line is a copy of the message.\r\n\r\nX-Mailtap-Ref: r\r\n\r\nhi\r\n";
        let plain = Plain::parse(&[], body).unwrap();
        let seen: Vec<_> =
            plain.recipients.iter().map(|r| (r.address.as_slice(), r.status.unwrap().to_string())).collect();
        assert_eq!(seen, [(&b"a@x.example"[..], "5.1.1".to_owned()), (b"b@x.example", "5.1.1".to_owned())]);
        assert!(plain.returned.starts_with(b"X-Mailtap-Ref: r"));
    }

    #[test]
    fn exim_names_them_in_the_header() {
        let fields = header(b"X-Failed-Recipients: a@x.example,\n b@x.example\n");
        let body = b"This message was created automatically.\n\n  a@x.example\n    550 5.2.2 full\n\n\
            ------ This is a copy of the message, including all the headers. ------\n\nX-Mailtap-Ref: r\n\nhi\n";
        let plain = Plain::parse(&fields, body).unwrap();
        assert_eq!(plain.recipients.len(), 2);
        assert!(plain.returned.starts_with(b"X-Mailtap-Ref: r"));
        assert_eq!(Plain::parse(&[], body), None);
    }
}
