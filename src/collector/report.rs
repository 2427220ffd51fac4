//! What the collector took, as a table: `mailtap collector report FILE`.
//!
//! - Layer: decision
//! - Takes: the lines of a record file.
//! - Gives: one row for each event, and how often an event came twice.
//! - On failure: a line that is no record is counted and passed over: the last one may be half written.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::Value;

/// One event as the collector took it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// When it happened, in microseconds since 1970; else when it came.
    pub time_micros: u64,
    /// When it came, in microseconds since 1970.
    pub received_micros: u64,
    /// Its GA4 name.
    pub event: String,
    /// Its campaign.
    pub campaign: String,
    /// mailtap's message id.
    pub message: String,
    /// The link's host and path.
    pub link: String,
    /// The client.
    pub client: String,
    /// What GA4 would make of it.
    pub outcome: String,
    /// mailtap's event id.
    pub event_id: String,
}

/// A record file, read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Report {
    /// Events in the order in which they happened.
    pub rows: Vec<Row>,
    /// Events that came again, by their event id.
    pub duplicates: u64,
    /// Lines that are no records.
    pub unreadable: u64,
}

/// The parameters that have other names than by default: ours, and the one that they have.
pub type Renamed = HashMap<String, String>;

/// Reads the lines of a record file, of a site that renames no parameter.
#[must_use]
pub fn report(text: &str) -> Report {
    report_renamed(text, &Renamed::new())
}

/// The same, where a site does.
#[must_use]
pub fn report_renamed(text: &str, renamed: &Renamed) -> Report {
    let mut report = Report::default();
    let mut seen: HashMap<String, u64> = HashMap::new();
    for line in text.lines() {
        let Ok(record) = serde_json::from_str::<Value>(line) else {
            report.unreadable += 1;
            continue;
        };
        // What was only checked was not collected.
        if record["endpoint"] != "/debug/mp/collect" {
            report.rows.extend(rows(&record, renamed));
        }
    }
    let counts = |row: &&Row| !row.event_id.is_empty() && row.outcome != "dropped";
    for row in report.rows.iter().filter(counts) {
        let times = seen.entry(row.event_id.clone()).or_default();
        report.duplicates += u64::from(*times > 0);
        *times += 1;
    }
    report.rows.sort_by_key(|row| row.time_micros);
    report
}

fn rows(record: &Value, renamed: &Renamed) -> Vec<Row> {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let events = record["body"]["events"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows = events.iter().enumerate().map(|(at, event)| {
        let param = |ours: &str| {
            let name = renamed.get(ours).map_or(ours, String::as_str);
            text(&event["params"][name])
        };
        Row {
            time_micros: event["timestamp_micros"]
                .as_u64()
                .or(record["received_micros"].as_u64())
                .unwrap_or_default(),
            received_micros: record["received_micros"].as_u64().unwrap_or_default(),
            event: text(&event["name"]),
            campaign: param("campaign_id"),
            message: param("email_id"),
            link: param("link_domain") + &param("link_path"),
            client: text(&record["body"]["client_id"]),
            // One verdict for several events: the whole request was dropped.
            outcome: text(&record["verdicts"].get(at).unwrap_or(&record["verdicts"][0])["outcome"]),
            event_id: param("event_id"),
        }
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_sorted_and_duplicates_counted() {
        let line = |id: &str, micros: u64| {
            format!(
                r#"{{"body":{{"client_id":"1.2","events":[{{"name":"email_open","timestamp_micros":{micros},"params":{{"event_id":"{id}","campaign_id":"c"}}}}]}},"verdicts":[{{"outcome":"processed"}}]}}"#
            )
        };
        let checked = line("b", 3).replacen('{', r#"{"endpoint":"/debug/mp/collect","#, 1);
        let dropped = line("b", 4).replace("processed", "dropped");
        let lines = [line("b", 2), line("a", 1), line("b", 2), checked, dropped, "{half".into()];
        let report = report(&lines.join("\n"));
        assert_eq!(report.rows.iter().map(|row| &row.event_id[..]).collect::<Vec<_>>(), ["a", "b", "b", "b"]);
        assert_eq!((report.duplicates, report.unreadable), (1, 1));
        let renamed = lines.join("\n").replace("campaign_id", "mail_campaign").replace("event_id", "key");
        let names = [("campaign_id", "mail_campaign"), ("event_id", "key")];
        let names = names.map(|(ours, name)| (ours.to_owned(), name.to_owned()));
        assert_eq!(report_renamed(&renamed, &names.into()), report);
        assert_eq!((report.rows[0].campaign.as_str(), report.rows[0].outcome.as_str()), ("c", "processed"));
    }
}
