//! A broker that waits for acks no longer than some seconds (its `consumer_timeout`, else half an hour), and a relay that has events in hand
//! for longer. Real processes, real RabbitMQ.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::{Daemon, free_ports, mailtap, repository, run, wait_for};
use mailtap::collector::report;
use mailtap::event::{Data, Event, EventId, Kind};
use mailtap::identity::MessageId;
use mailtap::queue::amqp::topology::Shape;
use mailtap::queue::amqp::{Link, Message, Publisher, Settings};
use mailtap::service::clock;
use mailtap::service::secret::Secret;
use serde_json::Value;

/// The broker's. The relay gives back what waits for a third of it.
const TIMEOUT: Duration = Duration::from_secs(6);

struct Site {
    dir: tempfile::TempDir,
    collector_port: u16,
    settings: Settings,
    relay: Option<Daemon>,
    collector: Option<Daemon>,
    tail: Option<Child>,
}

impl Site {
    /// `told`: what the relay believes of the broker's `consumer_timeout`.
    fn start(told: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("mailtap-timeout-").tempdir().unwrap();
        let [port, collector_port] = free_ports::<2>();
        let url = format!("amqp://guest:guest@127.0.0.1:{port}/%2f");
        let shape =
            Shape { delivery_limit: 1, retry_tiers: vec![Duration::from_secs(1)], ..Shape::default() };
        let settings = Settings { uris: vec![Secret::new(url)], shape, ..Settings::default() };
        let site = Self { dir, collector_port, settings, relay: None, collector: None, tail: None };
        site.broker(&["start", "--port", &port.to_string()]);
        let set = |name: &str, millis: u128| {
            site.broker(&["ctl", "--", "eval", &format!("application:set_env(rabbit, {name}, {millis}).")]);
        };
        set("consumer_timeout", TIMEOUT.as_millis());
        set("channel_tick_interval", 500);
        site.configure(port, told);
        site
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn broker(&self, arguments: &[&str]) -> String {
        harness::broker(&self.file("rabbitmq"), arguments)
    }

    /// One property, which may have five requests at once and then one every two seconds.
    fn configure(&self, port: u16, told: &str) {
        let mut init = mailtap();
        init.args(["init", "--domain", "shop.example", "--tracking-url", "https://t.shop.example"]);
        init.args(["--amqp", &format!("amqp://guest:guest@127.0.0.1:{port}/%2f"), "--dir"]);
        init.arg(self.file("etc")).arg("--state-dir").arg(self.file("state"));
        fs::write(self.file("secret"), "test-secret\n").unwrap();
        init.args(["--ga4", "G-TIMEOUT", "--ga4-secret-file"]).arg(self.file("secret"));
        run(init.args(["--ga4-url", &format!("http://127.0.0.1:{}", self.collector_port)]));
        let config = self.file("etc/mailtap.toml");
        let mut text = fs::read_to_string(&config).unwrap();
        for (from, to) in [
            ("#delivery_limit = 20", "delivery_limit = 1"),
            ("#retry_after = [\"10s\", \"1m\", \"10m\"]", "retry_after = [\"1s\"]"),
            ("#consumer_timeout = \"30m\"", &format!("consumer_timeout = \"{told}\"")),
            ("#max_per_property_hour = 0", "max_per_property_hour = 1800"),
            ("#timeout = \"10s\"\n# When an answer", "timeout = \"1500ms\"\n# When an answer"),
            ("#relay = \"127.0.0.1:9744\"", "relay = \"\""),
        ] {
            assert_eq!(text.matches(from).count(), 1, "{from}");
            text = text.replace(from, to);
        }
        fs::write(&config, text).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = mailtap();
        command.arg("--config").arg(self.file("etc/mailtap.toml")).args(arguments);
        command
    }

    fn logged(&self, command: &mut Command, name: &str) -> Daemon {
        let log = fs::OpenOptions::new().append(true).create(true).open(self.file(name)).unwrap();
        Daemon::start(command.stdout(log.try_clone().unwrap()).stderr(log))
    }

    fn start_relay(&mut self) {
        self.relay = Some(self.logged(&mut self.command(&["relay"]), "relay.log"));
    }

    fn start_collector(&mut self) {
        let mut collector = mailtap();
        collector.args(["collector", "--listen", &format!("127.0.0.1:{}", self.collector_port), "--record"]);
        self.collector = Some(self.logged(collector.arg(self.file("record.jsonl")), "collector.log"));
    }

    fn log(&self) -> String {
        harness::log_text(&self.file("relay.log"))
    }

    /// Publishes messages as they are made here of events and the name of the exchange.
    fn publish(&self, messages: impl IntoIterator<Item = Message>) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let link = Link::open(&self.settings, "test").await.unwrap();
            let publisher = Publisher::open(&link, Duration::from_secs(10)).await.unwrap();
            for message in messages {
                publisher.publish(&link, &message).await.unwrap();
            }
            link.close().await;
        });
    }

    /// As a forwarder does: to the work queue, and a copy for who watches.
    fn publish_events(&self, numbers: std::ops::Range<u64>) {
        self.publish(numbers.clone().map(|number| Message {
            key: "mailtap.ga4".into(),
            ..Message::of(&event(number), String::new())
        }));
        if self.tail.is_some() {
            self.publish(numbers.map(|number| Message::of(&event(number), "mailtap.events".into())));
        }
    }

    fn arrived(&self) -> BTreeMap<String, usize> {
        let mut arrived = BTreeMap::new();
        for row in report::report(&fs::read_to_string(self.file("record.jsonl")).unwrap_or_default()).rows {
            *arrived.entry(row.event_id).or_default() += 1;
        }
        arrived
    }

    fn wait_for_arrived(&self, count: usize) {
        wait_for("events at the collector", Duration::from_secs(120), || self.arrived().len() == count);
    }

    fn assert_each_once(&self, count: usize) {
        let arrived = self.arrived();
        assert_eq!((arrived.len(), arrived.values().sum::<usize>()), (count, count), "{arrived:?}");
    }

    fn dead(&self) -> BTreeSet<String> {
        let listed = run(&mut self.command(&["dead", "list", "--json"]));
        let letters = listed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        letters.map(|letter| letter["event"]["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Waits until every event is at the collector or a dead letter, and nothing else is in the queues.
    fn wait_until_settled(&self, count: usize) {
        let mut times = 0;
        wait_for("settled events", Duration::from_secs(120), || {
            std::thread::sleep(Duration::from_millis(500));
            let known = self.dead().into_iter().chain(self.arrived().into_keys()).collect::<BTreeSet<_>>();
            // The broker counts every second.
            times = if known.len() == count && self.waiting() == 0 { times + 1 } else { 0 };
            times > 4
        });
    }

    /// Messages in work queue and retry queue.
    fn waiting(&self) -> u64 {
        let queues = self.broker(&["ctl", "--", "list_queues", "name", "messages"]);
        let counts = queues.lines().filter_map(|line| line.split_once('\t'));
        let counts = counts.filter(|(name, _)| !name.ends_with(".dead") && !name.ends_with(".owner"));
        counts.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).sum()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        (self.relay, self.collector) = (None, None);
        if let Some(tail) = &mut self.tail {
            let _ = tail.kill();
            let _ = tail.wait();
        }
        if std::thread::panicking() {
            let text = self.log();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("---- relay ----\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
        }
        let tool = repository().join("tests/lib/rabbitmq");
        let _ = Command::new(tool).args(["stop", "--remove", "--dir"]).arg(self.file("rabbitmq")).output();
    }
}

/// Each of a recipient of its own, so a request of its own.
fn event(number: u64) -> Event {
    let now = clock::now();
    Event {
        id: EventId::of("timeout").part(number.to_be_bytes()).finish(),
        source: "mailtap/test/host".into(),
        kind: Kind::Delivered,
        time: now.minus(Duration::from_secs(60)),
        message: MessageId::new(now, u32::try_from(number).unwrap()),
        data: Data {
            campaign: Some("slow".parse().unwrap()),
            recipient: Some([u8::try_from(number).unwrap(); 12].into()),
            ..Data::default()
        },
    }
}

/// Held back by an hourly limit, then by an outage of GA4, each for longer than the broker waits: the relay gives events back before that, which
/// costs none of the one delivery that they have left. And who looks on meanwhile goes on to see what passes.
#[test]
fn what_waits_for_longer_than_the_broker_waits_is_sent_once_and_never_dead() {
    let mut site = Site::start("6s");
    site.start_collector();
    site.start_relay();
    wait_for("a relay that consumes", Duration::from_secs(30), || {
        site.log().contains("connected to RabbitMQ")
    });
    let mut tail = site.command(&["events", "tail", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut seen = BufReader::new(tail.stdout.take().unwrap()).lines();
    site.tail = Some(tail);
    wait_for("its queue", Duration::from_secs(30), || {
        site.broker(&["ctl", "--", "list_queues", "name"]).contains("mailtap.tail.")
    });

    site.publish_events(0..15);
    site.wait_for_arrived(15);
    site.assert_each_once(15);
    (0..15).for_each(|_| assert!(seen.next().unwrap().unwrap().contains("mailtap.message.delivered")));

    // An outage.
    site.collector = None;
    site.publish_events(15..25);
    std::thread::sleep(TIMEOUT * 2);
    site.start_collector();
    site.wait_for_arrived(25);
    wait_for("empty queues", Duration::from_secs(60), || site.waiting() == 0);
    site.assert_each_once(25);
    assert_eq!(site.dead(), BTreeSet::new());
    (15..25).for_each(|_| assert!(seen.next().unwrap().unwrap().contains("mailtap.message.delivered")));
    assert_eq!(site.log().matches("connected to RabbitMQ").count(), 1, "the broker closed its channel");
}

/// A relay that nobody told: the broker closes its channel again and again, until most events are dead letters. It sends none of those that
/// come again from its hand, and of letters that are replayed none that it knows to be sent.
#[test]
fn a_channel_that_the_broker_closes_counts_no_event_twice_even_after_a_replay() {
    let mut site = Site::start("30m");
    site.start_collector();
    site.start_relay();
    site.publish_events(0..25);
    site.wait_until_settled(25);
    let (dead, arrived) = (site.dead().len(), site.arrived().len());
    assert!(dead > 0 && arrived >= 5, "{dead} dead, {arrived} arrived");
    // Among them what was sent, as the broker buries it: no header says so.
    site.publish((0..5).map(|number| Message::of(&event(number), "mailtap.dead".into())));
    while site.arrived().len() < 25 || !site.dead().is_empty() {
        run(&mut site.command(&["dead", "replay", "--all"]));
        site.wait_until_settled(25);
    }
    site.assert_each_once(25);
}
