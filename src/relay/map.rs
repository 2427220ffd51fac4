//! From events to GA4's: names, parameters, client, property.
//!
//! - Layer: decision
//! - Takes: an event, the names that the site gave to events and parameters.
//! - Gives: the GA4 event with its parameters, the client it belongs to, the property it goes to.
//! - On failure: `MappingError` for a name that GA4 would not take; mapping itself can't fail, and what GA4 would not
//!   take of an event is `validate`'s matter.
//! - See: `docs/ga4.md`; Google's reference of the Measurement Protocol (GA4, gtag).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Value, json};

use super::client::visitor;
pub use super::client::{client_id, of_recipient};
use super::params::Params;
use super::property::{Takes, property};
use super::validate::{NameFault, event_name_fault, is_measured_event, param_name_fault};
use crate::event::{Event, Kind, Machine};

/// A GA4 event before it is validated.
#[derive(Debug, Clone, PartialEq)]
pub struct Mapped<'a> {
    /// GA4's name.
    pub name: &'a str,
    /// Its parameters.
    pub params: Params<'a>,
    /// When it happened, in microseconds since 1970.
    pub timestamp_micros: u64,
    /// The client.
    pub client_id: String,
    /// Which of the properties it goes to.
    pub property: usize,
}

/// The parameters that an event can have, by the names that they have unless a site gives them others.
pub const PARAMS: [&str; 22] = [
    "event_id",
    "email_id",
    "campaign_id",
    "link_id",
    "link_domain",
    "link_path",
    "bounce_type",
    "bounce_code",
    "bounce_reason",
    "provider",
    "attempt",
    "delay_ms",
    "is_machine",
    "machine_rule",
    "network",
    "agent",
    "upgrade",
    "implied",
    "unique",
    "late",
    "session_id",
    "engagement_time_msec",
];

/// So many has an event, more or less.
const USUAL: usize = 12;

/// Parameters that are left out unless a site names them.
pub const OPTIONAL: [&str; 1] = ["bounce_reason"];

/// Parameters whose names have a meaning for GA4.
const FIXED: [&str; 2] = ["session_id", "engagement_time_msec"];

/// Why a name can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MappingError {
    /// GA4 reserves the name of an event, or does not take its form.
    #[error("`{name}` can't be the name of an event: {why}")]
    EventName {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: NameFault,
    },
    /// GA4 reserves the name of a parameter, or does not take its form.
    #[error("`{name}` can't be the name of a parameter: {why}")]
    ParamName {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: NameFault,
    },
    /// No parameter of ours.
    #[error("`{name}` is no parameter")]
    Unknown {
        /// The name.
        name: String,
    },
    /// A name that means something to GA4.
    #[error(
        "GA4 knows `{name}` by this name: it can be left out (\"\"), but not be another's name or have another"
    )]
    Fixed {
        /// The name.
        name: String,
    },
    /// Two parameters would have the same name.
    #[error("two parameters would be named `{name}`")]
    Twice {
        /// The name.
        name: String,
    },
}

/// How a site names its events and parameters in GA4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// By `Kind`, in the order of its declaration.
    names: [Cow<'static, str>; Kind::ALL.len()],
    engages: [bool; Kind::ALL.len()],
    off: [bool; Kind::ALL.len()],
    /// Parameters with another name than ours; `None`: left out.
    params: BTreeMap<String, Option<String>>,
}

impl Default for Mapping {
    fn default() -> Self {
        Self {
            names: Kind::ALL.map(|kind| Cow::Borrowed(name(kind))),
            engages: Kind::ALL.map(|kind| matches!(kind, Kind::Opened | Kind::Clicked)),
            off: Kind::ALL.map(|_| false),
            params: OPTIONAL.iter().map(|ours| ((*ours).to_owned(), None)).collect(),
        }
    }
}

static DEFAULTS: LazyLock<Mapping> = LazyLock::new(Mapping::default);

impl Mapping {
    /// Gives the events of a kind another name.
    ///
    /// # Errors
    /// `MappingError::EventName`.
    pub fn rename_event(&mut self, kind: Kind, name: &str) -> Result<(), MappingError> {
        if let Some(why) = event_name_fault(name) {
            return Err(MappingError::EventName { name: name.to_owned(), why });
        }
        if let Some(present) = self.names.get_mut(kind as usize) {
            *present = Cow::Owned(name.to_owned());
        }
        Ok(())
    }

