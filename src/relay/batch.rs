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

const BEGIN: &str = r#"{"client_id":"#;
const CONSENT: &str = r#","consent":{"ad_personalization":"DENIED","ad_user_data":"DENIED"},"events":["#;
const END: &[u8] = b"]}";
/// About what a request of one event has.
const ROOM: usize = 1_024;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<T> {
    /// Which property it goes to.
    pub property: usize,
    /// The body without its end.
    body: Vec<u8>,
    /// Where the first event begins.
    start: usize,
    /// Where each event ends; the next one begins after a comma.
    ends: Vec<usize>,
    /// Whose events these are.
    pub tags: Vec<T>,
}

impl<T> Request<T> {
    fn new(property: usize, client_id: &str) -> Self {
        let client_id = Value::from(client_id).to_string();
        let mut body = Vec::with_capacity(ROOM);
        [BEGIN, &client_id, CONSENT].iter().for_each(|part| body.extend_from_slice(part.as_bytes()));
        Self { property, start: body.len(), body, ends: Vec::with_capacity(1), tags: Vec::with_capacity(1) }
    }

    /// Whether an event of so many bytes may be added.
    fn has_room(&self, bytes: usize) -> bool {
        self.tags.len() < MAX_EVENTS && self.body.len() + 1 + bytes + END.len() <= MAX_BODY_BYTES
    }

    fn add(&mut self, event: &[u8], tag: T) {
        if !self.ends.is_empty() {
            self.body.push(b',');
        }
        self.body.extend_from_slice(event);
        self.ends.push(self.body.len());
        self.tags.push(tag);
    }

    /// The body that is sent, for people.
    #[must_use]
    pub fn body(&self) -> String {
        String::from_utf8_lossy(&[&self.body, END].concat()).into_owned()
    }

    /// The body to be sent, and whose events are in it.
    pub(super) fn into_parts(mut self) -> (Vec<u8>, Vec<T>) {
        self.body.extend_from_slice(END);
        (self.body, self.tags)
    }

    /// Leaves out the events whose tags are not to be kept, and gives these tags.
    pub fn leave_out(&mut self, keep: impl Fn(&T) -> bool) -> Vec<T> {
        if self.tags.iter().all(&keep) {
            return Vec::new();
        }
        let all = std::mem::take(&mut self.body);
        self.body.extend_from_slice(all.get(..self.start).unwrap_or_default());
        let ends = std::mem::take(&mut self.ends);
        let starts = std::iter::once(self.start).chain(ends.iter().map(|end| end + 1));
        let mut out = Vec::new();
        for ((start, end), tag) in starts.zip(&ends).zip(std::mem::take(&mut self.tags)) {
            if keep(&tag) {
                self.add(all.get(start..*end).unwrap_or_default(), tag);
            } else {
                out.push(tag);
            }
        }
        out
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
    let mut requests: Vec<Request<T>> = Vec::new();
    let mut open: HashMap<(usize, String), usize> = HashMap::new();
    let mut json = Vec::new();
    for (event, tag) in events {
        let line = Line { name: event.name, params: &event.params, timestamp_micros: event.timestamp_micros };
        json.clear();
        // Strings and numbers only: serialising them to memory cannot fail.
        let _ = serde_json::to_writer(&mut json, &line);
        let key = (event.property, event.client_id);
        let present = open.get(&key).and_then(|at| requests.get_mut(*at));
        if let Some(present) = present.filter(|request| request.has_room(json.len())) {
            present.add(&json, tag);
            continue;
        }
        let mut request = Request::new(key.0, &key.1);
        request.add(&json, tag);
        open.insert(key, requests.len());
        requests.push(request);
    }
    requests
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
        assert_eq!(whole[0].body().len(), 129_000);
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
        assert_eq!((&request.tags, fillers), (&vec![1, 3], vec![json!("xx"), json!("xxxx")]));
        assert!(request.leave_out(|_| true).is_empty());
        assert_eq!(request.leave_out(|_| false), [1, 3]);
        assert!(request.body().ends_with(r#""events":[]}"#));
    }
}
