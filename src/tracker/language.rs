//! The languages of the pages, and which of them a visitor asks for.
//!
//! - Layer: decision
//! - Takes: `Accept-Language`, and the languages that the site offers.
//! - Gives: one of these.
//! - On failure: what can't be read asks for nothing; the first one offered is the answer.
//! - Limits: 32 entries of the header are looked at.
//! - See: RFC 9110 section 12.5.4, RFC 4647 section 3.4.
#![warn(clippy::indexing_slicing)]

const MAX_ENTRIES: usize = 32;

/// A language that the pages are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// English.
    En,
    /// Polish.
    Pl,
    /// German.
    De,
}

impl Language {
    /// All that there are.
    pub const ALL: [Self; 3] = [Self::En, Self::Pl, Self::De];

    /// Its tag.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::En => "en",
            Self::Pl => "pl",
            Self::De => "de",
        }
    }
}

/// The place in `offered` of the language that the visitor likes best; the first of equals, and 0 when there is none.
#[must_use]
pub fn preferred(accept: Option<&[u8]>, offered: &[Language]) -> usize {
    let header = accept.and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default();
    let mut best = (0, 0);
    for (number, language) in offered.iter().enumerate() {
        let quality = quality(header, *language);
        if quality > best.0 {
            best = (quality, number);
        }
    }
    best.1
}

/// How much a language is liked, in thousandths: what names it counts before `*`.
fn quality(header: &str, language: Language) -> u16 {
    let mut any = 0;
    let mut named = None;
    for entry in header.split(',').take(MAX_ENTRIES) {
        let mut parts = entry.split(';').map(str::trim);
        let tag = parts.next().unwrap_or_default();
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let Some(weight) = weight.map_or(Some(1_000), thousandths) else { continue };
        if tag == "*" {
            any = weight;
        } else if tag.split('-').next().is_some_and(|primary| primary.eq_ignore_ascii_case(language.as_str()))
        {
            named = named.max(Some(weight));
        }
    }
    named.unwrap_or(any)
}

/// `0.8` as 800.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let fraction: u16 = format!("{fraction:0<3}").parse().ok()?;
    match whole {
        "0" => Some(fraction),
        "1" if fraction == 0 => Some(1_000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_language_liked_best_is_taken() {
        let ask =
            |header: &str| Language::ALL.get(preferred(Some(header.as_bytes()), &Language::ALL)).copied();
        for (header, expected) in [
            ("", Language::En),
            ("pl", Language::Pl),
            ("PL-pl", Language::Pl),
            ("de-AT, de;q=0.9, en;q=0.8", Language::De),
            ("fr, en;q=0.3, pl;q=0.7", Language::Pl),
            ("en;q=0, de;q=0.1", Language::De),
            ("fr", Language::En),
            ("*", Language::En),
            ("en;q=0.1, *;q=0.5", Language::Pl),
            ("pl;q=1.5, de;q=0.2", Language::De),
            ("pl;q=abc", Language::En),
            ("plx, de;q=0.001", Language::De),
            ("pl;q=0.12345, de", Language::De),
            (";;;,,,;q=", Language::En),
        ] {
            assert_eq!(ask(header), Some(expected), "{header}");
        }
        assert_eq!(preferred(Some(b"\xff"), &Language::ALL), 0);
        assert_eq!(preferred(None, &[Language::De]), 0);
        assert_eq!(preferred(Some(b"pl"), &[Language::De, Language::Pl]), 1);
        assert_eq!(preferred(Some(b"pl"), &[]), 0);
    }
}
