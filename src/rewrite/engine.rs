//! From what was found in the parts to patches: numbers, tracking URLs, the pixel, line lengths.
//!
//! - Layer: decision
//! - Takes: the message, its parts, the plan, the mint.
//! - Gives: the report with its patches.
//! - On failure: the `Reason` for which the whole message is left as it came.
//! - Limits: linear; memory by the decoded text parts and the links that are kept.

#![warn(clippy::indexing_slicing)]

use std::collections::HashSet;
use std::ops::Range;

use super::find::{Allowed, Candidate, Flavour, Found, examine, holds_marks};
use super::gate::{self, Gate};
use super::header::Block;
use super::html::{Scan, escaped};
use super::lines::Lines;
use super::mime::{self, Kind, Part};
use super::pixel::{Pixels, is_visible_ascii};
use super::plan::{Mint, Plan};
use super::reason::Reason;
use super::report::{LinkReport, LinkWhat, Outcome, PartReport, PartWhat, Report};
use super::target::without_no_track;
use super::transfer::{Body, Edit, LineGuard};

/// Rewrites a message, or says why it is left as it came.
pub(super) fn run(message: &[u8], plan: &Plan, mint: &mut dyn Mint) -> Result<Report, Reason> {
    if message.len() > plan.max_message_bytes {
        return Err(Reason::MessageTooBig);
    }
    let lines = Lines::read(message)?;
    let block = Block::read(message, 0..message.len(), true)?;
    let Gate { opt_out, unsubscribe } = gate::ask(message, &block, plan)?;
    let mut allowed = Allowed {
        clicks: plan.clicks && opt_out.clicks != Some(false),
        text: plan.clicks && plan.text && opt_out.text != Some(false),
        opens: plan.opens && opt_out.opens != Some(false),
    };
    let parts = mime::split(message, &block, &lines, plan)?;
    if let [Part { kind: Kind::Other(reason), .. }] = parts.as_slice()
        && matches!(reason, Reason::Signed | Reason::Encrypted | Reason::Pkcs7 | Reason::Report)
    {
        return Err(*reason);
    }
    // Only now: what must pass exactly as it came does so whatever is allowed.
    let idle = if !plan.clicks && !plan.opens {
        Some(Reason::NothingAllowed)
    } else if !allowed.clicks && !allowed.text && !allowed.opens {
        Some(Reason::OptedOut)
    } else if !plan.rewrite_invitations && parts.iter().any(|part| part.kind == Kind::Other(Reason::Calendar))
    {
        Some(Reason::Invitation)
    } else {
        None
    };
    if let Some(reason) = idle {
        if !parts.iter().any(|part| holds_marks(message, part)) {
            return Ok(Report { opt_out, ..Report::unchanged(reason) });
        }
        allowed = Allowed { clicks: false, text: false, opens: false };
    }
    let mut found = Vec::with_capacity(parts.len());
    for part in &parts {
        found.push(examine(message, part, plan, allowed, &unsubscribe)?);
    }
    cover_alternatives(&mut found);
    let pixels = Pixels::of(&found, plan, allowed, mint);
    let mut report = Report::unchanged(idle.unwrap_or(Reason::NothingToRewrite));
    report.opt_out = opt_out;
    report.pixel = pixels.html.as_ref().map(|pixel| pixel.part()).map_err(|reason| *reason);
    // Links that are ours already count: a second run must not go on where the first one stopped.
    let ours = found.iter().flatten().flat_map(|part| &part.candidates);
    let ours = ours.filter(|link| link.verdict == Err(Reason::AlreadyTracked)).count();
    let budget = plan.max_links.saturating_sub(u16::try_from(ours).unwrap_or(u16::MAX));
    let mut writer =
        Writer { mint, ending: lines.ending, budget, list_links: plan.list_links, pixels, report };
    for (index, (part, found)) in parts.into_iter().zip(found).enumerate() {
        writer.part(index, part, found);
    }
    let mut report = writer.report;
    report.amp_pixel = writer.pixels.amp.map(|pixel| pixel.map(|pixel| pixel.part()));
    let mut at = block.body;
    for patch in &report.patches {
        if patch.range.start < at || patch.range.end < patch.range.start || patch.range.end > message.len() {
            return Err(Reason::Internal);
        }
        at = patch.range.end;
    }
    if !report.patches.is_empty() {
        report.outcome = Outcome::Rewritten;
    } else if report.pixel == Err(Reason::AlreadyTracked)
        || report.left_links.count(Reason::AlreadyTracked) > 0
    {
        report.outcome = Outcome::Unchanged(Reason::AlreadyTracked);
    }
    Ok(report)
}

