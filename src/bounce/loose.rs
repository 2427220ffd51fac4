//! Bounces in no particular form: old sendmail, Exchange, Domino and home-made servers.
//!
//! - Layer: decision
//! - Takes: the header of a message, and its texts before the returned message.
//! - Gives: failed (or delayed) recipients with what was said.
//! - On failure: `None` unless a mail system wrote it, and it says that something was not delivered: an answer of a
//!   person or of a vacation program is no bounce, whatever it quotes.
//! - Limits: the first `MAX_RECIPIENTS` addresses and `MAX_TEXT_BYTES` of text; time in proportion to these.
//! - See: RFC 3834 section 2 for what answers automatically; the forms in `tests/data/dsn`.

#![warn(clippy::indexing_slicing)]

use memchr::memmem;

use super::dsn::{Action, Recipient};
use super::fields::{Field, groups, value};
use crate::delivery::EnhancedCode;

const MAX_RECIPIENTS: usize = 100;
const MAX_TEXT_BYTES: usize = 256 * 1024;
/// More at signs than any report has within its limit of recipients.
const MAX_ATS: usize = 4_000;
/// RFC 5321 section 4.5.3.1 has 64 and 255.
const MAX_LOCAL_BYTES: usize = 256;
const MAX_DOMAIN_BYTES: usize = 256;
/// Who reports, by the first part of an address.
const REPORTERS: [&[u8]; 4] = [b"mailer-daemon", b"postmaster", b"mail-daemon", b"mdaemon"];
/// What a report on a failure says, in lower case.
const FAILURES: [&[u8]; 16] = [
    b"not be delivered",
    b"not delivered",
    b"n't be delivered",
    b"did not reach",
    b"undeliverable",
    b"undelivered",
    b"returned mail",
    b"returned to sender",
    b"delivery failed",
    b"delivery failure",
    b"delivery has failed",
    b"failure notice",
    b"fatal errors",
    b"delivery error",
    b"unable to deliver",
    b"user unknown",
];
/// What a report on a mere delay says.
const DELAYS: [&[u8]; 7] = [
    b"warning message only",
    b"still trying",
    b"will be retried",
    b"will continue to",
    b"has not yet been delivered",
    b"could not be delivered for more than",
    b"could not be delivered for the last",
];
/// Before a number of hours or days it tells of a delay as well; before "the following reason" of a failure.
const FOR: &[u8] = b"could not be delivered for ";

/// The recipients of a bounce in no particular form: those addresses in its text that the returned message was for. Where
/// none of them is in the text, an alias may have led elsewhere: then it was the only recipient, if there is only one.
/// Without any recipient in the returned header, the addresses of the text that are neither its sender's nor of who
/// reports to whom.
pub(super) fn recipients(header: &[Field], text: &[u8], returned: &[Field]) -> Option<Vec<Recipient>> {
    if !is_from_a_mail_system(header) {
        return None;
    }
    let text = text.get(..MAX_TEXT_BYTES).unwrap_or(text);
    let subject = value(header, "Subject").unwrap_or_default();
    let lower = [subject, b"\n", text].concat().to_ascii_lowercase();
    let says = |phrases: &[&[u8]]| phrases.iter().any(|phrase| memmem::find(&lower, phrase).is_some());
    let counts =
        memmem::find_iter(&lower, FOR).any(|at| lower.get(at + FOR.len()).is_some_and(u8::is_ascii_digit));
    let action = match (counts || says(&DELAYS), says(&FAILURES)) {
        (true, _) => Action::Delayed,
        (false, true) => Action::Failed,
        (false, false) => return None,
    };
    let mut failed = failed(header, text, returned)?;
    failed.truncate(MAX_RECIPIENTS);
    let status = status(text, action);
    let said = |address: Vec<u8>| Recipient {
        address,
        action,
        status,
        remote_mta: Vec::new(),
        diagnostic: reply(text).to_vec(),
    };
    Some(failed.into_iter().map(said).collect())
}

fn failed(header: &[Field], text: &[u8], returned: &[Field]) -> Option<Vec<Vec<u8>>> {
    let of = |fields: &[Field], names: &[&str]| -> Vec<Vec<u8>> {
        names.iter().filter_map(|name| value(fields, name)).flat_map(addresses).collect()
    };
    let told = addresses(text);
    let wanted = of(returned, &["To", "Cc", "X-Original-To", "Delivered-To", "X-Failed-Recipients"]);
    if !wanted.is_empty() {
        let both: Vec<Vec<u8>> = told.into_iter().filter(|address| wanted.contains(address)).collect();
        let only = [value(returned, "To"), value(returned, "Cc")].into_iter().flatten().flat_map(addresses);
        let only: Vec<Vec<u8>> = only.collect();
        return match both.is_empty() {
            false => Some(both),
            true => (only.len() == 1).then_some(only),
        };
    }
    let mut known = of(returned, &["Return-Path", "From", "Sender", "Reply-To"]);
    known.extend(of(header, &["To", "From", "Reply-To"]));
    let others: Vec<Vec<u8>> = told.into_iter().filter(|address| !known.contains(address)).collect();
    (!others.is_empty()).then_some(others)
}

