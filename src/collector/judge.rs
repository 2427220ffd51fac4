//! What GA4 would do with a request: written from Google's pages, and from nothing of the relay.
//!
//! - Layer: decision
//! - Takes: the body of a request, the time, how strict to be.
//! - Gives: for each event what becomes of it and why; for the debug endpoint Google's messages.
//! - On failure: what is no request is one message.
//! - See: Google's "Reference", "Validate events" and "Limitations" of the Measurement Protocol (GA4, gtag).

use serde_json::{Map, Value, json};

/// How strict the debug endpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Behaviour {
    /// What production does: too much is ignored.
    #[default]
    Relaxed,
    /// What Google recommends to test with: too much is an error.
    Enforce,
}

/// What becomes of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Its name; empty where it has none.
    pub event: String,
    /// `processed`, `modified` or `dropped`.
    pub outcome: &'static str,
    /// What was ignored or wrong.
    pub why: Vec<String>,
}

/// A message of the debug endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where in the request.
    pub field: String,
    /// For people.
    pub text: String,
    /// One of Google's codes.
    pub code: &'static str,
}

impl Message {
    fn new(field: impl Into<String>, text: impl Into<String>, code: &'static str) -> Self {
        Self { field: field.into(), text: text.into(), code }
    }

    /// As Google writes it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut object = json!({ "description": self.text, "validationCode": self.code });
        if !self.field.is_empty() {
            object["fieldPath"] = json!(self.field);
        }
        object
    }
}

/// A request judged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Judgement {
    /// One for each event; one without a name where the whole request is dropped.
    pub verdicts: Vec<Verdict>,
    /// What the debug endpoint says.
    pub messages: Vec<Message>,
}

const REQUEST_KEYS: &[&str] = &[
    "client_id",
    "user_id",
    "timestamp_micros",
    "user_properties",
    "user_data",
    "consent",
    "non_personalized_ads",
    "user_location",
    "ip_override",
    "device",
    "user_agent",
    "validation_behavior",
    "events",
    "app_instance_id",
];
const EVENT_KEYS: &[&str] = &["name", "params", "timestamp_micros"];
const RESERVED: &[&str] = &[
    "ad_activeview",
    "ad_click",
    "ad_exposure",
    "ad_query",
    "ad_reward",
    "adunit_exposure",
    "app_clear_data",
    "app_exception",
    "app_install",
    "app_remove",
    "app_store_refund",
    "app_update",
    "app_upgrade",
    "dynamic_link_app_open",
    "dynamic_link_app_update",
    "dynamic_link_first_open",
    "error",
    "firebase_campaign",
    "firebase_in_app_message_action",
    "firebase_in_app_message_dismiss",
    "firebase_in_app_message_impression",
    "first_open",
    "first_visit",
    "notification_dismiss",
    "notification_foreground",
    "notification_open",
    "notification_receive",
    "notification_send",
    "os_update",
    "session_start",
    "user_engagement",
];
const PREFIXES: &[&str] = &["_", "firebase_", "ga_", "google_", "gtag."];
const HOURS_72_MICROS: u64 = 72 * 3_600 * 1_000_000;

/// Judges a request. `behaviour` is what the request does not say itself.
#[must_use]
pub fn judge(body: &[u8], now_micros: u64, behaviour: Behaviour) -> Judgement {
    let whole = |field: &str, text: &str, code| Judgement {
        verdicts: vec![Verdict { event: String::new(), outcome: "dropped", why: vec![text.to_owned()] }],
        messages: vec![Message::new(field, text, code)],
    };
    if body.len() >= 130_000 {
        return whole("", "The body has 130 kB or more.", "EXCEEDED_MAX_ENTITIES");
    }
    let Ok(Value::Object(request)) = serde_json::from_slice::<Value>(body) else {
        return whole("", "Unable to parse Measurement Protocol JSON payload.", "VALUE_INVALID");
    };
    let request = snake_case(request);
    if let Some(key) = request.keys().find(|key| !REQUEST_KEYS.contains(&key.as_str())) {
        let text = format!("Unable to parse Measurement Protocol JSON payload. {key}: Cannot find field.");
        return whole("", &text, "VALUE_INVALID");
    }
    let Some(events) = request.get("events").and_then(Value::as_array) else {
        return whole("events", "Measurement requires events.", "VALUE_REQUIRED");
    };
    if events.len() > 25 {
        return whole("events", "Measurement has more than 25 events.", "EXCEEDED_MAX_ENTITIES");
    }
    let strict = match request.get("validation_behavior").and_then(Value::as_str) {
        Some("ENFORCE_RECOMMENDATIONS") => true,
        Some(_) => false,
        None => behaviour == Behaviour::Enforce,
    };
    let mut judge = Judge { now_micros, strict, messages: Vec::new() };
    let client_problem = judge.client(&request);
    judge.consent(&request);
    let verdicts = events
        .iter()
        .enumerate()
        .map(|(index, event)| {
            let mut verdict = judge.event(index, event);
            if let Some(problem) = &client_problem {
                verdict.outcome = "dropped";
                verdict.why.push(problem.clone());
            }
            verdict
        })
        .collect();
    Judgement { verdicts, messages: judge.messages }
}

