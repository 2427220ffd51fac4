//! What a Postfix daemon says in a line, as far as it matters to the fate of a message.
//!
//! - Layer: decision
//! - Takes: a `Line`.
//! - Gives: `Record`, borrowing from it.
//! - On failure: `Record::Unknown` for a shape that is not known: counted, so that the share of known lines can be told.
//! - Limits: allocates nothing; a line that `postlogd` cut at 2,000 bytes is read as far as it goes.
//! - See: Postfix `src/global/log_adhoc.c`, `src/cleanup/cleanup_message.c`, `src/qmgr/qmgr_active.c`.

#![warn(clippy::indexing_slicing)]

use std::time::Duration;

use memchr::memchr;
use memchr::memmem;

use super::known;
use super::line::Line;
use super::loss::repetitions;
use super::queue_id::QueueId;

/// One fact of the log.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Record<'a> {
    /// The outcome of one attempt for one recipient.
    Delivery(Delivery<'a>),
    /// A header of ours, which cleanup(8) logged.
    Header(Header<'a>),
    /// A message begins: `client=` of smtpd(8) and qmqpd(8), `uid=` of pickup(8).
    Arrived {
        /// Its queue id.
        queue_id: QueueId,
        /// The message that it was before.
        origin: Option<Origin>,
    },
    /// cleanup(8) saw a Message-ID.
    MessageId(QueueId),
    /// qmgr(8) takes it up, for the first time or again.
    Active {
        /// The message.
        queue_id: QueueId,
        /// The envelope sender; empty for bounces.
        sender: &'a [u8],
    },
    /// qmgr(8) gives up: every recipient that is still deferred is returned.
    Expired(QueueId),
    /// The message left the queue.
    Removed(QueueId),
    /// bounce(8) sent a notification, which is a message of its own.
    Notification {
        /// The message that it is about.
        queue_id: QueueId,
    },
    /// The message was refused or discarded.
    Refused {
        /// Its queue id, if it had one by then.
        queue_id: Option<QueueId>,
        /// By whom.
        by: Refuser,
    },
    /// A client's connection has TLS from now on.
    Tls {
        /// The server, as attempts name it.
        relay: &'a [u8],
        /// How far it is trusted.
        word: &'static str,
    },
    /// `last message repeated N times`, without the text.
    Repeated(u32),
    /// A known line that tells nothing about the fate of a message.
    Irrelevant,
    /// A shape that is not known.
    Unknown,
}

/// Who refused a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refuser {
    /// smtpd(8), by its restrictions.
    Smtpd,
    /// postscreen(8).
    Postscreen,
    /// A milter.
    Milter,
    /// cleanup(8), by checks of header and body.
    Content,
}

/// What a message was before it got this queue id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Another queue handed it on, a content filter in between: `orig_queue_id=`, by XFORWARD.
    HandedOn(QueueId),
    /// The same queue had it: `orig_id=`, after `postsuper -r`.
    Requeued(QueueId),
}

/// The outcome of one attempt for one recipient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Delivery<'a> {
    /// The message.
    pub queue_id: QueueId,
    /// The recipient that was tried.
    pub to: &'a [u8],
    /// The recipient before aliases and rewriting, where it differs.
    pub orig_to: Option<&'a [u8]>,
    /// The next hop: `none`, `local`, `host[address]:port`, ….
    pub relay: &'a [u8],
    /// Since the message came, as text: part of what makes an attempt what it is.
    pub delay_text: &'a [u8],
    /// The four parts of the delay, as text.
    pub delays_text: &'a [u8],
    /// Whether the connection had been used before (`conn_use=`).
    pub is_reused: bool,
    /// Postfix's word for TLS (3.11).
    pub tls: Option<&'a [u8]>,
    /// The enhanced status code.
    pub dsn: Option<&'a [u8]>,
    /// The outcome.
    pub status: Status,
    /// What was said, without the outer brackets. May hold addresses: for deciding only.
    pub text: &'a [u8],
}