    /// Switches events of a kind off: they are not sent.
    pub fn switch_off(&mut self, kind: Kind) {
        if let Some(off) = self.off.get_mut(kind as usize) {
            *off = true;
        }
    }

    /// Whether events of a kind are sent.
    #[must_use]
    pub fn is_sent(&self, kind: Kind) -> bool {
        self.off.get(kind as usize).is_some_and(|off| !off)
    }

    /// Whether events of a kind have `engagement_time_msec`, without which GA4 does not count the recipient as an active
    /// user, and may not show the event in Realtime. Opens and clicks have it only if nothing speaks for a machine, and no
    /// event has it whose recipient or visitor is not known.
    pub fn engage(&mut self, kind: Kind, engages: bool) {
        if let Some(present) = self.engages.get_mut(kind as usize) {
            *present = engages;
        }
    }

    /// Gives a parameter another name, or leaves it out.
    ///
    /// # Errors
    /// `MappingError`.
    pub fn rename_param(&mut self, ours: &str, name: Option<&str>) -> Result<(), MappingError> {
        if !PARAMS.contains(&ours) {
            return Err(MappingError::Unknown { name: ours.to_owned() });
        }
        if let Some(name) = name {
            if ours != name && [ours, name].iter().any(|name| FIXED.contains(name)) {
                let fixed = if FIXED.contains(&ours) { ours } else { name };
                return Err(MappingError::Fixed { name: fixed.to_owned() });
            }
            if let Some(why) = param_name_fault(name) {
                return Err(MappingError::ParamName { name: name.to_owned(), why });
            }
            if PARAMS.iter().any(|other| *other != ours && self.param(other) == Some(name)) {
                return Err(MappingError::Twice { name: name.to_owned() });
            }
        }
        if name == Some(ours) {
            self.params.remove(ours);
        } else {
            self.params.insert(ours.to_owned(), name.map(str::to_owned));
        }
        Ok(())
    }

    /// The GA4 name of a kind of event.
    #[must_use]
    pub fn name(&self, kind: Kind) -> &str {
        self.names.get(kind as usize).map_or(name(kind), |name| name)
    }

    /// Whether GA4's own measurement on the site sends events of the same name, so that reports would count both as one.
    #[must_use]
    pub fn is_measured_name(&self, kind: Kind) -> bool {
        is_measured_event(self.name(kind))
    }

    fn param<'a>(&'a self, ours: &'a str) -> Option<&'a str> {
        self.params.get(ours).map_or(Some(ours), Option::as_deref)
    }

    /// Maps an event; `takes` is what each property takes. `None`: no property
    /// takes it.
    #[must_use]
    pub fn map<'a>(&'a self, event: &Event, takes: &[Takes]) -> Option<Mapped<'a>> {
        let data = &event.data;
        let mut params = Params::with_capacity(USUAL);
        let mut put = |ours: &'static str, value: Option<Value>| {
            if let Some(value) = value
                && let Some(name) = self.param(ours)
            {
                params.insert(name, value);
            }
        };
        let text = |text: &Option<String>| text.clone().map(Value::from);
        put("event_id", Some(json!(event.id.to_string())));
        put("email_id", Some(json!(event.message)));
        put("campaign_id", data.campaign.as_ref().map(|campaign| json!(campaign)));
        put("link_id", data.link.map(|link| json!(link.to_string())));
        put("link_domain", text(&data.link_host));
        put("link_path", text(&data.link_path));
        put("bounce_type", data.class.map(|class| json!(class.as_str())));
        put("bounce_code", text(&data.dsn));
        put("bounce_reason", text(&data.reason));
        put("provider", text(&data.provider));
        put("attempt", data.attempt.map(Value::from));
        put("delay_ms", data.delay_ms.map(Value::from));
        put("is_machine", data.machine.map(|machine| json!(machine.as_str())));
        put("machine_rule", text(&data.machine_rule));
        let yes = |said: Option<bool>| said.filter(|said| *said).map(|_| json!("yes"));
        put("network", text(&data.network));
        put("agent", text(&data.agent));
        put("upgrade", yes(data.upgrade));
        put("implied", yes(data.implied));
        put("unique", data.unique.map(|unique| json!(if unique { "yes" } else { "no" })));
        put("late", yes(data.late));
        // A session is one of its own client; with another it would be a new one.
        put("session_id", visitor(event).and_then(|_| text(&data.ga_session_id)));
        put("engagement_time_msec", self.is_engaged(event).then(|| json!(1)));
        Some(Mapped {
            name: self.name(event.kind),
            params,
            timestamp_micros: event.time.as_micros(),
            client_id: client_id(event),
            property: property(event, takes)?,
        })
    }

    fn is_engaged(&self, event: &Event) -> bool {
        let person = match event.kind {
            Kind::Opened | Kind::Clicked => event.data.machine == Some(Machine::No),
            _ => true,
        };
        // Who that was must be known, too: each event of nobody has a client of its own, and would be one more active user.
        let known = event.data.recipient.is_some() || visitor(event).is_some();
        person && known && self.engages.get(event.kind as usize).is_some_and(|engages| *engages)
    }
}

