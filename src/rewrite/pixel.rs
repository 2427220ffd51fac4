//! Where pixels go, and their markup: one in the HTML, one in its AMP alternative.
//!
//! - Layer: decision
//! - Takes: the examined parts, the plan, what is allowed, the mint.
//! - Gives: for HTML and for AMP the part, or why there is none. Both have one URL: a reader sees one alternative.
//! - On failure: a `Reason` for each kind of part by itself.
//! - Limits: markup of at most one line.
//! - See: AMP for Email Format (amp.dev), "The entire AMPHTML markup must not exceed 200,000 bytes";
//!   images are `amp-img`, with width and height, over https

#![warn(clippy::indexing_slicing)]

use super::find::{Allowed, Flavour, Found};
use super::html::{Quote, escaped};
use super::lines::MAX_LINE_BYTES;
use super::plan::{Mint, Plan};
use super::reason::Reason;

/// The pixel of an AMP part. No template: AMP allows little else.
const AMP_PIXEL: &str = "<amp-img src=\"{url}\" width=\"1\" height=\"1\" alt=\"\"></amp-img>";

/// Gmail and others don't show an AMP part of more bytes.
const MAX_AMP_BYTES: usize = 200_000;

/// Most bytes of line endings around a pixel.
const ENDINGS_BYTES: usize = 4;

/// A pixel and the part it goes into.
#[derive(Debug)]
pub(super) struct Pixel {
    /// The part, as an index.
    pub(super) part: usize,
    pub(super) markup: Vec<u8>,
}

/// The pixels of a message.
#[derive(Debug)]
pub(super) struct Pixels {
    pub(super) html: Result<Pixel, Reason>,
    /// `None` when the message has no AMP part.
    pub(super) amp: Option<Result<Pixel, Reason>>,
}

impl Pixels {
    pub(super) fn of(
        found: &[Result<Found<'_>, Reason>],
        plan: &Plan,
        allowed: Allowed,
        mint: &mut dyn Mint,
    ) -> Self {
        let mut url: Option<Option<String>> = None;
        let mut minted =
            || url.get_or_insert_with(|| mint.pixel().filter(|url| is_visible_ascii(url))).clone();
        let html = pixel(found, plan, allowed, Flavour::Html, &mut minted);
        let has_amp = found.iter().flatten().any(|part| part.flavour == Flavour::Amp);
        let amp = has_amp.then(|| pixel(found, plan, allowed, Flavour::Amp, &mut minted));
        Self { html, amp }
    }

    /// How many bytes links may add to an AMP part, beside its pixel.
    pub(super) fn amp_room(&self, text_bytes: usize) -> usize {
        let pixel = self.amp.iter().flatten().map(|pixel| pixel.markup.len() + ENDINGS_BYTES).next();
        MAX_AMP_BYTES.saturating_sub(text_bytes + pixel.unwrap_or_default())
    }

    /// The pixel of a part.
    pub(super) fn markup(&self, part: usize) -> Option<&[u8]> {
        let amp = self.amp.iter().flatten();
        let mut all = self.html.iter().chain(amp);
        all.find(|pixel| pixel.part == part).map(|pixel| pixel.markup.as_slice())
    }
}

fn pixel(
    found: &[Result<Found<'_>, Reason>],
    plan: &Plan,
    allowed: Allowed,
    flavour: Flavour,
    minted: &mut dyn FnMut() -> Option<String>,
) -> Result<Pixel, Reason> {
    if !allowed.opens {
        return Err(Reason::OpensOff);
    }
    if found.iter().flatten().any(|part| part.scan.as_ref().is_some_and(|scan| scan.own_pixel)) {
        return Err(Reason::AlreadyTracked);
    }
    let parts = || {
        let parts = found.iter().enumerate().filter_map(|(index, part)| Some((index, part.as_ref().ok()?)));
        parts.filter(|(_, part)| part.flavour == flavour)
    };
    if parts().next().is_none() {
        return Err(Reason::NothingToRewrite);
    }
    let ended = |part: &Found<'_>| part.scan.as_ref().is_some_and(|scan| scan.end.is_some());
    let (index, part) = parts().rfind(|(_, part)| ended(part)).ok_or(Reason::UnclosedMarkup)?;
    let template = if flavour == Flavour::Amp { AMP_PIXEL } else { plan.pixel_template.as_str() };
    if !template.contains("{url}") || !template.bytes().all(|b| matches!(b, b' '..=b'~')) {
        return Err(Reason::BadPixelTemplate);
    }
    let url = minted().ok_or(Reason::NotMinted)?;
    let url = escaped(url, Quote::Double);
    let markup = template.replace("{url}", &String::from_utf8_lossy(&url)).into_bytes();
    if markup.len() > MAX_LINE_BYTES {
        return Err(Reason::LineTooLong);
    }
    if flavour == Flavour::Amp && part.body.text().len() + markup.len() + ENDINGS_BYTES > MAX_AMP_BYTES {
        return Err(Reason::AmpTooBig);
    }
    Ok(Pixel { part: index, markup })
}

pub(super) fn is_visible_ascii(url: &str) -> bool {
    !url.is_empty() && url.bytes().fold(true, |good, byte| good & byte.is_ascii_graphic())
}
