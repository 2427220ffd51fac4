//! Finds links in plain text, as people write them.
//!
//! - Layer: decision
//! - Takes: the decoded text of a text/plain part and its charset.
//! - Gives: spans of URLs, without the punctuation and brackets around them.
//! - On failure: a link that may go on elsewhere is given with its `Reason`.
//! - Limits: linear; at most `MAX_REPORTED_LINKS` links are kept, the rest is counted.
//! - See: RFC 3676 (format=flowed, DelSp), RFC 3986 appendix C

#![warn(clippy::indexing_slicing)]

use std::ops::Range;

use memchr::memmem;

use super::charset::Charset;
use super::reason::Reason;
use super::report::MAX_REPORTED_LINKS;
use super::target::NO_TRACK_SCHEME;

/// A URL in a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TextLink {
    pub(super) range: Range<usize>,
    /// Why it cannot be taken for a whole link.
    pub(super) doubt: Option<Reason>,
}

/// The links of a text, and how many more there are.
pub(super) fn scan(text: &[u8], charset: Charset, delsp: bool) -> (Vec<TextLink>, usize) {
    let mut links: Vec<TextLink> = Vec::new();
    let mut more = 0;
    let mut free = 0;
    for mark in memmem::find_iter(text, b"://") {
        if mark < free {
            continue;
        }
        let Some(start) = scheme_start(text.get(free..mark).unwrap_or_default()).map(|start| start + free)
        else {
            continue;
        };
        if text.get(..start).is_some_and(|before| glued(before, charset)) {
            continue;
        }
        let link = link_from(text, start, charset, delsp);
        free = link.range.end;
        if links.len() < MAX_REPORTED_LINKS {
            links.push(link);
        } else {
            more += 1;
        }
    }
    (links, more)
}

/// Where the scheme begins that a text ends with, if it is one of ours.
fn scheme_start(before: &[u8]) -> Option<usize> {
    let tail = |bytes: &[u8], word: &[u8]| {
        let at = bytes.len().checked_sub(word.len())?;
        bytes.get(at..).is_some_and(|end| end.eq_ignore_ascii_case(word)).then_some(at)
    };
    let end = tail(before, NO_TRACK_SCHEME.as_bytes()).unwrap_or(before.len());
    let scheme = before.get(..end)?;
    tail(scheme, b"https").or_else(|| tail(scheme, b"http"))
}

/// Whether what precedes belongs to the same word.
fn glued(before: &[u8], charset: Charset) -> bool {
    match before.last() {
        None => false,
        Some(b) if b.is_ascii() => b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.' | b'/' | b'='),
        // The byte may have taken the first letter of the scheme with it.
        Some(_) => charset.is_legacy_multi_byte(),
    }
}

fn link_from(text: &[u8], start: usize, charset: Charset, delsp: bool) -> TextLink {
    let rest = text.get(start..).unwrap_or_default();
    let (word, valid) = word_of(rest, charset);
    if !valid {
        return TextLink { range: start..start + word.len(), doubt: Some(Reason::BadText) };
    }
    let len = word.len();
    let tail = rest.get(len..).unwrap_or_default();
    let url = trim(word);
    let at_end = url.len() == len;
    let in_angles = start > 0 && text.get(start - 1) == Some(&b'<');
    let over_lines = in_angles && at_end && matches!(tail.first(), Some(b'\r' | b'\n'));
    let flowed = delsp && at_end && matches!(tail, [b' ', b'\r' | b'\n', ..]);
    let doubt = (over_lines || flowed).then_some(Reason::BrokenOverLines);
    TextLink { range: start..start + url.len(), doubt }
}

/// What is written in one go, and whether it can be read up to its end.
fn word_of(rest: &[u8], charset: Charset) -> (&str, bool) {
    let mut len = 0;
    let mut valid = true;
    while let Some(&byte) = rest.get(len) {
        match byte {
            0..=b' ' | 0x7F | b'<' | b'>' | b'"' | b'`' => break,
            0..0x7F => len += 1,
            _ => match sign_at(rest, len).filter(|_| charset.is_utf8()) {
                Some(sign) if ends_word(sign) => break,
                Some(sign) => len += sign.len_utf8(),
                None => {
                    valid = false;
                    break;
                }
            },
        }
    }
    match rest.get(..len).map(std::str::from_utf8) {
        Some(Ok(word)) => (word, valid),
        _ => ("", false),
    }
}

