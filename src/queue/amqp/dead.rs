//! The administrator's hand on the dead letters of the broker.
//!
//! - Layer: edge
//! - Takes: how to reach the broker.
//! - Gives: one letter after the other, each held until the connection ends, then back in the queue; unless it is
//!   published again or discarded.
//! - On failure: `AmqpError`, `Refused`. Whatever ends in the middle, a letter is in the queue or published again, or
//!   both: then the relay knows both for one replay by the same key.
//!   A letter that is not uncertain has no new key: what the relay knows to be sent is not sent again.
//! - Limits: the letters that were there at the beginning. Those that are held show up nowhere else meanwhile.

use std::future::Future;
use std::sync::Arc;

use lapin::Acker;
use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel};

use super::headers::{self, ATTEMPTS, BROKERS_REASON, REASON, RECIPIENT, REPLAY, SINCE, STATE};
use super::link::within;
use super::{AmqpError, Link, Message, Mode, Publisher, Refused, Settings};
use crate::event::{Event, EventId};
use crate::identity::Timestamp;
use crate::queue::spool::{Filter, Seq, State, Stored};

/// The dead letters, while somebody looks at them.
#[derive(Debug)]
pub struct DeadLetters {
    link: Arc<Link>,
    /// Of its own: while the broker takes no messages, a connection that publishes is blocked whole.
    publishing: Arc<Link>,
    channel: Channel,
    publisher: Publisher,
    queue: ShortString,
    left: u32,
}

/// One of them.
#[derive(Debug)]
pub struct DeadLetter {
    /// How it stands, as in the spool; what is no text in it is replaced.
    pub stored: Stored,
    event: Option<Event>,
    body: Vec<u8>,
    properties: BasicProperties,
    acker: Acker,
}

impl DeadLetter {
    /// Its bytes, and what they are said to be.
    #[must_use]
    pub fn form(&self) -> (usize, Option<String>) {
        let said = self.properties.content_type();
        (self.body.len(), said.as_ref().map(ToString::to_string))
    }

    /// Whether the filter lets it through.
    #[must_use]
    pub fn is_meant_by(&self, filter: &Filter) -> bool {
        filter.lets_through(self.stored.state, self.stored.reason.as_deref(), self.event.as_ref())
    }
}

impl DeadLetters {
    /// How many replays may be under way at once. A channel of the broker has at most 32 acks on their way to a quorum queue; what
    /// it keeps back beyond that is lost when it is closed, and the letter would stay.
    pub const REPLAYS: usize = 16;

    /// Connects, and looks how many there are. Declares nothing.
    ///
    /// # Errors
    /// `AmqpError`; `Topology` where the relay has never been.
    pub async fn open(settings: &Settings) -> Result<Self, AmqpError> {
        let settings = Settings { topology: Mode::Check, ..settings.clone() };
        let link = Link::open(&settings, "mailtap dead").await?;
        let publishing = Link::open(&settings, "mailtap dead, publishing").await?;
        let publisher = Publisher::open(&publishing, settings.confirm_timeout).await?;
        let channel = link.channel().await?;
        let queue = ShortString::from(link.topology().dead_queue());
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared =
            within(link.timeout(), channel.queue_declare(queue.clone(), passive, FieldTable::default()))
                .await?;
        let (link, publishing) = (Arc::new(link), Arc::new(publishing));
        Ok(Self { link, publishing, channel, publisher, queue, left: declared.message_count() })
    }

    /// The connection that replays are published over, to see whether the broker takes any.
    #[must_use]
    pub fn publishing(&self) -> Arc<Link> {
        self.publishing.clone()
    }

    /// How many are still to be looked at.
    #[must_use]
    pub fn left(&self) -> u32 {
        self.left
    }

