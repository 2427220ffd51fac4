//! The import rule, read from the files themselves: no list here can go stale.
//!
//! Every module says its layer in its contract (`- Layer: …`). A word imports words; a decision words and decisions;
//! an edge these and edges; a role all of them, but never another role's directory; `cli` and the map import anything.
//! Decisions and words do no I/O. The milter crate imports nothing of the product.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const ORDER: [&str; 5] = ["word", "decision", "edge", "role", "cli"];

/// Directories of which one never imports another.
const ROLES: [&str; 7] = ["filter", "tap", "bounce", "tracker", "relay", "collector", "forward"];

/// What only edges and roles may name.
const IO: [&str; 22] = [
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::os::unix::net",
    "std::process",
    "std::env",
    "std::io::stdin",
    "std::io::stdout",
    "SystemTime::now",
    "Instant::now",
    "tokio::",
    "axum::",
    "hyper::",
    "hyper_util::",
    "h2::",
    "reqwest::",
    "rustls_platform_verifier::",
    "lapin::",
    "rusqlite::",
    "tracing::",
    "metrics::",
    "rand::",
];

struct Module {
    /// Path segments below `src`, like `["keys", "token"]`; a `mod.rs` is its directory.
    path: Vec<String>,
    layer: usize,
    /// The code without comments and tests.
    code: String,
    file: PathBuf,
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn modules(src: &Path) -> Vec<Module> {
    let mut files = Vec::new();
    rust_files(src, &mut files);
    files
        .into_iter()
        .filter(|file| !matches!(file.strip_prefix(src).unwrap().to_str(), Some("lib.rs" | "main.rs")))
        .filter(|file| !file.to_str().unwrap().ends_with("tests.rs"))
        .map(|file| {
            let text = fs::read_to_string(&file).unwrap();
            let layer =
                layer(&text).unwrap_or_else(|| panic!("{}: no `- Layer:` in its contract", file.display()));
            let relative = file.strip_prefix(src).unwrap().with_extension("");
            let mut path: Vec<String> =
                relative.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
            if path.last().is_some_and(|last| last == "mod") {
                path.pop();
            }
            Module { path, layer, code: code(&text), file }
        })
        .collect()
}

fn layer(text: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix("//! - Layer: "))?;
    let word = line.trim().trim_end_matches('.');
    ORDER.iter().position(|layer| *layer == word)
}

/// The file up to its tests, without comments.
fn code(text: &str) -> String {
    let end =
        text.find("#[cfg(test)]\n#[allow").or_else(|| text.find("#[cfg(test)]\nmod ")).unwrap_or(text.len());
    let lines = text[..end].lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The modules of the product that the code names, as path segments.
fn imports(module: &Module, known: &BTreeMap<Vec<String>, usize>) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for part in module.code.split("crate::").skip(1) {
        let end =
            part.find(|c: char| !(c.is_alphanumeric() || "_:{}, \n*".contains(c))).unwrap_or(part.len());
        collect(&part[..end], Vec::new(), &mut found);
    }
    found.into_iter().filter_map(|path| resolve(path, known)).collect()
}

/// Spells out `a::{b, c::d}`.
fn collect(text: &str, prefix: Vec<String>, found: &mut Vec<Vec<String>>) {
    let Some(brace) = text.find('{') else {
        for item in text.split(',').take(if prefix.is_empty() { 1 } else { usize::MAX }) {
            let names = item.split("::").map(|name| name.split_whitespace().next().unwrap_or("").to_owned());
            found.push(prefix.iter().cloned().chain(names.filter(|name| !name.is_empty())).collect());
        }
        return;
    };
    let head: Vec<String> = text[..brace]
        .split("::")
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect();
    let inner = text[brace + 1..].split('}').next().unwrap_or_default();
    for item in inner.split(',') {
        let names = item.split("::").map(|name| name.split_whitespace().next().unwrap_or("").to_owned());
        let path = prefix
            .iter()
            .chain(&head)
            .cloned()
            .chain(names.filter(|name| !name.is_empty() && name != "self"));
        found.push(path.collect());
    }
}

