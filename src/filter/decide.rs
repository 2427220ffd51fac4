//! What becomes of one message: in scope or not, for whom, with which tokens; the function that the milter and
//! `mailtap rewrite` share.
//!
//! - Layer: decision
//! - Takes: the whole message, its envelope, the site's policy, the keyring, the time and 32 random bits.
//! - Gives: patches, header edits and the facts of an event; or nothing to change, with the reason.
//! - On failure: every doubt leaves the message as it came.
//! - Limits: those of `rewrite::Plan`.
//! - See: `docs/architecture.md`, "One message".

use crate::consent::{Consent, Consents, Purpose};
use crate::delivery;
use crate::event::Data;
use crate::filter::campaign::{self, CAMPAIGN_HEADER, CampaignRule};
use crate::filter::header::{self, Field, HeaderEdits};
use crate::filter::hosts::{self, TrackingHost};
use crate::filter::rules::{self, Rule};
use crate::identity::{CampaignId, MessageId, Pseudonym, PseudonymKey, Timestamp};
use crate::keys::ring::{Key, Keyring};
use crate::keys::token::{self, ClickSigner, Context, Open, Ref, Token};
use crate::rewrite::{self, Mint, Outcome, Plan, Report};

/// The header that names the message to log and DSN readers.
pub const REF_HEADER: &str = "X-Mailtap-Ref";
/// The header by which an application asks for less.
pub const TRACK_HEADER: &str = "X-Mailtap-Track";

/// What the site wants.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Domains of envelope senders whose mail is tracked; `*.` patterns; ASCII, lower case.
    pub sender_domains: Vec<String>,
    /// Whether mail to several recipients gets tokens without recipient; otherwise its body is left alone.
    pub share: bool,
    /// Headers that may name the campaign.
    pub campaign_headers: Vec<String>,
    /// Campaigns by sender.
    pub campaign_rules: Vec<CampaignRule>,
    /// What is tracked of some senders' mail or some recipients', where it differs from `plan`.
    pub rules: Vec<Rule>,
    /// Where links may lead; the first takes the senders that no other names. Never empty.
    pub hosts: Vec<TrackingHost>,
    /// Longer tracking URLs are not written.
    pub max_url_bytes: usize,
    /// What may be rewritten, before this message's own circumstances.
    pub plan: Plan,
}

impl Policy {
    /// All mail of these domains, with links to one host, and the rest as it is by default.
    #[must_use]
    pub fn new(sender_domains: Vec<String>, host: TrackingHost) -> Self {
        Self {
            sender_domains,
            share: true,
            campaign_headers: Vec::new(),
            campaign_rules: Vec::new(),
            rules: Vec::new(),
            hosts: vec![host],
            max_url_bytes: 2_000,
            plan: Plan::default(),
        }
    }
}

/// Who sends to whom.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    /// The envelope sender, with or without angle brackets; empty for the null sender.
    pub sender: &'a str,
    /// The recipients.
    pub recipients: &'a [String],
}

/// What a decision draws on beside the message.
#[derive(Debug, Clone, Copy)]
pub struct Means<'a> {
    /// The site's policy.
    pub policy: &'a Policy,
    /// The keyring.
    pub ring: &'a Keyring,
    /// The pseudonym key.
    pub pseudonyms: &'a PseudonymKey,
    /// What recipients agreed to.
    pub consents: &'a dyn Consents,
    /// The time.
    pub now: Timestamp,
    /// Makes the message id unique.
    pub random: u32,
}

/// Why a message passes exactly as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// The null sender: a bounce.
    NullSender,
    /// The sender's domain is not one of the site's.
    OutOfScope,
    /// No recipient.
    NoRecipient,
    /// It carries our reference already: an earlier hop tracked it.
    AlreadyTracked,
    /// Nobody may be followed.
    NoConsent,
    /// No key is active.
    NoKey,
    /// The rewriter would not touch it.
    Rewriter(rewrite::Reason),
}

