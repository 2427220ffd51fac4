//! `mailtap events tail`: events as they come.
//!
//! - Layer: cli
//! - Takes: the spool of this host, or what passes through RabbitMQ; nobody's events are taken.
//! - Gives: a line for each event, for people or as JSON, until Ctrl-C or until nobody reads any more.
//! - On failure: exit code 69 where there is no spool or broker at the beginning; a connection that breaks later is made
//!   again, and said.
//! - Limits: of the spool, an event that is sent within 50 ms may be missed; how many is said at the end.

use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio_util::sync::CancellationToken;

use super::assemble;
use super::dead_broker::{runtime, say, stop_on_signal};
use super::events::{self, Live};
use super::exit::{Exit, Failure, OrExit, Result};
use super::terminal::{BAD, CARE, DIM, GOOD, SEEN, paint};
use crate::config::{AmqpConfig, Config};
use crate::event::{Event, Kind};
use crate::queue::amqp::Watch;
use crate::queue::backoff::Backoff;
use crate::queue::spool::{Filter, State};

const LOOK_EVERY: Duration = Duration::from_millis(50);
const READER_EVERY: Duration = Duration::from_millis(250);
const PAGE: usize = 1_000;

/// Where to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum From {
    Spool,
    Rabbitmq,
}

/// Shows events until it is ended.
pub(super) fn run(config: &Config, live: &Live, json: bool, from: Option<From>) -> Result {
    let shown = Shown { filter: live.filter(), json };
    runtime()?.block_on(async {
        let stop = stop_on_signal();
        tokio::spawn(stop_without_reader(stop.clone()));
        match (&config.amqp, from) {
            (Some(amqp), None | Some(From::Rabbitmq)) => broker(amqp, &shown, &stop).await,
            (None, Some(From::Rabbitmq)) => {
                Err(Failure::new(Exit::Config, "amqp.url is missing: there is no RabbitMQ to look at"))
            }
            (_, Some(From::Spool)) | (None, None) => spool(config, &shown, &stop).await,
        }
    })
}

struct Shown {
    filter: Filter,
    json: bool,
}

impl Shown {
    /// Prints an event if it is meant; ends everything when nobody reads.
    fn show(&self, event: &Event, stop: &CancellationToken) -> Result {
        if !self.filter.lets_through(State::Pending, None, Some(event)) {
            return Ok(());
        }
        let line = if self.json { event.to_json() } else { for_people(event) } + "\n";
        let mut output = anstream::stdout();
        match output.write_all(line.as_bytes()).and_then(|()| output.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => stop.cancel(),
            result => result.or_exit(Exit::Io)?,
        }
        Ok(())
    }
}

async fn broker(amqp: &AmqpConfig, shown: &Shown, stop: &CancellationToken) -> Result {
    let settings = assemble::broker(amqp)?;
    let mut watch = Watch::open(&settings, shown.filter.kind).await.or_exit(Exit::Unavailable)?;
    let mut backoff = Backoff::default();
    loop {
        let next = tokio::select! {
            () = stop.cancelled() => break,
            next = watch.next() => next,
        };
        match next {
            Ok(Ok(event)) => shown.show(&event, stop)?,
            Ok(Err(error)) => say(&format!("a message is no event: {error}")),
            Err(error) => {
                say(&format!("{error}; events may be missed until it is there again"));
                let Some(again) = reopened(&settings, shown, &mut backoff, stop).await else { return Ok(()) };
                watch = again;
                say("connected again");
            }
        }
    }
    watch.close().await;
    Ok(())
}

async fn reopened(
    settings: &crate::queue::amqp::Settings,
    shown: &Shown,
    backoff: &mut Backoff,
    stop: &CancellationToken,
) -> Option<Watch> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(backoff.failed(rand::random())) => {}
        }
        if let Ok(watch) = Watch::open(settings, shown.filter.kind).await {
            backoff.worked();
            return Some(watch);
        }
    }
}

async fn spool(config: &Config, shown: &Shown, stop: &CancellationToken) -> Result {
    let spool = events::open(config)?;
    let mut last = spool.last().or_exit(Exit::Io)?;
    let mut missed = 0;
    while !stop.is_cancelled() {
        // All of them, so that a gap in the numbers tells of events that are gone already.
        let page = spool.list(&Filter::default(), Some(last), PAGE).or_exit(Exit::Io)?;
        for stored in &page {
            missed += last.until(stored.seq);
            last = stored.seq;
            if let Ok(event) = Event::from_json(stored.body.as_bytes()) {
                shown.show(&event, stop)?;
            }
        }
        if page.is_empty() {
            let newest = spool.last().or_exit(Exit::Io)?;
            // Published since the page was read, or gone since.
            let again = spool.list(&Filter::default(), Some(last), 1).or_exit(Exit::Io)?;
            if again.is_empty() && newest > last {
                missed += last.until(newest) + 1;
                last = newest;
            }
        }
        if page.len() < PAGE {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }
    if missed > 0 {
        say(&format!("{missed} events, of whatever type, were sent before they could be shown"));
    }
    Ok(())
}

/// Ends when the other end of the pipe is gone, though there is nothing to write.
async fn stop_without_reader(stop: CancellationToken) {
    while !stop.is_cancelled() {
        let gone = {
            let stdout = std::io::stdout();
            let mut polled = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
            let found = poll(&mut polled, PollTimeout::ZERO);
            let [polled] = polled;
            found.is_ok() && polled.revents().is_some_and(|got| got.intersects(PollFlags::POLLERR))
        };
        if gone {
            stop.cancel();
        }
        tokio::time::sleep(READER_EVERY).await;
    }
}

/// One line: when, what, of which campaign and message, and the particulars.
fn for_people(event: &Event) -> String {
    let style = match event.kind {
        Kind::Accepted => DIM,
        Kind::Delivered => GOOD,
        Kind::Deferred => CARE,
        Kind::Bounced | Kind::Expired | Kind::Complained => BAD,
        Kind::Opened | Kind::Clicked => SEEN,
    };
    let data = &event.data;
    let campaign = data.campaign.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
    let link = match (&data.link_host, &data.link_path) {
        (Some(host), path) => Some(format!("{host}{}", path.as_deref().unwrap_or_default())),
        (None, _) => None,
    };
    let machine = data.machine.map(|machine| format!("machine={}", machine.as_str()));
    let class = data.class.map(|class| class.as_str().to_owned());
    let particulars = [data.provider.clone(), data.dsn.clone(), class, link, machine];
    let particulars: Vec<String> = particulars.into_iter().flatten().collect();
    let kind = format!("{:<10}", event.kind.as_str().rsplit('.').next().unwrap_or_default());
    let line = format!(
        "{}  {}  {campaign:<16}  {}  {}",
        paint(DIM, &event.time.to_string()),
        paint(style, &kind),
        event.message,
        particulars.join(" ")
    );
    line.trim_end().to_owned()
}