/// The longest part of a path that is a module.
fn resolve(mut path: Vec<String>, known: &BTreeMap<Vec<String>, usize>) -> Option<Vec<String>> {
    while !path.is_empty() {
        if known.contains_key(&path) {
            return Some(path);
        }
        path.pop();
    }
    None
}

fn violations(modules: &[Module]) -> Vec<String> {
    let known: BTreeMap<Vec<String>, usize> = modules.iter().map(|m| (m.path.clone(), m.layer)).collect();
    let mut found = Vec::new();
    for module in modules {
        let name = module.file.display();
        for import in imports(module, &known) {
            let theirs = known[&import];
            if theirs > module.layer && !is_gathering(&import, &module.path) {
                found.push(format!(
                    "{name} is a {} and imports {}, a {}",
                    ORDER[module.layer],
                    import.join("::"),
                    ORDER[theirs]
                ));
            }
            let (from, to) = (module.path[0].as_str(), import[0].as_str());
            if from != to && ROLES.contains(&from) && ROLES.contains(&to) {
                found.push(format!("{name}: the role {from} imports the role {to}"));
            }
        }
        if module.layer < 2 {
            for io in IO.iter().filter(|io| module.code.contains(**io)) {
                found.push(format!("{name} is a {} and names {io}", ORDER[module.layer]));
            }
        }
    }
    found
}

/// Whether `import` is the parent of `path`: children may name what their own directory gathers.
fn is_gathering(import: &[String], path: &[String]) -> bool {
    path.starts_with(import)
}

#[test]
fn the_import_rule_holds() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let found = violations(&modules(&src));
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn the_milter_crate_knows_nothing_of_the_product() {
    let mut files = Vec::new();
    rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("milter"), &mut files);
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        assert!(!code(&text).contains("mailtap::"), "{}", file.display());
    }
}

#[test]
fn the_rule_finds_what_it_forbids() {
    let module = |path: &str, layer, code: &str| Module {
        path: path.split('/').map(str::to_owned).collect(),
        layer,
        code: code.to_owned(),
        file: path.into(),
    };
    let modules = [
        module("tap/line", 1, "use crate::queue::spool;\nlet x = std::fs::read(y);"),
        module("tap", 3, "use crate::{event, tracker::route};"),
        module("tracker/route", 1, "use crate::event::{Event, Kind};"),
        module("queue/spool", 2, "use tokio::x; use crate::event::Event;"),
        module("event", 0, "use crate::identity::x;"),
        module("identity", 0, "use crate::tap::line::x;"),
    ];
    let found = violations(&modules);
    assert_eq!(
        found,
        [
            "tap/line is a decision and imports queue::spool, a edge",
            "tap/line is a decision and names std::fs",
            "tap: the role tap imports the role tracker",
            "identity is a word and imports tap::line, a decision",
        ]
    );
}

/// In a log line of JSON the text is called `message`: a field of that name would take its place.
#[test]
fn no_field_takes_the_place_of_a_log_lines_text() {
    let mut files = Vec::new();
    rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for line in text.lines().filter(|line| line.contains("tracing::")) {
            let is_field = ["(", " "].iter().any(|before| line.contains(&format!("{before}message = ")));
            assert!(!is_field, "{}: {line}", file.display());
        }
    }
}

#[test]
fn the_map_names_every_directory() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let map = fs::read_to_string(src.join("lib.rs")).unwrap();
    for entry in fs::read_dir(&src).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.ends_with(".rs") {
            assert!(map.contains(&format!("pub mod {name};")), "{name} is not on the map in lib.rs");
        }
    }
    assert!(fs::read_to_string(src.join("main.rs")).unwrap().lines().count() < 60);
}
