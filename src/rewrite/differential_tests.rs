//! The links that the scanner finds are those that a browser's parser finds: html5ever, over newsletters and at random.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::path::Path;

use html5ever::tendril::TendrilSink as _;
use html5ever::tree_builder::TreeBuilderOpts;
use html5ever::{ParseOpts, parse_document};
use markup5ever_rcdom::{Handle, NodeData, RcDom};
use proptest::prelude::*;

use super::html::{decode_references, scan};
use super::target::clean;
use super::tests::{BASE, plan, run};
use super::*;

/// What html5ever sees.
#[derive(Debug, Default)]
struct Seen {
    links: BTreeSet<String>,
    comments: Vec<String>,
}

fn parse(html: &str) -> Seen {
    // Mail clients run no scripts.
    let tree_builder = TreeBuilderOpts { scripting_enabled: false, ..TreeBuilderOpts::default() };
    let opts = ParseOpts { tree_builder, ..ParseOpts::default() };
    let dom = parse_document(RcDom::default(), opts).one(html);
    let mut seen = Seen::default();
    // Dropping a node empties all that is below it: the document must stay.
    let mut open = vec![dom.document.clone()];
    while let Some(node) = open.pop() {
        visit(&node, &mut seen);
        open.extend(node.children.borrow().iter().cloned());
        if let NodeData::Element { template_contents, .. } = &node.data {
            open.extend(template_contents.borrow().iter().cloned());
        }
    }
    seen
}

fn visit(node: &Handle, seen: &mut Seen) {
    match &node.data {
        NodeData::Comment { contents } => seen.comments.push(contents.to_string()),
        NodeData::Element { name, attrs, .. } => {
            let is_link = matches!(&*name.local, "a" | "area") || name.local.starts_with("v:");
            let attrs = attrs.borrow();
            let href = attrs.iter().find(|attr| &*attr.name.local == "href" && attr.name.ns.is_empty());
            if let Some(href) = href.filter(|_| is_link) {
                seen.links.insert(clean(href.value.to_string().into()));
            }
        }
        _ => {}
    }
}

/// All links, those in Outlook's conditional comments too.
fn theirs(html: &str, conditional: bool) -> BTreeSet<String> {
    let Seen { mut links, comments } = parse(html);
    for comment in comments.iter().filter(|text| conditional && text.trim_start().starts_with("[if")) {
        let inner = comment.split_once("]>").and_then(|(_, rest)| Some(rest.rsplit_once("<![endif]")?.0));
        links.extend(inner.map(|inner| parse(inner).links).unwrap_or_default());
    }
    links
}

/// All links that the scanner sees; `None` where it leaves the part alone.
fn ours(html: &str, conditional: bool) -> Option<BTreeSet<String>> {
    let plan = Plan { conditional_comments: conditional, ..plan() };
    let found = scan(html.as_bytes(), &plan).ok()?;
    assert_eq!(found.more_anchors, 0);
    let values = found.anchors.iter().map(|anchor| &html[anchor.value.clone()]);
    Some(values.map(|value| clean(decode_references(value).expect("a reference that is known"))).collect())
}

fn newsletters() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/newsletters");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let html = files.filter(|path| path.extension().is_some_and(|extension| extension == "html"));
    html.map(|path| (path.display().to_string(), std::fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn newsletters_have_the_links_that_a_browser_sees() {
    let newsletters = newsletters();
    assert!(newsletters.len() >= 13, "only {} newsletters", newsletters.len());
    for (name, html) in newsletters {
        for conditional in [false, true] {
            let links = theirs(&html, conditional);
            assert!(!links.is_empty(), "{name} has no link");
            assert_eq!(ours(&html, conditional), Some(links), "{name}, conditional comments {conditional}");
        }
    }
}

/// The message that carries a newsletter, and how to read its body. Markup with lines that mail may not have is base64.
fn message_of(html: &str, ending: &str) -> (String, bool) {
    let html = html.replace("\r\n", "\n").replace('\n', ending);
    let base64 = html.split(ending).any(|line| line.len() > 998);
    let (encoding, body) = if base64 {
        let encoded = data_encoding::BASE64_MIME.encode(html.as_bytes());
        ("base64", encoded.replace("\r\n", ending))
    } else {
        ("8bit", html)
    };
    let head = ["Content-Type: text/html; charset=utf-8", "Content-Transfer-Encoding: ", encoding];
    (format!("{}{ending}{}{}{ending}{ending}{body}", head[0], head[1], head[2]), base64)
}

fn body_of(message: &[u8], base64: bool) -> String {
    let text = String::from_utf8(message.to_vec()).unwrap();
    let (_, body) = text.split_once("\n\n").or_else(|| text.split_once("\r\n\r\n")).unwrap();
    if !base64 {
        return body.to_owned();
    }
    let packed: String = body.split_whitespace().collect();
    String::from_utf8(data_encoding::BASE64.decode(packed.as_bytes()).unwrap()).unwrap()
}

/// The whole engine: every link that a browser sees is in the report, and after rewriting a browser sees those that are
/// left and a tracking URL for each of the others.
#[test]
fn rewritten_newsletters_lead_a_browser_through_the_tracker() {
    for (name, html) in newsletters() {
        for ending in ["\n", "\r\n"] {
            let (message, base64) = message_of(&html, ending);
            let (report, output) = run(message.as_bytes(), &plan());
            assert_eq!((report.outcome, &report.pixel), (Outcome::Rewritten, &Ok(0)), "{name}");
            let reported: BTreeSet<String> = report.links.iter().map(|link| link.target.clone()).collect();
            assert_eq!(reported, theirs(&html, true), "{name}");
            let left = report.links.iter().filter(|link| link.what != LinkWhat::Tracked);
            let left: BTreeSet<String> = left.map(|link| link.target.clone()).collect();
            let after = theirs(&body_of(&output, base64), true);
            let (tracked, others): (BTreeSet<_>, BTreeSet<_>) =
                after.into_iter().partition(|link| link.starts_with(BASE));
            assert_eq!(others, left, "{name}");
            assert_eq!(tracked.len(), usize::from(report.tracked), "{name}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn random_markup_has_the_links_that_a_browser_sees(
        html in "(<a |<a href=\"https://e\\.com/[a-d]\">|<area |<p |<b>|</a>|<td |</p>|<table>|</table>|<tr>|href|HREF| |=|\"|'|>|\r\n|/|\
                 https://e\\.com/[a-d]|title|x|&amp;|&#x26;|&lt|<!-- | -->|<!-->|--!>|<!--\\[if mso\\]>|<!\\[endif\\]-->|<!x>|<\\?x>|</ x>|<style>|</style>|\
                 <title>|</title>|<textarea>|</textarea>|<noscript>|</noscript>|<template>|</template>|<body>|</body>|</html>|<ul><li>|\
                 <iframe>|</iframe>|<xmp>|</xmp>|<svg>|</svg>|<math>|</math>|<path>|<foreignObject>|</foreignObject>|<desc>|<mi>|</mi>|<title>Logo</title>|<style>p</style>|<select>|</select>|<option>|<div>|</div>){0,50}",
    ) {
        if let Some(ours) = ours(&html, false) {
            prop_assert_eq!(ours, theirs(&html, false));
        }
    }
}
