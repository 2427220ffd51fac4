//! Whether a text may hold a mail address, in whatever form an at sign is written.
//!
//! - Layer: word
//! - Takes: text.
//! - Gives: yes or no; yes where in doubt.
//! - On failure: nothing can fail.
//! - Limits: as often percent-encoded as it is long; any other encoding has to be undone by the caller.

/// Whether a text may hold a mail address: with an at sign, also a wide or small one, written as itself, percent-encoded
/// (however often) or as an HTML entity.
#[must_use]
pub fn has_address(text: &str) -> bool {
    // Without one of these there is no at sign in any of its forms.
    if text.bytes().all(|byte| byte.is_ascii() && !matches!(byte, b'@' | b'%' | b'&')) {
        return false;
    }
    let mut bytes = text.as_bytes().to_vec();
    loop {
        if has_at(&String::from_utf8_lossy(&bytes)) {
            return true;
        }
        let decoded = percent_decoded(&bytes);
        if decoded.len() == bytes.len() {
            return false;
        }
        bytes = decoded;
    }
}

fn has_at(text: &str) -> bool {
    text.contains(['@', '\u{ff20}', '\u{fe6b}'])
        || text.split('&').skip(1).any(|rest| is_at_entity(&rest.to_ascii_lowercase()))
}

/// Whether an entity is an at sign: by name or number, which browsers read without its semicolon too.
fn is_at_entity(rest: &str) -> bool {
    let number = |digits: &str, number: &str, radix: u32| {
        let rest = digits.trim_start_matches('0').strip_prefix(number);
        rest.is_some_and(|rest| !rest.starts_with(|next: char| next.is_digit(radix)))
    };
    rest.starts_with("commat;")
        || rest.strip_prefix("#x").map_or_else(
            || rest.strip_prefix('#').is_some_and(|digits| number(digits, "64", 10)),
            |digits| number(digits, "40", 16),
        )
}

fn percent_decoded(bytes: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        let hex = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        match (first, tail) {
            (b'%', [high, low, after @ ..]) => match (hex(high), hex(low)) {
                (Some(high), Some(low)) => {
                    decoded.push(high << 4 | low);
                    rest = after;
                }
                _ => {
                    decoded.push(*first);
                    rest = tail;
                }
            },
            _ => {
                decoded.push(*first);
                rest = tail;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_at_sign_is_found_in_all_its_forms() {
        for text in [
            "a@b",
            "a%40b",
            "a%2540b",
            "a%2525%34%30b",
            "a&#64;b",
            "a&#064b",
            "a&#x40;b",
            "a&commat;b",
            "a%26commat;b",
            "a＠b",
            "a﹫b",
        ] {
            assert!(has_address(text), "{text}");
        }
        for text in ["", "a=40b", "a%4 0b", "100 % &c.", "a&#640;b", "a&#x400;b", "żółw"] {
            assert!(!has_address(text), "{text}");
        }
    }
}
