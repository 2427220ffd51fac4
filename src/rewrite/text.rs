//! Finds links in plain text, as people write them.
//!
//! - Layer: decision
//! - Takes: the decoded text of a text/plain part and its charset.
//! - Gives: spans of URLs, without the punctuation and brackets around them, and SparkPost's marks behind them.
//! - On failure: a link that may go on elsewhere is given with its `Reason`.
//! - Limits: linear; at most `MAX_REPORTED_LINKS` links are kept, the rest is counted.
//! - See: RFC 3676 (format=flowed, DelSp), RFC 3986 appendix C

#![warn(clippy::indexing_slicing)]

use std::ops::Range;

use memchr::{memchr2, memmem};

use super::charset::Charset;
use super::optout;
use super::reason::Reason;
use super::report::MAX_REPORTED_LINKS;
use super::target::NO_TRACK_SCHEME;

/// A URL in a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TextLink {
    pub(super) range: Range<usize>,
    /// Why it cannot be taken for a whole link.
    pub(super) doubt: Option<Reason>,
    /// A mark behind it opts out.
    pub(super) opt_out: bool,
    /// Where such a mark ends; the link's own end where there is none.
    pub(super) mark_end: usize,
}

/// How SparkPost marks links in text: `https://e.com/[[data-msys-clicktrack="0"]]`.
const MARK: &[u8] = b"[[data-msys-";

/// Longest mark.
const MAX_MARK_BYTES: usize = 500;

/// Whether a text holds something that goes even where nothing is tracked.
pub(super) fn has_marks(text: &[u8]) -> bool {
    let no_track = NO_TRACK_SCHEME.as_bytes();
    let is_no_track = |at: usize| {
        let before = at.checked_sub(no_track.len()).and_then(|start| text.get(start..at));
        before.is_some_and(|before| before.eq_ignore_ascii_case(no_track))
    };
    memmem::find_iter(text, b"://").any(is_no_track) || memmem::find(text, MARK).is_some()
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
        free = link.mark_end;
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
        Some(b) if b.is_ascii() => b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.' | b'/'),
        // The byte may have taken the first letter of the scheme with it.
        Some(_) => charset.is_legacy_multi_byte(),
    }
}

fn link_from(text: &[u8], start: usize, charset: Charset, delsp: bool) -> TextLink {
    let rest = text.get(start..).unwrap_or_default();
    let (word, valid) = word_of(rest, charset);
    let link = |len, doubt| {
        let range = start..start + len;
        TextLink { mark_end: range.end, range, doubt, opt_out: false }
    };
    if let Some(at) = memmem::find(word.as_bytes(), MARK) {
        let (opt_out, mark_end) = mark(rest, at);
        return TextLink { opt_out, mark_end: start + mark_end, ..link(at, None) };
    }
    if !valid {
        return link(word.len(), Some(Reason::BadText));
    }
    let len = word.len();
    let tail = rest.get(len..).unwrap_or_default();
    let url = trim(word);
    let at_end = url.len() == len;
    let in_angles = start > 0 && text.get(start - 1) == Some(&b'<');
    let over_lines = in_angles && at_end && matches!(tail.first(), Some(b'\r' | b'\n'));
    let flowed = delsp && at_end && matches!(tail, [b' ', b'\r' | b'\n', ..]);
    link(url.len(), (over_lines || flowed).then_some(Reason::BrokenOverLines))
}

/// What a mark says, and where it ends; one that does not end is left.
fn mark(rest: &[u8], at: usize) -> (bool, usize) {
    let tail = rest.get(at..rest.len().min(at + MAX_MARK_BYTES)).unwrap_or_default();
    let line = tail.get(..memchr2(b'\r', b'\n', tail).unwrap_or(tail.len())).unwrap_or_default();
    let Some(len) = memmem::find(line, b"]]") else { return (true, at) };
    let inner = String::from_utf8_lossy(line.get(2..len).unwrap_or_default()).into_owned();
    let mut pairs = inner.split_ascii_whitespace().map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let opt_out = pairs
        .any(|(name, value)| optout::attribute(name.as_bytes(), value.trim_matches(['"', '\'']).as_bytes()));
    (opt_out, at + len + 2)
}