impl Pass {
    /// The word in logs, metrics and `--explain`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NullSender => "null_sender",
            Self::OutOfScope => "out_of_scope",
            Self::NoRecipient => "no_recipient",
            Self::AlreadyTracked => "already_tracked",
            Self::NoConsent => "no_consent",
            Self::NoKey => "no_key",
            Self::Rewriter(reason) => reason.as_str(),
        }
    }

    /// A sentence for people.
    #[must_use]
    pub const fn explain(self) -> &'static str {
        match self {
            Self::NullSender => "The envelope sender is empty: the message is a bounce or another answer.",
            Self::OutOfScope => "The envelope sender's domain is not in policy.sender_domains.",
            Self::NoRecipient => "The message has no recipient.",
            Self::AlreadyTracked => "The message carries a valid X-Mailtap-Ref: an earlier hop tracked it.",
            Self::NoConsent => {
                "The recipients did not consent to be followed, neither by links nor by pixel."
            }
            Self::NoKey => "No key of the keyring is active; `mailtap keys list` shows them.",
            Self::Rewriter(reason) => reason.explain(),
        }
    }
}

/// What becomes of a message.
#[derive(Debug)]
pub enum Decision {
    /// It passes exactly as it came.
    Pass(Pass, Option<Box<Report>>),
    /// It is tracked.
    Track(Box<Tracked>),
}

/// A message that is tracked, its body changed or not.
#[derive(Debug)]
pub struct Tracked {
    /// Its id.
    pub id: MessageId,
    /// Its reference header's value.
    pub reference: String,
    /// What to change in the header block.
    pub headers: HeaderEdits,
    /// What to change in the body, and why the rest stays.
    pub report: Report,
    /// Rules or consent had a say: other recipients may be allowed something else.
    pub ruled: bool,
    /// The facts for `message.accepted`.
    pub data: Data,
}

impl Tracked {
    /// Whether the body changes.
    #[must_use]
    pub const fn rewrites(&self) -> bool {
        matches!(self.report.outcome, Outcome::Rewritten)
    }

    /// The whole message as it goes out.
    #[must_use]
    pub fn apply(&self, message: &[u8]) -> Vec<u8> {
        let patches = &self.report.patches;
        let (mut output, body) = self.headers.apply_to_header(message, rewrite::growth(patches));
        rewrite::apply_onto(&mut output, message, body, patches);
        output
    }
}

/// Whether mail of this envelope sender is looked at at all; cheap, asked before the body arrives.
///
/// # Errors
/// The reason why not.
pub fn in_scope<'a>(policy: &Policy, sender: &'a str) -> Result<&'a str, Pass> {
    let sender = bare(sender);
    if sender.is_empty() {
        return Err(Pass::NullSender);
    }
    let domain = delivery::sender_domain(sender.as_bytes()).ok_or(Pass::OutOfScope)?;
    let listed = policy.sender_domains.iter().any(|pattern| campaign::matches_domain(pattern, &domain));
    if listed { Ok(sender) } else { Err(Pass::OutOfScope) }
}

fn bare(address: &str) -> &str {
    let address = address.trim();
    address.strip_prefix('<').and_then(|rest| rest.strip_suffix('>')).unwrap_or(address)
}

/// Decides.
#[must_use]
pub fn decide(message: &[u8], envelope: Envelope<'_>, means: &Means<'_>) -> Decision {
    decide_or_pass(message, envelope, means).unwrap_or_else(|pass| Decision::Pass(pass, None))
}

