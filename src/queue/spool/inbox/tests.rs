//! Tests of the inbox: several writers, those that were killed, and what is removed when.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use super::append::{Appender, FILE_BYTES};
use super::*;
use crate::event::EventId;
use crate::identity::Timestamp;
use crate::queue::spool::schema::MIGRATIONS;
use crate::queue::spool::store::NewRow;
use crate::queue::sqlite;
use crate::queue::testing::event;

struct Spool {
    directory: tempfile::TempDir,
    connection: Connection,
    inbox: Inbox,
}

impl Spool {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let connection = sqlite::open(&directory.path().join("spool.db"), 0o600, MIGRATIONS).unwrap();
        let inbox = Inbox::new(directory.path().into());
        Self { directory, connection, inbox }
    }

    fn writer(&self) -> Appender {
        Appender::new(self.directory.path().into(), 0o600, FILE_BYTES)
    }

    fn sweep(&mut self, max: usize) -> Swept {
        let transaction = self.connection.transaction().unwrap();
        let days = Days::of(&transaction, Timestamp::from_secs(9)).unwrap();
        let swept = self.inbox.sweep(&transaction, max, &days).unwrap();
        transaction.commit().unwrap();
        swept
    }

    /// Events that were moved on, in order.
    fn events(&self) -> Vec<EventId> {
        let mut events = self.connection.prepare("SELECT id FROM event ORDER BY seq").unwrap();
        let ids = events.query_map([], |row| row.get::<_, [u8; 16]>(0)).unwrap();
        ids.map(|id| id.unwrap().into()).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.directory.path()).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let mut files: Vec<_> =
            paths.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect();
        files.sort();
        files
    }
}

fn records(numbers: impl IntoIterator<Item = u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in numbers {
        assert!(record::put_event(
            &mut bytes,
            &NewRow::from(&event(number)).incoming(Timestamp::from_secs(9))
        ));
    }
    bytes
}

fn ids(numbers: impl IntoIterator<Item = u64>) -> Vec<EventId> {
    numbers.into_iter().map(|number| event(number).id).collect()
}

fn add(path: &Path, bytes: &[u8]) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

#[test]
fn all_files_are_moved_on_in_parts_and_known_events_once() {
    let mut spool = Spool::new();
    let (mut one, mut two) = (spool.writer(), spool.writer());
    one.append(&records(0..5)).1.unwrap();
    two.append(&records(3..8)).1.unwrap();
    assert_eq!(spool.sweep(4).records, 4);
    one.append(&records(8..9)).1.unwrap();
    while spool.sweep(4).records > 0 {}
    let mut events = spool.events();
    events.sort_unstable();
    let mut expected = ids(0..9);
    expected.sort_unstable();
    assert_eq!(events, expected);
    assert_eq!(spool.sweep(9), Swept::default(), "both may grow");
    let name = spool.files()[0].file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(spool.inbox.waiting(&spool.connection, |_| false).unwrap(), (0, 0));
    one.append(&records(20..21)).1.unwrap();
    let bytes = records(20..21).len() as u64;
    assert_eq!(
        spool.inbox.waiting(&spool.connection, |_| false).unwrap(),
        (bytes.div_ceil(LEAST_BYTES), bytes)
    );
    assert_eq!(spool.inbox.waiting(&spool.connection, |file| file == name).unwrap(), (0, 0));
}

#[test]
fn a_file_goes_when_its_writer_is_gone_and_all_was_moved_on() {
    let mut spool = Spool::new();
    let (mut gone, mut stays) = (spool.writer(), spool.writer());
    gone.append(&records(0..3)).1.unwrap();
    stays.append(&records(3..6)).1.unwrap();
    drop(gone);
    assert_eq!(spool.sweep(2).finished, [""; 0], "there is more in it");
    let finished = spool.sweep(9).finished;
    assert_eq!(finished, [spool.files()[0].file_name().unwrap().to_str().unwrap()]);
    spool.inbox.remove(&spool.connection, &finished).unwrap();
    assert_eq!(spool.files().len(), 1);
    let rows: i64 =
        spool.connection.query_row("SELECT count(*) FROM inbox_file", [], |row| row.get(0)).unwrap();
    assert_eq!((rows, spool.events()), (1, ids(0..6)));
    // Its place is forgotten, its handle may still be open elsewhere: what has no name is not moved on again.
    let mut late = Inbox::new(spool.directory.path().into());
    late.look();
    drop(stays);
    let finished = spool.sweep(9).finished;
    spool.inbox.remove(&spool.connection, &finished).unwrap();
    std::mem::swap(&mut late, &mut spool.inbox);
    assert_eq!((spool.sweep(9), spool.files().len()), (Swept::default(), 0));
}