    /// The next one.
    ///
    /// # Errors
    /// `AmqpError`.
    pub async fn next(&mut self) -> Result<Option<DeadLetter>, AmqpError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let got = self.channel.basic_get(self.queue.clone(), BasicGetOptions::default());
        let got = within(self.link.timeout(), got).await?;
        Ok(got.map(|got| {
            let delivery = got.delivery;
            letter(delivery.data, delivery.properties, delivery.acker)
        }))
    }

    /// Publishes a letter to the work queue, and takes it out of the dead ones once the broker has it there. It borrows nothing
    /// of this: up to `REPLAYS` may wait for their confirms while further letters are looked at.
    ///
    /// # Errors
    /// `Refused`: it is still a dead letter.
    pub fn replay(&self, letter: DeadLetter) -> impl Future<Output = Result<(), Refused>> + Send + use<> {
        let (link, publishing) = (self.link.clone(), self.publishing.clone());
        let publisher = self.publisher.clone();
        async move {
            publisher.publish(&publishing, &replayed(&letter, link.topology().to_work())).await?;
            link.acknowledge(&letter.acker, false).await;
            Ok(())
        }
    }

    /// Takes a letter out for good.
    pub async fn discard(&self, letter: DeadLetter) {
        self.link.acknowledge(&letter.acker, false).await;
    }

    /// Ends in order: everything that was only looked at is in the queue again.
    ///
    /// # Errors
    /// `AmqpError` if the broker doesn't answer any more: then the last letters may not have been taken out.
    pub async fn close(self) -> Result<(), AmqpError> {
        // An ack has no answer. The broker reads a channel in order: one that answers this has read all acks before.
        // That the connection looks well is no sign: a cut is noticed later than it happens.
        let heard = self.link.ready(&self.channel, self.queue.as_str()).await;
        self.link.close().await;
        // A blocked one would not be heard before the alarm is over.
        if !self.publishing.is_blocked() {
            self.publishing.close().await;
        }
        heard.map(|_| ())
    }
}

fn letter(body: Vec<u8>, properties: BasicProperties, acker: Acker) -> DeadLetter {
    let event = Event::from_json(&body).ok();
    let state_said = headers::text(&properties, STATE);
    let state = match state_said.as_deref() {
        Some("uncertain") => State::Uncertain,
        _ => State::Dead,
    };
    let added = Timestamp::from_secs(properties.timestamp().unwrap_or_default());
    let since = headers::text(&properties, SINCE).and_then(|text| text.parse().ok());
    let stored = Stored {
        seq: Seq(0),
        state,
        at: since.map_or(added, Timestamp::from_millis),
        added,
        attempts: headers::number(&properties, ATTEMPTS),
        reason: reason(&properties, state_said.is_some()),
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    DeadLetter { stored, event, body, properties, acker }
}

/// Why it is dead. What the broker buries by itself has no state, and the reason that it was last tried again for, if it was.
fn reason(properties: &BasicProperties, is_ours: bool) -> Option<String> {
    let said = headers::text(properties, REASON);
    if is_ours {
        return said;
    }
    let brokers = headers::last_death(properties).or_else(|| headers::text(properties, BROKERS_REASON));
    let brokers = brokers.map(|why| match why.as_str() {
        "delivery_limit" => "handed out too often: delivery_limit".to_owned(),
        _ => why,
    });
    match (brokers, said) {
        (Some(brokers), Some(said)) => Some(format!("{brokers} (before: {said})")),
        (brokers, said) => brokers.or(said),
    }
}

/// The message that brings a letter to the work queue again. An uncertain one goes under a key made of the event and the replay before: the
/// relay remembers it as sent. Replayed twice because something ended in between, it has the same key, and the relay sends it once. Any
/// other letter keeps what it is known by: the broker buries events that were handed out too often, and some of these were sent.
fn replayed(letter: &DeadLetter, (exchange, key): (String, String)) -> Message {
    let properties = &letter.properties;
    let text = |value: &Option<ShortString>| value.as_ref().map(ToString::to_string).unwrap_or_default();
    let before = headers::text(properties, REPLAY).unwrap_or_default();
    let replay =
        |event: &Event| EventId::of("replay").part(event.id.as_bytes()).part(&before).finish().to_string();
    let known_by = match letter.stored.state {
        State::Uncertain => letter.event.as_ref().map(replay),
        _ => Some(before.clone()).filter(|before| !before.is_empty()),
    };
    Message {
        exchange,
        key,
        id: text(properties.message_id()),
        kind: text(properties.kind()),
        time_s: properties.timestamp().unwrap_or_default(),
        body: letter.body.clone(),
        headers: {
            let known_by = known_by.map(|key| (REPLAY, key));
            known_by
                .into_iter()
                .chain(headers::text(properties, RECIPIENT).map(|whose| (RECIPIENT, whose)))
                .collect()
        },
    }
}

#[cfg(test)]
#[path = "dead_tests.rs"]
mod tests;