fn decide_or_pass(message: &[u8], envelope: Envelope<'_>, means: &Means<'_>) -> Result<Decision, Pass> {
    let policy = means.policy;
    let sender = in_scope(policy, envelope.sender)?;
    if envelope.recipients.is_empty() {
        return Err(Pass::NoRecipient);
    }
    let sender_domain = delivery::sender_domain(sender.as_bytes());
    let host =
        hosts::host_for(&policy.hosts, sender_domain.as_deref().unwrap_or_default()).ok_or(Pass::NoKey)?;
    let key = means.ring.signing_for(host.site.as_deref(), means.now).ok_or(Pass::NoKey)?;
    let (fields, _) = header::fields(message);
    if fields.iter().any(|field| field.is(REF_HEADER) && is_ours(field, means.ring)) {
        return Err(Pass::AlreadyTracked);
    }
    let recipients: Vec<Pseudonym> =
        envelope.recipients.iter().map(|address| means.pseudonyms.pseudonym(address)).collect();
    let agreed = |purpose| {
        recipients.iter().all(|recipient| means.consents.decide(Some(recipient), purpose) == Consent::Granted)
    };
    let (clicks, opens) = (agreed(Purpose::Clicks), agreed(Purpose::Opens));
    if !clicks && !opens {
        return Err(Pass::NoConsent);
    }
    let mut plan = policy.plan.clone();
    plan.https = host.url.starts_with("https://");
    let single = recipients.len() == 1;
    let general = rules::Allowed { clicks: plan.clicks, opens: plan.opens };
    let ruled = rules::allowed(&policy.rules, sender, envelope.recipients, general);
    (plan.clicks, plan.opens) = (ruled.clicks, ruled.opens);
    plan.clicks &= clicks && (single || policy.share);
    plan.opens &= opens && (single || policy.share);

    let id = MessageId::new(means.now, means.random);
    let campaign = campaign::campaign(&fields, &policy.campaign_headers, &policy.campaign_rules, sender);
    let recipient = recipients.first().copied().filter(|_| single);
    let context = Context { message: id, recipient, campaign: campaign.as_ref() };
    let mut minter = Minter {
        key,
        host,
        max_url_bytes: policy.max_url_bytes,
        context,
        clicks: ClickSigner::new(context, key),
    };
    let report = rewrite::rewrite(message, &plan, &mut minter);
    if let Outcome::LeftAlone(reason) = report.outcome {
        return Ok(Decision::Pass(Pass::Rewriter(reason), Some(Box::new(report))));
    }
    let reference = token::sign(&Token::Ref(Ref { message: id }), key);
    let data = Data {
        campaign: campaign.clone(),
        recipient,
        sender_domain,
        links: Some(report.tracked.into()),
        pixel: Some(report.has_pixel()),
        recipients: u32::try_from(recipients.len()).ok(),
        ..Data::default()
    };
    let headers = header_edits(&fields, &reference, campaign);
    let ruled = !policy.rules.is_empty() || !clicks || !opens;
    Ok(Decision::Track(Box::new(Tracked { id, reference, headers, report, ruled, data })))
}

fn is_ours(field: &Field<'_>, ring: &Keyring) -> bool {
    token::verify(&field.text(), ring).is_ok_and(|verified| matches!(verified.token, Token::Ref(_)))
}

/// Our headers: those that came in go, the reference and the campaign are added, so that Postfix logs them.
fn header_edits(fields: &[Field<'_>], reference: &str, campaign: Option<CampaignId>) -> HeaderEdits {
    let mut edits = HeaderEdits::default();
    edits.delete_where(fields, |field| {
        field.is(REF_HEADER) || field.is(CAMPAIGN_HEADER) || field.is(TRACK_HEADER)
    });
    edits.add.push((REF_HEADER, reference.to_owned()));
    if let Some(campaign) = campaign {
        edits.add.push((CAMPAIGN_HEADER, campaign.to_string()));
    }
    edits
}

/// Makes the tracking URLs of one message.
struct Minter<'a> {
    key: &'a Key,
    host: &'a TrackingHost,
    max_url_bytes: usize,
    context: Context<'a>,
    clicks: ClickSigner<'a>,
}

/// The beginning of a tracking URL.
fn base(host: &TrackingHost, path: &str) -> String {
    let mut url = String::with_capacity(320);
    for piece in [&host.url, path, "/"] {
        url.push_str(piece);
    }
    url
}

impl Mint for Minter<'_> {
    fn link(&mut self, target: &str, number: u16) -> Option<String> {
        let mut url = base(self.host, &self.host.click);
        self.clicks.sign_onto(&mut url, number, target);
        (url.len() <= self.max_url_bytes).then_some(url)
    }

    fn pixel(&mut self) -> Option<String> {
        let Context { message, recipient, campaign } = self.context;
        let token = Token::Open(Open { message, recipient, campaign: campaign.cloned() });
        let mut url = base(self.host, &self.host.open);
        token::sign_onto(&mut url, &token, self.key);
        (url.len() <= self.max_url_bytes).then_some(url)
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
