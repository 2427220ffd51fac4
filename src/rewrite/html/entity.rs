//! Character references in attribute values: decoded once, and written back.
//!
//! - Layer: decision
//! - Takes: an attribute value as text.
//! - Gives: what it means.
//! - On failure: `None` for a named reference with semicolon that is not in our table: it may or may not be one.
//! - Limits: names of Latin-1 and of ASCII signs; linear.
//! - See: WHATWG HTML 13.2.5.72–13.2.5.80

#![warn(clippy::indexing_slicing)]

use std::borrow::Cow;

use memchr::memchr;

use super::tag::Quote;
use crate::rewrite::target::cut;

/// Decodes character references once, by the rules for attributes.
pub(in crate::rewrite) fn decode_references(value: &str) -> Option<Cow<'_, str>> {
    if memchr(b'&', value.as_bytes()).is_none() {
        return Some(Cow::Borrowed(value));
    }
    let mut text = String::with_capacity(value.len());
    decode_references_onto(&mut text, value).then_some(Cow::Owned(text))
}

/// As [`decode_references`], at the end of a text; `false`, with whatever was written, where it gives nothing.
pub(in crate::rewrite) fn decode_references_onto(text: &mut String, value: &str) -> bool {
    let mut rest = value;
    while let Some((before, after)) = cut(rest, b'&') {
        text.push_str(before);
        rest = if let Some(after) = after.strip_prefix("amp;") {
            text.push('&');
            after
        } else if let Some(number) = after.strip_prefix('#') {
            numeric(number, text)
        } else {
            match named(after, text) {
                Some(after) => after,
                None => return false,
            }
        };
    }
    text.push_str(rest);
    true
}

/// A reference by number; gives what follows it.
fn numeric<'v>(number: &'v str, text: &mut String) -> &'v str {
    let (digits, radix) = match number.strip_prefix(['x', 'X']) {
        Some(digits) => (digits, 16),
        None => (number, 10),
    };
    let len = digits.bytes().take_while(|b| char::from(*b).is_digit(radix)).count();
    let (Some(number_text), Some(rest)) = (digits.get(..len), digits.get(len..)) else { return number };
    if len == 0 {
        text.push_str("&#");
        return number;
    }
    let code = number_text.bytes().fold(0_u32, |code, byte| {
        code.saturating_mul(radix).saturating_add(char::from(byte).to_digit(radix).unwrap_or(0))
    });
    text.push(match code {
        0x80..=0x9F => windows_1252(code),
        0 => char::REPLACEMENT_CHARACTER,
        _ => char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER),
    });
    rest.strip_prefix(';').unwrap_or(rest)
}

fn windows_1252(code: u32) -> char {
    let byte = u8::try_from(code).unwrap_or(b'?');
    encoding_rs::WINDOWS_1252
        .decode_without_bom_handling(&[byte])
        .0
        .chars()
        .next()
        .unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// A reference by name; gives what follows it.
fn named<'v>(rest: &'v str, text: &mut String) -> Option<&'v str> {
    let len = rest.bytes().take_while(u8::is_ascii_alphanumeric).count();
    let (name, after) = (rest.get(..len)?, rest.get(len..)?);
    if let Some(after) = after.strip_prefix(';').filter(|_| !name.is_empty()) {
        text.push(legacy(name).or_else(|| with_semicolon(name))?);
        return Some(after);
    }
    // Without a semicolon: only the names of old, and not where a parameter's name goes on.
    match legacy(name).filter(|_| !after.starts_with('=')) {
        Some(sign) => text.push(sign),
        None => {
            text.push('&');
            text.push_str(name);
        }
    }
    Some(after)
}

/// Names that stand without a semicolon, too.
fn legacy(name: &str) -> Option<char> {
    Some(match name {
        "amp" | "AMP" => '&',
        "lt" | "LT" => '<',
        "gt" | "GT" => '>',
        "quot" | "QUOT" => '"',
        "COPY" => '\u{A9}',
        "REG" => '\u{AE}',
        _ => {
            let index = LATIN_1.iter().position(|latin| *latin == name)?;
            char::from_u32(0xA0 + u32::try_from(index).ok()?)?
        }
    })
}

fn with_semicolon(name: &str) -> Option<char> {
    Some(match name {
        "apos" => '\'',
        "Tab" => '\t',
        "NewLine" => '\n',
        "excl" => '!',
        "num" => '#',
        "dollar" => '$',
        "percnt" => '%',
        "lpar" => '(',
        "rpar" => ')',
        "ast" => '*',
        "plus" => '+',
        "comma" => ',',
        "period" => '.',
        "sol" => '/',
        "colon" => ':',
        "semi" => ';',
        "equals" => '=',
        "quest" => '?',
        "commat" => '@',
        "lsqb" | "lbrack" => '[',
        "bsol" => '\\',
        "rsqb" | "rbrack" => ']',
        "Hat" => '^',
        "lowbar" => '_',
        "grave" => '`',
        "lcub" | "lbrace" => '{',
        "verbar" | "vert" => '|',
        "rcub" | "rbrace" => '}',
        "ndash" => '\u{2013}',
        "mdash" => '\u{2014}',
        "hyphen" | "dash" => '\u{2010}',
        _ => return None,
    })
}

