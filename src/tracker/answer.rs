//! The answer to a request, complete but for the protocol.
//!
//! - Layer: decision
//! - Takes: what was decided.
//! - Gives: status, headers and body.
//! - On failure: nothing can fail.
//! - See: RFC 9110; RFC 9111 section 5.2.

use std::borrow::Cow;

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
    Home(String),
    /// 200 with the page that asks.
    Ask(String),
    /// 200 with `robots.txt`.
    Robots,
    /// 404 with a page.
    NotFound(String),
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
            Self::Pixel | Self::Home(_) | Self::Ask(_) | Self::Robots => 200,
            Self::NotFound(_) => 404,
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
            Self::WrongMethod => "wrong-method",
            Self::TooMany => "too-many",
        }
    }

    /// The headers, names in lower case, but for `location`.
    #[must_use]
    pub const fn headers(&self) -> &'static [(&'static str, &'static str)] {
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
            Self::TooMany => &[("cache-control", NEVER_STORE), ("retry-after", "10")],
            Self::Robots => &[
                ("content-type", "text/plain; charset=utf-8"),
                ("cache-control", "max-age=86400"),
                ("x-content-type-options", "nosniff"),
            ],
            Self::WrongMethod => &[
                ("content-type", "text/plain; charset=utf-8"),
                ("allow", "GET, HEAD"),
                ("x-content-type-options", "nosniff"),
            ],
        }
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
    pub fn into_body(self) -> Cow<'static, [u8]> {
        match self {
            Self::Redirect(_) | Self::TooMany => Cow::Borrowed(&[]),
            Self::Pixel => Cow::Borrowed(&PIXEL),
            Self::Home(html) | Self::Ask(html) | Self::NotFound(html) => Cow::Owned(html.into_bytes()),
            Self::Robots => Cow::Borrowed(b"User-agent: *\nDisallow: /\n"),
            Self::WrongMethod => Cow::Borrowed(b"Only GET and HEAD.\n"),
        }
    }
}
