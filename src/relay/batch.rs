//! Events to requests: those of one client and one property travel together.
//!
//! - Layer: decision
//! - Takes: valid events.
//! - Gives: requests of at most 25 events and 129,000 bytes, in the order in which events came.
//! - On failure: an event that is too large by itself is a request of its own, which `validate`'s limits make
//!   impossible.
//! - See: `docs/ga4.md`.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::map::Mapped;
use super::validate::{MAX_BODY_BYTES, MAX_EVENTS};

/// What a request's body has beside its events, in bytes, rather more than less.
const ENVELOPE_BYTES: usize = 512;

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub struct Request<T> {
    /// Which property it goes to.
    pub property: usize,
    /// The body.
    pub body: Value,
    /// Whose events these are.
    pub tags: Vec<T>,
}

/// Puts events together.
#[must_use]
pub fn batch<T>(events: Vec<(Mapped<'_>, T)>) -> Vec<Request<T>> {
    let mut requests: Vec<(Request<T>, usize)> = Vec::new();
    let mut open: HashMap<(usize, String), usize> = HashMap::new();
    for (event, tag) in events {
        let json = json!({
            "name": event.name,
            "params": event.params,
            "timestamp_micros": event.timestamp_micros,
        });
        let bytes = json.to_string().len() + 1;
        let key = (event.property, event.client_id);
        let fits = |(request, size): &&mut (Request<T>, usize)| {
            request.tags.len() < MAX_EVENTS && *size + bytes <= MAX_BODY_BYTES
        };
        let present = open.get(&key).and_then(|at| requests.get_mut(*at)).filter(fits);
        if let Some((request, size)) = present {
            if let Some(list) = request.body.get_mut("events").and_then(Value::as_array_mut) {
                list.push(json);
            }
            request.tags.push(tag);
            *size += bytes;
            continue;
        }
        let body = json!({
            "client_id": key.1,
            "consent": { "ad_user_data": "DENIED", "ad_personalization": "DENIED" },
            "events": [json],
        });
        requests.push((Request { property: event.property, body, tags: vec![tag] }, ENVELOPE_BYTES + bytes));
        open.insert(key, requests.len() - 1);
    }
    requests.into_iter().map(|(request, _)| request).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(client: &str, property: usize, filler: usize) -> Mapped<'static> {
        let mut params = serde_json::Map::new();
        params.insert("p".into(), "x".repeat(filler).into());
        Mapped { name: "email_open", params, timestamp_micros: 1, client_id: client.into(), property }
    }

    #[test]
    fn clients_and_properties_stay_apart() {
        let events = [("1.1", 0), ("2.2", 0), ("1.1", 1), ("1.1", 0)];
        let events =
            events.iter().enumerate().map(|(tag, (client, property))| (event(client, *property, 1), tag));
        let requests = batch(events.collect());
        let tags: Vec<&[usize]> = requests.iter().map(|request| &request.tags[..]).collect();
        assert_eq!(tags, [&[0, 3][..], &[1], &[2]]);
        assert_eq!(requests[0].body["events"].as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn a_request_has_25_events() {
        let sizes = |count| {
            let events = (0..count).map(|tag| (event("1.1", 0, 1), tag)).collect();
            batch(events).iter().map(|request| request.tags.len()).collect::<Vec<_>>()
        };
        assert_eq!(sizes(25), [25]);
        assert_eq!(sizes(26), [25, 1]);
    }

    #[test]
    fn a_body_has_129_000_bytes() {
        let requests = batch((0..20).map(|tag| (event("1.1", 0, 10_000), tag)).collect());
        assert!(requests.len() > 1);
        assert!(requests.iter().all(|request| request.body.to_string().len() <= MAX_BODY_BYTES));
    }
}
