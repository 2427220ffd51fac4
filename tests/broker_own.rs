//! A broker of the test's own: TLS with client certificates, definitions, alarms. Real processes, real RabbitMQ.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::fs;
use std::process::Command;
use std::time::Duration;

use harness::own_broker::{Site, event};
use harness::{Daemon, free_ports, http, run, said, wait_for};
use mailtap::event::{Event, EventId};
use mailtap::queue::amqp::{Link, Message, Publisher, Settings};
use mailtap::queue::dedupe::{Dedupe, Known};
use mailtap::queue::spool::Admin;
use mailtap::service::clock;
use mailtap::service::secret::Secret;
use serde_json::Value;

fn tls_lines(site: &Site, more: &str) -> String {
    let file = |name: &str| site.file(name).to_str().unwrap().to_owned();
    format!(
        "url = \"amqps://guest@localhost:{}\"\nca_file = \"{}\"\nclient_certificate = \"{}\"\nclient_key = \"{}\"\n{more}",
        site.tls_port,
        file("ca.pem"),
        file("client.pem"),
        file("client.key"),
    )
}

/// Without its certificate nobody gets in, and without the authority the broker is not trusted: each address is named with its
/// reason, each file with its key.
fn refused_with_reasons(site: &Site, dead: &str) {
    let without = tls_lines(site, dead).replace("client_certificate", "#").replace("client_key", "#");
    site.configure("bare", &without, "[relay]");
    let dead_one = "127.0.0.1:1: connection refused; does RabbitMQ run there";
    let fails = |name: &str, words: &[&str]| {
        // Whichever address is tried first.
        for _ in 0..4 {
            let refused = site.command(name, &["dead", "list"]).env_remove("SSL_CERT_FILE").output().unwrap();
            let text = said(&refused);
            assert_eq!(refused.status.code(), Some(69), "{text}");
            assert!(
                words.iter().all(|word| text.contains(word)) && !text.contains("guest:"),
                "{name}: {text}"
            );
        }
    };
    let living = format!("localhost:{}: ", site.tls_port);
    fails("bare", &[dead_one, &living, "amqp.client_certificate"]);
    site.configure("strange", &tls_lines(site, dead).replace("ca_file", "#"), "[relay]");
    fails(
        "strange",
        &[dead_one, &format!("{living}its certificate is signed by nobody known"), "amqp.ca_file"],
    );
    for (name, from, to, words) in [
        (
            "old",
            "client.pem",
            "version1.pem",
            ["amqp.client_certificate: ", "version1.pem: is an X.509 certificate of version 1"],
        ),
        (
            "alien",
            "client.key",
            "server.key",
            ["amqp.client_key: ", "server.key: does not belong to the certificate"],
        ),
        ("keyless", "ca.pem", "ca.key", ["amqp.ca_file: ", "ca.key: has no certificate"]),
    ] {
        site.configure(name, &tls_lines(site, dead).replace(from, to), "[relay]");
        fails(name, &words);
        let checked = site.command(name, &["config", "check"]).output().unwrap();
        assert_eq!(checked.status.code(), Some(78), "{}", said(&checked));
        assert!(words.iter().all(|word| said(&checked).contains(word)), "{}", said(&checked));
    }
}

