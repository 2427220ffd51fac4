//! Why the broker can't be used, in words that say where and what to do.
//!
//! - Layer: edge
//! - Takes: what the client library and the broker said.
//! - Gives: `AmqpError`: its text for people, never with a password or a message; a headline by which causes are told apart.
//! - On failure: nothing can fail.

use std::time::Duration;

use super::certificates::Unusable;
use super::words;

/// Why the broker can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AmqpError {
    /// There is no URI.
    #[error("no broker is configured")]
    NoUri,
    /// A URI is not one.
    #[error("broker {number}: not an AMQP URI")]
    Uri {
        /// Which one, from 1.
        number: usize,
    },
    /// None of these can be used: host and port of each, and why.
    #[error("{}", each(.0))]
    Brokers(Vec<(String, AmqpError)>),
    /// Certificates or keys can't be used.
    #[error("{}", join(.0, "; "))]
    Certificates(Vec<Unusable>),
    /// No answer in time.
    #[error("no answer within {} s", after.as_secs())]
    Timeout {
        /// How long it was waited for.
        after: Duration,
    },
    /// Exchanges or queues are missing or otherwise.
    #[error("{}", faults(.0))]
    Topology(Vec<Fault>),
    /// The events of a work queue are remembered by another relay.
    #[error(
        "{queue} belongs to the memory of another relay ({by}); give each relay queues of its own (relay.queues), or, if that one is \
             gone for good, start this one once with --take-over"
    )]
    Owned {
        /// The queue.
        queue: String,
        /// Whose it is.
        by: String,
    },
    /// It can't be taken over: somebody consumes it.
    #[error("{queue} can't be taken over: the relay on {by} still consumes it; stop that one first")]
    Consumed {
        /// The queue.
        queue: String,
        /// Whose it is.
        by: String,
    },
    /// It is consumed under the name of this relay's memory.
    #[error(
        "{queue} is taken already by a relay with this memory (claimed on {by}): if another one runs with a copy of this state_dir, \
             stop it; if RabbitMQ has not noticed yet that a former connection of this one is gone, it will; trying again"
    )]
    InUse {
        /// The queue.
        queue: String,
        /// Where it was claimed.
        by: String,
    },
    /// The broker ended the consumer of a work queue, as it does when that is deleted.
    #[error("the broker cancelled the consumer of {queue}: it was deleted, or the broker stops")]
    Cancelled {
        /// The queue.
        queue: String,
    },
    /// It takes no messages.
    #[error(
        "takes no messages: it is short of memory or disk (`rabbitmq-diagnostics alarms`), so not all can be asked"
    )]
    Blocked,
    /// Another relay looks whose it is, or has claimed it and can't write so while the broker takes no messages.
    #[error("another relay is claiming {queue}; trying again")]
    Claimed {
        /// The queue.
        queue: String,
    },
    /// There is no such work queue.
    #[error("relay.queues: there is no queue {number}; amqp.partitions says how many there are")]
    NoQueue {
        /// Its number.
        number: u16,
    },
    /// What the client library reported.
    #[error("{0}")]
    Client(String),
}

/// An exchange or queue that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Its name.
    pub name: String,
    /// How it is.
    pub how: How,
}

/// How an exchange or queue is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// Not there.
    Missing,
    /// There, and of another kind or with other arguments: what the broker said.
    Different(String),
    /// The user may not make or use it: what the broker said.
    Denied(String),
    /// What the broker said.
    Other(String),
}

impl Fault {
    /// By what the broker said of it.
    #[must_use]
    pub fn new(name: &str, said: String) -> Self {
        let how = match said.split_whitespace().next() {
            Some("NOT_FOUND") => How::Missing,
            Some("PRECONDITION_FAILED") => How::Different(said),
            Some("ACCESS_REFUSED") => How::Denied(said),
            _ => How::Other(said),
        };
        Self { name: name.to_owned(), how }
    }
}

impl AmqpError {
    /// The error of one broker.
    #[must_use]
    pub fn at(self, broker: &str) -> Self {
        match self {
            Self::Brokers(_) => self,
            error => Self::Brokers(vec![(broker.to_owned(), error)]),
        }
    }

    /// Without the brokers: where several failed, what one says that answers and is not as it should be; else the first.
    #[must_use]
    pub fn cause(&self) -> &Self {
        let Self::Brokers(each) = self else { return self };
        let errors = || each.iter().map(|(_, error)| error);
        errors().find(|error| error.has_answered()).or_else(|| errors().next()).unwrap_or(self)
    }

