//! `mailtap run`, and each role by itself.
//!
//! - Layer: cli
//! - Takes: the configuration.
//! - Gives: daemons that run until a signal.
//! - On failure: exit code 78 for what the configuration names wrongly, 69 for what is not there, 70 for the rest.

use std::sync::Arc;
use std::time::Duration;

use super::config_file::ConfigFile;
use super::exit::{Exit, Failure, OrExit, Result};
use super::{assemble, assemble_tracker};
use crate::config::Config;
use crate::consent::file::WithdrawnFile;
use crate::consent::{Consents, Strictest};
use crate::keys::Keys;
use crate::queue::spool::Spool;
use crate::queue::{Publisher, acceptances, deliveries};
use crate::service::Lifecycle;
use crate::service::open_files;
use crate::service::process::{self, Plan, ProcessError, Role, RoleFuture};
use crate::telemetry::Format;
use crate::{filter, forward, relay, tap, telemetry, tracker};

/// Options that roles have beside the configuration: none.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

/// Which roles a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// All that are enabled.
    All,
    Milter,
    Tap,
    Tracker,
    Relay,
    /// The same, from another relay that is gone for good.
    RelayTakingOver,
    Forward,
}

impl Which {
    const fn name(self) -> &'static str {
        match self {
            Self::All => "run",
            Self::Milter => "milter",
            Self::Tap => "tap",
            Self::Tracker => "tracker",
            Self::Relay | Self::RelayTakingOver => "relay",
            Self::Forward => "forward",
        }
    }

    fn includes(self, role: Self, enabled: bool) -> bool {
        self == role || (self == Self::All && enabled)
    }
}

/// Runs roles until a signal.
pub(super) fn run(config: &Config, which: Which) -> Result {
    let format = telemetry::start_logs(&config.raw.log.level, config.log_format).or_exit(Exit::Config)?;
    run_roles(config, which).map_err(|failure| told(failure, format))
}

/// Has a log of JSON lines end with one: what reads it would not understand another.
fn told(failure: Failure, format: Format) -> Failure {
    if format != Format::Json || failure.message.is_empty() || !tracing::enabled!(tracing::Level::ERROR) {
        return failure;
    }
    tracing::error!(exit_code = failure.exit as u8, "{}", failure.message);
    Failure::silent(failure.exit)
}

fn run_roles(config: &Config, which: Which) -> Result {
    // Fails only when a provider is installed already, which then serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let metrics = telemetry::start_metrics().or_exit(Exit::Software)?;
    let open_files = open_files::raise();
    let (roles, mut files) = roles(config, which)?;
    if let Some(warning) = open_files::too_few(open_files, &connections(config, &roles)) {
        tracing::warn!("{warning}");
    }
    let file = ConfigFile::of(config);
    metrics::gauge!("mailtap_config_restart_needed").set(0.0);
    for part in
        ["config", "keyring", "log", "queue", "spool"].into_iter().chain(roles.iter().map(|role| role.name))
    {
        telemetry::count_from_zero(part);
    }
    if roles.is_empty() {
        return Err(Failure::new(
            Exit::Config,
            "no role is enabled; set enabled = true in one of the roles' tables",
        ));
    }
    let plan = Plan {
        admin: config.admin_address(which.name()),
        takes_over: std::env::var_os("LISTEN_FDS").is_some(),
        metrics,
        // The longest that any role takes, and some time for its last words.
        drain: config.milter.drain.max(config.tracker.drain).max(Duration::from_secs(5))
            + Duration::from_secs(5),
        refresh: Box::new(move |asked| {
            telemetry::tell_lost_lines();
            for file in &mut files {
                file.refresh(asked);
            }
            if asked {
                file.compare();
            }
        }),
    };
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if which == Which::Milter {
        builder.worker_threads(milter_threads());
    }
    let runtime = builder.enable_all().build().or_exit(Exit::Software)?;
    let ended = runtime.block_on(process::run(roles, plan));
    // Threads that still wait for a disk or a peer don't hold up the end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended.map_err(|error| Failure::new(exit_of(&error), error))
}

/// How many connections the roles may have, by the setting that says so.
fn connections(config: &Config, roles: &[Role]) -> Vec<(&'static str, u64)> {
    let has = |name| roles.iter().any(|role| role.name == name);
    let raw = &config.raw;
    let mut connections = Vec::new();
    if has("milter") {
        // Those beyond the limit are answered too, up to so many.
        connections.push(("milter.max_connections", raw.milter.max_connections.saturating_mul(5)));
    }
    if has("tracker") {
        connections.push(("tracker.max_connections", raw.tracker.max_connections));
    }
    connections
}

