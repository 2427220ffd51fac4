//! How fast the spool takes events: JSON lines for `tests/bench/events/run`, which says what they mean.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mailtap::event::{Data, Event, EventId, Kind};
use mailtap::identity::{MessageId, Timestamp};
use mailtap::queue::Publish;
use mailtap::queue::spool::{Settings, Spool, Sync};
use mailtap::service::clock;
use serde_json::json;

/// How many events are in flight at most in the runs with several publishers of one event each.
const PUBLISHERS: [u64; 5] = [1, 4, 16, 64, 256];
const BATCHES: [u64; 4] = [1, 10, 100, 1_000];

struct Options {
    directory: PathBuf,
    time: Duration,
    rounds: usize,
    remembered: u64,
}

fn main() {
    let options = options();
    for _ in 0..options.rounds {
        syncs(&options);
        for sync in [Sync::Full, Sync::Normal] {
            for batch in BATCHES {
                publish(&options, sync, 1, batch);
            }
            for publishers in PUBLISHERS {
                publish(&options, sync, publishers, 1);
            }
        }
    }
    memory(&options);
}

fn options() -> Options {
    let mut options = Options {
        directory: std::env::temp_dir(),
        time: Duration::from_millis(1_500),
        rounds: 1,
        remembered: 200_000,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        match name.as_str() {
            "--dir" => options.directory = arguments.next().unwrap().into(),
            "--ms" => options.time = Duration::from_millis(arguments.next().unwrap().parse().unwrap()),
            "--rounds" => options.rounds = arguments.next().unwrap().parse().unwrap(),
            "--remembered" => options.remembered = arguments.next().unwrap().parse().unwrap(),
            // What cargo adds.
            _ => {}
        }
    }
    options
}

/// A click, as the tracker writes it.
fn event(number: u64) -> Event {
    let now = Timestamp::from_secs(1_795_453_000);
    Event {
        id: EventId::of("benchmark").part(number.to_be_bytes()).finish(),
        source: "mailtap/tracker/www1.example.org".into(),
        kind: Kind::Clicked,
        time: now,
        message: MessageId::new(now, 7),
        data: Data {
            campaign: Some("spring-2026".parse().unwrap()),
            recipient: Some([7; 12].into()),
            sender_domain: Some("example.org".into()),
            link: Some(3),
            link_host: Some("www.example.org".into()),
            link_path: Some("/shop/shoes".into()),
            late: Some(false),
            ..Data::default()
        },
    }
}

/// What the disk can do: appends of 4 KiB, each synced.
fn syncs(options: &Options) {
    let directory = tempfile::tempdir_in(&options.directory).unwrap();
    let mut file = File::create(directory.path().join("file")).unwrap();
    let began = Instant::now();
    let mut count = 0_u64;
    while began.elapsed() < options.time {
        file.write_all(&[7; 4_096]).unwrap();
        file.sync_data().unwrap();
        count += 1;
    }
    println!("{}", json!({ "case": "disk", "syncs_s": count as f64 / began.elapsed().as_secs_f64() }));
}

fn open(directory: &Path, sync: Sync) -> Spool {
    Spool::open(Settings { directory: directory.to_owned(), sync, ..Settings::default() }).unwrap()
}

/// So many publishers, each of them waiting for its batch before it publishes the next.
fn publish(options: &Options, sync: Sync, publishers: u64, batch: u64) {
    let directory = tempfile::tempdir_in(&options.directory).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (elapsed, cpu, mut waits) = runtime.block_on(async {
        let spool = open(directory.path(), sync);
        let numbers = Arc::new(AtomicU64::new(0));
        // Statements are prepared, the file has its first pages.
        spool.publish((0..100).map(|number| event(u64::MAX - number)).collect()).await.unwrap();
        let (began, cpu) = (Instant::now(), cpu_time());
        let tasks: Vec<_> = (0..publishers)
            .map(|_| {
                tokio::spawn(publisher(spool.clone(), Arc::clone(&numbers), batch, began + options.time))
            })
            .collect();
        let mut waits = Vec::new();
        for task in tasks {
            waits.extend(task.await.unwrap());
        }
        (began.elapsed(), cpu_time() - cpu, waits)
    });
    waits.sort_unstable();
    let events = waits.len() as u64 * batch;
    let rank = |share: f64| waits[((waits.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    let sync = if sync == Sync::Full { "full" } else { "normal" };
    let line = json!({
        "case": "publish", "sync": sync, "publishers": publishers, "batch": batch, "events": events,
        "events_s": events as f64 / elapsed.as_secs_f64(), "cpu_us": cpu.as_secs_f64() * 1e6 / events as f64,
        "p50_ms": rank(0.5), "p99_ms": rank(0.99),
    });
    println!("{line}");
}

async fn publisher(spool: Spool, numbers: Arc<AtomicU64>, batch: u64, until: Instant) -> Vec<Duration> {
    let mut waits = Vec::new();
    while Instant::now() < until {
        let first = numbers.fetch_add(batch, Ordering::Relaxed);
        let events = (first..first + batch).map(event).collect();
        let began = Instant::now();
        spool.publish(events).await.unwrap();
        waits.push(began.elapsed());
    }
    waits
}

/// The processor time of this process so far, all threads.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // Fields 14 and 15, counted from the end of the name, which may hold blanks; in hundredths of a second.
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

/// What stays of events that were sent: the file, once they are gone from it.
fn memory(options: &Options) {
    let directory = tempfile::tempdir_in(&options.directory).unwrap();
    let spool = open(directory.path(), Sync::Normal);
    let pages = || {
        let file = rusqlite::Connection::open(spool.settings().path()).unwrap();
        let pragma = |name| file.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
        (pragma("page_count") - pragma("freelist_count")) * pragma("page_size")
    };
    let before = pages();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        for first in (0..options.remembered).step_by(1_000) {
            spool.publish((first..first + 1_000).map(event).collect()).await.unwrap();
            let claimed = spool.claim(1_000, Duration::from_secs(60), clock::now()).await.unwrap();
            let seqs: Vec<_> = claimed.iter().map(|claimed| claimed.seq).collect();
            spool.done(&seqs).await.unwrap();
        }
    });
    let bytes = (pages() - before) as f64 / options.remembered as f64;
    println!("{}", json!({ "case": "memory", "events": options.remembered, "bytes_event": bytes }));
}
