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

use serde::Deserialize;

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

#[derive(Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
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
    #[allow(dead_code, reason = "it may stand there, and only says what is known")]
    datacontenttype: Option<Cow<'a, str>>,
    data: Cow<'a, Data>,
}

impl Event {
    /// The event as one line of JSON, without the line's end.
    #[must_use]
    pub fn to_json(&self) -> String {
        super::json::write(self)
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
    use proptest::prelude::*;

    use super::*;
    use crate::event::EventId;
    use crate::identity::Pseudonym;

    /// An event as `serde` writes it.
    fn by_serde(event: &Event) -> String {
        let event = CloudEvent {
            specversion: Cow::Borrowed("1.0"),
            id: Cow::Owned(event.id.to_string()),
            source: Cow::Borrowed(&event.source),
            kind: Cow::Borrowed(event.kind.as_str()),
            time: event.time,
            subject: event.message,
            datacontenttype: Some(Cow::Borrowed("application/json")),
            data: Cow::Borrowed(&event.data),
        };
        serde_json::to_string(&event).unwrap()
    }

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

    proptest! {
        /// Every member, with any text in it, and any of them left out.
        #[test]
        fn json_is_as_serde_writes_it(
            texts in proptest::collection::vec(proptest::option::of(".{0,12}|[ -~]{0,12}|[\\x00-\\x7f]{0,12}"), 14),
            flags in proptest::collection::vec(any::<Option<bool>>(), 7),
            numbers in any::<(Option<u32>, Option<u64>, Option<u16>)>(),
            micros in 0..=Timestamp::MAX.as_micros(), id in any::<[u8; 16]>(), message in any::<[u8; 10]>(),
        ) {
            let mut texts = texts.into_iter();
            let mut text = || texts.next().flatten();
            let mut flags = flags.into_iter();
            let mut flag = || flags.next().flatten();
            let (small, large, short) = numbers;
            let unit = if flag().is_some() { 1 } else { 1_000_000 };
            let data = Data {
                campaign: flag().map(|_| "a/b-c".parse().unwrap()),
                recipient: flag().map(|_| Pseudonym::from([id[0]; 12])),
                sender_domain: text(), queue_id: text(), links: small, pixel: flag(), recipients: small,
                dsn: text(), class: short.map(|_| super::super::BounceClass::RateLimit), reason: text(), reply: text(),
                attempt: small, delay_ms: large, smtp_code: short, provider: text(), tls: text(), link: short,
                link_host: text(), link_path: text(), machine: short.map(|_| super::super::Machine::Probable),
                machine_rule: text(), network: text(), agent: text(), upgrade: flag(), implied: flag(), late: flag(),
                unique: small.map(|number| number % 2 == 0), ga_client_id: text(), ga_session_id: text(),
            };
            let event = Event {
                id: id.into(), source: text().unwrap_or_default(), time: Timestamp::from_micros(micros / unit * unit),
                message: message.into(), data, ..event()
            };
            prop_assert_eq!(event.to_json(), by_serde(&event));
        }
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
