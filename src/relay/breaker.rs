//! Stops the relay from sending where nothing gets through, and tries with one request before it goes on.
//!
//! - Layer: role
//! - Takes: what each request says of the way to its property, troubles of queue and memory.
//! - Gives: which property is blocked, until when to pause; tells health and administrators.
//! - On failure: nothing can fail.
//! - Limits: pauses from one second to a minute; after three failures in a row one request at a time, so that an outage
//!   makes few events uncertain. A property that is blocked pauses no other one; when all are, the relay takes no events.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::happenings::{Paused, QueueTrouble, Resumed, SettlesAgain, Unsettled};
use crate::queue::outage::Outage;
use crate::service::Component;

/// Why events wait for a property.
pub(super) const BLOCKED: &str = "GA4 does not take requests; events wait";
/// Failures in a row after which the relay pauses.
const PATIENCE: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What a settlement says about the way to a property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// A request was answered by somebody who could have taken it.
    Through(usize),
    /// It was not, and the cause, where it is known.
    Blocked(usize, Option<Arc<str>>),
    /// Nothing can be sent to anybody, and why.
    Stuck(&'static str),
    /// Nothing was sent.
    Neither,
}

/// The breakers of all ways that events take.
#[derive(Debug)]
pub(super) struct Breakers {
    properties: Vec<Way>,
    memory: Way,
    queue: Way,
    queue_outage: Outage,
    /// Why what became of events is not taken by the queue, if it isn't.
    unsettled: Option<String>,
    outage: Outage,
    health: Component,
}

impl Breakers {
    /// With a way for each of these properties.
    pub(super) fn new(health: Component, properties: Vec<String>) -> Self {
        health.ready();
        Self {
            properties: properties.into_iter().map(Way::new).collect(),
            memory: Way::new("memory".into()),
            queue: Way::new("queue".into()),
            queue_outage: Outage::default(),
            unsettled: None,
            outage: Outage::default(),
            health,
        }
    }

    /// How many requests of a property may be under way.
    pub(super) fn allowed(&self, property: usize) -> usize {
        match self.properties.get(property) {
            Some(way) if way.until.is_some() => 0,
            Some(way) if way.is_blocked() || self.memory.is_blocked() => 1,
            _ => usize::MAX,
        }
    }

    /// Whether nothing can be taken and sent: queue or memory are in trouble, or no property is open.
    pub(super) fn is_paused(&self) -> bool {
        let waits = |way: &Way| way.until.is_some();
        waits(&self.queue) || waits(&self.memory) || self.properties.iter().all(waits)
    }

    /// The properties whose events should not stay in memory: they are blocked, while another one is not. With each, for how
    /// long it pauses still.
    pub(super) fn to_turn_back(&self) -> Vec<(usize, Duration)> {
        if self.properties.iter().all(Way::is_blocked) {
            return Vec::new();
        }
        let blocked = self.properties.iter().enumerate().filter(|(_, way)| way.is_blocked());
        let now = Instant::now();
        let left = |way: &Way| way.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        blocked.map(|(at, way)| (at, left(way))).collect()
    }

    /// When the next pause ends.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.properties.iter().chain([&self.memory, &self.queue]).filter_map(|way| way.until).min()
    }

    /// Ends the pauses whose time has come.
    pub(super) fn end_pauses(&mut self) {
        let now = Instant::now();
        for way in self.properties.iter_mut().chain([&mut self.memory, &mut self.queue]) {
            way.until = way.until.filter(|until| *until > now);
        }
    }

    pub(super) fn note(&mut self, fate: &Fate) {
        match fate {
            Fate::Through(property) => {
                self.memory.worked();
                self.properties.get_mut(*property).into_iter().for_each(Way::worked);
            }
            Fate::Blocked(property, cause) => {
                let Some(way) = self.properties.get_mut(*property) else { return };
                way.cause = cause.clone().or_else(|| way.cause.take());
                let why = match &way.cause {
                    Some(cause) => format!("GA4 does not take requests ({cause}); events wait"),
                    None => BLOCKED.to_owned(),
                };
                way.failed(&why);
            }
            Fate::Stuck(why) => self.memory.failed(why),
            Fate::Neither => return,
        }
        self.tell();
    }

    pub(super) fn queue_trouble(&mut self, why: String) {
        QueueTrouble { why: &why, is_news: self.queue_outage.is_news(&why) }.emit();
        self.queue.failures = PATIENCE;
        self.queue.failed(&why);
        self.tell();
    }

    pub(super) fn queue_works(&mut self) {
        if self.queue.failures > 0 {
            self.queue.worked();
            self.queue_outage.over();
            self.tell();
        }
    }

    /// The queue does not take what became of events.
    pub(super) fn unsettled(&mut self, why: String) {
        Unsettled { why: &why, is_news: self.outage.is_news(&why) }.emit();
        self.unsettled = Some(why);
        self.tell();
    }

    /// It has taken all of it.
    pub(super) fn all_settled(&mut self) {
        if self.unsettled.take().is_some() {
            self.outage.over();
            SettlesAgain.emit();
            self.tell();
        }
    }

    fn tell(&self) {
        let one = self.properties.len() == 1;
        let of_property = |way: &Way| {
            let why = way.is_blocked().then(|| way.why.clone())?;
            Some(if one { why } else { format!("{}: {why}", way.name) })
        };
        let own = [&self.memory, &self.queue].into_iter().filter(|way| way.is_blocked());
        let own = own.map(|way| way.why.clone());
        let unsettled =
            self.unsettled.iter().map(|why| format!("what became of events can't be settled: {why}"));
        let whys: Vec<String> =
            self.properties.iter().filter_map(of_property).chain(own).chain(unsettled).collect();
        if whys.is_empty() {
            self.health.ready();
        } else {
            self.health.not_ready(whys.join("; "));
        }
    }
}

