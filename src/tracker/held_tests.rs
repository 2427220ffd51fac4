//! Tests of what is held, against a spool that only remembers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::event::{Data, Kind};
use crate::identity::MessageId;

const HOLD: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(86_400);

fn at(ms: u64) -> Timestamp {
    Timestamp::from_millis(1_795_453_080_000 + ms)
}

/// An event whose agent tells which hit its facts are of.
fn event(number: u64, machine: Machine, ms: u64) -> Event {
    Event {
        id: EventId::of("held test").part(number.to_be_bytes()).finish(),
        source: "mailtap/tracker/test".into(),
        kind: Kind::Opened,
        time: at(ms),
        message: MessageId::new(at(0), 7),
        data: Data { agent: Some(number.to_string()), machine: Some(machine), ..Data::default() },
    }
}

/// Rows as the spool has them.
struct Spool {
    rows: BTreeMap<EventId, (Event, Timestamp)>,
    firsts: std::collections::HashSet<FirstKey>,
    /// Sends so much earlier than it was told.
    early: Duration,
}

struct Bench {
    held: Held,
    spool: Spool,
}

impl Bench {
    fn new(early: Duration) -> Self {
        let spool = Spool { rows: BTreeMap::new(), firsts: std::collections::HashSet::new(), early };
        Self { held: Held::new(HOLD, DAY, Limits::default()), spool }
    }

    fn hit(&mut self, number: u64, machine: Machine, key: u8, ms: u64) {
        let mut event = Arc::new(event(number, machine, ms));
        let key = [key; 16];
        let change = self.held.admit(&mut event, Some(key), true, at(ms));
        let mut event = Arc::unwrap_or_clone(event);
        event.data.unique = Some(self.spool.firsts.insert(key));
        self.spool.rows.insert(event.id, (event, at(ms).plus(HOLD)));
        self.apply(change.into_iter().collect(), ms);
    }

    fn correct(&mut self, number: u64, machine: Machine, ms: u64) {
        let id = event(number, machine, 0).id;
        let changes = self.held.correct(&Correction { id, machine, rule: "late".into() }, at(ms));
        self.apply(changes, ms);
    }

    fn apply(&mut self, changes: Vec<Change>, ms: u64) {
        for change in changes {
            match change {
                Change::Amend(event) => drop(self.amend(Arc::unwrap_or_clone(event), ms)),
                Change::Swap { first, then, person, machine } => {
                    if self.amend(Arc::unwrap_or_clone(first), ms) {
                        assert!(self.amend(Arc::unwrap_or_clone(then), ms), "what came later is held longer");
                    } else {
                        let change = self.held.too_late(person, machine);
                        self.apply(change.into_iter().collect(), ms);
                    }
                }
            }
        }
    }

    fn amend(&mut self, mut event: Event, ms: u64) -> bool {
        let (row, until) = self.spool.rows.get_mut(&event.id).expect("a row");
        if at(ms).plus(self.spool.early) >= *until {
            return false;
        }
        event.data.unique = row.data.unique;
        *row = event;
        true
    }

    /// Of each row: whose facts, machine, unique, upgrade.
    fn rows(&self) -> Vec<(String, Machine, bool, bool)> {
        let mut rows: Vec<_> = self
            .spool
            .rows
            .values()
            .map(|(event, _)| {
                let data = &event.data;
                let agent = data.agent.clone().unwrap();
                (agent, data.machine.unwrap(), data.unique.unwrap(), data.upgrade == Some(true))
            })
            .collect();
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        rows
    }
}

use Machine::{Certain, No, Probable};

#[test]
fn case_77_a_person_after_a_machine_takes_its_place_while_it_is_held() {
    let mut bench = Bench::new(Duration::ZERO);
    bench.hit(1, Probable, 1, 0);
    bench.hit(2, No, 1, 10_000);
    bench.hit(3, No, 1, 11_000);
    let expected = [("1", Probable, false), ("2", No, true), ("3", No, false)];
    assert_eq!(bench.rows(), expected.map(|(who, machine, unique)| (who.to_owned(), machine, unique, false)));
}

#[test]
fn case_77_later_the_person_says_so_and_is_no_second_unique() {
    let mut bench = Bench::new(Duration::ZERO);
    bench.hit(1, Certain, 1, 0);
    bench.hit(2, No, 1, 40_000);
    bench.hit(3, No, 1, 41_000);
    let expected = [("1", Certain, true, false), ("2", No, false, true), ("3", No, false, false)];
    assert_eq!(
        bench.rows(),
        expected.map(|(who, machine, unique, up)| (who.to_owned(), machine, unique, up))
    );
}

