//! Reads one tag: its name and its attributes, as WHATWG's tokeniser does.
//!
//! - Layer: decision
//! - Takes: bytes and the offset of a tag's name.
//! - Gives: the name's range; every attribute with its place, name, value and quoting, to a callback.
//! - On failure: `None` when the bytes end within the tag: it is then no tag.
//! - Limits: one pass over the tag.
//! - See: WHATWG HTML 13.2.5.8 and 13.2.5.32–13.2.5.40

#![warn(clippy::indexing_slicing)]

use std::ops::Range;

use memchr::{memchr, memchr3};

/// How an attribute value is quoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::rewrite) enum Quote {
    /// `"…"`
    Double,
    /// `'…'`
    Single,
    /// Not at all.
    None,
    /// Not at all, but what replaces it has to be: within a comment a value that ends in `--` would end the comment.
    Wanted,
}

/// An attribute of a tag.
#[derive(Debug, Clone)]
pub(super) struct Attribute<'h> {
    pub(super) name: &'h [u8],
    /// Where the name begins.
    pub(super) start: usize,
    /// The value, without quotes.
    pub(super) value: Range<usize>,
    pub(super) quote: Quote,
}

impl Attribute<'_> {
    /// All of it, quotes included.
    pub(super) fn range(&self) -> Range<usize> {
        let end = match self.quote {
            Quote::Double | Quote::Single => self.value.end + 1,
            _ if self.value.is_empty() => self.start + self.name.len(),
            _ => self.value.end,
        };
        self.start..end
    }
}

/// The end of a tag.
#[derive(Debug, Clone, Copy)]
pub(super) struct TagEnd {
    /// The offset after `>`.
    pub(super) after: usize,
    pub(super) self_closing: bool,
}

/// Bytes that separate within a tag.
pub(super) const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0C)
}

/// Where a tag's name ends.
pub(super) fn name_end(html: &[u8], at: usize) -> Option<usize> {
    let rest = html.get(at..)?;
    rest.iter().position(|&b| is_space(b) || b == b'/' || b == b'>').map(|len| at + len)
}

/// Reads the attributes from the end of the name on.
pub(super) fn attributes(html: &[u8], mut at: usize, mut on: impl FnMut(Attribute<'_>)) -> Option<TagEnd> {
    let mut slash = false;
    loop {
        match *html.get(at)? {
            b'>' => return Some(TagEnd { after: at + 1, self_closing: slash }),
            b'/' => {
                slash = true;
                at += 1;
                continue;
            }
            byte if is_space(byte) => {
                slash = false;
                at += 1;
                continue;
            }
            _ => slash = false,
        }
        // The name; an equals sign in front belongs to it.
        let rest = html.get(at..)?;
        let tail = rest.get(1..)?;
        let len = 1 + tail.iter().position(|&b| is_space(b) || matches!(b, b'=' | b'>' | b'/'))?;
        let (name, start) = (rest.get(..len)?, at);
        let mut found = |value, quote| on(Attribute { name, start, value, quote });
        at = skip_spaces(html, at + len)?;
        if *html.get(at)? != b'=' {
            found(at..at, Quote::None);
            continue;
        }
        at = skip_spaces(html, at + 1)?;
        let rest = html.get(at..)?;
        let quote = match *rest.first()? {
            b'"' => Quote::Double,
            b'\'' => Quote::Single,
            b'>' => {
                found(at..at, Quote::None);
                continue;
            }
            _ => Quote::None,
        };
        if quote == Quote::None {
            let len = rest.iter().position(|&b| is_space(b) || b == b'>')?;
            found(at..at + len, quote);
            at += len;
        } else {
            let mark = if quote == Quote::Double { b'"' } else { b'\'' };
            let len = memchr(mark, rest.get(1..)?)?;
            found(at + 1..at + 1 + len, quote);
            at += len + 2;
        }
    }
}

/// The values of quoted attributes of all start tags of a piece of markup.
pub(in crate::rewrite) fn quoted_values(html: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut values = Vec::new();
    let mut at = 0;
    while let Some(open) = html.get(at..).and_then(|rest| memchr(b'<', rest)).map(|open| at + open) {
        at = open + 1;
        if !html.get(at).is_some_and(u8::is_ascii_alphabetic) {
            continue;
        }
        let end = name_end(html, at).and_then(|end| {
            attributes(html, end, |attribute| {
                if matches!(attribute.quote, Quote::Double | Quote::Single) {
                    values.extend(html.get(attribute.value));
                }
            })
        });
        let Some(end) = end else { break };
        at = end.after;
    }
    values.into_iter()
}

/// Where a tag ends whose attributes do not matter; the offset after `>`.
pub(super) fn skip(html: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let rest = html.get(at..)?;
        if rest.first() == Some(&b'>') {
            return Some(at + 1);
        }
        let mark = memchr3(b'>', b'"', b'\'', rest)?;
        let before = rest.get(..mark)?;
        let quote = *rest.get(mark)?;
        if quote == b'>' {
            return Some(at + mark + 1);
        }
        // What nearly every attribute looks like: name, equals sign, quote. Whatever is odd is read with care.
        let equals = before.iter().position(|&b| b == b'=');
        let plain = equals.is_some_and(|equals| {
            equals > 0
                && equals + 1 == mark
                && before.get(equals - 1).is_some_and(|&b| !is_space(b) && b != b'/')
        });
        if !plain {
            return attributes(html, at, |_| {}).map(|end| end.after);
        }
        at += mark + 2 + memchr(quote, rest.get(mark + 1..)?)?;
    }
}