/// The breaker of one way.
#[derive(Debug)]
struct Way {
    name: String,
    failures: u32,
    why: String,
    /// What the last request met with.
    cause: Option<Arc<str>>,
    pause: Duration,
    paused: bool,
    until: Option<Instant>,
}

impl Way {
    fn new(name: String) -> Self {
        Self {
            name,
            failures: 0,
            why: String::new(),
            cause: None,
            pause: FIRST_PAUSE,
            paused: false,
            until: None,
        }
    }

    fn is_blocked(&self) -> bool {
        self.failures >= PATIENCE
    }

    fn failed(&mut self, why: &str) {
        self.failures = self.failures.saturating_add(1);
        if self.is_blocked() {
            why.clone_into(&mut self.why);
            self.wait();
        }
    }

    fn worked(&mut self) {
        (self.failures, self.pause, self.until, self.cause) = (0, FIRST_PAUSE, None, None);
        if std::mem::take(&mut self.paused) {
            Resumed { what: &self.name }.emit();
        }
    }

    /// Pauses, unless it does already; each time longer.
    fn wait(&mut self) {
        if self.until.is_none() {
            let pause = self.pause.mul_f64(rand::random_range(0.75..1.0));
            let again = std::mem::replace(&mut self.paused, true);
            Paused { what: &self.name, why: &self.why, pause, again }.emit();
            self.until = Some(Instant::now() + pause);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Health;

    const WHY: &str = "GA4 does not take requests (HTTP 503); events wait";

    fn breakers(properties: &[&str]) -> (Breakers, Health) {
        let health = Health::default();
        let names = properties.iter().map(|name| (*name).to_owned()).collect();
        (Breakers::new(health.component("relay"), names), health)
    }

    fn reasons(health: &Health) -> Vec<String> {
        health.troubles().into_iter().map(|(_, why)| why).collect()
    }

    fn fail(breakers: &mut Breakers, property: usize, times: u32) {
        (0..times).for_each(|_| breakers.note(&Fate::Blocked(property, Some("HTTP 503".into()))));
    }

    #[tokio::test(start_paused = true)]
    async fn three_failures_in_a_row_pause_and_one_request_tries_the_way() {
        let (mut breakers, health) = breakers(&["G-1"]);
        fail(&mut breakers, 0, 2);
        breakers.note(&Fate::Through(0));
        fail(&mut breakers, 0, 2);
        assert_eq!(
            (breakers.is_paused(), breakers.allowed(0), reasons(&health).len()),
            (false, usize::MAX, 0)
        );
        fail(&mut breakers, 0, 1);
        assert!(breakers.is_paused() && breakers.to_turn_back().is_empty());
        assert_eq!((breakers.allowed(0), reasons(&health)), (0, vec![WHY.to_owned()]));
        tokio::time::sleep(FIRST_PAUSE).await;
        breakers.end_pauses();
        assert_eq!((breakers.is_paused(), breakers.allowed(0)), (false, 1), "after the pause one tries");
        breakers.note(&Fate::Through(0));
        assert_eq!((breakers.allowed(0), breakers.next_end(), reasons(&health).len()), (usize::MAX, None, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_blocked_property_pauses_no_other_one() {
        let (mut breakers, health) = breakers(&["G-1", "G-2"]);
        fail(&mut breakers, 1, 3);
        assert!(!breakers.is_paused());
        assert_eq!((breakers.allowed(0), breakers.allowed(1)), (usize::MAX, 0));
        assert_eq!(breakers.to_turn_back().len(), 1);
        assert_eq!(reasons(&health), [format!("G-2: {WHY}")]);
        breakers.note(&Fate::Through(0));
        assert_eq!(reasons(&health), [format!("G-2: {WHY}")], "another one's luck changes nothing");
        fail(&mut breakers, 0, 3);
        assert!(breakers.is_paused() && breakers.to_turn_back().is_empty());
        assert_eq!(reasons(&health), [format!("G-1: {WHY}; G-2: {WHY}")]);
        breakers.note(&Fate::Through(1));
        assert!(!breakers.is_paused());
        assert_eq!(breakers.to_turn_back()[0].0, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_to_a_minute() {
        let (mut breakers, _) = breakers(&["G-1"]);
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            fail(&mut breakers, 0, 3);
            let pause = breakers.next_end().map(|until| until - Instant::now()).unwrap_or_default();
            assert!(pause <= LONGEST_PAUSE);
            longest = longest.max(pause);
            tokio::time::sleep(pause).await;
            breakers.end_pauses();
        }
        assert!(longest > LONGEST_PAUSE / 2);
    }

    #[tokio::test]
    async fn troubles_of_queue_memory_and_ga4_end_each_for_itself() {
        let (mut breakers, health) = breakers(&["G-1"]);
        breakers.queue_trouble("broker".into());
        assert!(breakers.is_paused());
        fail(&mut breakers, 0, 3);
        assert_eq!(reasons(&health), [format!("{WHY}; broker")]);
        breakers.queue_works();
        assert_eq!(reasons(&health), [WHY], "the other one is still there");
        breakers.note(&Fate::Through(0));
        assert!(reasons(&health).is_empty());
        (0..3).for_each(|_| breakers.note(&Fate::Stuck("disk")));
        assert!(breakers.is_paused());
        breakers.queue_trouble("broker".into());
        breakers.note(&Fate::Through(0));
        assert_eq!(reasons(&health), ["broker"]);
        breakers.queue_works();
        assert!(reasons(&health).is_empty() && !breakers.is_paused());
    }
}
