//! The rewriting engine: one message and a plan in, patches and reasons out.
//!
//! - Layer: decision
//! - Takes: the whole message, what may be done to it, and a maker of tracking URLs.
//! - Gives: patches to the bytes of links and pixel, nothing else; for every part and link what was done and why.
//! - On failure: any doubt about the message's structure leaves the whole message as it came, with the reason.
//! - Limits: linear in the size of the message; message, parts, depth, links and URLs are limited by the plan.
//! - See: RFC 2045, 2046, 2231, 3676; WHATWG HTML 13.2.5 (tokenisation); `tests/data/rewrite`

mod charset;
mod engine;
mod find;
mod gate;
mod header;
mod html;
mod lines;
mod mime;
pub mod optout;
mod pattern;
mod pixel;
mod plan;
mod reason;
mod report;
mod target;
mod text;
mod transfer;

pub use pattern::{DEFAULT_LOGIN_PATTERNS, LinkPatterns};
pub use pixel::check_pixel;
pub use plan::{DEFAULT_PIXEL, HostRule, Mint, PatternError, PixelAt, Plan};
pub use reason::{Reason, Reasons};
pub use report::{
    LineCounter, LinkReport, LinkWhat, MAX_REPORTED_LINKS, Outcome, PartReport, PartWhat, Patch, Report,
    apply, apply_from, apply_onto, growth,
};

/// Decides what to change in a message.
///
/// The message is the header block, a blank line and the body, with CRLF or LF throughout. Headers are read (signatures,
/// opt-outs) and never changed.
#[must_use]
pub fn rewrite(message: &[u8], plan: &Plan, mint: &mut dyn Mint) -> Report {
    engine::run(message, plan, mint).unwrap_or_else(Report::left_alone)
}

#[cfg(test)]
mod differential_tests;
#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tracker_tests;
