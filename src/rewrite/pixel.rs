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

use memchr::memmem;

use super::find::{Allowed, Flavour, Found};
use super::html::{Quote, Scan, escaped, quoted_values};
use super::lines::MAX_LINE_BYTES;
use super::plan::{Mint, PatternError, PixelAt, Plan};
use super::reason::Reason;

/// The pixel of an AMP part. No template: AMP allows little else.
const AMP_PIXEL: &str = "<amp-img src=\"{url}\" width=\"1\" height=\"1\" alt=\"\"></amp-img>";

/// Gmail and others don't show an AMP part of more bytes.
const MAX_AMP_BYTES: usize = 200_000;

/// Stands for the URL in a template.
const URL_MARK: &str = "{url}";

/// Longest template.
const MAX_TEMPLATE_BYTES: usize = 600;

/// Most bytes of line endings around a pixel.
const ENDINGS_BYTES: usize = 4;

/// A pixel and where it goes.
#[derive(Debug)]
pub(super) struct Pixel {
    /// Parts, as indices, and offsets within their texts: one, or two in the order of the message.
    spots: Vec<(usize, usize)>,
    markup: Vec<u8>,
}

impl Pixel {
    /// The part it goes into, or the last one.
    pub(super) fn part(&self) -> usize {
        self.spots.last().map_or(0, |(part, _)| *part)
    }
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

    /// Where in a part what pixel goes.
    pub(super) fn spots(&self, part: usize) -> impl Iterator<Item = (usize, &[u8])> {
        let all = self.html.iter().chain(self.amp.iter().flatten());
        all.flat_map(move |pixel| {
            let here = pixel.spots.iter().filter(move |(own, _)| *own == part);
            here.map(|(_, spot)| (*spot, pixel.markup.as_slice()))
        })
    }
}

/// Whether a pixel can be made of a template: `{url}` within the quotes of attributes, on one line of ASCII that leaves room for
/// the URL.
///
/// # Errors
/// What is wrong with it.
pub fn check_pixel(template: &str) -> Result<(), PatternError> {
    let error = |why| Err(PatternError { what: "pixel", why });
    if !template.contains(URL_MARK) {
        return error("must contain {url}, where the pixel's address goes");
    }
    if !template.bytes().all(|b| matches!(b, b' '..=b'~')) {
        return error("must be one line of ASCII");
    }
    if template.len() > MAX_TEMPLATE_BYTES {
        return error("must not be longer than 600 bytes: with its address it has to fit on a line of 998");
    }
    if !is_quoted(template.as_bytes()) {
        return error("must have {url} within the quotes of an attribute, as in src=\"{url}\"");
    }
    Ok(())
}

/// Whether every `{url}` is within a quoted attribute of a tag.
fn is_quoted(template: &[u8]) -> bool {
    let marks = |text: &[u8]| memmem::find_iter(text, URL_MARK.as_bytes()).count();
    quoted_values(template).map(marks).sum::<usize>() == marks(template)
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
    // AMP is shown whole or not at all: there is no clipped message to think of.
    let at = if flavour == Flavour::Amp { PixelAt::End } else { plan.pixel_at };
    let spot = |of: fn(&Scan) -> Option<usize>| {
        move |(index, part): (usize, &Found<'_>)| Some((index, part.scan.as_ref().and_then(of)?))
    };
    let end = || parts().rev().find_map(spot(|scan| scan.end));
    let top = || parts().find_map(spot(|scan| scan.body_start)).or_else(end);
    let spots = match at {
        PixelAt::End => vec![end()],
        PixelAt::Top => vec![top()],
        PixelAt::Both => vec![top(), end()],
    };
    let mut spots: Vec<_> = spots.into_iter().flatten().collect();
    spots.dedup();
    let Some(&(index, _)) = spots.last() else { return Err(Reason::UnclosedMarkup) };
    let template = if flavour == Flavour::Amp { AMP_PIXEL } else { plan.pixel_template.as_str() };
    check_pixel(template).map_err(|_| Reason::BadPixelTemplate)?;
    let url = minted().ok_or(Reason::NotMinted)?;
    let url = escaped(url, Quote::Double);
    let markup = template.replace(URL_MARK, &String::from_utf8_lossy(&url)).into_bytes();
    if markup.len() > MAX_LINE_BYTES {
        return Err(Reason::LineTooLong);
    }
    let text_bytes =
        found.get(index).and_then(|part| part.as_ref().ok()).map_or(0, |part| part.body.text().len());
    if flavour == Flavour::Amp && text_bytes + markup.len() + ENDINGS_BYTES > MAX_AMP_BYTES {
        return Err(Reason::AmpTooBig);
    }
    Ok(Pixel { spots, markup })
}

pub(super) fn is_visible_ascii(url: &str) -> bool {
    !url.is_empty() && url.bytes().fold(true, |good, byte| good & byte.is_ascii_graphic())
}
