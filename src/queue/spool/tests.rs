//! Tests of the spool: a model, other processes, kills, limits, a full disk.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::sync::Mutex;

use super::inbox::append::FILE_BYTES;
use super::*;
use crate::queue::First;
use crate::queue::testing::event;

pub(super) const LEASE: Duration = Duration::from_secs(60);
/// Names the directory for the tests that are run as children of others.
const CHILD: &str = "MAILTAP_TEST_SPOOL_CHILD";

pub(super) fn settings(directory: &Path) -> Settings {
    Settings { directory: directory.to_owned(), ..Settings::default() }
}

pub(super) fn open_at(directory: &Path, now: &Arc<Mutex<Timestamp>>) -> Spool {
    let settings = Settings { group_wait: Duration::ZERO, ..settings(directory) };
    let connection = sqlite::open(&settings.path(), settings.file_mode, schema::MIGRATIONS).unwrap();
    let now = now.clone();
    Spool::start(settings, Arc::new(move || *now.lock().unwrap()), connection, FILE_BYTES).unwrap()
}

pub(super) fn status(directory: &Path) -> Status {
    Admin::open(directory).unwrap().status().unwrap()
}

/// For those who only wait for the answer.
pub(super) fn unheard() -> OnStored {
    OnStored::new(|| {})
}

fn seqs(claimed: &[Claimed]) -> Vec<Seq> {
    claimed.iter().map(|claimed| claimed.seq).collect()
}

#[tokio::test]
async fn what_was_published_is_claimed_in_order_and_gone_when_done() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(settings(directory.path())).unwrap();
    spool.publish((0..5).map(event).collect()).await.unwrap();
    let now = clock::now();
    let first = spool.claim(3, LEASE, now).await.unwrap();
    let events: Vec<_> = first.iter().map(|claimed| claimed.event.clone()).collect();
    assert_eq!(events, (0..3).map(event).collect::<Vec<_>>());
    assert!(first.iter().all(|claimed| claimed.attempts == 1));
    let rest = spool.claim(10, LEASE, now).await.unwrap();
    assert_eq!(rest.len(), 2, "what another one holds is not claimed again");
    spool.done(&seqs(&first)).await.unwrap();
    spool.publish((0..5).map(event).collect()).await.unwrap();
    assert!(spool.claim(10, LEASE, now).await.unwrap().is_empty(), "what was sent is not taken again");
    let status = status(directory.path());
    assert_eq!((status.pending, status.claimed, status.seen), (0, 2, 5));
}

#[tokio::test]
async fn a_full_spool_refuses_what_is_new_and_takes_it_when_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(Settings { max_rows: 3, ..settings(directory.path()) }).unwrap();
    spool.publish((0..3).map(event).collect()).await.unwrap();
    assert_eq!(spool.publish(vec![event(3)]).await, Err(PublishError::Full));
    assert_eq!(spool.publish(vec![event(1)]).await, Ok(()), "what is there needs no room");
    let claimed = spool.claim(1, LEASE, clock::now()).await.unwrap();
    spool.done(&seqs(&claimed)).await.unwrap();
    assert_eq!(spool.publish(vec![event(3)]).await, Ok(()));

    let directory = tempfile::tempdir().unwrap();
    let bytes = event(0).to_json().len() as u64;
    let max_bytes = 2 * (bytes + schema::ROW_BYTES);
    let spool = Spool::open(Settings { max_bytes, ..settings(directory.path()) }).unwrap();
    assert_eq!(spool.publish(vec![event(0), event(8)]).await, Ok(()));
    assert_eq!(status(directory.path()).bytes, max_bytes);
    assert_eq!(spool.publish(vec![event(16)]).await, Err(PublishError::Full));
}

