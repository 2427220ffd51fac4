//! Tests of what time takes out of the spool, and of clocks that are wrong for a while.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Mutex;

use super::inbox::append::FILE_BYTES;
use super::tests::{settings, status};
use super::*;
use crate::queue::testing::event;

#[test]
fn what_nobody_took_in_time_becomes_a_dead_letter_or_is_dropped() {
    const HOUR: Duration = Duration::from_secs(3_600);
    for too_old in [TooOld::Bury, TooOld::Drop] {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings { too_old, trust_clock_after: Duration::ZERO, ..settings(directory.path()) };
        let mut connection = sqlite::open(&settings.path(), settings.file_mode, schema::MIGRATIONS).unwrap();
        let then = Timestamp::from_secs(1_795_453_000);
        let mut put = |numbers: std::ops::Range<u64>, now: Timestamp| {
            let mut records = Vec::new();
            for event in numbers.map(event) {
                assert!(inbox::record::put_event(&mut records, &NewRow::from(&event).incoming(now)));
            }
            let mut appender = inbox::append::Appender::new(directory.path().into(), 0o600, FILE_BYTES);
            appender.append(&records).1.unwrap();
            let transaction = connection.transaction().unwrap();
            let mut inbox = inbox::Inbox::new(directory.path().into());
            let days = crate::queue::seen::Days::of(&transaction, now).unwrap();
            inbox.sweep(&transaction, usize::MAX, &days).unwrap();
            transaction.commit().unwrap();
        };
        put(0..1_500, then);
        put(1_500..1_510, then.plus(2 * HOUR));
        // Held by somebody; held by somebody who is gone.
        store::claim(&connection, 2, then, then.plus(80 * HOUR)).unwrap();
        store::claim(&connection, 3, then, then.plus(HOUR / 60)).unwrap();
        let clock = Arc::new(Mutex::new(then.plus(70 * HOUR)));
        let ticking = clock.clone();
        let (news, _) = watch::channel(0);
        let room = Arc::new(Room::new(&settings));
        let mut writer =
            Writer::new(settings, Arc::new(move || *ticking.lock().unwrap()), news, room, connection);
        use crate::queue::group::Work;
        assert!(!writer.care());
        assert_eq!(status(directory.path()).pending, 1_505, "nothing is too old yet");
        *clock.lock().unwrap() = then.plus(72 * HOUR);
        assert!(writer.care(), "there is more to do");
        while writer.care() {}
        let status = status(directory.path());
        let buried = if too_old == TooOld::Bury { 1_498 } else { 0 };
        assert_eq!((status.pending, status.claimed, status.dead), (10, 2, buried));
        let dead = Admin::open(directory.path()).unwrap().list(&Filter::dead_letters(), None, 9_999).unwrap();
        assert!(dead.iter().all(|letter| letter.reason.as_deref() == Some("expired")));
    }
}

/// Ten days ahead for a minute, and back.
#[test]
fn a_clock_that_is_wrong_for_a_while_takes_nothing_and_holds_nothing_up() {
    use crate::queue::group::Work;
    const MINUTE: Duration = Duration::from_secs(60);
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let connection = sqlite::open(&settings.path(), settings.file_mode, schema::MIGRATIONS).unwrap();
    let other = sqlite::open(&settings.path(), settings.file_mode, schema::MIGRATIONS).unwrap();
    let then = Timestamp::from_secs(1_795_453_000);
    let clock = Arc::new(Mutex::new(then));
    let ticking = clock.clone();
    let (news, _) = watch::channel(0);
    let room = Arc::new(Room::new(&settings));
    let mut writer = Writer::new(settings, Arc::new(move || *ticking.lock().unwrap()), news, room, other);
    let mut at = |now: Timestamp, numbers: std::ops::Range<u64>| {
        *clock.lock().unwrap() = now;
        let mut records = Vec::new();
        for event in numbers.map(event) {
            assert!(inbox::record::put_event(&mut records, &NewRow::from(&event).incoming(now)));
        }
        let mut appender = inbox::append::Appender::new(directory.path().into(), 0o600, FILE_BYTES);
        appender.append(&records).1.unwrap();
        drop(appender);
        while writer.care() {}
        status(directory.path())
    };
    assert_eq!(at(then, 0..4).pending, 4);
    let sent = store::claim(&connection, 1, then, then.plus(MINUTE)).unwrap();
    store::settle(&connection, sent[0].seq, &Outcome::Done, then).unwrap();
    let ahead = then.plus(10 * 24 * 60 * MINUTE);
    let claimed = store::claim(&connection, 2, ahead, ahead.plus(MINUTE)).unwrap();
    let retry = Outcome::Retry { not_before: ahead.plus(MINUTE), reason: "503".into() };
    store::settle(&connection, claimed[0].seq, &retry, ahead).unwrap();
    let status = at(ahead, 4..5);
    assert_eq!((status.pending, status.claimed, status.dead), (3, 1, 0), "nothing is too old");

    let back = then.plus(2 * MINUTE);
    let status = at(back, 0..5);
    assert_eq!((status.pending, status.claimed), (3, 1), "each is known, also the one that was sent");
    let claim = |now: Timestamp| store::claim(&connection, 9, now, now.plus(MINUTE)).unwrap().len();
    assert_eq!(claim(back), 3, "nobody waits ten days");
    assert_eq!(claim(back.plus(61 * MINUTE)), 4, "nor for a lease");
}