/// Beside each processor that the milter has, Postfix needs several; and threads that find too little to do wake each other
/// for each command of a session.
fn milter_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |processors| (processors.get() / 4).max(1))
}

const fn exit_of(error: &ProcessError) -> Exit {
    match error {
        ProcessError::Role { .. }
        | ProcessError::Admin(_)
        | ProcessError::Drain(_)
        | ProcessError::Hurried => Exit::Unavailable,
        ProcessError::Signals(_) | ProcessError::Panic(_) | ProcessError::Ended(_) => Exit::Software,
    }
}

fn roles(config: &Config, which: Which) -> Result<(Vec<Role>, Vec<Watched>)> {
    let raw = &config.raw;
    let milter = which.includes(Which::Milter, raw.milter.enabled);
    let tap = which.includes(Which::Tap, raw.tap.enabled);
    let tracker = which.includes(Which::Tracker, raw.tracker.enabled);
    let takes_over = which == Which::RelayTakingOver;
    let relay =
        takes_over || which.includes(Which::Relay, raw.relay.enabled && !config.properties.is_empty());
    let forward = which.includes(Which::Forward, config.amqp.is_some());
    if which == Which::All && raw.relay.enabled && !relay {
        tracing::warn!("no [ga4] property is configured: events wait in the spool");
    }
    let keys = (milter || tap || tracker).then(|| keyring(config, milter)).transpose()?;
    let (keys, waited) = keys.unzip();
    let needs_spool = milter || tap || tracker || forward;
    let spool = needs_spool.then(|| assemble::spool(config)).transpose()?;
    let (consents, withdrawn) =
        if milter || tracker { assemble::consents(config)? } else { (Strictest(Vec::new()), None) };
    let consents: Arc<dyn Consents> = Arc::new(consents);
    let handoff = if tracker { assemble::handoff(config)? } else { None };
    let mut files: Vec<Watched> =
        keys.iter().map(|keys| Watched::keys("keyring", assemble::KEYRING, keys)).collect();
    if let (Some(file), Some(trouble)) = (files.first_mut(), waited.flatten()) {
        file.trouble = Some(trouble);
    }
    files.extend(handoff.iter().map(|keys| Watched::keys("keyring of hand-offs", assemble::HANDOFF, keys)));
    files.extend(withdrawn.map(Watched::withdrawn));
    let mut roles = Vec::new();
    if let (Some(keys), Some(spool)) = (&keys, &spool) {
        let mut deliveries = None;
        let mut accepting: Publisher = Arc::new(spool.clone());
        let mut copies = None;
        if tap {
            let mut accepted = None;
            if milter {
                let (telling, of_copies, news) = acceptances::telling(accepting);
                (accepting, copies, accepted) = (telling, Some(of_copies), Some(news));
            }
            let mut publisher: Publisher = Arc::new(spool.clone());
            if tracker {
                let (telling, news) = deliveries::telling(publisher);
                (publisher, deliveries) = (telling, Some(news));
            }
            roles.push(tap_role(config, keys, publisher, accepted)?);
        }
        if tracker {
            for warning in assemble_tracker::warnings(config) {
                tracing::warn!("{warning}");
            }
            let settings = assemble_tracker::settings(config, which == Which::Tracker);
            let deps = tracker::Deps {
                keys: keys.clone(),
                publisher: Arc::new(spool.clone()),
                handoff,
                deliveries,
                consents: Arc::clone(&consents),
                host: config.host.clone(),
            };
            let tracker = if milter {
                // Mail doesn't wait for links.
                Role::new("tracker", move |life| tracker::run_patiently(settings, deps, life))
            } else {
                Role::new("tracker", move |life| tracker::run(settings, deps, life))
            };
            roles.insert(0, with_keyring(keys, tracker));
        }
        if milter {
            roles.push(milter_role(config, keys, (accepting, copies), consents)?);
        }
    }
    if let (Some(spool), true) = (&spool, forward) {
        let settings = assemble::forward(config)?;
        let spool = spool.clone();
        roles.push(Role::new("forward", move |life| forward::run(settings, spool, life)));
    }
    if relay {
        roles.push(relay_role(config, spool, takes_over)?);
    }
    Ok((roles, files))
}

