//! Splits a message into its MIME parts, by offsets.
//!
//! - Layer: decision
//! - Takes: the whole message.
//! - Gives: every part, with what it is and where its body lies; containers are opened only where their parts are what the
//!   reader sees.
//! - On failure: a `Reason` for the whole message: disorder is never guessed at.
//! - Limits: parts and depth by the plan; one pass over the bytes, then over the lines that begin with `--`.
//! - See: RFC 2046 section 5.1

#![warn(clippy::indexing_slicing)]

use std::ops::Range;

use super::header::{Block, MimeValue, slice, trim_eol};
use super::lines::Lines;
use super::plan::Plan;
use super::reason::Reason;

/// A part of the MIME tree.
#[derive(Debug)]
pub(super) struct Part {
    /// Its number, as IMAP counts.
    pub(super) path: String,
    /// Media type in lower case.
    pub(super) media: String,
    /// Transfer encoding in lower case.
    pub(super) encoding: String,
    /// Charset as labelled; `Err` when given twice or in an extended form.
    pub(super) charset: Result<Option<String>, ()>,
    /// `delsp=yes`, of `format=flowed`.
    pub(super) delsp: bool,
    /// Where its encoded body lies.
    pub(super) body: Range<usize>,
    /// What it is to the rewriter.
    pub(super) kind: Kind,
}

/// What a part is to the rewriter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// HTML that the reader sees.
    Html,
    /// Plain text that the reader sees.
    Plain,
    /// AMP HTML that the reader sees instead of the HTML.
    Amp,
    /// A multipart whose parts follow.
    Container,
    /// Something that is not touched.
    Other(Reason),
}

/// Splits a message whose header block has been read.
pub(super) fn split(message: &[u8], block: &Block, lines: &Lines, plan: &Plan) -> Result<Vec<Part>, Reason> {
    let mut walk = Walk { message, lines, plan, parts: Vec::new(), count: 0 };
    walk.entity(block, block.body..message.len(), Place { path: "", depth: 0, seen: true })?;
    Ok(walk.parts)
}

struct Walk<'a> {
    message: &'a [u8],
    lines: &'a Lines,
    plan: &'a Plan,
    parts: Vec<Part>,
    count: usize,
}

/// Where in the tree an entity stands.
#[derive(Clone, Copy)]
struct Place<'p> {
    path: &'p str,
    depth: usize,
    /// The reader sees it as (part of) the body.
    seen: bool,
}

