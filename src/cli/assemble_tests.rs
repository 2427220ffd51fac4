//! Tests that settings of the file arrive where they belong.
//!
//! - Layer: cli
//! - Takes: the example with values of its own for each key.
//! - Gives: proof that none is lost or taken for another.
//! - On failure: the test fails.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::config::EXAMPLE;

/// The example with these keys of `[milter]`, or else of another table, set, beside keys that are there.
fn config(lines: &[(&str, &str)]) -> Config {
    let directory = tempfile::tempdir().unwrap();
    let mut text = EXAMPLE.to_owned();
    for (key, value) in lines {
        let start = format!("\n#{key} = ");
        let table = text.find("\n[milter]").unwrap();
        let at = text[table..].find(&start).map_or_else(|| text.find(&start).unwrap(), |at| table + at) + 1;
        let end = at + text[at..].find('\n').unwrap();
        text.replace_range(at..end, &format!("{key} = {value}"));
    }
    crate::keys::create_ring(&directory.path().join("keyring.json")).unwrap();
    crate::keys::create_pseudonym_key(&directory.path().join("pseudonym.key")).unwrap();
    let path = directory.path().join("mailtap.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(&path).unwrap()
}

#[test]
fn each_limit_of_the_milter_reaches_the_driver() {
    let config = config(&[
        ("max_message", "\"3MiB\""),
        ("max_connections", "101"),
        ("max_memory", "\"53MiB\""),
        ("max_headers", "211"),
        ("max_header_size", "\"307KiB\""),
        ("max_recipients", "401"),
        ("message_timeout", "\"11s\""),
        ("idle_timeout", "\"6007s\""),
        ("first_timeout", "\"17s\""),
        ("content_timeout", "\"19s\""),
        ("write_timeout", "\"23s\""),
        ("drain", "\"7s\""),
    ]);
    let driver = filter::driver_settings(&milter(&config).unwrap());
    let limits = driver.session.message;
    assert_eq!(
        (driver.connections, driver.memory_bytes, limits.message_bytes),
        (101, 53 << 20, 3 << 20),
        "connections, memory, message"
    );
    assert_eq!(
        (limits.headers, limits.header_bytes, limits.recipients),
        (211, 307 << 10, 401),
        "headers, their size, recipients"
    );
    let timeouts = driver.timeouts;
    let seconds = [
        timeouts.handler,
        timeouts.idle,
        timeouts.negotiation,
        timeouts.content,
        timeouts.write,
        timeouts.drain,
    ]
    .map(|time| time.as_secs());
    assert_eq!(seconds, [11, 6007, 17, 19, 23, 7], "message, idle, first, content, write, drain");
}
