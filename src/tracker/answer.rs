//! The answer to a request, complete but for the protocol.
//!
//! - Layer: decision
//! - Takes: what was decided.
//! - Gives: status, headers and body.
//! - On failure: nothing can fail.
//! - See: RFC 9110; RFC 9111 section 5.2.

use std::sync::Arc;

use bytes::Bytes;

use super::pages::Page;
use super::well_known::File;

/// A GIF of one transparent pixel, 43 bytes: the smallest that all mail clients show.
pub const PIXEL: [u8; 43] = [
    0x47, 0x49, 0x46, 0x38, 0x39, 0x61, // GIF89a
    0x01, 0x00, 0x01, 0x00, 0x80, 0x00, 0x00, // 1 × 1, a table of two colours
    0x00, 0x00, 0x00, 0xff, 0xff, 0xff, // black, white
    0x21, 0xf9, 0x04, 0x01, 0x00, 0x00, 0x00, 0x00, // colour 0 is transparent
    0x2c, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x01, 0x00, 0x00, // one image, as large as all
    0x02, 0x02, 0x44, 0x01, 0x00, // its one pixel: clear, colour 0, end
    0x3b, // end of file
];

const NEVER_STORE: &str = "no-store, no-cache, must-revalidate, private";
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; \
                           frame-ancestors 'none'";

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// 302 to a target, which is visible ASCII.
    Redirect(String),
    /// 200 with the image.
    Pixel,
    /// 200 with the page of the root.
    Home(Arc<Page>),
    /// 200 with the page that asks.
    Ask(Arc<Page>),
    /// 200 with `robots.txt`.
    Robots,
    /// 404 with a page.
    NotFound(Arc<Page>),
    /// 200 with a file below `/.well-known/`.
    WellKnown(Arc<File>),
    /// 304: the client has this answer already.
    NotModified(Box<Self>),
    /// 400: no host was named, or several.
    BadRequest,
    /// 405.
    WrongMethod,
    /// 429, empty.
    TooMany,
}