    /// What kind of trouble it is, for the log.
    #[must_use]
    pub fn headline(&self) -> &'static str {
        match self.cause() {
            Self::Topology(_) => "RabbitMQ answers, but exchanges or queues are not as they should be",
            Self::Owned { .. }
            | Self::Consumed { .. }
            | Self::InUse { .. }
            | Self::Claimed { .. }
            | Self::NoQueue { .. } => "RabbitMQ answers, but a work queue is not this relay's to take",
            Self::Cancelled { .. } => "RabbitMQ lets a work queue be consumed no longer",
            Self::Blocked => "RabbitMQ answers, but takes no messages",
            Self::Certificates(_) => "no connection to RabbitMQ: a certificate or key can't be used",
            _ => "no connection to RabbitMQ",
        }
    }

    const fn has_answered(&self) -> bool {
        matches!(
            self,
            Self::Topology(_)
                | Self::Owned { .. }
                | Self::Consumed { .. }
                | Self::InUse { .. }
                | Self::Claimed { .. }
                | Self::NoQueue { .. }
        )
    }
}

impl From<lapin::Error> for AmqpError {
    fn from(error: lapin::Error) -> Self {
        Self::Client(words::plain(&error))
    }
}

fn join(list: &[impl ToString], by: &str) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(by)
}

fn each(brokers: &[(String, AmqpError)]) -> String {
    let each = brokers.iter().map(|(broker, error)| format!("{broker}: {error}"));
    each.collect::<Vec<_>>().join("; ")
}

fn faults(faults: &[Fault]) -> String {
    let missing: Vec<&str> =
        faults.iter().filter(|fault| fault.how == How::Missing).map(|fault| &fault.name[..]).collect();
    let mut parts = Vec::new();
    if !missing.is_empty() {
        parts.push(format!(
            "{} not there; with amqp.topology = \"declare\" the first forwarder or relay makes what is missing, with \"check\" an \
             administrator imports what `mailtap amqp definitions` prints",
            missing.join(", ") + if missing.len() == 1 { " is" } else { " are" }
        ));
    }
    parts.extend(faults.iter().filter_map(|Fault { name, how }| match how {
        How::Missing => None,
        How::Different(said) => Some(format!(
            "{name} is there with other settings ({said}); configure it as it is, or delete it once it is empty and have it made again"
        )),
        How::Denied(said) => Some(format!(
            "the user may not make {name} ({said}); give the user the permission, or import what `mailtap amqp definitions` prints and \
             set amqp.topology = \"check\""
        )),
        How::Other(said) => Some(format!("{name}: {said}")),
    }));
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_missing_is_named_at_once_with_the_remedy() {
        let fault = |name: &str, said: &str| Fault::new(name, said.to_owned());
        let error = AmqpError::Topology(vec![
            fault("m.events", "NOT_FOUND - no exchange 'm.events' in vhost '/'"),
            fault("m.ga4", "PRECONDITION_FAILED - inequivalent arg 'x-delivery-limit'"),
            fault("m.dead", "NOT_FOUND - no exchange 'm.dead' in vhost '/'"),
        ]);
        let text = error.to_string();
        assert!(text.starts_with("m.events, m.dead are not there; "), "{text}");
        assert!(
            text.contains("mailtap amqp definitions") && text.contains("topology = \"declare\""),
            "{text}"
        );
        assert!(text.contains("m.ga4 is there with other settings (PRECONDITION_FAILED - inequiv"), "{text}");
    }

    #[test]
    fn every_broker_is_named_and_the_one_that_answers_gives_the_cause() {
        let refused = AmqpError::Client("connection refused".into());
        let wrong = AmqpError::Topology(vec![Fault::new("m.ga4", "NOT_FOUND".into())]);
        let error = AmqpError::Brokers(vec![("a:5672".into(), refused), ("b:5671".into(), wrong.clone())]);
        assert!(error.to_string().starts_with("a:5672: connection refused; b:5671: m.ga4 is not there"));
        assert_eq!(error.cause(), &wrong);
        assert_eq!(error.headline(), wrong.headline());
        let timeout = AmqpError::Timeout { after: Duration::from_secs(10) }.at("c:1");
        assert_eq!(
            (timeout.to_string(), timeout.clone().at("d:1")),
            ("c:1: no answer within 10 s".into(), timeout)
        );
    }
}