/// The sign of UTF-8 that begins at an offset.
fn sign_at(text: &[u8], at: usize) -> Option<char> {
    let bytes = (1..=4).filter_map(|len| text.get(at..at + len));
    bytes.filter_map(|bytes| std::str::from_utf8(bytes).ok()).find_map(|sign| sign.chars().next())
}

/// Signs beyond ASCII that end a link: blanks, quotation marks, CJK and full-width punctuation.
const fn ends_word(sign: char) -> bool {
    matches!(sign, '\u{80}'..='\u{A0}' | '«' | '»' | '\u{2000}'..='\u{206F}' | '\u{3000}'..='\u{303F}' | '\u{FE30}'..='\u{FE4F}'
        | '\u{FF00}'..='\u{FF0F}' | '\u{FF1A}'..='\u{FF20}' | '\u{FF3B}'..='\u{FF40}' | '\u{FF5B}'..='\u{FF65}')
}

/// Cuts punctuation behind a link, and closing brackets that were not opened within it.
fn trim(url: &str) -> &str {
    let count = |sign| url.matches(sign).count();
    let mut extra = [(')', '('), (']', '['), ('}', '{')]
        .map(|(close, open)| (close, count(close).saturating_sub(count(open))));
    let mut end = url;
    while let Some(last) = end.chars().next_back() {
        let cut = match extra.iter_mut().find(|(close, _)| *close == last) {
            Some((_, surplus)) if *surplus > 0 => {
                *surplus -= 1;
                true
            }
            Some(_) => false,
            None => matches!(last, '.' | ',' | ';' | ':' | '!' | '?' | '\'' | '*' | '|' | '\\'),
        };
        if !cut {
            break;
        }
        end = end.get(..end.len() - last.len_utf8()).unwrap_or_default();
    }
    end
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn found(text: &str, delsp: bool) -> Vec<(String, Option<Reason>)> {
        let charset = Charset::of(&Ok(None), b"").unwrap();
        let (links, _) = scan(text.as_bytes(), charset, delsp);
        links.into_iter().map(|link| (text[link.range].to_owned(), link.doubt)).collect()
    }

    #[test]
    fn punctuation_and_brackets() {
        for (text, url) in [
            ("See https://e.com/a/.", "https://e.com/a/"),
            ("(https://e.com/b)", "https://e.com/b"),
            ("<https://e.com/c>", "https://e.com/c"),
            ("\"https://e.com/d\"!", "https://e.com/d"),
            ("HTTPS://E.com/Up,", "HTTPS://E.com/Up"),
            ("https://e.com/Blur_(band)", "https://e.com/Blur_(band)"),
            ("(see https://e.com/Blur_(band)).", "https://e.com/Blur_(band)"),
            ("[x](https://e.com/m)", "https://e.com/m"),
            ("https://пример.рф/путь。次", "https://пример.рф/путь"),
            ("*https://e.com/it's*", "https://e.com/it's"),
            ("https+notrack://e.com/n.", "https+notrack://e.com/n"),
            ("https://e.com/?u=http://g.ca/ x", "https://e.com/?u=http://g.ca/"),
        ] {
            assert_eq!(found(text, false), [(url.to_owned(), None)], "{text}");
        }
    }

    #[test]
    fn no_links() {
        for text in ["www.e.com", "xhttps://e.com", "ftp://e.com", "a://b", "://"] {
            assert_eq!(found(text, false), [], "{text}");
        }
    }

    #[test]
    fn links_that_may_go_on() {
        assert_eq!(found("<https://e.com/a\r\nb>", false)[0].1, Some(Reason::BrokenOverLines));
        assert_eq!(found("https://e.com/a \r\nb", true)[0].1, Some(Reason::BrokenOverLines));
        assert_eq!(found("https://e.com/a \r\nb", false)[0].1, None);
    }
}
