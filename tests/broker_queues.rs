//! What administrators do to queues, and forget to do: policies, watchers, other layouts. Real processes, a RabbitMQ of the test's own.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::fs;
use std::time::Duration;

use harness::own_broker::{Site, ask, event};
use harness::{Daemon, run, wait_for};
use mailtap::event::Event;
use mailtap::queue::spool::Admin;
use mailtap::service::clock;

/// Somebody watches, stands still, and an administrator's policy has full queues refuse: it is nobody's trouble but the watcher's.
#[test]
fn a_watcher_that_stands_still_holds_up_nothing() {
    let mut site = Site::start();
    site.configure("etc", &format!("url = \"amqp://guest@127.0.0.1:{}/%2f\"", site.port), "[relay]");
    site.role("etc", "forward");
    let policy = "{\"max-length\":5,\"overflow\":\"reject-publish\"}";
    site.publish(0..1);
    wait_for("the first event", Duration::from_secs(30), || site.ready("mailtap.ga4") == 1);
    site.ctl(&["set_policy", "full", r"^mailtap\.tail\.", policy, "--apply-to", "queues"]);
    let seen = site.file("seen.log");
    let mut tail = site.command("etc", &["events", "tail", "--json"]);
    let tail =
        Daemon::start(tail.stdout(fs::File::create(&seen).unwrap()).stderr(std::process::Stdio::null()));
    let mut next = 1;
    wait_for("the first copy", Duration::from_secs(30), || {
        site.publish(next..next + 1);
        next += 1;
        std::thread::sleep(Duration::from_millis(100));
        fs::metadata(&seen).unwrap().len() > 0
    });
    tail.signal("STOP");
    site.publish(next..next + 3_000);
    let all = next + 3_000;
    wait_for("all in the work queue", Duration::from_secs(60), || site.ready("mailtap.ga4") == all);
    wait_for("an empty spool", Duration::from_secs(30), || {
        let status = Admin::open(&site.file("state").join("spool")).unwrap().status().unwrap();
        status.pending + status.claimed == 0
    });
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(site.ready("mailtap.ga4"), all, "none twice");
    assert!(!site.log("forward").contains("stay in the spool"), "{}", site.log("forward"));
    tail.signal("CONT");
}

/// A policy that limits every queue drops no letter without a word: what is counted as dead is there, the rest is held and told.
#[test]
fn dead_letters_above_a_policys_limit_are_held_and_told() {
    let mut site = Site::start();
    site.configure("etc", &format!("url = \"amqp://guest@127.0.0.1:{}/%2f\"", site.port), "[relay]");
    let admin = site.admin("etc", "relay");
    site.role("etc", "forward");
    let old = |number| Event { time: clock::now().minus(Duration::from_secs(72 * 3_600)), ..event(number) };
    site.publish_events("state", (0..30).map(old).collect());
    wait_for("the events", Duration::from_secs(60), || site.ready("mailtap.ga4") == 30);
    site.ctl(&["set_policy", "all", ".*", "{\"max-length\":10}", "--apply-to", "queues"]);
    site.collector();
    site.role("etc", "relay");
    // What comes at once is all let in: a quorum queue says only afterwards that it is full.
    wait_for("the first letters", Duration::from_secs(60), || site.ready("mailtap.ga4") == 0);
    std::thread::sleep(Duration::from_secs(2));
    site.publish_events("state", (30..60).map(old).collect());
    wait_for("readiness to say so", Duration::from_secs(60), || {
        ask(admin, "/readyz").1.contains("did not take")
    });
    std::thread::sleep(Duration::from_secs(2));
    let counted = || -> u64 {
        let metrics = ask(admin, "/metrics").1;
        let lines = metrics.lines().filter(|line| line.starts_with("mailtap_relay_dead_total{"));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    };
    let (dead, there) = (counted(), site.ready("mailtap.ga4.dead"));
    assert!(dead == there && (10..60).contains(&there), "{dead} counted, {there} there");
    site.ctl(&["clear_policy", "all"]);
    wait_for("all letters", Duration::from_secs(90), || site.ready("mailtap.ga4.dead") == 60);
    wait_for("readiness", Duration::from_secs(30), || ask(admin, "/readyz").0 == 200);
    assert_eq!(counted(), 60);
}

/// A queue in nobody's `relay.queues`, and one that an earlier layout left.
#[test]
fn what_waits_for_nobody_is_seen() {
    let mut site = Site::start();
    let url = format!("url = \"amqp://guest@127.0.0.1:{}/%2f\"", site.port);
    site.configure("before", &url, "[relay]");
    site.role("before", "forward");
    site.publish(0..3);
    wait_for("the layout before", Duration::from_secs(60), || site.ready("mailtap.ga4") == 3);
    site.roles.clear();
    for queue in ["10s", "1m", "10m"] {
        site.ctl(&["delete_queue", &format!("mailtap.ga4.retry.{queue}")]);
    }
    site.configure("etc", &format!("{url}\npartitions = 2"), "[relay]\nqueues = [1]");
    let admin = site.admin("etc", "relay");
    site.role("etc", "forward");
    site.publish(3..43);
    wait_for("all of it", Duration::from_secs(60), || {
        site.ready("mailtap.ga4.1") + site.ready("mailtap.ga4.2") == 40
    });
    let stranded = site.ready("mailtap.ga4.2");
    site.collector();
    site.role("etc", "relay");
    wait_for("the metrics", Duration::from_secs(90), || {
        let metrics = ask(admin, "/metrics").1;
        [
            format!("mailtap_queue_messages_ready{{queue=\"mailtap.ga4.2\"}} {stranded}"),
            "mailtap_queue_consumers{queue=\"mailtap.ga4.2\"} 0".into(),
            "mailtap_queue_consumers{queue=\"mailtap.ga4.1\"} 1".into(),
        ]
        .iter()
        .all(|line| metrics.contains(line))
    });
    for role in ["relay", "forward"] {
        let log = site.log(role);
        assert_eq!(log.matches("of another amqp.partitions").count(), 1, "{log}");
        assert!(log.contains("\"queue\":\"mailtap.ga4\",\"messages\":3"), "{log}");
    }
    let checked = run(&mut site.command("etc", &["amqp", "check"]));
    assert!(checked.contains("warning: mailtap.ga4 holds 3 messages"), "{checked}");
    assert_eq!(site.ready("mailtap.ga4"), 3, "no copies of events come there any more");
}
