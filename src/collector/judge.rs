//! What GA4 would do with a request: written from Google's pages, and from nothing of the relay.
//!
//! - Layer: decision
//! - Takes: the body of a request, the time, how strict to be.
//! - Gives: for each event what becomes of it and why; for the debug endpoint Google's messages.
//! - On failure: what is no request is one message.
//! - See: Google's "Reference", "Validate events" and "Limitations" of the Measurement Protocol (GA4, gtag).

use serde_json::{Map, Value, json};

use super::rules;
use super::shape;

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
    /// What was ignored or wrong; also what GA4 takes and its policy or common sense does not.
    pub why: Vec<String>,
}

impl Verdict {
    fn worsen(&mut self, outcome: &'static str, why: String) {
        if self.outcome != DROPPED {
            self.outcome = outcome;
        }
        self.why.push(why);
    }
}

const PROCESSED: &str = "processed";
const MODIFIED: &str = "modified";
const DROPPED: &str = "dropped";

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

impl Judgement {
    /// The whole request is dropped.
    pub(super) fn whole(field: &str, text: &str, code: &'static str) -> Self {
        Self {
            verdicts: vec![Verdict { event: String::new(), outcome: DROPPED, why: vec![text.to_owned()] }],
            messages: vec![Message::new(field, text, code)],
        }
    }
}

