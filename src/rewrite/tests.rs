//! Golden cases, properties, and a comparison with an independent parser.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::*;

/// Makes tracking URLs that show what they were made of.
#[derive(Debug, Default)]
pub(super) struct Fake {
    targets: Vec<String>,
}

pub(super) const BASE: &str = "https://t.example.org/c/";

impl Mint for Fake {
    fn link(&mut self, target: &str, number: u16) -> Option<String> {
        self.targets.truncate(usize::from(number) - 1);
        self.targets.push(target.to_owned());
        let hash = target.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        Some(format!("{BASE}L{number}?h={hash:08x}"))
    }

    fn pixel(&mut self) -> Option<String> {
        Some(format!("{BASE}P"))
    }
}

pub(super) fn plan() -> Plan {
    Plan { own_prefixes: vec![BASE.to_owned()], ..Plan::default() }
}

pub(super) fn run(message: &[u8], plan: &Plan) -> (Report, Vec<u8>) {
    let report = rewrite(message, plan, &mut Fake::default());
    let output = apply(message, &report.patches);
    (report, output)
}

fn html(body: &str) -> String {
    format!("Content-Type: text/html; charset=utf-8\r\n\r\n{body}\r\n")
}

/// What the report says, as text: what a golden case also holds.
fn summary(report: &Report) -> String {
    let mut text = match report.outcome {
        Outcome::Rewritten => "outcome rewritten\n".to_owned(),
        Outcome::Unchanged(reason) => format!("outcome unchanged {reason}\n"),
        Outcome::LeftAlone(reason) => format!("outcome left_alone {reason}\n"),
    };
    let path = |part: usize| report.parts.get(part).map_or("?", |part| part.path.as_str());
    for part in &report.parts {
        let what = match part.what {
            PartWhat::Rewritten => "rewritten".to_owned(),
            PartWhat::Opened => "opened".to_owned(),
            PartWhat::Left(reason) => format!("left {reason}"),
        };
        let path = if part.path.is_empty() { "-" } else { &part.path };
        let _ = writeln!(text, "part {path} {} {what}", part.content_type);
    }
    for link in &report.links {
        let what = match link.what {
            LinkWhat::Tracked => format!("L{}", link.number.unwrap_or(0)),
            LinkWhat::Left(reason) => format!("left {reason}"),
        };
        let _ = writeln!(text, "link {} {what} {:?}", path(link.part), link.target);
    }
    let _ = match report.pixel {
        Ok(part) => writeln!(text, "pixel {}", path(part)),
        Err(reason) => writeln!(text, "pixel none {reason}"),
    };
    let _ = match report.amp_pixel {
        Some(Ok(part)) => writeln!(text, "amp pixel {}", path(part)),
        Some(Err(reason)) => writeln!(text, "amp pixel none {reason}"),
        None => Ok(()),
    };
    text
}

/// A golden case may ask for another plan in the header `X-Case-Plan`.
fn plan_of(message: &[u8]) -> Plan {
    let mut plan = plan();
    let text = String::from_utf8_lossy(message);
    let asked = text.lines().find_map(|line| line.strip_prefix("X-Case-Plan:")).unwrap_or_default();
    for word in asked.split_whitespace() {
        match word {
            "text" => plan.text = true,
            "no-conditional" => plan.conditional_comments = false,
            "skip-visible-url" => plan.skip_visible_url = true,
            "max-links-2" => plan.max_links = 2,
            "pixel-top" => plan.pixel_at = PixelAt::Top,
            "dkim" => plan.rewrite_dkim_signed = true,
            "pixel-both" => plan.pixel_at = PixelAt::Both,
            "pixel-hidden" => plan.pixel_template = "<img src='{url}' style='display:none'>".to_owned(),
            "no-amp" => plan.amp = false,
            "invitations" => plan.rewrite_invitations = true,
            "http" => plan.https = false,
            "no-pixel" => plan.opens = false,
            other => panic!("no such plan: {other}"),
        }
    }
    plan
}

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/rewrite");
    let mut cases: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.ends_with(".eml") && !name.ends_with(".expected.eml")
    });
    cases.sort();
    cases
}

