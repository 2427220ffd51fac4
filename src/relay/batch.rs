//! Events to requests: those of one client and one property travel together.
//!
//! - Layer: decision
//! - Takes: valid events.
//! - Gives: requests of at most 25 events and 129,000 bytes, in the order in which events came.
//! - On failure: an event that is too large by itself is a request of its own, which `validate`'s limits make
//!   impossible.
//! - See: `docs/ga4.md`.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::Value;

use super::map::Mapped;
use super::params::Params;
use super::validate::{MAX_BODY_BYTES, MAX_EVENTS};

const CONSENT: &str = r#""consent":{"ad_personalization":"DENIED","ad_user_data":"DENIED"}"#;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<T> {
    /// Which property it goes to.
    pub property: usize,
    /// The client's id, as JSON.
    client_id: String,
    /// Its events, as JSON.
    events: Vec<String>,
    /// Whose events these are.
    pub tags: Vec<T>,
}

impl<T> Request<T> {
    fn new(property: usize, client_id: &str) -> Self {
        let client_id = Value::from(client_id).to_string();
        Self { property, client_id, events: Vec::new(), tags: Vec::new() }
    }

    /// The body that is sent.
    #[must_use]
    pub fn body(&self) -> String {
        let mut body = String::with_capacity(self.size());
        for piece in ["{\"client_id\":", &self.client_id, ",", CONSENT, ",\"events\":["] {
            body.push_str(piece);
        }
        for (number, event) in self.events.iter().enumerate() {
            if number > 0 {
                body.push(',');
            }
            body.push_str(event);
        }
        body.push_str("]}");
        body
    }

    /// Leaves out the events whose tags are not to be kept, and gives these tags.
    pub fn leave_out(&mut self, keep: impl Fn(&T) -> bool) -> Vec<T> {
        let (mut events, mut tags, mut out) = (Vec::new(), Vec::new(), Vec::new());
        for (event, tag) in self.events.drain(..).zip(self.tags.drain(..)) {
            if keep(&tag) {
                events.push(event);
                tags.push(tag);
            } else {
                out.push(tag);
            }
        }
        (self.events, self.tags) = (events, tags);
        out
    }

    /// The bytes of the body.
    fn size(&self) -> usize {
        let events: usize = self.events.iter().map(|event| event.len() + 1).sum();
        r#"{"client_id":,,"events":[]}"#.len()
            + CONSENT.len()
            + self.client_id.len()
            + events.saturating_sub(1)
    }

    /// A request without events, for tests of what only counts them.
    #[cfg(test)]
    pub(super) fn empty(property: usize, tags: Vec<T>) -> Self {
        Self { tags, ..Self::new(property, "") }
    }
}

/// An event as GA4 reads it.
#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    params: &'a Params<'a>,
    timestamp_micros: u64,
}

/// Puts events together.
#[must_use]
pub fn batch<T>(events: Vec<(Mapped<'_>, T)>) -> Vec<Request<T>> {
    let mut requests: Vec<(Request<T>, usize)> = Vec::new();
    let mut open: HashMap<(usize, String), usize> = HashMap::new();
    for (event, tag) in events {
        let json = Line { name: event.name, params: &event.params, timestamp_micros: event.timestamp_micros };
        // Strings and numbers only: serialising them to memory cannot fail.
        let json = serde_json::to_string(&json).unwrap_or_default();
        let bytes = json.len() + 1;
        let key = (event.property, event.client_id);
        let fits = |(request, size): &&mut (Request<T>, usize)| {
            request.tags.len() < MAX_EVENTS && *size + bytes <= MAX_BODY_BYTES
        };
        let present = open.get(&key).and_then(|at| requests.get_mut(*at)).filter(fits);
        let (request, size) = if let Some(present) = present {
            present
        } else {
            let request = Request::new(key.0, &key.1);
            let size = request.size();
            open.insert(key, requests.len());
            requests.push((request, size));
            let Some(last) = requests.last_mut() else { continue };
            // The first event has no comma before it.
            last.1 -= 1;
            last
        };
        request.events.push(json);
        request.tags.push(tag);
        *size += bytes;
    }
    requests.into_iter().map(|(request, _)| request).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(client: &str, property: usize, filler: usize) -> Mapped<'static> {
        let mut params = Params::default();
        params.insert("p", "x".repeat(filler).into());
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
        let body: Value = serde_json::from_str(&requests[0].body()).unwrap_or_default();
        assert_eq!(body["events"].as_array().map(Vec::len), Some(2));
        assert_eq!((&body["client_id"], &body["consent"]["ad_user_data"]), (&json!("1.1"), &json!("DENIED")));
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

    /// Two events of one client that make a body of exactly so many bytes, if they travel together.
    fn two(bytes: usize) -> Vec<Request<usize>> {
        let sized = |filler| vec![(event("1.1", 0, 60_000), 0), (event("1.1", 0, filler), 1)];
        let least = batch(sized(1)).remove(0).body().len();
        batch(sized(1 + bytes - least))
    }

    #[test]
    fn a_body_has_129_000_bytes_and_not_one_more() {
        let whole = two(MAX_BODY_BYTES);
        assert_eq!(whole.len(), 1);
        assert_eq!((whole[0].body().len(), whole[0].size()), (129_000, 129_000));
        let parted = two(MAX_BODY_BYTES + 1);
        assert_eq!(parted.len(), 2);
        assert!(parted.iter().all(|request| request.body().len() < MAX_BODY_BYTES));
    }

    #[test]
    fn what_is_left_out_takes_its_event_along() {
        let mut request = batch((0..4).map(|tag| (event("1.1", 0, tag + 1), tag)).collect()).remove(0);
        assert_eq!(request.leave_out(|tag| tag % 2 == 1), [0, 2]);
        let body: Value = serde_json::from_str(&request.body()).unwrap_or_default();
        let fillers: Vec<_> = (0..2).map(|at| body["events"][at]["params"]["p"].clone()).collect();
        assert_eq!((request.tags, fillers), (vec![1, 3], vec![json!("xx"), json!("xxxx")]));
    }
}