/// The keyring. A milter begins without one and lets mail through, rather than have Postfix refuse it; where there is none, a role
/// that needs a keyring can't begin.
fn keyring(config: &Config, milter: bool) -> Result<(Keys, Option<String>)> {
    if !milter {
        return Ok((assemble::keyring(config)?, None));
    }
    let (keys, error) = Keys::open_or_wait(&config.keyring);
    let trouble = error.map(|error| assemble::keyring_trouble(assemble::KEYRING, &error));
    if let Some(trouble) = &trouble {
        tracing::error!("{trouble}; until it can be read, all mail passes as it came");
        metrics::counter!("mailtap_keyring_failures_total", "file" => "keyring").increment(1);
    }
    Ok((keys, trouble))
}

/// A role that begins once there is a keyring: without one the tap would lose events, and the tracker send people away.
fn with_keyring(keys: &Keys, role: Role) -> Role {
    let keys = keys.clone();
    let Role { name, finite, start } = role;
    let start = Box::new(move |life: Lifecycle| -> RoleFuture {
        Box::pin(async move {
            if keys.is_waited_for() {
                tracing::warn!(role = name, "waits for the keyring");
                life.health.component(name).not_ready("waits for the keyring");
            }
            while keys.is_waited_for() {
                tokio::select! {
                    () = life.stop.cancelled() => return Ok(()),
                    () = tokio::time::sleep(Duration::from_millis(200)) => {}
                }
            }
            start(life).await
        })
    });
    Role { name, finite, start }
}

fn milter_role(
    config: &Config,
    keys: &Keys,
    (publisher, copies): (Publisher, Option<acceptances::Copies>),
    consents: Arc<dyn Consents>,
) -> Result<Role> {
    let settings = assemble::milter(config)?;
    let deps = filter::Deps {
        keys: keys.clone(),
        pseudonyms: assemble::pseudonyms(config)?,
        consents,
        publisher,
        copies,
        served: assemble::served(config)?,
        host: config.host.clone(),
    };
    Ok(Role::new("milter", move |life| filter::run(settings, deps, life)))
}

fn tap_role(
    config: &Config,
    keys: &Keys,
    publisher: Publisher,
    accepted: Option<acceptances::News>,
) -> Result<Role> {
    let settings = assemble::tap(config);
    let deps = tap::Deps {
        pseudonyms: assemble::pseudonyms(config)?,
        verify_ref: assemble::verify_ref(keys.clone()),
        publisher,
        host: config.host.clone(),
        accepted,
    };
    let finite = matches!(settings.source, tap::Source::Stdin);
    let tap = Role { finite, ..Role::new("tap", move |life| tap::run(settings, deps, life)) };
    Ok(with_keyring(keys, tap))
}

fn relay_role(config: &Config, spool: Option<Spool>, takes_over: bool) -> Result<Role> {
    if config.properties.is_empty() {
        return Err(Failure::new(
            Exit::Config,
            "ga4.measurement_id is missing: the relay has nowhere to send to",
        ));
    }
    if let Some(missing) = config.properties.iter().find_map(|property| property.missing.as_ref()) {
        return Err(Failure::new(Exit::Config, missing));
    }
    let (settings, mapping) = (assemble::relay(config), config.mapping.clone());
    let dedupe = assemble::dedupe(config)?;
    let open_source = assemble::source(config, spool, &dedupe, takes_over)?;
    Ok(Role::new("relay", move |life| async move {
        let source = open_source(&life);
        relay::run_with(settings, mapping, source, dedupe, life).await
    }))
}

/// A file that is read again when it changed.
struct Watched {
    name: &'static str,
    refresh: Box<dyn Fn() -> std::result::Result<bool, String> + Send>,
    trouble: Option<String>,
}

impl Watched {
    fn keys(name: &'static str, key: &'static str, keys: &Keys) -> Self {
        let keys = keys.clone();
        let refresh =
            Box::new(move || keys.refresh().map_err(|error| assemble::keyring_trouble(key, &error)));
        Self { name, refresh, trouble: None }
    }

    fn withdrawn(file: WithdrawnFile) -> Self {
        let refresh = Box::new(move || file.refresh().map_err(|error| error.to_string()));
        Self { name: "list of withdrawn consents", refresh, trouble: None }
    }

    /// Brings in what changed; the old one stays where the new one can't be read, which is said once for each trouble.
    fn refresh(&mut self, asked: bool) {
        let file = self.name;
        match (self.refresh)() {
            Ok(changed) => {
                if changed {
                    tracing::info!(file, "read again");
                } else if asked {
                    tracing::info!(file, "unchanged");
                }
                self.trouble = None;
            }
            Err(error) => {
                if asked || self.trouble.as_ref() != Some(&error) {
                    tracing::error!(file, %error, "can't be read again: the one in use stays");
                    metrics::counter!("mailtap_keyring_failures_total", "file" => file).increment(1);
                }
                self.trouble = Some(error);
            }
        }
    }
}
