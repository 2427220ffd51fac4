//! What mailtap needs in the broker, as data: code declares or checks it, administrators import it, tests read it.
//!
//! - Layer: decision
//! - Takes: a prefix for the names, retry tiers, a delivery limit.
//! - Gives: exchanges, queues and bindings; the tier for a wait; RabbitMQ's `definitions.json`.
//! - On failure: nothing can fail.
//! - Limits: a wait beyond the longest tier takes the longest.
//! - See: RabbitMQ's quorum queues, dead lettering (at-least-once since 3.10), TTL, definitions.

use std::time::Duration;

use serde_json::{Map, Value, json};

/// How often dead letters can be looked at: more often than anybody will.
const DEAD_LOOKS: i64 = 1_000_000_000;

/// What the topology is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// What every name begins with.
    pub prefix: String,
    /// How long a message waits for its next try: one queue for each, shortest first.
    pub retry_tiers: Vec<Duration>,
    /// How often the broker hands out a message whose consumer dies with it, until it is a dead letter.
    pub delivery_limit: u32,
}

impl Default for Shape {
    fn default() -> Self {
        let tiers = [10, 60, 600, 3_600];
        Self {
            prefix: "mailtap".into(),
            retry_tiers: tiers.into_iter().map(Duration::from_secs).collect(),
            delivery_limit: 20,
        }
    }
}

/// Everything that has to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// Topic exchanges, durable.
    pub exchanges: Vec<String>,
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
    /// Which routing keys: event types are `mailtap.…`, whatever the prefix.
    pub key: &'static str,
}

impl Topology {
    /// The topology of this shape.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        let names = |what: &str| format!("{}.{what}", shape.prefix);
        let (events, dead) = (names("events"), names("dead"));
        let work = names("ga4");
        let mut queues = vec![
            Queue {
                name: work.clone(),
                arguments: quorum([
                    ("x-dead-letter-exchange", Argument::Text(dead.clone())),
                    ("x-dead-letter-strategy", Argument::Text("at-least-once".into())),
                    // What dead-lettering at least once asks for. It limits nothing before somebody sets a length.
                    ("x-overflow", Argument::Text("reject-publish".into())),
                    ("x-delivery-limit", Argument::Number(shape.delivery_limit.into())),
                ]),
            },
            Queue {
                name: names("ga4.dead"),
                // Looking at a letter counts as a delivery, and RabbitMQ 4 drops what was delivered 20 times.
                arguments: quorum([("x-delivery-limit", Argument::Number(DEAD_LOOKS))]),
            },
        ];
        queues.extend(shape.retry_tiers.iter().map(|tier| Queue {
            name: names(&format!("ga4.retry.{}", tier_name(*tier))),
            arguments: quorum([
                ("x-message-ttl", Argument::Number(i64::try_from(tier.as_millis()).unwrap_or(i64::MAX))),
                // Through the default exchange, straight back to the work queue: nobody else's binding sees retries.
                ("x-dead-letter-exchange", Argument::Text(String::new())),
                ("x-dead-letter-routing-key", Argument::Text(work.clone())),
                ("x-dead-letter-strategy", Argument::Text("at-least-once".into())),
                ("x-overflow", Argument::Text("reject-publish".into())),
            ]),
        }));
        let bindings = vec![
            Binding { exchange: events.clone(), queue: work, key: "mailtap.#" },
            Binding { exchange: dead.clone(), queue: names("ga4.dead"), key: "#" },
        ];
        Self { exchanges: vec![events, dead], queues, bindings, shape }
    }

    /// The exchange that events are published to.
    #[must_use]
    pub fn events_exchange(&self) -> String {
        format!("{}.events", self.shape.prefix)
    }

    /// The exchange that dead letters are published to.
    #[must_use]
    pub fn dead_exchange(&self) -> String {
        format!("{}.dead", self.shape.prefix)
    }

    /// The queue that the relay consumes.
    #[must_use]
    pub fn work_queue(&self) -> String {
        format!("{}.ga4", self.shape.prefix)
    }

    /// The queue that dead letters end in.
    #[must_use]
    pub fn dead_queue(&self) -> String {
        format!("{}.ga4.dead", self.shape.prefix)
    }

    /// The queue for a wait: the shortest tier that is not shorter, else the longest; the work queue if there is none.
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
        let exchanges: Vec<_> = self
            .exchanges
            .iter()
            .map(|name| {
                json!({ "name": name, "vhost": vhost, "type": "topic", "durable": true, "auto_delete": false,
                        "internal": false, "arguments": {} })
            })
            .collect();
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
                        "destination_type": "queue", "routing_key": binding.key, "arguments": {} })
            })
            .collect();
        json!({ "exchanges": exchanges, "queues": queues, "bindings": bindings })
    }
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
                "mailtap.ga4",
                "mailtap.ga4.dead",
                "mailtap.ga4.retry.10s",
                "mailtap.ga4.retry.1m",
                "mailtap.ga4.retry.10m",
                "mailtap.ga4.retry.1h"
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
        assert_eq!(tier(3_600), "mailtap.ga4.retry.1h");
        assert_eq!(tier(1_000_000), "mailtap.ga4.retry.1h");
        let none = Topology::new(Shape { retry_tiers: Vec::new(), ..Shape::default() });
        assert_eq!(none.retry_queue(Duration::ZERO), "mailtap.ga4");
    }

    #[test]
    fn definitions_say_the_same_as_the_declarations() {
        let topology = Topology::new(Shape { prefix: "site".into(), ..Shape::default() });
        let definitions = topology.definitions("/");
        assert_eq!(definitions["queues"].as_array().unwrap().len(), topology.queues.len());
        assert_eq!(definitions["queues"][0]["arguments"]["x-delivery-limit"], 20);
        assert_eq!(definitions["queues"][1]["arguments"]["x-delivery-limit"], 1_000_000_000);
        assert_eq!(definitions["queues"][2]["arguments"]["x-dead-letter-routing-key"], "site.ga4");
        assert_eq!(definitions["bindings"][0]["routing_key"], "mailtap.#");
        for queue in definitions["queues"].as_array().unwrap() {
            assert_eq!(queue["arguments"]["x-queue-type"], "quorum");
        }
    }
}
