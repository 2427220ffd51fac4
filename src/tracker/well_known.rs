//! Files below `/.well-known/`: app links, `security.txt`, challenges of certificate authorities.
//!
//! - Layer: decision
//! - Takes: names and bytes that `directory` read.
//! - Gives: the file that a path names, from memory: a path of a request never reaches the file system.
//! - On failure: what is not there is not found.
//! - Limits: names of letters, digits and `. _ -`, at most one directory deep.
//! - See: RFC 8615, RFC 9116, RFC 8555 section 8.3.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::pages::etag;

const MAX_NAME_BYTES: usize = 200;

/// A file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its bytes.
    pub bytes: Bytes,
    /// What names just these bytes, with its quotes.
    pub etag: String,
    /// Its type.
    pub content_type: &'static str,
}

/// The files of a host, by their names: `security.txt`, `acme-challenge/abc`.
#[derive(Debug, Clone, Default)]
pub struct Files(BTreeMap<String, Arc<File>>);

impl Files {
    /// Adds a file.
    pub fn add(&mut self, name: String, bytes: Vec<u8>) {
        let file = File { etag: etag(&bytes), content_type: content_type(&name), bytes: bytes.into() };
        self.0.insert(name, Arc::new(file));
    }

    /// The file of this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<File>> {
        self.0.get(name).cloned()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Whether a file or directory of this name is shown.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(good)
}

/// The type, by the end of the name.
fn content_type(name: &str) -> &'static str {
    let file = name.rsplit('/').next().unwrap_or(name);
    // Apple wants JSON, from a name without an end.
    if file == "apple-app-site-association" {
        return "application/json";
    }
    match file.rsplit_once('.').map(|(_, end)| end.to_ascii_lowercase()).as_deref() {
        Some("json") => "application/json",
        Some("txt") | None => "text/plain; charset=utf-8",
        Some("xml") => "application/xml",
        Some("html") => "text/html; charset=utf-8",
        Some("pem" | "crt") => "application/x-pem-file",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_shown() {
        for good in ["security.txt", "apple-app-site-association", "a", "A_b-c.9"] {
            assert!(is_name(good), "{good}");
        }
        let long = "a".repeat(201);
        for bad in ["", ".", "..", ".htaccess", "a/b", "a b", "a%2f", "ä", "a\0", "a\\b", &long] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn types_are_by_name() {
        for (name, expected) in [
            ("apple-app-site-association", "application/json"),
            ("assetlinks.json", "application/json"),
            ("security.txt", "text/plain; charset=utf-8"),
            ("acme-challenge/evaGxfADs6pSRb2LAv9IZ", "text/plain; charset=utf-8"),
            ("x.tar.gz", "application/octet-stream"),
        ] {
            assert_eq!(content_type(name), expected, "{name}");
        }
    }
}