/// Failure modes that no message alone can show, and the test that does: its file and name.
const ELSEWHERE: &[(u32, &str, &str)] = &[
    (49, "src/filter/handler_tests.rs", "a_refusal_lets_the_message_through"),
    (49, "src/filter/handler_tests.rs", "a_spool_that_hangs_delays_three_messages_and_no_more"),
    (51, "src/filter/decide_tests.rs", "several_recipients_share_tokens_without_recipient_or_get_none"),
    (51, "tests/split.rs", "each_recipient_gets_a_copy_of_their_own"),
    (52, "src/filter/decide_tests.rs", "no_token_or_header_names_a_recipient"),
    (53, "src/tap/correlate/tests.rs", "the_recipient_is_the_one_before_aliases"),
];

#[test]
fn every_failure_mode_has_a_golden_case() {
    let numbers: std::collections::BTreeSet<u32> = cases()
        .iter()
        .filter_map(|path| path.file_name()?.to_str()?.split_once('-')?.0.parse().ok())
        .collect();
    let elsewhere = |number: &u32| ELSEWHERE.iter().any(|(other, ..)| other == number);
    for (number, file, name) in ELSEWHERE {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        assert!(text.contains(&format!("fn {name}()")), "{number}: {name} is not in {file}");
    }
    let wanted = (1..=53).chain(69..=71).chain([75]);
    let missing: Vec<u32> = wanted.filter(|number| !numbers.contains(number) && !elsewhere(number)).collect();
    assert_eq!(missing, [0; 0]);
}

/// Each case is a message, what must come out (absent: the same bytes), and what is reported. The expected files are
/// read by people before they are committed; `MAILTAP_BLESS=1` writes them.
#[test]
fn golden_cases() {
    let bless = std::env::var_os("MAILTAP_BLESS").is_some();
    let cases = cases();
    assert!(bless || cases.len() > 50, "only {} cases found", cases.len());
    let mut failed = Vec::new();
    for case in cases {
        let message = std::fs::read(&case).unwrap();
        let plan = plan_of(&message);
        let (report, output) = run(&message, &plan);
        let (expected_path, summary_path) =
            (case.with_extension("expected.eml"), case.with_extension("report.txt"));
        if bless {
            if output != message {
                std::fs::write(&expected_path, &output).unwrap();
            }
            std::fs::write(&summary_path, summary(&report)).unwrap();
            continue;
        }
        assert!(summary_path.exists(), "no report for {}", case.display());
        let expected = std::fs::read(&expected_path).unwrap_or_else(|_| message.clone());
        if output != expected
            || summary(&report) != std::fs::read_to_string(&summary_path).unwrap_or_default()
        {
            failed.push(format!(
                "{}\n{}\n{}",
                case.display(),
                String::from_utf8_lossy(&output),
                summary(&report)
            ));
        }
        // A link whose mark was taken out is a link like any other: only the header tells the next filter.
        let text = String::from_utf8_lossy(&message).to_lowercase();
        if MARKS.iter().any(|mark| text.contains(mark)) {
            continue;
        }
        let again = rewrite(&output, &plan, &mut Fake::default());
        if !again.patches.is_empty() {
            failed.push(format!("{}: a second run changes more: {}", case.display(), summary(&again)));
        }
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n\n"));
}

/// Marks that are taken out: what held one can't be put together again.
const MARKS: &[&str] = &["+notrack", "data-mailtap-track", "mailtap:no-track", "[[data-msys-"];

/// The decoded texts of a message, by another parser than ours.
fn texts(message: &[u8]) -> Vec<String> {
    let parsed = mail_parser::MessageParser::new().parse(message).unwrap();
    let text = |part: &mail_parser::MessagePart<'_>| match &part.body {
        mail_parser::PartType::Text(text) | mail_parser::PartType::Html(text) => Some(text.to_string()),
        _ => None,
    };
    parsed.parts.iter().filter_map(text).collect()
}

