//! Which campaign a message belongs to: from what the application already sends.
//!
//! - Layer: decision
//! - Takes: the header fields, the list of headers to look at, rules by sender.
//! - Gives: a campaign id; the first source that has one decides.
//! - On failure: a header that can't be read as its platform writes it is passed over.
//! - See: the platforms' documentation of their headers; `docs/configuration.md`, "Campaigns".

use std::borrow::Cow;

use mail_parser::parsers::MessageStream;
use serde_json::Value;

use super::header::Field;
use crate::identity::CampaignId;

/// The header that an application sets for us.
pub const CAMPAIGN_HEADER: &str = "X-Mailtap-Campaign";

/// A campaign for the mail of a sender.
#[derive(Debug, Clone)]
pub struct CampaignRule {
    /// An address, a domain or `*.domain`, in lower case.
    pub sender: String,
    /// The campaign.
    pub campaign: CampaignId,
}

/// The campaign of a message: our own header, then `headers` in order, then the first rule that fits.
#[must_use]
pub fn campaign(
    fields: &[Field<'_>],
    headers: &[String],
    rules: &[CampaignRule],
    sender: &str,
) -> Option<CampaignId> {
    let own = std::iter::once(CAMPAIGN_HEADER);
    let named = own.chain(headers.iter().map(String::as_str)).find_map(|name| {
        fields.iter().filter(|field| field.is(name)).find_map(|field| from_header(name, &read(&field.text())))
    });
    named.or_else(|| {
        let sender = sender.to_lowercase();
        let domain = sender.rsplit_once('@').map_or("", |(_, domain)| domain);
        let rule = rules.iter().find(|rule| rule.sender == sender || matches_domain(&rule.sender, domain));
        rule.map(|rule| rule.campaign.clone())
    })
}

/// Whether a domain is the one, or below `*.` the one. Both in lower case.
#[must_use]
pub fn matches_domain(pattern: &str, domain: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(parent) => domain.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.')),
        None => pattern == domain,
    }
}

/// A header's value as a reader sees it, its encoded words (RFC 2047) undone: an address may be in one.
fn read(value: &str) -> Cow<'_, str> {
    if !value.contains("=?") {
        return value.into();
    }
    // The parser ends with the line.
    let line = format!("{value}\n");
    let text = MessageStream::new(line.as_bytes()).parse_unstructured().into_text();
    text.map_or_else(String::new, Cow::into_owned).into()
}

/// The campaign in a header's value, in the way its platform writes it.
fn from_header(name: &str, value: &str) -> Option<CampaignId> {
    match name.to_ascii_lowercase().as_str() {
        "x-smtpapi" => from_sendgrid(value),
        "x-msys-api" => CampaignId::from_header(json(value)?.get("campaign_id")?.as_str()?),
        "x-ses-message-tags" => from_pairs(value),
        // Google: CampaignID:CustomerID:MailTypeID:SenderID
        "feedback-id" => CampaignId::from_header(value.split(':').next()?),
        // RFC 2919: text <list-id>
        "list-id" => {
            let id = value.rsplit_once('<').map_or(value, |(_, rest)| rest.trim_end_matches('>'));
            CampaignId::from_header(id)
        }
        "x-mc-tags" => CampaignId::from_header(value.split(',').next()?),
        _ => CampaignId::from_header(value),
    }
}

/// SendGrid: `{"unique_args": {"campaign": …}, "category": "…" or ["…", …]}`.
fn from_sendgrid(value: &str) -> Option<CampaignId> {
    let json = json(value)?;
    let args = ["campaign_id", "campaign"].iter().find_map(|key| json.get("unique_args")?.get(key)?.as_str());
    let category = || match json.get("category")? {
        Value::Array(list) => list.first()?.as_str(),
        one => one.as_str(),
    };
    CampaignId::from_header(args.or_else(category)?)
}

/// Amazon SES: `campaign=spring, other=x`.
fn from_pairs(value: &str) -> Option<CampaignId> {
    let mut pairs = value.split(',').filter_map(|pair| pair.split_once('='));
    let (_, id) = pairs.find(|(key, _)| matches!(key.trim(), "campaign" | "campaign_id"))?;
    CampaignId::from_header(id)
}

fn json(value: &str) -> Option<Value> {
    serde_json::from_str(value).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::header::fields;
    use super::*;

    fn headers() -> Vec<String> {
        crate::config::raw::CAMPAIGN_HEADERS.iter().copied().map(str::to_owned).collect()
    }

    fn of(message: &str) -> Option<String> {
        campaign(&fields(message.as_bytes()).0, &headers(), &[], "").map(|id| id.to_string())
    }

    #[test]
    fn each_platform_is_read_as_it_writes() {
        for (header, expected) in [
            ("X-Mailtap-Campaign: spring-2026", Some("spring-2026")),
            ("X-Mailgun-Tag: spring sale", Some("spring-sale")),
            ("X-PM-Tag: welcome", Some("welcome")),
            ("X-MC-Tags: one, two", Some("one")),
            (r#"X-SMTPAPI: {"category": ["news", "x"]}"#, Some("news")),
            (r#"X-SMTPAPI: {"category": "news", "unique_args": {"campaign_id": "c7"}}"#, Some("c7")),
            ("X-SMTPAPI: {broken", None),
            (r#"X-MSYS-API: {"campaign_id": "msys", "options": {}}"#, Some("msys")),
            ("X-SES-MESSAGE-TAGS: a=b, campaign=ses", Some("ses")),
            ("Feedback-ID: camp:cust:type:sender", Some("camp")),
            ("List-Id: News <news.example.org>", Some("news.example.org")),
            ("List-Id: ann@example.org", None),
            ("X-PM-Tag: =?utf-8?q?spring_sale?=", Some("spring-sale")),
            ("X-PM-Tag: =?utf-8?b?c3ByaW5nIHM=?= =?utf-8?q?ale?= 2", Some("spring-sale-2")),
            ("X-PM-Tag: =?utf-8?q?ann=40example.org?=", None),
            ("X-PM-Tag: =?utf-8?b?YW5uQGV4YW1wbGUub3Jn?=", None),
            ("X-PM-Tag: =?utf-8?q?ann?= =?utf-8?q?%40example.org?=", None),
            ("X-PM-Tag: =?utf-8?q?broken", Some("=-utf-8-q-broken")),
            ("Subject: x", None),
        ] {
            assert_eq!(of(&format!("{header}\r\n\r\n")).as_deref(), expected, "{header}");
        }
    }

    #[test]
    fn our_own_header_wins_and_rules_come_last() {
        assert_eq!(of("Feedback-ID: f\nX-Mailtap-Campaign: own\n\n").as_deref(), Some("own"));
        assert_eq!(
            of("List-Id: <l>\nX-PM-Tag: p\n\n").as_deref(),
            Some("p"),
            "the order of the list, not of the mail"
        );
        let rules = [("news@example.org", "n"), ("*.example.org", "sub"), ("example.org", "main")]
            .map(|(sender, id)| CampaignRule { sender: sender.into(), campaign: id.parse().unwrap() });
        let by = |sender| campaign(&[], &[], &rules, sender).map(|id| id.to_string());
        assert_eq!(by("News@Example.org").as_deref(), Some("n"));
        assert_eq!(by("a@shop.example.org").as_deref(), Some("sub"));
        assert_eq!(by("a@example.org").as_deref(), Some("main"));
        assert_eq!(by("a@badexample.org"), None);
    }
}
