//! A process and its roles: start, signals, reload, stop.
//!
//! - Layer: edge
//! - Takes: the roles to run, each a future that ends when it is told to stop.
//! - Gives: their common end; systemd is told READY, RELOADING, STOPPING with the time it takes, and kept from its watchdog.
//! - On failure: a role that ends by itself stops the others, and the process ends with an error, so that systemd
//!   starts it again.
//! - Limits: roles get `Plan::drain` to end after a signal; a second signal ends the process at once.
//! - See: systemd.service(5), sd_notify(3).

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::admin::{self, AdminError, Shown};
use super::{Health, Lifecycle};
use crate::telemetry::Metrics;

/// From the end of the roles to that of the process.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// An error of any role.
pub type RoleError = Box<dyn std::error::Error + Send + Sync>;

/// A role under way.
pub type RoleFuture = Pin<Box<dyn Future<Output = Result<(), RoleError>> + Send>>;

/// A role and how it is begun.
pub struct Role {
    /// Its name in logs.
    pub name: &'static str,
    /// Whether it may end by itself, when its work is done (a tap whose standard input ends).
    pub finite: bool,
    /// Begins it.
    pub start: Box<dyn FnOnce(Lifecycle) -> RoleFuture + Send>,
}

impl std::fmt::Debug for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Role({})", self.name)
    }
}

impl Role {
    /// A role of this name, run by `start`.
    pub fn new<F, E>(name: &'static str, start: impl FnOnce(Lifecycle) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<RoleError>,
    {
        Self {
            name,
            finite: false,
            start: Box::new(move |life| {
                let role = start(life);
                Box::pin(async move { role.await.map_err(Into::into) })
            }),
        }
    }
}

/// What a process does beside its roles.
pub struct Plan {
    /// Where `/metrics` and the rest are shown.
    pub admin: Option<SocketAddr>,
    /// Whether it takes over a socket, perhaps from an instance that still shows itself there.
    pub takes_over: bool,
    /// What is shown there.
    pub metrics: Metrics,
    /// How long roles may take to end.
    pub drain: Duration,
    /// Called on SIGHUP before the roles are told, and every second, `true` for a SIGHUP: brings in changed files.
    pub refresh: Box<dyn FnMut(bool) + Send>,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan").field("admin", &self.admin).field("drain", &self.drain).finish_non_exhaustive()
    }
}

/// Why a process ended other than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The signal handlers could not be set up.
    #[error("can't set up signal handlers: {0}")]
    Signals(#[source] std::io::Error),
    /// No admin listener.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// A role failed.
    #[error("{role}: {error}")]
    Role {
        /// Which one.
        role: &'static str,
        /// Why.
        #[source]
        error: RoleError,
    },
    /// A role panicked.
    #[error("{0} ended by a panic: please report this")]
    Panic(String),
    /// A role ended although nobody told it to.
    #[error("{0} ended without being told to")]
    Ended(&'static str),
    /// A second signal came before all was finished.
    #[error("stopped at once by a second signal: what was under way is cut")]
    Hurried,
    /// Roles did not end in time after a signal.
    #[error("some roles did not end within {0:?}")]
    Drain(Duration),
}

/// Runs the roles until a signal, or until one of them ends.
///
/// # Errors
/// See [`ProcessError`].
pub async fn run(roles: Vec<Role>, mut plan: Plan) -> Result<(), ProcessError> {
    let mut hang_up = signal(SignalKind::hangup()).map_err(ProcessError::Signals)?;
    let mut stops = StopSignals::new().map_err(ProcessError::Signals)?;
    let (reload, reloads) = watch::channel(0);
    let health = Health::default();
    let life = Lifecycle { stop: CancellationToken::new(), reload: reloads, health: health.clone() };
    let admin_stop = CancellationToken::new();
    // Before anybody can ask: a role that has not begun is not ready.
    for role in &roles {
        let _ = health.component(role.name);
    }
    if let Some(address) = plan.admin {
        let shown = Shown { health: health.clone(), metrics: plan.metrics.clone(), stop: admin_stop.clone() };
        admin::listen(address, plan.takes_over, shown).await?;
    }
    let mut running: JoinSet<Ended> = JoinSet::new();
    for role in roles {
        tracing::info!(role = role.name, "starting");
        let (name, finite, future) = (role.name, role.finite, (role.start)(life.clone()));
        running.spawn(async move { Ended { role: name, finite, result: future.await } });
    }
    let watchdog = sd_notify::watchdog_enabled();
    let mut beat = tokio::time::interval(Duration::from_secs(1));
    let mut announced = false;
    let ended = loop {
        tokio::select! {
            _ = beat.tick() => {
                (plan.refresh)(false);
                plan.metrics.settle();
                if !announced && health.has_started() {
                    announced = true;
                    notify(&[NotifyState::Ready]);
                }
                notify(&[NotifyState::Status(&status(&health))]);
                if watchdog.is_some() {
                    notify(&[NotifyState::Watchdog]);
                }
            }
            Some(ended) = running.join_next() => break Some(ended),
            _ = hang_up.recv() => {
                tracing::info!("reloading");
                notify_reloading();
                (plan.refresh)(true);
                reload.send_modify(|count| *count += 1);
                notify(&[NotifyState::Ready]);
            }
            () = stops.next() => break None,
        }
    };
    // TimeoutStopSec= of the unit knows nothing of how long we were told to drain.
    let stop_usec = (plan.drain + LAST_WORDS).as_micros();
    let stop_usec = u32::try_from(stop_usec).unwrap_or(u32::MAX);
    notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(stop_usec)]);
    life.stop.cancel();
    let failure = ended.and_then(|ended| failure_of(ended, true));
    let drained = drain(&mut running, &mut stops, plan.drain).await;
    admin_stop.cancel();
    match failure {
        Some(failure) => Err(failure),
        None => drained,
    }
}

