#![allow(clippy::unwrap_used)]

use std::path::Path;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;

struct Site {
    base: String,
    directory: tempfile::TempDir,
    life: Lifecycle,
    running: JoinHandle<Result<(), CollectorError>>,
    client: reqwest::Client,
}

impl Site {
    async fn new(fault: &str, record: Option<&Path>) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings {
            listen: ([127, 0, 0, 1], 0).into(),
            record: Some(record.map_or_else(|| directory.path().join("record.jsonl"), Path::to_owned)),
            fault: fault.parse().unwrap(),
            behaviour: Behaviour::Relaxed,
            tls: None,
        };
        let life = Lifecycle::detached();
        let (ready, address) = oneshot::channel();
        let running = tokio::spawn(run(settings, life.clone(), |address| {
            let _ = ready.send(address);
        }));
        let base = format!("http://{}", address.await.unwrap());
        let client = reqwest::Client::builder().timeout(Duration::from_millis(800)).build().unwrap();
        Self { base, directory, life, running, client }
    }

    async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Option<(u16, String)> {
        let answer = self.client.post(format!("{}{path}", self.base)).body(body).send().await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    }

    async fn json(&self, path: &str) -> Value {
        let answer = self.client.get(format!("{}{path}", self.base)).send().await.unwrap();
        serde_json::from_str(&answer.text().await.unwrap()).unwrap()
    }

    fn record(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("record.jsonl")).unwrap()
    }
}

const COLLECT: &str = "/mp/collect?measurement_id=G-TEST&api_secret=SECRET-MARKER";

fn request(id: &str) -> String {
    let event = json!({ "name": "email_open", "params": { "event_id": id, "campaign_id": "spring" } });
    json!({ "client_id": "1.2", "events": [event] }).to_string()
}

#[tokio::test]
async fn everything_is_answered_with_204_and_judged() {
    let site = Site::new("none", None).await;
    let large = vec![b' '; MAX_BODY_BYTES + 1];
    for (path, body) in [
        (COLLECT, request("a").into_bytes()),
        (COLLECT, request("b").into_bytes()),
        (COLLECT, request("a").into_bytes()),
        ("/mp/collect", b"{".to_vec()),
        ("/mp/collect?measurement_id=1&measurement_id=2&%zz=&&=", vec![b' '; 200_000]),
        (
            COLLECT,
            br#"{"client_id":"1.2","events":[{"name":"e","params":{"p":"ann@example.org"}}]}"#.to_vec(),
        ),
    ] {
        assert_eq!(site.post(path, body).await, Some((204, String::new())), "{path}");
    }
    // Whether the client sees the answer depends on when it stops writing.
    let _ = site.post(COLLECT, large).await;
    let summary = site.json("/collector/summary").await;
    let of = |key: &str| summary[key].as_u64().unwrap();
    assert_eq!((of("requests"), of("processed"), of("modified"), of("dropped")), (7, 4, 0, 3));
    assert_eq!((of("duplicates"), of("addresses"), of("faults")), (1, 1, 0));
    assert_eq!((&summary["events"]["email_open"], &summary["events"]["e"]), (&json!(3), &json!(1)));
    let events = site.json("/collector/events").await;
    let events = events["events"].as_array().unwrap();
    assert_eq!(events.len(), 4);
    assert_eq!((&events[0]["name"], &events[0]["client_id"]), (&json!("email_open"), &json!("1.2")));
    assert_eq!(events[0]["params"]["event_id"], "a");
    let record = site.record();
    assert_eq!(record.lines().count(), 7);
    assert!(!record.contains("SECRET-MARKER") && record.contains("\"has_api_secret\":true"));
    assert_eq!(report::report(&record).duplicates, 1);
}