/// protobuf's JSON takes lowerCamelCase for snake_case.
fn snake_case(object: Map<String, Value>) -> Map<String, Value> {
    let convert = |key: String| {
        let mut snake = String::with_capacity(key.len() + 2);
        for character in key.chars() {
            if character.is_ascii_uppercase() {
                snake.push('_');
            }
            snake.push(character.to_ascii_lowercase());
        }
        snake
    };
    object.into_iter().map(|(key, value)| (convert(key), value)).collect()
}

struct Judge {
    now_micros: u64,
    strict: bool,
    messages: Vec<Message>,
}

impl Judge {
    fn say(&mut self, field: impl Into<String>, text: impl Into<String>, code: &'static str) {
        self.messages.push(Message::new(field, text, code));
    }

    /// Why no event of this request can count.
    fn client(&mut self, request: &Map<String, Value>) -> Option<String> {
        let client = request.get("client_id").and_then(Value::as_str).unwrap_or_default();
        if client.is_empty() {
            self.say("client_id", "Measurement requires a client_id.", "VALUE_REQUIRED");
            return Some("no client_id".into());
        }
        let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let pair = client.split_once('.').is_some_and(|(a, b)| number(a) && number(b));
        let cookie = client.strip_prefix("GA1.").is_some_and(|rest| rest.split('.').count() == 3);
        if !pair && !cookie && self.strict {
            let text =
                format!("client_id [{client}] has invalid format. It should be in <number>.<number> format.");
            self.say("client_id", text, "VALUE_INVALID");
        }
        None
    }

    fn consent(&mut self, request: &Map<String, Value>) {
        let Some(consent) = request.get("consent").and_then(Value::as_object) else { return };
        for (key, value) in consent {
            let known = matches!(key.as_str(), "ad_user_data" | "ad_personalization");
            if !known || !matches!(value.as_str(), Some("GRANTED" | "DENIED")) {
                self.say("consent", format!("consent.{key} is not valid."), "VALUE_INVALID");
            }
        }
    }

    fn event(&mut self, index: usize, event: &Value) -> Verdict {
        let mut verdict = Verdict { event: String::new(), outcome: "processed", why: Vec::new() };
        let Some(object) = event.as_object() else {
            self.say("events", format!("Event at index: [{index}] is no object."), "VALUE_INVALID");
            return Verdict { outcome: "dropped", why: vec!["no object".into()], ..verdict };
        };
        if let Some(key) = object.keys().find(|key| !EVENT_KEYS.contains(&key.as_str())) {
            let text = format!(
                "Unable to parse Measurement Protocol JSON payload. (events[{index}]) {key}: Cannot find field."
            );
            self.say("", text.clone(), "VALUE_INVALID");
            return Verdict { outcome: "dropped", why: vec![text], ..verdict };
        }
        verdict.event = object.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        if let Some((text, code)) = name_problem(index, &verdict.event) {
            self.say("events", text.clone(), code);
            return Verdict { outcome: "dropped", why: vec![text], ..verdict };
        }
        self.time(index, object, &mut verdict);
        match object.get("params") {
            None => {}
            Some(Value::Object(params)) => self.params(index, params, &mut verdict),
            Some(_) => {
                verdict.outcome = "dropped";
                verdict.why.push("params is no object".into());
                self.say(format!("events[{index}].params"), "params is no object.", "VALUE_INVALID");
            }
        }
        verdict
    }

