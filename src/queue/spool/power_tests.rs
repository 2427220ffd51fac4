//! What a power cut leaves of the spool: what was synced, and of later writes any sectors.
//!
//! A process publishes until it is killed, and `tests/lib/synced.c` keeps a copy of each file as it was when it was last synced. From
//! both, states are made that a disk may show after a power cut, by a fixed seed; from each of them the spool must come up whole.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::event::EventId;
use crate::queue::testing::event;

const CHILD: &str = "MAILTAP_TEST_POWER_CHILD";
const SECTOR: usize = 512;

/// Publishes, has events moved on now and then, and says what was acknowledged, until it is killed.
#[tokio::test]
#[ignore = "run by other tests as a process of its own"]
async fn child_publishes_and_sweeps() {
    let Ok(child) = std::env::var(CHILD) else { return };
    let [sync, pages, directory] = child.splitn(3, ' ').collect::<Vec<_>>().try_into().unwrap();
    let pages: u32 = pages.parse().unwrap();
    let sync = if sync == "full" { Sync::Full } else { Sync::Normal };
    let settings = Settings { directory: directory.into(), sync, ..Settings::default() };
    let connection = sqlite::open(&settings.path(), settings.file_mode, schema::MIGRATIONS).unwrap();
    // The log begins anew every few commits, or never; the files of the inbox do so often.
    connection.pragma_update(None, "wal_autocheckpoint", pages).unwrap();
    let spool = Spool::start(settings, Arc::new(clock::now), connection, 20_000).unwrap();
    let tasks = (0..3).map(|task| {
        let spool = spool.clone();
        tokio::spawn(async move {
            for number in 0..20_000 {
                let number = task * 100_000 + number;
                spool.publish(vec![event(number)]).await.unwrap();
                println!("acknowledged {number}");
                if number % 10 == 9 {
                    let claimed = spool.claim(3, Duration::from_secs(60), clock::now()).await.unwrap();
                    let released = claimed.iter().map(|claim| (claim.seq, Outcome::Released));
                    spool.settle(released.collect()).await.unwrap();
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

/// Lets a process publish until it has acknowledged so many events, and kills it; gives those that it acknowledged.
fn killed(work: &Path, how: &str, after: usize) -> Vec<u64> {
    let library = work.join("synced.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lib/synced.c");
    let built = Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(source).status();
    assert!(built.expect("a C compiler").success());
    for directory in ["spool", "synced"] {
        fs::create_dir(work.join(directory)).unwrap();
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "queue::spool::power_tests::child_publishes_and_sweeps",
            "--ignored",
            "--nocapture",
        ])
        .env(CHILD, format!("{how} {}", work.join("spool").display()))
        .env("LD_PRELOAD", library)
        .env("SYNCED", work.join("synced"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let number = |line: String| line.split("acknowledged ").nth(1)?.parse().ok();
    let mut acknowledged: Vec<u64> = lines.by_ref().filter_map(number).take(after).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    acknowledged.extend(lines.filter_map(number));
    assert!(acknowledged.len() >= after);
    // The last line may be cut in the middle of its number.
    acknowledged.pop();
    acknowledged
}

/// The spool's files, those among them that were removed since they were synced: a disk may show them again.
fn files(work: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for place in ["synced", "spool"] {
        for entry in fs::read_dir(work.join(place)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.starts_with("inbox-") || name == "spool.db" || name == "spool.db-wal" {
                names.insert(name);
            }
        }
    }
    names
}

/// A state in which the disk may be: each sector as it was synced, or as it was written later.
fn after_the_cut(synced: &[u8], written: &[u8], random: &mut StdRng) -> Vec<u8> {
    let (short, long) = (synced.len().min(written.len()), synced.len().max(written.len()));
    let sectors = random.random_range(short / SECTOR..=long / SECTOR);
    let mut left = vec![0; (sectors * SECTOR).max(short)];
    for (number, sector) in left.chunks_mut(SECTOR).enumerate() {
        let from = if random.random_bool(0.5) { synced } else { written };
        let source = from.get(number * SECTOR..).unwrap_or_default();
        let bytes = source.len().min(sector.len());
        sector[..bytes].copy_from_slice(&source[..bytes]);
    }
    left
}

/// How many of the acknowledged events are missing after power cuts; whatever is there must be whole.
fn missing(how: &str, after: usize, cuts: usize, seed: u64) -> usize {
    let work = tempfile::tempdir().unwrap();
    let acknowledged = killed(work.path(), how, after);
    let mut random = StdRng::seed_from_u64(seed);
    let mut missing = 0;
    for _ in 0..cuts {
        let directory = tempfile::tempdir_in(work.path()).unwrap();
        for name in files(work.path()) {
            let [synced, written] = ["synced", "spool"].map(|place| work.path().join(place).join(&name));
            if !written.exists() {
                // It was removed: the disk may know that, or not.
                if random.random_bool(0.5) {
                    fs::copy(&synced, directory.path().join(&name)).unwrap();
                }
                continue;
            }
            let [synced, written] = [synced, written].map(|path| fs::read(path).unwrap_or_default());
            fs::write(directory.path().join(name), after_the_cut(&synced, &written, &mut random)).unwrap();
        }
        let admin = Admin::open(directory.path()).unwrap();
        let stored = admin.list(&Filter::default(), None, usize::MAX).unwrap();
        let ids: BTreeSet<EventId> =
            stored.iter().map(|stored| Event::from_json(stored.body.as_bytes()).unwrap().id).collect();
        assert_eq!(ids.len(), stored.len(), "each once");
        missing += acknowledged.iter().filter(|number| !ids.contains(&event(**number).id)).count();
        let file = rusqlite::Connection::open(directory.path().join("spool.db")).unwrap();
        let sound: String = file.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(sound, "ok");
    }
    missing
}

#[test]
fn a_power_cut_takes_nothing_that_was_acknowledged_and_leaves_no_half_events() {
    for (seed, after) in [(1, 5), (2, 60), (3, 333), (4, 800)] {
        for how in ["full 40", "full 0"] {
            assert_eq!(missing(how, after, 15, seed), 0, "seed {seed}, {how}");
        }
    }
}

#[test]
fn without_the_sync_it_would_take_some() {
    assert!(missing("normal 0", 120, 25, 5) > 0, "or the test above proves nothing");
}
