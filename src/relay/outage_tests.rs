//! An hour without GA4, under a load that goes on, in simulated time.
//!
//! Tokio's clock is paused and moves on with ours, in steps; between two steps everything that is ready runs, sockets and
//! databases included. The test never waits by itself: then Tokio would skip to the next timer. The load is 50 events a second, 180,000 in the
//! hour, of 1,000 clients, with the default prefetch; with `MAILTAP_TEST_LONG=1` 200 a second.
#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

use super::testing::{next_body, property, say, settings};
use super::*;
use crate::event::EventId;
use crate::queue::Publish;
use crate::queue::source::{
    BoxFuture, Delivery, Settle, Settlement, Source, SourceError, SpoolSource, Tag, Unsettled,
};
use crate::queue::spool::{self, Admin, Spool};
use crate::queue::testing;
use crate::service::clock::{self, simulated};

const STEP: Duration = Duration::from_millis(100);
const MINUTE: Duration = Duration::from_secs(60);
/// How often events are published, of so many clients.
const LOAD_EVERY: Duration = Duration::from_secs(10);
const CLIENTS: u64 = 1_000;
const IN_FLIGHT: usize = 64;
const MAX_HELD: usize = 2_000;
/// Those of RabbitMQ by default.
const TIERS: [Duration; 3] = [Duration::from_secs(10), MINUTE, Duration::from_secs(600)];
const MAX_ROWS: u64 = 1_000_000;
const MAX_BYTES: u64 = 1024 * 1024 * 1024;

/// So many events are published each time.
fn load_at_once() -> u64 {
    let long = std::env::var_os("MAILTAP_TEST_LONG").is_some_and(|value| value == "1");
    if long { 2_000 } else { 500 }
}

thread_local! {
    /// What threads of their own get of real time in a step.
    static REST: Cell<Duration> = const { Cell::new(Duration::from_micros(100)) };
}

/// GA4: what it took, in the order in which it came, and what it refused.
#[derive(Debug, Clone, Default)]
struct Ga4(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    is_out: bool,
    took: Vec<u64>,
    refused: BTreeSet<u64>,
    requests: usize,
    at_once: usize,
    most_at_once: usize,
}

impl Ga4 {
    /// Gives its address.
    async fn listen(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(self.clone().serve(listener));
        format!("http://{address}")
    }

    async fn serve(self, listener: TcpListener) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(self.clone().answer(stream));
        }
    }

    async fn answer(self, mut stream: TcpStream) {
        while let Some(body) = next_body(&mut stream).await {
            self.began();
            // Others come meanwhile.
            tokio::time::sleep(STEP / 2).await;
            if say(&mut stream, self.judge(&body)).await.is_err() {
                return;
            }
        }
    }

    fn began(&self) {
        let mut state = self.0.lock().unwrap();
        state.requests += 1;
        state.at_once += 1;
        state.most_at_once = state.most_at_once.max(state.at_once);
    }

    fn judge(&self, body: &Value) -> u16 {
        let numbers = body["events"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| event["params"]["provider"].as_str().unwrap().parse::<u64>().unwrap());
        let mut state = self.0.lock().unwrap();
        state.at_once -= 1;
        if state.is_out {
            state.refused.extend(numbers);
            return 503;
        }
        state.took.extend(numbers);
        204
    }
}

/// Simulated time goes on.
async fn step() {
    simulated::advance(STEP);
    tokio::time::advance(STEP).await;
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
    // The databases have threads of their own.
    std::thread::sleep(REST.get());
}

/// Time goes on until this is done.
async fn during<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    let work = tokio::spawn(work);
    while !work.is_finished() {
        step().await;
    }
    work.await.unwrap()
}

async fn pass(time: Duration) {
    let end = clock::now().plus(time);
    while clock::now() < end {
        step().await;
    }
}

fn event(number: u64) -> Event {
    let mut event = Event { time: clock::now(), ..testing::event(number) };
    event.id = EventId::of("outage test").part(number.to_be_bytes()).finish();
    event.data.provider = Some(number.to_string());
    event.data.recipient =
        Some(crate::identity::PseudonymKey::new(&[3; 32]).pseudonym(&(number % CLIENTS).to_string()));
    event
}

