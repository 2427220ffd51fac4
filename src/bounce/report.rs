//! Returned mail and complaints, from message to events.
//!
//! - Layer: decision
//! - Takes: a whole message as it came, and the time.
//! - Gives: `Verdict`: events, or why there are none.
//! - On failure: a report without a reference of ours, or with a forged one, is `Foreign` and changes nothing.
//! - Limits: a reference proves the message, not the recipient: who received a message can report on it, as always in
//!   mail. One event a recipient and outcome, however often a final report comes.
//! - See: RFC 3462, RFC 3464 (2.2.1: Original-Envelope-Id), RFC 5965, RFC 3834 (Auto-Submitted).
//!
//! The time of an event is that of the report's `Date`, kept between the message's own time and now.
//!
//! A bounce of our own Postfix is in its log already, so the tap has published it: a report by a host of `own_hosts`
//! is `Known` and no event. Without a tap on that host, leave the host out of `own_hosts`.

use std::sync::Arc;

use mail_parser::{Encoding, Message, MessageParser, MessagePart, MimeHeaders, PartType};

use super::arf::Complaint;
use super::dsn::{Action, Recipient, Status};
use super::fields::{Field, header, text, value};
use super::loose::{self, before_quoted_header, quoted_header};
use super::plain::Plain;
use crate::delivery::{Classifier, Providers, Replies, sender_domain, smtp_code};
use crate::event::{Data, Event, EventId, EventIdBuilder, Kind};
use crate::identity::{CampaignId, MessageId, PseudonymKey, Timestamp};

/// The header that names a message of ours.
const REF: &str = "X-Mailtap-Ref";

/// Verifies the value of `X-Mailtap-Ref`.
pub type VerifyRef = Arc<dyn Fn(&str) -> Option<MessageId> + Send + Sync>;

/// Names as `Reporting-MTA` has them (Postfix: `myhostname`), or `*.example.org` for all below a domain.
pub type OwnHosts = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// What reports are read with.
pub struct Reader {
    /// This host: part of every event's source.
    pub host: String,
    /// Hashes recipients.
    pub pseudonyms: PseudonymKey,
    /// Verifies references.
    pub verify_ref: VerifyRef,
    /// Classes of failures.
    pub classifier: Classifier,
    /// Words for servers.
    pub providers: Providers,
    /// Whether events hold replies.
    pub replies: Replies,
    /// Hosts whose own bounces a tap has from their log; asked only about reports of a Postfix.
    pub own_hosts: OwnHosts,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("host", &self.host).finish_non_exhaustive()
    }
}

/// What a message is.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// A report on a message of ours; no event where everything was delivered.
    Events(Vec<Event>),
    /// A report of one of our own hosts: the tap has it from the log.
    Known,
    /// No report: an automatic answer, a read receipt, or mail of a person.
    NotAReport(&'static str),
    /// A report on a message that is not ours, or that can't be shown to be.
    Foreign(&'static str),
}

/// What is known of the message that a report is about.
struct Subject {
    id: MessageId,
    campaign: Option<CampaignId>,
    sender_domain: Option<String>,
    time: Timestamp,
}

/// Reads the MIME structure. The parser (mail-parser 0.11) panics on some multiparts that end in disorder: such a
/// message is no report, and must not come back to its sender because of us.
fn parse(message: &[u8]) -> Option<Message<'_>> {
    std::panic::catch_unwind(|| MessageParser::default().parse(message)).ok().flatten()
}

