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
            PartWhat::Left(reason) => format!("left {reason}"),
        };
        let _ = writeln!(text, "part {} {} {what}", part.path, part.content_type);
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

/// Failure modes that no message alone can show, and the test that does.
const ELSEWHERE: &[(u32, &str)] = &[
    (51, "filter::decide: several_recipients_share_tokens_without_recipient_or_get_none"),
    (52, "filter::decide: no_token_or_header_names_a_recipient"),
    (53, "tap::correlate: the_recipient_is_the_one_before_aliases"),
];

#[test]
fn every_failure_mode_has_a_golden_case() {
    let numbers: std::collections::BTreeSet<u32> = cases()
        .iter()
        .filter_map(|path| path.file_name()?.to_str()?.split_once('-')?.0.parse().ok())
        .collect();
    let elsewhere = |number: &u32| ELSEWHERE.iter().any(|(other, _)| other == number);
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
        // A link of Postal's scheme becomes a link like any other: only the header tells the next filter.
        if message.windows(9).any(|word| word == b"+notrack:") {
            continue;
        }
        let again = rewrite(&output, &plan, &mut Fake::default());
        if !again.patches.is_empty() {
            failed.push(format!("{}: a second run changes more: {}", case.display(), summary(&again)));
        }
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n\n"));
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