/// One that shares its request with no other: each has a client of its own.
fn alone(number: u64) -> Event {
    let mut event = event(number);
    event.data.recipient = Some(crate::identity::PseudonymKey::new(&[3; 32]).pseudonym(&number.to_string()));
    event
}

/// Counts what the relay holds of a source, and puts off like one that has retry queues.
#[derive(Debug)]
struct Counting(SpoolSource, Arc<Count>);

#[derive(Debug, Default)]
struct Count {
    held: AtomicUsize,
    most: AtomicUsize,
    put_off: AtomicUsize,
}

#[derive(Debug)]
struct CountingSettler(Arc<dyn Settle>, Arc<Count>);

impl Source for Counting {
    fn next(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, SourceError>> {
        Box::pin(async move {
            let taken = self.0.next(max).await?;
            let held = self.1.held.fetch_add(taken.len(), Ordering::Relaxed) + taken.len();
            self.1.most.fetch_max(held, Ordering::Relaxed);
            Ok(taken)
        })
    }

    fn settler(&self) -> Arc<dyn Settle> {
        Arc::new(CountingSettler(self.0.settler(), self.1.clone()))
    }

    fn most(&self) -> usize {
        self.0.most()
    }

    fn is_full(&self) -> bool {
        self.0.is_full()
    }
}

impl Settle for CountingSettler {
    fn settle(&self, outcomes: Vec<(Tag, Settlement)>) -> BoxFuture<'_, Unsettled> {
        Box::pin(async move {
            // Before, so that none is counted twice that comes again at once.
            self.1.held.fetch_sub(outcomes.len(), Ordering::Relaxed);
            let outcomes = outcomes.into_iter().map(|(tag, what)| match what {
                Settlement::Later { after, reason } => {
                    self.1.put_off.fetch_add(1, Ordering::Relaxed);
                    let tier = TIERS.into_iter().find(|tier| *tier >= after).unwrap_or(TIERS[2]);
                    (tag, Settlement::Later { after: tier, reason })
                }
                other => (tag, other),
            });
            let outcomes = outcomes.collect();
            let unsettled = self.0.settle(outcomes).await;
            assert_eq!(unsettled, [], "the spool takes everything");
            unsettled
        })
    }
}

struct Outage {
    held: Arc<Count>,
    spool: Spool,
    admin: Admin,
    ga4: Ga4,
    /// Of the property for `shop.example`.
    shop: Ga4,
    life: Lifecycle,
    next: u64,
    most_rows: u64,
    most_bytes: u64,
    most_claimed: u64,
}

impl Outage {
    async fn begin(directory: &Path, per_hour: u64, has_shop: bool) -> Self {
        let kept = spool::Settings {
            directory: directory.to_owned(),
            max_rows: MAX_ROWS,
            max_bytes: MAX_BYTES,
            sync: spool::Sync::Normal,
            ..spool::Settings::default()
        };
        let (ga4, shop, life) = (Ga4::default(), Ga4::default(), Lifecycle::detached());
        let mut properties = vec![property("G-OUT", &ga4.listen().await)];
        if has_shop {
            let takes = Takes { domains: vec!["shop.example".into()], ..Takes::default() };
            properties.push(Property { takes, ..property("G-SHOP", &shop.listen().await) });
        }
        let spool = Spool::open(kept).unwrap();
        let settings =
            Settings { max_in_flight: IN_FLIGHT, per_property_hour: per_hour, ..settings(properties) };
        let held = Arc::<Count>::default();
        let source = Counting(SpoolSource::new(spool.clone(), MAX_HELD, life.stop.clone()), held.clone());
        let dedupe = Dedupe::open(&directory.join("relay")).unwrap();
        tokio::spawn(run(settings, Box::new(source), dedupe, life.clone()));
        let admin = Admin::open(directory).unwrap();
        Self { held, spool, admin, ga4, shop, life, next: 0, most_rows: 0, most_bytes: 0, most_claimed: 0 }
    }

