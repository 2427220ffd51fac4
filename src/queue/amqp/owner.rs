//! Whose memory knows the events of a work queue: a relay that does not know what was sent must not consume it.
//!
//! - Layer: edge
//! - Takes: the name of a relay's memory; whether it takes over from another one.
//! - Gives: that the queue is its own, and whether another relay may have sent what comes again; later, that this is over.
//! - On failure: `AmqpError::Owned`; `Consumed` where the other one still works; `InUse` where that has
//!   the same name; `Claimed` while another one looks. Nothing was
//!   consumed, and what was written says no less than before: the new note is there before the old one goes.
//! - Limits: one small message in a queue of its own beside each work queue; one relay at a time looks at it. While it consumes, a relay has an
//!   empty queue that only its connection can have.
//! - See: `docs/decisions/0010-one-memory-a-queue.md`.

use std::time::Duration;

use lapin::Channel;
use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicGetOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;

use super::link::within;
use super::topology::{claim_queue, owner_queue, taken_queue};
use super::{AmqpError, Fault, How, Link, Message, Publisher};

/// How often to look whether a note is back in its queue.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A relay, as the owner of work queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The name of its memory.
    pub memory: String,
    /// Its host, for people.
    pub host: String,
    /// Takes queues from another owner.
    pub takes_over: bool,
}

/// The connections to ask and to write over. `link` never publishes and so is never blocked by an alarm.
#[derive(Debug, Clone, Copy)]
pub(in crate::queue) struct Ways<'a> {
    pub(in crate::queue) link: &'a Link,
    pub(in crate::queue) publishing: &'a Link,
    pub(in crate::queue) publisher: &'a Publisher,
}

/// What the owner's queue says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Note {
    memory: String,
    host: String,
    /// The highest is the one that counts.
    number: u64,
    /// What comes again may have been sent by the owner before.
    suspect: bool,
}

/// What is known of a queue that is this relay's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::queue) struct Claimed {
    /// Another relay may have sent what the broker hands out again.
    pub(in crate::queue) suspect: bool,
    /// Where it was first claimed for this memory.
    pub(in crate::queue) host: String,
}

/// What to do about a note, and what is known then.
enum Step {
    /// It stays.
    Keep(Note),
    /// This one takes its place.
    Write(Note),
}

impl Owner {
    /// Makes sure that a queue is its own.
    pub(in crate::queue) async fn claim(&self, ways: Ways<'_>, queue: &str) -> Result<Claimed, AmqpError> {
        self.locked(ways, queue, false).await
    }

    /// Keeps a copy of this relay, which has its name and not its memory, from the queue for as long as the connection lasts. An exclusive
    /// consumer would not: quorum queues let others consume beside it.
    pub(in crate::queue) async fn take(
        &self,
        link: &Link,
        queue: &str,
        claimed: &Claimed,
    ) -> Result<(), AmqpError> {
        let lock = taken_queue(queue);
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let channel = link.channel().await?;
        let declared = channel.queue_declare(lock.as_str().into(), options, FieldTable::default());
        within(link.timeout(), declared).await.map_err(|error| match unlocked(&lock, queue, error) {
            AmqpError::Claimed { queue } => AmqpError::InUse { queue, by: claimed.host.clone() },
            error => error,
        })?;
        within(link.timeout(), channel.close(200, "bye".into())).await
    }

    /// Writes down that nothing more can come that another relay had. `false` if it may still have to be written again.
    pub(in crate::queue) async fn clear(&self, ways: Ways<'_>, queue: &str) -> Result<bool, AmqpError> {
        Ok(!self.locked(ways, queue, true).await?.suspect)
    }

    /// Two relays that look at once would each find nothing while the other one holds the note: one after the other. What locks
    /// is a queue of this connection alone, which ends with it.
    async fn locked(&self, ways: Ways<'_>, queue: &str, clear: bool) -> Result<Claimed, AmqpError> {
        let link = ways.link;
        let lock = claim_queue(queue);
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let channel = link.channel().await?;
        let declared = channel.queue_declare(lock.as_str().into(), options, FieldTable::default());
        within(link.timeout(), declared).await.map_err(|error| unlocked(&lock, queue, error))?;
        let looked = self.look(ways, queue, clear).await;
        // Until the alarm is over nobody else can read whose it is: the lock says it, for as long as the connection lasts.
        if !matches!(looked, Ok((_, false))) {
            let deleted = channel.queue_delete(lock.as_str().into(), QueueDeleteOptions::default());
            within(link.timeout(), deleted).await?;
        }
        let (claimed, _) = looked?;
        within(link.timeout(), channel.close(200, "bye".into())).await?;
        Ok(claimed)
    }