#[test]
fn a_person_found_out_hands_the_place_to_the_next() {
    let mut bench = Bench::new(Duration::ZERO);
    bench.hit(1, No, 1, 0);
    bench.hit(2, No, 1, 1_000);
    bench.correct(1, Certain, 2_000);
    let expected = [("1", Certain, false, false), ("2", No, true, false)];
    assert_eq!(
        bench.rows(),
        expected.map(|(who, machine, unique, up)| (who.to_owned(), machine, unique, up))
    );
    bench.correct(2, Probable, 3_000);
    bench.hit(3, No, 1, 4_000);
    let expected = [("1", Certain, false, false), ("2", Probable, false, false), ("3", No, true, false)];
    assert_eq!(
        bench.rows(),
        expected.map(|(who, machine, unique, up)| (who.to_owned(), machine, unique, up))
    );
}

#[test]
fn a_spool_that_has_sent_the_first_already_loses_nothing() {
    let mut bench = Bench::new(Duration::from_secs(15));
    bench.hit(1, Probable, 1, 0);
    bench.hit(2, No, 1, 20_000);
    let expected = [("1", Probable, true, false), ("2", No, false, true)];
    assert_eq!(
        bench.rows(),
        expected.map(|(who, machine, unique, up)| (who.to_owned(), machine, unique, up))
    );
}

#[test]
fn what_was_before_this_process_is_not_claimed() {
    let mut held = Held::new(HOLD, DAY, Limits::default());
    held.admit(&mut Arc::new(event(1, Probable, 0)), Some([1; 16]), false, at(0));
    let mut person = Arc::new(event(2, No, 1_000));
    assert_eq!(held.admit(&mut person, Some([1; 16]), false, at(1_000)), None);
    assert_eq!(person.data.upgrade, None);
}

#[test]
fn nothing_grows_without_bound() {
    let mut held = Held::new(HOLD, DAY, Limits { events: 10, keys: 5 });
    for number in 0..100_u8 {
        held.admit(&mut Arc::new(event(number.into(), No, 0)), Some([number; 16]), true, at(0));
    }
    assert!(held.entries.len() <= 10 && held.order.len() <= 10);
    assert!(held.keys.len() <= 5 && held.key_order.len() <= 5);
    assert_eq!(held.take_forgotten(), 90 + 95);
    let mut off = Held::new(Duration::ZERO, DAY, Limits::default());
    off.admit(&mut Arc::new(event(1, No, 0)), None, true, at(0));
    assert!(off.entries.is_empty() && off.until(at(0)).is_none());
    held.expire(at(90_000_000));
    assert!(held.entries.is_empty() && held.keys.is_empty());
}

proptest! {
    #[test]
    fn every_hit_is_there_once_and_at_most_one_counts_for_a_person(
        steps in proptest::collection::vec((0..12_000_u64, 0..5_u8, 0..2_u8, 0..12_u64, 0..3_u8), 1..40),
        early in prop_oneof![Just(0_u64), 0..20_u64],
    ) {
        let mut bench = Bench::new(Duration::from_secs(early));
        let (mut ms, mut count) = (0, 0_u64);
        for (pause, what, key, whom, machine) in steps {
            ms += pause;
            let machine = [No, Probable, Certain][usize::from(machine)];
            if what < 3 {
                bench.hit(count, machine, key, ms);
                count += 1;
            } else if count > 0 && machine != No {
                bench.correct(whom % count, machine, ms);
            }
        }
        let rows = bench.rows();
        let mut agents: Vec<u64> = rows.iter().map(|row| row.0.parse().unwrap()).collect();
        agents.sort_unstable();
        prop_assert_eq!(agents, (0..count).collect::<Vec<_>>(), "every hit once");
        if early > 0 {
            return Ok(());
        }
        for key in 0..2_u8 {
            let of_key: Vec<&Event> = bench.spool.rows.values().map(|(event, _)| event).collect();
            let known = bench.held.keys.get(&[key; 16]);
            let firsts = of_key
                .iter()
                .filter(|event| {
                    let entry = known.is_some_and(|known| known.person.is_some_and(|hit| {
                        bench.held.entries.get(&hit).is_some_and(|entry| entry.event.id == event.id)
                    }));
                    entry && is_person(event)
                })
                .count();
            prop_assert!(firsts <= 1);
        }
        let counted = rows.iter().filter(|(_, machine, unique, upgrade)| *machine == No && (*unique || *upgrade));
        prop_assert!(counted.count() <= 2, "one for each of the two keys: {rows:?}");
    }
}

#[test]
fn the_room_of_a_burst_is_given_back_when_it_is_over() {
    let mut held = Held::new(HOLD, HOLD, Limits::default());
    let admit = |held: &mut Held, number: u64, ms: u64| {
        let mut event = Arc::new(event(number, Machine::No, ms));
        let key = *event.id.as_bytes();
        held.admit(&mut event, Some(key), true, at(ms));
    };
    (0..20_000).for_each(|number| admit(&mut held, number, number / 100));
    assert!(held.entries.capacity() >= 20_000 && held.keys.capacity() >= 20_000);
    admit(&mut held, 20_000, 60_000);
    let rooms =
        [held.entries.capacity(), held.order.capacity(), held.keys.capacity(), held.key_order.capacity()];
    assert!(rooms.iter().all(|room| *room <= 1_024), "{rooms:?}");
}
