//! `mailtap run`, and each role by itself.
//!
//! - Layer: cli
//! - Takes: the configuration.
//! - Gives: daemons that run until a signal.
//! - On failure: exit code 78 for what the configuration names wrongly, 69 for what is not there, 70 for the rest.

use std::sync::Arc;
use std::time::Duration;

use super::exit::{Exit, Failure, OrExit, Result};
use super::{assemble, assemble_tracker};
use crate::config::Config;
use crate::keys::Keys;
use crate::queue::spool::Spool;
use crate::service::process::{self, Plan, ProcessError, Role};
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
    telemetry::start_logs(&config.raw.log.level, config.log_format).or_exit(Exit::Config)?;
    // Fails only when a provider is installed already, which then serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let metrics = telemetry::start_metrics().or_exit(Exit::Software)?;
    let (roles, keys) = roles(config, which)?;
    if roles.is_empty() {
        return Err(Failure::new(
            Exit::Config,
            "no role is enabled; set enabled = true in one of the roles' tables",
        ));
    }
    let mut trouble = None;
    let plan = Plan {
        admin: config.admin_address(which.name()),
        metrics,
        // The longest that any role takes, and some time for its last words.
        drain: config.milter.drain.max(config.tracker.drain).max(Duration::from_secs(5))
            + Duration::from_secs(5),
        refresh: Box::new(move |asked| {
            if let Some(keys) = &keys {
                refresh(keys, asked, &mut trouble);
            }
        }),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().or_exit(Exit::Software)?;
    let ended = runtime.block_on(process::run(roles, plan));
    // Threads that still wait for a disk or a peer don't hold up the end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended.map_err(|error| Failure::new(exit_of(&error), error))
}

const fn exit_of(error: &ProcessError) -> Exit {
    match error {
        ProcessError::Role { .. } | ProcessError::Admin(_) | ProcessError::Drain(_) => Exit::Unavailable,
        ProcessError::Signals(_) | ProcessError::Panic(_) | ProcessError::Ended(_) => Exit::Software,
    }
}

fn roles(config: &Config, which: Which) -> Result<(Vec<Role>, Option<Keys>)> {
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
    let keys = (milter || tap || tracker).then(|| assemble::keyring(config)).transpose()?;
    let needs_spool = milter || tap || tracker || forward;
    let spool = needs_spool.then(|| assemble::spool(config)).transpose()?;
    let mut roles = Vec::new();
    if let (Some(keys), Some(spool)) = (&keys, &spool) {
        if tracker {
            for warning in assemble_tracker::warnings(config) {
                tracing::warn!("{warning}");
            }
            roles.push(tracker_role(config, which, keys, spool));
        }
        if tap {
            roles.push(tap_role(config, keys, spool)?);
        }
        if milter {
            roles.push(milter_role(config, keys, spool)?);
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
    Ok((roles, keys))
}

fn milter_role(config: &Config, keys: &Keys, spool: &Spool) -> Result<Role> {
    let settings = assemble::milter(config)?;
    let deps = filter::Deps {
        keys: keys.clone(),
        pseudonyms: assemble::pseudonyms(config)?,
        consents: Arc::new(config.consent),
        publisher: Arc::new(spool.clone()),
        served: assemble::served(config)?,
        host: config.host.clone(),
    };
    Ok(Role::new("milter", move |life| filter::run(settings, deps, life)))
}

fn tap_role(config: &Config, keys: &Keys, spool: &Spool) -> Result<Role> {
    let settings = assemble::tap(config);
    let deps = tap::Deps {
        pseudonyms: assemble::pseudonyms(config)?,
        verify_ref: assemble::verify_ref(keys.clone()),
        publisher: Arc::new(spool.clone()),
        host: config.host.clone(),
    };
    let finite = matches!(settings.source, tap::Source::Stdin);
    Ok(Role { finite, ..Role::new("tap", move |life| tap::run(settings, deps, life)) })
}

fn tracker_role(config: &Config, which: Which, keys: &Keys, spool: &Spool) -> Role {
    let settings = assemble_tracker::settings(config, which == Which::Tracker);
    let deps = tracker::Deps {
        keys: keys.clone(),
        publisher: Arc::new(spool.clone()),
        consents: Arc::new(config.consent),
        host: config.host.clone(),
    };
    Role::new("tracker", move |life| tracker::run(settings, deps, life))
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

/// Brings in a changed keyring; the old one stays where the new one can't be read, which is said once for each trouble.
fn refresh(keys: &Keys, asked: bool, trouble: &mut Option<String>) {
    match keys.refresh() {
        Ok(changed) => {
            if changed {
                tracing::info!(keys = keys.current().keys().len(), "keyring read again");
            } else if asked {
                tracing::info!("keyring unchanged");
            }
            *trouble = None;
        }
        Err(error) => {
            let text = error.to_string();
            if asked || trouble.as_ref() != Some(&text) {
                tracing::error!(%error, "keyring changes nothing: the one in use stays");
                metrics::counter!("mailtap_keyring_failures_total").increment(1);
            }
            *trouble = Some(text);
        }
    }
}
