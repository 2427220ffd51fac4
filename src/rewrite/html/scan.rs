//! One pass over HTML: tags, comments and raw text, as WHATWG's tokeniser sees them.
//!
//! - Layer: decision
//! - Takes: decoded HTML without NUL, and what to look for.
//! - Gives: anchors in the order of the text, our own attributes to take out, and places for a pixel.
//! - On failure: `Reason::AmbiguousHtml` for markup in raw text within SVG or MathML, CDATA, scripts within scripts.
//! - Limits: linear; memory by the number of links, which is capped.
//! - See: WHATWG HTML 13.2.5; conditional comments of Outlook

#![warn(clippy::indexing_slicing)]

use std::ops::Range;

use memchr::{memchr, memmem};

use super::tag::{Attribute, Quote, TagEnd, attributes, is_space, name_end, skip};
use crate::rewrite::optout;
use crate::rewrite::plan::Plan;
use crate::rewrite::reason::Reason;
use crate::rewrite::report::MAX_REPORTED_LINKS;

/// A link: an `a` or `area` with an `href`, or VML in a conditional comment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::rewrite) struct Anchor {
    /// The value of `href`, without quotes.
    pub(in crate::rewrite) value: Range<usize>,
    pub(in crate::rewrite) quote: Quote,
    /// An attribute opts out.
    pub(in crate::rewrite) opt_out: bool,
    /// What stands between the tag and its end tag.
    pub(in crate::rewrite) content: Range<usize>,
}

/// What was found.
#[derive(Debug, Default)]
pub(in crate::rewrite) struct Scan {
    pub(in crate::rewrite) anchors: Vec<Anchor>,
    /// Links beyond those kept.
    pub(in crate::rewrite) more_anchors: usize,
    /// Attributes of ours, which nobody needs to see, with the blank before them.
    pub(in crate::rewrite) own_attributes: Vec<Range<usize>>,
    /// Whether there is any tag at all.
    pub(in crate::rewrite) has_markup: bool,
    /// Whether an image is already ours.
    pub(in crate::rewrite) own_pixel: bool,
    /// After the first `<body>` tag, else before whatever begins the body without one.
    pub(in crate::rewrite) body_start: Option<usize>,
    /// Before the last `</body>`, else before the last `</html>`, else behind the last character that is no blank;
    /// `None` when that would be within a tag, comment or raw text.
    pub(in crate::rewrite) end: Option<usize>,
}

/// Scans an HTML part.
pub(in crate::rewrite) fn scan(html: &[u8], plan: &Plan) -> Result<Scan, Reason> {
    let mut scanner = Scanner {
        html,
        plan,
        found: Scan::default(),
        open: None,
        content_start: None,
        body_end: None,
        html_end: None,
        foreign: Foreign::default(),
        conditional: false,
    };
    let closed = scanner.run(0)?;
    let mut found = scanner.found;
    found.body_start = found.body_start.or(scanner.content_start);
    found.end = scanner.body_end.or(scanner.html_end).or_else(|| closed.then(|| html.trim_ascii_end().len()));
    Ok(found)
}

struct Scanner<'a> {
    /// The text; within a conditional comment, up to its end.
    html: &'a [u8],
    plan: &'a Plan,
    found: Scan,
    /// The anchor whose end tag has not come yet.
    open: Option<usize>,
    /// Where the first thing is that cannot stand before the body.
    content_start: Option<usize>,
    body_end: Option<usize>,
    html_end: Option<usize>,
    foreign: Foreign,
    conditional: bool,
}

/// How many SVG and MathML elements may be open; never fewer than are. Apart, because an end tag of the one does not close
/// the other.
#[derive(Debug, Clone, Copy, Default)]
struct Foreign {
    svg: u32,
    math: u32,
    /// HTML may be open within them: from then on only a document would show what an end tag closes.
    html_within: bool,
}

impl Foreign {
    const fn is_open(self) -> bool {
        self.svg > 0 || self.math > 0
    }

    /// What a start tag means for them: most of HTML ends SVG and MathML that somebody forgot to close.
    fn start(&mut self, name: &[u8]) {
        if !self.is_open() {
            return;
        }
        let among = |names: &[&str]| names.iter().any(|word| name.eq_ignore_ascii_case(word.as_bytes()));
        if among(INTEGRATION_POINTS) {
            self.html_within = true;
        } else if !self.html_within && among(BREAKOUT) {
            *self = Self::default();
        }
    }

    fn end_svg(&mut self) {
        self.svg = self.svg.saturating_sub(u32::from(!self.html_within));
    }

    fn end_math(&mut self) {
        self.math = self.math.saturating_sub(u32::from(!self.html_within));
    }
}