#[tokio::test]
async fn what_is_held_is_amended_until_it_is_due_and_claimed_only_then() {
    let directory = tempfile::tempdir().unwrap();
    let now = Arc::new(Mutex::new(Timestamp::from_secs(1_795_453_000)));
    let pass = |secs| {
        let mut now = now.lock().unwrap();
        *now = now.plus(Duration::from_secs(secs));
        *now
    };
    let spool = open_at(directory.path(), &now);
    let held = Publication { held_until: Some(pass(0).plus(LEASE)), ..event(1).into() };
    spool.publish_all(&[held.clone(), event(2).into()], unheard()).await.unwrap();
    let amended = |campaign: &str| {
        let mut event = event(1);
        event.data.campaign = Some(campaign.parse().unwrap());
        event
    };
    let longer = amended("much-longer-than-it-was-before");
    assert_eq!(
        spool.amend(&[longer.clone(), event(2), event(3)].map(Amendment::from)).await,
        Ok(vec![true, false, false])
    );
    let bytes = [&longer, &event(2)].map(|event| event.to_json().len() as u64 + schema::ROW_BYTES);
    assert_eq!(status(directory.path()).bytes, bytes.iter().sum::<u64>(), "the tally knows the new length");
    let first = spool.claim(10, LEASE, pass(59)).await.unwrap();
    assert_eq!(first.iter().map(|claim| &claim.event).collect::<Vec<_>>(), [&event(2)]);

    drop(spool);
    let spool = open_at(directory.path(), &now);
    spool.publish_all(&[held], unheard()).await.unwrap();
    assert_eq!(spool.amend(&[amended("late").into()]).await, Ok(vec![true]), "it is on disk");
    let now = pass(1);
    assert_eq!(spool.amend(&[amended("too-late").into()]).await, Ok(vec![false]), "it is due");
    let claimed = spool.claim(10, LEASE, now).await.unwrap();
    assert_eq!((&claimed[0].event, claimed.len()), (&amended("late"), 1));
    let retry = Outcome::Retry { not_before: now.plus(LEASE), reason: "busy".into() };
    spool.settle(vec![(claimed[0].seq, retry)]).await.unwrap();
    assert_eq!(spool.amend(&[amended("tried").into()]).await, Ok(vec![false]), "it may have been seen");
}

