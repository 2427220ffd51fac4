//! From the configuration to the settings of each role: the only place that knows both.
//!
//! - Layer: cli
//! - Takes: a checked configuration.
//! - Gives: each role's `Settings` and what it works with.
//! - On failure: one message that names the key.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::assemble_tracker as tracker;
use super::events::spool_directory;
use super::exit::{Exit, Failure, OrExit, Result};
use super::own_hosts::own_hosts;
use crate::config::units::Listen;
use crate::config::{self, AmqpConfig, Config, PropertyConfig, TapSource};
use crate::consent::file::WithdrawnFile;
use crate::consent::{Consents, Strictest};
use crate::delivery::Classifier;
use crate::filter::campaign::CampaignRule;
use crate::filter::decide::Policy;
use crate::filter::rules::Rule;
use crate::identity::PseudonymKey;
use crate::keys::ring::Use;
use crate::keys::token::{self, Standing, Token, TokenError};
use crate::keys::{self, KeyFileError, Keys};
use crate::queue::amqp::{self, Owner};
use crate::queue::dedupe::Dedupe;
use crate::queue::served::Served;
use crate::queue::source::{AmqpSource, Source, SpoolSource, Taking};
use crate::queue::spool::{self, Spool};
use crate::rewrite::{HostRule, PatternError, Plan};
use crate::service::Lifecycle;
use crate::{bounce, filter, forward, relay, tap};

/// What the milter and `mailtap rewrite` do by.
pub(super) fn policy(config: &Config) -> std::result::Result<Policy, PatternError> {
    let raw = &config.raw.policy;
    let plan = Plan {
        clicks: raw.clicks,
        opens: raw.opens,
        text: raw.text_links,
        own_prefixes: tracker::own_prefixes(config),
        pixel_template: raw.pixel.clone(),
        amp: raw.amp_parts,
        conditional_comments: raw.outlook_comments,
        skip_visible_url: raw.skip_visible_urls,
        rewrite_dkim_signed: raw.rewrite_dkim_signed,
        rewrite_auto_generated: raw.rewrite_auto_generated,
        rewrite_auto_replies: raw.rewrite_auto_replies,
        rewrite_invitations: raw.rewrite_invitations,
        max_parts: usize::try_from(raw.max_parts).unwrap_or(usize::MAX),
        max_depth: usize::try_from(raw.max_depth).unwrap_or(usize::MAX),
        max_links: u16::try_from(raw.max_links).unwrap_or(u16::MAX),
        max_url_bytes: usize::try_from(config.raw.tracking.max_url_bytes).unwrap_or(usize::MAX),
        max_message_bytes: config.max_message_bytes,
        pixel_at: config.pixel_at,
        host_rules: host_rules(config)?,
        login_patterns: config.link_patterns.clone(),
        ..Plan::default()
    };
    let rule = |rule: &crate::config::CampaignSource| CampaignRule {
        sender: rule.sender.clone(),
        campaign: rule.campaign.clone(),
    };
    Ok(Policy {
        sender_domains: config.sender_domains.clone(),
        share: config.share,
        campaign_headers: raw.campaign_headers.clone(),
        campaign_rules: config.campaigns.iter().map(rule).collect(),
        rules: config.rules.iter().map(tracking_rule).collect(),
        hosts: tracker::hosts(config),
        max_url_bytes: plan.max_url_bytes,
        plan,
    })
}

fn tracking_rule(rule: &crate::config::raw::TrackingRule) -> Rule {
    Rule {
        sender_domains: rule.sender_domains.clone(),
        recipient_domains: rule.recipient_domains.clone(),
        clicks: rule.clicks,
        opens: rule.opens,
    }
}

/// What is denied comes first: a host that is in both lists is left alone.
fn host_rules(config: &Config) -> std::result::Result<Vec<HostRule>, PatternError> {
    let denied = config.skip_link_hosts.iter().map(|host| HostRule::deny(host));
    denied.chain(config.only_link_hosts.iter().map(|host| HostRule::allow(host))).collect()
}

