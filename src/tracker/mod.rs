//! The tracker: answers clicks and pixels, and records them.
//!
//! - Layer: role
//! - Takes: HTTP requests; the keyring, consents and a publisher.
//! - Gives: redirects, pixels, a few pages; `link.clicked` and `message.opened` events.
//! - On failure: a link redirects as long as its signature holds, whatever else is broken; an event that can't be
//!   stored is counted as lost.
//! - Limits: see `Limits`.
//! - See: `docs/tracker.md`.

// Words and decisions.
pub mod answer;
pub mod client;
pub mod cookies;
mod handoff;
mod held;
pub mod hit;
pub mod hosts;
pub mod language;
mod ledger;
pub mod machine;
mod mend;
pub mod pages;
pub mod percent;
pub mod proxy;
pub mod rate;
pub mod request;
pub mod route;
pub mod rules;
mod rules_file;
pub mod settings;
pub mod target;
pub mod terms;
pub mod utm;
mod visitor;
mod waiting;
pub mod watch;
pub mod well_known;
mod words;

// Edges.
mod changes;
mod connection;
mod connections;
mod directory;
mod happenings;
mod http;
mod listen;
mod record;
mod respond;
mod serve;
mod tls;

pub use settings::{Limits, Rates, Settings, Site, TlsFiles};
pub use terms::{CookieTerms, HandoffTerms, Terms};
pub use tls::TlsError;
pub use utm::{UtmError, UtmParameter};

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::consent::Consents;
use crate::keys::Keys;
use crate::queue::Holder;
use crate::queue::deliveries::News;
use crate::service::{Lifecycle, clock, files};
use directory::Directory;
use happenings::{RulesLoaded, RulesRejected};
use hosts::Hosts;
use ledger::Ledger;
use pages::Pages;
use record::Recorder;
use rules::{Rules, RulesError};
use serve::{Host, State};
use tls::Certificates;

/// How often files are looked at for changes.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a tracker waits that could not begin.
const BEGIN_AGAIN: Duration = Duration::from_secs(1);
/// The most bytes of a rules file.
const MAX_RULES_BYTES: u64 = 4 * 1024 * 1024;

/// What the tracker works with.
#[derive(Debug)]
pub struct Deps {
    /// What tokens are verified with; whoever made it refreshes it.
    pub keys: Keys,
    /// Where events go.
    pub publisher: Holder,
    /// What hand-offs are signed with, if the site wants them; whoever made it refreshes it.
    pub handoff: Option<Keys>,
    /// News of deliveries, where the tap runs in this process.
    pub deliveries: Option<News>,
    /// Who may be followed.
    pub consents: Arc<dyn Consents>,
    /// The name of this host in events.
    pub host: String,
}

/// Why the tracker can't begin.
#[derive(Debug, thiserror::Error)]
pub enum TrackerError {
    /// Settings that can't work, all of them.
    #[error("{}", .0.join("; "))]
    Settings(Vec<String>),
    /// The address can't be listened on.
    #[error("can't listen on {address}: {error}{}", remedy(.address, .error))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// A certificate can't be used.
    #[error("{0}")]
    Certificate(#[from] TlsError),
    /// TLS can't be set up.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The rules file can't be read.
    #[error("{}: {error}", .path.display())]
    RulesFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// The rules file is no rules file.
    #[error("{}: {error}", .path.display())]
    Rules {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        error: RulesError,
    },
}

/// What helps who may not listen on an address, or finds somebody else there.
fn remedy(address: &SocketAddr, error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied if address.port() < 1024 => {
            "; a port below 1024 takes a right that the services don't have: have systemd listen (mailtap-tracker.socket, for \
             mailtap-tracker.service), or give the right in a drop-in of the service: AmbientCapabilities=CAP_NET_BIND_SERVICE, \
             CapabilityBoundingSet=CAP_NET_BIND_SERVICE and PrivateUsers=no; or listen on a higher port behind a web server"
        }
        io::ErrorKind::AddrInUse => {
            "; `ss -ltnp` says which process has it; stop that, or set tracker.listen to another"
        }
        io::ErrorKind::AddrNotAvailable => {
            "; tracker.listen has to be an address of this host, or 0.0.0.0 or [::]"
        }
        _ => "",
    }
}

/// Runs the tracker until `life.stop`.
///
/// # Errors
/// See [`TrackerError`]; once it listens, nothing ends it but `life.stop`.
pub async fn run(settings: Settings, deps: Deps, life: Lifecycle) -> Result<(), TrackerError> {
    run_on(begin(&settings)?, settings, deps, life).await
}

/// Runs the tracker beside roles that don't wait for it: what keeps it from beginning is told, and tried again until it does not.
///
/// # Errors
/// Those of `run_on`.
pub async fn run_patiently(settings: Settings, deps: Deps, life: Lifecycle) -> Result<(), TrackerError> {
    let component = life.health.component("tracker");
    let mut told = String::new();
    loop {
        let trouble = match begin(&settings) {
            Ok(listener) => return run_on(listener, settings, deps, life).await,
            Err(error) => error.to_string(),
        };
        component.not_ready(&trouble);
        if told != trouble {
            happenings::CantBegin { error: &trouble }.emit();
            told = trouble;
        }
        tokio::select! {
            () = life.stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(BEGIN_AGAIN) => {}
        }
    }
}

/// Looks whether everything is there that the tracker begins with, and listens.
fn begin(settings: &Settings) -> Result<TcpListener, TrackerError> {
    check(settings)?;
    load_rules(settings)?;
    certificates(settings)?;
    let address = settings.listen;
    listen::bind(address, settings.inherit).map_err(|error| TrackerError::Listen { address, error })
}

