//! Reads one tag: its name and its attributes, as WHATWG's tokeniser does.
//!
//! - Layer: decision
//! - Takes: bytes and the offset of a tag's name.
//! - Gives: the name's range; every attribute with name, value and quoting, to a callback.
//! - On failure: `None` when the bytes end within the tag: it is then no tag.
//! - Limits: one pass over the tag.
//! - See: WHATWG HTML 13.2.5.8 and 13.2.5.32–13.2.5.40

#![warn(clippy::indexing_slicing)]

use std::ops::Range;

use memchr::memchr;

/// How an attribute value is quoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::rewrite) enum Quote {
    /// `"…"`
    Double,
    /// `'…'`
    Single,
    /// Not at all.
    None,
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
pub(super) fn attributes(
    html: &[u8],
    mut at: usize,
    mut on: impl FnMut(&[u8], Range<usize>, Quote),
) -> Option<TagEnd> {
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
        let name = rest.get(..len)?;
        at = skip_spaces(html, at + len)?;
        if *html.get(at)? != b'=' {
            on(name, at..at, Quote::None);
            continue;
        }
        at = skip_spaces(html, at + 1)?;
        let rest = html.get(at..)?;
        let quote = match *rest.first()? {
            b'"' => Quote::Double,
            b'\'' => Quote::Single,
            b'>' => {
                on(name, at..at, Quote::None);
                continue;
            }
            _ => Quote::None,
        };
        if quote == Quote::None {
            let len = rest.iter().position(|&b| is_space(b) || b == b'>')?;
            on(name, at..at + len, quote);
            at += len;
        } else {
            let mark = if quote == Quote::Double { b'"' } else { b'\'' };
            let len = memchr(mark, rest.get(1..)?)?;
            on(name, at + 1..at + 1 + len, quote);
            at += len + 2;
        }
    }
}

fn skip_spaces(html: &[u8], at: usize) -> Option<usize> {
    let rest = html.get(at..)?;
    rest.iter().position(|&b| !is_space(b)).map(|len| at + len)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Attribute = (String, String, Quote);

    fn read(tag: &str) -> (Vec<Attribute>, Option<(usize, bool)>) {
        let mut found = Vec::new();
        let end = attributes(tag.as_bytes(), 0, |name, value, quote| {
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
        }
    }
}