/// AMQPS both ways verified, one of two addresses dead, topology made by an administrator and only checked, a collector that speaks
/// HTTP/2 over TLS.
#[test]
fn events_pass_through_tls_failover_and_a_topology_that_is_only_checked() {
    let mut site = Site::start();
    let dead =
        "urls = [\"amqps://guest@127.0.0.1:1\"]\ntopology = \"check\"\npartitions = 2\ndelivery_limit = 7";
    site.configure("etc", &tls_lines(&site, dead), "[relay]\ntimeout = \"5s\"");

    refused_with_reasons(&site, dead);
    let living = format!("localhost:{}: ", site.tls_port);
    run(&mut site.command("etc", &["config", "check"]));

    // Checked, it is missing first; imported from definitions it is as it should be, and elsewhere it is not.
    let missing = site.command("etc", &["amqp", "check"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(1), "{}", said(&missing));
    let words = [
        "mailtap.events, mailtap.dead, ",
        "mailtap.ga4.2, ",
        " are not there; ",
        "mailtap amqp definitions",
        &living,
    ];
    assert!(words.iter().all(|word| said(&missing).contains(word)), "{}", said(&missing));
    let definitions = run(&mut site.command("etc", &["amqp", "definitions"]));
    fs::create_dir_all(site.file("shared")).unwrap();
    fs::write(site.file("shared/definitions.json"), definitions).unwrap();
    for path in [site.dir.path(), &site.file("shared"), &site.file("shared/definitions.json")] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(path, mode).unwrap();
    }
    site.ctl(&["import_definitions", site.file("shared/definitions.json").to_str().unwrap()]);
    let found = run(&mut site.command("etc", &["amqp", "check"]));
    assert!(found.contains("mailtap.ga4.2"), "{found}");
    let other = tls_lines(&site, dead).replace("delivery_limit = 7", "delivery_limit = 8");
    site.configure("other", &other, "[relay]");
    let wrong = site.command("other", &["amqp", "check"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(1));
    assert!(said(&wrong).contains("x-delivery-limit"), "{}", said(&wrong));

    site.collector();
    site.role("etc", "forward");
    site.role("etc", "relay");
    site.publish(0..300);
    site.wait_for_arrived(300);
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--http2", "--cacert"]).arg(site.file("ca.pem"));
    let summary = run(curl.arg(format!("https://localhost:{}/collector/summary", site.collector_port)));
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert!(summary["requests"].as_u64().unwrap() >= 12, "{summary}");
    assert!(summary["connections"].as_u64().unwrap() <= 5, "HTTP/2 shares connections: {summary}");
    let waiting = site.ctl(&["list_queues", "name", "messages"]);
    let logs = format!("{}{}", site.log("relay"), site.log("forward"));
    assert!(!logs.contains("guest:"), "{waiting}");
    let connected = format!("\"broker\":\"localhost:{}\"", site.tls_port);
    assert_eq!(logs.matches(&connected).count(), 2, "{logs}");
}

/// Short of memory, then of disk, the broker takes nothing: events wait in the spool, what it has goes on to the collector, and all
/// arrive once after the alarm.
#[test]
fn an_alarm_of_the_broker_loses_nothing_and_stops_no_draining() {
    let mut site = Site::start();
    let amqp = format!("url = \"amqp://guest@127.0.0.1:{}/%2f\"", site.port);
    site.configure("etc", &amqp, "[relay]\ntimeout = \"5s\"");
    site.role("etc", "forward");
    site.publish(0..500);
    let in_queue = |site: &Site| {
        let queues = site.ctl(&["list_queues", "name", "messages"]);
        let work = queues.lines().find_map(|line| line.strip_prefix("mailtap.ga4\t"));
        work.map_or(0, |count| count.trim().parse::<u64>().unwrap())
    };
    wait_for("a full work queue", Duration::from_secs(60), || in_queue(&site) == 500);
    site.ctl(&["set_vm_memory_high_watermark", "0.00000001"]);
    site.publish(500..800);
    wait_for("the forwarder to be blocked", Duration::from_secs(60), || {
        site.log("forward").contains("takes no messages") || site.log("forward").contains("blocked")
    });
    let checked = site.command("etc", &["amqp", "check"]).output().unwrap();
    assert_eq!(checked.status.code(), Some(69), "{}", said(&checked));
    let words = format!("127.0.0.1:{}: takes no messages: it is short of memory or disk", site.port);
    assert!(said(&checked).contains(&words), "{}", said(&checked));
    // The relay connects during the alarm: it gets what the broker has, and its acks.
    site.collector();
    site.role("etc", "relay");
    wait_for("draining under the alarm", Duration::from_secs(90), || in_queue(&site) == 0);
    assert_eq!(site.arrived().len(), 500);
    site.ctl(&["set_disk_free_limit", "900000GB"]);
    site.ctl(&["set_vm_memory_high_watermark", "0.6"]);
    site.publish(800..900);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(site.arrived().len(), 500, "the disk alarm goes on");
    site.ctl(&["set_disk_free_limit", "50MB"]);
    site.wait_for_arrived(900);
}

/// What a user may not do is told, and costs nobody else anything: neither a connection nor deliveries, which end as dead letters too.
#[test]
fn a_dead_letter_that_lacks_a_permission_waits_and_takes_nothing_along() {
    let mut site = Site::start();
    let port = site.port;
    site.configure("etc", &format!("url = \"amqp://guest@127.0.0.1:{port}/%2f\""), "[relay]");
    site.configure(
        "lim",
        &format!("url = \"amqp://lim@127.0.0.1:{port}/%2f\"\ntopology = \"check\""),
        "[relay]",
    );
    fs::write(site.file("lim").join("amqp.password"), "no-default\n").unwrap();
    let [admin] = free_ports::<1>();
    let config = site.file("lim").join("mailtap.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("relay = \"\"", &format!("relay = \"127.0.0.1:{admin}\""))).unwrap();
    site.ctl(&["add_user", "lim", "no-default"]);
    let permit = |site: &Site, write: &str| site.ctl(&["set_permissions", "lim", "^mailtap\\.", write, ".*"]);
    permit(&site, r"^(mailtap\.events|mailtap\.ga4.*|amq\.default)$");

    site.role("etc", "forward");
    let old = Event { time: clock::now().minus(Duration::from_secs(72 * 3_600)), ..event(1_000) };
    site.publish_events("state", vec![old.clone()]);
    site.publish(0..20);
    let queues = |site: &Site| site.ctl(&["list_queues", "name", "messages"]);
    wait_for("all of it in the work queue", Duration::from_secs(60), || {
        queues(&site).contains("mailtap.ga4\t21")
    });
    let denied = site.command("lim", &["amqp", "check"]).output().unwrap();
    assert_eq!(denied.status.code(), Some(1), "{}", said(&denied));
    assert!(said(&denied).contains("access to exchange 'mailtap.dead'"), "{}", said(&denied));
    site.collector();
    site.role("lim", "relay");
    site.wait_for_arrived(20);
    let ask = |path: &str| {
        let answer = http(admin, "GET", path, &[]).unwrap();
        (answer.status, String::from_utf8(answer.body).unwrap())
    };
    wait_for("readiness to say so", Duration::from_secs(30), || {
        ask("/readyz").1.contains("access to exchange 'mailtap.dead'")
    });
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(ask("/readyz").0, 503);
    let log = site.log("relay");
    assert_eq!(log.matches("connected to RabbitMQ").count(), 1, "{log}");
    assert_eq!(log.matches("can't be settled").count(), 1, "{log}");
    let metrics = ask("/metrics").1;
    let dead: Vec<&str> =
        metrics.lines().filter(|line| line.starts_with("mailtap_relay_dead_total{")).collect();
    assert!(dead.iter().all(|line| line.ends_with(" 0")), "nothing is dead yet: {dead:?}");
    assert!(queues(&site).contains("mailtap.ga4.dead\t0"), "{}", queues(&site));

    permit(&site, ".*");
    wait_for("the dead letter", Duration::from_secs(30), || queues(&site).contains("mailtap.ga4.dead\t1"));
    wait_for("readiness", Duration::from_secs(30), || ask("/readyz").0 == 200);
    assert!(ask("/metrics").1.contains("mailtap_relay_dead_total{reason=\"expired\"} 1"), "once");
    let listed = run(&mut site.command("etc", &["dead", "list", "--json"]));
    let letter: Value = serde_json::from_str(listed.trim()).unwrap();
    assert_eq!((&letter["reason"], &letter["event"]["id"]), (&"expired".into(), &old.id.to_string().into()));
    run(&mut site.command("lim", &["amqp", "check"]));
}

