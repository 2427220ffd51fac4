//! The spool beside a list and a set.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::sync::Mutex;

use proptest::prelude::*;

use super::tests::{LEASE, open_at, unheard};
use super::*;
use crate::event::EventId;
use crate::queue::testing::event;

/// A step of the model test.
#[derive(Debug, Clone)]
enum Step {
    Publish(Vec<u64>),
    Hold { numbers: Vec<u64>, secs: u64 },
    Amend { number: u64, links: u32 },
    Claim { max: usize, lease_s: u64 },
    Settle { nth: usize, how: u8 },
    Extend { nth: usize },
    Replay,
    Pass { secs: u64 },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec(0_u64..40, 1..6).prop_map(Step::Publish),
        2 => (prop::collection::vec(0_u64..40, 1..6), 0_u64..20)
            .prop_map(|(numbers, secs)| Step::Hold { numbers, secs }),
        2 => (0_u64..40, 0_u32..9).prop_map(|(number, links)| Step::Amend { number, links }),
        4 => (0_usize..6, 1_u64..30).prop_map(|(max, lease_s)| Step::Claim { max, lease_s }),
        6 => (0_usize..8, 0_u8..6).prop_map(|(nth, how)| Step::Settle { nth, how }),
        1 => (0_usize..8).prop_map(|nth| Step::Extend { nth }),
        1 => Just(Step::Replay),
        2 => (1_u64..20).prop_map(|secs| Step::Pass { secs }),
        1 => Just(Step::Reopen),
    ]
}

/// What the spool should be: a list and a set.
#[derive(Debug, Default)]
struct Model {
    seen: BTreeMap<u64, ()>,
    rows: BTreeMap<i64, Row>,
    next: i64,
}

#[derive(Debug, Clone, PartialEq)]
struct Row {
    number: u64,
    state: State,
    at: Timestamp,
    added: Timestamp,
    attempts: u32,
    links: Option<u32>,
}

impl Model {
    fn publish(&mut self, numbers: &[u64], now: Timestamp, at: Timestamp) {
        for number in numbers {
            if self.seen.insert(*number, ()).is_none() {
                self.next += 1;
                let (number, state) = (*number, State::Pending);
                let row = Row { number, state, at, added: now, attempts: 0, links: None };
                self.rows.insert(self.next, row);
            }
        }
    }

    fn amend(&mut self, number: u64, links: u32, now: Timestamp) -> bool {
        let held = self.rows.values_mut().find(|row| {
            row.number == number && row.state == State::Pending && row.attempts == 0 && row.at > now
        });
        held.map(|row| row.links = Some(links)).is_some()
    }

    fn claim(&mut self, max: usize, now: Timestamp, lease_end: Timestamp) -> Vec<(i64, EventId, u32)> {
        let mut due: Vec<_> = self
            .rows
            .iter()
            .filter(|(_, row)| matches!(row.state, State::Pending | State::Claimed) && row.at <= now)
            .map(|(seq, row)| (row.at, *seq))
            .collect();
        for row in self.rows.values_mut().filter(|row| row.state == State::Claimed && row.at <= now) {
            row.state = State::Pending;
        }
        due.sort_unstable();
        due.truncate(max);
        let mut seqs: Vec<_> = due.into_iter().map(|(_, seq)| seq).collect();
        seqs.sort_unstable();
        seqs.into_iter()
            .map(|seq| {
                let row = self.rows.get_mut(&seq).unwrap();
                row.state = State::Claimed;
                row.at = lease_end;
                row.attempts += 1;
                (seq, event(row.number).id, row.attempts)
            })
            .collect()
    }

    fn settle(&mut self, seq: i64, outcome: &Outcome, now: Timestamp) {
        let lapsed = matches!(outcome, Outcome::Uncertain | Outcome::Done);
        let fits = |row: &&mut Row| match row.state {
            State::Claimed => true,
            State::Pending => lapsed,
            State::Dead => *outcome == Outcome::Done,
            State::Uncertain => false,
        };
        let Some(row) = self.rows.get_mut(&seq).filter(fits) else { return };
        if *outcome == Outcome::Done {
            self.rows.remove(&seq);
            return;
        }
        (row.state, row.at) = match outcome {
            Outcome::Retry { not_before, .. } | Outcome::Later { not_before, .. } => {
                (State::Pending, *not_before)
            }
            Outcome::Dead { .. } => (State::Dead, now),
            Outcome::Uncertain => (State::Uncertain, now),
            Outcome::Released | Outcome::Done => (State::Pending, row.added),
        };
        if matches!(outcome, Outcome::Released | Outcome::Later { .. }) {
            row.attempts -= 1;
        }
    }