#[tokio::test]
async fn the_first_with_a_key_is_unique_within_its_window() {
    let directory = tempfile::tempdir().unwrap();
    let now = Arc::new(Mutex::new(Timestamp::from_secs(1_795_453_000)));
    let spool = Spool::start(
        Settings { max_rows: 4, ..settings(directory.path()) },
        Arc::new({
            let now = now.clone();
            move || *now.lock().unwrap()
        }),
        sqlite::open(&settings(directory.path()).path(), 0o600, schema::MIGRATIONS).unwrap(),
        FILE_BYTES,
    )
    .unwrap();
    let until = now.lock().unwrap().plus(LEASE);
    let of = |number, key| {
        let first = First { key: [key; 16], within: 2 * LEASE };
        Publication { held_until: Some(until), first: Some(first), ..event(number).into() }
    };
    spool.publish_all(&[of(1, 1), of(2, 1), of(3, 2)], unheard()).await.unwrap();
    // Again, as after an error: what is stored stays what it was.
    spool.publish_all(&[of(1, 1), of(2, 1)], unheard()).await.unwrap();
    spool.amend(&[event(1), event(2)].map(Amendment::from)).await.unwrap();
    *now.lock().unwrap() = until.plus(LEASE).minus(Duration::from_millis(1));
    spool.publish_all(&[of(4, 1)], unheard()).await.unwrap();
    assert_eq!(spool.publish_all(&[of(5, 3)], unheard()).await, Err(PublishError::Full));
    let mut unique = Vec::new();
    let mut drain = async || {
        let time = *now.lock().unwrap();
        let claimed = spool.claim(10, LEASE, time).await.unwrap();
        unique.extend(claimed.iter().map(|claim| claim.event.data.unique.unwrap()));
        spool.done(&seqs(&claimed)).await.unwrap();
    };
    drain().await;
    {
        let mut now = now.lock().unwrap();
        *now = now.plus(Duration::from_millis(1));
    }
    // The window of key 1 is over; key 3 is still new, since its event was not taken.
    spool.publish_all(&[of(6, 1), of(5, 3)], unheard()).await.unwrap();
    drain().await;
    assert_eq!(unique, [true, false, true, false, true, true]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_offered_and_stored_too_late_is_taken_back() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(settings(directory.path())).unwrap();
    let (mut kept, mut given_up) = (0, 0);
    for number in 0..200 {
        // The caller gives up at some moment: before its turn, while it is written, after the answer was sent, …
        let patience = Duration::from_micros(number * 15);
        match tokio::time::timeout(patience, spool.offer(vec![event(number)])).await {
            Ok(stored) => {
                stored.unwrap();
                kept += 1;
            }
            Err(_) => given_up += 1,
        }
    }
    // Behind all revocations.
    spool.publish(vec![event(1_000)]).await.unwrap();
    let found = status(directory.path());
    assert_eq!((found.pending, found.seen), (kept + 1, kept + 1), "{given_up} were given up");
    // Somebody else may have seen it: then it did happen.
    let offered = spool.offer(vec![event(2_000)]);
    offered.await.unwrap();
    let claimed = spool.claim(usize::MAX, LEASE, clock::now()).await.unwrap();
    spool.0.publishing.tell(Put::Revoke(vec![event(2_000).id]));
    spool.publish(vec![event(1_001)]).await.unwrap();
    assert_eq!(status(directory.path()).claimed as usize, claimed.len());
}

#[test]
fn what_was_given_up_before_its_turn_is_not_written() {
    use crate::queue::group::Work;
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(settings(directory.path())).unwrap();
    let mut publishing = Publishing::new(
        spool.settings(),
        clock::shared(),
        watch::channel(0).0,
        Arc::new(Room::new(spool.settings())),
        Arc::clone(&spool.0.writer),
        FILE_BYTES,
    );
    let put = |number, offered| {
        let (answer, waiting) = oneshot::channel();
        (Put::Events { rows: vec![NewRow::from(&event(number))], offered, stored: None, answer }, waiting)
    };
    let files = || {
        let entries = std::fs::read_dir(directory.path()).unwrap().map(Result::unwrap);
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("inbox-")).count()
    };
    for offered in [true, false] {
        let (events, waiting) = put(1, offered);
        drop(waiting);
        publishing.work(vec![events]);
        publishing.work(if offered { vec![Put::Revoke(vec![event(1).id])] } else { Vec::new() });
        assert_eq!(files(), 0, "{offered}");
    }
    let (events, mut waiting) = put(1, true);
    publishing.work(vec![events, Put::Revoke(vec![event(1).id]), Put::Revoke(vec![event(2).id])]);
    assert_eq!(waiting.try_recv(), Ok(Ok(())));
    assert_eq!((files(), status(directory.path()).pending), (1, 0));
    let full = Settings { max_rows: 0, ..spool.settings().clone() };
    let mut publishing = Publishing::new(
        &full,
        clock::shared(),
        watch::channel(0).0,
        Arc::new(Room::new(&full)),
        Arc::clone(&spool.0.writer),
        FILE_BYTES,
    );
    let (events, mut waiting) = put(3, true);
    publishing.work(vec![events]);
    assert_eq!(waiting.try_recv(), Ok(Err(PublishError::Full)));
    publishing.work(vec![Put::Revoke(vec![event(3).id])]);
    assert_eq!(files(), 1, "what was refused is not revoked");
}

