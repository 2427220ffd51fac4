//! What a mail system does around mailtap, in small: it sends mail through the milter, delivers it, and people click.
//!
//! Every attempt to send has a campaign of its own, so that each event tells which attempt it is of.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mailtap_milter::client::{Delivery, Mail, Mailbox, Outcome};
use mailtap_milter::driver::{Client, ClientError, Peer};
use mailtap_milter::wire::Offer;
use tokio::net::UnixStream;

use crate::harness::letters::Dice;
use crate::harness::{SENDER, http};
use crate::maillog::{Maillog, Status};

const BROWSER: (&str, &str) =
    ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:142.0) Gecko/20100101 Firefox/142.0");
const RECIPIENTS: usize = 400;
/// How long one process may be away.
const PATIENCE: Duration = Duration::from_secs(60);

/// What an event is told from others by: its name in GA4 and its campaign.
pub type Key = (&'static str, String);

/// How many events of a key there have to be, and may be.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    pub least: usize,
    pub most: usize,
}

/// Where the processes are, and what they were seen to promise.
pub struct World {
    pub milter: PathBuf,
    pub tracker: u16,
    pub tracking_url: String,
    pub maillog: Mutex<Maillog>,
    pub pause: Duration,
    pub messages: usize,
    /// The next one.
    pub next: AtomicUsize,
    /// How many may go out: mail comes for as long as blows strike.
    pub allowed: AtomicUsize,
    /// Requests to milter and tracker that have begun.
    pub begun: AtomicUsize,
}

impl World {
    /// Waits for a moment at which milter or tracker are likely to be at work.
    pub fn wait_for_work(&self, dice: &mut Dice) {
        let (before, end) = (self.begun.load(Ordering::Relaxed), Instant::now() + Duration::from_secs(1));
        while self.begun.load(Ordering::Relaxed) == before && Instant::now() < end {
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_micros(dice.below(20_000) as u64));
    }
}

/// What one worker was promised.
#[derive(Default)]
pub struct Promises {
    pub expected: BTreeMap<Key, Expected>,
    /// Attempts whose answer was lost.
    pub unanswered: usize,
    /// Messages that went on as they came.
    pub unmodified: usize,
    pub clicks_asked_again: usize,
}

impl Promises {
    fn promise(&mut self, name: &'static str, campaign: &str, least: usize, most: usize) {
        let expected = self.expected.entry((name, campaign.to_owned())).or_default();
        expected.least += least;
        expected.most += most;
    }

    pub fn add(&mut self, other: Self) {
        self.expected.extend(other.expected);
        self.unanswered += other.unanswered;
        self.unmodified += other.unmodified;
        self.clicks_asked_again += other.clicks_asked_again;
    }
}

/// Sends messages until there are enough.
pub fn work(world: &World, seed: u64) -> Promises {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (mut dice, mut promises) = (Dice(seed), Promises::default());
    let mut client = None;
    loop {
        let number = world.next.fetch_add(1, Ordering::Relaxed);
        if number >= world.messages {
            return promises;
        }
        while number >= world.allowed.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let started = Instant::now();
        let message = Message { number, queue_id: format!("{number:010X}") };
        let (campaign, delivery) = runtime.block_on(message.submit(world, &mut client, &mut promises));
        message.follow_up(world, &campaign, &delivery, &mut dice, &mut promises);
        // A new connection now and then, as smtpd(8) processes come and go.
        if dice.below(5) == 0 {
            client = None;
        }
        std::thread::sleep(world.pause.saturating_sub(started.elapsed()));
    }
}

struct Message {
    number: usize,
    queue_id: String,
}

impl Message {
    fn recipient(&self) -> String {
        format!("user{}@example.net", self.number % RECIPIENTS)
    }

    fn mail(&self, campaign: &str) -> Mail {
        let text = format!(
            "From: News <news@shop.example>\r\nTo: you\r\nSubject: Letter\r\nX-Mailtap-Campaign: {campaign}\r\n\
             MIME-Version: 1.0\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<html><body>\r\n\
             <p><a href=\"https://www.example.org/one\">one</a></p>\r\n</body></html>\r\n"
        );
        let recipients = vec![Mailbox::new(format!("<{}>", self.recipient()))];
        Mail::parse(Mailbox::new(format!("<{SENDER}>")), recipients, text.as_bytes())
    }

