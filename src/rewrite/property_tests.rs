//! What must hold for every message, and for every piece of HTML.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::cell::RefCell;
use std::rc::Rc;

use proptest::prelude::*;

use super::tests::{BASE, plan, run};
use super::*;

/// A piece of HTML: text that stays, or a link with its raw value.
#[derive(Debug, Clone)]
enum Piece {
    Text(String),
    Link { open: &'static str, value: String, close: &'static str },
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let text = prop::sample::select(vec![
        "<p>Hello</p>\r\n",
        "caf\u{e9} = 100%.  \r\n",
        "<!-- <a href=\"https://e.com/no\"> -->",
        "<!--[if mso]><table><![endif]-->",
        "<style>a > b { c: \"</sty\" }</style>",
        "<img src=x alt='>'>",
        "< a & b",
        "<a name=here>x</a>",
        "</body>",
        "<td class=\"x\" style=\"font-family:Arial,Helvetica,sans-serif;font-size:14px;color:#333333;padding:0 0 10px\">",
        "\r\n",
        ".\r\n--x\r\n",
    ]);
    let value = "https?://[a-z]{1,9}\\.(com|example)(/[a-zA-Z0-9,.;%~-]{0,60})?(\\?[a-z]{1,3}=[a-z0-9]{1,4}(&amp;b=1)?)?";
    let quoting = prop::sample::select(vec![
        ("<a href=\"", "\">x</a>"),
        ("<a class='b' href='", "' id=i>x</a>"),
        ("<A HREF=", " >x</a>"),
        ("<area\r\n href = \"", "\"/>"),
        ("<!--[if mso]><a href=\"", "\">x</a><![endif]-->"),
    ]);
    let link = (quoting, value).prop_map(|((open, close), value)| Piece::Link { open, value, close });
    prop::collection::vec(prop_oneof![3 => text.prop_map(|t| Piece::Text(t.to_owned())), 2 => link], 1..25)
}

/// Makes tracking URLs of a length.
struct Long(usize);

impl Mint for Long {
    fn link(&mut self, _: &str, _: u16) -> Option<String> {
        Some(format!("{BASE}{:x<1$}", "", self.0))
    }

    fn pixel(&mut self) -> Option<String> {
        Some(format!("{BASE}{:x<1$}", "", self.0))
    }
}

pub(super) fn encode(text: &str, encoding: &str) -> String {
    match encoding {
        "base64" => {
            let encoded = data_encoding::BASE64.encode(text.as_bytes());
            let lines: Vec<_> = encoded
                .as_bytes()
                .chunks(76)
                .map(|line| String::from_utf8_lossy(line).into_owned())
                .collect();
            lines.join("\r\n")
        }
        "quoted-printable" => {
            let lines: Vec<_> = text.split("\r\n").map(encode_line).collect();
            lines.join("\r\n")
        }
        _ => text.to_owned(),
    }
}

fn encode_line(line: &str) -> String {
    let mut out = String::new();
    let mut column = 0;
    for (at, byte) in line.bytes().enumerate() {
        let last = at + 1 == line.len();
        let token = match byte {
            b' ' if last => "=20".to_owned(),
            b'=' | 0x7F.. => format!("={byte:02X}"),
            _ => char::from(byte).to_string(),
        };
        if column + token.len() > 75 {
            out.push_str("=\r\n");
            column = 0;
        }
        column += token.len();
        out.push_str(&token);
    }
    out
}

/// Decodes by other means than the code under test.
fn decode(body: &[u8], encoding: &str) -> Vec<u8> {
    match encoding {
        "base64" => {
            let digits: Vec<u8> = body.iter().copied().filter(|b| !b.is_ascii_whitespace()).collect();
            data_encoding::BASE64.decode(&digits).unwrap()
        }
        "quoted-printable" => {
            let text = String::from_utf8(body.to_vec()).unwrap().replace("=\r\n", "");
            let mut bytes = text.bytes();
            let mut out = Vec::new();
            while let Some(byte) = bytes.next() {
                if byte == b'=' {
                    let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                    out.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
                } else {
                    out.push(byte);
                }
            }
            out
        }
        _ => body.to_vec(),
    }
}