/// Elements of SVG and MathML that hold HTML.
const INTEGRATION_POINTS: &[&str] =
    &["foreignobject", "desc", "annotation-xml", "mi", "mo", "mn", "ms", "mtext"];

/// Start tags that end SVG and MathML (WHATWG HTML 13.2.6.5).
const BREAKOUT: &[&str] = &[
    "b",
    "big",
    "blockquote",
    "body",
    "br",
    "center",
    "code",
    "dd",
    "div",
    "dl",
    "dt",
    "em",
    "embed",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "head",
    "hr",
    "i",
    "img",
    "li",
    "listing",
    "menu",
    "meta",
    "nobr",
    "ol",
    "p",
    "pre",
    "ruby",
    "s",
    "small",
    "span",
    "strong",
    "strike",
    "sub",
    "sup",
    "table",
    "tt",
    "u",
    "ul",
    "var",
];

/// Start tags that may stand before the body.
const HEAD: &[&str] = &[
    "html", "head", "title", "meta", "link", "base", "basefont", "bgsound", "style", "script", "template",
    "noscript", "noframes", "body",
];

impl Scanner<'_> {
    /// Goes on from an offset to the end; says whether the text ends outside of any markup.
    fn run(&mut self, mut at: usize) -> Result<bool, Reason> {
        let html = self.html;
        while let Some(found) = memchr(b'<', html.get(at..).unwrap_or_default()) {
            let open = at + found;
            if self.content_start.is_none() {
                self.begin_content(at, open);
            }
            let next = match html.get(open + 1) {
                Some(byte) if byte.is_ascii_alphabetic() => self.start_tag(open)?,
                Some(b'/') => match html.get(open + 2) {
                    Some(byte) if byte.is_ascii_alphabetic() => self.end_tag(open),
                    Some(_) => after_mark(html, open + 2),
                    // Whatever were put behind it would become a comment.
                    None => None,
                },
                Some(b'!') => self.declaration(open)?,
                Some(b'?') => after_mark(html, open + 2),
                _ => Some(open + 1),
            };
            match next {
                Some(next) => at = next,
                None => return Ok(false),
            }
        }
        if self.content_start.is_none() {
            self.begin_content(at, html.len());
        }
        Ok(true)
    }

    /// Whether the body begins with the text before a tag, or with the tag.
    fn begin_content(&mut self, text: usize, tag: usize) {
        if self.conditional {
            return;
        }
        // A byte order mark is no text.
        let text = if self.html.get(text..).is_some_and(|rest| text == 0 && rest.starts_with(b"\xEF\xBB\xBF"))
        {
            text + 3
        } else {
            text
        };
        if !self.html.get(text..tag).unwrap_or_default().trim_ascii().is_empty() {
            self.content_start = Some(text);
            return;
        }
        let rest = self.html.get(tag + 1..).unwrap_or_default();
        let name = rest.get(..name_len(rest)).unwrap_or_default();
        let stays_out = match rest.first() {
            Some(b'/' | b'!' | b'?') | None => true,
            Some(_) => HEAD.iter().any(|word| name.eq_ignore_ascii_case(word.as_bytes())),
        };
        if !stays_out {
            self.content_start = Some(tag);
        }
    }

    /// A start tag; `None` when the text ends within it, or within the raw text that it begins.
    fn start_tag(&mut self, open: usize) -> Result<Option<usize>, Reason> {
        let html = self.html;
        let Some(end) = name_end(html, open + 1) else { return Ok(None) };
        let name = html.get(open + 1..end).unwrap_or_default();
        let element = Element::of(name, self.conditional);
        if element == Element::Other {
            let after = skip(html, end);
            self.found.has_markup |= after.is_some();
            self.foreign.start(name);
            return Ok(after);
        }
        let tag = match element {
            Element::Anchor | Element::Area => self.anchor(end, element == Element::Anchor),
            Element::Image => self.image(end),
            _ => attributes(html, end, |_| {}),
        };
        let Some(tag) = tag else { return Ok(None) };
        self.found.has_markup = true;
        self.foreign.start(name);
        match element {
            Element::Body if !self.conditional => {
                self.found.body_start.get_or_insert(tag.after);
            }
            Element::Svg if !tag.self_closing => self.foreign.svg += 1,
            Element::Math if !tag.self_closing => self.foreign.math += 1,
            Element::RawText if self.foreign.is_open() => return self.text_in_foreign(name, tag.after),
            Element::Plaintext if self.foreign.is_open() => return Err(Reason::AmbiguousHtml),
            Element::Plaintext => return Ok(None),
            Element::RawText => return self.raw_text(name, tag.after),
            _ => {}
        }
        Ok(Some(tag.after))
    }

    fn anchor(&mut self, at: usize, has_content: bool) -> Option<TagEnd> {
        let mut href = None;
        let mut opt_out = false;
        let html = self.html;
        let own = &mut self.found.own_attributes;
        let tag = attributes(html, at, |attribute| {
            if attribute.name.eq_ignore_ascii_case(b"href") {
                href.get_or_insert((attribute.value, attribute.quote));
                return;
            }
            let value = html.get(attribute.value.clone()).unwrap_or_default();
            opt_out = opt_out || optout::attribute(attribute.name, value);
            if optout::is_own_attribute(attribute.name) && own.len() < MAX_REPORTED_LINKS {
                own.push(with_blanks(html, &attribute));
            }
        })?;
        if has_content {
            self.close_anchor(at.saturating_sub(2));
        }
        let Some((value, mut quote)) = href else { return Some(tag) };
        if self.conditional && quote == Quote::None {
            quote = Quote::Wanted;
        }
        if self.found.anchors.len() >= MAX_REPORTED_LINKS {
            self.found.more_anchors += 1;
            return Some(tag);
        }
        if has_content {
            self.open = Some(self.found.anchors.len());
        }
        let content = tag.after..tag.after;
        self.found.anchors.push(Anchor { value, quote, opt_out, content });
        Some(tag)
    }

    fn close_anchor(&mut self, at: usize) {
        if let Some(anchor) = self.open.take().and_then(|index| self.found.anchors.get_mut(index)) {
            anchor.content.end = at.max(anchor.content.start);
        }
    }

    fn image(&mut self, at: usize) -> Option<TagEnd> {
        let mut source = None;
        let tag = attributes(self.html, at, |attribute| {
            if attribute.name.eq_ignore_ascii_case(b"src") {
                source.get_or_insert(attribute.value);
            }
        })?;
        let url = source.and_then(|range| self.html.get(range)).unwrap_or_default().trim_ascii_start();
        self.found.own_pixel = self.found.own_pixel || is_own(&self.plan.own_prefixes, url);
        Some(tag)
    }

    fn end_tag(&mut self, open: usize) -> Option<usize> {
        let end = name_end(self.html, open + 2)?;
        let name = self.html.get(open + 2..end).unwrap_or_default();
        let after = skip(self.html, end)?;
        self.found.has_markup = true;
        match Element::of(name, self.conditional) {
            Element::Anchor => self.close_anchor(open),
            Element::Svg => self.foreign.end_svg(),
            Element::Math => self.foreign.end_math(),
            Element::Body if !self.conditional => self.body_end = Some(open),
            Element::Html if !self.conditional => self.html_end = Some(open),
            _ => {}
        }
        Some(after)
    }

    /// `<!`: a comment, or something that is treated as one.
    fn declaration(&mut self, open: usize) -> Result<Option<usize>, Reason> {
        let html = self.html;
        let rest = html.get(open + 2..).unwrap_or_default();
        if !rest.starts_with(b"--") {
            if rest.starts_with(b"[CDATA[") && self.foreign.is_open() {
                return Err(Reason::AmbiguousHtml);
            }
            return Ok(after_mark(html, open + 2));
        }
        let start = open + 4;
        let mut at = start;
        while let Some(mark) = memchr(b'>', html.get(at..).unwrap_or_default()) {
            let content = html.get(start..at + mark).unwrap_or_default();
            at += mark + 1;
            if matches!(content, b"" | b"-") {
                return Ok(Some(at));
            }
            if content.ends_with(b"--") || content.ends_with(b"--!") {
                self.comment(start..start + content.len())?;
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    /// A conditional comment of Outlook holds markup that Outlook shows.
    fn comment(&mut self, range: Range<usize>) -> Result<(), Reason> {
        let html = self.html;
        let content = html.get(range.clone()).unwrap_or_default();
        if self.conditional
            || !self.plan.conditional_comments
            || !content.trim_ascii_start().starts_with(b"[if")
        {
            return Ok(());
        }
        let Some(start) = memmem::find(content, b"]>") else { return Ok(()) };
        let Some(end) = memmem::rfind(content, b"<![endif]") else { return Ok(()) };
        let (open, foreign) = (self.open.take(), std::mem::take(&mut self.foreign));
        let kept = (self.found.anchors.len(), self.found.own_attributes.len());
        self.html = html.get(..range.start + end).unwrap_or_default();
        self.conditional = true;
        let result = self.run(range.start + start + 2);
        self.close_anchor(range.start + end);
        self.html = html;
        self.conditional = false;
        (self.open, self.foreign) = (open, foreign);
        if result.is_err() {
            self.found.anchors.truncate(kept.0);
            self.found.own_attributes.truncate(kept.1);
        }
        Ok(())
    }

    /// What is raw text to HTML and markup to SVG: text to both, if no tag is in it.
    fn text_in_foreign(&mut self, name: &[u8], start: usize) -> Result<Option<usize>, Reason> {
        let end = self.raw_text(name, start)?;
        let text = self.html.get(start..end.unwrap_or(self.html.len())).unwrap_or_default();
        if memchr(b'<', text).is_some() { Err(Reason::AmbiguousHtml) } else { Ok(end) }
    }

    /// Skips raw text up to its end tag, which is left to be read as a tag.
    fn raw_text(&mut self, name: &[u8], start: usize) -> Result<Option<usize>, Reason> {
        let html = self.html;
        let mut at = start;
        while let Some(found) = memmem::find(html.get(at..).unwrap_or_default(), b"</") {
            let open = at + found;
            at = open + 2;
            let rest = html.get(at..).unwrap_or_default();
            let is_name = rest.get(..name.len()).is_some_and(|word| word.eq_ignore_ascii_case(name));
            if is_name && rest.get(name.len()).is_some_and(|&b| is_space(b) || b == b'/' || b == b'>') {
                let script = html.get(start..open).unwrap_or_default();
                let doubtful = name.eq_ignore_ascii_case(b"script")
                    && memmem::find(script, b"<!--").is_some_and(|comment| {
                        let inner = script.get(comment..).unwrap_or_default();
                        inner.windows(7).any(|word| word.eq_ignore_ascii_case(b"<script"))
                    });
                return if doubtful { Err(Reason::AmbiguousHtml) } else { Ok(Some(open)) };
            }
        }
        Ok(None)
    }
}

/// How many bytes of a tag's name tell whether it is one of `HEAD`.
fn name_len(rest: &[u8]) -> usize {
    rest.iter().take(12).take_while(|b| b.is_ascii_alphanumeric()).count()
}

/// An attribute with the blanks before it, as far as nothing grows together without them.
fn with_blanks(html: &[u8], attribute: &Attribute<'_>) -> Range<usize> {
    let Range { start, end } = attribute.range();
    if !html.get(end).is_some_and(|&b| is_space(b) || b == b'>') {
        return start..end;
    }
    let before = html.get(..start).unwrap_or_default();
    let blanks = before.iter().rev().take_while(|b| matches!(b, b' ' | b'\t')).count();
    start - blanks..end
}

/// The offset after the next `>`.
fn after_mark(html: &[u8], at: usize) -> Option<usize> {
    memchr(b'>', html.get(at..).unwrap_or_default()).map(|found| at + found + 1)
}

/// Whether a URL begins with one of our own base URLs, and does not merely begin alike.
pub(in crate::rewrite) fn is_own(prefixes: &[String], url: &[u8]) -> bool {
    prefixes.iter().any(|prefix| {
        let prefix = prefix.as_bytes();
        url.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
            && (prefix.ends_with(b"/")
                || matches!(url.get(prefix.len()), None | Some(b'/' | b'?' | b'#' | b':')))
    })
}

/// The elements that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    Anchor,
    Area,
    Image,
    Body,
    Html,
    /// With rules of its own.
    Svg,
    /// With rules of its own.
    Math,
    /// Elements whose content is text up to their end tag. Scripting is off in mail, so `noscript` is not among them.
    RawText,
    /// All that follows is text.
    Plaintext,
    Other,
}

impl Element {
    fn of(name: &[u8], conditional: bool) -> Self {
        let is = |word: &[u8]| name.eq_ignore_ascii_case(word);
        match name.len() {
            1 if is(b"a") => Self::Anchor,
            3 if is(b"img") => Self::Image,
            3 if is(b"svg") => Self::Svg,
            3 if is(b"xmp") => Self::RawText,
            4 if is(b"area") => Self::Area,
            4 if is(b"body") => Self::Body,
            4 if is(b"html") => Self::Html,
            4 if is(b"math") => Self::Math,
            5 if is(b"style") || is(b"title") => Self::RawText,
            6 if is(b"script") || is(b"iframe") => Self::RawText,
            7 if is(b"amp-img") => Self::Image,
            7 if is(b"noembed") => Self::RawText,
            8 if is(b"textarea") || is(b"noframes") => Self::RawText,
            9 if is(b"plaintext") => Self::Plaintext,
            _ if conditional && name.get(..2).is_some_and(|start| start.eq_ignore_ascii_case(b"v:")) => {
                Self::Area
            }
            _ => Self::Other,
        }
    }
}