/// Opens this host's spool.
pub(super) fn spool(config: &Config) -> Result<Spool> {
    let settings = spool::Settings {
        directory: spool_directory(config),
        max_bytes: config.spool_max_bytes,
        sync: if config.spool_full_sync { spool::Sync::Full } else { spool::Sync::Normal },
        dedupe: config.dedupe,
        max_age: config.spool_max_age,
        too_old: if config.spool_drops_old { spool::TooOld::Drop } else { spool::TooOld::Bury },
        ..spool::Settings::default()
    };
    Spool::open(settings).or_exit(Exit::Unavailable)
}

/// Opens the memory of copies, where mail is split.
pub(super) fn served(config: &Config) -> Result<Option<Served>> {
    let open = || Served::open(&spool_directory(config)).or_exit(Exit::Unavailable);
    config.split.as_ref().map(|_| open()).transpose()
}

/// Opens the keyring.
pub(super) fn keyring(config: &Config) -> Result<Keys> {
    Keys::open(&config.keyring).map_err(|error| Failure::new(Exit::Config, keyring_trouble(KEYRING, &error)))
}

/// The configuration's keys for keyrings.
pub(super) const KEYRING: &str = "keys.keyring";
pub(super) const HANDOFF: &str = "keys.handoff";

/// What to say of a keyring, the one of this key of the configuration, that can't be read.
pub(super) fn keyring_trouble(key: &str, error: &KeyFileError) -> String {
    let remedy = match error {
        KeyFileError::OpenToOthers { .. } | KeyFileError::Missing { .. } => "",
        _ => "; give it to the user mailtap runs as, mode 0600, or restore it from where it was made",
    };
    format!("{key}: {error}{remedy}")
}

/// Opens the keyring of hand-offs, where there are some.
pub(super) fn handoff(config: &Config) -> Result<Option<Keys>> {
    let open = |path: &PathBuf| {
        let opened = Keys::open_for(path, Use::Handoff);
        opened.map_err(|error| Failure::new(Exit::Config, keyring_trouble(HANDOFF, &error)))
    };
    config.handoff_keys.as_ref().map(open).transpose()
}

/// What recipients agreed to: the site's answer and the list of those who withdrew; and that list.
pub(super) fn consents(config: &Config) -> Result<(Strictest, Option<WithdrawnFile>)> {
    let open = |path: &PathBuf| WithdrawnFile::open(path).or_exit(Exit::Config);
    let withdrawn = config.withdrawn_file.as_ref().map(open).transpose()?;
    let mut sources: Vec<Arc<dyn Consents>> = vec![Arc::new(config.consent)];
    sources.extend(withdrawn.iter().map(|file| Arc::new(file.clone()) as Arc<dyn Consents>));
    Ok((Strictest(sources), withdrawn))
}

/// Reads the pseudonym key.
pub(super) fn pseudonyms(config: &Config) -> Result<PseudonymKey> {
    keys::load_pseudonym_key(&config.pseudonym_key).or_exit(Exit::Config)
}

/// Gives the message that a reference names, if a key that is still trusted signed it.
pub(super) fn verify_ref(keys: Keys) -> tap::VerifyRef {
    let verify = move |text: &str| match token::verify(text, &keys.current()) {
        // Signed by a key that the milter knows a moment longer.
        Err(TokenError::UnknownKey(_)) if keys.look_again() => token::verify(text, &keys.current()),
        verified => verified,
    };
    Arc::new(move |text| match verify(text) {
        Ok(verified) if verified.standing == Standing::Good => match verified.token {
            Token::Ref(reference) => Some(reference.message),
            Token::Click(_) | Token::Open(_) => None,
        },
        _ => None,
    })
}

/// The rules of bounce classes.
pub(super) fn classifier(config: &Config) -> Result<Classifier> {
    config::classifier(config.bounce_rules.as_deref()).or_exit(Exit::Config)
}

