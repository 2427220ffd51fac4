//! Examines one part: decodes it, finds its links and the place for a pixel, judges each link.
//!
//! - Layer: decision
//! - Takes: a part, the plan, what the header said.
//! - Gives: the decoded body with candidates in the order of the text.
//! - On failure: the `Reason` why the part is left alone.
//! - Limits: linear in the part.

#![warn(clippy::indexing_slicing)]

use std::collections::HashSet;
use std::ops::Range;

use memchr::{memchr, memmem};

use super::charset::Charset;
use super::header::slice;
use super::html::{Anchor, Quote, Scan, decode_references, decode_references_onto, scan};
use super::mime::{Kind, Part};
use super::optout;
use super::plan::Plan;
use super::reason::Reason;
use super::target::{NO_TRACK_SCHEME, clean_from, judge};
use super::text;
use super::transfer::Body;

/// What is allowed in this message, after its own opt-outs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowed {
    pub(super) clicks: bool,
    pub(super) text: bool,
    pub(super) opens: bool,
}

/// What kind of text a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flavour {
    Plain,
    Html,
    Amp,
}

/// A link that may be rewritten.
#[derive(Debug)]
pub(super) struct Candidate {
    /// Its value in the decoded text.
    pub(super) range: Range<usize>,
    /// How it is quoted; `None` in plain text.
    pub(super) quote: Option<Quote>,
    /// Where it leads, within [`Found::targets`].
    pub(super) target: Range<usize>,
    pub(super) verdict: Result<(), Reason>,
    /// Bytes to remove although the link is not tracked: a scheme suffix that no browser knows.
    pub(super) strip: Option<Range<usize>>,
    /// Where a mark ends that follows the link, and goes in any case; the link's own end where there is none.
    pub(super) mark_end: usize,
}

/// A part that was examined.
#[derive(Debug)]
pub(super) struct Found<'m> {
    pub(super) flavour: Flavour,
    pub(super) body: Body<'m>,
    pub(super) candidates: Vec<Candidate>,
    /// The targets of all candidates, one behind the other: a newsletter has hundreds.
    pub(super) targets: String,
    pub(super) more: usize,
    /// Why the part is left if nothing in it changes.
    pub(super) unchanged: Reason,
    /// For HTML: what the scanner saw.
    pub(super) scan: Option<Scan>,
}

impl Found<'_> {
    /// Where a candidate leads, decoded.
    pub(super) fn target(&self, link: &Candidate) -> &str {
        self.targets.get(link.target.clone()).unwrap_or_default()
    }
}

/// Examines a part. The outer error is about the message, the inner one about the part.
pub(super) fn examine<'m>(
    message: &'m [u8],
    part: &Part,
    plan: &Plan,
    allowed: Allowed,
    unsubscribe: &HashSet<String>,
) -> Result<Result<Found<'m>, Reason>, Reason> {
    match part.kind {
        Kind::Other(reason) => return Ok(Err(reason)),
        // Never asked for: it has no text of its own.
        Kind::Container => return Ok(Err(Reason::NotText)),
        Kind::Html | Kind::Plain | Kind::Amp => {}
    }
    let raw = slice(message, &part.body);
    let body = match Body::decode(raw, &part.encoding) {
        Ok(body) => body,
        Err(_) if has_pgp(raw) => return Err(Reason::InlinePgp),
        Err(reason) => return Ok(Err(reason)),
    };
    if has_pgp(body.text()) {
        return Err(Reason::InlinePgp);
    }
    Ok(match part.kind {
        Kind::Plain if !allowed.text && !text::has_marks(body.text()) => Err(Reason::TextOff),
        Kind::Plain => plain(body, part, plan, allowed, unsubscribe),
        Kind::Amp if !plan.amp => Err(Reason::AmpOff),
        Kind::Amp if !plan.https => Err(Reason::AmpNeedsHttps),
        _ => html(body, part, plan, allowed, unsubscribe),
    })
}

/// Whether something of a part has to go even where nothing is tracked: a scheme suffix that leads nowhere, our own marks.
pub(super) fn holds_marks(message: &[u8], part: &Part) -> bool {
    if matches!(part.kind, Kind::Other(_) | Kind::Container) {
        return false;
    }
    let body = Body::decode(slice(message, &part.body), &part.encoding);
    body.is_ok_and(|body| match part.kind {
        Kind::Plain => text::has_marks(body.text()),
        _ => optout::has_marks(body.text()),
    })
}

fn has_pgp(text: &[u8]) -> bool {
    memmem::find(text, b"-----BEGIN PGP ").is_some()
}

fn charset_of(body: &Body<'_>, part: &Part) -> Result<Charset, Reason> {
    let text = body.text();
    if text.trim_ascii().is_empty() {
        return Err(Reason::EmptyPart);
    }
    let charset = Charset::of(&part.charset, text)?;
    // Where the text is the encoding, it was looked at with the message.
    if !matches!(body, Body::Identity(_)) && memchr(0, text).is_some() {
        return Err(Reason::Nul);
    }
    Ok(charset)
}

