//! One request, from its path to its answer and the event it makes.
//!
//! - Layer: decision
//! - Takes: the request, the keyring, the site, the rules, consents, the time.
//! - Gives: the answer, and the event or the reason why there is none.
//! - On failure: nothing can fail; without a good signature nothing redirects, and a pixel is a pixel whatever its token.
//! - See: `docs/tracker.md`.

use std::hash::RandomState;
use std::sync::Arc;
use std::time::Duration;

use super::answer::Answer;
use super::handoff::{self, Comer};
use super::held::FirstKey;
use super::ledger::{self, Track};
use super::machine::{self, Evidence};
use super::pages::{Pages, etag};
use super::request::Request;
use super::route::Route;
use super::rules::{Rules, Scope};
use super::settings::Site;
use super::target::Target;
use super::utm::{self, UtmParameter};
use super::well_known::{File, Files};
use super::{cookies, visitor, watch};
use crate::consent::{Consent, Consents, Purpose};
use crate::event::{Data, Event, EventId, Kind, Machine};
use crate::identity::{MessageId, Pseudonym, Timestamp};
use crate::keys::jwt;
use crate::keys::ring::Keyring;
use crate::keys::token::{self, Click, Open, Standing, Token, TokenError};

/// The longest name that the domain name system knows (RFC 1035); anything longer is no host to report.
const MAX_HOST_BYTES: usize = 253;

/// What all requests are decided by.
#[derive(Debug)]
pub struct World<'a> {
    /// The site.
    pub site: &'a Site,
    /// Its pages.
    pub pages: &'a Pages,
    /// Its files below `/.well-known/`.
    pub files: &'a Files,
    /// `site.utm`, checked.
    pub utm: &'a [UtmParameter],
    /// What tells machines from people.
    pub rules: &'a Rules,
    /// The keys as of now.
    pub keys: &'a Keyring,
    /// Who may be followed.
    pub consents: &'a dyn Consents,
    /// `source` of the events.
    pub source: &'a str,
    /// The time of this request.
    pub now: Timestamp,
    /// A number that no other request of this process has.
    pub sequence: u64,
    /// The hand-off's keys, where there are some.
    pub handoff: Option<&'a Keyring>,
    /// Hashes networks, by a key that nobody knows.
    pub hasher: &'a RandomState,
}

/// What became of a request.
#[derive(Debug)]
pub struct Outcome {
    /// The answer.
    pub answer: Answer,
    /// What to record.
    pub event: Option<Event>,
    /// What the event has to do with others; nothing if it says nothing personal.
    pub(super) track: Option<Track>,
    /// Headers of the answer beside its own: `set-cookie`.
    pub headers: Vec<(&'static str, String)>,
    /// Why a link or pixel was not taken for one.
    pub refused: Option<Refusal>,
    /// Why the event says nothing personal.
    pub anonymous: Option<Anonymous>,
}

/// A link or pixel that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// `click` or `open`.
    pub kind: &'static str,
    /// The word of `TokenError`, or `kind`, `revoked`, `target`.
    pub reason: &'static str,
}

/// The reason of what is signed by a key that is not in the keyring.
const UNKNOWN_KEY: &str = TokenError::UnknownKey(0).as_str();

/// Why an event says nothing personal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anonymous {
    /// `Sec-GPC: 1`.
    Gpc,
    /// The recipient did not consent, or withdrew.
    Consent,
}

impl Anonymous {
    /// The word in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gpc => "gpc",
            Self::Consent => "consent",
        }
    }
}

/// Decides on one request.
#[must_use]
pub fn decide(request: &Request<'_>, world: &World<'_>) -> Outcome {
    match Route::of(request.method, request.path, world.site) {
        Route::Click(text) => click(request, &text, world),
        Route::Open(text) => open(request, &text, world),
        Route::Home => Outcome::plain(Answer::Home(world.pages.home(language(request)))),
        Route::WellKnown(name) => Outcome::plain(match world.files.find(name) {
            Some(file) => Answer::WellKnown(file),
            None => not_found(request, world),
        }),
        Route::Robots => Outcome::plain(Answer::Robots),
        Route::JwkSet => Outcome::plain(jwk_set(request, world)),
        Route::Unknown => Outcome::plain(not_found(request, world)),
        Route::WrongMethod => Outcome::plain(Answer::WrongMethod),
    }
}

