//! What an attempt came to, in the words of events.
//!
//! - Layer: decision
//! - Takes: an attempt, and the rules that class failures.
//! - Gives: kind, class and codes; `Data` for an event.
//! - On failure: what the line does not say is left out.

use std::sync::Arc;

use super::Correlator;
use crate::delivery::{EnhancedCode, smtp_code};
use crate::event::{BounceClass, Data, Kind};
use crate::identity::Pseudonym;
use crate::tap::record::{Delivery, Status};
use crate::tap::values::tls_word;

impl Correlator {
    pub(super) fn outcome(&self, delivery: &Delivery<'_>) -> Outcome {
        let dsn = delivery.dsn.and_then(EnhancedCode::parse);
        let smtp_code = smtp_code(delivery.text);
        let kind = match delivery.status {
            Status::Sent | Status::Probe => Kind::Delivered,
            Status::Deferred => Kind::Deferred,
            Status::Bounced => Kind::Bounced,
        };
        let verdict =
            (kind != Kind::Delivered).then(|| self.parts.classifier.classify(smtp_code, dsn, delivery.text));
        let addresses = [delivery.to, delivery.orig_to.unwrap_or_default()];
        Outcome {
            kind,
            dsn,
            smtp_code,
            class: verdict.map(|verdict| verdict.class),
            reason: verdict.map(|verdict| verdict.why.clone()),
            reply: verdict.and_then(|_| self.parts.replies.of(delivery.text, &addresses)),
            provider: self.parts.providers.of(delivery.relay).cloned(),
        }
    }
}

/// What an attempt came to.
pub(super) struct Outcome {
    pub(super) kind: Kind,
    pub(super) dsn: Option<EnhancedCode>,
    pub(super) smtp_code: Option<u16>,
    pub(super) class: Option<BounceClass>,
    pub(super) reason: Option<Arc<str>>,
    pub(super) reply: Option<String>,
    pub(super) provider: Option<Arc<str>>,
}

impl Outcome {
    /// What an event says of it.
    pub(super) fn data(
        &self,
        delivery: &Delivery<'_>,
        original: Pseudonym,
        attempt: u32,
        connection: Option<&'static str>,
    ) -> Data {
        Data {
            recipient: Some(original),
            dsn: self.dsn.map(|dsn| dsn.to_string()),
            class: self.class,
            reason: self.reason.as_deref().map(str::to_owned),
            reply: self.reply.clone(),
            attempt: Some(attempt),
            delay_ms: delivery.delay().and_then(|delay| u64::try_from(delay.as_millis()).ok()),
            smtp_code: self.smtp_code,
            provider: self.provider.as_deref().map(str::to_owned),
            tls: delivery.tls.and_then(tls_word).or_else(|| connection.map(str::to_owned)),
            ..Data::default()
        }
    }
}