/// The fields around a reference that stands anywhere in a text, quoted or not: how a returned message looks where it is
/// no part of its own.
pub(super) fn quoted_header(text: &[u8], name: &[u8]) -> Option<Vec<Field>> {
    let lines = lines(text);
    let (start, at) = quoted_block(&lines, name)?;
    let rest = lines.get(at..)?.iter();
    let end = rest.take_while(|line| !unquoted(line).is_empty()).count() + at;
    let block: Vec<&[u8]> = lines.get(start..end)?.iter().map(|line| unquoted(line)).collect();
    groups(&block.join(&b'\n')).into_iter().next()
}

/// A text up to such fields; all of it if there are none.
pub(super) fn before_quoted_header<'a>(text: &'a [u8], name: &[u8]) -> &'a [u8] {
    let lines = lines(text);
    let Some((start, _)) = quoted_block(&lines, name) else { return text };
    let before = lines.get(..start).unwrap_or_default();
    let bytes: usize = before.iter().map(|line| line.len() + 1).sum();
    text.get(..bytes).unwrap_or(text)
}

fn lines(text: &[u8]) -> Vec<&[u8]> {
    text.split(|byte| *byte == b'\n').collect()
}

/// Where the fields begin, and where the reference is: they are quoted as it is, and there is no blank line between.
fn quoted_block(lines: &[&[u8]], name: &[u8]) -> Option<(usize, usize)> {
    let is_it = |line: &&[u8]| {
        let line = unquoted(line);
        line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
            && line.get(name.len()) == Some(&b':')
    };
    let at = lines.iter().position(is_it)?;
    let is_quoted = |line: &[u8]| matches!(line.first(), Some(b'>' | b'|'));
    let quoted = is_quoted(lines.get(at)?);
    let ends = |line: &&[u8]| unquoted(line).is_empty() || is_quoted(line) != quoted;
    let start = lines.get(..at)?.iter().rposition(ends).map_or(0, |end| end + 1);
    Some((start, at))
}

/// A line without its end, and without the marks of a quotation.
fn unquoted(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut rest = line;
    while let Some(inner) = rest.strip_prefix(b">").or_else(|| rest.strip_prefix(b"|")) {
        rest = inner.strip_prefix(b" ").unwrap_or(inner);
    }
    if rest.iter().all(u8::is_ascii_whitespace) { b"" } else { rest }
}

pub(super) fn is_from_a_mail_system(header: &[Field]) -> bool {
    let is_reporter = |address: &Vec<u8>| {
        REPORTERS.iter().any(|name| address.strip_prefix(*name).is_some_and(|rest| rest.starts_with(b"@")))
    };
    let has_null_sender = value(header, "Return-Path").is_some_and(|path| path == b"<>");
    let is_vacation = value(header, "X-Autoreply").is_some()
        || value(header, "X-Autorespond").is_some()
        || value(header, "Precedence").is_some_and(|word| word.eq_ignore_ascii_case(b"list"));
    let from = value(header, "From").map(addresses).unwrap_or_default();
    // A reporter's bare name, as local programs write it.
    let bare = value(header, "From").unwrap_or_default().trim_ascii().to_ascii_lowercase();
    let is_bare = REPORTERS.iter().any(|name| bare.starts_with(name));
    !is_vacation && (from.iter().any(is_reporter) || is_bare || has_null_sender && from.is_empty())
}