fn language<'a>(request: &Request<'a>) -> Option<&'a [u8]> {
    request.header("accept-language")
}

fn not_found(request: &Request<'_>, world: &World<'_>) -> Answer {
    Answer::NotFound(world.pages.not_found(language(request)))
}

impl Outcome {
    pub(super) const fn plain(answer: Answer) -> Self {
        Self { answer, event: None, track: None, headers: Vec::new(), refused: None, anonymous: None }
    }

    fn refused(answer: Answer, kind: &'static str, reason: &'static str) -> Self {
        Self { refused: Some(Refusal { kind, reason }), ..Self::plain(answer) }
    }

    /// Whether the key that signed it is not in the keyring.
    pub(super) fn is_of_unknown_key(&self) -> bool {
        self.refused.is_some_and(|refusal| refusal.reason == UNKNOWN_KEY)
    }
}

/// The public keys of hand-offs, for websites.
fn jwk_set(request: &Request<'_>, world: &World<'_>) -> Answer {
    let Some(keys) = world.handoff.filter(|_| world.site.handoff.is_some()) else {
        return match world.files.find("jwks.json") {
            Some(file) => Answer::WellKnown(file),
            None => not_found(request, world),
        };
    };
    let bytes = jwt::jwk_set(keys, world.now).into_bytes();
    let file = File { etag: etag(&bytes), content_type: "application/jwk-set+json", bytes: bytes.into() };
    Answer::WellKnown(Arc::new(file))
}

fn click(request: &Request<'_>, text: &str, world: &World<'_>) -> Outcome {
    let refuse = |reason| Outcome::refused(not_found(request, world), "click", reason);
    let verified = match token::verify_at(text, world.keys, world.site.key_site.as_deref()) {
        Ok(verified) => verified,
        Err(error @ TokenError::UnknownKey(_)) => {
            let page = world.pages.forgotten(language(request));
            return Outcome::refused(Answer::NotFound(page), "click", error.as_str());
        }
        Err(error) => return refuse(error.as_str()),
    };
    let Token::Click(click) = verified.token else { return refuse("kind") };
    let Ok(target) = Target::parse(&click.target) else { return refuse("target") };
    if verified.standing == Standing::Revoked {
        // Anybody may have made it: nothing is recorded, and a person decides.
        let page = world.pages.ask(language(request), target.location(), target.host());
        return Outcome::refused(Answer::Ask(page), "click", "revoked");
    }
    let hit = Hit {
        kind: Kind::Clicked,
        what: "click",
        scope: Scope::Click,
        purpose: Purpose::Clicks,
        text,
        message: click.message,
        recipient: click.recipient,
        link: Some(click.link),
    };
    let Click { link, campaign, recipient: own, .. } = click;
    let Seen { mut event, anonymous, mut track } = hit.seen(request, world);
    event.data.link = Some(link);
    let target = if is_tagged(target.host(), &world.site.utm_hosts) {
        utm::tag(target, world.utm, campaign.as_ref(), link)
    } else {
        target
    };
    // Nothing personal for who wants that, and nothing without consent.
    let known = event.data.recipient.filter(|recipient| may_be_known(recipient, world));
    let target = match (known, &world.site.handoff, world.handoff) {
        (Some(recipient), Some(terms), Some(keys)) => {
            let jti = EventId::of("hand-off").part(world.source).part(world.sequence.to_be_bytes()).finish();
            let jti = jti.to_string();
            let comer = Comer { recipient, campaign: campaign.as_ref(), link, jti: &jti };
            handoff::hand_off(target, terms, keys, comer, world.now)
        }
        _ => target,
    };
    let cookie = match (known.filter(|known| own == Some(*known)), &world.site.cookie) {
        (Some(recipient), Some(terms)) => {
            visitor::set_cookie(recipient, terms, world.site, world.keys, world.now)
        }
        _ => None,
    };
    let cookie = cookie.or_else(|| forgotten(request, anonymous.is_some(), world));
    let (location, host, path) = target.into_parts();
    event.data.link_host = Some(host).filter(|host| host.len() <= MAX_HOST_BYTES);
    // A path may be made for one person.
    event.data.link_path = path.filter(|_| anonymous.is_none());
    event.data.campaign = campaign;
    if let Some(track) = &mut track {
        track.implied = implied(&event, world);
    }
    let answer = Answer::Redirect(location);
    let headers = cookie.into_iter().map(|cookie| ("set-cookie", cookie)).collect();
    Outcome { answer, event: Some(event), track, headers, refused: None, anonymous }
}