impl Answer {
    /// The status code.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            Self::Redirect(_) => 302,
            Self::Pixel | Self::Home(_) | Self::Ask(_) | Self::Robots | Self::WellKnown(_) => 200,
            Self::NotModified(_) => 304,
            Self::NotFound(_) => 404,
            Self::BadRequest => 400,
            Self::WrongMethod => 405,
            Self::TooMany => 429,
        }
    }

    /// The word in metrics.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Redirect(_) => "redirect",
            Self::Pixel => "pixel",
            Self::Home(_) => "home",
            Self::Ask(_) => "ask",
            Self::Robots => "robots",
            Self::NotFound(_) => "not-found",
            Self::WellKnown(_) => "well-known",
            Self::NotModified(_) => "not-modified",
            Self::BadRequest => "bad-request",
            Self::WrongMethod => "wrong-method",
            Self::TooMany => "too-many",
        }
    }

    /// The headers that never differ, names in lower case.
    #[must_use]
    pub fn headers(&self) -> &'static [(&'static str, &'static str)] {
        match self {
            // Of the page that the link stood on, a target learns the host at most.
            Self::Redirect(_) => {
                &[("cache-control", NEVER_STORE), ("referrer-policy", "strict-origin-when-cross-origin")]
            }
            Self::Pixel => &[
                ("content-type", "image/gif"),
                ("cache-control", NEVER_STORE),
                ("pragma", "no-cache"),
                ("x-content-type-options", "nosniff"),
                // Webmail and other sites show the image in their own pages.
                ("cross-origin-resource-policy", "cross-origin"),
            ],
            Self::Home(_) => &[
                ("content-type", "text/html; charset=utf-8"),
                ("cache-control", "max-age=3600"),
                ("vary", "accept-language"),
                ("referrer-policy", "no-referrer"),
                ("x-content-type-options", "nosniff"),
                ("x-frame-options", "DENY"),
                ("content-security-policy", PAGE_POLICY),
            ],
            Self::Ask(_) | Self::NotFound(_) => &[
                ("content-type", "text/html; charset=utf-8"),
                ("cache-control", NEVER_STORE),
                ("referrer-policy", "no-referrer"),
                ("x-content-type-options", "nosniff"),
                ("x-frame-options", "DENY"),
                ("x-robots-tag", "noindex"),
                ("content-security-policy", PAGE_POLICY),
            ],
            // Apps of other sites read them, too.
            Self::WellKnown(_) => &[
                ("cache-control", "max-age=300"),
                ("access-control-allow-origin", "*"),
                ("x-content-type-options", "nosniff"),
            ],
            // What tells caches how long the answer that they have is good (RFC 9110 section 15.4.5).
            Self::NotModified(answer) => match **answer {
                Self::Home(_) => &[("cache-control", "max-age=3600"), ("vary", "accept-language")],
                Self::WellKnown(_) => &[("cache-control", "max-age=300")],
                _ => &[("cache-control", "max-age=86400")],
            },
            Self::TooMany => &[("cache-control", NEVER_STORE), ("retry-after", "10")],
            Self::Robots => &[
                ("content-type", "text/plain; charset=utf-8"),
                ("cache-control", "max-age=86400"),
                ("x-content-type-options", "nosniff"),
            ],
            Self::BadRequest => {
                &[("content-type", "text/plain; charset=utf-8"), ("x-content-type-options", "nosniff")]
            }
            Self::WrongMethod => &[
                ("content-type", "text/plain; charset=utf-8"),
                ("allow", "GET, HEAD"),
                ("x-content-type-options", "nosniff"),
            ],
        }
    }

    /// What names these bytes among all answers for the path; never for a link or a pixel, which must be asked for each time.
    #[must_use]
    pub fn etag(&self) -> Option<&str> {
        match self {
            Self::Home(page) => Some(&page.etag),
            Self::WellKnown(file) => Some(&file.etag),
            Self::Robots => Some("\"robots-1\""),
            Self::NotModified(answer) => answer.etag(),
            _ => None,
        }
    }

    /// `content-type` of a file, `content-language` of a page.
    #[must_use]
    pub fn content(&self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Home(page) | Self::Ask(page) | Self::NotFound(page) => {
                Some(("content-language", page.language.as_str()))
            }
            Self::WellKnown(file) => Some(("content-type", file.content_type)),
            _ => None,
        }
    }

    /// The answer to a client that has one of these already, by `If-None-Match`.
    #[must_use]
    pub fn unless_known<'a>(self, mut if_none_match: impl Iterator<Item = &'a [u8]>) -> Self {
        let Some(etag) = self.etag().map(str::as_bytes) else { return self };
        let is = |tag: &[u8]| {
            let tag = tag.trim_ascii();
            tag == b"*" || tag.strip_prefix(b"W/").unwrap_or(tag) == etag
        };
        let known = if_none_match.any(|header| header.split(|byte| *byte == b',').any(is));
        if known { Self::NotModified(Box::new(self)) } else { self }
    }

    /// What is answered beyond a rate: a link that holds leads on, and a pixel is a pixel.
    #[must_use]
    pub fn limited(self) -> Self {
        match self {
            Self::Redirect(_) | Self::Ask(_) | Self::Pixel => self,
            _ => Self::TooMany,
        }
    }

    /// Where a redirect goes.
    #[must_use]
    pub fn location(&self) -> Option<&str> {
        match self {
            Self::Redirect(location) => Some(location),
            _ => None,
        }
    }

    /// The body; for HEAD only its length counts.
    #[must_use]
    pub fn into_body(self) -> Bytes {
        match self {
            Self::Redirect(_) | Self::TooMany | Self::NotModified(_) => Bytes::new(),
            Self::Pixel => Bytes::from_static(&PIXEL),
            Self::Home(page) | Self::Ask(page) | Self::NotFound(page) => page.html.clone(),
            Self::WellKnown(file) => file.bytes.clone(),
            Self::Robots => Bytes::from_static(b"User-agent: *\nDisallow: /\n"),
            Self::BadRequest => Bytes::from_static(b"One Host header is needed.\n"),
            Self::WrongMethod => Bytes::from_static(b"Only GET and HEAD.\n"),
        }
    }
}
