//! What mailtap needs in the broker, as data: code declares or checks it, administrators import it, tests read it.
//!
//! - Layer: decision
//! - Takes: a prefix for the names, retry tiers, a delivery limit, how many work queues.
//! - Gives: exchanges, queues and bindings; the tier for a wait; RabbitMQ's `definitions.json`.
//! - On failure: nothing can fail.
//! - Limits: a wait beyond the longest tier takes the longest.
//! - See: RabbitMQ's quorum queues, dead lettering (at-least-once since 3.10), TTL, definitions.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::headers::PARTITION;

/// How often dead letters can be looked at: more often than anybody will.
const DEAD_LOOKS: i64 = 1_000_000_000;
/// How the exchange that spreads over several work queues compares headers: with all that a binding names.
const MATCH: (&str, &str) = ("x-match", "all");

/// What the topology is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// What every name begins with.
    pub prefix: String,
    /// How long a message waits for its next try: one queue for each, shortest first.
    pub retry_tiers: Vec<Duration>,
    /// How often the broker hands out a message whose consumer dies with it, until it is a dead letter.
    pub delivery_limit: u32,
    /// How many work queues: with more than one, events are spread over them by recipient.
    pub partitions: u16,
}

impl Default for Shape {
    fn default() -> Self {
        let tiers = [10, 60, 600];
        Self {
            prefix: "mailtap".into(),
            retry_tiers: tiers.into_iter().map(Duration::from_secs).collect(),
            delivery_limit: 20,
            partitions: 1,
        }
    }
}

/// Everything that has to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// Topic exchanges, durable.
    pub exchanges: Vec<String>,
    /// The headers exchange that spreads events over several work queues, durable.
    pub spread: Option<String>,
    /// Quorum queues.
    pub queues: Vec<Queue>,
    /// What leads from the exchanges to the queues.
    pub bindings: Vec<Binding>,
    shape: Shape,
}

/// A quorum queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// Its `x-` arguments.
    pub arguments: Vec<(&'static str, Argument)>,
}

/// The value of a queue's argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
}

/// A binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The exchange.
    pub exchange: String,
    /// The queue.
    pub queue: String,
    /// Which routing keys.
    pub key: &'static str,
    /// Of the exchange that spreads: whose events come this way.
    pub partition: Option<u16>,
}

/// What is bound to an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// A queue.
    Queue(String),
    /// Another exchange.
    Exchange(String),
}

impl Binding {
    /// The same for a work queue of another layout.
    #[must_use]
    pub fn of_partition(spread: String, queue: String, number: u16) -> Self {
        Self { exchange: spread, queue, key: "", partition: Some(number) }
    }

    /// Its arguments: what the headers of a message are compared with.
    #[must_use]
    pub fn arguments(&self) -> Vec<(&'static str, String)> {
        let of = |partition: u16| vec![(MATCH.0, MATCH.1.to_owned()), (PARTITION, partition.to_string())];
        self.partition.map(of).unwrap_or_default()
    }
}