/// Runs the tracker on a socket that listens already.
///
/// # Errors
/// See [`TrackerError`].
pub async fn run_on(
    listener: TcpListener,
    settings: Settings,
    deps: Deps,
    mut life: Lifecycle,
) -> Result<(), TrackerError> {
    let health = life.health.component("tracker");
    let hosts = check(&settings)?;
    let rules = Arc::new(load_rules(&settings)?);
    let certificates = certificates(&settings)?.map(Arc::new);
    let ledger = Ledger::new(Arc::clone(&rules), settings.terms, clock::now());
    let limits = (settings.queue_events, settings.answer_wait);
    let (recorder, worker) =
        Recorder::start(deps.publisher, ledger, deps.deliveries, life.health.component("events"), limits);
    let drain = settings.limits.drain;
    let keys = (deps.keys, deps.handoff);
    let state =
        Arc::new(State::new(settings, hosts, rules, keys, deps.consents, recorder.clone(), &deps.host));
    let tls = certificates
        .clone()
        .map(tls::server_config)
        .transpose()?
        .map(|config| TlsAcceptor::from(Arc::new(config)));
    let stop = life.stop.clone();
    let serving = serve::serve(listener, Arc::clone(&state), tls, stop);
    health.ready();
    let reloading = async {
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            let asked = tokio::select! {
                changed = life.reload.changed() => match changed {
                    Ok(()) => true,
                    // Nobody is there to ask for a reload any more.
                    Err(_) => std::future::pending().await,
                },
                _ = look.tick() => false,
            };
            let (state, certificates) = (Arc::clone(&state), certificates.clone());
            // Disks may be slow, and answers don't wait for them.
            let _ =
                tokio::task::spawn_blocking(move || refresh(&state, certificates.as_deref(), asked)).await;
        }
    };
    let stopped = tokio::select! {
        stopped = serving => stopped,
        () = reloading => tokio::time::Instant::now(),
    };
    health.not_ready("stopping");
    recorder.finish(worker, drain.saturating_sub(stopped.elapsed())).await;
    Ok(())
}

/// Makes ready what each host needs.
fn check(settings: &Settings) -> Result<Hosts<Host>, TrackerError> {
    let mut problems = settings.problems();
    let hosts = Hosts::new(&settings.site, &settings.hosts, |site| {
        let mut utm = Vec::new();
        for (name, template) in &site.utm {
            match UtmParameter::new(name, template) {
                Ok(parameter) => utm.push(parameter),
                Err(error) => problems.push(format!("utm.{name}: {error}")),
            }
        }
        let files = Directory::open(site.well_known.as_deref()).unwrap_or_else(|error| {
            let directory = site.well_known.as_deref().unwrap_or(Path::new("")).display();
            problems.push(format!("well_known_dir: {directory}: {error}"));
            Directory::default()
        });
        Host { site: site.clone(), pages: Pages::new(site), files, utm }
    });
    if problems.is_empty() { Ok(hosts) } else { Err(TrackerError::Settings(problems)) }
}

/// The rules that the settings name, for `run` and for `bots test`.
///
/// # Errors
/// `TrackerError::RulesFile`, `TrackerError::Rules`.
pub fn load_rules(settings: &Settings) -> Result<Rules, TrackerError> {
    let Some(path) = &settings.rules_file else {
        let path = PathBuf::from("the catalogue of this mailtap");
        return Rules::parse(rules::CATALOGUE).map_err(|error| TrackerError::Rules { path, error });
    };
    let file_error = |error| TrackerError::RulesFile { path: path.clone(), error };
    let bytes = files::read_limited(path, MAX_RULES_BYTES).map_err(file_error)?;
    let text = String::from_utf8(bytes)
        .map_err(|_| file_error(io::Error::new(io::ErrorKind::InvalidData, "not UTF-8")))?;
    Rules::parse(&text).map_err(|error| TrackerError::Rules { path: path.clone(), error })
}

/// What keeps the files that the settings name from being used, each with the key of the configuration; for a check
/// before the start.
#[must_use]
pub fn check_files(settings: &Settings) -> Vec<String> {
    let rules = load_rules(settings).err().map(|error| format!("tracker.rules_file: {error}"));
    let pairs = settings.sites().filter_map(|site| {
        let error = Certificates::open(&[(site.names.clone(), site.tls.clone()?)]).err()?;
        Some(format!("tls_certificate, tls_key: {error}"))
    });
    rules.into_iter().chain(pairs).collect()
}

/// The certificates of the hosts that have one; nothing where none has.
fn certificates(settings: &Settings) -> Result<Option<Certificates>, TlsError> {
    let pairs = settings.sites().filter_map(|site| Some((site.names.clone(), site.tls.clone()?)));
    let pairs: Vec<_> = pairs.collect();
    if pairs.is_empty() { Ok(None) } else { Certificates::open(&pairs).map(Some) }
}

/// Brings in files that changed; with `asked`, all.
fn refresh(state: &State, certificates: Option<&Certificates>, asked: bool) {
    if asked {
        reload(state);
    }
    for host in state.hosts().iter() {
        host.files.refresh();
    }
    if let Some(certificates) = certificates {
        certificates.refresh(asked);
    }
}

fn reload(state: &State) {
    match load_rules(state.settings()) {
        Ok(rules) => {
            RulesLoaded { rules: rules.rules().len() }.emit();
            state.replace_rules(rules);
        }
        Err(error) => RulesRejected { error: &error }.emit(),
    }
}

#[cfg(test)]
mod tests;