impl Delivery<'_> {
    /// Since the message came.
    #[must_use]
    pub fn delay(&self) -> Option<Duration> {
        let seconds: f64 = std::str::from_utf8(self.delay_text).ok()?.parse().ok()?;
        Duration::try_from_secs_f64(seconds).ok().filter(|delay| delay.as_secs() < 366 * 86_400)
    }
}

/// The word after `status=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The next hop took it.
    Sent,
    /// Not now; also what a soft bounce (`soft_bounce = yes`) is.
    Deferred,
    /// Not ever.
    Bounced,
    /// An address was probed, or a delivery traced: no mail moved.
    Probe,
}

impl Status {
    fn parse(word: &[u8]) -> Option<Self> {
        Some(match word {
            b"sent" => Self::Sent,
            b"deferred" | b"SOFTBOUNCE" => Self::Deferred,
            b"bounced" => Self::Bounced,
            b"deliverable" | b"undeliverable" | b"undeliverable-but-not-cached" => Self::Probe,
            b"delivered" | b"relayed" | b"expanded" => Self::Probe,
            _ => return None,
        })
    }

    /// The word in event ids.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Deferred => "deferred",
            Self::Bounced => "bounced",
            Self::Probe => "probe",
        }
    }
}

/// Which of our headers it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// `X-Mailtap-Ref`.
    Ref,
    /// `X-Mailtap-Campaign`.
    Campaign,
}

/// A header of ours in the log.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Header<'a> {
    /// The message.
    pub queue_id: QueueId,
    /// Which header.
    pub name: Name,
    /// Its value: neither can hold a blank.
    pub value: &'a [u8],
    /// The envelope sender.
    pub sender: Option<&'a [u8]>,
}

impl<'a> Record<'a> {
    /// What the line says.
    #[must_use]
    pub fn parse(line: &Line<'a>) -> Self {
        let message = line.message;
        if let Some((queue_id, rest)) = queue_id(message) {
            return after_queue_id(line.daemon, queue_id, rest).unwrap_or(Self::Unknown);
        }
        if let Some(rest) = message.strip_prefix(b"NOQUEUE: ") {
            return known::without_queue(line.daemon, rest);
        }
        if message.starts_with(b"last message repeated ")
            && let Some(count) = repetitions(message)
        {
            return Self::Repeated(count);
        }
        if let Some((relay, word)) = tls_connection(message) {
            return Self::Tls { relay, word };
        }
        if known::is_known_without_id(line.daemon, message) { Self::Irrelevant } else { Self::Unknown }
    }
}

/// `Untrusted TLS connection established to mx.example.net[192.0.2.1]:25: TLSv1.3 with cipher …`.
fn tls_connection(message: &[u8]) -> Option<(&[u8], &'static str)> {
    let (word, rest) = match message.first()? {
        b'A' => ("anonymous", message.strip_prefix(b"Anonymous")?),
        b'U' => ("untrusted", message.strip_prefix(b"Untrusted")?),
        b'T' => ("trusted", message.strip_prefix(b"Trusted")?),
        b'V' => ("verified", message.strip_prefix(b"Verified")?),
        _ => return None,
    };
    let rest = rest.strip_prefix(b" TLS connection established to ")?;
    Some((rest.get(..memmem::find(rest, b": ")?)?, word))
}

/// The queue id before the first `: `.
fn queue_id(message: &[u8]) -> Option<(QueueId, &[u8])> {
    let head = message.get(..QueueId::MAX_BYTES + 1).unwrap_or(message);
    let (id, rest) = message.split_at_checked(memchr(b':', head)?)?;
    let rest = rest.strip_prefix(b": ")?;
    // `warning: `, `Deleted: ` and their like are no ids: the time of a long one has a digit (its first one, until
    // 2090), and a short one is hexadecimal.
    let is_id = id.iter().any(u8::is_ascii_digit) || id.iter().all(|byte| matches!(byte, b'A'..=b'F'));
    if is_id { Some((QueueId::parse(id)?, rest)) } else { None }
}