/// Checks that a text as it goes out is the one that came, but for our URLs where its links were, and pixels. Gives the links.
fn same_but_for_ours(before: &str, after: &str, plan: &Plan) -> Vec<String> {
    let url = format!("{BASE}P");
    let amp = format!("<amp-img src=\"{url}\" width=\"1\" height=\"1\" alt=\"\"></amp-img>");
    let mut after = after.to_owned();
    for pixel in [plan.pixel_template.replace("{url}", &url), amp] {
        for line in [format!("\r\n{pixel}\r\n"), format!("\n{pixel}\n"), pixel] {
            after = after.replace(&line, "");
        }
    }
    let mut links = Vec::new();
    let start = format!("{BASE}L");
    let mut pieces = after.split(&start);
    let first = pieces.next().unwrap();
    let mut rest = before.strip_prefix(first).unwrap_or_else(|| panic!("{first}\n---\n{before}"));
    for piece in pieces {
        let (_, literal) = piece.split_once("?h=").unwrap();
        let literal = &literal[8..];
        let at = if literal.is_empty() {
            rest.len()
        } else {
            rest.find(literal).unwrap_or_else(|| panic!("{literal}\n---\n{rest}"))
        };
        links.push(rest[..at].to_owned());
        rest = &rest[at + literal.len()..];
    }
    assert_eq!(rest, "", "the end is missing");
    links
}

/// Rewrites, and checks that nothing but links and pixels differs. Gives how many links there were.
fn restored(name: &str, message: &[u8], plan: &Plan) -> usize {
    let (report, output) = run(message, plan);
    let (before, after) = (texts(message), texts(&output));
    assert_eq!(before.len(), after.len(), "{name}");
    let links: Vec<String> = before
        .iter()
        .zip(&after)
        .flat_map(|(before, after)| same_but_for_ours(before, after, plan))
        .collect();
    let tracked = report.links.iter().filter(|link| link.what == LinkWhat::Tracked);
    for (link, tracked) in links.iter().zip(tracked.clone()) {
        let value = super::html::decode_references(link).unwrap();
        let read = super::target::clean(value);
        assert!(read == tracked.target || !read.is_ascii(), "{name}: {read} {}", tracked.target);
    }
    assert_eq!(links.len(), tracked.count(), "{name}");
    links.len()
}

/// Takes our URLs and pixels out of every golden message and newsletter again, in each encoding.
#[test]
fn nothing_but_links_and_pixels_differs_anywhere() {
    let mut links = 0;
    for case in cases() {
        let message = std::fs::read(&case).unwrap();
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let text = String::from_utf8_lossy(&message);
        // A value gets quotes; a link is ours already.
        if MARKS.iter().any(|mark| text.to_lowercase().contains(mark))
            || text.contains(BASE)
            || name.starts_with("15-comments-unq")
        {
            continue;
        }
        let plan = plan_of(&message);
        if run(&message, &plan).0.patches.is_empty() {
            assert_eq!(run(&message, &plan).1, message, "{name}");
        } else {
            links += restored(&name, &message, &plan);
        }
    }
    assert!(links > 100, "only {links} links");
    links = 0;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for entry in std::fs::read_dir(root.join("tests/data/newsletters")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "html") {
            continue;
        }
        let html = std::fs::read_to_string(&path).unwrap().replace("\r\n", "\n").replace('\n', "\r\n");
        for encoding in ["8bit", "quoted-printable", "base64"] {
            let body = super::property_tests::encode(&html, encoding);
            let message = format!(
                "Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n{body}"
            );
            // Some have lines that mail may not have: these pass as they came.
            if message.split("\r\n").all(|line| line.len() <= 998) {
                links += restored(&format!("{} {encoding}", path.display()), message.as_bytes(), &plan());
            }
        }
    }
    assert!(links > 100, "only {links} links in newsletters");
    for entry in std::fs::read_dir(root.join("tests/data/dsn")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "eml") {
            let message = std::fs::read(&path).unwrap();
            assert_eq!(run(&message, &plan()).1, message, "{}", path.display());
        }
    }
}