/// A replay during an alarm says that it waits, and ends when it is told to; what it had in hand is a dead letter as before.
#[test]
fn a_replay_that_waits_for_an_alarm_says_so_and_can_be_ended() {
    const LETTERS: u64 = 40;
    let site = Site::start();
    let url = format!("amqp://guest:guest@127.0.0.1:{}/%2f", site.port);
    site.configure("etc", &format!("url = \"amqp://guest@127.0.0.1:{}/%2f\"", site.port), "[relay]");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let settings = Settings { uris: vec![Secret::new(url)], ..Settings::default() };
        let link = Link::open(&settings, "test").await.unwrap();
        let publisher = Publisher::open(&link, Duration::from_secs(10)).await.unwrap();
        for number in 0..LETTERS {
            publisher.publish(&link, &Message::of(&event(number), "mailtap.dead".into())).await.unwrap();
        }
        link.close().await;
    });
    let listed = || run(&mut site.command("etc", &["dead", "list", "--json"])).lines().count() as u64;
    assert_eq!(listed(), LETTERS);
    site.ctl(&["set_vm_memory_high_watermark", "0.00000001"]);
    for signal in ["INT", "TERM"] {
        let log = site.file("replay.log");
        let file = fs::File::create(&log).unwrap();
        let mut command = site.command("etc", &["dead", "replay", "--all"]);
        let mut replay = Daemon::start(command.stdout(file.try_clone().unwrap()).stderr(file));
        wait_for("the command to say that it waits", Duration::from_secs(30), || {
            fs::read_to_string(&log).unwrap().contains("takes no messages")
        });
        replay.signal(signal);
        wait_for("its end", Duration::from_secs(8), || !replay.is_running());
        assert_eq!(replay.exit_code(), Some(75));
        let said = fs::read_to_string(&log).unwrap();
        assert!(said.contains("interrupted; replayed 0") && said.matches("waiting").count() == 1, "{said}");
        assert_eq!(listed(), LETTERS);
    }
    site.ctl(&["set_vm_memory_high_watermark", "0.6"]);
    run(&mut site.command("etc", &["dead", "replay", "--all"]));
    assert_eq!(listed(), 0);
}