/// The addresses in a text, in lower case, each once, in their order.
fn addresses(text: &[u8]) -> Vec<Vec<u8>> {
    let mut found: Vec<Vec<u8>> = Vec::new();
    let is_part =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"._+-=/!#$%&'*?^`{|}~".contains(byte) || *byte >= 0x80;
    // Real reports have few; what has more wants to keep us busy.
    for at in memchr::memchr_iter(b'@', text).take(MAX_ATS) {
        let (Some(before), Some(after)) = (text.get(..at), text.get(at + 1..)) else { continue };
        let near = before.len().saturating_sub(MAX_LOCAL_BYTES);
        let tail = before.get(near..).unwrap_or_default();
        let start = tail.iter().rposition(|byte| !is_part(byte)).map_or(near, |stop| near + stop + 1);
        let after = after.get(..MAX_DOMAIN_BYTES).unwrap_or(after);
        let end = after.iter().position(|byte| !is_domain(byte)).unwrap_or(after.len());
        let (Some(local), Some(domain)) = (before.get(start..), after.get(..end)) else { continue };
        let domain = domain.strip_suffix(b".").unwrap_or(domain);
        // `4jYBw@mx.example`, right after `id:<`, is a Message-ID.
        let is_id = before.get(..start).is_some_and(|before| {
            let before = before.strip_suffix(b"<").unwrap_or(before).trim_ascii_end();
            before
                .len()
                .checked_sub(3)
                .and_then(|start| before.get(start..))
                .is_some_and(|end| end.eq_ignore_ascii_case(b"id:") || end.eq_ignore_ascii_case(b"id="))
        });
        if local.is_empty() || !domain.contains(&b'.') || is_id {
            continue;
        }
        let address = [local, b"@", domain].concat().to_ascii_lowercase();
        if !found.contains(&address) && found.len() <= MAX_RECIPIENTS {
            found.push(address);
        }
    }
    found
}

fn is_domain(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-') || *byte >= 0x80
}

/// From the first line on that is a reply of a server (`<<< 550 …`), or all.
fn reply(text: &[u8]) -> &[u8] {
    let is_reply = |line: &[u8]| {
        matches!(line, [b'4' | b'5', second, third, b' ' | b'-', ..]
            if second.is_ascii_digit() && third.is_ascii_digit())
    };
    let mut at = 0;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let bare = line.strip_prefix(b"<<<").unwrap_or(line).trim_ascii_start();
        if is_reply(bare) {
            return text.get(at + line.len() - bare.len()..).unwrap_or(text);
        }
        at += line.len();
    }
    text
}

fn status(text: &[u8], action: Action) -> Option<EnhancedCode> {
    let class = if action == Action::Delayed { 4 } else { 5 };
    text.split(|byte| !(byte.is_ascii_digit() || *byte == b'.'))
        .filter_map(EnhancedCode::parse)
        .find(|code| code.class == class)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::bounce::fields::header;

    #[test]
    fn addresses_are_found_in_prose() {
        let text =
            b"<A@X.example>... User unknown; b+c@y.example. Message-ID: <1@z.example> @ a@b\n(a@x.example)";
        assert_eq!(addresses(text), [b"a@x.example".to_vec(), b"b+c@y.example".to_vec()]);
    }

    #[test]
    fn only_a_mail_system_reports() {
        let text = b"Your mail to a@x.example could not be delivered: 550 5.1.1 unknown";
        let told = |top: &[u8]| recipients(&header(top), text, &[]).map(|all| all.len());
        assert_eq!(told(b"From: Mail Delivery <MAILER-DAEMON@mx.example>\n"), Some(1));
        assert_eq!(told(b"From: postmaster\n"), Some(1));
        assert_eq!(told(b"From: Anna <anna@x.example>\n"), None);
        assert_eq!(told(b"From: postmaster@x.example\nX-Autoreply: yes\n"), None);
    }

    #[test]
    fn a_delay_is_none_and_talk_is_nothing() {
        let top = header(b"From: MAILER-DAEMON@mx.example\n");
        let action = |text: &[u8]| recipients(&top, text, &[]).map(|all| all[0].action);
        assert_eq!(
            action(b"THIS IS A WARNING MESSAGE ONLY. a@x.example could not be delivered yet"),
            Some(Action::Delayed)
        );
        assert_eq!(action(b"Undeliverable: a@x.example"), Some(Action::Failed));
        assert_eq!(action(b"a@x.example says hello"), None);
    }

    #[test]
    fn a_quoted_header_is_found() {
        let text = b"it failed\r\n\r\n> Return-Path: <a@b>\r\n> X-Mailtap-Ref:\r\n>  ref\r\n> To: c@d\r\n>\r\n> X: no\r\n";
        let fields = quoted_header(text, b"x-mailtap-ref").unwrap();
        assert_eq!(value(&fields, "X-Mailtap-Ref"), Some(&b"ref"[..]));
        assert_eq!((value(&fields, "To"), value(&fields, "X")), (Some(&b"c@d"[..]), None));
        assert_eq!(quoted_header(b"a\nX-Mailtap-Reference: b\n", b"X-Mailtap-Ref"), None);
    }
}