/// The GA4 name that a kind of event has unless a site gives it another.
#[must_use]
pub const fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Accepted => "email_sent",
        Kind::Delivered => "email_delivered",
        Kind::Deferred => "email_deferred",
        Kind::Bounced => "email_bounced",
        Kind::Expired => "email_expired",
        Kind::Complained => "email_spam_report",
        Kind::Opened => "email_open",
        Kind::Clicked => "email_click",
    }
}

/// Maps an event by the names that we give: see [`Mapping::map`].
#[must_use]
pub fn map(event: &Event, takes: &[Takes]) -> Option<Mapped<'static>> {
    DEFAULTS.map(event, takes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::queue::testing::event;

    const ALL: &[Takes] = &[Takes { campaigns: Vec::new(), domains: Vec::new() }];

    #[test]
    fn names_are_by_kind_and_can_be_given() {
        let mut mapping = Mapping::default();
        for kind in Kind::ALL {
            assert_eq!(mapping.name(kind), name(kind));
        }
        mapping.rename_event(Kind::Opened, "newsletter_read").unwrap();
        assert_eq!(mapping.name(Kind::Opened), "newsletter_read");
        assert_eq!(mapping.name(Kind::Clicked), "email_click");
        for bad in ["", "1st", "ga_open", "session_start", "screen_view", "a b", "ä", &"n".repeat(41)] {
            assert!(mapping.rename_event(Kind::Opened, bad).is_err(), "{bad}");
        }
        mapping.rename_event(Kind::Opened, &"n".repeat(40)).unwrap();
    }

    #[test]
    fn parameters_are_renamed_left_out_and_never_two_of_a_name() {
        let mut mapping = Mapping::default();
        mapping.rename_param("campaign_id", Some("mail_campaign")).unwrap();
        mapping.rename_param("email_id", None).unwrap();
        let twice = MappingError::Twice { name: "campaign_id".into() };
        assert_eq!(Mapping::default().rename_param("email_id", Some("campaign_id")), Err(twice));
        mapping.rename_param("provider", Some("campaign_id")).unwrap();
        for (ours, bad) in [("nothing", "x"), ("session_id", "x"), ("late", "session_id"), ("late", "ga_x")] {
            assert!(mapping.rename_param(ours, Some(bad)).is_err(), "{ours} {bad}");
        }
        let mut event = event(1);
        event.data.reason = Some("the mailbox is full".into());
        event.data.reply = Some("552 full".into());
        assert!(!Mapping::default().map(&event, ALL).unwrap().params.contains_key("bounce_reason"));
        mapping.rename_param("bounce_reason", Some("bounce_reason")).unwrap();
        let mapped = mapping.map(&event, ALL).unwrap();
        assert_eq!(mapped.params["bounce_reason"], "the mailbox is full");
        assert!(!mapped.params.values().any(|value| value == "552 full"), "replies stay here");
        assert_eq!(mapped.params["mail_campaign"], json!(event.data.campaign));
        assert!(!mapped.params.contains_key("email_id") && !mapped.params.contains_key("campaign_id"));
    }

    #[test]
    fn engagement_is_of_people_and_a_setting_of_each_event() {
        let mut mapping = Mapping::default();
        let engaged = |mapping: &Mapping, kind, machine| {
            let mut event = event(1);
            (event.kind, event.data.machine) = (kind, machine);
            event.data.recipient = Some([7; 12].into());
            mapping.map(&event, ALL).unwrap().params.contains_key("engagement_time_msec")
        };
        for kind in Kind::ALL {
            let expected = matches!(kind, Kind::Opened | Kind::Clicked);
            assert_eq!(engaged(&mapping, kind, Some(Machine::No)), expected, "{kind}");
            assert!(!engaged(&mapping, kind, None), "{kind}: who it was is not known");
        }
        mapping.engage(Kind::Delivered, true);
        mapping.engage(Kind::Clicked, false);
        assert!(engaged(&mapping, Kind::Delivered, None));
        assert!(!engaged(&mapping, Kind::Clicked, Some(Machine::No)));
        mapping.engage(Kind::Clicked, true);
        assert!(!engaged(&mapping, Kind::Clicked, Some(Machine::Probable)), "never for a machine");
    }

    #[test]
    fn who_is_not_known_is_no_active_user() {
        let mut event = event(1);
        (event.kind, event.data.machine) = (Kind::Clicked, Some(Machine::No));
        event.data.ga_session_id = Some("1700000123".into());
        let has = |event: &Event, name| map(event, ALL).unwrap().params.contains_key(name);
        assert!(!has(&event, "engagement_time_msec") && !has(&event, "session_id"));
        event.data.ga_client_id = Some("1.2".into());
        assert!(has(&event, "engagement_time_msec") && has(&event, "session_id"));
        (event.data.ga_client_id, event.data.recipient) = (None, Some([7; 12].into()));
        assert!(has(&event, "engagement_time_msec"));
        let mut mapping = Mapping::default();
        mapping.engage(Kind::Delivered, true);
        (event.kind, event.data.recipient) = (Kind::Delivered, None);
        let mapped = mapping.map(&event, ALL).unwrap();
        assert!(!mapped.params.contains_key("engagement_time_msec"));
    }

    #[test]
    fn what_is_wrong_with_a_name_is_said() {
        let mut mapping = Mapping::default();
        for (name, why) in [
            (&"n".repeat(41)[..], "more than 40 characters"),
            ("ga_open", "begin with `ga_`"),
            ("_x", "begin with `_`"),
            ("1st", "begins with a letter"),
            ("session_start", "reserves this name"),
            ("screen_view", "apps only"),
        ] {
            let error = mapping.rename_event(Kind::Opened, name).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let error = mapping.rename_param("session_id", Some("session")).unwrap_err().to_string();
        assert!(error.contains("`session_id`") && error.contains("left out"), "{error}");
        mapping.rename_param("session_id", Some("session_id")).unwrap();
        assert!(PARAMS.len() <= 25, "GA4 takes no more of one event");
        mapping.switch_off(Kind::Opened);
        assert!(Kind::ALL.iter().all(|kind| mapping.is_sent(*kind) == (*kind != Kind::Opened)));
    }

    #[test]
    fn a_session_goes_only_with_its_own_client() {
        let mut event = event(1);
        event.data.ga_session_id = Some("1700000123".into());
        assert!(!map(&event, ALL).unwrap().params.contains_key("session_id"));
        event.data.ga_client_id = Some("1.2".into());
        assert_eq!(map(&event, ALL).unwrap().params["session_id"], json!("1700000123"));
    }

    #[test]
    fn every_parameter_is_in_the_list() {
        let mut event = event(1);
        let data = &mut event.data;
        (data.link, data.link_host, data.link_path) = (Some(1), Some("h".into()), Some("/".into()));
        (data.dsn, data.class) = (Some("5.1.1".into()), Some(crate::event::BounceClass::Hard));
        (data.provider, data.attempt, data.delay_ms) = (Some("gmail".into()), Some(1), Some(1));
        (data.machine, data.machine_rule, data.late) = (Some(Machine::No), Some("r".into()), Some(true));
        (data.network, data.agent) = (Some("other".into()), Some("firefox".into()));
        (data.upgrade, data.implied, data.unique) = (Some(true), Some(true), Some(false));
        (data.ga_client_id, data.ga_session_id) = (Some("1.2".into()), Some("3".into()));
        event.kind = Kind::Clicked;
        event.data.reason = Some("the mailbox is full".into());
        let mut mapping = Mapping::default();
        OPTIONAL.iter().for_each(|ours| mapping.rename_param(ours, Some(ours)).unwrap());
        let mapped = mapping.map(&event, ALL).unwrap();
        let mut names: Vec<&str> = mapped.params.names().collect();
        let mut listed = PARAMS.to_vec();
        names.sort_unstable();
        listed.sort_unstable();
        assert_eq!(names, listed);
    }
}
