//! RabbitMQ: connection, topology, publishing with confirms.
//!
//! - Layer: edge
//! - Takes: URIs with the secret in them, names, limits.
//! - Gives: connections on which the topology is there; publishers; a hand on dead letters, an eye on what passes. The
//!   consuming side is `queue::source`.
//! - On failure: `AmqpError`; it carries what the client library or the broker said, never a message or a URI.
//! - Limits: `connect_timeout`, `confirm_timeout`; both bound every wait for the broker.
//! - See: AMQP 0-9-1; RabbitMQ 3.10 and later.

mod bindings;
pub mod certificates;
mod copies;
mod dead;
mod error;
pub(in crate::queue) mod headers;
mod link;
mod looks;
mod owner;
mod permissions;
mod publisher;
pub mod topology;
mod watch;
mod words;

pub use copies::Copies;
pub use dead::{DeadLetter, DeadLetters};
pub use error::{AmqpError, Fault, How};
pub use link::{Link, vhost_of};
pub use looks::Looks;
pub use owner::Owner;
pub(in crate::queue) use owner::Ways;
pub use publisher::{Message, Publisher, Refused};
pub use watch::Watch;

use std::path::PathBuf;
use std::time::Duration;

use crate::service::secret::Secret;
use topology::Shape;

/// How to reach the broker, and what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `amqp://` or `amqps://` URIs with user and password; the first that answers is taken.
    pub uris: Vec<Secret<String>>,
    /// The shape of exchanges and queues.
    pub shape: Shape,
    /// Whether to declare the topology or only to look if it is there.
    pub topology: Mode,
    /// How long connecting, and each question to the broker, may take.
    pub connect_timeout: Duration,
    /// How long a confirm may take while the broker doesn't say that it is blocked.
    pub confirm_timeout: Duration,
    /// Heartbeats; 0 to leave it to the broker.
    pub heartbeat: Duration,
    /// Certificate authorities in PEM that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// The client's certificate chain and key in PEM.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            uris: vec![Secret::new("amqp://127.0.0.1:5672/%2f".into())],
            shape: Shape::default(),
            topology: Mode::Declare,
            connect_timeout: Duration::from_secs(10),
            confirm_timeout: Duration::from_secs(30),
            heartbeat: Duration::from_secs(30),
            ca_file: None,
            client_certificate: None,
        }
    }
}

/// Who makes exchanges and queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// mailtap declares them.
    Declare,
    /// An administrator did; mailtap only looks if they are there.
    Check,
}

#[cfg(test)]
mod tests;
