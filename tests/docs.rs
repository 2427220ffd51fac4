//! What the documentation quotes of the log is what the program says.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;

/// The string literals of Rust source, with `{…}` as they stand.
fn literals(source: &str) -> Vec<String> {
    let source = source.replace("'\"'", "''").replace("'\\\"'", "''");
    let mut found = Vec::new();
    let mut rest = source.as_str();
    while let Some(at) = rest.find(['"', '/']) {
        let (before, after) = rest.split_at(at);
        if let Some(comment) = after.strip_prefix("//") {
            rest = &comment[comment.find('\n').unwrap_or(comment.len())..];
        } else if let Some(no_comment) = after.strip_prefix('/') {
            rest = no_comment;
        } else if before.ends_with("r#") {
            rest = &after[after[1..].find("\"#").map_or(after.len(), |end| end + 3)..];
        } else {
            let mut end = 1;
            while !after[end..].starts_with('"') {
                end += if after[end..].starts_with('\\') { 2 } else { 1 };
                while !after.is_char_boundary(end) {
                    end += 1;
                }
            }
            found.push(unescaped(&after[1..end]));
            rest = &after[end + 1..];
        }
    }
    found
}

fn unescaped(literal: &str) -> String {
    let mut lines = literal.split("\\\n");
    let first = lines.next().unwrap_or_default().to_owned();
    lines.fold(first, |text, line| text + line.trim_start()).replace("\\\"", "\"")
}

fn sources(directory: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.extend(literals(&fs::read_to_string(&path).unwrap()));
        }
    }
}

/// Whether these pieces are in the text, in this order.
fn has(text: &str, pieces: &[&str]) -> bool {
    let mut rest = text;
    pieces.iter().all(|piece| {
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
        true
    })
}

#[test]
fn what_one_sees_at_3_am_is_what_is_said() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut said = Vec::new();
    sources(&root.join("src"), &mut said);
    sources(&root.join("milter/src"), &mut said);
    let page = fs::read_to_string(root.join("docs/operations.md")).unwrap();
    let (_, table) = page.split_once("## At 3 a.m.").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let mut quoted = 0;
    for row in table.lines().filter(|line| line.starts_with("| ")) {
        let sees = row.trim_start_matches("| ").split(" | ").next().unwrap();
        for quote in sees
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|quote| quote.contains(' ') && !quote.starts_with("systemctl "))
        {
            // What comes before the first colon of /readyz is the name of a part; N and … stand for what differs.
            let text = match quote.split_once(": ") {
                Some((part, text)) if sees.starts_with("`/readyz`") && !part.contains(' ') => text,
                _ => quote,
            };
            let pieces: Vec<&str> =
                text.split('…').flat_map(|piece| piece.split(" N ")).map(str::trim).collect();
            assert!(said.iter().any(|text| has(text, &pieces)), "docs/operations.md: nothing says {quote:?}");
            quoted += 1;
        }
    }
    assert!(quoted > 10, "{quoted}");
}

#[test]
fn literals_are_found_whatever_stands_around_them() {
    let source = "let a = \"one \\\n    two\"; // \"none\"\nlet c = '\"'; f(b\"x\\\"y\", r#\"raw \"no\"\"#, \"é\\\\\", 1 / 2, \"last\")";
    assert_eq!(literals(source), ["one two", "x\"y", "é\\\\", "last"]);
}