#[tokio::test]
async fn a_store_that_is_gone_takes_nothing_before_it_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(settings(directory.path())).unwrap();
    spool.publish(vec![event(1)]).await.unwrap();
    let (store, away) = (spool.settings().path(), directory.path().join("away"));
    let look_again = Duration::from_millis(150);
    std::fs::hard_link(&store, &away).unwrap();
    std::fs::remove_file(&store).unwrap();
    for replaced in [false, true] {
        if replaced {
            std::fs::write(&store, "").unwrap();
        }
        tokio::time::sleep(look_again).await;
        let refused = spool.publish(vec![event(2)]).await.unwrap_err().to_string();
        assert!(refused.contains(store.to_str().unwrap()) && refused.contains("restart"), "{refused}");
    }
    std::fs::remove_file(&store).unwrap();
    std::fs::hard_link(&away, &store).unwrap();
    tokio::time::sleep(look_again).await;
    spool.publish(vec![event(2)]).await.unwrap();
    assert_eq!(status(directory.path()).pending, 2);
}

#[tokio::test]
async fn a_database_without_room_is_an_error_that_passes() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let connection = sqlite::open(&settings.path(), settings.file_mode, schema::MIGRATIONS).unwrap();
    // SQLite gives the same answer at its own limit of pages as on a full disk.
    connection.pragma_update(None, "max_page_count", 100).unwrap();
    let spool = Spool::start(settings, Arc::new(clock::now), connection, FILE_BYTES).unwrap();
    let mut kept = Vec::new();
    let refused = loop {
        // Publishing needs no page.
        let number = kept.len() as u64;
        spool.publish(vec![event(number)]).await.unwrap();
        kept.push(event(number).id);
        let claimed = spool.claim(1, Duration::ZERO, clock::now()).await;
        if let Err(error) = claimed {
            break error.to_string();
        }
    };
    assert!(refused.contains("full"), "{refused}");
    let other = Spool::open(spool.settings().clone()).unwrap();
    let claimed = other.claim(usize::MAX, LEASE, clock::now()).await.unwrap();
    let ids: std::collections::BTreeSet<_> = claimed.iter().map(|claimed| claimed.event.id).collect();
    assert_eq!((claimed.len(), ids), (kept.len(), kept.iter().copied().collect()));
    other.done(&seqs(&claimed)).await.unwrap();
    spool.publish(vec![event(kept.len() as u64)]).await.unwrap();
    assert_eq!(spool.claim(9, LEASE, clock::now()).await.unwrap().len(), 1);
}

/// Publishes to a file that may not grow beyond 64 KiB, until that is refused, and then once more.
#[tokio::test]
#[ignore = "run by other tests as a process of its own"]
async fn child_fills_its_file() {
    let Some(directory) = std::env::var_os(CHILD) else { return };
    let spool = Spool::open(settings(Path::new(&directory))).unwrap();
    let mut number = 0;
    let error = loop {
        let group: Vec<_> = (number..number + 7).map(event).collect();
        match spool.publish(group).await {
            Ok(()) => number += 7,
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, PublishError::Storage(why) if why.contains("large")), "{error}");
    assert_eq!(spool.publish(vec![event(number + 50)]).await, Err(error));
    println!("acknowledged {number}");
}

#[test]
fn a_file_that_takes_no_more_keeps_whole_events_and_others_go_on() {
    let directory = tempfile::tempdir().unwrap();
    // The kernel cuts a write at this limit as it does on a full disk.
    let limited = format!(
        "trap '' XFSZ; ulimit -f 64; exec '{}' --exact queue::spool::tests::child_fills_its_file --ignored --nocapture",
        std::env::current_exe().unwrap().display()
    );
    let child = Process::new("bash").args(["-c", &limited]).env(CHILD, directory.path()).output().unwrap();
    let said = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(child.status.success(), "{said} {}", String::from_utf8_lossy(&child.stderr));
    let line = said.lines().find_map(|line| line.split("acknowledged ").nth(1)).unwrap();
    let acknowledged: u64 = line.parse().unwrap();
    assert!(acknowledged > 50);
    let events = Admin::open(directory.path()).unwrap().list(&Filter::default(), None, usize::MAX).unwrap();
    let ids: std::collections::BTreeSet<_> =
        events.iter().map(|stored| Event::from_json(stored.body.as_bytes()).unwrap().id).collect();
    assert!((0..acknowledged).all(|number| ids.contains(&event(number).id)));
    assert!(ids.len() == events.len() && ids.len() as u64 <= acknowledged + 8, "whole, and none twice");
}