/// A link's opt-out in the HTML covers the same URL in the text, and in AMP, whose rules forbid most of the attributes.
fn cover_alternatives(found: &mut [Result<Found<'_>, Reason>]) {
    let mut opted_out = HashSet::new();
    for part in found.iter().flatten() {
        let links = part.candidates.iter();
        let links = links.filter(|link| link.quote.is_some() && link.verdict == Err(Reason::LinkOptOut));
        opted_out.extend(links.map(|link| without_no_track(part.target(link)).into_owned()));
    }
    if opted_out.is_empty() {
        return;
    }
    for part in found.iter_mut().flatten().filter(|part| part.flavour != Flavour::Html) {
        let Found { candidates, targets, .. } = part;
        for link in candidates.iter_mut().filter(|link| link.verdict.is_ok()) {
            let target = targets.get(link.target.clone()).unwrap_or_default();
            if opted_out.contains(&*without_no_track(target)) {
                link.verdict = Err(Reason::LinkOptOut);
            }
        }
    }
}

struct Writer<'a> {
    mint: &'a mut dyn Mint,
    ending: &'static [u8],
    /// How many links may be tracked.
    budget: u16,
    list_links: bool,
    pixels: Pixels,
    report: Report,
}

impl Writer<'_> {
    fn part(&mut self, index: usize, part: Part, found: Result<Found<'_>, Reason>) {
        let what = match found {
            _ if part.kind == Kind::Container => PartWhat::Opened,
            Ok(found) => self.found(index, part.body.start, found),
            Err(reason) => PartWhat::Left(reason),
        };
        self.report.parts.push(PartReport {
            path: part.path,
            content_type: part.media,
            encoding: part.encoding,
            charset: part.charset.unwrap_or_default(),
            what,
        });
    }

    fn found(&mut self, index: usize, base: usize, found: Found<'_>) -> PartWhat {
        let Found { flavour, body, candidates, targets, more, unchanged, scan } = found;
        self.report.unlisted_links += if self.list_links { more } else { 0 };
        self.report.left_links.add(Reason::TooManyLinks, more);
        let mut others = self.others(index, scan);
        others.reverse();
        let mut edits = Edits {
            edits: Vec::with_capacity(candidates.len() + others.len()),
            guard: if let Body::Identity(text) = body { Some(LineGuard::new(text)) } else { None },
            room: (flavour == Flavour::Amp).then(|| self.pixels.amp_room(body.text().len())),
        };
        for link in candidates {
            while let Some((range, markup)) = others.pop_if(|(range, _)| range.start <= link.range.start) {
                edits.add_other(range, markup, self.ending);
            }
            let target = targets.get(link.target.clone()).unwrap_or_default();
            let (start, listed) = (link.range.start, self.list_links);
            let what = self.link(link, target, &mut edits);
            if listed {
                let offset = base + body.locate(start);
                let number = (what == LinkWhat::Tracked).then_some(self.report.tracked);
                self.list(LinkReport { part: index, offset, number, target: target.to_owned(), what });
            }
        }
        while let Some((range, markup)) = others.pop() {
            edits.add_other(range, markup, self.ending);
        }
        if edits.edits.is_empty() {
            return PartWhat::Left(unchanged);
        }
        self.report.patches.extend(body.patch(edits.edits, self.ending, base));
        PartWhat::Rewritten
    }

    /// What changes in a part beside its links, in the order of the text: pixels come, our own attributes go.
    fn others(&self, index: usize, scan: Option<Scan>) -> Vec<(Range<usize>, Vec<u8>)> {
        let Some(scan) = scan else { return Vec::new() };
        let spots = self.pixels.spots(index).map(|(spot, markup)| (spot..spot, markup.to_vec()));
        let own = scan.own_attributes.into_iter().map(|range| (range, Vec::new()));
        let mut others: Vec<_> = spots.chain(own).collect();
        others.sort_by_key(|(range, _)| range.start);
        others
    }

    fn link(&mut self, link: Candidate, target: &str, edits: &mut Edits<'_>) -> LinkWhat {
        let verdict = link.verdict.and_then(|()| {
            if self.report.tracked >= self.budget {
                return Err(Reason::TooManyLinks);
            }
            let next = self.report.tracked + 1;
            let url = self.mint.link(target, next).filter(|url| is_visible_ascii(url));
            let url = url.ok_or(Reason::NotMinted)?;
            let bytes = match link.quote {
                Some(quote) => escaped(url, quote),
                None => url.into_bytes(),
            };
            let range = link.range.start..link.mark_end;
            edits.take_room(range.len(), bytes.len())?;
            if !edits.try_add(range, bytes) {
                return Err(Reason::LineTooLong);
            }
            self.report.tracked = next;
            Ok(())
        });
        let Err(reason) = verdict else { return LinkWhat::Tracked };
        let mark = Some(link.range.end..link.mark_end).filter(|mark| !mark.is_empty());
        for range in link.strip.into_iter().chain(mark) {
            edits.try_add(range, Vec::new());
        }
        self.report.left_links.add(reason, 1);
        LinkWhat::Left(reason)
    }

    fn list(&mut self, link: LinkReport) {
        if self.report.links.len() < super::report::MAX_REPORTED_LINKS {
            self.report.links.push(link);
        } else {
            self.report.unlisted_links += 1;
        }
    }
}