/// Whether another link begins, after what separates it from the one before: `https://a|https://b`.
fn begins_another(rest: &[u8]) -> bool {
    let begins =
        |scheme: &str| rest.get(..scheme.len()).is_some_and(|b| b.eq_ignore_ascii_case(scheme.as_bytes()));
    ["https://", "http://", "https+notrack://", "http+notrack://"].into_iter().any(begins)
}

/// What is written in one go, up to the next link, and whether it can be read up to its end.
fn word_of(rest: &[u8], charset: Charset) -> (&str, bool) {
    let mut len = 0;
    let mut valid = true;
    // A query may hold anything, other links too.
    let mut in_path = true;
    while let Some(&byte) = rest.get(len) {
        match byte {
            0..=b' ' | 0x7F | b'<' | b'>' | b'"' | b'`' => break,
            b',' | b';' | b'|' if in_path && begins_another(rest.get(len + 1..).unwrap_or_default()) => break,
            0..0x7F => {
                in_path &= !matches!(byte, b'?' | b'#');
                len += 1;
            }
            _ => match sign_at(rest, len).filter(|_| charset.is_utf8()) {
                Some(sign) if ends_word(sign) => break,
                Some(sign) => len += sign.len_utf8(),
                None if charset.sign(byte).is_some_and(ends_word) => break,
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
    fn several_in_one_word() {
        let of = |text| found(text, false).into_iter().map(|(url, _)| url).collect::<Vec<_>>();
        assert_eq!(
            of("https://a.com/1|https://b.com,HTTP://c.com;x"),
            ["https://a.com/1", "https://b.com", "HTTP://c.com;x"]
        );
        assert_eq!(of("Link=https://e.com/a"), ["https://e.com/a"]);
        assert_eq!(of("https://e.com/?u=1,https://b.com"), ["https://e.com/?u=1,https://b.com"]);
        assert_eq!(of("https://web.example/https://b.com"), ["https://web.example/https://b.com"]);
    }

    #[test]
    fn marks_of_sparkpost() {
        let charset = Charset::of(&Ok(None), b"").unwrap();
        let of = |text: &str| {
            let (links, _) = scan(text.as_bytes(), charset, false);
            let link = &links[0];
            (text[link.range.clone()].to_owned(), link.opt_out, text[link.mark_end..].to_owned())
        };
        let text = |text: &str| text.to_owned();
        assert_eq!(
            of("https://e.com/b[[data-msys-clicktrack=\"0\"]] x"),
            (text("https://e.com/b"), true, text(" x"))
        );
        assert_eq!(
            of("https://e.com/b[[data-msys-clicktrack=\"1\"]]."),
            (text("https://e.com/b"), false, text("."))
        );
        assert_eq!(
            of("https://e.com/b[[data-msys-sublink=\"a b\" data-msys-clicktrack='0']]"),
            (text("https://e.com/b"), true, text(""))
        );
        assert_eq!(
            of("https://e.com/b[[data-msys-\n]]"),
            (text("https://e.com/b"), true, text("[[data-msys-\n]]"))
        );
        assert!(
            has_marks(b"HTTPS+NoTrack://e.com")
                && has_marks(b"x[[data-msys-")
                && !has_marks(b"+notrack https://e.com")
        );
    }

    #[test]
    fn quotation_marks_of_latin_1_end_a_link() {
        let charset = Charset::of(&Ok(Some("iso-8859-1".to_owned())), b"").unwrap();
        let of = |text: &[u8]| {
            let (links, _) = scan(text, charset, false);
            (links[0].range.clone(), links[0].doubt)
        };
        assert_eq!(of(b"\xABhttps://e.com/a\xBB"), (1..16, None));
        assert_eq!(of(b"https://e.com/a\x94"), (0..15, None));
        assert_eq!(of(b"https://e.com/\xE9").1, Some(Reason::BadText));
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