/// Every attribute that opts a link out, with every value, quoting, letter case and place.
#[test]
fn opt_out_attributes_in_every_spelling() {
    let by_presence = [
        "disable-tracking",
        "data-pm-no-track",
        "ses:no-track",
        "mc:disable-tracking",
        "data-mautic-disable-tracking",
        "mautic:disable-tracking",
        "data-disable-tracking",
        "data-no-track",
        "data-mg-notrack",
        "mb_dontconvertlink",
        "mailtap:no-track",
        "data-msys-unsubscribe",
    ];
    let by_value = [
        "clicktracking",
        "data-msys-clicktrack",
        "tracking",
        "hstracking",
        "autotrack",
        "data-mailtap-track",
    ];
    let (mut html, mut expected) = ("<body>\r\n".to_owned(), Vec::new());
    let mut add = |name: &str, value: Option<&str>, opts_out: bool| {
        for (quote, name) in ["", "\"", "'"]
            .into_iter()
            .flat_map(|quote| [(quote, name.to_owned()), (quote, name.to_uppercase())])
        {
            let attribute = match value {
                None => name,
                Some("") if quote.is_empty() => continue,
                Some(value) => format!("{name}={quote}{value}{quote}"),
            };
            html.push_str(&format!("<a {attribute} href=\"https://e.com/\">x</a>\r\n<a href='https://e.com/' {attribute}>x</a>\r\n<a href=https://e.com/ {attribute} id=i>x</a>\r\n"));
            expected.extend(vec![opts_out; 3]);
        }
    };
    for name in by_presence {
        for value in [None, Some(""), Some("true"), Some("1"), Some("TRUE"), Some("yes")] {
            add(name, value, true);
        }
        add(name, Some("false"), false);
    }
    for name in by_value {
        for value in [None, Some(""), Some("off"), Some("OFF"), Some("false"), Some("0"), Some("no")] {
            add(name, value, true);
        }
        add(name, Some("on"), false);
        add(name, Some("true"), false);
    }
    let message = format!("Content-Type: text/html; charset=utf-8\r\n\r\n{html}</body>\r\n");
    let (report, output) = run(message.as_bytes(), &plan());
    let found: Vec<bool> =
        report.links.iter().map(|link| link.what == LinkWhat::Left(Reason::LinkOptOut)).collect();
    let lines: Vec<&str> = html.lines().skip(1).collect();
    let wrong: Vec<_> = lines
        .iter()
        .zip(found.iter().zip(&expected))
        .filter(|(_, (found, expected))| found != expected)
        .collect();
    assert!(found.len() == expected.len() && wrong.is_empty(), "{wrong:?}");
    let output = String::from_utf8(output).unwrap().to_lowercase();
    assert!(!output.contains("mailtap"), "our own attributes go");
    assert!(
        output.contains("clicktracking=off") && output.contains("data-pm-no-track"),
        "those of others stay"
    );
}

#[test]
fn a_link_and_a_pixel() {
    let (report, output) =
        run(html("<body><a href=\"https://e.com/?a=1&amp;b=2\">x</a></body>").as_bytes(), &plan());
    assert_eq!(report.outcome, Outcome::Rewritten);
    assert_eq!(report.links[0].target, "https://e.com/?a=1&b=2");
    let output = String::from_utf8(output).unwrap();
    assert!(output.contains("<a href=\"https://t.example.org/c/L1?h="), "{output}");
    assert!(output.contains("padding:0\"></body>"), "{output}");
}