    /// The load goes on for a while.
    async fn load(&mut self, time: Duration) {
        let end = clock::now().plus(time);
        while clock::now() < end {
            let next = clock::now().plus(LOAD_EVERY);
            let events = (self.next..self.next + load_at_once()).map(event).collect();
            self.next += load_at_once();
            let spool = self.spool.clone();
            during(async move { spool.publish(events).await }).await.unwrap();
            self.look();
            pass(next.since(clock::now())).await;
        }
    }

    fn look(&mut self) -> spool::Status {
        let status = self.admin.status().unwrap();
        self.most_rows = self.most_rows.max(status.pending + status.claimed + status.dead + status.uncertain);
        self.most_bytes = self.most_bytes.max(status.bytes);
        self.most_claimed = self.most_claimed.max(status.claimed);
        status
    }

    fn ga4<T>(&self, ask: impl FnOnce(&mut State) -> T) -> T {
        ask(&mut self.ga4.0.lock().unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn an_hour_without_ga4_loses_nothing_and_is_made_up_for_in_order_of_age() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    // In memory where there is such a directory: a slow disk would only make simulated time pass.
    let memory = Path::new("/dev/shm");
    let directory = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    simulated::begin(clock::now());
    let mut outage = Outage::begin(directory.path(), 0, false).await;
    outage.load(MINUTE).await;
    let waits = clock::now();
    while outage.ga4(|state| state.took.len() as u64) < outage.next {
        assert!(clock::now().since(waits) < MINUTE * 10, "before it, everything arrives");
        step().await;
    }

    outage.ga4(|state| (state.is_out, state.requests) = (true, 0));
    let (began, before) = (clock::now(), outage.next);
    outage.load(MINUTE * 60).await;
    assert!(clock::now().since(began) >= MINUTE * 60);
    // On a busy machine simulated time passes while events are published.
    let published = outage.next - before;
    assert!(published >= 60 * 6 * load_at_once() / 2, "{published} events in an hour");
    let troubles = outage.life.health.troubles();
    assert!(troubles.iter().any(|(_, why)| why.contains("GA4 does not take requests")), "{troubles:?}");
    let tried = outage.ga4(|state| state.requests);
    // Those under way when it began, and one after each pause, which grow to a minute.
    assert!(tried < IN_FLIGHT + 100, "{tried} requests in an hour without GA4");
    let waiting = outage.look();
    assert!(waiting.pending + MAX_HELD as u64 >= published, "{waiting:?}");

    let first = outage.ga4(|state| {
        state.is_out = false;
        state.took.len()
    });
    let ended = clock::now();
    // Now there is work in each step.
    REST.set(Duration::from_millis(2));
    while outage.look().pending > 0 || outage.look().claimed > 0 {
        assert!(clock::now().since(ended) < MINUTE * 30, "{:?}", outage.look());
        outage.load(LOAD_EVERY).await;
    }
    let status = outage.look();
    assert_eq!((status.dead, status.uncertain), (0, 0), "no limit of age was met");
    assert_eq!(outage.life.health.troubles(), []);
    let held = outage.held.most.load(Ordering::Relaxed);
    assert!(held <= MAX_HELD && outage.most_claimed <= MAX_HELD as u64, "{held} held");
    assert!(outage.ga4(|state| state.most_at_once) <= IN_FLIGHT);
    assert!(outage.most_rows <= MAX_ROWS && outage.most_bytes <= MAX_BYTES);
    outage.ga4(|state| assert_in_order_of_age(state, first, outage.next));
    eprintln!(
        "{} events, {tried} requests tried meanwhile, drained in {} s; at most {} rows, {} bytes, {} held",
        outage.next,
        clock::now().since(ended).as_secs(),
        outage.most_rows,
        outage.most_bytes,
        held
    );
}

#[tokio::test(start_paused = true)]
async fn a_property_that_may_have_60_requests_an_hour_has_60_and_the_rest_waits() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = tempfile::tempdir().unwrap();
    simulated::begin(clock::now());
    let mut paced = Outage::begin(directory.path(), 60, false).await;
    let (spool, events) = (paced.spool.clone(), (0..90).map(alone).collect());
    during(async move { spool.publish(events).await }).await.unwrap();
    let mut sent = 0;
    for hour in 1..=2 {
        pass(MINUTE * 60).await;
        let now = paced.ga4(|state| state.took.len());
        assert!(now - sent <= 61 && (now - sent >= 59 || now == 90), "hour {hour}: {sent} and then {now}");
        sent = now;
        let status = paced.look();
        assert_eq!((status.dead, status.uncertain), (0, 0));
        assert_eq!((status.pending + status.claimed) as usize, 90 - sent, "those wait");
    }
    assert_eq!(sent, 90);
    assert_eq!(paced.ga4(|state| state.took.iter().collect::<BTreeSet<_>>().len()), 90, "none twice");
    assert_eq!(paced.life.health.troubles(), [], "to wait for one's turn is no trouble");
}

#[tokio::test(start_paused = true)]
async fn what_a_limit_holds_back_goes_at_its_limit_all_the_same_and_takes_nobodys_room() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = tempfile::tempdir().unwrap();
    simulated::begin(clock::now());
    REST.set(Duration::from_millis(1));
    let mut paced = Outage::begin(directory.path(), 1_800, true).await;
    let backlog: u64 = 3 * MAX_HELD as u64;
    let (spool, events) = (paced.spool.clone(), (0..backlog).map(alone).collect());
    during(async move { spool.publish(events).await }).await.unwrap();
    // Then a mail of the shop each ten seconds, for twenty minutes.
    let (began, mut slowest) = (clock::now(), Duration::ZERO);
    for number in backlog..backlog + 120 {
        let mut event = alone(number);
        event.data.sender_domain = Some("shop.example".into());
        let (spool, published) = (paced.spool.clone(), clock::now());
        during(async move { spool.publish(vec![event]).await }).await.unwrap();
        // A minute of simulated time is three seconds, however busy the machine is.
        REST.set(Duration::from_millis(5));
        while paced.shop.0.lock().unwrap().took.last() != Some(&number) {
            assert!(clock::now().since(published) < MINUTE, "{number} waits for the others");
            step().await;
        }
        REST.set(Duration::from_millis(1));
        slowest = slowest.max(clock::now().since(published));
        pass(Duration::from_secs(10).saturating_sub(clock::now().since(published))).await;
    }
    let took = clock::now().since(began);
    // A 360th at once, then evenly.
    let may = 5.0 + took.as_secs_f64() / 2.0;
    let went = paced.ga4(|state| state.took.len());
    assert!(went as f64 >= 0.98 * may, "{went} instead of {may} in {took:?}");
    let put_off = paced.held.put_off.load(Ordering::Relaxed);
    assert!(put_off < 8 * backlog as usize, "{put_off} times put off");
    let status = paced.look();
    assert_eq!((status.dead, status.uncertain), (0, 0));
    // The last one may be answered, and not settled yet.
    let left = (status.pending + status.claimed) as usize;
    assert!(
        left == backlog as usize - went || left == backlog as usize - went + 1,
        "{left} left, {went} went"
    );
    eprintln!(
        "{went} of {may} requests in {took:?}; put off {put_off} times; others waited at most {slowest:?}"
    );
}

/// All arrived once. Of those that had not been tried, none came before one that is older by more than what the relay holds.
fn assert_in_order_of_age(state: &State, first: usize, published: u64) {
    let mut times: BTreeMap<u64, usize> = BTreeMap::new();
    state.took.iter().for_each(|number| *times.entry(*number).or_default() += 1);
    assert_eq!(times.len() as u64, published, "lost");
    assert!(times.values().all(|times| *times == 1), "twice");
    let after: Vec<u64> =
        state.took[first..].iter().copied().filter(|number| !state.refused.contains(number)).collect();
    let mut oldest_left: Vec<u64> = after.clone();
    for at in (0..oldest_left.len().saturating_sub(1)).rev() {
        oldest_left[at] = oldest_left[at].min(oldest_left[at + 1]);
    }
    let ahead = after.iter().zip(&oldest_left).map(|(number, oldest)| number - oldest).max().unwrap();
    assert!(ahead <= MAX_HELD as u64 + 25, "an event overtook one that was {ahead} older");
}
