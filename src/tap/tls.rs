//! TLS of deliveries by Postfix before 3.11: the word of the connection's own line.
//!
//! - Layer: decision
//! - Takes: `… TLS connection established to …`, and the attempts of the same process.
//! - Gives: `anonymous`, `untrusted`, `trusted` or `verified`, for attempts of which it is sure.
//! - On failure: `None`.
//! - Limits: `MAX_PROCESSES`; beyond it all are forgotten. Connections that tlsproxy(8) holds are not known.
//! - See: postconf(5) smtp_tls_loglevel; Postfix `src/tls/tls_client.c`.

use std::collections::HashMap;

use super::line::Line;
use super::queue_id::QueueId;
use super::record::Delivery;

/// More processes than any host runs.
const MAX_PROCESSES: usize = 10_000;

/// The connections of each process.
#[derive(Debug, Default)]
pub(super) struct Connections(HashMap<Vec<u8>, Connection>);

#[derive(Debug)]
struct Connection {
    relay: Vec<u8>,
    word: &'static str,
    /// The message that went through it last.
    queue_id: Option<QueueId>,
}

impl Connections {
    /// A process has a connection with TLS.
    pub(super) fn established(&mut self, line: &Line<'_>, relay: &[u8], word: &'static str) {
        if self.0.len() >= MAX_PROCESSES {
            self.0.clear();
        }
        self.0.insert(process(line), Connection { relay: relay.to_vec(), word, queue_id: None });
    }

    /// The word for this attempt. A process has one connection at a time: the first message after its line went through
    /// it, and others that say so (`conn_use=`).
    pub(super) fn word(&mut self, line: &Line<'_>, delivery: &Delivery<'_>) -> Option<&'static str> {
        if self.0.is_empty() {
            return None;
        }
        let process = process(line);
        let connection = self.0.get_mut(&process)?;
        let is_of_it = connection.relay == delivery.relay
            && (delivery.is_reused
                || connection.queue_id.is_none_or(|queue_id| queue_id == delivery.queue_id));
        if !is_of_it {
            self.0.remove(&process);
            return None;
        }
        connection.queue_id = Some(delivery.queue_id);
        Some(connection.word)
    }
}

fn process(line: &Line<'_>) -> Vec<u8> {
    [line.host, line.instance, line.daemon, line.pid].join(&0)
}