#[tokio::test]
async fn the_debug_endpoint_explains_and_collects_nothing() {
    let site = Site::new("500", None).await;
    let say = async |body: Value| {
        let (status, text) = site.post("/debug/mp/collect", body.to_string()).await.unwrap();
        assert_eq!(status, 200);
        serde_json::from_str::<Value>(&text).unwrap()["validationMessages"].clone()
    };
    assert_eq!(say(json!({ "client_id": "1.2", "events": [{ "name": "e" }] })).await, json!([]));
    let messages = say(json!({ "client_id": "1.2", "events": [{ "name": "_badEventName" }] })).await;
    assert_eq!(
        (&messages[0]["validationCode"], &messages[0]["fieldPath"]),
        (&json!("NAME_INVALID"), &json!("events"))
    );
    let long = json!([{ "name": "e", "params": { "p": "x".repeat(101) } }]);
    assert_eq!(say(json!({ "client_id": "1.2", "events": long })).await, json!([]));
    let behaviour = "ENFORCE_RECOMMENDATIONS";
    let enforced = say(json!({ "client_id": "1.2", "events": long, "validation_behavior": behaviour })).await;
    assert_eq!(enforced[0]["validationCode"], "VALUE_OUT_OF_BOUNDS");
    let summary = site.json("/collector/summary").await;
    assert_eq!(
        (&summary["debug_requests"], &summary["processed"], &summary["requests"]),
        (&json!(4), &json!(0), &json!(0))
    );
    assert_eq!(report::report(&site.record()).rows, []);
}

#[tokio::test]
async fn each_fault_is_played_and_can_be_changed() {
    let site = Site::new("none", None).await;
    let kept = async || site.json("/collector/summary").await["processed"].as_u64().unwrap();
    let mut expected = 0;
    for (mode, status, keeps) in [
        ("500", Some(500), false),
        ("503", Some(503), false),
        ("4xx", Some(400), false),
        ("hang-before", None, false),
        ("hang-after", None, true),
        ("reset", None, true),
        ("none", Some(204), true),
    ] {
        assert_eq!(site.post("/collector/fail", mode).await.unwrap().0, 204);
        assert_eq!(site.post(COLLECT, request(mode)).await.map(|answer| answer.0), status, "{mode}");
        expected += u64::from(keeps);
        assert_eq!(kept().await, expected, "{mode}");
    }
    assert_eq!(site.post("/collector/fail", "boom").await.unwrap().0, 400);
    site.post("/collector/fail", "503:every=2").await.unwrap();
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(site.post(COLLECT, request("x")).await.unwrap().0);
    }
    answers.sort_unstable();
    assert_eq!(answers, [204, 204, 503, 503]);
}

#[tokio::test]
async fn a_slow_answer_comes_after_the_request_is_kept() {
    let site = Site::new("slow", None).await;
    let client = reqwest::Client::new();
    let started = std::time::Instant::now();
    let answer = client.post(format!("{}{COLLECT}", site.base)).body(request("a")).send().await.unwrap();
    assert_eq!(answer.status(), 204);
    assert!(started.elapsed() >= SLOW);
}

/// The sender went away in the middle of its body: nothing was sent that GA4 could count or lose.
#[tokio::test]
async fn half_a_request_counts_as_nothing() {
    let site = Site::new("none", None).await;
    let mut stream = TcpStream::connect(site.base.trim_start_matches("http://")).await.unwrap();
    stream
        .write_all(b"POST /mp/collect HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"client")
        .await
        .unwrap();
    drop(stream);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let summary = site.json("/collector/summary").await;
    assert_eq!((&summary["requests"], &summary["dropped"]), (&json!(1), &json!(0)));
}

#[tokio::test]
async fn a_record_that_cannot_be_written_ends_the_collector() {
    let site = Site::new("none", Some(Path::new("/dev/full"))).await;
    assert_eq!(site.post(COLLECT, request("a")).await.unwrap().0, 507);
    let ended = tokio::time::timeout(Duration::from_secs(5), site.running).await.unwrap();
    assert!(matches!(ended.unwrap(), Err(CollectorError::Record { .. })));
    assert!(!site.life.stop.is_cancelled(), "the process decides");
}