/// Which queue an event belongs to is said by its recipient alone. Published again after the broker died and came back, it comes to the relay
/// that remembers it, and goes nowhere. All with a user and a password of their own.
#[test]
fn a_restart_of_the_broker_keeps_each_event_with_its_queue_and_its_memory() {
    let mut site = Site::start();
    site.ctl(&["add_user", "relay", "no-default"]);
    site.ctl(&["set_permissions", "relay", ".*", ".*", ".*"]);
    let amqp = format!("url = \"amqp://relay@127.0.0.1:{}/%2f\"\npartitions = 2", site.port);
    for (name, queues) in [("one", "[1]"), ("two", "[2]"), ("again", "[]")] {
        site.configure(name, &amqp, &format!("[relay]\nqueues = {queues}"));
        site.own_state(name);
        fs::write(site.file(name).join("amqp.password"), "no-default\n").unwrap();
    }
    site.collector();
    site.role("one", "relay");
    site.role("two", "relay");
    site.role("one", "forward");
    site.publish_in("state-one", 0..200);
    site.wait_for_arrived(200);
    site.broker(&["kill"]);
    site.broker(&["restart"]);
    site.role("again", "forward");
    site.publish_in("state-again", 0..200);
    // Behind the copies in both queues.
    wait_for("a spool without copies", Duration::from_secs(90), || {
        let status = Admin::open(&site.file("state-again").join("spool")).unwrap().status().unwrap();
        status.pending + status.claimed == 0
    });
    site.publish_in("state-again", 200..260);
    site.wait_for_arrived(260);
    site.roles.clear();
    let ids: Vec<EventId> = (0..260).map(|number| event(number).id).collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let known = ["state-one", "state-two"].map(|state| {
        let memory = Dedupe::open(&site.file(state).join("relay")).unwrap();
        runtime.block_on(memory.look(&ids)).unwrap()
    });
    let both = known[0].iter().zip(&known[1]).map(|(one, two)| (*one == Known::Sent, *two == Known::Sent));
    let both: Vec<_> = both.collect();
    assert!(both.iter().all(|(one, two)| one != two), "{both:?}");
    assert!(both.contains(&(true, false)) && both.contains(&(false, true)));
}
