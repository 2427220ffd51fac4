//! Tests of who counts for a person, whatever process stores the event.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::Path;

use super::tests::{LEASE, settings, unheard};
use super::*;
use crate::event::Machine;
use crate::queue::First;
use crate::queue::testing::event;

/// An event of a hit with this verdict, of one recipient.
fn hit(number: u64, machine: Machine) -> Publication {
    let mut event = event(number);
    event.data.machine = Some(machine);
    let held_until = Some(clock::now().plus(LEASE));
    Publication { held_until, first: Some(First { key: [1; 16], within: 2 * LEASE }), ..event.into() }
}

/// The same with another verdict.
fn verdict(number: u64, machine: Machine) -> Amendment {
    let Publication { event, first, .. } = hit(number, machine);
    Amendment { event, first: first.map(|first| first.key) }
}

/// Of each event, in order: `unique`, and `upgrade`.
fn counted(directory: &Path) -> Vec<(bool, bool)> {
    let stored = Admin::open(directory).unwrap().list(&Filter::default(), None, 100).unwrap();
    let data = stored.iter().map(|row| Event::from_json(row.body.as_bytes()).unwrap().data);
    data.map(|data| (data.unique == Some(true), data.upgrade == Some(true))).collect()
}

#[tokio::test]
async fn a_person_after_a_machine_counts_once_whatever_process_it_comes_to() {
    use Machine::{Certain, No, Probable};
    let directory = tempfile::tempdir().unwrap();
    let open = || Spool::open(settings(directory.path())).unwrap();
    open().publish_all(&[hit(1, Certain), hit(2, Probable)], unheard()).await.unwrap();
    let spool = open();
    spool.publish_all(&[hit(3, No), hit(4, No)], unheard()).await.unwrap();
    // Again, as after an error.
    spool.publish_all(&[hit(3, No)], unheard()).await.unwrap();
    let (none, unique, upgrade) = ((false, false), (true, false), (false, true));
    // Whoever looks at the events has them moved on first.
    spool.amend(&[]).await.unwrap();
    assert_eq!(counted(directory.path()), [unique, none, upgrade, none]);
    // What amends a person's event knows no more of it; what makes a machine of it lets somebody else count.
    spool.amend(&[verdict(3, No), verdict(4, No)]).await.unwrap();
    assert_eq!(counted(directory.path()), [unique, none, upgrade, none]);
    spool.amend(&[verdict(4, Certain)]).await.unwrap();
    assert_eq!(counted(directory.path()), [unique, none, upgrade, none]);
    spool.amend(&[verdict(3, Certain)]).await.unwrap();
    assert_eq!(counted(directory.path()), [unique, none, none, none]);
    drop(spool);
    let spool = open();
    spool.publish_all(&[hit(5, Certain), hit(6, No)], unheard()).await.unwrap();
    spool.amend(&[verdict(2, Certain)]).await.unwrap();
    assert_eq!(counted(directory.path()), [unique, none, none, none, none, upgrade]);
    // The two change places: the person is the unique one now, and the only one that counts.
    let with_id = |number: u64, of: u64, machine| {
        let mut amendment = verdict(of, machine);
        Arc::make_mut(&mut amendment.event).id = event(number).id;
        amendment
    };
    spool.amend(&[with_id(1, 6, No), with_id(6, 1, Certain)]).await.unwrap();
    spool.publish_all(&[hit(7, No)], unheard()).await.unwrap();
    spool.amend(&[]).await.unwrap();
    assert_eq!(counted(directory.path()), [unique, none, none, none, none, none, none]);
}

#[tokio::test]
async fn of_keys_from_before_people_were_known_nothing_is_claimed() {
    let directory = tempfile::tempdir().unwrap();
    let path = settings(directory.path()).path();
    let older = sqlite::open(&path, 0o600, &schema::MIGRATIONS[..5]).unwrap();
    let until = store::millis(clock::now().plus(LEASE));
    older
        .execute("INSERT INTO first (key, until_ms) VALUES (?1, ?2)", rusqlite::params![[1_u8; 16], until])
        .unwrap();
    drop(older);
    let spool = Spool::open(settings(directory.path())).unwrap();
    spool.publish_all(&[hit(1, Machine::No)], unheard()).await.unwrap();
    spool.amend(&[]).await.unwrap();
    assert_eq!(counted(directory.path()), [(false, false)]);
}
