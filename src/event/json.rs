//! An event as JSON, written out: the same bytes as by `serde`, at a quarter of the work.
//!
//! - Layer: word
//! - Takes: an event.
//! - Gives: one line of JSON, what is not known left out.
//! - On failure: nothing can fail.
//! - See: RFC 8259 section 7; `wire`, which reads it; a test holds both equal.

use data_encoding::{BASE32HEX_NOPAD, BASE64URL_NOPAD};

use super::{Data, Event};
use crate::identity::MessageId;

/// What most events fit in.
const TYPICAL_BYTES: usize = 704;

pub(super) fn write(event: &Event) -> String {
    let Event { id, source, kind, time, message, data } = event;
    let mut json = String::with_capacity(TYPICAL_BYTES);
    json.push_str(r#"{"specversion":"1.0","id":""#);
    BASE64URL_NOPAD.encode_append(id.as_bytes(), &mut json);
    json.push_str(r#"","source":"#);
    push_text(&mut json, source);
    json.push_str(r#","type":""#);
    json.push_str(kind.as_str());
    json.push_str(r#"","time":""#);
    time.push_onto(&mut json);
    json.push_str(r#"","subject":""#);
    push_message(&mut json, message);
    json.push_str(r#"","datacontenttype":"application/json","data":{"#);
    let mut members = Members { json: &mut json, separator: "\"" };
    members.all(data);
    json.push_str("}}");
    json
}

/// The members of an object, in the making.
struct Members<'j> {
    json: &'j mut String,
    /// What stands before the next name.
    separator: &'static str,
}

impl Members<'_> {
    fn all(&mut self, data: &Data) {
        self.text("campaign", data.campaign.as_ref().map(|campaign| campaign.as_str()));
        if let Some(recipient) = &data.recipient {
            self.name("recipient");
            self.json.push('"');
            BASE64URL_NOPAD.encode_append(recipient.as_bytes(), self.json);
            self.json.push('"');
        }
        self.text("sender_domain", data.sender_domain.as_deref());
        self.text("queue_id", data.queue_id.as_deref());
        self.number("links", data.links);
        self.flag("pixel", data.pixel);
        self.number("recipients", data.recipients);
        self.text("dsn", data.dsn.as_deref());
        self.text("class", data.class.map(super::BounceClass::as_str));
        self.text("reason", data.reason.as_deref());
        self.text("reply", data.reply.as_deref());
        self.number("attempt", data.attempt);
        self.number("delay_ms", data.delay_ms);
        self.number("smtp_code", data.smtp_code);
        self.text("provider", data.provider.as_deref());
        self.text("tls", data.tls.as_deref());
        self.number("link", data.link);
        self.text("link_host", data.link_host.as_deref());
        self.text("link_path", data.link_path.as_deref());
        self.text("machine", data.machine.map(super::Machine::as_str));
        self.text("machine_rule", data.machine_rule.as_deref());
        self.text("network", data.network.as_deref());
        self.text("agent", data.agent.as_deref());
        self.flag("upgrade", data.upgrade);
        self.flag("implied", data.implied);
        self.flag("late", data.late);
        self.flag("unique", data.unique);
        self.text("ga_client_id", data.ga_client_id.as_deref());
        self.text("ga_session_id", data.ga_session_id.as_deref());
    }

    fn name(&mut self, name: &str) {
        self.json.push_str(self.separator);
        self.json.push_str(name);
        self.json.push_str("\":");
        self.separator = ",\"";
    }

    fn text(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.name(name);
            push_text(self.json, value);
        }
    }

    fn flag(&mut self, name: &str, value: Option<bool>) {
        if let Some(value) = value {
            self.name(name);
            self.json.push_str(if value { "true" } else { "false" });
        }
    }

    fn number(&mut self, name: &str, value: Option<impl Into<u64>>) {
        if let Some(value) = value {
            self.name(name);
            self.json.push_str(&value.into().to_string());
        }
    }
}

/// A string, escaped where JSON wants it.
fn push_text(json: &mut String, text: &str) {
    if text.bytes().all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\') {
        json.push('"');
        json.push_str(text);
        json.push('"');
    } else {
        // Strings to memory: it cannot fail.
        json.push_str(&serde_json::to_string(text).unwrap_or_default());
    }
}

fn push_message(json: &mut String, message: &MessageId) {
    let from = json.len();
    BASE32HEX_NOPAD.encode_append(message.as_bytes(), json);
    if let Some(text) = json.get_mut(from..) {
        text.make_ascii_lowercase();
    }
}
