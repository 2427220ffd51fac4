//! Tests of the rules file: what is refused, and how it is said.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

const RULE: &str = "version = 2\n[[rule]]\nname = \"a\"\nscope = \"both\"\ncertainty = \"certain\"\n";

fn error(text: &str) -> String {
    Rules::parse(text).unwrap_err().to_string()
}

#[test]
fn the_catalogue_is_sound() {
    let rules = Rules::parse(CATALOGUE).unwrap();
    assert!(rules.rules().len() > 10);
    assert!(rules.watched().count() >= 6, "bursts, sweeps and delivery are in it");
    assert!(rules.agents.len() > 10);
}

#[test]
fn mistakes_are_named_with_their_place() {
    assert_eq!(error("version = 3"), "version 3 is not known to this mailtap");
    assert!(error(&format!("{RULE}colour = 1")).starts_with("line 6: unknown field"), "{}", error(RULE));
    assert_eq!(error(RULE), "rule \"a\": it has no condition");
    assert_eq!(error(&format!("{RULE}networks = []")).matches("enabled = false").count(), 1);
    assert!(error(&format!("{RULE}networks = [\"gogle\"]")).contains("\"gogle\" is neither"));
    assert!(error(&format!("{RULE}user_agent_words = [\"\"]")).contains("empty"));
    assert!(error(&RULE.replace("\"a\"", "\"A b\"")).contains("a name has"));
    let twice = format!("{RULE}within_ms = 1\n{}within_ms = 1", RULE.trim_start_matches("version = 2\n"));
    assert!(error(&twice).contains("two of this name"));
    assert!(error("version = 1\n[networks]\nx = [\"10.0.0.0/33\"]").contains("networks.x"));
    assert!(error("version = 1\n[networks]\n\"192.0.2.0/24\" = []").contains("a name has"));
}

#[test]
fn what_is_seen_over_time_is_checked() {
    for (text, what) in [
        ("burst_links = 3", "go together"),
        ("in_ms = 3", "go together"),
        ("burst_links = 1\nin_ms = 5", "from 2 to 50"),
        ("burst_networks = 51\nin_ms = 5", "from 2 to 50"),
        ("burst_links = 3\nsweep_recipients = 3\nin_ms = 5", "is enough"),
        ("burst_links = 3\nin_ms = 0", "from 1 to 600000"),
        ("sweep_recipients = 3\nin_ms = 600001", "from 1 to 600000"),
        ("after_delivery_ms = 0", "from 1 to 600000"),
        ("after_delivery_ms = 5\nbefore_delivery = true", "nothing is both"),
    ] {
        let text = error(&format!("{RULE}{text}"));
        assert!(text.contains(what), "{text}");
    }
    let opens = RULE.replace("both", "open") + "burst_links = 3\nin_ms = 5";
    assert!(error(&opens).contains("opens have no links"));
    let mut many = String::from("version = 2\n");
    for number in 0..65 {
        many += &RULE.trim_start_matches("version = 2\n").replace("\"a\"", &format!("\"a{number}\""));
        many += "before_delivery = true\n";
    }
    assert!(error(&many).contains("64"));
    assert!(
        Rules::parse(&many.replacen("before_delivery = true", "enabled = false\nbefore_delivery = true", 1))
            .is_ok()
    );
}

#[test]
fn a_file_of_version_1_loads_as_it_is_and_has_nothing_new() {
    let old = RULE.replace("version = 2", "version = 1") + "user_agent_words = [\"curl/\"]\n";
    let rules = Rules::parse(&old).unwrap();
    assert_eq!((rules.rules().len(), rules.watched().count()), (1, 0));
    let families = Rules::parse(CATALOGUE).unwrap().agents.len();
    assert_eq!(rules.agents.len(), families, "families are the catalogue's");
    assert!(error(&format!("{old}before_delivery = true")).contains("version = 2"));
    assert!(error(&format!("{old}[[agent]]\nname = \"x\"\nwords = [\"x\"]")).contains("version = 2"));
}

#[test]
fn agents_are_checked_as_rules_are() {
    let agent = |text: &str| error(&format!("version = 2\n[[agent]]\n{text}"));
    assert!(agent("name = \"X\"\nwords = [\"x\"]").contains("a name has"));
    assert!(agent("name = \"x\"").contains("no condition"));
    assert!(agent("name = \"x\"\nparts = [\" \"]").contains("empty"));
}
