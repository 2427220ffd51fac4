//! What the documentation says of log, configuration and tokens is so.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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

/// All there is in the configuration, as the sample has it: tables, and keys with their table before them.
fn keys_of_the_sample() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut table = String::new();
    for line in include_str!("../examples/mailtap.toml").lines() {
        let line = line.strip_prefix('#').unwrap_or(line);
        if let Some(name) = line.strip_prefix('[') {
            name.trim_start_matches('[').split(']').next().unwrap().clone_into(&mut table);
            found.insert(table.clone());
        } else if let Some(key) = key_of(line) {
            found.insert(if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") });
        }
    }
    found
}

/// The key of a line of TOML.
fn key_of(line: &str) -> Option<&str> {
    let (key, _) = line.split_once(" = ")?;
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    (!key.is_empty() && key.bytes().all(plain)).then_some(key)
}

fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec![root.join("README.md"), root.join("systemd/README.md")];
    pages.extend(fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    pages.retain(|page| page.extension().is_some_and(|kind| kind == "md"));
    pages
}

/// What a page names of the configuration: `table.key` in running text, keys below their table in examples.
fn named(page: &str, tables: &BTreeSet<&str>) -> Vec<String> {
    let mut found = Vec::new();
    for (number, piece) in page.split("\n```").enumerate() {
        if number % 2 == 0 {
            let codes = piece.split('`').skip(1).step_by(2);
            found.extend(codes.filter_map(|code| {
                let code = code.trim_matches(['[', ']']);
                let name = code.split([' ', '=']).next().unwrap();
                let (table, rest) = name.split_once('.')?;
                let word =
                    |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._".contains(&byte);
                let is_key = tables.contains(table) && !rest.is_empty() && rest.bytes().all(word);
                (is_key && !FILES.contains(&name)).then(|| name.to_owned())
            }));
        } else {
            let mut table = None;
            for line in piece.lines().map(|line| line.strip_prefix('#').unwrap_or(line)) {
                if let Some(name) = line.strip_prefix('[') {
                    let name = name.trim_start_matches('[').split(']').next().unwrap();
                    table = tables.contains(name.split('.').next().unwrap()).then_some(name);
                } else if let Some((table, key)) = table.zip(key_of(line)) {
                    found.push(format!("{table}.{key}"));
                }
            }
        }
    }
    found
}

/// Names of files that look like keys.
const FILES: &[&str] = &["spool.db", "split.db"];

#[test]
fn keys_that_pages_name_are_in_the_configuration() {
    let known = keys_of_the_sample();
    let tables = known.iter().map(|name| name.split('.').next().unwrap()).collect();
    let mut count = 0;
    let mut unknown = Vec::new();
    for page in pages() {
        let names = named(&fs::read_to_string(&page).unwrap(), &tables);
        count += names.len();
        let missing = names.into_iter().filter(|name| !known.contains(name));
        unknown.extend(missing.map(|name| format!("{}: there is no key {name}", page.display())));
    }
    assert!(unknown.is_empty(), "{}", unknown.join("\n"));
    assert!(count > 100, "{count}");
}

/// What follows the snippet of the page on tokens: the vectors on standard input, a line for each that comes out wrong.
const JUDGE: &str = r#"
import sys
vectors = json.load(sys.stdin)
key = vectors["key"]
secret = base64.urlsafe_b64encode(bytes.fromhex(key["secret_hex"])).decode().rstrip("=")
entry = {"id": key["id"], "secret": secret}
known = secrets(json.dumps({"keys": [entry, {"id": 9, "secret": secret, "revoked": "2026-01-01T00:00:00Z"}]}))
wrong = [] if list(known) == [key["id"]] else [f"keys {list(known)}"]
for vector in vectors["valid"]:
    fields = verify(vector["token"], known)
    wanted = {name: vector[name] for name in vector if name not in ("name", "token")}
    if fields != wanted:
        wrong.append(f"{vector['name']}: {fields}")
for token in [vector["token"] for vector in vectors["invalid"]] + ["\u017c", "E", vectors["visitor"][0]["token"]]:
    try:
        wrong.append(f"{token}: {verify(token, known)}")
    except ValueError:
        pass
print("\n".join(wrong) or f"{len(vectors['valid'])} {len(vectors['invalid'])}")
"#;

/// Where there is no Python the test passes without doing anything; with `MAILTAP_TEST_REQUIRED` it fails.
#[test]
fn the_snippet_for_python_verifies_what_the_vectors_say() {
    let page = include_str!("../docs/token-format.md");
    let (_, snippet) = page.split_once("```python\n").unwrap();
    let (snippet, _) = snippet.split_once("\n```").unwrap();
    let mut command = Command::new("python3");
    command.arg("-c").arg(format!("{snippet}\n{JUDGE}")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut python = match command.spawn() {
        Ok(python) => python,
        Err(error) => {
            assert!(std::env::var_os("MAILTAP_TEST_REQUIRED").is_none(), "python3: {error}");
            return;
        }
    };
    python.stdin.take().unwrap().write_all(include_bytes!("../docs/token-format.json")).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    let said = String::from_utf8(output.stdout).unwrap();
    let (valid, invalid) = said.trim().split_once(' ').expect("two numbers");
    let count = |text: &str| text.parse::<usize>().ok();
    assert!(count(valid) >= Some(6) && count(invalid) >= Some(13), "{said}");
}

/// A heading as the anchor of its link.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|char| char.is_alphanumeric() || " -_".contains(*char));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

fn anchors(page: &str) -> BTreeSet<String> {
    let text = page.split("\n```").step_by(2).flat_map(str::lines);
    let headings = text.filter(|line| line.starts_with('#'));
    headings.map(|heading| anchor(heading.trim_start_matches('#'))).collect()
}

#[test]
fn links_between_pages_lead_to_a_page_and_a_heading() {
    let mut lost = Vec::new();
    let mut count = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let links = text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0));
        for link in links.filter(|link| !link.contains("://")) {
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let aim = if path.is_empty() { page.clone() } else { page.with_file_name(path) };
            let found = aim.exists()
                && (heading.is_empty() || anchors(&fs::read_to_string(&aim).unwrap()).contains(heading));
            if !found {
                lost.push(format!("{}: {link}", page.display()));
            }
            count += 1;
        }
    }
    assert!(lost.is_empty(), "{}", lost.join("\n"));
    assert!(count > 50, "{count}");
}