#[test]
fn what_a_killed_writer_left_cut_is_skipped_but_not_while_it_lives() {
    let mut spool = Spool::new();
    let mut writer = spool.writer();
    writer.append(&records(0..2)).1.unwrap();
    let [file] = spool.files().try_into().unwrap();
    let whole = records(2..4);
    // As a write that is under way looks.
    add(&file, &whole[..whole.len() - 3]);
    assert_eq!((spool.sweep(9).records, spool.sweep(9)), (3, Swept::default()));
    add(&file, &whole[whole.len() - 3..]);
    assert_eq!((spool.sweep(9).records, spool.events()), (1, ids(0..4)));
    // As a kill, and then a power cut leave it: half a record, zeros, garbage, and records again.
    add(&file, &whole[..20]);
    add(&file, &[0; 5_000]);
    add(&file, b"mtI\x01 no record");
    add(&file, &records(4..6));
    add(&file, &whole[..9]);
    assert_eq!(spool.sweep(9), Swept::default());
    drop(writer);
    let swept = spool.sweep(9);
    assert_eq!((swept.records, swept.finished.len(), spool.events()), (2, 1, ids(0..6)));
}

#[test]
fn a_long_record_is_read_whole() {
    let mut spool = Spool::new();
    let mut bytes = records(0..1);
    let long = NewRow { body: "x".repeat(record::MAX_BYTES - 200), ..NewRow::from(&event(1)) };
    assert!(record::put_event(&mut bytes, &long.incoming(Timestamp::from_secs(9))));
    bytes.extend(records(2..3));
    spool.writer().append(&bytes).1.unwrap();
    let swept = spool.sweep(9);
    assert_eq!((swept.records, swept.finished.len(), spool.events()), (3, 1, ids(0..3)));
}

#[test]
fn a_file_that_cannot_be_read_keeps_nobody_else_waiting() {
    let mut spool = Spool::new();
    std::fs::create_dir(spool.directory.path().join("inbox-0-0.log")).unwrap();
    spool.writer().append(&records(0..2)).1.unwrap();
    assert_eq!((spool.sweep(9).records, spool.inbox.unreadable.len()), (2, 1));
}

#[test]
fn what_a_killed_process_left_unborn_is_removed_in_time() {
    let mut spool = Spool::new();
    let [young, old] =
        ["inbox-1-1.log.new", "inbox-1-2.log.new"].map(|name| spool.directory.path().join(name));
    for file in [&young, &old] {
        File::create(file).unwrap();
    }
    let file = File::options().write(true).open(&old).unwrap();
    file.set_modified(file.metadata().unwrap().modified().unwrap() - 2 * UNBORN_AGE).unwrap();
    spool.inbox.remove(&spool.connection, &[]).unwrap();
    assert!(young.exists() && !old.exists());
}

#[test]
fn the_table_of_before_is_moved_to_where_events_are() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("spool.db");
    let older = sqlite::open(&path, 0o600, &MIGRATIONS[..4]).unwrap();
    for number in [1, 2, 1] {
        older
            .execute(
                "INSERT INTO inbox (sum, id, added_ms, at_ms, body) VALUES (0, ?1, 86400000, 5, ?2)",
                params![event(number).id.as_bytes(), event(number).to_json()],
            )
            .unwrap();
    }
    drop(older);
    let connection = sqlite::open(&path, 0o600, MIGRATIONS).unwrap();
    let count = |sql| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(
        (count("SELECT count(*) FROM event"), count("SELECT count(*) FROM seen WHERE day = 1")),
        (2, 2)
    );
    assert_eq!(count("SELECT rows FROM tally"), 2);
}

/// Nobody reads the log of a command: what is damaged stays for a role to find.
#[test]
fn a_command_goes_no_further_than_to_what_is_damaged() {
    let mut spool = Spool::new();
    let mut writer = spool.writer();
    writer.append(&records(0..3)).1.unwrap();
    drop(writer);
    let [file] = spool.files().try_into().unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let one = records([0]).len();
    bytes[one + one / 2] ^= 0x40;
    std::fs::write(&file, &bytes).unwrap();
    let others = spool.directory.path().join("inbox-0-other.log");
    assert!(Command::new("mkfifo").arg(&others).status().unwrap().success());

    spool.inbox = Inbox::to_look(spool.directory.path().into());
    spool.sweep(usize::MAX);
    assert_eq!(spool.events(), ids([0]));
    let left: Vec<_> = spool.inbox.left().collect();
    assert!(left[0].ends_with("inbox-0-other.log: it is no file: its events are not seen"), "{left:?}");
    assert!(left[1].contains(" bytes are no event: left to the roles"), "{left:?}");

    spool.inbox = Inbox::new(spool.directory.path().into());
    spool.sweep(usize::MAX);
    assert_eq!((spool.events(), spool.inbox.left().count()), (ids([0, 2]), 0));
}