fn skip_spaces(html: &[u8], at: usize) -> Option<usize> {
    let rest = html.get(at..)?;
    rest.iter().position(|&b| !is_space(b)).map(|len| at + len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Shown = (String, String, Quote);

    fn read(tag: &str) -> (Vec<Shown>, Option<(usize, bool)>) {
        let mut found = Vec::new();
        let end = attributes(tag.as_bytes(), 0, |Attribute { name, value, quote, .. }| {
            found.push((String::from_utf8_lossy(name).into_owned(), tag[value].to_owned(), quote));
        });
        (found, end.map(|end| (end.after, end.self_closing)))
    }

    #[test]
    fn quoting_and_spacing() {
        let (found, end) = read(" a = \"1 > 0\"b='2'c=3/>x");
        let expected = [("a", "1 > 0", Quote::Double), ("b", "2", Quote::Single), ("c", "3/", Quote::None)];
        assert_eq!(found, expected.map(|(n, v, q)| (n.to_owned(), v.to_owned(), q)));
        assert_eq!(end, Some((22, false)));
    }

    #[test]
    fn odd_names_and_missing_values() {
        let (found, end) = read(" =x y / z= >");
        let names: Vec<_> = found.iter().map(|(name, value, _)| (name.as_str(), value.as_str())).collect();
        assert_eq!(names, [("=x", ""), ("y", ""), ("z", "")]);
        assert_eq!(end, Some((12, false)));
        assert_eq!(read(" a />").1, Some((5, true)));
    }

    #[test]
    fn no_end_no_tag() {
        for tag in ["", " a", " a=", " a=\"x>", " a=x", " a /"] {
            assert_eq!(read(tag).1, None, "{tag}");
            assert_eq!(skip(tag.as_bytes(), 0), None, "{tag}");
        }
    }

    #[test]
    fn the_whole_attribute() {
        let of = |tag: &str| {
            let mut found = Vec::new();
            attributes(tag.as_bytes(), 0, |attribute| found.push(tag[attribute.range()].to_owned()));
            found
        };
        assert_eq!(of(" a = \"1\"b='2' c=3 d e= >"), ["a = \"1\"", "b='2'", "c=3", "d", "e"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2048, ..ProptestConfig::default() })]

        #[test]
        fn skipping_ends_where_reading_does(tag in "( |a|bc|=|\"|'|/|>|\r\n){0,16}") {
            let read = attributes(tag.as_bytes(), 0, |_| {}).map(|end| end.after);
            prop_assert_eq!(skip(tag.as_bytes(), 0), read);
        }
    }
}
