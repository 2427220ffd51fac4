//! Events for tests.
//!
//! - Layer: edge
//! - Takes: a number.
//! - Gives: always the same event for it.
//! - On failure: a test fails.
#![allow(clippy::unwrap_used)]

use crate::event::{Data, Event, EventId, Kind};
use crate::identity::{MessageId, Timestamp};

/// The event of this number.
pub(super) fn event(number: u64) -> Event {
    Event {
        id: EventId::of("queue test").part(number.to_be_bytes()).finish(),
        source: "mailtap/tap/mx1".into(),
        kind: Kind::ALL[usize::try_from(number).unwrap() % Kind::ALL.len()],
        time: Timestamp::from_secs(1_795_453_000 + number),
        message: MessageId::new(Timestamp::from_secs(1_795_453_000), 7),
        data: Data { campaign: Some(format!("c{}", number % 3).parse().unwrap()), ..Data::default() },
    }
}