impl Topology {
    /// The topology of this shape.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        let names = |what: &str| format!("{}.{what}", shape.prefix);
        let (events, dead) = (names("events"), names("dead"));
        let spread = (shape.partitions > 1).then(|| spread(&shape));
        let works = work_queues(&shape);
        let looked_at = || {
            quorum([
                ("x-delivery-limit", Argument::Number(DEAD_LOOKS)),
                // Under somebody's limit of length, what does not fit is refused, and so known; the default drops without a word.
                ("x-overflow", Argument::Text("reject-publish".into())),
            ])
        };
        let mut queues = vec![
            // Looking at a letter counts as a delivery, and RabbitMQ 4 drops what was delivered 20 times.
            Queue { name: names("ga4.dead"), arguments: looked_at() },
        ];
        for name in &works {
            let arguments = quorum([
                ("x-dead-letter-exchange", Argument::Text(dead.clone())),
                ("x-dead-letter-strategy", Argument::Text("at-least-once".into())),
                // What dead-lettering at least once asks for. It limits nothing before somebody sets a length.
                ("x-overflow", Argument::Text("reject-publish".into())),
                ("x-delivery-limit", Argument::Number(shape.delivery_limit.into())),
            ]);
            queues.push(Queue { name: name.clone(), arguments });
            queues.push(Queue { name: owner_queue(name), arguments: looked_at() });
        }
        let back = |name: &String| match &spread {
            // The header tells it the queue that the event came from.
            Some(spread) => vec![("x-dead-letter-exchange", Argument::Text(spread.clone()))],
            // Through the default exchange, straight back to the work queue: nobody else's binding sees retries.
            None => vec![
                ("x-dead-letter-exchange", Argument::Text(String::new())),
                ("x-dead-letter-routing-key", Argument::Text(name.clone())),
            ],
        };
        queues.extend(shape.retry_tiers.iter().map(|tier| Queue {
            name: names(&format!("ga4.retry.{}", tier_name(*tier))),
            arguments: {
                let mut arguments = quorum([
                    ("x-message-ttl", Argument::Number(i64::try_from(tier.as_millis()).unwrap_or(i64::MAX))),
                    ("x-dead-letter-strategy", Argument::Text("at-least-once".into())),
                    ("x-overflow", Argument::Text("reject-publish".into())),
                ]);
                arguments.extend(works.first().map(back).unwrap_or_default());
                arguments
            },
        }));
        let to_work = spread.iter().flat_map(|spread| {
            (1..)
                .zip(&works)
                .map(|(number, name)| Binding::of_partition(spread.clone(), name.clone(), number))
        });
        let mut bindings: Vec<Binding> = to_work.collect();
        let buried = Binding { exchange: dead.clone(), queue: names("ga4.dead"), key: "#", partition: None };
        bindings.push(buried);
        Self { exchanges: vec![events, dead], spread, queues, bindings, shape }
    }

    /// The exchange that copies are published to, for whoever watches.
    #[must_use]
    pub fn events_exchange(&self) -> String {
        format!("{}.events", self.shape.prefix)
    }

    /// The exchange that dead letters are published to.
    #[must_use]
    pub fn dead_exchange(&self) -> String {
        format!("{}.dead", self.shape.prefix)
    }

    /// The queue that the relay consumes; the first one, if there are several.
    #[must_use]
    pub fn work_queue(&self) -> String {
        self.work_queues().into_iter().next().unwrap_or_default()
    }

    /// The queues that relays consume.
    #[must_use]
    pub fn work_queues(&self) -> Vec<String> {
        work_queues(&self.shape)
    }

    /// The number of the work queue of this recipient's events, where there are several: the first eight bytes of the SHA-256 of
    /// the pseudonym's text, modulo `partitions`, and one. Not left to the broker: its `x-consistent-hash` exchange goes by the
    /// order of its bindings, which is another one after a restart.
    #[must_use]
    pub fn partition(&self, recipient: &str) -> Option<u16> {
        let many = (self.shape.partitions > 1).then_some(u64::from(self.shape.partitions))?;
        let hash = Sha256::digest(recipient);
        let number = hash.iter().take(8).fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
        u16::try_from(number % many + 1).ok()
    }

    /// Exchange and routing key by which an event comes to its work queue, and to nobody else's.
    #[must_use]
    pub fn to_work(&self) -> (String, String) {
        match &self.spread {
            Some(spread) => (spread.clone(), String::new()),
            None => (String::new(), self.work_queue()),
        }
    }

    /// What events of every type were bound to in earlier layouts, and copies for watchers would go to: exchange and key, and what
    /// to unbind from it.
    #[must_use]
    pub fn formerly_bound(&self) -> (String, &'static str, Bound) {
        let bound = self.spread.clone().map_or_else(|| Bound::Queue(self.work_queue()), Bound::Exchange);
        (self.events_exchange(), ALL_EVENTS, bound)
    }

    /// The exchange that would spread events over several work queues, where this is the layout with one.
    #[must_use]
    pub fn others_spread(&self) -> Option<String> {
        self.spread.is_none().then(|| spread(&self.shape))
    }

    /// The one work queue of the layout with one, where this is another.
    #[must_use]
    pub fn others_single(&self) -> Option<String> {
        self.spread.as_ref().map(|_| format!("{}.ga4", self.shape.prefix))
    }

    /// The work queues that layouts with more of them would have, in their order, with their numbers.
    pub fn others_numbered(&self) -> impl Iterator<Item = (u16, String)> {
        let own = if self.spread.is_some() { self.shape.partitions } else { 0 };
        let prefix = self.shape.prefix.clone();
        (own.saturating_add(1)..u16::MAX).map(move |number| (number, format!("{prefix}.ga4.{number}")))
    }

    /// The queue that dead letters end in.
    #[must_use]
    pub fn dead_queue(&self) -> String {
        format!("{}.ga4.dead", self.shape.prefix)
    }

    /// The queue for a wait: the shortest tier that is not shorter, else the longest; the first work queue if there is none.
    #[must_use]
    pub fn retry_queue(&self, wait: Duration) -> String {
        let tiers = &self.shape.retry_tiers;
        let enough = tiers.iter().filter(|tier| **tier >= wait).min();
        enough.or_else(|| tiers.iter().max()).map_or_else(
            || self.work_queue(),
            |tier| format!("{}.ga4.retry.{}", self.shape.prefix, tier_name(*tier)),
        )
    }

    /// The same for RabbitMQ's `import_definitions`.
    #[must_use]
    pub fn definitions(&self, vhost: &str) -> Value {
        let exchange = |name: &String, kind: &str, arguments: Value| {
            json!({ "name": name, "vhost": vhost, "type": kind, "durable": true, "auto_delete": false,
                    "internal": false, "arguments": arguments })
        };
        let topics = self.exchanges.iter().map(|name| exchange(name, "topic", json!({})));
        let spread = self.spread.iter().map(|name| exchange(name, "headers", json!({})));
        let exchanges: Vec<_> = topics.chain(spread).collect();
        let queues: Vec<_> = self
            .queues
            .iter()
            .map(|queue| {
                json!({ "name": queue.name, "vhost": vhost, "durable": true, "auto_delete": false,
                        "arguments": arguments(queue) })
            })
            .collect();
        let bindings: Vec<_> = self
            .bindings
            .iter()
            .map(|binding| {
                json!({ "source": binding.exchange, "vhost": vhost, "destination": binding.queue,
                        "destination_type": "queue", "routing_key": binding.key,
                        "arguments": binding.arguments().into_iter().collect::<BTreeMap<_, _>>() })
            })
            .collect();
        json!({ "exchanges": exchanges, "queues": queues, "bindings": bindings })
    }
}