/// The edits of a part, kept within the length of lines where the text is the encoding.
struct Edits<'t> {
    edits: Vec<Edit>,
    guard: Option<LineGuard<'t>>,
    /// How many bytes links may add, where the size of the part is limited.
    room: Option<usize>,
}

impl Edits<'_> {
    fn try_add(&mut self, range: Range<usize>, bytes: Vec<u8>) -> bool {
        if self.guard.as_mut().is_some_and(|guard| !guard.accept(&range, bytes.len())) {
            return false;
        }
        self.edits.push(Edit { range, bytes });
        true
    }

    /// Takes what a link adds from the room there is.
    fn take_room(&mut self, old_len: usize, new_len: usize) -> Result<(), Reason> {
        if let Some(room) = &mut self.room {
            let growth = new_len.saturating_sub(old_len);
            *room = room.checked_sub(growth).ok_or(Reason::AmpTooBig)?;
        }
        Ok(())
    }

    fn add_other(&mut self, range: Range<usize>, markup: Vec<u8>, ending: &[u8]) {
        if range.is_empty() {
            self.add_pixel(range.start, markup, ending);
        } else {
            self.try_add(range, markup);
        }
    }

    /// Adds a pixel, on a line of its own if need be: a line break is a blank to HTML.
    fn add_pixel(&mut self, spot: usize, markup: Vec<u8>, ending: &[u8]) {
        if self.guard.as_mut().is_none_or(|guard| guard.accept(&(spot..spot), markup.len())) {
            self.edits.push(Edit { range: spot..spot, bytes: markup });
        } else {
            self.add_lines(spot, [ending, &markup, ending].concat());
        }
    }

    /// Adds whole lines, which split the line they are put into.
    fn add_lines(&mut self, at: usize, bytes: Vec<u8>) {
        if let Some(guard) = &mut self.guard {
            guard.split_at(at);
        }
        self.edits.push(Edit { range: at..at, bytes });
    }
}