#[test]
fn a_pixel_that_does_not_fit_gets_its_own_line() {
    let long = format!("<p>{}</p></body>", "x".repeat(960));
    let (report, output) = run(html(&long).as_bytes(), &plan());
    assert_eq!(report.pixel, Ok(0));
    assert!(output.split(|b| *b == b'\n').all(|line| line.len() <= 999));
    assert!(String::from_utf8(output).unwrap().contains("</p>\r\n<img "));
}

#[test]
fn a_line_that_would_be_too_long_keeps_its_link() {
    let links = "<a href=https://e.co/>x</a>".repeat(36);
    let (report, output) = run(html(&links).as_bytes(), &plan());
    assert!(report.links.iter().any(|link| link.what == LinkWhat::Left(Reason::LineTooLong)));
    assert!(report.links.iter().any(|link| link.what == LinkWhat::Tracked));
    assert!(output.split(|b| *b == b'\n').all(|line| line.len() <= 999));
}

#[test]
fn limits_leave_the_message_alone() {
    let message = html("<a href=https://e.com/>x</a>");
    let small = Plan { max_message_bytes: 10, ..plan() };
    assert_eq!(run(message.as_bytes(), &small).0.outcome, Outcome::LeftAlone(Reason::MessageTooBig));
    let mut deep = String::new();
    for level in 0..30 {
        let _ = write!(deep, "Content-Type: multipart/mixed; boundary=b{level}\r\n\r\n--b{level}\r\n");
    }
    for level in (0..30).rev() {
        let _ = write!(deep, "\r\n--b{level}--\r\n");
    }
    assert_eq!(run(deep.as_bytes(), &plan()).0.outcome, Outcome::LeftAlone(Reason::TooDeep));
    let many = format!(
        "Content-Type: multipart/mixed; boundary=b\r\n\r\n{}--b--\r\n",
        "--b\r\n\r\nx\r\n".repeat(600)
    );
    assert_eq!(run(many.as_bytes(), &plan()).0.outcome, Outcome::LeftAlone(Reason::TooManyParts));
}

#[test]
fn a_plan_that_allows_nothing() {
    let off = Plan { clicks: false, opens: false, ..plan() };
    assert_eq!(run(b"", &off).0.outcome, Outcome::Unchanged(Reason::NothingAllowed));
    let opens = Plan { clicks: false, ..plan() };
    let (report, _) = run(html("<a href=https://e.com/>x</a>").as_bytes(), &opens);
    assert_eq!((report.links[0].what, report.pixel), (LinkWhat::Left(Reason::ClicksOff), Ok(0)));
}

#[test]
fn an_amp_part_stays_below_the_size_up_to_which_it_is_shown() {
    let amp = |filler: usize, links: &str| {
        let fill = format!("<p>{}</p>\r\n", "x".repeat(70)).repeat(filler);
        let head = "Content-Type: text/x-amp-html; charset=utf-8\r\n\r\n<html amp4email><body>\r\n";
        format!("{head}{fill}{links}\r\n</body></html>")
    };
    let links = "<a href=\"https://e.com/1\">1</a>\r\n".repeat(60);
    let body_len =
        |message: &[u8]| message.len() - message.windows(4).position(|w| w == b"\r\n\r\n").unwrap() - 4;
    // 79 bytes each: room for the pixel and some of the links.
    let message = amp(2496, &links);
    let (report, output) = run(message.as_bytes(), &plan());
    assert_eq!(report.amp_pixel, Some(Ok(0)));
    assert!(report.tracked > 0 && report.tracked < 60, "{}", report.tracked);
    assert!(report.links.iter().any(|link| link.what == LinkWhat::Left(Reason::AmpTooBig)));
    assert!(body_len(&output) <= 200_000 && body_len(&output) > 199_900, "{}", body_len(&output));
    let full = amp(2530, &"x".repeat(60));
    assert!(body_len(full.as_bytes()) < 200_000);
    let (report, output) = run(full.as_bytes(), &plan());
    assert_eq!((report.amp_pixel, output), (Some(Err(Reason::AmpTooBig)), full.into_bytes()));
}
