//! Lines that are known, but tell little or nothing about the fate of a message.
//!
//! - Layer: decision
//! - Takes: the daemon and the text of a line that is no delivery.
//! - Gives: what it is.
//! - On failure: `None`, or `false`, for a shape that is not known.
//! - See: the daemons of Postfix 2.11 to 3.12.

use super::queue_id::QueueId;
use super::record::{Record, Refuser};

/// Lines with a queue id that tell little or nothing.
pub(super) fn with_id<'a>(daemon: &[u8], queue_id: QueueId, rest: &[u8]) -> Option<Record<'a>> {
    const NOTIFICATION: &[&[u8]] = &[b"sender ", b"postmaster "];
    const KNOWN: &[&[u8]] = &[
        b"breaking line > ",
        b"conversation with ",
        b"enabling PIX workarounds",
        b"expired",
        b"filter: ",
        b"hold: ",
        b"host ",
        b"info: ",
        b"lost connection ",
        b"milter-",
        b"passing <",
        b"Placed on hold",
        b"prepend: ",
        b"redirect: ",
        b"released from hold",
        b"replace: ",
        b"requeued",
        b"resent-message-id=",
        b"skipped, still being delivered",
        b"status=",
        b"strip: ",
        b"TLS is required",
        b"timeout after ",
        b"warning: ",
        b"bcc: ",
        b"warn: ",
        b"Server certificate ",
        b"Cannot start TLS",
        b"SASL authentication failed",
        b"too many errors after ",
        b"improper command pipelining after ",
        b"placed on hold",
        b"reject_warning: ",
        b"sender notification failed",
    ];
    let begins = |prefixes: &[&[u8]]| prefixes.iter().any(|prefix| rest.starts_with(prefix));
    if let Some(by) = refuser(daemon, rest) {
        return Some(Record::Refused { queue_id: Some(queue_id), by });
    }
    if daemon == b"bounce" && begins(NOTIFICATION) || daemon == b"trace" || daemon == b"defer" {
        return Some(Record::Notification { queue_id });
    }
    begins(KNOWN).then_some(Record::Irrelevant)
}

/// Lines about a message that never got a queue id.
pub(super) fn without_queue<'a>(daemon: &[u8], rest: &[u8]) -> Record<'a> {
    refuser(daemon, rest).map_or(Record::Irrelevant, |by| Record::Refused { queue_id: None, by })
}

/// Who refused or discarded the message. What is held may be released, and goes on then.
fn refuser(daemon: &[u8], rest: &[u8]) -> Option<Refuser> {
    const MILTER: [&[u8]; 2] = [b"milter-reject: ", b"milter-discard: "];
    const CHECKS: [&[u8]; 2] = [b"reject: ", b"discard: "];
    let begins = |prefixes: &[&[u8]]| prefixes.iter().any(|prefix| rest.starts_with(prefix));
    match daemon {
        _ if begins(&MILTER) => Some(Refuser::Milter),
        _ if !begins(&CHECKS) => None,
        b"cleanup" => Some(Refuser::Content),
        b"postscreen" => Some(Refuser::Postscreen),
        _ => Some(Refuser::Smtpd),
    }
}

/// Lines without a queue id that are known to mean nothing to a message.
pub(super) fn is_known_without_id(daemon: &[u8], message: &[u8]) -> bool {
    const DAEMONS: [&[u8]; 12] = [
        b"postscreen",
        b"anvil",
        b"master",
        b"dnsblog",
        b"tlsproxy",
        b"scache",
        b"verify",
        b"postfix-script",
        b"postsuper",
        b"postlog",
        b"postalias",
        b"postmap",
    ];
    const KNOWN: [&[u8]; 37] = [
        b"bare <",
        b"connect ",
        b"discarding EHLO keywords",
        b"proxy-accept: ",
        b"proxy-reject: ",
        b"disconnect ",
        b"warning: ",
        b"error: ",
        b"fatal: ",
        b"panic: ",
        b"statistics: ",
        b"lost connection ",
        b"timeout after ",
        b"Anonymous TLS ",
        b"Trusted TLS ",
        b"Untrusted TLS ",
        b"Verified TLS ",
        b"setting up TLS ",
        b"SSL_",
        b"table ",
        b"too many errors ",
        b"improper command pipelining ",
        b"reload ",
        b"daemon started",
        b"terminating on signal",
        b"refreshing the Postfix mail system",
        b"starting the Postfix mail system",
        b"stopping the Postfix mail system",
        b"Host offered STARTTLS",
        b"using backwards-compatible default setting",
        b"certificate verification failed",
        b"Cached ",
        b"New ",
        b"skipped, still being delivered",
        b"master ",
        b"info: ",
        b"debug: ",
    ];
    DAEMONS.contains(&daemon) || KNOWN.iter().any(|known| message.starts_with(known))
}