fn after_queue_id<'a>(daemon: &[u8], queue_id: QueueId, rest: &'a [u8]) -> Option<Record<'a>> {
    match rest.first()? {
        b't' if rest.starts_with(b"to=<") => delivery(queue_id, rest).map(Record::Delivery),
        b'f' if rest.starts_with(b"from=<") => from(queue_id, rest),
        b'c' if rest.starts_with(b"client=") => {
            let origin = id_after(rest, b", orig_queue_id=").map(Origin::HandedOn);
            Some(Record::Arrived { queue_id, origin })
        }
        b'u' if rest.starts_with(b"uid=") => {
            let origin = id_after(rest, b" orig_id=").map(Origin::Requeued);
            Some(Record::Arrived { queue_id, origin })
        }
        b'm' if rest.starts_with(b"message-id=") => Some(Record::MessageId(queue_id)),
        // `removed`, and since 3.10 `removed (canceled)`.
        b'r' if rest == b"removed" || rest.starts_with(b"removed (") => Some(Record::Removed(queue_id)),
        b'm' | b'i' | b'w' => {
            logged_header(queue_id, rest).or_else(|| known::with_id(daemon, queue_id, rest))
        }
        _ => known::with_id(daemon, queue_id, rest),
    }
}

/// The last queue id after this key.
fn id_after(rest: &[u8], key: &[u8]) -> Option<QueueId> {
    let value = rest.get(memmem::rfind(rest, key)? + key.len()..)?;
    let end = value.iter().position(|byte| !byte.is_ascii_alphanumeric()).unwrap_or(value.len());
    QueueId::parse(value.get(..end)?)
}

/// `to=<A>[, orig_to=<B>], relay=R[, conn_use=N], delay=D, delays=…[, tls=F], dsn=X.Y.Z, status=S (TEXT)`.
fn delivery(queue_id: QueueId, rest: &[u8]) -> Option<Delivery<'_>> {
    let (to, rest) = address(rest.strip_prefix(b"to=<")?, &[b">, orig_to=<", b">, relay=", b">, delay="])?;
    let (orig_to, mut rest) = match rest.strip_prefix(b">, orig_to=<") {
        Some(rest) => {
            let (orig_to, rest) = address(rest, &[b">, relay=", b">, delay="])?;
            (Some(orig_to), rest.strip_prefix(b">, ")?)
        }
        None => (None, rest.strip_prefix(b">, ")?),
    };
    let (mut relay, mut delay_text, mut delays_text, mut tls, mut dsn) =
        (&b""[..], &b""[..], &b""[..], None, None);
    let mut is_reused = false;
    // Keys that later versions add are passed over.
    loop {
        let (key, value_on) = rest.split_at_checked(memchr(b'=', rest)?)?;
        let value_on = value_on.get(1..)?;
        if key == b"status" {
            let end = memchr(b' ', value_on).unwrap_or(value_on.len());
            let (word, text) = value_on.split_at_checked(end)?;
            let status = Status::parse(word)?;
            let text = inside_brackets(text);
            return Some(Delivery {
                queue_id,
                to,
                orig_to,
                relay,
                delay_text,
                delays_text,
                is_reused,
                tls,
                dsn,
                status,
                text,
            });
        }
        let (value, next) = value_on.split_at_checked(memmem::find(value_on, b", ")?)?;
        match key {
            b"relay" => relay = value,
            b"conn_use" => is_reused = true,
            b"delay" => delay_text = value,
            b"delays" => delays_text = value,
            b"tls" => tls = Some(value),
            b"dsn" => dsn = Some(value),
            _ => {}
        }
        rest = next.get(2..)?;
    }
}