/// Takes our URLs and the pixel out of a text again.
fn restored(output: &str, values: &[String]) -> String {
    let mut text = output.to_owned();
    let pixel = plan().pixel_template.replace("{url}", &format!("{BASE}P"));
    text = text.replacen(&format!("\r\n{pixel}\r\n"), &pixel, 1).replacen(&pixel, "", 1);
    for (index, value) in values.iter().enumerate() {
        let prefix = format!("{BASE}L{}?h=", index + 1);
        let at = text.find(&prefix).unwrap();
        text.replace_range(at..at + prefix.len() + 8, value);
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_not_ours_is_the_input(
        pieces in pieces(),
        encoding in prop::sample::select(vec!["8bit", "quoted-printable", "base64"]),
    ) {
        let mut text = "<p>\r\n".to_owned();
        let mut values = Vec::new();
        for piece in &pieces {
            match piece {
                Piece::Text(piece) => text.push_str(piece),
                Piece::Link { open, value, close } => {
                    text.push_str(&format!("{open}{value}{close}\r\n"));
                    values.push(value.clone());
                }
            }
        }
        let head = format!("Subject: x\r\nContent-Type: multipart/mixed; boundary=\"=_b\"\r\n\r\npre\r\n--=_b\r\n\
            Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n");
        let tail = "\r\n--=_b\r\nContent-Type: text/html; name=a\r\n\r\n<a href=https://e.com/>\r\n--=_b--\r\nepilogue";
        let message = format!("{head}{}{tail}", encode(&text, encoding));
        let (report, output) = run(message.as_bytes(), &plan());
        prop_assert_eq!(report.outcome, Outcome::Rewritten);
        let tracked = values.iter().zip(&report.links).filter(|(_, link)| link.what == LinkWhat::Tracked);
        let tracked: Vec<String> = tracked.map(|(value, _)| value.clone()).collect();
        prop_assert_eq!(report.links.len(), values.len());

        let body = output.strip_prefix(head.as_bytes()).and_then(|rest| rest.strip_suffix(tail.as_bytes()));
        let decoded = String::from_utf8(decode(body.unwrap(), encoding)).unwrap();
        prop_assert_eq!(restored(&decoded, &tracked), text);
        if encoding != "8bit" {
            prop_assert!(output.split(|b| *b == b'\n').all(|line| line.len() <= 110));
        }

        let (again, same) = run(&output, &plan());
        prop_assert_eq!(again.patches.len(), 0, "{:?}", again.links);
        prop_assert_eq!(same, output);
    }

    #[test]
    fn no_line_becomes_longer_than_mail_allows(
        pieces in pieces(),
        encoding in prop::sample::select(vec!["8bit", "quoted-printable", "base64"]),
        ending in prop::sample::select(vec!["\r\n", "\n"]),
        joined in any::<bool>(),
        url_bytes in 60_usize..2000,
        template_bytes in 0_usize..1100,
        pixel_at in prop::sample::select(vec![PixelAt::End, PixelAt::Top, PixelAt::Both]),
    ) {
        let mut html = "<body>".to_owned();
        for piece in &pieces {
            match piece {
                Piece::Text(piece) => html.push_str(piece),
                Piece::Link { open, value, close } => html.push_str(&format!("{open}{value}{close}")),
            }
        }
        // Lines near the limit are where it matters.
        let html = if joined { html.replace("\r\n", " ") } else { html };
        let body = encode(&html, encoding).replace("\r\n", ending);
        let message = format!("Content-Type: text/html; charset=utf-8{ending}Content-Transfer-Encoding: {encoding}{ending}{ending}{body}");
        let longest = |text: &[u8]| {
            text.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line).len()).max().unwrap_or(0)
        };
        let plan = Plan {
            pixel_template: format!("<img src=\"{{url}}\" alt=\"{}\">", "x".repeat(template_bytes)),
            pixel_at,
            ..plan()
        };
        let report = rewrite(message.as_bytes(), &plan, &mut Long(url_bytes));
        let output = apply(message.as_bytes(), &report.patches);
        let limit = if encoding == "8bit" { 998 } else { 76 };
        prop_assert!(longest(&output) <= limit.max(longest(message.as_bytes())), "{}", longest(&output));
        prop_assert!(longest(message.as_bytes()) <= 998 || report.patches.is_empty());
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = run(&bytes, &plan());
        let mut message = b"Content-Type: text/html\r\n\r\n".to_vec();
        message.extend_from_slice(&bytes);
        let _ = run(&message, &Plan { text: true, ..plan() });
    }

    #[test]
    fn odd_markup_does_no_harm(
        html in "(<|>|/|a|href|=|\"|'| |!|-|--|!--|\\[if|\\]>|<!\\[endif\\]|https://e.com/|&amp;|&#|x|;|script|style|svg|body|\r\n){0,120}",
        kind in prop::sample::select(vec!["text/html", "text/plain", "text/plain; delsp=yes"]),
    ) {
        let plan = Plan { text: true, skip_visible_url: true, pixel_at: PixelAt::Both, ..plan() };
        let message = format!("Content-Type: {kind}\r\n\r\n{html}");
        let (report, output) = run(message.as_bytes(), &plan);
        prop_assert!(output.split(|b| *b == b'\n').all(|line| line.len() <= 999));
        let mut end = 0;
        for patch in &report.patches {
            prop_assert!(patch.range.start >= end);
            end = patch.range.end;
        }
    }

    #[test]
    fn disordered_mime_does_no_harm(
        mime in "(--a|--b|--|\r\n|\r\n\r\n|Content-Type: multipart/mixed; boundary=[ab]\r\n|Content-Type: text/html\r\n|<a href=https://e.com/>|x: y\r\n){0,40}",
    ) {
        let message = format!("Content-Type: multipart/mixed; boundary=a\r\n{mime}");
        let (report, output) = run(message.as_bytes(), &plan());
        prop_assert_eq!(report.patches.is_empty(), output == message.as_bytes());
        // Nothing goes but links, nothing comes but tracking URLs and the pixel, and no delimiter is lost.
        for patch in &report.patches {
            let gone = &message[patch.range.clone()];
            let come = String::from_utf8(patch.bytes.clone()).unwrap();
            prop_assert!(gone == "https://e.com/" && come.starts_with(BASE) || gone.is_empty() && come.contains(BASE), "{} {}", gone, come);
        }
        let delimiters = |text: &str| text.lines().filter(|line| line.starts_with("--")).count();
        prop_assert_eq!(delimiters(&message), delimiters(&String::from_utf8(output).unwrap()));
    }

    #[test]
    fn the_same_links_as_an_independent_parser(
        html in "(<a |<area |<p |<b>|</a>|<td |href|HREF| |=|\"|'|>|\r\n|/|https://e.com/[a-z]|title|x|&amp;|<!-- | -->|<style>|</style>|<title>|</title>|<textarea>|</textarea>){0,60}",
    ) {
        let ours = links_of(&html);
        let theirs = links_by_lol_html(&html);
        prop_assert_eq!(ours, theirs);
    }
}