/// How a role ended.
struct Ended {
    role: &'static str,
    finite: bool,
    result: Result<(), RoleError>,
}

fn failure_of(ended: Result<Ended, tokio::task::JoinError>, unplanned: bool) -> Option<ProcessError> {
    let failure = match ended {
        Ok(Ended { role, result: Err(error), .. }) => ProcessError::Role { role, error },
        Ok(Ended { role, finite, .. }) if unplanned && !finite => ProcessError::Ended(role),
        Ok(_) => return None,
        Err(error) => ProcessError::Panic(error.to_string()),
    };
    tracing::error!(error = %failure, "a role ended; stopping");
    Some(failure)
}

async fn drain(
    running: &mut JoinSet<Ended>,
    stops: &mut StopSignals,
    limit: Duration,
) -> Result<(), ProcessError> {
    tracing::info!(limit_s = limit.as_secs(), "stopping: finishing what is under way");
    let deadline = Instant::now() + limit;
    let mut result = Ok(());
    loop {
        tokio::select! {
            ended = running.join_next() => match ended {
                None => {
                    tracing::info!("stopped");
                    return result;
                }
                Some(ended) => if let (Some(failure), true) = (failure_of(ended, false), result.is_ok()) {
                    result = Err(failure);
                },
            },
            () = tokio::time::sleep_until(deadline) => return Err(ProcessError::Drain(limit)),
            () = stops.next() => return Err(ProcessError::Hurried),
        }
    }
}

struct StopSignals {
    term: Signal,
    int: Signal,
}

impl StopSignals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

fn status(health: &Health) -> String {
    let troubles = health.troubles();
    if troubles.is_empty() {
        return "ready".into();
    }
    troubles.iter().map(|(part, why)| format!("{part}: {why}")).collect::<Vec<_>>().join("; ")
}

fn notify(state: &[NotifyState<'_>]) {
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(state);
}

fn notify_reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        notify(&[NotifyState::Reloading, now]);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_role_that_has_not_begun_is_not_ready() {
        let (seen, mut troubles) = tokio::sync::mpsc::unbounded_channel();
        let role = Role::new("slow", move |life| {
            let _ = seen.send(life.health.troubles());
            async { Err::<(), _>(std::io::Error::other("at once")) }
        });
        let metrics = crate::telemetry::start_metrics().unwrap();
        let plan = Plan {
            admin: None,
            takes_over: false,
            metrics,
            drain: Duration::from_secs(1),
            refresh: Box::new(|_| {}),
        };
        assert!(run(vec![role], plan).await.is_err());
        assert_eq!(troubles.recv().await.unwrap(), [("slow", "starting".to_owned())]);
    }
}
