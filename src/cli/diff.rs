//! What changed in a message, as people read it: header lines, and the text of each part decoded.
//!
//! - Layer: cli
//! - Takes: the message before and after.
//! - Gives: a unified diff for each header block or part that differs, with colours; empty when nothing differs.
//! - On failure: bytes that are no text in the part's charset show as U+FFFD, control characters as signs for them.
//!   Where a line is too long to be read, as in a newsletter of a single one, all are shown broken before each tag.
//! - Limits: attachments and nested messages are not compared: nothing of ours changes them.

use mail_parser::{Message, MessageParser, MessagePart, MimeHeaders as _, PartType};
use similar::{ChangeTag, TextDiff};

use super::terminal::{BAD, DIM, GOOD, paint, shown};
use crate::filter::header;

/// Lines shown around a change.
const CONTEXT_LINES: usize = 3;

/// Longer lines nobody compares by eye.
const READABLE_BYTES: usize = 800;

/// Compares.
#[must_use]
pub(super) fn diff(before: &[u8], after: &[u8]) -> String {
    let head = |message: &[u8]| {
        let (_, end) = header::fields(message);
        String::from_utf8_lossy(message.get(..end).unwrap_or_default()).into_owned()
    };
    let mut output = unified("header", &head(before), &head(after));
    // Another parser than the rewriter's: what it sees is what a mail client sees.
    let (old, new) = (texts(before), texts(after));
    for (old, new) in old.iter().zip(&new) {
        output.push_str(&unified(&format!("part {}, {}", old.number, old.media), &old.text, &new.text));
    }
    output
}

/// A part that holds text.
struct Text {
    /// As IMAP counts.
    number: String,
    media: String,
    text: String,
}

fn texts(message: &[u8]) -> Vec<Text> {
    let mut found = Vec::new();
    if let Some(message) = MessageParser::new().parse(message) {
        walk(&message, 0, "", &mut found);
    }
    found
}

fn walk(message: &Message<'_>, index: u32, number: &str, found: &mut Vec<Text>) {
    let Some(part) = message.part(index) else { return };
    match &part.body {
        PartType::Multipart(children) => {
            for (position, child) in (1..).zip(children) {
                let prefix = if number.is_empty() { String::new() } else { format!("{number}.") };
                walk(message, *child, &format!("{prefix}{position}"), found);
            }
        }
        PartType::Text(text) | PartType::Html(text) => found.push(Text {
            number: if number.is_empty() { "1".to_owned() } else { number.to_owned() },
            media: media(part),
            text: text.clone().into_owned(),
        }),
        _ => {}
    }
}

fn media(part: &MessagePart<'_>) -> String {
    let Some(content_type) = part.content_type() else { return "text/plain".to_owned() };
    let subtype = content_type.subtype().unwrap_or("plain");
    shown(&format!("{}/{subtype}", content_type.ctype())).to_lowercase()
}

/// One unified diff; empty when the two are the same.
fn unified(what: &str, before: &str, after: &str) -> String {
    if before == after {
        return String::new();
    }
    let (mut before, mut after) = (before.replace("\r\n", "\n"), after.replace("\r\n", "\n"));
    if before.lines().any(|line| line.len() > READABLE_BYTES) {
        (before, after) = (broken_before_tags(&before), broken_before_tags(&after));
    }
    let diff = TextDiff::from_lines(before.as_str(), after.as_str());
    let mut output = paint(BAD, &format!("--- {what}, as it came")) + "\n";
    output.push_str(&(paint(GOOD, &format!("+++ {what}, as it goes out")) + "\n"));
    for hunk in diff.unified_diff().context_radius(CONTEXT_LINES).iter_hunks() {
        output.push_str(&(paint(DIM, hunk.header().to_string().trim_end()) + "\n"));
        for change in hunk.iter_changes() {
            let line = shown(change.value().trim_end_matches('\n'));
            match change.tag() {
                ChangeTag::Delete => output.push_str(&paint(BAD, &format!("-{line}"))),
                ChangeTag::Insert => output.push_str(&paint(GOOD, &format!("+{line}"))),
                ChangeTag::Equal => output.push_str(&format!(" {line}")),
            }
            output.push('\n');
        }
    }
    output
}

/// A line for each tag; by the tag alone, so that what is the same in two texts stays so.
fn broken_before_tags(text: &str) -> String {
    let mut output = String::with_capacity(text.len() + text.len() / 16);
    for (index, piece) in text.split('<').enumerate() {
        if index > 0 {
            let is_tag =
                piece.starts_with(|sign: char| sign.is_ascii_alphabetic() || matches!(sign, '/' | '!'));
            output.push_str(if is_tag && !output.ends_with('\n') && !output.is_empty() {
                "\n<"
            } else {
                "<"
            });
        }
        output.push_str(piece);
    }
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn headers_and_decoded_parts() {
        let before = "A: 1\r\nX-Old: x\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nsame\r\n--b\r\n\
                      Content-Type: text/html; charset=iso-8859-1\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n\
                      <p>caf=E9\r\n<a href=3Done>\r\n--b--\r\n";
        let after = before.replace("X-Old: x", "X-New: \x1B[2Jx").replace("=3Done", "=3Dt=\r\nwo");
        let expected = "--- header, as it came\n+++ header, as it goes out\n@@ -1,3 +1,3 @@\n A: 1\n-X-Old: x\n\
                        +X-New: \u{241B}[2Jx\n Content-Type: multipart/mixed; boundary=b\n\
                        --- part 2, text/html, as it came\n+++ part 2, text/html, as it goes out\n@@ -1,2 +1,2 @@\n \
                        <p>caf\u{e9}\n-<a href=one>\n+<a href=two>\n";
        assert_eq!(plain(&diff(before.as_bytes(), after.as_bytes())), expected);
        assert_eq!(diff(before.as_bytes(), before.as_bytes()), "");
    }

    #[test]
    fn a_newsletter_of_one_line_can_be_read() {
        let line = |url: &str| {
            format!(
                "Content-Type: text/html\n\n<p>1 < 2</p>{}<a href={url}>x</a><p>end</p>\n",
                "<p>same</p>".repeat(90)
            )
        };
        let text = plain(&diff(line("one").as_bytes(), line("two").as_bytes()));
        let (_, hunk) = text.split_once("@@\n").unwrap_or_default();
        assert_eq!(hunk, " </p>\n <p>same\n </p>\n-<a href=one>x\n+<a href=two>x\n </a>\n <p>end\n </p>\n");
        assert_eq!(broken_before_tags("a<b>1 < 2</b>\n<i>"), "a\n<b>1 < 2\n</b>\n<i>");
    }

    #[test]
    fn any_bytes_can_be_compared() {
        for bytes in [&b""[..], b"\xFF", b"A: 1", b"Content-Type: multipart/mixed; boundary=b\n\n--b\n"] {
            assert_eq!(diff(bytes, bytes), "");
            let _ = diff(bytes, b"B: 2\n\nx");
        }
    }
}
