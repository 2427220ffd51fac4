//! The shape of a line: what a daemon says, without what it says it about.
//!
//! - Layer: decision
//! - Takes: a daemon and its text.
//! - Gives: text that can be shown to anybody: Postfix's own words, and placeholders.
//! - On failure: nothing can fail.
//! - Limits: `MAX_WORDS` words; what follows `said:`, `header …:` or a status is left out, being somebody else's text.
//!
//! A word stays if it could be one of Postfix's: lower-case letters, or short capitals like `TLS`, or the first word.
//! Names and addresses, numbers, hosts, texts in quotes and brackets, and values after `=` are replaced.

/// Words that are kept.
const MAX_WORDS: usize = 16;
/// Longer words are no words.
const MAX_WORD_BYTES: usize = 24;

/// The shape of a line.
pub(super) fn shape(daemon: &[u8], message: &[u8]) -> String {
    let text = String::from_utf8_lossy(message);
    let daemon = if daemon.len() <= MAX_WORD_BYTES && daemon.iter().all(is_name_byte) {
        String::from_utf8_lossy(daemon)
    } else {
        "…".into()
    };
    let mut words = vec![format!("{daemon}:")];
    let mut rest = text.as_ref();
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            break;
        }
        if words.len() > MAX_WORDS {
            words.push("…".to_owned());
            break;
        }
        let (word, tail, is_last) = next(rest, words.len() == 1);
        words.push(word);
        rest = tail;
        if is_last {
            words.push("…".to_owned());
            break;
        }
    }
    words.join(" ")
}

fn is_name_byte(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// The next word as it is shown, the rest, and whether what follows is somebody else's text.
fn next(text: &str, is_first: bool) -> (String, &str, bool) {
    for (open, close, shown) in [('<', '>', "<…>"), ('[', ']', "[…]"), ('(', ')', "(…)"), ('"', '"', "\"…\"")]
    {
        if let Some(inner) = text.strip_prefix(open) {
            // Where it is never closed, all of it is inside.
            let end = inner.find(close).map_or(text.len(), |at| at + 2);
            let tail = text.get(end..).unwrap_or_default();
            let tail = tail.strip_prefix([',', ':', ';']).unwrap_or(tail);
            return (shown.to_owned(), tail, false);
        }
    }
    let end = text.find([' ', '<', '[', '(', '"']).unwrap_or(text.len());
    let (word, tail) = text.split_at_checked(end).unwrap_or((text, ""));
    if let Some((key, value)) = word.split_once('=') {
        // A value may go on in brackets or quotes; they come next.
        let value = if value.is_empty() { "" } else { "…" };
        return (format!("{}={value}", plain(key, false)), tail, false);
    }
    let is_last = matches!(word, "said:" | "header" | "Subject:" | "status");
    (plain(word, is_first), tail, is_last)
}

/// A word without its punctuation, or the placeholder for what it is.
fn plain(word: &str, is_first: bool) -> String {
    let bare = word.trim_end_matches([':', ',', ';', '.']);
    let end = word.get(bare.len()..).unwrap_or_default();
    let is_digits =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'/' | b'-'));
    let is_word = bare.len() <= MAX_WORD_BYTES
        && bare.bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'-' | b'_' | b'/' | b'\''));
    let is_acronym = bare.len() <= 8 && bare.bytes().all(|byte| byte.is_ascii_uppercase());
    let is_beginning =
        is_first && bare.len() <= MAX_WORD_BYTES && bare.bytes().all(|byte| byte.is_ascii_alphabetic());
    let shown = match bare {
        "" => "",
        _ if is_digits(bare) => "N",
        _ if bare.contains('@') => "ADDRESS",
        _ if is_word || is_acronym || is_beginning => bare,
        _ if bare.contains('.') => "HOST",
        _ if bare.bytes().any(|byte| byte.is_ascii_digit()) => "ID",
        _ => "…",
    };
    format!("{shown}{end}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_line_is_about_is_not_shown() {
        for (message, expected) in [
            ("something new 17 about <a@b.example>", "smtpd: something new N about <…>"),
            ("4jYBw46WS8z1TRj1: odd thing of Anna Müller", "smtpd: ID: odd thing of … …"),
            (
                "Strange peer mail.example.net[192.0.2.1]:25, TLS is off",
                "smtpd: Strange peer HOST […] N, TLS is off",
            ),
            (
                "user anna@example.net, sasl_username=anna, x=\"b c\"",
                "smtpd: user ADDRESS, sasl_username=… x= \"…\"",
            ),
            ("odd: header Subject: your invoice", "smtpd: odd: header …"),
            ("host x said: 550 dear anna", "smtpd: host x said: …"),
            ("open <never closed anna", "smtpd: open <…>"),
            ("", "smtpd:"),
        ] {
            assert_eq!(shape(b"smtpd", message.as_bytes()), expected, "{message}");
        }
        assert_eq!(shape(b"a@b", b"x"), "…: x");
    }

    proptest! {
        #[test]
        fn never_an_address_or_a_number(text in "[ a-zA-Z0-9@.<>()=:,\"\\[\\]üß-]{0,80}") {
            let shape = shape(b"smtpd", text.as_bytes());
            prop_assert!(!shape.contains('@') && !shape.bytes().any(|byte| byte.is_ascii_digit()), "{}", shape);
        }
    }
}
