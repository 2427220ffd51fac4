#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::settle::Settler;
use super::*;
use crate::event::{EventId, Kind};
use crate::queue::Publish;
use crate::queue::dedupe::Known;
use crate::queue::source::{
    BoxFuture, Delivery, Settle, Settlement, SourceError, SpoolSource, Tag, Unsettled,
};
use crate::queue::spool::{self, Admin, Spool, Status};
use crate::queue::testing;
use crate::service::clock;
use crate::service::secret::Secret;

/// What the receiver does with a request, after it has read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Status(u16),
    Close,
    Never,
}

/// A receiver that counts, by event id, what it said 204 to or left without an answer.
#[derive(Debug, Clone)]
struct Receiver {
    base_url: String,
    answer: Arc<Mutex<Answer>>,
    got: Arc<Mutex<BTreeMap<String, usize>>>,
    requests: Arc<Mutex<usize>>,
}

impl Receiver {
    async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Self {
            base_url: format!("http://{}", listener.local_addr().unwrap()),
            answer: Arc::new(Mutex::new(answer)),
            got: Arc::default(),
            requests: Arc::default(),
        };
        let serving = receiver.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        receiver
    }

    async fn serve(self, mut stream: TcpStream) {
        let mut read = Vec::new();
        loop {
            let mut buffer = [0; 16_384];
            let Ok(count @ 1..) = stream.read(&mut buffer).await else { return };
            read.extend_from_slice(&buffer[..count]);
            let text = String::from_utf8_lossy(&read).into_owned();
            let Some((_, body)) = text.split_once("\r\n\r\n") else { continue };
            let Ok(body) = serde_json::from_str::<Value>(body) else { continue };
            read.clear();
            let answer = *self.answer.lock().unwrap();
            *self.requests.lock().unwrap() += 1;
            if !matches!(answer, Answer::Status(300..)) {
                for event in body["events"].as_array().unwrap() {
                    let id = event["params"]["event_id"].as_str().unwrap().to_owned();
                    *self.got.lock().unwrap().entry(id).or_default() += 1;
                }
            }
            match answer {
                Answer::Status(status) => {
                    let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
                Answer::Close => return,
                Answer::Never => std::future::pending::<()>().await,
            }
        }
    }

    fn counts(&self) -> (usize, usize) {
        let got = self.got.lock().unwrap();
        (got.len(), got.values().sum())
    }
}

/// A source that gives its first deliveries several times, or does not settle when told.
#[derive(Debug)]
struct Odd {
    spool: SpoolSource,
    copies: usize,
    replays: bool,
    suspects: bool,
    refuses: Arc<Mutex<Refuses>>,
}

impl Source for Odd {
    fn next(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, SourceError>> {
        Box::pin(async move {
            let mut first = self.spool.next(max).await?;
            for delivery in first.iter_mut().filter(|_| self.replays) {
                delivery.replay = Some(EventId::of("replay").part(delivery.event.id.as_bytes()).finish());
            }
            first.iter_mut().for_each(|delivery| delivery.suspect = self.suspects);
            Ok(std::iter::repeat_n(first, std::mem::replace(&mut self.copies, 1)).flatten().collect())
        })
    }

    fn tend(&mut self) -> BoxFuture<'_, ()> {
        let refuses = self.refuses.clone();
        Box::pin(async move {
            {
                let mut refuses = refuses.lock().unwrap();
                if *refuses == Refuses::UntilTended {
                    *refuses = Refuses::Nothing;
                }
            }
            std::future::pending().await
        })
    }

    fn settler(&self) -> Arc<dyn Settle> {
        let (spool, refuses) = (self.spool.settler(), self.refuses.clone());
        Arc::new(OddSettler { spool, refuses })
    }

    fn is_full(&self) -> bool {
        self.spool.is_full()
    }
}

/// Refuses to settle, or takes long for it.
#[derive(Debug)]
struct OddSettler {
    spool: Arc<dyn Settle>,
    refuses: Arc<Mutex<Refuses>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refuses {
    Nothing,
    Everything,
    /// All but what is done.
    Others,
    /// All but what is done, until somebody sees to the source.
    UntilTended,
    /// Takes so long for all but what is done.
    Stalls(Duration),
}

impl Settle for OddSettler {
    fn settle(&self, outcomes: Vec<(Tag, Settlement)>) -> BoxFuture<'_, Unsettled> {
        Box::pin(async move {
            let refuses = *self.refuses.lock().unwrap();
            let (refused, taken): (Vec<_>, Vec<_>) =
                outcomes.into_iter().partition(|(_, what)| match refuses {
                    Refuses::Nothing | Refuses::Stalls(_) => false,
                    Refuses::Everything => true,
                    Refuses::Others | Refuses::UntilTended => *what != Settlement::Done,
                });
            if let Refuses::Stalls(time) = refuses {
                tokio::time::sleep(time).await;
            }
            let mut unsettled = self.spool.settle(taken).await;
            unsettled.extend(refused.into_iter().map(|(tag, _)| (tag, SourceError::Broker("away".into()))));
            unsettled
        })
    }
}