#[tokio::test]
async fn the_last_of_the_disk_is_for_sending_what_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let plenty = Spool::open(settings(directory.path())).unwrap();
    plenty.publish(vec![event(0)]).await.unwrap();
    let scarce = Spool::open(Settings { reserve_bytes: u64::MAX, ..settings(directory.path()) }).unwrap();
    let refused = scarce.publish(vec![event(1)]).await;
    assert!(matches!(refused, Err(PublishError::Storage(_))), "{refused:?}");
    let claimed = scarce.claim(10, LEASE, clock::now()).await.unwrap();
    scarce.done(&seqs(&claimed)).await.unwrap();
    assert_eq!(status(directory.path()).bytes, 0);
}

#[tokio::test]
async fn what_is_no_event_goes_to_the_dead_letters_and_these_are_listed_replayed_and_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(settings(directory.path())).unwrap();
    let addressed = |number: u64| {
        let mut event = event(number);
        event.data.recipient = Some([u8::try_from(number).unwrap(); 12].into());
        event
    };
    spool.publish((0..4).map(addressed).collect()).await.unwrap();
    assert_eq!(status(directory.path()).pending, 4);
    let other = rusqlite::Connection::open(spool.settings().path()).unwrap();
    other.execute("UPDATE event SET body = 'ann@example.org' WHERE seq = 1", []).unwrap();
    let now = clock::now();
    let claimed = spool.claim(10, LEASE, now).await.unwrap();
    assert_eq!(claimed.len(), 3);
    let outcomes = [
        Outcome::Dead { reason: "Refused: too old".into() },
        Outcome::Uncertain,
        Outcome::Dead { reason: format!("long {}", "ü".repeat(1_000)) },
    ];
    spool.settle(seqs(&claimed).into_iter().zip(outcomes).collect()).await.unwrap();

    let mut admin = Admin::open(directory.path()).unwrap();
    let list = |filter: Filter| admin.list(&filter, None, 100).unwrap();
    let all = list(Filter::dead_letters());
    assert_eq!(all.len(), 4);
    assert!(all[0].reason.as_ref().unwrap().starts_with("malformed: "), "{:?}", all[0].reason);
    assert!(!all[0].reason.as_ref().unwrap().contains('@'));
    assert_eq!(all[3].reason.as_ref().unwrap().chars().count(), store::REASON_CHARS);
    let count = |filter: Filter| list(filter).len();
    assert_eq!(count(Filter { reason: Some("refused".into()), ..Filter::default() }), 1);
    assert_eq!(count(Filter { kind: Some(event(2).kind), ..Filter::default() }), 1);
    assert_eq!(count(Filter { campaign: event(3).data.campaign, ..Filter::default() }), 1);
    assert_eq!(count(Filter { id: Some(event(3).id), ..Filter::default() }), 1);
    for (recipient, of) in [([2; 12], 1), ([9; 12], 0)] {
        let filter = Filter { recipient: Some(recipient.into()), ..Filter::default() };
        assert_eq!(filter.lets_through(State::Dead, None, Some(&addressed(2))), of == 1);
        assert!(!filter.lets_through(State::Dead, None, Some(&event(2))));
        assert_eq!(count(filter), of);
    }
    assert_eq!(count(Filter { since: Some(event(2).time), ..Filter::default() }), 2);
    assert_eq!(count(Filter { until: Some(event(2).time), ..Filter::default() }), 1);
    assert_eq!(count(Filter { states: vec![State::Uncertain], ..Filter::default() }), 1);
    assert_eq!(count(Filter { reason: Some("uncertain".into()), ..Filter::default() }), 1);
    assert_eq!(admin.list(&Filter::default(), Some(all[1].seq), 1).unwrap()[0].seq, all[2].seq);

    let uncertain = Filter { states: vec![State::Uncertain], ..Filter::default() };
    assert_eq!(admin.replay(&uncertain, clock::now()).unwrap(), 1);
    let again = spool.claim(10, LEASE, clock::now()).await.unwrap();
    assert_eq!((again[0].event.id, again[0].attempts), (event(2).id, 1));
    assert_eq!(admin.drop_dead(&Filter::default()).unwrap(), 3, "what is claimed is no dead letter");
    assert_eq!(admin.status().unwrap().claimed, 1);
}

