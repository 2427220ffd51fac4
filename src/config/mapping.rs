//! `[ga4.events]` and `[ga4.parameters]`: names that GA4 takes, or a problem for each that it does not.
//!
//! - Layer: edge
//! - Takes: the tables as they were read.
//! - Gives: the relay's mapping.
//! - On failure: problems, each with its key; the name is then as it is by default.
//! - See: `docs/ga4.md`; `relay::validate` has GA4's rules.

use toml::{Table, Value};

use super::parse::Problem;
use super::raw::Ga4;
use crate::event::Kind;
use crate::relay::map::{Mapping, PARAMS};

/// Reads the mapping.
pub(super) fn mapping(ga4: &Ga4) -> (Mapping, Vec<Problem>) {
    let mut mapping = Mapping::default();
    let mut problems = Vec::new();
    let events = table(&ga4.events);
    for kind in Kind::ALL {
        let Some(name) = events.get(word(kind)).and_then(Value::as_str) else { continue };
        if name.is_empty() {
            mapping.switch_off(kind);
        } else if let Err(error) = mapping.rename_event(kind, name) {
            problems.push(Problem::new(format!("ga4.events.{}", word(kind)), error.to_string()));
        }
    }
    // First none has a name, so that two can change theirs.
    let leave_out = |mapping: &mut Mapping, ours| drop(mapping.rename_param(ours, None));
    PARAMS.iter().for_each(|ours| leave_out(&mut mapping, ours));
    let parameters = table(&ga4.parameters);
    for ours in PARAMS {
        let name = parameters.get(ours).and_then(Value::as_str).filter(|name| !name.is_empty());
        if let Some(name) = name
            && let Err(error) = mapping.rename_param(ours, Some(name))
        {
            problems.push(Problem::new(format!("ga4.parameters.{ours}"), error.to_string()));
        }
    }
    for kind in Kind::ALL {
        mapping.engage(kind, ga4.engaged.iter().any(|engaged| engaged == word(kind)));
    }
    for (at, engaged) in ga4.engaged.iter().enumerate() {
        if !Kind::ALL.iter().any(|kind| word(*kind) == engaged) {
            let words = Kind::ALL.map(word).join(", ");
            let key = format!("ga4.engaged[{at}]");
            problems.push(Problem::new(key, format!("`{engaged}` is not one of: {words}")));
        }
    }
    (mapping, problems)
}

/// The last word of an event's type.
fn word(kind: Kind) -> &'static str {
    kind.as_str().rsplit('.').next().unwrap_or_default()
}

fn table(raw: &impl serde::Serialize) -> Table {
    Table::try_from(raw).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::raw::{Ga4Events, Ga4Parameters};
    use crate::relay::map::OPTIONAL;

    fn read(text: &str) -> (Mapping, Vec<String>) {
        let (mapping, problems) = mapping(&toml::from_str(text).unwrap());
        (mapping, problems.into_iter().map(|problem| format!("{}: {}", problem.key, problem.what)).collect())
    }

    #[test]
    fn the_defaults_are_the_relays_own() {
        let (mapping, problems) = read("");
        assert_eq!((mapping, problems), (Mapping::default(), Vec::new()));
        assert_eq!(table(&Ga4Events::default()).len(), Kind::ALL.len());
        let parameters = table(&Ga4Parameters::default());
        let name = |ours: &'static str| if OPTIONAL.contains(&ours) { "" } else { ours };
        assert!(PARAMS.iter().all(|ours| parameters[*ours].as_str() == Some(name(ours))));
        assert_eq!(parameters.len(), PARAMS.len());
    }

    #[test]
    fn names_are_given_exchanged_and_left_out() {
        let (mapping, problems) = read(
            "engaged = [\"delivered\"]\n[events]\ndeferred = \"\"\nopened = \"newsletter_read\"\n\
             [parameters]\nemail_id = \"campaign_id\"\ncampaign_id = \"email_id\"\nsession_id = \"\"\n",
        );
        assert!(problems.is_empty(), "{problems:?}");
        assert!(!mapping.is_sent(Kind::Deferred) && mapping.is_sent(Kind::Opened));
        assert_eq!(
            (mapping.name(Kind::Opened), mapping.name(Kind::Clicked)),
            ("newsletter_read", "email_click")
        );
        let mut event = crate::queue::testing::event(1);
        event.kind = Kind::Delivered;
        event.data.recipient = Some([7; 12].into());
        let params = mapping.map(&event, &[crate::relay::property::Takes::default()]).unwrap().params;
        assert_eq!(params["campaign_id"], serde_json::json!(event.message));
        assert_eq!(params["email_id"], serde_json::json!(event.data.campaign));
        assert!(params.contains_key("engagement_time_msec"));
    }

    #[test]
    fn every_name_that_ga4_would_not_take_is_a_problem() {
        let (_, problems) = read(
            "engaged = [\"open\"]\n[events]\nopened = \"ga_open\"\nclicked = \"click now\"\n\
             [parameters]\nlate = \"provider\"\nsession_id = \"visit\"\nattempt = \"firebase_x\"\n",
        );
        let starts = [
            "ga4.events.opened: `ga_open`",
            "ga4.events.clicked: `click now`",
            "ga4.parameters.attempt: `firebase_x`",
            "ga4.parameters.late: two parameters",
            "ga4.parameters.session_id: GA4 knows",
            "ga4.engaged[0]: `open` is not one of: accepted",
        ];
        assert_eq!(problems.len(), starts.len(), "{problems:#?}");
        for (problem, start) in problems.iter().zip(starts) {
            assert!(problem.starts_with(start), "{problem}");
        }
    }
}