/// Every type of event: they are `mailtap.…`, whatever the prefix.
const ALL_EVENTS: &str = "mailtap.#";

fn spread(shape: &Shape) -> String {
    format!("{}.ga4.by-recipient", shape.prefix)
}

fn work_queues(shape: &Shape) -> Vec<String> {
    match shape.partitions {
        0 | 1 => vec![format!("{}.ga4", shape.prefix)],
        many => (1..=many).map(|number| format!("{}.ga4.{number}", shape.prefix)).collect(),
    }
}

/// The queue that says whose memory knows the events of a work queue.
pub(in crate::queue) fn owner_queue(work: &str) -> String {
    format!("{work}.owner")
}

/// The queue that is there while one relay looks whose a work queue is.
pub(in crate::queue) fn claim_queue(work: &str) -> String {
    format!("{work}.owner.claim")
}

/// The queue that is there while a relay takes a work queue.
pub(in crate::queue) fn taken_queue(work: &str) -> String {
    format!("{work}.owner.taken")
}

fn quorum<const N: usize>(more: [(&'static str, Argument); N]) -> Vec<(&'static str, Argument)> {
    let mut arguments = vec![("x-queue-type", Argument::Text("quorum".into()))];
    arguments.extend(more);
    arguments
}

fn arguments(queue: &Queue) -> Map<String, Value> {
    let value = |argument: &Argument| match argument {
        Argument::Text(text) => Value::from(text.as_str()),
        Argument::Number(number) => Value::from(*number),
    };
    queue.arguments.iter().map(|(name, argument)| ((*name).to_owned(), value(argument))).collect()
}

/// A duration in the largest unit that it is a whole number of.
fn tier_name(tier: Duration) -> String {
    let millis = tier.as_millis();
    let units = [(3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    units
        .into_iter()
        .find(|(unit, _)| millis > 0 && millis.is_multiple_of(*unit))
        .map_or_else(|| format!("{millis}ms"), |(unit, name)| format!("{}{name}", millis / unit))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_the_documented_ones() {
        let topology = Topology::new(Shape::default());
        let names: Vec<_> = topology.queues.iter().map(|queue| queue.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "mailtap.ga4.dead",
                "mailtap.ga4",
                "mailtap.ga4.owner",
                "mailtap.ga4.retry.10s",
                "mailtap.ga4.retry.1m",
                "mailtap.ga4.retry.10m"
            ]
        );
        assert_eq!(topology.exchanges, ["mailtap.events", "mailtap.dead"]);
        assert_eq!(topology.work_queue(), "mailtap.ga4");
        assert_eq!(topology.dead_queue(), "mailtap.ga4.dead");
    }

    #[test]
    fn a_wait_takes_the_shortest_tier_that_is_long_enough() {
        let topology = Topology::new(Shape::default());
        let tier = |secs| topology.retry_queue(Duration::from_secs(secs));
        assert_eq!(tier(0), "mailtap.ga4.retry.10s");
        assert_eq!(tier(10), "mailtap.ga4.retry.10s");
        assert_eq!(tier(11), "mailtap.ga4.retry.1m");
        assert_eq!(tier(600), "mailtap.ga4.retry.10m");
        assert_eq!(tier(1_000_000), "mailtap.ga4.retry.10m");
        let none = Topology::new(Shape { retry_tiers: Vec::new(), ..Shape::default() });
        assert_eq!(none.retry_queue(Duration::ZERO), "mailtap.ga4");
    }

    #[test]
    fn definitions_say_the_same_as_the_declarations() {
        let topology = Topology::new(Shape { prefix: "site".into(), ..Shape::default() });
        let definitions = topology.definitions("/");
        assert_eq!(definitions["queues"].as_array().unwrap().len(), topology.queues.len());
        assert_eq!(definitions["queues"][0]["arguments"]["x-delivery-limit"], 1_000_000_000);
        assert_eq!(definitions["queues"][1]["arguments"]["x-delivery-limit"], 20);
        assert_eq!(definitions["queues"][3]["arguments"]["x-dead-letter-routing-key"], "site.ga4");
        let bindings = definitions["bindings"].as_array().unwrap();
        assert!(
            bindings.iter().all(|binding| binding["source"] == "site.dead"),
            "events go straight to their queue"
        );
        for queue in definitions["queues"].as_array().unwrap() {
            assert_eq!(queue["arguments"]["x-queue-type"], "quorum");
        }
    }

    /// Another number would bring copies of events to a relay that does not know them.
    #[test]
    fn the_queue_of_a_recipient_never_changes() {
        let topology = |partitions| Topology::new(Shape { partitions, ..Shape::default() });
        assert_eq!(topology(1).partition("a"), None);
        // SHA-256("a") begins with ca978112ca1bbdca, SHA-256("b") with 3e23e8160039594a.
        let (a, b) = (0xca97_8112_ca1b_bdca_u64, 0x3e23_e816_0039_594a_u64);
        for many in [2, 3, 8, 1_000] {
            let expected = |hash: u64| u16::try_from(hash % u64::from(many)).ok().map(|rest| rest + 1);
            assert_eq!(topology(many).partition("a"), expected(a), "{many}");
            assert_eq!(topology(many).partition("b"), expected(b), "{many}");
        }
    }

    #[test]
    fn several_work_queues_are_fed_by_recipient_retries_too() {
        let topology = Topology::new(Shape { partitions: 3, ..Shape::default() });
        assert_eq!(topology.work_queues(), ["mailtap.ga4.1", "mailtap.ga4.2", "mailtap.ga4.3"]);
        assert_eq!(topology.to_work(), ("mailtap.ga4.by-recipient".into(), String::new()));
        let definitions = topology.definitions("/");
        let spread = &definitions["exchanges"][2];
        assert_eq!((&spread["type"], &spread["arguments"]), (&json!("headers"), &json!({})));
        let bindings = definitions["bindings"].as_array().unwrap();
        let ways = bindings.iter().filter(|binding| binding["source"] == "mailtap.ga4.by-recipient");
        let ways: Vec<_> = ways.map(|way| (&way["destination"], &way["arguments"])).collect();
        for (number, way) in (1..).zip(&ways) {
            let arguments = json!({ "x-match": "all", "mailtap-partition": number.to_string() });
            assert_eq!(*way, (&json!(format!("mailtap.ga4.{number}")), &arguments));
        }
        assert_eq!(ways.len(), 3);
        assert!(bindings.iter().all(|binding| binding["source"] != "mailtap.events"), "that is for watchers");
        let former =
            ("mailtap.events".into(), "mailtap.#", Bound::Exchange("mailtap.ga4.by-recipient".into()));
        assert_eq!(topology.formerly_bound(), former);
        assert_eq!(topology.others_single().as_deref(), Some("mailtap.ga4"));
        assert_eq!(topology.others_numbered().next(), Some((4, "mailtap.ga4.4".into())));
        let single = Topology::new(Shape::default());
        assert_eq!((single.others_single(), single.others_spread()), (None, topology.spread.clone()));
        assert_eq!(single.others_numbered().next(), Some((1, "mailtap.ga4.1".into())));
        for queue in definitions["queues"].as_array().unwrap() {
            let retry = queue["name"].as_str().unwrap().contains("retry");
            assert_eq!(queue["arguments"]["x-dead-letter-exchange"] == "mailtap.ga4.by-recipient", retry);
        }
    }
}