impl Walk<'_> {
    fn entity(&mut self, block: &Block, body: Range<usize>, place: Place<'_>) -> Result<(), Reason> {
        self.count += 1;
        if self.count > self.plan.max_parts {
            return Err(Reason::TooManyParts);
        }
        let content_type = match block.single(self.message, b"content-type")? {
            Some(raw) => MimeValue::read(raw).ok_or(Reason::BadHeader)?,
            None => MimeValue::default(),
        };
        let media = match content_type.main.as_str() {
            "" => "text/plain",
            media => media,
        };
        let encoding = match block.single(self.message, b"content-transfer-encoding")? {
            Some(raw) => MimeValue::read(raw).ok_or(Reason::BadHeader)?.main,
            None => String::new(),
        };
        let disposition = match block.single(self.message, b"content-disposition")? {
            Some(raw) => MimeValue::read(raw),
            None => Some(MimeValue::default()),
        };
        let attached = disposition.is_none_or(|value| {
            !matches!(value.main.as_str(), "" | "inline") || value.has("filename") || value.has("name")
        }) || content_type.has("name");

        if !attached
            && place.seen
            && matches!(media, "multipart/mixed" | "multipart/alternative" | "multipart/related")
        {
            if !matches!(encoding.as_str(), "" | "7bit" | "8bit" | "binary") {
                return Err(Reason::BadMultipartEncoding);
            }
            self.parts.push(Part {
                path: place.path.to_owned(),
                media: media.to_owned(),
                encoding,
                charset: Ok(None),
                delsp: false,
                body: body.clone(),
                kind: Kind::Container,
            });
            return self.container(media, &content_type, body, place);
        }
        // An invitation is one whatever its part is called: mail programs show it as such.
        let method = content_type.parameter("method").ok().flatten().unwrap_or_default();
        let invites =
            media == "text/calendar" && !method.is_empty() && !method.eq_ignore_ascii_case(b"publish");
        let kind = kind_of(media, attached && !invites, place.seen);
        let charset = content_type.parameter("charset");
        self.parts.push(Part {
            path: if place.path.is_empty() { "1".to_owned() } else { place.path.to_owned() },
            kind,
            encoding,
            charset: charset.map(|charset| charset.map(|label| String::from_utf8_lossy(label).into_owned())),
            delsp: content_type
                .parameter("delsp")
                .is_ok_and(|value| value.is_some_and(|value| value.eq_ignore_ascii_case(b"yes"))),
            media: media.to_owned(),
            body,
        });
        Ok(())
    }

    /// Opens a multipart.
    fn container(
        &mut self,
        media: &str,
        value: &MimeValue,
        body: Range<usize>,
        at: Place<'_>,
    ) -> Result<(), Reason> {
        if at.depth >= self.plan.max_depth {
            return Err(Reason::TooDeep);
        }
        let boundary = value.parameter("boundary").map_err(|()| Reason::BadBoundary)?;
        let boundary = boundary.filter(|boundary| !boundary.is_empty()).ok_or(Reason::BadBoundary)?;
        let root = value.parameter("start").map_err(|()| Reason::BadHeader)?;
        let related = media == "multipart/related";
        for (index, range) in self.sections(boundary, body)?.into_iter().enumerate() {
            let block = Block::read(self.message, range.clone(), false)?;
            let body = block.body.min(range.end)..range.end;
            let path = if at.path.is_empty() {
                (index + 1).to_string()
            } else {
                format!("{}.{}", at.path, index + 1)
            };
            let is_root = index == 0
                && root.is_none_or(|root| {
                    block
                        .all(self.message, b"content-id")
                        .next()
                        .is_some_and(|id| id.trim_ascii() == root.trim_ascii())
                });
            let seen = !related || is_root;
            self.entity(&block, body, Place { path: &path, depth: at.depth + 1, seen })?;
        }
        Ok(())
    }

    /// The parts between the delimiters of a boundary.
    fn sections(&self, boundary: &[u8], body: Range<usize>) -> Result<Vec<Range<usize>>, Reason> {
        let mut sections = Vec::new();
        let mut open: Option<usize> = None;
        let mut closed = false;
        for line in self.lines.dashed(&body) {
            let end = line.end.min(body.end);
            let text = trim_eol(slice(self.message, &(line.start..end)));
            let Some(rest) = text.strip_prefix(b"--").and_then(|rest| rest.strip_prefix(boundary)) else {
                continue;
            };
            let rest = rest.trim_ascii_end();
            if !matches!(rest, b"" | b"--") {
                continue;
            }
            if closed {
                return Err(Reason::BadBoundary);
            }
            if let Some(start) = open {
                let before = slice(self.message, &(start..line.start));
                sections.push(start..start + trim_eol(before).len());
                if sections.len() > self.plan.max_parts {
                    return Err(Reason::TooManyParts);
                }
            }
            open = Some(end);
            closed = !rest.is_empty();
        }
        if closed && !sections.is_empty() { Ok(sections) } else { Err(Reason::BadBoundary) }
    }
}

fn kind_of(media: &str, attached: bool, seen: bool) -> Kind {
    let reason = match media {
        "multipart/signed" => Reason::Signed,
        "multipart/encrypted" => Reason::Encrypted,
        "application/pkcs7-mime" | "application/x-pkcs7-mime" => Reason::Pkcs7,
        "application/pgp-encrypted" => Reason::Encrypted,
        "multipart/report" => Reason::Report,
        "message/rfc822" | "message/global" => Reason::NestedMessage,
        _ if attached => Reason::Attachment,
        "text/calendar" => Reason::Calendar,
        _ if !seen => Reason::NotABody,
        "text/html" => return Kind::Html,
        "text/plain" => return Kind::Plain,
        "text/x-amp-html" => return Kind::Amp,
        _ if media.starts_with("multipart/") => Reason::UnknownMultipart,
        _ => Reason::NotText,
    };
    Kind::Other(reason)
}
