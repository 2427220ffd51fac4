//! How daemons start, and say why they can't: metrics, logs, exit codes, limits.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use harness::{Options, Site, http};

fn site(changes: Vec<(&'static str, String)>) -> Site {
    Site::start(&Options { without_postfix: true, changes, ..Options::default() })
}

#[test]
fn every_metric_of_a_running_process_says_what_it_means_and_begins_at_zero() {
    // Any file stands for a log, since there is no Postfix.
    let log = ("\"{dir}/relay/log/maillog\"", "\"{dir}/ga4-secret\"".to_owned());
    let site = site(vec![log]);
    let metrics = String::from_utf8(http(site.admin, "GET", "/metrics", &[]).unwrap().body).unwrap();
    let names: Vec<&str> =
        metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(names.len() > 60, "{metrics}");
    for name in names {
        assert!(metrics.contains(&format!("# HELP {name} ")), "{name} is not described");
    }
    for begins in [
        "mailtap_config_failures_total 0",
        "mailtap_config_restart_needed 0",
        "mailtap_milter_copies_total{result=\"uncertain\"} 0",
        "mailtap_milter_answers_lost_total 0",
        "mailtap_tap_lost_lines_total 0",
        "mailtap_tracker_lost_total{reason=\"queue-full\"} 0",
        "mailtap_relay_uncertain_total 0",
        "mailtap_relay_put_off_total 0",
        "mailtap_spool_expired_total{fate=\"dropped\"} 0",
    ] {
        assert!(metrics.lines().any(|line| line == begins), "{begins} is missing in:\n{metrics}");
    }
}
