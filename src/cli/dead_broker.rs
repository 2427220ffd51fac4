//! Dead letters in RabbitMQ: looked at without taking, replayed or dropped one by one.
//!
//! - Layer: cli
//! - Takes: the configuration, a filter.
//! - Gives: letters; the number of those that were changed.
//! - On failure: exit code 69 where the broker does not answer or the relay has never been, 75 where it ended in the middle.
//!   What was not changed by then is in the queue as before; Ctrl-C ends it between two letters, a second one at once.
//! - Limits: 100,000 letters at a time are looked at. While the broker takes no messages, replays wait, until they are interrupted.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio_util::sync::CancellationToken;

use super::assemble;
use super::events::{Place, Placed};
use super::exit::{Exit, Failure, OrExit, Result};
use crate::config::{AmqpConfig, Config};
use crate::queue::amqp::{DeadLetters, Link, Refused};
use crate::queue::spool::Filter;

const LOOKED_AT: usize = 100_000;
/// How long an interrupted command waits for what is on its way.
const LAST_REPLAYS: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The exit code of what was ended by force.
const INTERRUPTED: i32 = 130;

/// What to do with letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Replay,
    Drop,
}

impl Change {
    const fn done(self) -> &'static str {
        match self {
            Self::Replay => "replayed",
            Self::Drop => "dropped",
        }
    }
}

/// The first `max` letters that the filter lets through; none where no RabbitMQ is configured.
pub(super) fn list(config: &Config, filter: &Filter, max: usize) -> Result<Vec<Placed>> {
    let Some(amqp) = &config.amqp else { return Ok(Vec::new()) };
    runtime()?.block_on(async {
        let stop = stop_on_signal();
        let mut letters = opened(amqp, &stop).await?;
        let mut found = Vec::new();
        let mut looked_at = 0;
        while found.len() < max && looked_at < LOOKED_AT && !stop.is_cancelled() {
            let next = tokio::select! {
                () = stop.cancelled() => break,
                next = letters.next() => next,
            };
            let Some(letter) = next.or_exit(Exit::Unavailable)? else { break };
            looked_at += 1;
            if letter.is_meant_by(filter) {
                let (bytes, content_type) = letter.form();
                found.push(Placed { place: Place::Broker, bytes, content_type, stored: letter.stored });
            }
        }
        if looked_at == LOOKED_AT && letters.left() > 0 {
            say(&format!("only {LOOKED_AT} of the letters in RabbitMQ were looked at"));
        }
        letters.close().await.or_exit(Exit::Unavailable)?;
        found.sort_by_key(|placed| placed.stored.at);
        Ok(found)
    })
}

/// Changes what the filter lets through of the letters that are there now.
pub(super) fn change(config: &Config, filter: &Filter, change: Change) -> Result<u64> {
    let Some(amqp) = &config.amqp else { return Ok(0) };
    runtime()?.block_on(async {
        let stop = stop_on_signal();
        let mut letters = opened(amqp, &stop).await?;
        let mut count = 0;
        let telling = tokio::spawn(tell_of_an_alarm(letters.publishing()));
        let ended = each(&mut letters, filter, change, &stop, &mut count).await;
        telling.abort();
        let closed = letters.close().await;
        match ended.and_then(|()| closed.map_err(|error| error.to_string())) {
            Ok(()) => Ok(count),
            Err(why) => {
                let done = change.done();
                Err(Failure::new(Exit::TempFail, format!("{why}; {done} {count} in RabbitMQ before that")))
            }
        }
    })
}

async fn each(
    letters: &mut DeadLetters,
    filter: &Filter,
    change: Change,
    stop: &CancellationToken,
    count: &mut u64,
) -> std::result::Result<(), String> {
    let interrupted = || Err("interrupted".to_owned());
    let publishing = letters.publishing();
    let mut replays = FuturesUnordered::new();
    // Those that are meant leave the queue; those that are not are held until the end, so there is a bound on them.
    let mut held = 0;
    let mut ended = Ok(());
    while ended.is_ok() {
        let next = tokio::select! {
            () = stop.cancelled() => {
                ended = interrupted();
                break;
            }
            next = letters.next() => next,
        };
        let letter = match next {
            Ok(Some(letter)) => letter,
            Ok(None) => break,
            Err(error) => {
                ended = Err(error.to_string());
                break;
            }
        };
        if held == LOOKED_AT {
            say(&format!(
                "only {LOOKED_AT} of the letters in RabbitMQ were looked at; run it again with a narrower filter"
            ));
            break;
        }
        if !letter.is_meant_by(filter) {
            held += 1;
            continue;
        }
        match change {
            Change::Replay => replays.push(letters.replay(letter)),
            Change::Drop => {
                letters.discard(letter).await;
                *count += 1;
            }
        }
        let full = replays.len() >= DeadLetters::REPLAYS;
        let done = if full {
            tokio::select! {
                done = replays.next() => done,
                () = stop.cancelled() => {
                    ended = interrupted();
                    break;
                }
            }
        } else {
            replays.next().now_or_never().flatten()
        };
        ended = counted(done, count);
    }
    // What was published is a dead letter too until it is taken out.
    loop {
        let done = tokio::select! {
            done = replays.next() => done,
            () = given_up(stop, &publishing) => return ended.and_then(|()| interrupted()),
        };
        let Some(done) = done else { return ended };
        ended = ended.and(counted(Some(done), count));
    }
}

/// Waits until it was interrupted and nothing is worth to be waited for.
async fn given_up(stop: &CancellationToken, publishing: &Link) {
    stop.cancelled().await;
    let end = tokio::time::Instant::now() + LAST_REPLAYS;
    while !publishing.is_blocked() && tokio::time::Instant::now() < end {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Says once that replays wait.
async fn tell_of_an_alarm(publishing: Arc<Link>) {
    while !publishing.is_blocked() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    say("RabbitMQ takes no messages (it is short of memory or disk): waiting; Ctrl-C ends it");
}

async fn opened(amqp: &AmqpConfig, stop: &CancellationToken) -> Result<DeadLetters> {
    let settings = assemble::broker(amqp)?;
    tokio::select! {
        () = stop.cancelled() => Err(Failure::new(Exit::TempFail, "interrupted; nothing was changed in RabbitMQ")),
        letters = DeadLetters::open(&settings) => letters.or_exit(Exit::Unavailable),
    }
}

fn counted(
    done: Option<std::result::Result<(), Refused>>,
    count: &mut u64,
) -> std::result::Result<(), String> {
    match done {
        Some(Ok(())) => *count += 1,
        Some(Err(refused)) => return Err(refused.to_string()),
        None => {}
    }
    Ok(())
}

/// A runtime for a command that talks to the broker.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().or_exit(Exit::Software)
}

/// Cancelled by the first SIGINT, SIGTERM or SIGHUP; the second one of a kind ends the process.
pub(super) fn stop_on_signal() -> CancellationToken {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = CancellationToken::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let stop = stop.clone();
        // Without a handler the signal ends the process at once, and loses nothing either.
        if let Ok(mut signal) = signal(kind) {
            tokio::spawn(async move {
                signal.recv().await;
                stop.cancel();
                signal.recv().await;
                std::process::exit(INTERRUPTED);
            });
        }
    }
    stop
}

/// Tells people something by the way.
pub(super) fn say(text: &str) {
    let _ = writeln!(anstream::stderr(), "mailtap: {text}");
}
