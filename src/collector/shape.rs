//! Whether a body is a request at all, as a protobuf's JSON parser sees it: known keys, right types.
//!
//! - Layer: decision
//! - Takes: the body of a request.
//! - Gives: the request with its keys in snake_case.
//! - On failure: where and why nothing of the request is read: one wrong key fails the whole of it.
//! - Limits: what Google's pages say nothing of (`user_data`, `device`, `user_location`) is only an object here.
//! - See: protobuf's JSON mapping: camelCase is taken, unknown keys are not; `docs/collector.md`.
#![warn(clippy::indexing_slicing)]

use serde_json::{Map, Value};

/// What a key may hold.
#[derive(Debug)]
enum Shape {
    Text,
    /// A protobuf int64: a number or digits.
    Int,
    Bool,
    /// Of any keys.
    Open,
    /// Of these keys.
    Object(&'static [(&'static str, Shape)]),
    /// Any keys, each with one of these.
    Named(&'static Shape),
    List(&'static Shape),
    Any,
}

const REQUEST: &[(&str, Shape)] = &[
    ("client_id", Shape::Text),
    ("app_instance_id", Shape::Text),
    ("user_id", Shape::Text),
    ("timestamp_micros", Shape::Int),
    ("user_properties", Shape::Named(&Shape::Object(USER_PROPERTY))),
    ("user_data", Shape::Open),
    ("consent", Shape::Object(CONSENT)),
    ("non_personalized_ads", Shape::Bool),
    ("user_location", Shape::Open),
    ("ip_override", Shape::Text),
    ("device", Shape::Open),
    ("user_agent", Shape::Text),
    ("validation_behavior", Shape::Text),
    ("events", Shape::List(&Shape::Object(EVENT))),
];
const USER_PROPERTY: &[(&str, Shape)] = &[("value", Shape::Any), ("timestamp_micros", Shape::Int)];
const CONSENT: &[(&str, Shape)] = &[("ad_user_data", Shape::Text), ("ad_personalization", Shape::Text)];
const EVENT: &[(&str, Shape)] =
    &[("name", Shape::Text), ("params", Shape::Open), ("timestamp_micros", Shape::Int)];

/// Reads a request.
///
/// # Errors
/// Google's words for what it can't read; no value of the request is in them.
pub(super) fn read(body: &[u8]) -> Result<Map<String, Value>, String> {
    const UNABLE: &str = "Unable to parse Measurement Protocol JSON payload.";
    let value = serde_json::from_slice(body).map_err(|_| UNABLE.to_owned())?;
    match shaped(value, &Shape::Object(REQUEST), "") {
        Ok(Value::Object(request)) => Ok(request),
        Ok(_) => Err(UNABLE.to_owned()),
        Err(problem) => Err(format!("{UNABLE} {problem}")),
    }
}

fn shaped(value: Value, shape: &Shape, at: &str) -> Result<Value, String> {
    let wrong = |expected: &str| Err(format!("{at}: expected {expected}."));
    match (shape, value) {
        (Shape::Object(keys), Value::Object(object)) => object_of(object, keys, at).map(Value::Object),
        (Shape::Named(shape), Value::Object(object)) => {
            let named = object.into_iter().map(|(name, value)| {
                let value = shaped(value, shape, &format!("{at}[{name}]"))?;
                Ok((name, value))
            });
            named.collect::<Result<_, _>>().map(Value::Object)
        }
        (Shape::List(shape), Value::Array(list)) => {
            let shaped = list
                .into_iter()
                .enumerate()
                .map(|(index, value)| shaped(value, shape, &format!("{at}[{index}]")));
            shaped.collect::<Result<_, _>>().map(Value::Array)
        }
        (Shape::Int, value) => {
            let digits = value.as_str().is_some_and(|text| text.parse::<i64>().is_ok());
            let whole = value.as_f64().is_some_and(|number| number.fract() == 0.0);
            if whole || digits { Ok(value) } else { wrong("a number") }
        }
        (Shape::Text, value @ Value::String(_))
        | (Shape::Bool, value @ Value::Bool(_))
        | (Shape::Open, value @ Value::Object(_))
        | (Shape::Any, value) => Ok(value),
        (Shape::Text, _) => wrong("a string"),
        (Shape::Bool, _) => wrong("true or false"),
        (Shape::List(_), _) => wrong("a list"),
        (Shape::Object(_) | Shape::Named(_) | Shape::Open, _) => wrong("an object"),
    }
}

fn object_of(
    object: Map<String, Value>,
    keys: &[(&'static str, Shape)],
    at: &str,
) -> Result<Map<String, Value>, String> {
    let mut known = Map::new();
    for (key, value) in object {
        let snake = snake_case(&key);
        let Some((name, shape)) = keys.iter().find(|(name, _)| *name == snake) else {
            let place = if at.is_empty() { String::new() } else { format!("({at}) ") };
            return Err(format!("{place}{key}: Cannot find field."));
        };
        // A null is a key that is not there.
        if value.is_null() && !matches!(shape, Shape::Any) {
            continue;
        }
        let path = if at.is_empty() { (*name).to_owned() } else { format!("{at}.{name}") };
        if known.insert((*name).to_owned(), shaped(value, shape, &path)?).is_some() {
            return Err(format!("{path}: there twice."));
        }
    }
    Ok(known)
}

/// protobuf's JSON takes lowerCamelCase for snake_case.
fn snake_case(key: &str) -> String {
    let mut snake = String::with_capacity(key.len() + 2);
    for character in key.chars() {
        if character.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(character.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn camel_case_is_the_same_key_everywhere_but_in_params() {
        let body = br#"{"clientId":"1.2","events":[{"name":"e","timestampMicros":"5","params":{"someKey":1}}],
            "userProperties":{"favColour":{"value":"red","timestampMicros":1}},"consent":{"adUserData":"DENIED"}}"#;
        let request = Value::Object(read(body).unwrap());
        assert_eq!(request.pointer("/client_id"), Some(&"1.2".into()));
        assert_eq!(request.pointer("/events/0/timestamp_micros"), Some(&"5".into()));
        assert_eq!(request.pointer("/events/0/params/someKey"), Some(&1.into()));
        assert_eq!(request.pointer("/user_properties/favColour/timestamp_micros"), Some(&1.into()));
        assert_eq!(request.pointer("/consent/ad_user_data"), Some(&"DENIED".into()));
    }

    #[test]
    fn unknown_keys_and_wrong_types_fail_the_whole() {
        let text = |body: &str| read(body.as_bytes()).unwrap_err();
        assert!(text(r#"{"events":[{"names":"x"}]}"#).ends_with("(events[0]) names: Cannot find field."));
        for bad in [
            "",
            "{",
            "[]",
            "1",
            r#"{"unknown":1}"#,
            r#"{"client_id":1}"#,
            r#"{"client_id":"1.2","clientId":"1.2"}"#,
            r#"{"events":{}}"#,
            r#"{"events":[1]}"#,
            r#"{"events":[{"name":1}]}"#,
            r#"{"events":[{"name":"e","params":[]}]}"#,
            r#"{"events":[{"name":"e","timestamp_micros":"soon"}]}"#,
            r#"{"events":[{"name":"e","timestamp_micros":1.5}]}"#,
            r#"{"consent":{"analytics":"GRANTED"}}"#,
            r#"{"user_properties":{"a":1}}"#,
            r#"{"user_properties":{"a":{"values":1}}}"#,
            r#"{"non_personalized_ads":"yes"}"#,
        ] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(read(br#"{"client_id":null,"user_data":{"any":[1]},"device":{"x":1}}"#).is_ok());
    }
}