    fn time(&mut self, index: usize, event: &Map<String, Value>, verdict: &mut Verdict) {
        let in_params = event.get("params").and_then(|params| params.get("timestamp_micros"));
        let Some(time) = event.get("timestamp_micros").or(in_params) else { return };
        let micros = time.as_u64().or_else(|| time.as_str().and_then(|text| text.parse().ok()));
        let problem = match micros {
            None => "timestamp_micros is no number",
            Some(micros) if micros > self.now_micros => "timestamp too far in the future",
            Some(micros) if self.now_micros - micros > HOURS_72_MICROS => "timestamp too far in the past",
            Some(_) => return,
        };
        verdict.outcome = "modified";
        verdict.why.push(problem.to_owned());
        if self.strict {
            let field = format!("events[{index}].timestamp_micros");
            self.say(field, format!("Measurement timestamp_micros has {problem}."), "VALUE_INVALID");
        }
    }

    fn params(&mut self, index: usize, params: &Map<String, Value>, verdict: &mut Verdict) {
        let mut ignored = |judge: &mut Self, key: &str, problem: &str, code| {
            verdict.outcome = "modified";
            verdict.why.push(format!("{key}: {problem}"));
            if judge.strict {
                let field = format!("events[{index}].params.{key}");
                judge.say(field, format!("Event at index: [{index}] has param [{key}]: {problem}."), code);
            }
        };
        if params.len() > 25 {
            ignored(self, "params", "more than 25", "EXCEEDED_MAX_ENTITIES");
        }
        for (key, value) in params {
            if !is_name(key)
                || PREFIXES.iter().any(|prefix| key.starts_with(prefix))
                || key == "firebase_conversion"
            {
                ignored(self, key, "invalid name", "NAME_INVALID");
            }
            let limit = match key.as_str() {
                "page_title" => 300,
                "page_referrer" => 420,
                "page_location" => 1_000,
                _ => 100,
            };
            match value {
                Value::String(text) if text.chars().count() > limit => {
                    ignored(self, key, "value too long", "VALUE_OUT_OF_BOUNDS");
                }
                Value::Null => ignored(self, key, "null", "VALUE_INVALID"),
                Value::Object(_) => ignored(self, key, "an object", "VALUE_INVALID"),
                Value::Array(_) if key != "items" => ignored(self, key, "a list", "VALUE_INVALID"),
                _ => {}
            }
            let digits = value
                .as_str()
                .is_some_and(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
            if key == "session_id" && !value.is_u64() && !digits {
                ignored(self, key, "no number", "VALUE_INVALID");
            }
            if key == "engagement_time_msec" && !value.is_u64() {
                ignored(self, key, "no number", "VALUE_INVALID");
            }
        }
    }
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.len() <= 40
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn name_problem(index: usize, name: &str) -> Option<(String, &'static str)> {
    let at = format!("Event at index: [{index}] has");
    if name.is_empty() {
        return Some((format!("{at} no name."), "VALUE_REQUIRED"));
    }
    if RESERVED.contains(&name) {
        return Some((format!("{at} name [{name}] which is reserved."), "NAME_RESERVED"));
    }
    if PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || !name.starts_with(|c: char| c.is_ascii_alphabetic())
    {
        return Some((
            format!("{at} invalid name [{name}]. Names must start with an alphabetic character."),
            "NAME_INVALID",
        ));
    }
    if name.len() > 40 {
        return Some((format!("{at} name [{name}] of more than 40 characters."), "NAME_INVALID"));
    }
    let text =
        format!("{at} invalid name [{name}]. Only alphanumeric characters and underscores are allowed.");
    (!is_name(name)).then_some((text, "NAME_INVALID"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NOW: u64 = 1_795_000_000_000_000;

    fn one(event: Value, behaviour: Behaviour) -> Judgement {
        let body = json!({ "client_id": "1.2", "events": [event] });
        judge(body.to_string().as_bytes(), NOW, behaviour)
    }

    fn code(event: Value) -> Option<&'static str> {
        one(event, Behaviour::Enforce).messages.first().map(|message| message.code)
    }

    #[test]
    fn googles_own_examples() {
        let good = json!({ "name": "tutorial_begin", "params": { "session_id": "123", "engagement_time_msec": 100 } });
        let judged = one(good, Behaviour::Enforce);
        assert_eq!((judged.messages, judged.verdicts[0].outcome), (vec![], "processed"));
        let bad = one(json!({ "name": "_badEventName" }), Behaviour::Relaxed);
        assert_eq!((bad.messages[0].code, bad.messages[0].field.as_str()), ("NAME_INVALID", "events"));
        assert_eq!(
            bad.messages[0].text,
            "Event at index: [0] has invalid name [_badEventName]. Names must start with an alphabetic character."
        );
        assert_eq!(code(json!({ "name": "campaign@details" })), Some("NAME_INVALID"));
        assert_eq!(code(json!({ "name": "session_start" })), Some("NAME_RESERVED"));
        let unknown = one(json!({ "names": "x" }), Behaviour::Relaxed);
        assert!(unknown.messages[0].text.contains("(events[0]) names: Cannot find field."));
    }

    #[test]
    fn limits_have_two_sides() {
        let with = |key: &str, value: Value| code(json!({ "name": "e", "params": { key: value } }));
        assert_eq!(with("p", json!("x".repeat(100))), None);
        assert_eq!(with("p", json!("x".repeat(101))), Some("VALUE_OUT_OF_BOUNDS"));
        assert_eq!(with("page_location", json!("x".repeat(1_000))), None);
        assert_eq!(with("page_location", json!("x".repeat(1_001))), Some("VALUE_OUT_OF_BOUNDS"));
        assert_eq!(with(&"n".repeat(40), json!(1)), None);
        assert_eq!(with(&"n".repeat(41), json!(1)), Some("NAME_INVALID"));
        let many = |count: usize| {
            let params: Map<String, Value> = (0..count).map(|n| (format!("p{n}"), json!(n))).collect();
            code(json!({ "name": "e", "params": params }))
        };
        assert_eq!((many(25), many(26)), (None, Some("EXCEEDED_MAX_ENTITIES")));
        let at = |micros: u64| code(json!({ "name": "e", "timestamp_micros": micros }));
        assert_eq!((at(NOW), at(NOW + 1)), (None, Some("VALUE_INVALID")));
        assert_eq!((at(NOW - HOURS_72_MICROS), at(NOW - HOURS_72_MICROS - 1)), (None, Some("VALUE_INVALID")));
    }

    #[test]
    fn relaxed_changes_what_enforced_refuses() {
        let event = json!({ "name": "e", "timestamp_micros": NOW - HOURS_72_MICROS - 1, "params": { "p": "x".repeat(101) } });
        let judged = one(event, Behaviour::Relaxed);
        assert_eq!(judged.messages, []);
        assert_eq!((judged.verdicts[0].outcome, judged.verdicts[0].why.len()), ("modified", 2));
    }

    #[test]
    fn whole_requests_fail() {
        let body =
            |body: Value| judge(body.to_string().as_bytes(), NOW, Behaviour::Relaxed).verdicts[0].outcome;
        let event = json!({ "name": "e" });
        assert_eq!(body(json!({ "clientId": "1.2", "events": [event] })), "processed", "camelCase is taken");
        assert_eq!(body(json!({ "events": [event] })), "dropped");
        assert_eq!(body(json!({ "client_id": "1.2" })), "dropped");
        assert_eq!(body(json!({ "client_id": "1.2", "events": [event], "unknown": 1 })), "dropped");
        assert_eq!(body(json!({ "client_id": "1.2", "events": vec![event.clone(); 25] })), "processed");
        assert_eq!(body(json!({ "client_id": "1.2", "events": vec![event; 26] })), "dropped");
        assert_eq!(judge(b"{", NOW, Behaviour::Relaxed).messages[0].code, "VALUE_INVALID");
        assert_eq!(
            judge(&[b' '; 130_000], NOW, Behaviour::Relaxed).messages[0].code,
            "EXCEEDED_MAX_ENTITIES"
        );
    }
}