    /// What is known of it, and whether the note that says so is surely written.
    async fn look(&self, ways: Ways<'_>, queue: &str, clear: bool) -> Result<(Claimed, bool), AmqpError> {
        let (link, name) = (ways.link, owner_queue(queue));
        let channel = link.channel().await?;
        let mut notes: Vec<(Note, BasicGetMessage)> = Vec::new();
        let options = BasicGetOptions::default();
        while let Some(got) = within(link.timeout(), channel.basic_get(name.as_str().into(), options)).await?
        {
            notes.push((Note::read(&got.delivery.data), got));
        }
        notes.sort_by_key(|(note, _)| note.number);
        let newest = notes.pop();
        let step = self.step(&channel, ways, queue, newest.as_ref().map(|(note, _)| note), clear).await;
        let (claimed, written, back) = match step {
            Ok(Step::Keep(note)) => {
                acknowledge(link, notes.into_iter()).await?;
                (Ok(Claimed { suspect: note.suspect, host: note.host }), true, newest.map_or(0, |_| 1))
            }
            Ok(Step::Write(note)) => {
                let written = note.publish(ways, &name).await?;
                if written {
                    acknowledge(link, notes.into_iter().chain(newest)).await?;
                    (Ok(Claimed { suspect: note.suspect, host: note.host }), true, 1)
                } else {
                    let suspect = note.suspect || (clear && newest.is_some_and(|(note, _)| note.suspect));
                    (Ok(Claimed { suspect, host: note.host }), false, 0)
                }
            }
            Err(error) => (Err(error), true, notes.len() + 1),
        };
        within(link.timeout(), channel.close(200, "bye".into())).await?;
        returned(link, &name, back).await?;
        Ok((claimed?, written))
    }

    async fn step(
        &self,
        channel: &Channel,
        ways: Ways<'_>,
        queue: &str,
        newest: Option<&Note>,
        clear: bool,
    ) -> Result<Step, AmqpError> {
        let own = |before: u64, suspect| {
            let (memory, host) = (self.memory.clone(), self.host.clone());
            Step::Write(Note { memory, host, number: before.saturating_add(1), suspect })
        };
        let Some(note) = newest else { return Ok(own(0, false)) };
        if note.memory == self.memory {
            return Ok(match clear && note.suspect {
                true => own(note.number, false),
                false => Step::Keep(note.clone()),
            });
        }
        if clear || !self.takes_over {
            let by = format!("{} on {}", note.memory, note.host);
            return Err(AmqpError::Owned { queue: queue.to_owned(), by });
        }
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(queue.into(), passive, FieldTable::default());
        if within(ways.link.timeout(), declared).await?.consumer_count() > 0 {
            return Err(AmqpError::Consumed { queue: queue.to_owned(), by: note.host.clone() });
        }
        Ok(own(note.number, true))
    }
}

impl Note {
    fn read(body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let mut words = text.split(' ');
        let mut word = || words.next().unwrap_or_default().to_owned();
        let (memory, host, number, suspect) = (word(), word(), word(), word());
        let number = number.parse().unwrap_or(0);
        Self { memory, host, number, suspect: suspect == SUSPECT }
    }

    /// `false`: it is written once the alarm is over. Waited for, nothing would drain the broker until then.
    async fn publish(&self, ways: Ways<'_>, name: &str) -> Result<bool, AmqpError> {
        let suspect = if self.suspect { format!(" {SUSPECT}") } else { String::new() };
        let message = Message {
            exchange: String::new(),
            key: name.to_owned(),
            id: self.memory.clone(),
            kind: "mailtap.owner".into(),
            time_s: 0,
            body: format!("{} {} {}{suspect}", self.memory, self.host, self.number).into_bytes(),
            headers: Vec::new(),
        };
        let limit = ways.link.timeout() / 2;
        match tokio::time::timeout(limit, ways.publisher.publish(ways.publishing, &message)).await {
            Ok(published) => {
                published.map_err(|refused| AmqpError::Client(refused.to_string())).map(|()| true)
            }
            Err(_) if ways.publishing.is_blocked() => Ok(false),
            Err(_) => Err(AmqpError::Timeout { after: limit }),
        }
    }
}

/// The word that a note ends with while what comes again may have been sent by another relay.
const SUSPECT: &str = "suspect";

async fn acknowledge(
    link: &Link,
    notes: impl Iterator<Item = (Note, BasicGetMessage)>,
) -> Result<(), AmqpError> {
    for (_, got) in notes {
        within(link.timeout(), got.delivery.acker.ack(BasicAckOptions::default())).await?;
    }
    Ok(())
}

/// Waits until notes that were only looked at can be read by the next one.
async fn returned(link: &Link, name: &str, count: usize) -> Result<(), AmqpError> {
    let channel = link.channel().await?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let back = async {
        loop {
            let queue = channel.queue_declare(name.into(), passive, FieldTable::default()).await?;
            if usize::try_from(queue.message_count()).unwrap_or(usize::MAX) >= count {
                return channel.close(200, "bye".into()).await;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    within(link.timeout(), back).await
}

fn unlocked(lock: &str, queue: &str, error: AmqpError) -> AmqpError {
    match error {
        AmqpError::Client(why) if why.contains("RESOURCE_LOCKED") => {
            AmqpError::Claimed { queue: queue.to_owned() }
        }
        AmqpError::Client(why) if why.contains("ACCESS_REFUSED") => {
            let how =
                How::Other(format!("{why}; give the relay's user the permission to configure this queue"));
            AmqpError::Topology(vec![Fault { name: lock.to_owned(), how }])
        }
        error => error,
    }
}

#[cfg(test)]
#[path = "owner_tests.rs"]
mod tests;
