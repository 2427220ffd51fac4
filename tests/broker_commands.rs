//! `mailtap dead` and `mailtap events tail`, with the spool and with the RabbitMQ that `MAILTAP_TEST_AMQP` names.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::installed::installed;
use harness::{Daemon, free_ports, http, mailtap, run, said, wait_for};
use lapin::options::{BasicGetOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use mailtap::event::{Data, Event, EventId, Kind};
use mailtap::identity::{MessageId, Timestamp};
use mailtap::queue::Publish;
use mailtap::queue::amqp::topology::Shape;
use mailtap::queue::amqp::{Link, Message, Publisher, Settings};
use mailtap::queue::spool::{self, Outcome, Spool};
use mailtap::service::clock;
use mailtap::service::secret::Secret;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

struct Site {
    dir: tempfile::TempDir,
    /// Of the broker, if there is one.
    settings: Settings,
}

impl Site {
    fn new(amqp: Option<(&str, &str)>) -> Self {
        let mut settings = Settings::default();
        let mut more = Vec::new();
        if let Some((url, test)) = amqp {
            more.extend(["--amqp", url]);
            settings.uris = vec![Secret::new(url.into())];
            settings.shape =
                Shape { prefix: format!("cli{}.{test}", std::process::id()), ..Shape::default() };
        }
        let dir = installed(&more).dir;
        let config = dir.path().join("mailtap.toml");
        let text = fs::read_to_string(&config).unwrap();
        let prefix = format!("prefix = \"{}\"", settings.shape.prefix);
        fs::write(&config, text.replace("#prefix = \"mailtap\"", &prefix)).unwrap();
        Self { dir, settings }
    }

    fn with_broker(test: &str) -> Option<Self> {
        match std::env::var("MAILTAP_TEST_AMQP") {
            Ok(url) => Some(Self::new(Some((&url, test)))),
            Err(_) => {
                assert!(
                    std::env::var_os("MAILTAP_TEST_REQUIRED").is_none(),
                    "MAILTAP_TEST_AMQP names no broker"
                );
                eprintln!("skipped: MAILTAP_TEST_AMQP names no broker");
                None
            }
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = mailtap();
        command.arg("--config").arg(self.dir.path().join("mailtap.toml")).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> String {
        run(&mut self.command(arguments))
    }

    fn listed(&self, arguments: &[&str]) -> Vec<Value> {
        let text = self.run(&[&["dead", "list", "--json"], arguments].concat());
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn spool(&self) -> Spool {
        let directory = self.dir.path().join("state/spool");
        fs::create_dir_all(&directory).unwrap();
        Spool::open(spool::Settings { directory, ..spool::Settings::default() }).unwrap()
    }

    async fn publish(&self, messages: Vec<Message>) {
        let link = Link::open(&self.settings, "test").await.unwrap();
        let publisher = Publisher::open(&link, Duration::from_secs(10)).await.unwrap();
        for some in messages.chunks(200) {
            let publishing = some.iter().map(|message| publisher.publish(&link, message));
            futures_util::future::try_join_all(publishing).await.unwrap();
        }
        link.close().await;
    }

    /// A letter as the relay leaves it.
    fn letter(&self, number: u64, state: &str, reason: &str) -> Message {
        let mut message = Message::of(&event(number), format!("{}.dead", self.settings.shape.prefix));
        let now = clock::now().as_millis().to_string();
        let texts = [("x-mailtap-state", state.to_owned()), ("x-mailtap-reason", reason.to_owned())];
        message.headers = texts.into_iter().chain([("x-mailtap-since", now)]).collect();
        message
    }

    fn tail(&self, arguments: &[&str]) -> Tail {
        let mut command = self.command(&[&["events", "tail"], arguments].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Tail { child, output: Some(output) }
    }
}

struct Tail {
    child: Child,
    output: Option<BufReader<std::process::ChildStdout>>,
}

impl Tail {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.as_mut().unwrap().read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Waits for its end; gives its exit code and what it said to standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let until = Instant::now() + Duration::from_secs(10);
        while self.child.try_wait().unwrap().is_none() {
            if Instant::now() > until {
                self.child.kill().unwrap();
                panic!("it does not end");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let output = self.child.wait_with_output().unwrap();
        (output.status.code(), said(&output))
    }

    fn interrupt(&self) {
        run(Command::new("kill").args(["-INT", &self.child.id().to_string()]));
    }
}

fn event(number: u64) -> Event {
    Event {
        id: EventId::of("commands").part(number.to_be_bytes()).finish(),
        source: "mailtap/test/host".into(),
        kind: Kind::ALL[usize::try_from(number).unwrap() % Kind::ALL.len()],
        time: clock::now().minus(Duration::from_secs(3_600 * number)),
        message: MessageId::new(Timestamp::from_secs(1_795_453_000), 7),
        data: Data { campaign: Some(format!("c{}", number % 2).parse().unwrap()), ..Data::default() },
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_of_rabbitmq_are_listed_shown_replayed_and_dropped() {
    let Some(site) = Site::with_broker("dead") else { return };
    let never = site.command(&["dead", "list"]).output().unwrap();
    assert_eq!(never.status.code(), Some(69), "{}", said(&never));
    let mut letters: Vec<_> = (0..6).map(|number| site.letter(number, "dead", "HTTP 400")).collect();
    letters.extend((6..8).map(|number| site.letter(number, "uncertain", "uncertain")));
    site.publish(letters).await;

    assert_eq!(site.listed(&[]).len(), 8);
    let shown = site.run(&["dead", "list"]);
    assert!(shown.contains("HTTP 400") && shown.contains("uncertain") && shown.contains("c1"), "{shown}");
    assert_eq!(site.listed(&["--max", "3"]).len(), 3);
    assert_eq!(site.listed(&["--reason", "http"]).len(), 6);
    assert_eq!(site.listed(&["--campaign", "c0"]).len(), 4);
    assert_eq!(site.listed(&["--type", "accepted"]).len(), 1);
    assert_eq!(site.listed(&["--since", "90m"]).len(), 2);
    assert_eq!(site.listed(&["--before", "90m", "--campaign", "c1"]).len(), 3);
    let id = event(7).id.to_string();
    let one: Value = serde_json::from_str(&site.run(&["dead", "show", &format!("--id={id}")])).unwrap();
    assert_eq!((&one["in"], &one["state"]), (&"rabbitmq".into(), &"uncertain".into()));
    assert_eq!(one["event"]["id"], id);

    assert_eq!(site.command(&["dead", "drop"]).output().unwrap().status.code(), Some(64));
    assert_eq!(site.run(&["dead", "drop", "--type", "accepted"]), "dropped 1\n");
    assert_eq!(site.run(&["dead", "replay", "--reason", "uncertain"]), "replayed 2\n");
    assert_eq!(site.run(&["dead", "replay", &event(1).id.to_string()]), "replayed 1\n");
    assert_eq!(site.listed(&[]).len(), 4);
    assert_eq!(site.run(&["dead", "drop", "--all"]), "dropped 4\n");
    assert_eq!(site.listed(&[]).len(), 0);

    // What this host's spool holds is seen with it.
    let spool = site.spool();
    spool.publish(vec![event(1)]).await.unwrap();
    let claimed = spool.claim(1, Duration::from_secs(60), clock::now()).await.unwrap();
    spool.settle(vec![(claimed[0].seq, Outcome::Dead { reason: "odd".into() })]).await.unwrap();
    site.publish(vec![site.letter(2, "dead", "odd")]).await;
    for arguments in [&["events", "list"][..], &["relay", "--dry-run"]] {
        let output = site.command(arguments).output().unwrap();
        let said = said(&output);
        assert!(output.status.success() && said.contains("mailtap events tail"), "{arguments:?}: {said}");
    }
    let places: Vec<Value> =
        site.listed(&["--reason", "odd"]).iter().map(|line| line["in"].clone()).collect();
    assert_eq!(places, ["spool", "rabbitmq"]);
    assert_eq!(site.run(&["dead", "drop", "--reason", "odd"]), "dropped 2\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_of_rabbitmq_shows_what_passes_and_takes_nothing() {
    let Some(site) = Site::with_broker("tail") else { return };
    site.publish(Vec::new()).await;
    let _forward = Daemon::start(site.command(&["forward"]).stderr(Stdio::null()));
    let mut all = site.tail(&["--json"]);
    let mut opened = site.tail(&["--type", "opened", "--campaign", "c0"]);
    // Nothing says when a tail is there: publish until both have seen something.
    let publishing = {
        let spool = site.spool();
        tokio::spawn(async move {
            for number in 0..400 {
                spool.publish(vec![event(number)]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    };
    let (all, opened) = tokio::task::spawn_blocking(move || {
        let first: Value = serde_json::from_str(&all.line()).unwrap();
        assert_eq!((&first["specversion"], first["data"]["campaign"].is_string()), (&"1.0".into(), true));
        let line = opened.line();
        assert!(line.contains("opened") && line.contains("c0") && !line.contains('\u{1b}'), "{line}");
        (all, opened)
    })
    .await
    .unwrap();
    all.interrupt();
    assert_eq!(all.end(), (Some(0), String::new()));
    let mut opened = opened;
    drop(opened.output.take());
    assert_eq!(opened.end(), (Some(0), String::new()), "nobody reads any more");
    publishing.await.unwrap();
    let work = format!("{}.ga4", site.settings.shape.prefix);
    let until = Instant::now() + Duration::from_secs(30);
    while site.ready(&work).await != 400 {
        assert!(Instant::now() < until, "everything is still there for the relay");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What is no event is shown by its beginning, and only where it is asked for; a time that nobody knows is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_is_no_event_can_be_looked_at() {
    let Some(site) = Site::with_broker("malformed") else { return };
    let mut letter = site.letter(1, "dead", "not an event");
    letter.body = [b"ann@example.org \xff ".as_slice(), &[b'x'; 900]].concat();
    letter.time_s = 0;
    letter.headers.retain(|(name, _)| *name != "x-mailtap-since");
    site.publish(vec![letter]).await;
    let listed = site.run(&["dead", "list"]) + &site.run(&["dead", "list", "--json"]);
    assert!(
        listed.contains("not an event") && !listed.contains("1970") && !listed.contains("ann@"),
        "{listed}"
    );
    let shown: Value = serde_json::from_str(&site.run(&["dead", "show"])).unwrap();
    let body = shown["body"].as_str().unwrap();
    assert!(body.starts_with("ann@example.org \u{fffd} x") && body.chars().count() == 400, "{shown}");
    assert_eq!((&shown["bytes"], &shown["event"]), (&918.into(), &Value::Null));
    assert_eq!(shown["content_type"], "application/cloudevents+json");
    assert!(shown["since"].is_null() && shown["published"].is_null(), "{shown}");
    site.run(&["dead", "drop", "--all"]);
}

/// An event whose every consumer breaks away: the broker itself makes a dead letter of it, and nobody has to find out why.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_handed_out_too_often_becomes_a_dead_letter_with_a_reason() {
    const LIMIT: u32 = 3;
    let Some(mut site) = Site::with_broker("limit") else { return };
    site.settings.shape.delivery_limit = LIMIT;
    let config = site.dir.path().join("mailtap.toml");
    let text = fs::read_to_string(&config).unwrap();
    assert!(text.contains("#delivery_limit = 20"));
    fs::write(&config, text.replace("#delivery_limit = 20", "delivery_limit = 3")).unwrap();
    let prefix = site.settings.shape.prefix.clone();
    let (dead, work) = (format!("{prefix}.ga4.dead"), format!("{prefix}.ga4"));
    site.publish(vec![Message { key: work.clone(), ..Message::of(&event(1), String::new()) }]).await;
    assert_eq!(site.listed(&[]).len(), 0);

    let mut handed_out = 0;
    let until = Instant::now() + Duration::from_secs(60);
    while site.ready(&dead).await == 0 {
        assert!(
            Instant::now() < until && handed_out <= LIMIT,
            "no dead letter after {handed_out} deliveries"
        );
        if site.ready(&work).await == 1 {
            handed_out += site.take_and_break_away(&work).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!((handed_out, site.ready(&work).await), (LIMIT + 1, 0));
    let listed = site.listed(&["--reason", "delivery_limit"]);
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!((&listed[0]["state"], &listed[0]["in"]), (&"dead".into(), &"rabbitmq".into()));
    assert_eq!(listed[0]["event"]["id"], event(1).id.to_string());
    let shown = site.run(&["dead", "list"]);
    assert!(shown.contains("handed out too often: delivery_limit"), "{shown}");
    assert_eq!(site.run(&["dead", "replay", "--all"]), "replayed 1\n");
    assert_eq!((site.ready(&work).await, site.ready(&dead).await), (1, 0));
}

/// Interrupted and killed at any moment, a replay leaves each letter in one of the two queues, or in both under one key.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_interrupted_or_killed_loses_and_doubles_nothing() {
    const LETTERS: u32 = 1_500;
    let Some(site) = Site::with_broker("interrupt") else { return };
    // Any other letter has no key of its own: the event's id says that two are one.
    let letters = (0..LETTERS).map(|number| site.letter(number.into(), "uncertain", "uncertain"));
    site.publish(letters.collect()).await;
    let prefix = &site.settings.shape.prefix;
    let (dead, work) = (format!("{prefix}.ga4.dead"), format!("{prefix}.ga4"));
    for signal in ["-INT", "-KILL", "-TERM"] {
        let before = site.ready(&work).await;
        let mut command = site.command(&["dead", "replay", "--all"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        while site.ready(&work).await < before + 50 && child.try_wait().unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let _ = Command::new("kill").args([signal, &child.id().to_string()]).output();
        let output = child.wait_with_output().unwrap();
        if signal != "-KILL" {
            assert_eq!(output.status.code(), Some(75), "{}", said(&output));
            assert!(said(&output).contains("interrupted; replayed "), "{}", said(&output));
        }
        // The broker notices within moments that a connection was cut.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let left = site.ready(&dead).await;
        assert!(left > 0 && left < LETTERS, "{signal} was in the middle: {left}");
        assert!(left + site.ready(&work).await >= LETTERS);
    }
    run(&mut site.command(&["dead", "replay", "--all"]));
    assert_eq!(site.ready(&dead).await, 0);
    let channel = site.channel().await;
    let (mut ids, mut keys) = (BTreeSet::new(), BTreeSet::new());
    while let Some(got) = channel.basic_get(work.as_str().into(), BasicGetOptions::default()).await.unwrap() {
        let properties = &got.delivery.properties;
        ids.insert(properties.message_id().as_ref().unwrap().to_string());
        let headers = properties.headers().clone().unwrap();
        keys.insert(headers.inner()["x-mailtap-replay"].as_long_string().unwrap().to_string());
    }
    let letters = usize::try_from(LETTERS).unwrap();
    assert_eq!((ids.len(), keys.len()), (letters, letters));
}

impl Site {
    async fn channel(&self) -> lapin::Channel {
        let uri = self.settings.uris[0].expose();
        let connection = lapin::Connection::connect(uri, lapin::ConnectionProperties::default());
        connection.await.unwrap().create_channel().await.unwrap()
    }

    /// Takes a message through a wire that is cut before anything is settled; how many it got.
    async fn take_and_break_away(&self, queue: &str) -> u32 {
        let uri = self.settings.uris[0].expose();
        let (_, broker) = uri.trim_start_matches("amqp://").rsplit_once('@').unwrap();
        let broker = broker.split('/').next().unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = listener.local_addr().unwrap().to_string();
        let uri = uri.replacen(&broker, &wire, 1);
        let cut = tokio::spawn(async move {
            let (mut ours, _) = listener.accept().await.unwrap();
            let mut theirs = TcpStream::connect(broker).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await;
        });
        let connection = lapin::Connection::connect(&uri, lapin::ConnectionProperties::default());
        let connection = connection.await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let got = channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap();
        cut.abort();
        let _ = cut.await;
        u32::from(got.is_some())
    }

    async fn ready(&self, queue: &str) -> u32 {
        let channel = self.channel().await;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare(queue.into(), passive, FieldTable::default());
        queue.await.unwrap().message_count()
    }
}

/// Events without a queue come back again and again, and stay in the spool: the log says it once, and holds none of them; nobody is told that
/// all is well meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_binding_is_told_once_and_is_no_readiness() {
    let Some(mut site) = Site::with_broker("unbound") else { return };
    site.settings.shape.partitions = 2;
    site.publish(Vec::new()).await;
    let prefix = site.settings.shape.prefix.clone();
    let exchange = format!("{prefix}.ga4.by-recipient");
    let works = ["1", "2"].map(|number| (number, format!("{prefix}.ga4.{number}")));
    let [port] = free_ports();
    let config = site.dir.path().join("mailtap.toml");
    let text = fs::read_to_string(&config).unwrap();
    let admin = "#forward = \"127.0.0.1:9745\"";
    let topology = "#topology = \"declare\"";
    let partitions = "#partitions = 1";
    assert!(text.contains(admin) && text.contains(topology) && text.contains(partitions));
    let text =
        text.replace(partitions, "partitions = 2").replace(admin, &format!("forward = \"127.0.0.1:{port}\""));
    fs::write(&config, text.replace(topology, "topology = \"check\"")).unwrap();
    let checked = site.run(&["amqp", "check"]);
    let listed = |number| {
        format!("{exchange} -> {prefix}.ga4.{number} (key \"\", x-match=all, mailtap-partition={number})")
    };
    assert!(checked.contains(&listed("1")) && checked.contains(&listed("2")), "{checked}");

    let channel = site.channel().await;
    // Somebody who watches is bound, and does not count.
    let tail = site.tail(&["--json"]);
    let compared = |number: &str| {
        let mut table = FieldTable::default();
        for (name, value) in [("x-match", "all"), ("mailtap-partition", number)] {
            table.insert(name.into(), AMQPValue::LongString(value.into()));
        }
        table
    };
    for (number, work) in &works {
        let (queue, from) = (work.as_str().into(), exchange.as_str().into());
        channel.queue_unbind(queue, from, "".into(), compared(number)).await.unwrap();
    }
    site.spool().publish((0..50).map(event).collect()).await.unwrap();
    let log = site.dir.path().join("forward.log");
    let _forward = Daemon::start(site.command(&["forward"]).stderr(fs::File::create(&log).unwrap()));
    let get = |path| http(port, "GET", path, &[]).map(|answer| (answer.status, answer.body));
    let text = |path| get(path).map(|(_, body)| String::from_utf8(body).unwrap()).unwrap_or_default();
    let tries = || {
        let metrics = text("/metrics");
        let line = metrics
            .lines()
            .find(|line| line.starts_with("mailtap_forward_refused_total{why=\"unroutable\"}"));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    wait_for("each to come back three times", Duration::from_secs(60), || tries() >= 150);
    let (status, why) = get("/readyz").unwrap();
    let why = String::from_utf8(why).unwrap();
    assert!(
        status == 503 && why.contains(&format!("a work queue is not bound to exchange {exchange}")),
        "{status}: {why}"
    );
    let logged = fs::read_to_string(&log).unwrap();
    assert!(logged.len() < 4_000, "{} bytes: {logged}", logged.len());
    assert_eq!(logged.matches("\"ERROR\"").count(), 1, "{logged}");
    assert!(!logged.contains("returned us") && !logged.contains("115, 112, 101"), "{logged}");

    for (number, work) in &works {
        let (queue, from) = (work.as_str().into(), exchange.as_str().into());
        let options = QueueBindOptions::default();
        channel.queue_bind(queue, from, "".into(), options, compared(number)).await.unwrap();
    }
    wait_for("readiness", Duration::from_secs(60), || {
        get("/readyz").is_some_and(|(status, _)| status == 200)
    });
    assert_eq!(site.ready(&works[0].1).await + site.ready(&works[1].1).await, 50);
    tail.interrupt();
    tail.end();
    let logged = fs::read_to_string(&log).unwrap();
    assert!(logged.contains("gives no events back any more"), "{logged}");
}

/// What is missing, and whose a queue is, is told by its own words: once, and again when it is something else.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topology_and_a_foreign_owner_are_told_once_each() {
    let Some(site) = Site::with_broker("reasons") else { return };
    let [port] = free_ports();
    let config = site.dir.path().join("mailtap.toml");
    let text = fs::read_to_string(&config).unwrap();
    let changes = [
        ("#relay = \"127.0.0.1:9744\"", format!("relay = \"127.0.0.1:{port}\"")),
        ("#topology = \"declare\"", "topology = \"check\"".to_owned()),
        ("#measurement_id = \"\"", "measurement_id = \"G-1\"".to_owned()),
        ("#url = \"https://www.google-analytics.com\"", "url = \"http://127.0.0.1:1\"".to_owned()),
    ];
    let text = changes.iter().fold(text, |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    });
    fs::write(&config, text).unwrap();
    let log = site.dir.path().join("relay.log");
    let _relay = Daemon::start(site.command(&["relay"]).stderr(fs::File::create(&log).unwrap()));
    let text = |path| {
        http(port, "GET", path, &[]).map(|answer| String::from_utf8(answer.body).unwrap()).unwrap_or_default()
    };
    let failures = || {
        let metrics = text("/metrics");
        let line = metrics.lines().find(|line| line.starts_with("mailtap_queue_broker_failures_total "));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    wait_for("three tries", Duration::from_secs(60), || failures() >= 3);
    let why = text("/readyz");
    let prefix = &site.settings.shape.prefix;
    assert!(why.contains("exchanges or queues are not as they should be"), "{why}");
    assert!(
        why.contains(&format!("{prefix}.events, {prefix}.dead, ")) && why.contains("amqp definitions"),
        "{why}"
    );

    // Somebody makes all of it, and another relay takes the queue.
    site.publish(Vec::new()).await;
    let channel = site.channel().await;
    let (body, queue) = (b"other mx2 0".as_slice(), format!("{prefix}.ga4.owner"));
    let published =
        channel.basic_publish("".into(), queue.as_str().into(), Default::default(), body, Default::default());
    published.await.unwrap();
    wait_for("the other owner", Duration::from_secs(60), || text("/readyz").contains("other on mx2"));
    assert!(text("/readyz").contains("--take-over"), "{}", text("/readyz"));
    let before = failures();
    wait_for("three more tries", Duration::from_secs(60), || failures() >= before + 3);
    let logged = fs::read_to_string(&log).unwrap();
    let told =
        |what: &str| logged.lines().filter(|line| line.contains("\"WARN\"") && line.contains(what)).count();
    assert_eq!((told("not as they should be"), told("not this relay's to take")), (1, 1), "{logged}");
    assert!(!logged.contains("\"ERROR\"") && !logged.contains("no connection"), "{logged}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_event_or_not_there_is_said() {
    let site = Site::new(None);
    for arguments in
        [&["spool", "status"][..], &["dead", "list"], &["events", "list"], &["relay", "--dry-run"]]
    {
        let output = site.command(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(69), "{arguments:?}");
        assert!(said(&output).contains("no role has run here yet, or --config is not"), "{}", said(&output));
    }
    let spool = site.spool();
    spool.publish((0..5).map(event).collect()).await.unwrap();
    spool.claim(0, Duration::from_secs(60), clock::now()).await.unwrap();
    let unknown = event(9).id.to_string();
    let shown = site.command(&["dead", "show", &format!("--id={unknown}")]).output().unwrap();
    assert_eq!(shown.status.code(), Some(1));
    assert!(said(&shown).contains("no dead letter is like that"), "{}", said(&shown));

    // What the relay would bury as malformed is shown as that.
    let rows = rusqlite::Connection::open(spool.settings().path()).unwrap();
    let broken = format!("{{\"id\":\"{}\",\"to\":\"ann@example.org\"}}", event(1).id);
    let spoil = |seq: i64, body: &str| {
        rows.execute("UPDATE event SET body = ?1 WHERE seq = ?2", (body, seq)).unwrap()
    };
    assert_eq!((spoil(1, "ann@example.org"), spoil(2, &broken)), (1, 1));
    let dry = site.run(&["relay", "--dry-run"]);
    let lines: Vec<Value> = dry.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let malformed: Vec<&Value> = lines.iter().filter(|line| line["dead"] == "malformed").collect();
    assert_eq!(malformed.len(), 2, "{dry}");
    assert!(malformed[0]["event"].is_null() && malformed[1]["event"] == event(1).id.to_string(), "{dry}");
    assert!(malformed.iter().all(|line| line["why"].is_string()) && !dry.contains('@'), "{dry}");

    let claimed = spool.claim(5, Duration::from_secs(60), clock::now()).await.unwrap();
    let dead = claimed.iter().map(|claimed| (claimed.seq, Outcome::Dead { reason: "odd".into() }));
    spool.settle(dead.collect()).await.unwrap();
    for (max, more) in [("4", true), ("5", false)] {
        let listed = site.command(&["dead", "list", "--json", "--max", max]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&listed.stdout).lines().count().to_string(), max);
        let note = String::from_utf8_lossy(&listed.stderr).contains("--max shows more");
        assert_eq!(note, more, "{}", said(&listed));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_of_the_spool_shows_what_comes_and_says_what_it_missed() {
    let site = Site::new(None);
    assert_eq!(site.command(&["events", "tail"]).output().unwrap().status.code(), Some(69));
    let spool = site.spool();
    spool.publish(vec![event(1)]).await.unwrap();
    let listed = site.command(&["events", "list"]).output().unwrap();
    assert!(!said(&listed).contains("RabbitMQ"), "without one nothing is said of it");
    let mut tail = site.tail(&["--campaign", "c0"]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    spool.publish(vec![event(2), event(3), event(4)]).await.unwrap();
    assert!(tail.line().contains("deferred"));
    assert!(tail.line().contains("expired"), "what was there before, and another campaign's, is not shown");
    for number in 5..9 {
        spool.publish(vec![event(number)]).await.unwrap();
        let claimed = spool.claim(100, Duration::from_secs(60), clock::now()).await.unwrap();
        let seqs: Vec<_> = claimed.iter().map(|claimed| claimed.seq).collect();
        spool.done(&seqs).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    tail.interrupt();
    let (code, said) = tail.end();
    assert_eq!(code, Some(0));
    assert!(said.contains("were sent before they could be shown"), "{said}");

    let mut tail = site.tail(&[]);
    tokio::time::sleep(Duration::from_millis(500)).await;
    drop(tail.output.take());
    assert_eq!(tail.end(), (Some(0), String::new()), "nobody reads, though nothing comes");
}
