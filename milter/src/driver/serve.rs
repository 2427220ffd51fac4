//! The daemon: accept, serve, end in order.
//!
//! - Layer: edge
//! - Takes: a listener, a handler, settings, a future that ends when the daemon shall.
//! - Gives: nothing; it returns when the last connection is over.
//! - On failure: an error of `accept` is told and waited out, from 10 ms up to 1 s; it never ends the daemon.
//! - Limits: [`Settings::connections`]; beyond, mail passes unmodified, since a connection that waits would delay its
//!   mail until the MTA gives up. Beyond five times as many, connections do wait, and that is told.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::budget::Budget;
use super::connection::{Connection, Shared};
use super::habit::Habit;
use super::stream::Stream;
use super::{Handler, Happening, Listener, Settings};
use crate::session::{Session, Unseen};
use crate::wire::Protocol;

/// Connections beyond [`Settings::connections`] that are passed through, as a multiple of it.
const PASSED_THROUGH: usize = 4;

/// How far the end of the daemon has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tide {
    /// Serving.
    Open,
    /// No new connections; idle ones close, messages in transit go on.
    Draining,
    /// Everything ends: what the handler has is answered at once, what is still being received passes unmodified.
    Ending,
}

/// Serves until `shutdown` is done, then drains: the listener closes, idle connections close after
/// [`Timeouts::drain_idle`](super::Timeouts), messages in transit get up to [`Timeouts::drain`](super::Timeouts); those still
/// being received then pass unmodified, if they end within [`Timeouts::drain_passing`](super::Timeouts).
pub async fn serve<H: Handler>(
    listener: Listener,
    handler: Arc<H>,
    settings: Settings,
    shutdown: impl Future<Output = ()> + Send,
) {
    let budget = Budget::new(settings.memory_bytes);
    let drain = settings.timeouts.drain;
    let most = settings.connections.saturating_mul(1 + PASSED_THROUGH).max(1);
    let shared = Arc::new(Shared { handler, settings, budget, habit: Habit::default() });
    let (tide, _) = watch::channel(Tide::Open);
    let served = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    let begin = |stream: Stream| connect(stream, &shared, &served, tide.subscribe()).run();
    // Taken out of the system's queue, so that it is known, but not answered yet.
    let mut waiting: Option<Stream> = None;
    let mut shutdown = pin!(shutdown);
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {
                if let Some(stream) = waiting.take() {
                    tasks.spawn(begin(stream));
                }
            }
            accepted = accept(&listener, pause), if waiting.is_none() => match accepted {
                Ok(stream) => {
                    pause = Duration::ZERO;
                    if tasks.len() < most {
                        tasks.spawn(begin(stream));
                    } else {
                        shared.observe(&Happening::ConnectionWaits);
                        waiting = Some(stream);
                    }
                }
                Err(error) => {
                    pause = (pause * 2).clamp(Duration::from_millis(10), Duration::from_secs(1));
                    shared.observe(&Happening::AcceptFailed(&error));
                }
            },
        }
    }
    drop(listener);
    if let Some(stream) = waiting {
        tasks.spawn(begin(stream));
    }
    tide.send_replace(Tide::Draining);
    let _ = tokio::time::timeout(drain, async { while tasks.join_next().await.is_some() {} }).await;
    tide.send_replace(Tide::Ending);
    while tasks.join_next().await.is_some() {}
}

async fn accept(listener: &Listener, pause: Duration) -> io::Result<Stream> {
    if !pause.is_zero() {
        sleep(pause).await;
    }
    listener.accept().await
}

fn connect<H: Handler>(
    stream: Stream,
    shared: &Arc<Shared<H>>,
    served: &Arc<AtomicUsize>,
    tide: watch::Receiver<Tide>,
) -> Connection<H> {
    let place = Place::take(Arc::clone(served));
    let limits = shared.settings.session;
    shared.observe(&Happening::Opened);
    let session = if place.number <= shared.settings.connections {
        let mut wanted = shared.settings.wanted.clone();
        if !shared.habit.reply_pays() {
            wanted.protocol |= Protocol::NO_REPLY_END_OF_HEADERS;
        }
        Session::new(wanted, limits)
    } else {
        shared.observe(&Happening::TooManyConnections);
        Session::passing_through(Unseen::Connections, limits)
    };
    Connection::new(stream, session, Arc::clone(shared), tide, place)
}

/// One of the connections; counted until dropped.
pub(super) struct Place {
    served: Arc<AtomicUsize>,
    number: usize,
}

impl Place {
    pub(super) fn take(served: Arc<AtomicUsize>) -> Self {
        let number = served.fetch_add(1, Ordering::Relaxed) + 1;
        Self { served, number }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.served.fetch_sub(1, Ordering::Relaxed);
    }
}