/// The header by which a browser forgets who it is, where that is no longer wanted.
fn forgotten(request: &Request<'_>, anonymous: bool, world: &World<'_>) -> Option<String> {
    let (terms, site) = (world.site.cookie.as_ref()?, world.site.key_site.as_deref());
    let cookies = || request.all("cookie");
    let withdrew = || {
        let who = visitor::recipient(cookies(), terms, site, world.keys, world.now);
        who.is_some_and(|who| !may_be_known(&who, world))
    };
    (visitor::has_cookie(cookies(), terms) && (anonymous || withdrew()))
        .then(|| visitor::forget(terms, world.site))
}

/// The open that a click implies, where the site wants it and the recipient agreed to opens, too.
fn implied(click: &Event, world: &World<'_>) -> Option<Box<(Event, FirstKey)>> {
    let recipient = click.data.recipient.filter(|_| world.site.click_implies_open)?;
    if world.consents.decide(Some(&recipient), Purpose::Opens) == Consent::Denied {
        return None;
    }
    let mut event = Event { id: ledger::implied_id(&click.id), kind: Kind::Opened, ..click.clone() };
    event.data.implied = Some(true);
    (event.data.link, event.data.link_host, event.data.link_path) = (None, None, None);
    Some(Box::new((event, ledger::first_key(Kind::Opened, &click.message, &recipient, None))))
}

/// Whether a cookie or a hand-off may say who a recipient is.
fn may_be_known(recipient: &Pseudonym, world: &World<'_>) -> bool {
    world.consents.decide(Some(recipient), Purpose::Identity) == Consent::Granted
}

fn open(request: &Request<'_>, text: &str, world: &World<'_>) -> Outcome {
    let refuse = |reason| Outcome::refused(Answer::Pixel, "open", reason);
    let verified = match token::verify_at(text, world.keys, world.site.key_site.as_deref()) {
        Ok(verified) => verified,
        Err(error) => return refuse(error.as_str()),
    };
    let Token::Open(Open { message, recipient, campaign }) = verified.token else { return refuse("kind") };
    if verified.standing == Standing::Revoked {
        return refuse("revoked");
    }
    let (kind, scope, purpose) = (Kind::Opened, Scope::Open, Purpose::Opens);
    let hit = Hit { kind, what: "open", scope, purpose, text, message, recipient, link: None };
    let Seen { mut event, anonymous, track } = hit.seen(request, world);
    event.data.campaign = campaign;
    let (answer, event) = (Answer::Pixel, Some(event));
    Outcome { answer, event, track, headers: Vec::new(), refused: None, anonymous }
}

/// Whether a host, or a domain above it, is in the list; an empty list means all.
fn is_tagged(host: &str, hosts: &[String]) -> bool {
    let is_below = |domain: &String| {
        host.strip_suffix(domain.as_str()).is_some_and(|front| front.is_empty() || front.ends_with('.'))
    };
    hosts.is_empty() || hosts.iter().any(is_below)
}

/// What clicks and opens have in common.
struct Hit<'a> {
    kind: Kind,
    what: &'static str,
    scope: Scope,
    purpose: Purpose,
    text: &'a str,
    message: MessageId,
    recipient: Option<Pseudonym>,
    link: Option<u16>,
}

/// What became of one.
struct Seen {
    event: Event,
    anonymous: Option<Anonymous>,
    track: Option<Track>,
}

