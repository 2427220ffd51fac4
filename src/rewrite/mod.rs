//! The rewriting engine: one message and a plan in, patches and reasons out.
//!
//! - Layer: decision
//! - Takes: the whole message, what may be done to it, and a maker of tracking URLs.
//! - Gives: patches to the bytes of links and pixel, nothing else; for every part and link what was done and why.
//! - On failure: any doubt about the message's structure leaves the whole message as it came, with the reason.
//! - Limits: linear in the size of the message; message, parts, depth, links and URLs are limited by the plan.
//! - See: RFC 2045, 2046, 2231, 3676; WHATWG HTML 13.2.5 (tokenisation); facts on links, cases 1–53

pub mod optout;
mod plan;
mod reason;
mod report;

pub use plan::{
    DEFAULT_LOGIN_PATTERNS, DEFAULT_PIXEL, HostRule, LinkPattern, Mint, PatternError, PixelAt, Plan,
};
pub use reason::Reason;
pub use report::{
    LinkReport, LinkWhat, MAX_REPORTED_LINKS, Outcome, PartReport, PartWhat, Patch, Report, apply, line_of,
};

/// Decides what to change in a message.
///
/// The message is the header block, a blank line and the body, with CRLF or LF throughout. Headers are read (signatures,
/// opt-outs) and never changed.
#[must_use]
pub fn rewrite(message: &[u8], plan: &Plan, _mint: &mut dyn Mint) -> Report {
    if message.len() > plan.max_message_bytes {
        return Report::left_alone(Reason::MessageTooBig);
    }
    Report::unchanged(Reason::NothingToRewrite)
}