    /// Sends through the milter until there is an answer, as Postfix does; gives the campaign of the attempt that had it.
    async fn submit(
        &self,
        world: &World,
        client: &mut Option<Client<UnixStream>>,
        promises: &mut Promises,
    ) -> (String, Delivery) {
        let end = Instant::now() + PATIENCE;
        for attempt in 1.. {
            let campaign = format!("s{}a{attempt}", self.number);
            match self.attempt(world, client, &campaign).await {
                Ok(delivery) => return (campaign, delivery),
                Err(error) => {
                    assert!(Instant::now() < end, "the milter stays away: {error}");
                    // Its event may have been stored before the process died.
                    promises.promise("email_sent", &campaign, 0, 1);
                    promises.unanswered += 1;
                    *client = None;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        unreachable!()
    }

    async fn attempt(
        &self,
        world: &World,
        client: &mut Option<Client<UnixStream>>,
        campaign: &str,
    ) -> Result<Delivery, ClientError> {
        if client.is_none() {
            let stream = UnixStream::connect(&world.milter).await?;
            let mut new = Client::negotiate(stream, &Offer::POSTFIX).await?;
            new.open(&Peer::default()).await?;
            *client = Some(new);
        }
        let Some(client) = client else { return Err(ClientError::Closed) };
        world.begun.fetch_add(1, Ordering::Relaxed);
        client.send(&self.mail(campaign), &self.queue_id).await
    }

    /// What happens with a message that the milter has answered to.
    fn follow_up(
        &self,
        world: &World,
        campaign: &str,
        delivery: &Delivery,
        dice: &mut Dice,
        promises: &mut Promises,
    ) {
        assert_eq!(delivery.outcome, Outcome::Accepted, "{campaign}");
        let header = |name: &[u8]| delivery.mail.headers.iter().find(|field| field.name == name);
        let Some(reference) = header(b"X-Mailtap-Ref") else {
            // The spool was late: the event may still have been stored.
            promises.promise("email_sent", campaign, 0, 1);
            promises.unmodified += 1;
            return;
        };
        promises.promise("email_sent", campaign, 1, 1);
        let reference = String::from_utf8_lossy(&reference.value).trim().to_owned();
        let mut attempts = Vec::new();
        if dice.below(5) == 0 {
            attempts.push(Status::Deferred);
        }
        attempts.push(if dice.below(20) == 0 { Status::Bounced } else { Status::Sent });
        world.maillog.lock().unwrap().queued(&self.queue_id, &reference, campaign);
        for status in &attempts {
            world.maillog.lock().unwrap().attempt(&self.queue_id, &self.recipient(), *status);
            let name = match status {
                Status::Sent => "email_delivered",
                Status::Deferred => "email_deferred",
                Status::Bounced => "email_bounced",
            };
            promises.promise(name, campaign, 1, 1);
        }
        let body = String::from_utf8_lossy(&delivery.mail.body).into_owned();
        if attempts.last() == Some(&Status::Sent) {
            if dice.below(10) < 6 {
                load(world, campaign, &body, "c", "email_click", promises);
            }
            if dice.below(10) < 4 {
                load(world, campaign, &body, "o", "email_open", promises);
            }
        }
    }
}

/// Follows the link or loads the pixel, until the tracker answers.
fn load(
    world: &World,
    campaign: &str,
    body: &str,
    segment: &str,
    name: &'static str,
    promises: &mut Promises,
) {
    let start = format!("{}/{segment}/", world.tracking_url);
    let (_, rest) = body.split_once(&start).unwrap_or_else(|| panic!("no /{segment}/ in {body}"));
    let path = format!("/{segment}/{}", &rest[..rest.find('"').unwrap()]);
    let (end, mut asked) = (Instant::now() + PATIENCE, 0);
    loop {
        asked += 1;
        world.begun.fetch_add(1, Ordering::Relaxed);
        if let Some(answer) = http(world.tracker, "GET", &path, &[BROWSER]) {
            assert!(matches!(answer.status, 200 | 302), "{} to {path}", answer.status);
            break;
        }
        assert!(Instant::now() < end, "the tracker stays away");
        std::thread::sleep(Duration::from_millis(20));
    }
    promises.clicks_asked_again += asked - 1;
    promises.promise(name, campaign, 1, asked);
}
