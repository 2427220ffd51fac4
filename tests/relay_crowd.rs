//! Thousands of clients, a request for each, over a few HTTP/2 connections to a collector that speaks TLS. Real processes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::{Daemon, free_ports, mailtap, run, wait_for};
use mailtap::event::{Data, Event, EventId, Kind};
use mailtap::identity::{MessageId, PseudonymKey};
use mailtap::queue::Publish;
use mailtap::queue::spool::{self, Admin, Spool};
use mailtap::service::clock;
use serde_json::Value;

const CLIENTS: u32 = 3_000;
const IN_FLIGHT: u64 = 1_000;
/// As many as the collector takes of one connection.
const STREAMS: u64 = 100;

fn event(number: u32) -> Event {
    let now = clock::now();
    let recipient = PseudonymKey::new(&[5; 32]).pseudonym(&number.to_string());
    Event {
        id: EventId::of("crowd").part(number.to_be_bytes()).finish(),
        source: "mailtap/test/host".into(),
        kind: Kind::Delivered,
        time: now.minus(Duration::from_secs(60)),
        message: MessageId::new(now, number),
        data: Data { recipient: Some(recipient), ..Data::default() },
    }
}

/// A certificate for localhost that is its own authority.
fn certificate(dir: &Path) {
    let mut openssl = Command::new("openssl");
    openssl.current_dir(dir).args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
    ]);
    openssl.args([
        "-nodes",
        "-days",
        "2",
        "-keyout",
        "server.key",
        "-out",
        "server.pem",
        "-subj",
        "/CN=test",
    ]);
    openssl.args([
        "-addext",
        "subjectAltName=DNS:localhost",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    ]);
    run(&mut openssl);
}

#[test]
fn three_thousand_clients_share_a_few_connections() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let [port] = free_ports::<1>();
    certificate(dir.path());
    fs::write(file("secret"), "test-secret\n").unwrap();
    fs::create_dir(file("state")).unwrap();
    let mut init = mailtap();
    init.args([
        "init",
        "--domain",
        "shop.example",
        "--tracking-url",
        "https://t.shop.example",
        "--ga4",
        "G-CROWD",
    ]);
    init.args(["--ga4-url", &format!("https://localhost:{port}"), "--ga4-secret-file"]).arg(file("secret"));
    run(init.arg("--state-dir").arg(file("state")).arg("--dir").arg(file("etc")));
    let config = file("etc").join("mailtap.toml");
    let mut text = fs::read_to_string(&config).unwrap();
    for (from, to) in [
        ("#max_in_flight = 256", format!("max_in_flight = {IN_FLIGHT}")),
        ("#streams_per_connection = 100", format!("streams_per_connection = {STREAMS}")),
        ("#relay = \"127.0.0.1:9744\"", "relay = \"\"".to_owned()),
    ] {
        assert!(text.contains(from), "{from}");
        text = text.replacen(from, &to, 1);
    }
    fs::write(&config, text).unwrap();
    let directory = file("state").join("spool");
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let settings = spool::Settings { directory: directory.clone(), ..spool::Settings::default() };
        Spool::open(settings).unwrap().publish((0..CLIENTS).map(event).collect()).await.unwrap();
    });

    let log = fs::File::create(file("log")).unwrap();
    let mut collector = mailtap();
    collector
        .args(["collector", "--listen", &format!("127.0.0.1:{port}"), "--record"])
        .arg(file("record.jsonl"));
    collector.arg("--tls-cert").arg(file("server.pem")).arg("--tls-key").arg(file("server.key"));
    let _collector =
        Daemon::start(collector.stdout(log.try_clone().unwrap()).stderr(log.try_clone().unwrap()));
    let mut relay = mailtap();
    relay.env("SSL_CERT_FILE", file("server.pem")).arg("--config").arg(&config).arg("relay");
    let _relay = Daemon::start(relay.stdout(log.try_clone().unwrap()).stderr(log));
    wait_for("an empty spool", Duration::from_secs(120), || {
        let status = Admin::open(&directory).unwrap().status().unwrap();
        assert_eq!((status.dead, status.uncertain), (0, 0), "{}", fs::read_to_string(file("log")).unwrap());
        status.pending == 0 && status.claimed == 0
    });

    let mut curl = Command::new("curl");
    curl.args(["-sS", "--cacert"]).arg(file("server.pem"));
    let summary = run(curl.arg(format!("https://localhost:{port}/collector/summary")));
    let summary: Value = serde_json::from_str(&summary).unwrap();
    let record = fs::read_to_string(file("record.jsonl")).unwrap();
    let clients: BTreeSet<&str> =
        record.split("client_id").skip(1).filter_map(|rest| rest.get(..40)).collect();
    assert_eq!(clients.len(), CLIENTS as usize, "{summary}");
    assert!(summary["requests"].as_u64().unwrap() >= u64::from(CLIENTS), "{summary}");
    // One more is curl's.
    let connections = summary["connections"].as_u64().unwrap() - 1;
    assert!((2..=IN_FLIGHT / STREAMS).contains(&connections), "HTTP/2 shares connections: {summary}");
    eprintln!("{CLIENTS} clients over {connections} connections");
}