struct Site {
    directory: tempfile::TempDir,
    receiver: Receiver,
    /// Of the property for `shop.example`, if there is one.
    other: Option<Receiver>,
    life: Lifecycle,
    refuses: Arc<Mutex<Refuses>>,
    copies: usize,
    replays: bool,
    suspects: bool,
    in_flight: usize,
    per_property: usize,
    per_property_hour: u64,
    retry_uncertain: bool,
    mapping: Mapping,
}

impl Site {
    async fn new(answer: Answer) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            directory: tempfile::tempdir().unwrap(),
            receiver: Receiver::start(answer).await,
            other: None,
            life: Lifecycle::detached(),
            refuses: Arc::new(Mutex::new(Refuses::Nothing)),
            copies: 1,
            replays: false,
            suspects: false,
            in_flight: 4,
            per_property: 0,
            per_property_hour: 0,
            retry_uncertain: false,
            mapping: Mapping::default(),
        }
    }

    fn spool(&self) -> Spool {
        let directory = self.directory.path().join("spool");
        Spool::open(spool::Settings { directory, ..spool::Settings::default() }).unwrap()
    }

    fn settings(&self) -> Settings {
        let property = |id: &str, domains: &[String], base_url: &str| Property {
            takes: Takes { domains: domains.to_owned(), ..Takes::default() },
            measurement_id: id.into(),
            api_secret: Some(Secret::new("SECRET-MARKER".into())),
            base_url: base_url.into(),
            path: "/mp/collect".into(),
            preview: None,
        };
        let mut properties = vec![property("G-TEST", &[], &self.receiver.base_url)];
        properties.extend(
            self.other.iter().map(|other| property("G-SHOP", &["shop.example".into()], &other.base_url)),
        );
        Settings {
            properties,
            max_in_flight: self.in_flight,
            per_property: self.per_property,
            per_property_hour: self.per_property_hour,
            streams: 100,
            h2c: false,
            batch_window: Duration::from_millis(20),
            timeout: Duration::from_millis(400),
            retry_uncertain: self.retry_uncertain,
        }
    }

    /// A new life of the relay over the same spool and memory.
    fn relay(&mut self) -> JoinHandle<Result<(), SenderError>> {
        self.life = Lifecycle::detached();
        let source = Odd {
            spool: SpoolSource::new(self.spool(), 10_000, self.life.stop.clone()),
            copies: self.copies,
            replays: self.replays,
            suspects: self.suspects,
            refuses: self.refuses.clone(),
        };
        let dedupe = Dedupe::open(&self.directory.path().join("relay")).unwrap();
        let (settings, mapping) = (self.settings(), self.mapping.clone());
        tokio::spawn(run_with(settings, mapping, Box::new(source), dedupe, self.life.clone()))
    }

    fn status(&self) -> Status {
        Admin::open(&self.directory.path().join("spool")).unwrap().status().unwrap()
    }

    async fn until(&self, what: impl Fn(&Status) -> bool) -> Status {
        for _ in 0..1_200 {
            let status = self.status();
            if what(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{:?}", self.status());
    }
}

fn event(number: u64) -> Event {
    Event { time: clock::now().minus(Duration::from_secs(60)), ..testing::event(number) }
}

fn nothing_waits(status: &Status) -> bool {
    status.pending == 0 && status.claimed == 0
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_an_event_go_out_once() {
    let mut site = Site { copies: 3, ..Site::new(Answer::Status(204)).await };
    site.spool().publish((0..40).map(event).collect()).await.unwrap();
    let relay = site.relay();
    site.until(nothing_waits).await;
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!(site.receiver.counts(), (40, 40));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_and_never_settled_is_not_sent_by_the_next_life() {
    let mut site = Site::new(Answer::Status(204)).await;
    site.spool().publish((0..40).map(event).collect()).await.unwrap();
    *site.refuses.lock().unwrap() = Refuses::Everything;
    let relay = site.relay();
    while site.receiver.counts().0 < 40 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    relay.abort();
    let _ = relay.await;
    *site.refuses.lock().unwrap() = Refuses::Nothing;
    let relay = site.relay();
    let status = site.until(nothing_waits).await;
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!(site.receiver.counts(), (40, 40));
    assert_eq!((status.dead, status.uncertain), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_property_has_no_more_requests_under_way_than_it_may() {
    let mut site = Site { per_property: 1, ..Site::new(Answer::Status(204)).await };
    site.spool().publish(vec![event(1)]).await.unwrap();
    let relay = site.relay();
    site.until(nothing_waits).await;
    *site.receiver.answer.lock().unwrap() = Answer::Never;
    site.spool().publish((2..30).map(event).collect()).await.unwrap();
    while *site.receiver.requests.lock().unwrap() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(*site.receiver.requests.lock().unwrap(), 2);
    *site.receiver.answer.lock().unwrap() = Answer::Status(204);
    site.until(nothing_waits).await;
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
}

/// The other evil: what may have arrived is sent again, over a kill too, so it may count twice and is never lost.
#[tokio::test(flavor = "multi_thread")]
async fn with_retry_what_may_have_arrived_is_sent_again() {
    let mut site = Site { retry_uncertain: true, ..Site::new(Answer::Close).await };
    site.spool().publish(vec![event(1)]).await.unwrap();
    let relay = site.relay();
    while *site.receiver.requests.lock().unwrap() == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    *site.receiver.answer.lock().unwrap() = Answer::Never;
    site.until(|status| status.pending == 1).await;
    while *site.receiver.requests.lock().unwrap() == 1 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    relay.abort();
    let _ = relay.await;
    *site.receiver.answer.lock().unwrap() = Answer::Status(204);
    let relay = site.relay();
    let status = site.until(nothing_waits).await;
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!((status.uncertain, status.dead), (0, 0));
    let (events, times) = site.receiver.counts();
    assert!(events == 1 && times >= 3, "{times}");
}

/// What another relay had in hand is set aside, but for what this one knows was sent.
#[tokio::test(flavor = "multi_thread")]
async fn what_another_relay_had_in_hand_is_uncertain() {
    let mut site = Site { suspects: true, ..Site::new(Answer::Status(204)).await };
    let dedupe = Dedupe::open(&site.directory.path().join("relay")).unwrap();
    dedupe.remember(&[event(1).id], clock::now()).await.unwrap();
    drop(dedupe);
    site.spool().publish((0..10).map(event).collect()).await.unwrap();
    let relay = site.relay();
    let status = site.until(nothing_waits).await;
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!((site.receiver.counts(), status.uncertain), ((0, 0), 9));
    // Should the source hand out one of them again: its letter is written.
    let dedupe = Dedupe::open(&site.directory.path().join("relay")).unwrap();
    let ids: Vec<EventId> = (0..10).map(|number| event(number).id).collect();
    assert_eq!(dedupe.look(&ids).await.unwrap(), [Known::Sent; 10]);
}

/// While the source takes its time, answers are read all the same: none of them turns a request into an uncertain one.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_stalls_makes_nothing_uncertain() {
    let mut site = Site::new(Answer::Status(204)).await;
    *site.refuses.lock().unwrap() = Refuses::Stalls(Duration::from_secs(2));
    site.spool().publish((0..200).map(event).collect()).await.unwrap();
    let relay = site.relay();
    let status = site.until(nothing_waits).await;
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!((site.receiver.counts(), status.uncertain), ((200, 200), 0));
}

/// What the source refuses keeps nothing else in memory, and no more is taken before it is through.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_told_again_alone_and_pauses_the_taking() {
    let mut site = Site::new(Answer::Status(400)).await;
    *site.refuses.lock().unwrap() = Refuses::Others;
    site.spool().publish(vec![event(1)]).await.unwrap();
    let relay = site.relay();
    while *site.receiver.requests.lock().unwrap() == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    *site.receiver.answer.lock().unwrap() = Answer::Status(204);
    site.spool().publish((2..30).map(event).collect()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((site.receiver.counts().0, site.status().claimed), (0, 1), "nothing more is taken");
    *site.refuses.lock().unwrap() = Refuses::Nothing;
    let status = site.until(nothing_waits).await;
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!((site.receiver.counts(), status.dead), ((28, 28), 1));
}

/// As with a connection that broke under a settlement: nobody takes anything before it is made again.
#[tokio::test(flavor = "multi_thread")]
async fn while_nothing_is_taken_somebody_sees_to_the_source() {
    let mut site = Site::new(Answer::Close).await;
    *site.refuses.lock().unwrap() = Refuses::UntilTended;
    site.spool().publish(vec![event(1)]).await.unwrap();
    let relay = site.relay();
    let status = site.until(nothing_waits).await;
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!(status.uncertain, 1);
}

/// Killed between the missing answer and the settlement: the event is still listed as uncertain, not taken for sent.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_uncertain_and_never_settled_is_uncertain_in_the_next_life() {
    let mut site = Site::new(Answer::Never).await;
    site.spool().publish(vec![event(1)]).await.unwrap();
    *site.refuses.lock().unwrap() = Refuses::Everything;
    let relay = site.relay();
    while site.receiver.counts().0 < 1 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    relay.abort();
    let _ = relay.await;
    *site.refuses.lock().unwrap() = Refuses::Nothing;
    *site.receiver.answer.lock().unwrap() = Answer::Status(204);
    let relay = site.relay();
    let status = site.until(nothing_waits).await;
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!((site.receiver.counts(), status.uncertain), ((1, 1), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_makes_few_events_uncertain_and_shows_in_health() {
    let mut site = Site::new(Answer::Never).await;
    // Each event is of a client of its own, so a request of its own.
    site.spool().publish((0..200).map(event).collect()).await.unwrap();
    let relay = site.relay();
    tokio::time::sleep(Duration::from_secs(4)).await;
    let troubles = site.life.health.troubles();
    assert!(troubles.iter().any(|(_, why)| why.contains("GA4")), "{troubles:?}");
    let tried = *site.receiver.requests.lock().unwrap();
    assert!(tried <= site.in_flight + 5, "{tried} requests hung");
    *site.receiver.answer.lock().unwrap() = Answer::Status(204);
    let status = site.until(nothing_waits).await;
    assert_eq!(site.life.health.troubles(), []);
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!(site.receiver.counts(), (200, 200), "those that hung arrived too, and were not sent again");
    assert_eq!(
        usize::try_from(status.uncertain).unwrap(),
        *site.receiver.requests.lock().unwrap() - (200 - tried)
    );
}

/// Whatever is wrong with one property, the other one's events go out at once, and its own wait in the queue.
#[tokio::test(flavor = "multi_thread")]
async fn a_property_that_is_broken_pauses_no_other_one() {
    for broken in [Answer::Status(503), Answer::Never] {
        let mut site = Site::new(Answer::Status(204)).await;
        site.other = Some(Receiver::start(broken).await);
        let of_shop = |number| {
            let mut event = event(number);
            event.data.sender_domain = Some("shop.example".into());
            event
        };
        site.spool().publish((0..300).map(of_shop).collect()).await.unwrap();
        site.spool().publish((300..600).map(event).collect()).await.unwrap();
        let relay = site.relay();
        for _ in 0..60 {
            if site.receiver.counts().0 == 300 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(site.receiver.counts(), (300, 300), "{broken:?}");
        let status = site.until(|status| status.claimed <= 1).await;
        assert!(status.pending > 250, "{status:?}");
        let troubles = site.life.health.troubles();
        assert!(troubles.iter().any(|(_, why)| why.starts_with("G-SHOP: ")), "{troubles:?}");
        site.spool().publish((600..640).map(event).collect()).await.unwrap();
        for _ in 0..30 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if site.receiver.counts().0 == 340 {
                break;
            }
        }
        assert_eq!(site.receiver.counts(), (340, 340), "what comes during the trouble too");
        let other = site.other.clone().unwrap();
        *other.answer.lock().unwrap() = Answer::Status(204);
        let status = site.until(nothing_waits).await;
        assert_eq!(site.life.health.troubles(), []);
        site.life.stop.cancel();
        relay.await.unwrap().unwrap();
        let (events, times) = other.counts();
        assert_eq!((events, times), (300, 300), "each once; those that hung had arrived: {status:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_uncertain_a_5xx_is_not() {
    let mut site = Site::new(Answer::Close).await;
    site.spool().publish(vec![event(1)]).await.unwrap();
    let relay = site.relay();
    assert_eq!(site.until(nothing_waits).await.uncertain, 1);
    *site.receiver.answer.lock().unwrap() = Answer::Status(503);
    site.spool().publish(vec![event(2)]).await.unwrap();
    site.until(|status| status.pending == 1).await;
    *site.receiver.answer.lock().unwrap() = Answer::Status(204);
    let status = site.until(nothing_waits).await;
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!((site.receiver.counts(), status.uncertain), ((2, 2), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_switched_off_is_done_without_being_sent() {
    let mut site = Site::new(Answer::Status(204)).await;
    site.mapping.switch_off(Kind::Delivered);
    site.spool().publish((0..16).map(event).collect()).await.unwrap();
    let relay = site.relay();
    let status = site.until(nothing_waits).await;
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!((site.receiver.counts(), status.dead), ((14, 14), 0));
}

/// As RabbitMQ delivers replays: what is remembered of the event does not count, what is remembered of the replay does.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_goes_out_once_whatever_is_known_of_its_event() {
    let mut site = Site::new(Answer::Close).await;
    site.spool().publish(vec![event(1)]).await.unwrap();
    let replay = |site: &Site| {
        let mut admin = Admin::open(&site.directory.path().join("spool")).unwrap();
        admin.replay(&spool::Filter::default(), clock::now()).unwrap()
    };
    let mut arrived = Vec::new();
    for (replays, copies) in [(false, 1), (true, 3), (true, 3)] {
        (site.replays, site.copies) = (replays, copies);
        let relay = site.relay();
        site.until(nothing_waits).await;
        site.life.stop.cancel();
        relay.await.unwrap().unwrap();
        arrived.push(site.receiver.counts().1);
        replay(&site);
    }
    assert_eq!(arrived, [1, 2, 2], "the same replay again is a duplicate, as the same event is");
}

#[tokio::test]
async fn what_grows_too_old_while_it_waits_is_not_sent() {
    let now = clock::now();
    let site = Site::new(Answer::Status(204)).await;
    let limit = Duration::from_secs(71 * 3_600);
    let mut events: Vec<Event> = (0..3).map(event).collect();
    for (event, age) in events.iter_mut().zip([limit, limit / 2, limit]) {
        event.time = now.minus(age).plus(Duration::from_secs(5));
        event.data.recipient = Some([1; 12].into());
    }
    site.spool().publish(events.clone()).await.unwrap();
    let mut source = SpoolSource::new(site.spool(), 10, site.life.stop.clone());
    let deliveries = source.next(10).await.unwrap();
    let settings = site.settings();
    let dedupe = Arc::new(Dedupe::open(&site.directory.path().join("relay")).unwrap());
    let relay = Relay {
        sender: Sender::new(&settings.properties, settings.travel()).unwrap(),
        settings,
        mapping: Mapping::default(),
        dedupe: dedupe.clone(),
    };
    let mut settler = Settler::new(source.settler(), dedupe);
    let (mut requests, settled) = relay.prepare(deliveries, &mut settler).await;
    assert_eq!((requests.len(), settled.len()), (1, 0));
    let request = requests.remove(0);
    let (all, expired) = work::fresh(request.clone(), now);
    assert_eq!((all.as_ref(), expired.len()), (Some(&request), 0));
    let (left, expired) = work::fresh(request.clone(), now.plus(Duration::from_secs(10)));
    let left = left.unwrap();
    let body: Value = serde_json::from_str(&left.body()).unwrap();
    assert_eq!((left.tags.len(), body["events"].as_array().unwrap().len()), (1, 1));
    assert_eq!(body["events"][0]["params"]["event_id"], json!(events[1].id.to_string()));
    assert!(expired.iter().all(|settled| settled.what == Settlement::Dead { reason: "expired".into() }));
    assert_eq!(work::fresh(request, now.plus(limit)).0, None);
}

#[test]
fn a_dry_run_shows_requests_without_the_secret_and_what_is_dead() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let site = runtime.block_on(Site::new(Answer::Status(204)));
    let mut mapping = Mapping::default();
    mapping.rename_event(Kind::Opened, "newsletter_read").unwrap();
    let mut opened = event(1);
    (opened.kind, opened.data.link_path) = (Kind::Opened, Some("/a@b".into()));
    let old = Event { time: clock::now().minus(Duration::from_secs(80 * 3_600)), ..event(2) };
    mapping.switch_off(Kind::Expired);
    let off = Event { kind: Kind::Expired, ..event(3) };
    let lines = dry_run(&site.settings(), &mapping, &[opened, old, off], clock::now()).unwrap();
    let lines: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[3]["off"], true);
    assert_eq!(lines[0]["body"]["events"][0]["name"], "newsletter_read");
    assert!(lines[0]["url"].as_str().unwrap().ends_with("/mp/collect?measurement_id=G-TEST"));
    assert_eq!((&lines[1]["repair"], &lines[2]["dead"]), (&json!("address"), &json!("expired")));
    assert!(lines.iter().all(|line| !line.to_string().contains("MARKER")));
    assert!(site.receiver.requests.lock().unwrap().eq(&0));
}
