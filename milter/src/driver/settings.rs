//! What the daemon may use, and how long it waits.
//!
//! - Layer: word
//! - Takes: nothing.
//! - Gives: settings with defaults that suit Postfix.
//! - On failure: nothing can fail.

use std::time::Duration;

use crate::session::{SessionLimits, Wanted};

/// Settings of a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// What is wanted of the MTA. Default: [`Wanted::default`]. While fewer than one in sixteen messages are accepted at the
    /// end of their headers, the driver asks new connections not to wait for a reply there: those that are accepted all
    /// the same then have their bodies sent, to be thrown away.
    pub wanted: Wanted,
    /// Limits of frames and messages. The room for an answer is set by the driver.
    pub session: SessionLimits,
    /// Connections that are served; Postfix opens one for each SMTP session. Default 1,000. Up to four times as many
    /// more are answered at once so that their mail goes on unmodified; beyond, connections wait until others end
    /// ([`Happening::ConnectionWaits`](super::Happening)).
    pub connections: usize,
    /// Memory for messages of all connections together, in bytes. Default 1 GiB. A message that would pass it goes
    /// through unmodified. While the handler has a message, four times its size is counted: for the message, what the
    /// handler makes of it, and the answer. Connections that hold less than 64 KiB, and receive buffers, of up to twice
    /// the frame limit, of those that were refused more, are not counted.
    pub memory_bytes: usize,
    /// The send buffer to ask the system for, in bytes. Default 64 MiB; Linux gives at most `net.core.wmem_max`.
    pub send_buffer_bytes: usize,
    /// What becomes of an answer that does not fit the send buffer, unless the handler says otherwise.
    pub oversize: Oversize,
    /// How long the driver waits.
    pub timeouts: Timeouts,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            wanted: Wanted::default(),
            session: SessionLimits::default(),
            connections: 1_000,
            memory_bytes: 1 << 30,
            send_buffer_bytes: 64 << 20,
            oversize: Oversize::default(),
            timeouts: Timeouts::default(),
        }
    }
}

/// What becomes of an answer that does not fit the send buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Oversize {
    /// The message goes through unmodified. Needed with `milter_default_action = accept`: when a filter dies in
    /// the middle of its answer, Postfix up to 3.11 then loses the mail or mixes both bodies.
    #[default]
    PassUnmodified,
    /// The answer is written in as many pieces as it takes. Only for `milter_default_action = tempfail` and the like.
    Stream,
}

/// How long the driver waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timeouts {
    /// For the first command of a connection. Default 30 s.
    pub negotiation: Duration,
    /// For a command between messages and in an envelope, where the MTA's client sets the pace. Default 7,210 s, as
    /// in libmilter; Postfix never reopens a connection within an SMTP session, so a short one costs mail.
    pub idle: Duration,
    /// For a command within headers and body. Default 300 s.
    pub content: Duration,
    /// For the handler, each message. Default 20 s; must stay below the MTA's `milter_content_timeout`.
    pub handler: Duration,
    /// Between signs of life while the handler works. Default 10 s.
    pub progress: Duration,
    /// For the MTA to take bytes. Default 60 s.
    pub write: Duration,
    /// At the end: for an idle connection to be used again before it is closed. Default 5 s. A connection that has brought
    /// no message yet is not idle, and has until `drain`: Postfix opens one when a client connects, and keeps what the
    /// client says from MAIL on to itself until there is something to be replied to, or a few KiB.
    pub drain_idle: Duration,
    /// At the end: for messages in transit. Default 30 s.
    pub drain: Duration,
    /// At the end, after `drain`: for messages still being received, which then pass unmodified. Default 3 s.
    pub drain_passing: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            negotiation: Duration::from_secs(30),
            idle: Duration::from_secs(7_210),
            content: Duration::from_secs(300),
            handler: Duration::from_secs(20),
            progress: Duration::from_secs(10),
            write: Duration::from_secs(60),
            drain_idle: Duration::from_secs(5),
            drain: Duration::from_secs(30),
            drain_passing: Duration::from_secs(3),
        }
    }
}