impl Reader {
    /// What the message is.
    #[must_use]
    pub fn read(&self, message: &[u8], now: Timestamp) -> Verdict {
        let Some(parsed) = parse(message) else {
            return Verdict::NotAReport("not a message");
        };
        let top = header(message);
        let part = |kinds: &[&str]| parsed.parts.iter().find(|part| kinds.contains(&kind_of(part).as_str()));
        if let Some(part) = part(&["message/delivery-status", "message/global-delivery-status"]) {
            let status = Status::parse(part.contents());
            if self.is_own(&status) {
                return Verdict::Known;
            }
            let mut returned = returned_header(&parsed).unwrap_or_default();
            if value(&returned, REF).is_none()
                && let Some(id) = &status.envelope_id
            {
                // Nothing came back of the message, but what its sender named it by.
                returned.push(Field { name: REF.as_bytes().to_vec(), value: id.clone() });
            }
            return self
                .about(&returned, &top, now, |subject| self.outcomes(subject, &status.recipients, &top));
        }
        if let Some(part) = part(&["message/feedback-report"]) {
            let Some(complaint) = Complaint::parse(part.contents()) else {
                return Verdict::NotAReport("feedback that is no complaint");
            };
            let returned = returned_header(&parsed).unwrap_or_default();
            return self.about(&returned, &top, now, |subject| vec![self.complaint(subject, &complaint)]);
        }
        if let Some(returned) = returned_header(&parsed)
            && let Some(complaint) = Complaint::of_microsoft(&top, &returned)
        {
            return self.about(&returned, &top, now, |subject| vec![self.complaint(subject, &complaint)]);
        }
        if part(&["message/disposition-notification"]).is_some() {
            return Verdict::NotAReport("a read receipt");
        }
        let body =
            parsed.raw_message().get(parsed.root_part().raw_body_offset() as usize..).unwrap_or_default();
        if let Some(plain) = Plain::parse(&top, body) {
            let returned = header(plain.returned);
            return self
                .about(&returned, &top, now, |subject| self.outcomes(subject, &plain.recipients, &top));
        }
        let submitted = value(&top, "Auto-Submitted").unwrap_or(b"no");
        let is_automatic = !submitted.eq_ignore_ascii_case(b"no");
        // An out-of-office reply may say anything; what Postfix, Exim and others report so was read above.
        let is_answer = submitted.get(..12).is_some_and(|word| word.eq_ignore_ascii_case(b"auto-replied"));
        if !is_answer && let Some(verdict) = self.loose(&parsed, &top, now) {
            return verdict;
        }
        Verdict::NotAReport(if is_automatic { "an automatic answer" } else { "no report" })
    }

    /// A report in no particular form; the reference is looked at first, for the rest costs more.
    fn loose(&self, message: &Message<'_>, top: &[Field], now: Timestamp) -> Option<Verdict> {
        let returned = returned_header(message)?;
        let is_ours = text(&returned, REF).is_some_and(|reference| (self.verify_ref)(reference).is_some());
        if !is_ours {
            let is_report = value(&returned, REF).is_some() && loose::is_from_a_mail_system(top);
            return is_report.then_some(Verdict::Foreign("with a reference that can't be verified"));
        }
        let recipients = loose::recipients(top, &own_text(message), &returned)?;
        Some(self.about(&returned, top, now, |subject| self.outcomes(subject, &recipients, top)))
    }

    fn is_own(&self, status: &Status) -> bool {
        let Some(mta) = &status.reporting_mta else { return false };
        let is_it = |own: String| match own.strip_prefix('*') {
            Some(domain) => domain.starts_with('.') && mta.ends_with(&domain.to_ascii_lowercase()),
            None => own.eq_ignore_ascii_case(mta),
        };
        status.is_postfix && (self.own_hosts)().into_iter().any(is_it)
    }

    /// Events about the message whose header came back, if it is ours.
    fn about(
        &self,
        returned: &[Field],
        top: &[Field],
        now: Timestamp,
        events: impl FnOnce(&Subject) -> Vec<Event>,
    ) -> Verdict {
        let Some(reference) = text(returned, REF) else {
            return Verdict::Foreign("without a reference");
        };
        let Some(id) = (self.verify_ref)(reference) else {
            return Verdict::Foreign("with a reference that can't be verified");
        };
        let time = date(top).unwrap_or(now).min(now).max(id.time());
        let campaign = text(returned, "X-Mailtap-Campaign").and_then(|campaign| campaign.parse().ok());
        let sender_domain = value(returned, "Return-Path").and_then(sender_domain);
        Verdict::Events(events(&Subject { id, campaign, sender_domain, time }))
    }

    fn outcomes(&self, subject: &Subject, recipients: &[Recipient], top: &[Field]) -> Vec<Event> {
        recipients.iter().filter_map(|recipient| self.outcome(subject, recipient, top)).collect()
    }