#[tokio::test]
async fn two_handles_give_each_event_to_one() {
    let directory = tempfile::tempdir().unwrap();
    let one = Spool::open(settings(directory.path())).unwrap();
    let two = Spool::open(settings(directory.path())).unwrap();
    let publish = async |spool: &Spool, from: u64| {
        for number in 0..50 {
            let numbers = from + number * 10..from + number * 10 + 10;
            spool.publish(numbers.map(event).collect()).await.unwrap();
        }
    };
    // Both publish the middle third.
    tokio::join!(publish(&one, 0), publish(&two, 250));
    let consume = async |spool: &Spool| {
        let mut ids = Vec::new();
        loop {
            let claimed = spool.claim(7, LEASE, clock::now()).await.unwrap();
            if claimed.is_empty() {
                return ids;
            }
            ids.extend(claimed.iter().map(|claimed| claimed.event.id));
            spool.done(&seqs(&claimed)).await.unwrap();
        }
    };
    let (mut ids, more) = tokio::join!(consume(&one), consume(&two));
    ids.extend(more);
    ids.sort_unstable();
    let mut expected: Vec<_> = (0..750).map(|number| event(number).id).collect();
    expected.sort_unstable();
    assert_eq!(ids, expected);
}

fn child(test: &str, directory: &Path) -> Child {
    Process::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("queue::spool::tests::{test}"), "--ignored", "--nocapture"])
        .env(CHILD, directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Publishes from several tasks and says so after each answer, until it is killed.
#[tokio::test]
#[ignore = "run by other tests as a process of its own"]
async fn child_publishes() {
    let Some(directory) = std::env::var_os(CHILD) else { return };
    let spool = Spool::open(settings(Path::new(&directory))).unwrap();
    let from = u64::from(std::process::id()) * 1_000_000;
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let spool = spool.clone();
            tokio::spawn(async move {
                for number in 0..10_000 {
                    let number = from + task * 100_000 + number;
                    spool.publish(vec![event(number)]).await.unwrap();
                    println!("acknowledged {number}");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_kills_of_two_processes_that_share_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let mut children =
            [child("child_publishes", directory.path()), child("child_publishes", directory.path())];
        let (ripe, both_ripe) = std::sync::mpsc::channel();
        let outputs = children.each_mut().map(|child| child.stdout.take().unwrap());
        let readers = outputs.map(|output| {
            let ripe = ripe.clone();
            std::thread::spawn(move || {
                let mut numbers = Vec::<u64>::new();
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let number = line.split("acknowledged ").nth(1).and_then(|number| number.parse().ok());
                    let Some(number) = number else { continue };
                    numbers.push(number);
                    if numbers.len() == 30 + 100 * round {
                        ripe.send(()).unwrap();
                    }
                }
                numbers
            })
        });
        for _ in 0..2 {
            both_ripe.recv_timeout(Duration::from_secs(60)).expect("each process gets its turn");
        }
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        for reader in readers {
            let mut numbers = reader.join().unwrap();
            // The last line may be cut in the middle of its number.
            numbers.pop();
            acknowledged.extend(numbers);
        }
    }
    let spool = Spool::open(settings(directory.path())).unwrap();
    let there = spool.claim(usize::MAX, LEASE, clock::now()).await.unwrap();
    let there: std::collections::BTreeSet<_> = there.iter().map(|claimed| claimed.event.id).collect();
    assert!(acknowledged.len() > 100, "{}", acknowledged.len());
    for number in acknowledged {
        assert!(there.contains(&event(number).id), "{number} was acknowledged and is lost");
    }
}