    fn replay(&mut self, now: Timestamp) {
        for row in self.rows.values_mut().filter(|row| matches!(row.state, State::Dead | State::Uncertain)) {
            (row.state, row.at, row.attempts) = (State::Pending, now, 0);
        }
    }
}

fn outcome(how: u8, now: Timestamp) -> Outcome {
    match how {
        0 => Outcome::Done,
        1 => Outcome::Retry { not_before: now.plus(Duration::from_secs(5)), reason: "busy".into() },
        2 => Outcome::Dead { reason: "refused".into() },
        3 => Outcome::Uncertain,
        4 => Outcome::Later { not_before: now.plus(Duration::from_secs(5)), reason: "waited".into() },
        _ => Outcome::Released,
    }
}

async fn compare(steps: Vec<Step>) {
    let directory = tempfile::tempdir().unwrap();
    let now = Arc::new(Mutex::new(Timestamp::from_secs(1_795_453_000)));
    let mut spool = open_at(directory.path(), &now);
    let (mut model, mut claimed) = (Model::default(), Vec::<i64>::new());
    for step in steps {
        let time = *now.lock().unwrap();
        match step {
            Step::Publish(numbers) => {
                spool.publish(numbers.iter().copied().map(event).collect()).await.unwrap();
                model.publish(&numbers, time, time);
            }
            Step::Hold { numbers, secs } => {
                let until = time.plus(Duration::from_secs(secs));
                let hold = |number| Publication { held_until: Some(until), ..event(number).into() };
                spool
                    .publish_all(&numbers.iter().copied().map(hold).collect::<Vec<_>>(), unheard())
                    .await
                    .unwrap();
                model.publish(&numbers, time, until);
            }
            Step::Amend { number, links } => {
                let mut event = event(number);
                event.data.links = Some(links);
                assert_eq!(spool.amend(&[event.into()]).await.unwrap(), [model.amend(number, links, time)]);
            }
            Step::Claim { max, lease_s } => {
                let lease = Duration::from_secs(lease_s);
                let got = spool.claim(max, lease, time).await.unwrap();
                let got: Vec<_> =
                    got.iter().map(|claim| (claim.seq.0, claim.event.id, claim.attempts)).collect();
                assert_eq!(got, model.claim(max, time, time.plus(lease)));
                claimed.extend(got.iter().map(|claim| claim.0));
            }
            Step::Settle { nth, how } => {
                let Some(seq) = claimed.get(nth).copied() else { continue };
                let outcome = outcome(how, time);
                model.settle(seq, &outcome, time);
                spool.settle(vec![(Seq(seq), outcome)]).await.unwrap();
            }
            Step::Extend { nth } => {
                let Some(seq) = claimed.get(nth).copied() else { continue };
                let end = time.plus(LEASE);
                spool.extend(vec![Seq(seq)], end).await.unwrap();
                if let Some(row) = model.rows.get_mut(&seq).filter(|row| row.state == State::Claimed) {
                    row.at = end;
                }
            }
            Step::Replay => {
                Admin::open(directory.path()).unwrap().replay(&Filter::default(), time).unwrap();
                model.replay(time);
            }
            Step::Pass { secs } => *now.lock().unwrap() = time.plus(Duration::from_secs(secs)),
            Step::Reopen => spool = open_at(directory.path(), &now),
        }
    }
    let stored = Admin::open(directory.path()).unwrap().list(&Filter::default(), None, 1_000).unwrap();
    let stored: BTreeMap<_, _> = stored
        .into_iter()
        .map(|row| {
            let event = Event::from_json(row.body.as_bytes()).unwrap();
            (row.seq.0, ((event.id, event.data.links), row.state, row.at, row.added, row.attempts))
        })
        .collect();
    let expected: BTreeMap<_, _> = model
        .rows
        .into_iter()
        .map(|(seq, row)| {
            (seq, ((event(row.number).id, row.links), row.state, row.at, row.added, row.attempts))
        })
        .collect();
    assert_eq!(stored, expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn the_spool_does_what_a_list_and_a_set_would_do(steps in prop::collection::vec(step(), 1..60)) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(compare(steps));
    }
}
