//! What the collector keeps: a line for every request in a file, counts and the latest events in memory.
//!
//! - Layer: edge
//! - Takes: requests with their verdicts.
//! - Gives: the record file; the summary; the events that were accepted.
//! - On failure: the file's error: whoever reads the record must not trust a gap.
//! - Limits: the latest 20,000 accepted events; 1,000 names of events; duplicates among five million events (8 bytes each,
//!   by a hash: one false hit in 1.5 million such sets of ids). The API secret is never kept.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::hash::BuildHasher;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::judge::{Judgement, Verdict};
use crate::service::clock;

const MAX_LATEST: usize = 20_000;
const MAX_NAMES: usize = 1_000;
const MAX_IDS: usize = 5_000_000;

/// What of a request's query is kept: not the secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) measurement_id: Option<String>,
    pub(super) has_api_secret: bool,
}

#[derive(Debug, Default)]
pub(super) struct Record {
    file: Option<Mutex<File>>,
    counts: Mutex<Counts>,
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Counts {
    connections: u64,
    requests: u64,
    debug_requests: u64,
    faults: u64,
    processed: u64,
    modified: u64,
    dropped: u64,
    duplicates: u64,
    addresses: u64,
    names: BTreeMap<String, u64>,
    ids: HashSet<u64>,
    latest: VecDeque<Value>,
    left_out: u64,
}

impl Record {
    /// A record in this file, to which it is appended, or in memory only.
    pub(super) fn open(path: Option<&Path>) -> std::io::Result<Self> {
        let file = path.map(|path| OpenOptions::new().append(true).create(true).open(path)).transpose()?;
        Ok(Self { file: file.map(Mutex::new), ..Self::default() })
    }

    /// Counts a request and gives its number, from 1.
    pub(super) fn request(&self) -> u64 {
        let mut counts = self.counts();
        counts.requests += 1;
        counts.requests
    }

    /// Counts a connection.
    pub(super) fn connection(&self) {
        self.counts().connections += 1;
    }

    pub(super) fn fault(&self) {
        self.counts().faults += 1;
    }

    /// Keeps what was sent to be collected.
    pub(super) fn collected(
        &self,
        target: &Target,
        body: &[u8],
        judgement: &Judgement,
    ) -> std::io::Result<()> {
        let parsed = parsed(body);
        self.count(target, &parsed, &judgement.verdicts);
        self.write("/mp/collect", target, body.len(), parsed, judgement)
    }

    /// Keeps what was sent to be checked; it counts as nothing.
    pub(super) fn checked(&self, target: &Target, body: &[u8], judgement: &Judgement) -> std::io::Result<()> {
        self.counts().debug_requests += 1;
        self.write("/debug/mp/collect", target, body.len(), parsed(body), judgement)
    }

    fn count(&self, target: &Target, body: &Value, verdicts: &[Verdict]) {
        let now = clock::now();
        let client = text(body, "client_id", "clientId");
        let events = body.get("events").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let mut counts = self.counts();
        for (at, verdict) in verdicts.iter().enumerate() {
            match verdict.outcome {
                "processed" => counts.processed += 1,
                "modified" => counts.modified += 1,
                _ => {
                    counts.dropped += 1;
                    continue;
                }
            }
            counts.addresses += u64::from(verdict.why.iter().any(|why| why.contains("mail address")));
            if counts.names.len() < MAX_NAMES || counts.names.contains_key(&verdict.event) {
                *counts.names.entry(verdict.event.clone()).or_default() += 1;
            }
            let event = events.get(at).unwrap_or(&Value::Null);
            if let Some(id) = event.pointer("/params/event_id").and_then(Value::as_str) {
                let id = self.hasher.hash_one(id);
                if counts.ids.contains(&id) {
                    counts.duplicates += 1;
                } else if counts.ids.len() < MAX_IDS {
                    counts.ids.insert(id);
                }
            }
            if counts.latest.len() == MAX_LATEST {
                counts.latest.pop_front();
                counts.left_out += 1;
            }
            counts.latest.push_back(json!({
                "received_at": now,
                "measurement_id": target.measurement_id,
                "client_id": client,
                "name": verdict.event,
                "timestamp_micros": event.get("timestamp_micros").or(event.get("timestampMicros")),
                "params": event.get("params"),
                "outcome": verdict.outcome,
                "why": verdict.why,
            }));
        }
    }

    fn write(
        &self,
        endpoint: &str,
        target: &Target,
        bytes: usize,
        body: Value,
        judgement: &Judgement,
    ) -> std::io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let now = clock::now();
        let verdicts: Vec<Value> = judgement
            .verdicts
            .iter()
            .map(|verdict| json!({ "event": verdict.event, "outcome": verdict.outcome, "why": verdict.why }))
            .collect();
        let line = json!({
            "received_at": now,
            "received_micros": now.as_micros(),
            "endpoint": endpoint,
            "measurement_id": target.measurement_id,
            "has_api_secret": target.has_api_secret,
            "bytes": bytes,
            "body": body,
            "verdicts": verdicts,
        });
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(format!("{line}\n").as_bytes())
    }

    /// Counts since the start.
    pub(super) fn summary(&self) -> Value {
        let counts = self.counts();
        json!({
            "connections": counts.connections,
            "requests": counts.requests,
            "debug_requests": counts.debug_requests,
            "faults": counts.faults,
            "processed": counts.processed,
            "modified": counts.modified,
            "dropped": counts.dropped,
            "duplicates": counts.duplicates,
            "duplicates_complete": counts.ids.len() < MAX_IDS,
            "addresses": counts.addresses,
            "events": counts.names,
        })
    }

    /// The events that were accepted, oldest first.
    pub(super) fn events(&self) -> Value {
        let counts = self.counts();
        json!({ "left_out": counts.left_out, "events": counts.latest })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body as JSON, or as the text that it is.
fn parsed(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_else(|_| json!(String::from_utf8_lossy(body)))
}

fn text(object: &Value, snake: &str, camel: &str) -> Option<Value> {
    object.get(snake).or(object.get(camel)).cloned()
}