/// Judges a request. `behaviour` is what the request does not say itself.
#[must_use]
pub fn judge(body: &[u8], now_micros: u64, behaviour: Behaviour) -> Judgement {
    if body.len() >= rules::MAX_BODY_BYTES {
        return Judgement::whole("", "The body has 130 kB or more.", "EXCEEDED_MAX_ENTITIES");
    }
    let request = match shape::read(body) {
        Ok(request) => request,
        Err(problem) => return Judgement::whole("", &problem, "VALUE_INVALID"),
    };
    let events = request.get("events").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if events.is_empty() {
        return Judgement::whole("events", "Measurement requires events.", "VALUE_REQUIRED");
    }
    if events.len() > rules::MAX_EVENTS {
        return Judgement::whole("events", "Measurement has more than 25 events.", "EXCEEDED_MAX_ENTITIES");
    }
    let strict = match request.get("validation_behavior").and_then(Value::as_str) {
        Some("ENFORCE_RECOMMENDATIONS") => true,
        Some(_) => false,
        None => behaviour == Behaviour::Enforce,
    };
    let mut judge = Judge { now_micros, strict, messages: Vec::new() };
    let mut common = Verdict { event: String::new(), outcome: PROCESSED, why: Vec::new() };
    judge.client(&request, &mut common);
    judge.user(&request, &mut common);
    judge.consent(&request, &mut common);
    let verdicts = events.iter().enumerate().map(|(index, event)| {
        let mut verdict = judge.event(index, event, request.get("timestamp_micros"));
        for why in &common.why {
            verdict.worsen(common.outcome, why.clone());
        }
        verdict
    });
    Judgement { verdicts: verdicts.collect(), messages: judge.messages }
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

    /// What production ignores or moves, and strict validation refuses.
    fn lax(&mut self, verdict: &mut Verdict, why: String, field: String, text: String, code: &'static str) {
        verdict.worsen(if self.strict { DROPPED } else { MODIFIED }, why);
        if self.strict {
            self.say(field, text, code);
        }
    }

    fn client(&mut self, request: &Map<String, Value>, verdict: &mut Verdict) {
        let client = request.get("client_id").and_then(Value::as_str).unwrap_or_default();
        if client.is_empty() {
            self.say("client_id", "Measurement requires a client_id.", "VALUE_REQUIRED");
            verdict.worsen(DROPPED, "no client_id".into());
        } else if !rules::is_client_id(client) && self.strict {
            let text =
                format!("client_id [{client}] has invalid format. It should be in <number>.<number> format.");
            self.say("client_id", text, "VALUE_INVALID");
            verdict.worsen(DROPPED, "client_id is not number.number".into());
        }
        if rules::may_hold_address(client) {
            verdict.why.push("client_id looks like a mail address, which Google's policy forbids".into());
        }
    }

    fn user(&mut self, request: &Map<String, Value>, verdict: &mut Verdict) {
        if let Some(user) = request.get("user_id").and_then(Value::as_str) {
            let problem = if user.trim().is_empty() {
                Some(("user_id: blank", "VALUE_INVALID"))
            } else if user.chars().count() > rules::MAX_USER_ID_CHARS {
                Some(("user_id: more than 256 characters", "VALUE_OUT_OF_BOUNDS"))
            } else {
                None
            };
            if let Some((problem, code)) = problem {
                self.lax(verdict, problem.into(), "user_id".into(), format!("{problem}."), code);
            }
            if rules::may_hold_address(user) {
                verdict.why.push("user_id looks like a mail address, which Google's policy forbids".into());
            }
        }
        let Some(properties) = request.get("user_properties").and_then(Value::as_object) else { return };
        if properties.len() > rules::MAX_USER_PROPERTIES {
            let why = "user_properties: more than 25";
            let code = "EXCEEDED_MAX_ENTITIES";
            self.lax(verdict, why.into(), "user_properties".into(), format!("{why}."), code);
        }
        for (name, property) in properties {
            let value = property.get("value").unwrap_or(&Value::Null);
            let problem = rules::user_property_name_problem(name).or(match value {
                Value::String(text) if text.chars().count() > rules::MAX_USER_PROPERTY_CHARS => {
                    Some(("value too long", "VALUE_OUT_OF_BOUNDS"))
                }
                Value::Array(_) | Value::Object(_) => Some(("no scalar", "VALUE_INVALID")),
                _ => None,
            });
            if let Some((problem, code)) = problem {
                let field = format!("user_properties.{name}");
                self.lax(
                    verdict,
                    format!("{field}: {problem}"),
                    field,
                    format!("User property [{name}]: {problem}."),
                    code,
                );
            }
            if value.as_str().is_some_and(rules::may_hold_address) {
                verdict.why.push(format!(
                    "user_properties.{name} looks like a mail address, which Google's policy forbids"
                ));
            }
        }
    }

    fn consent(&mut self, request: &Map<String, Value>, verdict: &mut Verdict) {
        let Some(consent) = request.get("consent").and_then(Value::as_object) else { return };
        for (key, value) in consent {
            if !matches!(value.as_str(), Some("GRANTED" | "DENIED")) {
                self.say("consent", format!("consent.{key} is not valid."), "VALUE_INVALID");
                verdict.worsen(MODIFIED, format!("consent.{key}: not GRANTED or DENIED"));
            }
        }
    }

    fn event(&mut self, index: usize, event: &Value, request_time: Option<&Value>) -> Verdict {
        let name = event.get("name").and_then(Value::as_str).unwrap_or_default();
        let mut verdict = Verdict { event: name.to_owned(), outcome: PROCESSED, why: Vec::new() };
        if let Some((text, code)) = rules::event_name_problem(index, name) {
            self.say("events", text.clone(), code);
            verdict.worsen(DROPPED, text);
            return verdict;
        }
        if rules::is_automatic(name) {
            verdict.why.push("a website's own tag sends events of this name: they may count twice".into());
        }
        let params = event.get("params").and_then(Value::as_object);
        let in_params = params.and_then(|params| params.get("timestamp_micros"));
        match event.get("timestamp_micros").or(in_params) {
            Some(time) => self.time(&format!("events[{index}].timestamp_micros"), time, &mut verdict),
            None => {
                request_time.into_iter().for_each(|time| self.time("timestamp_micros", time, &mut verdict))
            }
        }
        if let Some(params) = params {
            if params.len() > rules::MAX_PARAMS {
                let text = format!("Event at index: [{index}] has more than 25 params.");
                let field = format!("events[{index}].params");
                self.lax(&mut verdict, "params: more than 25".into(), field, text, "EXCEEDED_MAX_ENTITIES");
            }
            for (key, value) in params {
                self.param(index, key, value, &mut verdict);
            }
        }
        verdict
    }

    fn time(&mut self, field: &str, time: &Value, verdict: &mut Verdict) {
        let micros = time.as_u64().or_else(|| time.as_str().and_then(|text| text.parse().ok()));
        let problem = match micros {
            None => "timestamp that is no number of microseconds",
            Some(micros) if micros > self.now_micros => "timestamp too far in the future",
            Some(micros) if self.now_micros - micros > rules::HOURS_72_MICROS => {
                "timestamp too far in the past"
            }
            Some(_) => return,
        };
        let text = format!("Measurement timestamp_micros has {problem}.");
        self.lax(verdict, problem.into(), field.into(), text, "VALUE_INVALID");
    }

    fn param(&mut self, index: usize, key: &str, value: &Value, verdict: &mut Verdict) {
        let problem = rules::param_name_problem(key).or_else(|| param_value_problem(key, value));
        if let Some((problem, code)) = problem {
            let field = format!("events[{index}].params.{key}");
            let text = format!("Event at index: [{index}] has param [{key}]: {problem}.");
            self.lax(verdict, format!("{key}: {problem}"), field, text, code);
        }
        if value.as_str().is_some_and(rules::may_hold_address) {
            verdict.why.push(format!("{key} looks like a mail address, which Google's policy forbids"));
        }
        if key == "debug_mode" {
            verdict.why.push("debug_mode is on, whatever its value".into());
        }
    }
}

fn param_value_problem(key: &str, value: &Value) -> Option<(&'static str, &'static str)> {
    match value {
        Value::String(text) if text.chars().count() > rules::max_value_chars(key) => {
            return Some(("value too long", "VALUE_OUT_OF_BOUNDS"));
        }
        Value::Null => return Some(("null", "VALUE_INVALID")),
        Value::Object(_) => return Some(("an object", "VALUE_INVALID")),
        Value::Array(_) if key != "items" => return Some(("a list", "VALUE_INVALID")),
        _ => {}
    }
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let wrong = match key {
        "session_id" => !value.is_u64() && !value.as_str().is_some_and(is_digits),
        "engagement_time_msec" => !value.is_number(),
        _ => false,
    };
    wrong.then_some(("no number", "VALUE_INVALID"))
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
