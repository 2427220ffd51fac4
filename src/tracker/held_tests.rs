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
    /// Which row counts for a person.
    firsts: BTreeMap<FirstKey, Option<EventId>>,
    /// Sends so much earlier than it was told.
    early: Duration,
}

struct Bench {
    held: Held,
    spool: Spool,
    /// Whether this process has seen everything.
    is_first: bool,
}

impl Bench {
    fn new(early: Duration) -> Self {
        let spool = Spool { rows: BTreeMap::new(), firsts: BTreeMap::new(), early };
        Self { held: Held::new(HOLD, DAY, Limits::default()), spool, is_first: true }
    }

    fn hit(&mut self, number: u64, machine: Machine, key: u8, ms: u64) {
        let mut event = Arc::new(event(number, machine, ms));
        let key = [key; 16];
        let change = self.held.admit(&mut event, Some(key), self.is_first, at(ms));
        let mut event = Arc::unwrap_or_clone(event);
        event.data.unique = Some(!self.spool.firsts.contains_key(&key));
        let counts = self.spool.firsts.entry(key).or_default();
        if is_person(&event) && (counts.is_none() || event.data.upgrade == Some(true)) {
            *counts = Some(event.id);
            event.data.upgrade = (event.data.unique == Some(false)).then_some(true);
        }
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
                Change::Amend(amended) => drop(self.amend(amended, ms)),
                Change::Swap { first, then, person, machine } => {
                    if self.amend(first, ms) {
                        assert!(self.amend(then, ms), "what came later is held longer");
                    } else {
                        let change = self.held.too_late(person, machine);
                        self.apply(change.into_iter().collect(), ms);
                    }
                }
            }
        }
    }

    /// Another process goes on.
    fn restart(&mut self) {
        (self.held, self.is_first) = (Held::new(HOLD, DAY, Limits::default()), false);
    }

    fn amend(&mut self, Amended { event, key }: Amended, ms: u64) -> bool {
        let mut event = Arc::unwrap_or_clone(event);
        let (row, until) = self.spool.rows.get_mut(&event.id).expect("a row");
        if at(ms).plus(self.spool.early) >= *until {
            return false;
        }
        event.data.unique = row.data.unique;
        let counts = self.spool.firsts.get_mut(&key.unwrap()).unwrap();
        if is_person(&event) {
            event.data.upgrade = event.data.upgrade.or(row.data.upgrade);
            let knows = event.data.unique == Some(true) || event.data.upgrade == Some(true);
            if counts.is_none() || knows {
                *counts = Some(event.id);
                event.data.upgrade = (event.data.unique == Some(false)).then_some(true);
            }
        } else if *counts == Some(event.id) {
            *counts = None;
        }
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
fn after_a_restart_the_spool_knows_who_counts() {
    for (before, later) in [(true, 1_000), (false, 1_000), (true, 40_000)] {
        let mut bench = Bench::new(Duration::ZERO);
        if !before {
            bench.restart();
        }
        bench.hit(1, Certain, 1, 0);
        bench.restart();
        bench.hit(2, No, 1, later);
        bench.hit(3, No, 1, later + 1);
        let expected = [("1", Certain, true, false), ("2", No, false, true), ("3", No, false, false)];
        let expected = expected.map(|(who, machine, unique, up)| (who.to_owned(), machine, unique, up));
        assert_eq!(bench.rows(), expected, "{before} {later}");
        // One that is found out hands its place on, to who is there or to who comes.
        bench.correct(2, Certain, later + 2);
        assert_eq!(bench.rows()[2], ("3".into(), No, false, true));
        bench.correct(3, Probable, later + 3);
        bench.restart();
        bench.hit(4, No, 1, later + 4);
        assert_eq!(bench.rows()[3], ("4".into(), No, false, true));
    }
    let mut bench = Bench::new(Duration::ZERO);
    bench.hit(1, No, 1, 0);
    bench.restart();
    bench.hit(2, Certain, 1, 1_000);
    bench.hit(3, No, 1, 2_000);
    assert_eq!(bench.rows()[2], ("3".into(), No, false, false), "a person was counted before");
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
            } else if what == 4 && whom == 0 {
                bench.restart();
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
        for key in 0..2_u8 {
            let Some(counts) = bench.spool.firsts.get(&[key; 16]) else { continue };
            let counts = counts.map(|id| &bench.spool.rows[&id].0);
            let does = counts.is_none_or(|event| {
                is_person(event) && (event.data.unique == Some(true) || event.data.upgrade == Some(true))
            });
            prop_assert!(does, "{rows:?}");
        }
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
