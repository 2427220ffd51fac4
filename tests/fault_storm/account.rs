//! The account at the end: what was promised, against what arrived and what is listed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use mailtap::collector::report;
use serde_json::Value;

use crate::harness::wait_for;
use crate::load::{Key, Promises};
use crate::site::{RELAYS, Site};

/// Where every event is, by its id.
pub struct Account {
    /// At the collector, as often as it came.
    arrived: BTreeMap<String, usize>,
    /// Listed by `mailtap dead list` as uncertain.
    uncertain: BTreeSet<String>,
    /// Listed there as anything else.
    dead: BTreeSet<String>,
    /// What the relays said in their logs that they don't know of, in all their lives.
    said: BTreeSet<String>,
    /// What each event is of, by all that is known of it.
    keys: BTreeMap<String, (String, String)>,
    /// Answers of the tracker before the event was stored, and events that it said are lost.
    unconfirmed: usize,
}

/// Waits until nothing waits any more.
pub fn wait_until_drained(site: &Site) -> Duration {
    let started = Instant::now();
    let mut empty_since = None;
    // The longest retry queue that a few failures lead to has ten minutes.
    wait_for("empty queues", Duration::from_secs(900), || {
        std::thread::sleep(Duration::from_millis(500));
        if waiting(site) > 0 {
            empty_since = None;
            return false;
        }
        // The broker counts every second, and anew after a restart.
        empty_since.get_or_insert_with(Instant::now).elapsed() > Duration::from_secs(4)
    });
    started.elapsed()
}

/// Messages in spool, work queue and retry queues.
fn waiting(site: &Site) -> u64 {
    let status: Value = serde_json::from_str(&site.command(&["spool", "status", "--json"])).unwrap();
    let queues = site.queues();
    let counts = queues.lines().filter_map(|line| line.split_once('\t')).filter_map(|(name, count)| {
        let count: u64 = count.trim().parse().ok()?;
        Some(if name.ends_with(".dead") || name.ends_with(".owner") { 0 } else { count })
    });
    counts.sum::<u64>() + status["pending"].as_u64().unwrap() + status["claimed"].as_u64().unwrap()
}

impl Account {
    pub fn read(site: &Site) -> Self {
        let mut account = Self {
            arrived: BTreeMap::new(),
            uncertain: BTreeSet::new(),
            dead: BTreeSet::new(),
            said: RELAYS.iter().flat_map(|relay| said_uncertain(&site.log(relay))).collect(),
            keys: BTreeMap::new(),
            unconfirmed: unconfirmed(&site.log("tracker")),
        };
        for row in report::report(&fs::read_to_string(site.file("record.jsonl")).unwrap()).rows {
            assert_eq!(row.outcome, "processed", "{row:?}");
            *account.arrived.entry(row.event_id.clone()).or_default() += 1;
            account.keys.insert(row.event_id, (row.event, row.campaign));
        }
        for line in site.command(&["dead", "list", "--json", "--max", "100000"]).lines() {
            let letter: Value = serde_json::from_str(line).unwrap();
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let event = &letter["event"];
            let id = text(&event["id"]);
            let set = if letter["state"] == "uncertain" { &mut account.uncertain } else { &mut account.dead };
            set.insert(id.clone());
            let name =
                mailtap::relay::map::name(mailtap::event::Kind::from_type(&text(&event["type"])).unwrap());
            account.keys.insert(id, (name.to_owned(), text(&event["data"]["campaign"])));
        }
        account
    }

    pub fn summary(&self) -> String {
        let both = self.uncertain.iter().filter(|id| self.arrived.contains_key(*id)).count();
        format!(
            "{} events: {} arrived, {} uncertain ({both} of them arrived)",
            self.keys.len(),
            self.arrived.len(),
            self.uncertain.len()
        )
    }

    /// What is promised and neither arrived nor listed.
    pub fn missing(&self, promises: &Promises) -> Vec<Key> {
        let seen = self.seen();
        let lacks = |(key, expected): (&Key, &crate::load::Expected)| {
            let count = seen.get(&(key.0.to_owned(), key.1.clone())).copied().unwrap_or_default();
            (count < expected.least).then(|| key.clone())
        };
        promises.expected.iter().filter_map(lacks).collect()
    }

    /// Everything that is wrong.
    pub fn faults(&self, promises: &Promises) -> Vec<String> {
        let mut faults = Vec::new();
        let mut fault = |what: &str, which: Vec<String>| {
            if !which.is_empty() {
                faults.push(format!("{} {what}: {:?}", which.len(), &which[..which.len().min(20)]));
            }
        };
        let text = |key: &Key| format!("{} of {}", key.0, key.1);
        // Only the tracker answers before an event is stored, and says of how many it did.
        let (trackers, others): (Vec<_>, Vec<_>) =
            self.missing(promises).into_iter().partition(|key| matches!(key.0, "email_click" | "email_open"));
        fault("lost", others.iter().map(text).collect());
        if trackers.len() > self.unconfirmed {
            fault("lost of the tracker", trackers.iter().map(text).collect());
        }
        let twice = self.arrived.iter().filter(|(_, times)| **times > 1);
        fault(
            "counted twice",
            twice.map(|(id, times)| format!("{times} times {id}, {:?}", self.keys[id])).collect(),
        );
        let allowed: BTreeMap<_, _> = promises
            .expected
            .iter()
            .map(|((name, campaign), of)| ((*name, campaign.as_str()), of.most))
            .collect();
        let seen = self.seen();
        let unexplained = seen.iter().filter(|((name, campaign), count)| {
            **count > allowed.get(&(name.as_str(), campaign.as_str())).copied().unwrap_or_default()
        });
        fault(
            "nobody caused",
            unexplained.map(|((name, campaign), count)| format!("{count} {name} of {campaign}")).collect(),
        );
        fault(
            "said to be uncertain and not listed",
            self.said.difference(&self.uncertain).cloned().collect(),
        );
        fault(
            "listed as uncertain and not said to be",
            self.uncertain.difference(&self.said).cloned().collect(),
        );
        fault("dead letters", self.dead.iter().cloned().collect());
        if self.uncertain.is_empty() {
            // Requests were left without an answer, and relays killed: else the storm was none.
            fault("blows left nothing uncertain", vec!["hanging, resets and kills of relays".to_owned()]);
        }
        faults
    }

    /// How many events there are of each name and campaign.
    fn seen(&self) -> BTreeMap<(String, String), usize> {
        let mut seen = BTreeMap::new();
        for key in self.keys.values() {
            *seen.entry(key.clone()).or_default() += 1;
        }
        seen
    }
}

/// Lines of a log. One that a kill cut in two is none.
fn lines(log: &str) -> impl Iterator<Item = Value> {
    log.lines().filter_map(|line| serde_json::from_str(line).ok())
}

/// Events that the relay said it does not know of: of requests without an answer, and of a life before.
fn said_uncertain(log: &str) -> BTreeSet<String> {
    let said = lines(log).filter(|line| line["message"] == "nobody knows if these events arrived");
    said.flat_map(|line| {
        let ids: Vec<String> = line["ids"].as_str().unwrap().split(' ').map(str::to_owned).collect();
        assert_eq!(ids.len() as u64, line["events"].as_u64().unwrap(), "{line}");
        ids
    })
    .collect()
}

fn unconfirmed(log: &str) -> usize {
    let unconfirmed = lines(log).filter(|line| line["message"] == "answered before the event was stored");
    let lost = lines(log).filter(|line| line["message"] == "events are lost");
    unconfirmed.count()
        + lost.filter_map(|line| usize::try_from(line["events"].as_u64()?).ok()).sum::<usize>()
}