/// All links that the engine sees, raw.
fn links_of(html: &str) -> Vec<String> {
    let plan = Plan { conditional_comments: false, ..plan() };
    let scan = super::html::scan(html.as_bytes(), &plan).unwrap();
    scan.anchors.iter().map(|anchor| html[anchor.value.clone()].to_owned()).collect()
}

fn links_by_lol_html(html: &str) -> Vec<String> {
    let found = Rc::new(RefCell::new(Vec::new()));
    let sink = Rc::clone(&found);
    let handler = lol_html::element!("a[href], area[href]", move |element| {
        let href = element.attributes().iter().find(|attribute| attribute.name() == "href");
        sink.borrow_mut().push(href.unwrap().value());
        Ok(())
    });
    let settings = lol_html::Settings::new().append_element_content_handler(handler).with_strict(false);
    let mut rewriter = lol_html::HtmlRewriter::new(settings, |_: &[u8]| {});
    rewriter.write(html.as_bytes()).unwrap();
    rewriter.end().unwrap();
    found.take()
}

/// Counts how often it is asked.
struct Counting(usize);

impl Mint for Counting {
    fn link(&mut self, target: &str, number: u16) -> Option<String> {
        self.0 += 1;
        Some(format!("{BASE}{number}/{}", target.len()))
    }

    fn pixel(&mut self) -> Option<String> {
        None
    }
}

/// The time it takes is measured in `cargo bench --bench rewrite hostile`.
#[test]
fn of_a_hundred_thousand_links_a_thousand_are_signed_and_all_are_counted() {
    let mut message = b"Content-Type: text/html\r\n\r\n".to_vec();
    for _ in 0..100_000 {
        message.extend_from_slice(b"<a href=https://e.com/x>y</a>\r\n");
    }
    let mut mint = Counting(0);
    let report = rewrite(&message, &plan(), &mut mint);
    assert_eq!((usize::from(report.tracked), mint.0, report.patches.len()), (1000, 1000, 1000));
    assert_eq!(report.links.len(), MAX_REPORTED_LINKS, "memory is bounded");
    assert_eq!(report.links.len() + report.unlisted_links, 100_000);
    let left: Vec<_> = report.left_links.iter().collect();
    assert_eq!(left, [(Reason::TooManyLinks, 99_000)]);
}

/// Attributes are read one after the other and kept nowhere: a million of them on links cost no patch, no link and no signature too many.
#[test]
fn a_million_attributes_hide_no_link_and_make_none() {
    let attributes = " data-a=https://e.com/n title='<a href=https://e.com/q>'".repeat(500_000);
    let message = format!(
        "Content-Type: text/html\r\n\r\n<a{attributes} href=https://e.com/x>y</a>\r\n<p><a href=https://e.com/z>z</a>\r\n"
    )
    .replace(" data-a", "\r\n data-a");
    let mut mint = Counting(0);
    let report = rewrite(message.as_bytes(), &plan(), &mut mint);
    assert_eq!((report.tracked, mint.0, report.patches.len()), (2, 2, 2), "{:?}", report.outcome);
    let output = apply(message.as_bytes(), &report.patches);
    assert!(output.len() < message.len() + 200, "the attributes are untouched");
}