    fn outcome(&self, subject: &Subject, recipient: &Recipient, top: &[Field]) -> Option<Event> {
        let kind = match recipient.action {
            Action::Failed => Kind::Bounced,
            Action::Delayed => Kind::Deferred,
            Action::Delivered => return None,
        };
        let pseudonym = self.pseudonyms.pseudonym(&String::from_utf8_lossy(&recipient.address));
        let smtp_code = smtp_code(&recipient.diagnostic);
        let verdict = self.classifier.classify(smtp_code, recipient.status, &recipient.diagnostic);
        let mut id = EventId::of("returned")
            .part(subject.id.as_bytes())
            .part(pseudonym.as_bytes())
            .part(recipient.action.as_str());
        if recipient.action == Action::Delayed {
            // A recipient fails for good once, but waits as often as it is reported.
            id = report_identity(id, top);
        }
        let data = Data {
            recipient: Some(pseudonym),
            dsn: recipient.status.map(|status| status.to_string()),
            class: Some(verdict.class),
            reason: Some(verdict.why.to_string()),
            reply: self.replies.of(&recipient.diagnostic, &[&recipient.address]),
            smtp_code,
            provider: self.providers.of(&recipient.remote_mta).map(ToString::to_string),
            ..Data::default()
        };
        Some(self.event(subject, id, kind, data))
    }

    fn complaint(&self, subject: &Subject, complaint: &Complaint) -> Event {
        let recipient = complaint
            .recipient
            .as_ref()
            .map(|address| self.pseudonyms.pseudonym(&String::from_utf8_lossy(address)));
        let mut id = EventId::of("complaint").part(subject.id.as_bytes());
        if let Some(recipient) = recipient {
            id = id.part(recipient.as_bytes());
        }
        self.event(subject, id, Kind::Complained, Data { recipient, ..Data::default() })
    }

    fn event(&self, subject: &Subject, id: EventIdBuilder, kind: Kind, data: Data) -> Event {
        Event {
            id: id.finish(),
            source: format!("mailtap/bounce/{}", self.host),
            kind,
            time: subject.time,
            message: subject.id,
            data: Data {
                campaign: subject.campaign.clone(),
                sender_domain: subject.sender_domain.clone(),
                ..data
            },
        }
    }
}

/// What makes a report this one: its Message-ID, or else its date.
fn report_identity(id: EventIdBuilder, top: &[Field]) -> EventIdBuilder {
    let part = ["Message-ID", "Date"].iter().find_map(|name| value(top, name));
    id.part(part.unwrap_or_default())
}

/// `type/subtype`, in lower case.
fn kind_of(part: &MessagePart<'_>) -> String {
    part.content_type()
        .map(|kind| format!("{}/{}", kind.ctype(), kind.subtype().unwrap_or_default()).to_ascii_lowercase())
        .unwrap_or_default()
}

/// The header of the returned message: of `message/rfc822`, `message/global`, or of a part of headers alone; else the
/// fields around a reference that stands in a text, where some servers put what they return.
fn returned_header(message: &Message<'_>) -> Option<Vec<Field>> {
    const HEADERS: [&str; 3] = ["text/rfc822-headers", "message/global-headers", "message/rfc822-headers"];
    let part = message.parts.iter().find_map(|part| match &part.body {
        // What was encoded was decoded into a message of its own; else it is a stretch of this one.
        PartType::Message(returned) if part.encoding != Encoding::None => {
            Some(header(returned.raw_message()))
        }
        PartType::Message(_) => {
            let (start, end) = (part.raw_body_offset() as usize, part.raw_end_offset() as usize);
            Some(header(message.raw_message().get(start..end)?))
        }
        _ if HEADERS.contains(&kind_of(part).as_str()) => Some(header(part.contents())),
        _ => None,
    });
    if part.as_ref().is_some_and(|header| value(header, REF).is_some()) {
        return part;
    }
    let leaves = message
        .parts
        .iter()
        .filter(|part| !matches!(part.body, PartType::Message(_) | PartType::Multipart(_)));
    leaves.filter_map(|part| quoted_header(part.contents(), REF.as_bytes())).next().or(part)
}

/// What the reporter says itself: the texts, each up to a returned message within it.
fn own_text(message: &Message<'_>) -> Vec<u8> {
    let texts = message.parts.iter().filter(|part| matches!(part.body, PartType::Text(_)));
    texts.map(|part| before_quoted_header(part.contents(), REF.as_bytes())).collect::<Vec<_>>().join(&b'\n')
}

fn date(top: &[Field]) -> Option<Timestamp> {
    let date = mail_parser::DateTime::parse_rfc822(text(top, "Date")?)?;
    date.is_valid().then(|| u64::try_from(date.to_timestamp()).ok().map(Timestamp::from_secs)).flatten()
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
