//! Finds links, pixels and the place for a pixel in HTML, without building a document.
//!
//! - Layer: decision
//! - Takes: decoded bytes of an HTML part in a charset whose markup is ASCII.
//! - Gives: the spans of `href` values with their opt-outs, and where a pixel may go.
//! - On failure: `Reason::AmbiguousHtml` where programs differ on what is markup.
//! - Limits: one pass; at most `MAX_REPORTED_LINKS` links are kept, the rest is counted.
//! - See: WHATWG HTML 13.2.5

mod entity;
mod scan;
mod tag;

pub(super) use entity::{decode_references, decode_references_onto, escaped};
pub(super) use scan::{Anchor, Scan, is_own, scan};
pub(super) use tag::{Quote, quoted_values};
