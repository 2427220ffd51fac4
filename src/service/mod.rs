//! The life of a daemon: the clock, signals, health, notification of systemd, the admin listener.
//!
//! - Layer: edge
//! - Takes: signals of the operating system.
//! - Gives: `Lifecycle`, which every role is handed: when to stop, when to reload, where to report its health.
//! - On failure: a role that ends with an error stops the process with a non-zero exit code.

pub mod admin;
pub mod clock;
pub mod files;
mod health;
pub mod open_files;
pub mod process;
pub mod secret;

pub use health::{Component, Health};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What a role is told about the life of its process.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    /// Cancelled when the process should stop: finish what is under way, take nothing new.
    pub stop: CancellationToken,
    /// Counts reloads (SIGHUP); a change means: read your files again.
    pub reload: watch::Receiver<u64>,
    /// Where a role reports whether it is ready.
    pub health: Health,
}

impl Lifecycle {
    /// A life without signals, for tests and one-shot commands; cancel `stop` to end it.
    #[must_use]
    pub fn detached() -> Self {
        let (_, reload) = watch::channel(0);
        Self { stop: CancellationToken::new(), reload, health: Health::default() }
    }
}