impl Hit<'_> {
    fn seen(self, request: &Request<'_>, world: &World<'_>) -> Seen {
        let evidence = Evidence::new(*request, self.scope, Some(&self.message), world.now, world.rules);
        let verdict = machine::judge(&evidence, world.rules);
        let data = Data {
            sender_domain: world.site.sender_domain.clone(),
            machine: Some(verdict.machine),
            machine_rule: verdict.rule.map(str::to_owned),
            network: Some(world.rules.network_of(request.client).to_owned()),
            agent: Some(evidence.agent(world.rules).to_owned()),
            late: Some(world.now.since(self.message.time()) > world.site.late_after),
            ..Data::default()
        };
        let wants_privacy = request.wants_privacy();
        let who = if wants_privacy { None } else { self.recipient.or_else(|| self.owner(request, world)) };
        let anonymous = if wants_privacy {
            Some(Anonymous::Gpc)
        } else if world.consents.decide(who.as_ref(), self.purpose) == Consent::Denied {
            // Also of who may not be named by a cookie: to refuse, it is enough to be known.
            Some(Anonymous::Consent)
        } else {
            None
        };
        let recipient = who.filter(|who| self.recipient.is_some() || may_be_known(who, world));
        let mut event = Event {
            id: self.id(anonymous.is_some(), world),
            source: world.source.to_owned(),
            kind: self.kind,
            time: world.now,
            message: if anonymous.is_some() { nobodys(self.message) } else { self.message },
            data,
        };
        if anonymous.is_some() {
            return Seen { event, anonymous, track: None };
        }
        let visitor = cookies::visitor(request.all("cookie"), &world.site.ga_streams);
        event.data.recipient = recipient;
        event.data.ga_client_id = visitor.client_id;
        event.data.ga_session_id = visitor.session_id;
        let who = (event.id, self.message, self.recipient);
        let hit = watched_hit(&evidence, world.rules, world.hasher, who, verdict.machine);
        let key = |recipient: &Pseudonym| ledger::first_key(self.kind, &self.message, recipient, self.link);
        let first = recipient.as_ref().map(key);
        let track = Track { hit: watch::Hit { link: self.link, ..hit }, first, implied: None };
        Seen { event, anonymous, track: Some(track) }
    }

    /// Whose browser it is, where the token is everybody's.
    fn owner(&self, request: &Request<'_>, world: &World<'_>) -> Option<Pseudonym> {
        let terms = world.site.cookie.as_ref()?;
        let site = world.site.key_site.as_deref();
        visitor::recipient(request.all("cookie"), terms, site, world.keys, world.now)
    }

    /// The id of an event that says nothing personal is not made of the token: whoever has the mail could find it.
    fn id(&self, anonymous: bool, world: &World<'_>) -> EventId {
        let id = EventId::of(self.what).part(world.source);
        let id = if anonymous { id.part("anonymous") } else { id.part(self.text) };
        id.part(world.now.as_micros().to_be_bytes()).part(world.sequence.to_be_bytes()).finish()
    }
}

/// What `watch` is told of a click or an open that was judged by itself; the link is left to the caller.
#[must_use]
pub fn watched_hit(
    evidence: &Evidence<'_>,
    rules: &Rules,
    hasher: &RandomState,
    (id, message, recipient): (EventId, MessageId, Option<Pseudonym>),
    machine: Machine,
) -> watch::Hit {
    let client = evidence.client();
    watch::Hit {
        id,
        time: evidence.time(),
        scope: evidence.scope(),
        message,
        recipient,
        link: None,
        network: watch::network_key(client, hasher),
        client: watch::client_key(client, evidence.user_agent(), hasher),
        agent: watch::agent_key(evidence.user_agent(), hasher),
        is_client_named: evidence.is_client_named(),
        is_head: evidence.is_head(),
        machine,
        waiting: machine::waiting(evidence, rules),
    }
}

/// The day of a message instead of its id, by which its other events, and so its recipient, could be found.
fn nobodys(message: MessageId) -> MessageId {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let days = message.time().as_secs() / DAY.as_secs();
    MessageId::new(Timestamp::from_secs(days * DAY.as_secs()), 0)
}

#[cfg(test)]
#[path = "hit_tests.rs"]
mod tests;