/// The names of U+00A0 to U+00FF, in order.
const LATIN_1: [&str; 96] = [
    "nbsp", "iexcl", "cent", "pound", "curren", "yen", "brvbar", "sect", "uml", "copy", "ordf", "laquo",
    "not", "shy", "reg", "macr", "deg", "plusmn", "sup2", "sup3", "acute", "micro", "para", "middot",
    "cedil", "sup1", "ordm", "raquo", "frac14", "frac12", "frac34", "iquest", "Agrave", "Aacute", "Acirc",
    "Atilde", "Auml", "Aring", "AElig", "Ccedil", "Egrave", "Eacute", "Ecirc", "Euml", "Igrave", "Iacute",
    "Icirc", "Iuml", "ETH", "Ntilde", "Ograve", "Oacute", "Ocirc", "Otilde", "Ouml", "times", "Oslash",
    "Ugrave", "Uacute", "Ucirc", "Uuml", "Yacute", "THORN", "szlig", "agrave", "aacute", "acirc", "atilde",
    "auml", "aring", "aelig", "ccedil", "egrave", "eacute", "ecirc", "euml", "igrave", "iacute", "icirc",
    "iuml", "eth", "ntilde", "ograve", "oacute", "ocirc", "otilde", "ouml", "divide", "oslash", "ugrave",
    "uacute", "ucirc", "uuml", "yacute", "thorn", "yuml",
];

/// A URL of visible ASCII as an attribute value that is quoted as the one it replaces.
pub(in crate::rewrite) fn escaped(url: String, quote: Quote) -> Vec<u8> {
    let special = |b: u8| matches!(b, b'&' | b'"' | b'\'' | b'<' | b'>' | b'`');
    // Without a way out early, so that it is done many bytes at a time.
    if quote != Quote::Wanted && !url.bytes().fold(false, |found, byte| found | special(byte)) {
        return url.into_bytes();
    }
    let mut out = Vec::with_capacity(url.len() + 16);
    let odd = |b: u8| matches!(b, b'"' | b'\'' | b'<' | b'>' | b'`');
    let needs_quotes = quote == Quote::Wanted || quote == Quote::None && url.bytes().any(odd);
    if needs_quotes {
        out.push(b'"');
    }
    for byte in url.bytes() {
        match byte {
            b'&' => out.extend_from_slice(b"&amp;"),
            b'"' => out.extend_from_slice(b"&quot;"),
            b'\'' => out.extend_from_slice(b"&#39;"),
            b'<' => out.extend_from_slice(b"&lt;"),
            b'>' => out.extend_from_slice(b"&gt;"),
            _ => out.push(byte),
        }
    }
    if needs_quotes {
        out.push(b'"');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(value: &str) -> Option<String> {
        decode_references(value).map(Cow::into_owned)
    }

    #[test]
    fn references_are_decoded_once() {
        for (value, expected) in [
            ("?a=1&amp;b=2", "?a=1&b=2"),
            ("?a=1&#38;b&#038;c&#x26;d&#X26e", "?a=1&b&c&d&#X26e".replace("&#X26e", "\u{26e}").as_str()),
            ("&amp;amp;", "&amp;"),
            ("?a&copy=1&copyx&copy", "?a&copy=1&copyx\u{A9}"),
            ("?a=1&b=2&", "?a=1&b=2&"),
            ("&#;&#x;&;", "&#;&#x;&;"),
            ("&eacute;&yuml;&nbsp;", "\u{E9}\u{FF}\u{A0}"),
            ("&#128;&#0;&#x110000;&#99999999999;", "\u{20AC}\u{FFFD}\u{FFFD}\u{FFFD}"),
        ] {
            assert_eq!(decode(value).as_deref(), Some(expected), "{value}");
        }
    }

    #[test]
    fn urls_are_written_for_their_quotes() {
        let of = |url: &str, quote| String::from_utf8(escaped(url.to_owned(), quote)).unwrap_or_default();
        assert_eq!(of("https://t/c/x", Quote::None), "https://t/c/x");
        assert_eq!(of("https://t/?a=1&b='", Quote::Single), "https://t/?a=1&amp;b=&#39;");
        assert_eq!(of("https://t/?a=\"", Quote::Double), "https://t/?a=&quot;");
        assert_eq!(of("https://t/?a&b", Quote::None), "https://t/?a&amp;b");
        assert_eq!(of("https://t/`", Quote::None), "\"https://t/`\"");
        assert_eq!(of("https://t/--", Quote::Wanted), "\"https://t/--\"");
    }

    #[test]
    fn a_name_that_is_not_known_is_a_doubt() {
        assert_eq!(decode("?a=1&foo;b"), None);
        assert_eq!(decode("?a=1&foo"), Some("?a=1&foo".to_owned()));
    }
}