/// An address up to the first of `ends` that is not within its quotes.
///
/// Before Postfix 3.5 the local part was logged without quotes: where a quote is never closed, it is taken as it stands.
fn address<'a>(rest: &'a [u8], ends: &[&[u8]]) -> Option<(&'a [u8], &'a [u8])> {
    let from = if rest.starts_with(b"\"") { end_of_quotes(rest).unwrap_or(0) } else { 0 };
    let unquoted = rest.get(from..)?;
    let mut start = 0;
    loop {
        let bracket = start + memchr(b'>', unquoted.get(start..)?)?;
        let tail = unquoted.get(bracket..)?;
        if ends.iter().any(|end| tail.starts_with(end)) {
            return rest.split_at_checked(from + bracket);
        }
        start = bracket + 1;
    }
}

/// The position after the closing quote of a quoted string that begins here.
fn end_of_quotes(quoted: &[u8]) -> Option<usize> {
    let mut escaped = false;
    let inner = quoted.get(1..)?;
    let end = inner.iter().position(|byte| {
        let end = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        end
    })?;
    // Only a local part that is quoted whole counts: an `@` or the end of the address follows.
    let after = quoted.get(end + 2..)?;
    matches!(after.first(), Some(b'@' | b'>')).then_some(end + 2)
}

/// `(TEXT)` without its brackets; the closing one may be cut off.
fn inside_brackets(text: &[u8]) -> &[u8] {
    let text = text.strip_prefix(b" ").unwrap_or(text);
    let text = text.strip_prefix(b"(").unwrap_or(text);
    text.strip_suffix(b")").unwrap_or(text)
}

/// qmgr: `from=<S>, size=N, nrcpt=M (queue active)` and `from=<S>, status=expired, returned to sender`; local: both
/// also without what follows.
fn from(queue_id: QueueId, rest: &[u8]) -> Option<Record<'_>> {
    let (sender, rest) =
        address(rest.strip_prefix(b"from=<")?, &[b">, size=", b">, status=", b">, orig_id="])?;
    let rest = rest.strip_prefix(b">, ")?;
    match rest.strip_prefix(b"status=") {
        Some(status) if status.starts_with(b"expired") || status.starts_with(b"force-expired") => {
            Some(Record::Expired(queue_id))
        }
        Some(_) => Some(Record::Irrelevant),
        None => Some(Record::Active { queue_id, sender }),
    }
}

/// `milter-header-info: header X-Mailtap-Ref: VALUE from HOST[ADDRESS]; from=<S> to=<R> proto=P helo=<H>:` by
/// `milter_header_checks`, and the same after `info: ` by `header_checks`.
fn logged_header(queue_id: QueueId, rest: &[u8]) -> Option<Record<'_>> {
    let rest = [
        "milter-header-info: header ",
        "info: header ",
        "milter-header-warning: header ",
        "warning: header ",
    ]
    .iter()
    .find_map(|action| rest.strip_prefix(action.as_bytes()))?;
    let (name, rest) = rest.split_at_checked(memchr(b':', rest)?)?;
    let name = match name {
        _ if name.eq_ignore_ascii_case(b"X-Mailtap-Ref") => Name::Ref,
        _ if name.eq_ignore_ascii_case(b"X-Mailtap-Campaign") => Name::Campaign,
        _ => return Some(Record::Irrelevant),
    };
    let rest = rest.get(1..)?.trim_ascii_start();
    let (value, rest) = rest.split_at_checked(memchr(b' ', rest).unwrap_or(rest.len()))?;
    let sender = memmem::find(rest, b"; from=<")
        .and_then(|at| rest.get(at + 8..))
        .and_then(|rest| address(rest, &[b"> to=<", b"> proto=", b"> helo=", b">:"]))
        .map(|(sender, _)| sender);
    Some(Record::Header(Header { queue_id, name, value, sender }))
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
