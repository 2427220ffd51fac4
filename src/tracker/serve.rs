//! The tracker's loop: connections in, each on its way.
//!
//! - Layer: edge
//! - Takes: a listening socket.
//! - Gives: a task for each connection, until it is told to stop.
//! - On failure: an error of `accept` is counted, and the loop goes on.
//! - Limits: as many connections as `Limits` allows; beyond it the longest idle ones make room.
//! - See: `connection`, `respond`.

use std::collections::hash_map::RandomState;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::Answer;
use super::connection::{self, Shared};
use super::connections::Crowd;
use super::directory::Directory;
use super::happenings::{AcceptFailed, ConnectionsFull, KeysLooked, Listening, Meters};
use super::hit::{self, Outcome, World};
use super::hosts::Hosts;
use super::http::Http;
use super::pages::Pages;
use super::rate::{self, Table};
use super::record::Recorder;
use super::request::Request;
use super::rules::Rules;
use super::settings::{Rates, Settings, Site};
use super::utm::UtmParameter;
use crate::consent::Consents;
use crate::keys::Keys;
use crate::keys::ring::Keyring;
use crate::service::clock;

/// After an error of `accept` that is ours, like too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// While all places are taken.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What all connections share.
#[derive(Debug)]
pub(super) struct State {
    settings: Settings,
    hosts: Hosts<Host>,
    rules: ArcSwap<Rules>,
    keys: Keys,
    handoff: Option<Keys>,
    consents: Arc<dyn Consents>,
    recorder: Recorder,
    meters: Meters,
    source: String,
    sequence: AtomicU64,
    /// Who asks. Links have a table of their own: a crowd of clients costs none its count.
    clients: Table<RandomState>,
    links: Table<RandomState>,
    began: Instant,
    hasher: RandomState,
    /// What is said once.
    pub(super) unnamed: AtomicBool,
    pub(super) untrusted: AtomicBool,
}

/// A tracking host, ready to answer.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) site: Site,
    pub(super) pages: Pages,
    pub(super) files: Directory,
    pub(super) utm: Vec<UtmParameter>,
}

impl State {
    pub(super) fn new(
        settings: Settings,
        hosts: Hosts<Host>,
        rules: Arc<Rules>,
        (keys, handoff): (Keys, Option<Keys>),
        consents: Arc<dyn Consents>,
        recorder: Recorder,
        host: &str,
    ) -> Self {
        let rules = ArcSwap::new(rules);
        let source = format!("mailtap/tracker/{host}");
        // Another process of this host may have had the same moment.
        let sequence = AtomicU64::new(rand::random());
        Self {
            settings,
            hosts,
            rules,
            keys,
            handoff,
            consents,
            recorder,
            meters: Meters::new(),
            source,
            sequence,
            clients: Table::new(RandomState::new()),
            links: Table::new(RandomState::new()),
            began: Instant::now(),
            hasher: RandomState::new(),
            unnamed: AtomicBool::new(false),
            untrusted: AtomicBool::new(false),
        }
    }

    pub(super) const fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) const fn hosts(&self) -> &Hosts<Host> {
        &self.hosts
    }

    pub(super) fn replace_rules(&self, rules: Rules) {
        self.rules.store(Arc::new(rules));
    }

    pub(super) const fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    pub(super) const fn meters(&self) -> &Meters {
        &self.meters
    }

    /// A key that is not known may be one that somebody has just added: the answer is found again if that is so.
    pub(super) fn decide(&self, request: &Request<'_>) -> (Outcome, Arc<Rules>) {
        let decided = self.decide_by(request, &self.keys.current());
        if decided.0.is_of_unknown_key() && self.keys.look_again() {
            KeysLooked.emit();
            return self.decide_by(request, &self.keys.current());
        }
        decided
    }

    fn decide_by(&self, request: &Request<'_>, keys: &Keyring) -> (Outcome, Arc<Rules>) {
        let handoff = self.handoff.as_ref().map(Keys::current);
        let rules = self.rules.load_full();
        let host = self.hosts.of(request.host());
        let world = World {
            site: &host.site,
            pages: &host.pages,
            files: &host.files.current(),
            utm: &host.utm,
            rules: &rules,
            keys,
            consents: &*self.consents,
            source: &self.source,
            now: clock::now(),
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed),
            handoff: handoff.as_deref(),
            hasher: &self.hasher,
        };
        (hit::decide(request, &world), rules)
    }

    /// Whether something was not said yet; from now on it was.
    pub(super) fn is_first(said: &AtomicBool) -> bool {
        !said.load(Ordering::Relaxed) && !said.swap(true, Ordering::Relaxed)
    }

    /// The answer to a request that can't be understood.
    pub(super) fn bad_request(&self) -> (Outcome, Arc<Rules>) {
        (Outcome::plain(Answer::BadRequest), self.rules.load_full())
    }

    /// Whose rate a request is beyond, if any.
    pub(super) fn exceeds(&self, request: &Request<'_>, outcome: &Outcome) -> Option<&'static str> {
        let now = self.began.elapsed();
        let Rates { client, token } = self.settings.rates;
        if client.is_some_and(|rate| !rate::allows_client(&self.clients, request.client, rate, now)) {
            return Some("client");
        }
        let event = outcome.event.as_ref()?;
        // A link that all recipients share, or of nobody, has no rate of its own.
        let recipient = event.data.recipient?;
        let link = (event.message.as_bytes(), recipient.as_bytes(), event.data.link);
        token.is_some_and(|rate| !self.links.allows(link, rate, now)).then_some("token")
    }
}

/// Answers until `stop`, then lets the answers under way go out; gives the moment of the stop.
pub(super) async fn serve(
    listener: TcpListener,
    state: Arc<State>,
    tls: Option<TlsAcceptor>,
    stop: CancellationToken,
) -> Instant {
    Listening { address: listener.local_addr().ok(), tls: tls.is_some() }.emit();
    let limits = state.settings.limits.clone();
    let places = Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS)));
    let shared =
        Arc::new(Shared { state, clients: Arc::default(), crowd: Arc::default(), http: Http::new(&limits) });
    let tasks = TaskTracker::new();
    while let Some(permit) = tokio::select! {
        permit = permit(&places, &shared.crowd) => permit,
        () = stop.cancelled() => None,
    } {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                tasks.spawn(connection::run(stream, peer, Arc::clone(&shared), tls.clone(), permit));
            }
            Err(error) => {
                AcceptFailed { error: &error }.emit();
                if !is_the_peers(&error) {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    let stopped = Instant::now();
    drop(listener);
    shared.crowd.stop();
    tasks.close();
    // What is still open after this is cut when the process ends; the rest of the time is for events.
    let _ = tokio::time::timeout(limits.drain * 2 / 3, tasks.wait()).await;
    stopped
}

/// A place for one more connection. Where there is none, those that have had no request for the longest time make room.
async fn permit(places: &Arc<Semaphore>, crowd: &Crowd) -> Option<OwnedSemaphorePermit> {
    if let Ok(permit) = Arc::clone(places).try_acquire_owned() {
        return Some(permit);
    }
    ConnectionsFull.emit();
    loop {
        crowd.make_room();
        let place = Arc::clone(places).acquire_owned();
        if let Ok(permit) = tokio::time::timeout(LOOK_AGAIN, place).await {
            return permit.ok();
        }
    }
}

/// Whether an error of `accept` is about the connection and not about us.
fn is_the_peers(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}
