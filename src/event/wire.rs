//! Events as CloudEvents 1.0 JSON, both ways.
//!
//! - Layer: word
//! - Takes: an event, or bytes from spool, broker or file.
//! - Gives: one line of JSON, or the event.
//! - On failure: `EventError`; an unknown attribute or member of `data` is an error, so that no version drops what
//!   another one wrote.
//! - Limits: `Event::MAX_BYTES`.
//! - See: CloudEvents 1.0, JSON event format.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{Data, Event, Kind};
use crate::identity::{MessageId, Timestamp};

/// Why bytes are not an event.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// More than `Event::MAX_BYTES`.
    #[error("the event has {bytes} bytes; {} are allowed", Event::MAX_BYTES)]
    TooLong {
        /// How many there are.
        bytes: usize,
    },
    /// Not JSON, or not of this form. Carries the position, never the content.
    #[error("not an event: line {line}, column {column}")]
    Json {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// `specversion` is not `1.0`.
    #[error("the event's specversion is not 1.0")]
    SpecVersion,
    /// `type` is none of ours.
    #[error("the event's type is not one of mailtap's")]
    Kind,
    /// `id` is not 22 characters of base64url.
    #[error("the event's id is not 22 characters of base64url")]
    Id,
}

/// What most events fit in.
const TYPICAL_BYTES: usize = 704;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CloudEvent<'a> {
    #[serde(borrow)]
    specversion: Cow<'a, str>,
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    source: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    time: Timestamp,
    subject: MessageId,
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    datacontenttype: Option<Cow<'a, str>>,
    data: Cow<'a, Data>,
}

impl Event {
    /// The event as one line of JSON, without the line's end.
    #[must_use]
    pub fn to_json(&self) -> String {
        let event = CloudEvent {
            specversion: Cow::Borrowed("1.0"),
            id: Cow::Owned(self.id.to_string()),
            source: Cow::Borrowed(&self.source),
            kind: Cow::Borrowed(self.kind.as_str()),
            time: self.time,
            subject: self.message,
            datacontenttype: Some(Cow::Borrowed("application/json")),
            data: Cow::Borrowed(&self.data),
        };
        // Strings, numbers and our own Display only: serialising them to memory cannot fail.
        let mut json = Vec::with_capacity(TYPICAL_BYTES);
        let written = serde_json::to_writer(&mut json, &event);
        written.ok().and_then(|()| String::from_utf8(json).ok()).unwrap_or_default()
    }

    /// The event that these bytes of JSON are.
    ///
    /// # Errors
    /// See [`EventError`].
    pub fn from_json(bytes: &[u8]) -> Result<Self, EventError> {
        if bytes.len() > Self::MAX_BYTES {
            return Err(EventError::TooLong { bytes: bytes.len() });
        }
        let event: CloudEvent<'_> = serde_json::from_slice(bytes)
            .map_err(|error| EventError::Json { line: error.line(), column: error.column() })?;
        if event.specversion != "1.0" {
            return Err(EventError::SpecVersion);
        }
        Ok(Self {
            id: event.id.parse()?,
            kind: Kind::from_type(&event.kind).ok_or(EventError::Kind)?,
            source: event.source.into_owned(),
            time: event.time,
            message: event.subject,
            data: event.data.into_owned(),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::event::EventId;

    fn event() -> Event {
        Event {
            id: EventId::of("test").finish(),
            source: "mailtap/tap/mx1".into(),
            kind: Kind::Bounced,
            time: Timestamp::from_micros(1_795_453_092_917_912),
            message: MessageId::new(Timestamp::from_secs(1_795_453_080), 7),
            data: Data {
                campaign: Some("spring".parse().unwrap()),
                dsn: Some("5.1.1".into()),
                class: Some(super::super::BounceClass::MailboxFull),
                ..Data::default()
            },
        }
    }

    #[test]
    fn json_comes_back_for_every_kind() {
        for kind in Kind::ALL {
            let event = Event { kind, ..event() };
            assert_eq!(Event::from_json(event.to_json().as_bytes()).unwrap(), event);
        }
    }

    #[test]
    fn what_is_unknown_is_left_out_and_the_words_are_the_documented_ones() {
        let json = event().to_json();
        assert!(json.contains(r#""type":"mailtap.message.bounced""#), "{json}");
        assert!(
            json.contains(r#""data":{"campaign":"spring","dsn":"5.1.1","class":"mailbox-full"}"#),
            "{json}"
        );
    }

    #[test]
    fn errors_carry_no_content() {
        let marker = "ann@example.org";
        for bad in [
            format!(r#"{{"{marker}":1}}"#),
            event().to_json().replace("spring", marker),
            event().to_json().replace("1.0", marker),
            event().to_json().replace("mailtap.message.bounced", marker),
            "[".repeat(5_000),
            "x".repeat(Event::MAX_BYTES + 1),
        ] {
            let error = Event::from_json(bad.as_bytes()).unwrap_err();
            assert!(!format!("{error} {error:?}").contains(marker));
        }
    }
}
