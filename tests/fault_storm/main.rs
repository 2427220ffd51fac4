//! Real processes and the real broker in a storm of kills and faults: every event arrives once, or is listed as uncertain.
//!
//! Mail goes through the milter, is delivered by lines of a log that the tap follows, and is clicked and opened at the tracker;
//! forwarder and relay reach RabbitMQ through proxies that cut; the collector misbehaves. About 3,000 events, with
//! `MAILTAP_TEST_LONG=1` 51,000, of which some are never sent; `MAILTAP_STORM_EVENTS` says another number, `MAILTAP_STORM_SEED` makes another storm.
#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

mod account;
#[path = "../harness/mod.rs"]
mod harness;
mod load;
mod maillog;
mod site;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use account::Account;
use harness::letters::Dice;
use load::{Promises, World, work};
use maillog::Maillog;
use site::{BLOWS, Site};

const WORKERS: usize = 4;
/// Sent, delivered; a fifth deferred once; 19 of 20 not bounced, of which 6 of 10 are clicked and 4 of 10 opened.
const EVENTS_A_MESSAGE: f64 = 2.0 + 0.2 + 0.95;
/// How long a blow with the pause before it takes, about.
const A_BLOW: Duration = Duration::from_millis(1_800);

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn every_event_arrives_once_or_is_listed_as_uncertain() {
    let events = setting("MAILTAP_STORM_EVENTS", if harness::long() { 51_000 } else { 3_000 });
    let seed = setting("MAILTAP_STORM_SEED", 20_261_125) as u64;
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let messages = (events as f64 / EVENTS_A_MESSAGE).ceil() as usize;
    let blows = (events / 250).max(BLOWS.len());
    let mut site = Site::start();
    let world = World {
        milter: site.file("milter.sock"),
        tracker: site.tracker,
        tracking_url: site.tracking_url.clone(),
        maillog: Mutex::new(Maillog::create(&site.file("maillog"), 2_000, seed)),
        pause: A_BLOW * u32::try_from(blows * WORKERS).unwrap() / u32::try_from(messages).unwrap(),
        messages,
        next: AtomicUsize::new(0),
        allowed: AtomicUsize::new(0),
        begun: AtomicUsize::new(0),
    };
    let started = Instant::now();
    let mut promises = Promises::default();
    let mut struck: BTreeMap<String, usize> = BTreeMap::new();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS as u64)
            .map(|number| {
                let world = &world;
                scope.spawn(move || work(world, seed ^ (number + 1)))
            })
            .collect();
        strike(&mut site, &world, seed, blows, &mut struck);
        workers.into_iter().for_each(|worker| promises.add(worker.join().unwrap()));
    });
    let stormed = started.elapsed();
    let drained = account::wait_until_drained(&site);
    let mut account = Account::read(&site);
    // The tap may have been killed last, and what it reads now goes all the way.
    while !account.missing(&promises).is_empty()
        && started.elapsed() < stormed + drained + Duration::from_secs(60)
    {
        thread::sleep(Duration::from_secs(5));
        account::wait_until_drained(&site);
        account = Account::read(&site);
    }
    eprintln!(
        "seed {seed}, {} blows in {} s: {struck:?}; {messages} messages, {} attempts without an answer, {} as they came, \
         {} clicks again, {} rotations; {}, drained in {} s",
        struck.values().sum::<usize>(),
        stormed.as_secs(),
        promises.unanswered,
        promises.unmodified,
        promises.clicks_asked_again,
        world.maillog.lock().unwrap().rotations,
        account.summary(),
        drained.as_secs(),
    );
    let faults = account.faults(&promises);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Every blow in an order of the seed's, and again, until enough have struck and all messages are out.
fn strike(site: &mut Site, world: &World, seed: u64, blows: usize, struck: &mut BTreeMap<String, usize>) {
    let mut dice = Dice(seed);
    let mut left = Vec::new();
    let mut count = 0;
    while count < blows || world.next.load(Ordering::Relaxed) < world.messages {
        if left.is_empty() {
            left = BLOWS.to_vec();
        }
        let blow = left.swap_remove(dice.below(left.len()));
        count += 1;
        world.allowed.store(
            if count >= blows { usize::MAX } else { world.messages * count / blows },
            Ordering::Relaxed,
        );
        thread::sleep(Duration::from_millis(100 + dice.below(800) as u64));
        if dice.below(2) == 0 {
            world.wait_for_work(&mut dice);
        }
        site.strike(blow, &mut dice);
        *struck.entry(blow.name()).or_default() += 1;
    }
}