/// What turns log lines into events.
pub(super) fn tap_parts(config: &Config) -> Result<tap::correlate::Parts> {
    Ok(tap::correlate::Parts {
        host: config.host.clone(),
        pseudonyms: pseudonyms(config)?,
        verify_ref: verify_ref(keyring(config)?),
        classifier: classifier(config)?,
        providers: config.providers.clone(),
        replies: config.replies,
        zone: config.time_zone.clone(),
        max_tracked: usize::try_from(config.raw.tap.max_tracked).unwrap_or(usize::MAX),
        own_relays: config.raw.tap.own_relays.clone(),
        copy_recipients: config.raw.tap.copy_recipients.clone(),
        units: config.raw.tap.units.clone(),
    })
}

/// The tap's settings.
pub(super) fn tap(config: &Config) -> tap::Settings {
    let source = match &config.tap_source {
        TapSource::Files(files) => tap::Source::Files(files.clone()),
        TapSource::Journal(units) => {
            let identifiers = config.raw.tap.identifiers.clone();
            tap::Source::Journal(tap::JournalFilter { units: units.clone(), identifiers })
        }
        TapSource::Stdin => tap::Source::Stdin,
    };
    tap::Settings {
        source,
        state_dir: config.state_dir.clone(),
        zone: config.time_zone.clone(),
        max_tracked: usize::try_from(config.raw.tap.max_tracked).unwrap_or(usize::MAX),
        own_relays: config.raw.tap.own_relays.clone(),
        copy_recipients: config.raw.tap.copy_recipients.clone(),
        units: config.raw.tap.units.clone(),
        rules: {
            let path = config.bounce_rules.clone();
            tap::Rules(Arc::new(move || config::classifier(path.as_deref())))
        },
        providers: config.providers.clone(),
        replies: config.replies,
        syslog_names: config.raw.tap.syslog_names.clone(),
        ..tap::Settings::default()
    }
}

/// How to reach the broker.
pub(super) fn broker(amqp: &AmqpConfig) -> Result<amqp::Settings> {
    if let Some(missing) = &amqp.missing {
        return Err(Failure::new(Exit::Config, missing));
    }
    Ok(amqp::Settings {
        uris: amqp.urls.clone(),
        shape: shape(amqp),
        topology: if amqp.declare { amqp::Mode::Declare } else { amqp::Mode::Check },
        ca_file: amqp.ca_file.clone(),
        client_certificate: amqp.client_certificate.clone(),
        ..amqp::Settings::default()
    })
}

/// What is there.
pub(super) fn shape(amqp: &AmqpConfig) -> amqp::topology::Shape {
    amqp::topology::Shape {
        prefix: amqp.prefix.clone(),
        retry_tiers: amqp.retry_after.clone(),
        delivery_limit: amqp.delivery_limit,
        partitions: amqp.partitions,
    }
}

/// The forwarder's settings.
pub(super) fn forward(config: &Config) -> Result<forward::Settings> {
    let Some(amqp) = &config.amqp else {
        return Err(Failure::new(Exit::Config, "amqp.url is missing: there is no RabbitMQ to forward to"));
    };
    Ok(forward::Settings {
        broker: broker(amqp)?,
        window: usize::from(amqp.prefetch),
        ..forward::Settings::default()
    })
}

/// What remembers which events were sent.
pub(super) fn dedupe(config: &Config) -> Result<Dedupe> {
    Dedupe::open(&relay_directory(config)).or_exit(Exit::Unavailable)
}

/// Where the relay keeps what it remembers.
pub(super) fn relay_directory(config: &Config) -> PathBuf {
    config.state_dir.join("relay")
}