fn plain<'m>(
    body: Body<'m>,
    part: &Part,
    plan: &Plan,
    allowed: Allowed,
    unsubscribe: &HashSet<String>,
) -> Result<Found<'m>, Reason> {
    let charset = charset_of(&body, part)?;
    let (links, more) = text::scan(body.text(), charset, part.delsp);
    let mut candidates = Vec::with_capacity(links.len());
    let mut targets = String::new();
    for link in links {
        let value = charset.decode(slice(body.text(), &link.range)).unwrap_or_default();
        let verdict = link.doubt.map_or_else(|| judge(&value, plan, unsubscribe), Err);
        let strip = strip_of(body.text(), &link.range, verdict);
        let verdict = verdict.and(if link.opt_out { Err(Reason::LinkOptOut) } else { Ok(()) });
        let verdict = verdict.and(if allowed.text { Ok(()) } else { Err(Reason::TextOff) });
        let start = targets.len();
        targets.push_str(&value);
        candidates.push(Candidate {
            range: link.range,
            quote: None,
            target: start..targets.len(),
            verdict,
            strip,
            mark_end: link.mark_end,
        });
    }
    let unchanged = if allowed.text { Reason::NoLinks } else { Reason::TextOff };
    Ok(Found { flavour: Flavour::Plain, body, candidates, targets, more, unchanged, scan: None })
}

fn html<'m>(
    body: Body<'m>,
    part: &Part,
    plan: &Plan,
    allowed: Allowed,
    unsubscribe: &HashSet<String>,
) -> Result<Found<'m>, Reason> {
    let charset = charset_of(&body, part)?;
    let mut scan = scan(body.text(), plan)?;
    if !scan.has_markup {
        return Err(Reason::NotHtml);
    }
    let anchors = std::mem::take(&mut scan.anchors);
    let mut candidates = Vec::with_capacity(anchors.len());
    let mut targets = String::with_capacity(anchors.iter().map(|anchor| anchor.value.len()).sum());
    for anchor in anchors {
        let start = targets.len();
        let mut verdict = target_of(body.text(), &anchor, charset, plan, unsubscribe, &mut targets);
        let target = start..targets.len();
        if verdict.is_ok() && !allowed.clicks {
            verdict = Err(Reason::ClicksOff);
        }
        let strip = strip_of(body.text(), &anchor.value, verdict);
        let (quote, mark_end) = (Some(anchor.quote), anchor.value.end);
        candidates.push(Candidate { range: anchor.value, quote, target, verdict, strip, mark_end });
    }
    let flavour = if part.kind == Kind::Amp { Flavour::Amp } else { Flavour::Html };
    let (more, unchanged) = (scan.more_anchors, Reason::NoLinks);
    Ok(Found { flavour, body, candidates, targets, more, unchanged, scan: Some(scan) })
}

/// Puts where an anchor leads at the end of the targets, and says whether it may be tracked.
fn target_of(
    html: &[u8],
    anchor: &Anchor,
    charset: Charset,
    plan: &Plan,
    unsubscribe: &HashSet<String>,
    targets: &mut String,
) -> Result<(), Reason> {
    let raw = slice(html, &anchor.value);
    let Some(value) = charset.decode(raw).filter(|_| !charset.is_doubtful(raw)) else {
        targets.push_str(&String::from_utf8_lossy(raw));
        return Err(Reason::BadText);
    };
    let start = targets.len();
    if !decode_references_onto(targets, &value) {
        targets.truncate(start);
        targets.push_str(&value);
        return Err(Reason::UnknownEntity);
    }
    clean_from(targets, start);
    let verdict = judge(targets.get(start..).unwrap_or_default(), plan, unsubscribe);
    charset.encode_query(targets, start);
    let target = targets.get(start..).unwrap_or_default();
    match verdict {
        Ok(()) if anchor.opt_out => Err(Reason::LinkOptOut),
        Ok(()) if plan.skip_visible_url && shows_itself(slice(html, &anchor.content), charset, target) => {
            Err(Reason::VisibleUrl)
        }
        // The query may have grown by percent-encoding.
        Ok(()) if target.len() > plan.max_url_bytes => Err(Reason::UrlTooLong),
        verdict => verdict,
    }
}

/// Whether the text of a link is a URL, or its own address without scheme.
fn shows_itself(content: &[u8], charset: Charset, target: &str) -> bool {
    /// Longer contents show more than an address.
    const MAX_CONTENT_BYTES: usize = 8192;
    if content.len() > MAX_CONTENT_BYTES {
        return false;
    }
    let Some(content) = charset.decode(content) else { return false };
    let mut text = String::new();
    for (index, piece) in content.split('<').enumerate() {
        text.push_str(if index == 0 { piece } else { piece.split_once('>').map_or("", |(_, after)| after) });
    }
    let Some(text) = decode_references(text.trim()) else { return false };
    if text.is_empty() || text.contains(char::is_whitespace) {
        return false;
    }
    let bare = |url: &str| {
        let url = url.split_once("://").map_or(url, |(_, rest)| rest);
        url.trim_end_matches('/').to_lowercase()
    };
    text.contains("://") || bare(&text) == bare(target)
}

/// Where Postal's scheme suffix stands in the value of a link that is not tracked.
fn strip_of(text: &[u8], value: &Range<usize>, verdict: Result<(), Reason>) -> Option<Range<usize>> {
    if verdict != Err(Reason::LinkOptOut) {
        return None;
    }
    let raw = slice(text, value);
    let start = raw.iter().position(|b| !b.is_ascii_whitespace())?;
    let scheme_len = raw.get(start..)?.iter().position(|&b| b == b'+' || b == b':')?;
    let at = start + scheme_len;
    let suffix = at..at + NO_TRACK_SCHEME.len();
    let found = raw.get(suffix.clone())?.eq_ignore_ascii_case(NO_TRACK_SCHEME.as_bytes());
    found.then(|| value.start + suffix.start..value.start + suffix.end)
}