/// Where the relay takes events from; a spool that is open in this process is shared, so that it tells its news.
pub(super) fn source(
    config: &Config,
    spool: Option<Spool>,
    dedupe: &Dedupe,
    takes_over: bool,
) -> Result<OpenSource> {
    if let Some(amqp) = &config.amqp {
        let owner = Owner { memory: dedupe.name().to_owned(), host: config.host.clone(), takes_over };
        let queues = config.relay.queues.clone();
        // So that there is time for what holds up their going back.
        let hold = amqp.consumer_timeout / 3;
        let taking = Taking { prefetch: amqp.prefetch, queues, owner: Some(owner), hold };
        let settings = broker(amqp)?;
        return Ok(Box::new(move |life| Box::new(AmqpSource::taking(settings, taking, life))));
    }
    let held = usize::try_from(config.raw.amqp.prefetch).unwrap_or(usize::MAX);
    let spool = spool.map_or_else(|| self::spool(config), Ok)?;
    Ok(Box::new(move |life| Box::new(SpoolSource::new(spool, held, life.stop.clone()))))
}

/// Opens a source within the runtime.
pub(super) type OpenSource = Box<dyn FnOnce(&Lifecycle) -> Box<dyn Source> + Send>;

/// Where the milter listens.
pub(super) fn milter_address(config: &Config) -> filter::Address {
    let milter = &config.milter;
    match &milter.listen {
        Listen::Tcp(address) => filter::Address::Tcp(*address),
        Listen::Named { host, port } => filter::Address::Named { host: host.clone(), port: *port },
        Listen::Unix(path) => filter::Address::Unix {
            path: path.clone(),
            mode: milter.socket_mode,
            group: milter.socket_group.clone(),
        },
    }
}

/// The milter's settings.
pub(super) fn milter(config: &Config) -> Result<filter::Settings> {
    let milter = &config.milter;
    Ok(filter::Settings {
        address: milter_address(config),
        policy: policy(config).or_exit(Exit::Config)?,
        tempfail: milter.tempfail,
        postfix_config_dirs: milter.postfix_config_dirs.clone(),
        trust_default_action: config.raw.milter.trust_default_action,
        message_size_limit: milter.message_size_limit,
        split: config.split.as_ref().map(|split| filter::split::Settings {
            address: split.address,
            max_recipients: split.max_recipients,
            timeout: split.timeout,
        }),
        connections: milter.max_connections,
        memory_bytes: milter.max_memory_bytes,
        max_headers: milter.max_headers,
        max_header_bytes: milter.max_header_bytes,
        max_recipients: milter.max_recipients,
        message_timeout: milter.message_timeout,
        idle_timeout: milter.idle_timeout,
        first_timeout: milter.first_timeout,
        content_timeout: milter.content_timeout,
        write_timeout: milter.write_timeout,
        drain: milter.drain,
        // Before the whole message is given up, so that no event is stored for one that passes as it came.
        publish_wait: Duration::from_secs(5).min(milter.message_timeout / 4),
    })
}

/// The relay's settings.
pub(super) fn relay(config: &Config) -> relay::Settings {
    let property = |property: &PropertyConfig| relay::send::Property {
        takes: relay::property::Takes {
            campaigns: property.campaigns.clone(),
            domains: property.sender_domains.clone(),
        },
        measurement_id: property.measurement_id.clone(),
        api_secret: property.api_secret.clone(),
        base_url: property.url.clone(),
        path: property.path.clone(),
        preview: property.preview.clone(),
    };
    relay::Settings {
        properties: config.properties.iter().map(property).collect(),
        max_in_flight: config.relay.max_in_flight,
        per_property: config.relay.per_property,
        per_property_hour: config.relay.per_property_hour,
        streams: config.relay.streams,
        h2c: config.relay.h2c,
        batch_window: config.relay.batch_window,
        timeout: config.relay.timeout,
        retry_uncertain: config.relay.retry_uncertain,
    }
}

/// What returned mail is read with.
pub(super) fn reader(config: &Config) -> Result<bounce::Reader> {
    Ok(bounce::Reader {
        host: config.host.clone(),
        pseudonyms: pseudonyms(config)?,
        verify_ref: verify_ref(keyring(config)?),
        classifier: classifier(config)?,
        providers: config.providers.clone(),
        replies: config.replies,
        own_hosts: {
            let config = config.clone();
            Arc::new(move || own_hosts(&config))
        },
    })
}

#[cfg(test)]
#[path = "assemble_tests.rs"]
mod tests;
