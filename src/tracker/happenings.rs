//! What happens in the tracker: each a type that writes the log line and the metric together.
//!
//! - Layer: edge
//! - Takes: facts without personal data: no token, no target, no address of a client.
//! - Gives: `tracing` events and metrics; counters with few labels.
//! - On failure: nothing can fail.
//! - See: `docs/tracker.md`, "Metrics".

use std::fmt;
use std::io;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use super::hit::Refusal;
use crate::event::{Event, Kind, Machine};
use crate::queue::PublishError;
use crate::service::open_files;

/// A link was followed or a pixel loaded.
pub(super) struct Recorded<'a> {
    pub(super) event: &'a Event,
}

impl Recorded<'_> {
    pub(super) fn emit(&self, meters: &Meters) {
        let data = &self.event.data;
        let machine = data.machine.unwrap_or(Machine::No);
        let rule = data.machine_rule.as_deref().unwrap_or("-");
        let late = data.late == Some(true);
        let counters = if self.event.kind == Kind::Clicked { &meters.clicks } else { &meters.opens };
        counters.of(machine).increment(1);
        if late {
            meters.late.increment(1);
        }
        let machine = machine.as_str();
        tracing::debug!(kind = %self.event.kind, message_id = %self.event.message, machine, rule, late, "recorded");
    }
}

/// The metrics of every request, looked up once; they count only where telemetry began before.
#[derive(Debug)]
pub(super) struct Meters {
    clicks: PerVerdict,
    opens: PerVerdict,
    late: Counter,
    waiting: Gauge,
    redirect: Histogram,
    pixel: Histogram,
}

#[derive(Debug)]
struct PerVerdict {
    no: Counter,
    probable: Counter,
    certain: Counter,
}

impl PerVerdict {
    fn new(name: &'static str) -> Self {
        let of = |machine: Machine| counter!(name, "machine" => machine.as_str());
        Self { no: of(Machine::No), probable: of(Machine::Probable), certain: of(Machine::Certain) }
    }

    const fn of(&self, machine: Machine) -> &Counter {
        match machine {
            Machine::No => &self.no,
            Machine::Probable => &self.probable,
            Machine::Certain => &self.certain,
        }
    }
}

impl Meters {
    pub(super) fn new() -> Self {
        let seconds = |kind: &'static str| histogram!("mailtap_tracker_answer_seconds", "kind" => kind);
        Self {
            clicks: PerVerdict::new("mailtap_tracker_clicks_total"),
            opens: PerVerdict::new("mailtap_tracker_opens_total"),
            late: counter!("mailtap_tracker_late_total"),
            waiting: gauge!("mailtap_tracker_waiting_events"),
            redirect: seconds("redirect"),
            pixel: seconds("pixel"),
        }
    }
}

/// A link or pixel was not one of ours, or no longer trusted.
pub(super) struct Refused(pub(super) Refusal);

impl Refused {
    pub(super) fn emit(&self) {
        let Refusal { kind, reason } = self.0;
        counter!("mailtap_tracker_refused_total", "kind" => kind, "reason" => reason).increment(1);
        tracing::debug!(kind, reason, "refused");
    }
}

/// An event was recorded without anything personal.
pub(super) struct Anonymised {
    pub(super) reason: &'static str,
}

impl Anonymised {
    pub(super) fn emit(&self) {
        counter!("mailtap_tracker_anonymous_total", "reason" => self.reason).increment(1);
    }
}

/// A request was answered.
pub(super) struct Answered {
    pub(super) kind: &'static str,
    pub(super) took: Duration,
}

impl Answered {
    pub(super) fn emit(&self, meters: &Meters) {
        let seconds = self.took.as_secs_f64();
        match self.kind {
            "redirect" => meters.redirect.record(seconds),
            "pixel" => meters.pixel.record(seconds),
            kind => histogram!("mailtap_tracker_answer_seconds", "kind" => kind).record(seconds),
        }
    }
}

/// An answer went out before its event was stored.
pub(super) struct Unconfirmed;

impl Unconfirmed {
    pub(super) fn emit(&self) {
        counter!("mailtap_tracker_unconfirmed_total").increment(1);
        tracing::debug!("answered before the event was stored");
    }
}

/// Events that were held say something else now, or it was too late for that.
pub(super) struct Amended<'a> {
    pub(super) amended: usize,
    pub(super) late: usize,
    pub(super) error: Option<&'a PublishError>,
}

impl Amended<'_> {
    pub(super) fn emit(&self) {
        counter!("mailtap_tracker_amended_total").increment(self.amended as u64);
        counter!("mailtap_tracker_amended_late_total").increment(self.late as u64);
        if let Some(error) = self.error {
            tracing::warn!(%error, events = self.late, "events can't be amended: they go out as they were");
        }
    }
}

/// What was seen had to be forgotten before its time.
pub(super) struct Forgotten {
    pub(super) count: u64,
}

impl Forgotten {
    pub(super) fn emit(&self) {
        if self.count > 0 {
            counter!("mailtap_tracker_watch_forgotten_total").increment(self.count);
            tracing::debug!(count = self.count, "hits forgotten early");
        }
    }
}

/// Events could not be stored now; they are tried again.
pub(super) struct PublishFailed<'a> {
    pub(super) error: &'a PublishError,
    pub(super) events: usize,
}

impl PublishFailed<'_> {
    pub(super) fn emit(&self) {
        counter!("mailtap_tracker_publish_errors_total").increment(1);
        tracing::warn!(error = %self.error, events = self.events, "events can't be stored; trying again");
    }
}

/// Events are gone. Counted always; logged when the caller has not done so just now.
pub(super) struct Lost {
    pub(super) events: u64,
    pub(super) why: &'static str,
    /// How many to name in the log; `None` means no line now.
    pub(super) log: Option<u64>,
}

impl Lost {
    pub(super) fn emit(&self) {
        counter!("mailtap_tracker_lost_total", "reason" => self.why).increment(self.events);
        if let Some(events) = self.log {
            tracing::error!(events, reason = self.why, "events are lost");
        }
    }
}

/// How many events wait to be stored.
pub(super) struct Waits {
    pub(super) events: u64,
}

impl Waits {
    pub(super) fn emit(&self, meters: &Meters) {
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        meters.waiting.set(self.events as f64);
    }
}

/// The rules were read again.
pub(super) struct RulesLoaded {
    pub(super) rules: usize,
}

impl RulesLoaded {
    pub(super) fn emit(&self) {
        counter!("mailtap_tracker_reloads_total", "result" => "ok").increment(1);
        tracing::info!(rules = self.rules, "rules that tell machines from people are loaded");
    }
}

/// The rules could not be read again.
pub(super) struct RulesRejected<'a> {
    pub(super) error: &'a dyn fmt::Display,
}

impl RulesRejected<'_> {
    pub(super) fn emit(&self) {
        counter!("mailtap_tracker_reloads_total", "result" => "error").increment(1);
        tracing::warn!(error = %self.error, "the rules in use stay");
    }
}

/// The tracker listens.
pub(super) struct Listening {
    pub(super) address: Option<std::net::SocketAddr>,
    pub(super) tls: bool,
}

impl Listening {
    pub(super) fn emit(&self) {
        let address = self.address.map(|address| address.to_string()).unwrap_or_default();
        tracing::info!(address, tls = self.tls, "tracker listens");
    }
}

/// A connection began or ended.
pub(super) struct Connections {
    pub(super) open: usize,
    pub(super) began: bool,
}

impl Connections {
    pub(super) fn emit(&self) {
        if self.began {
            counter!("mailtap_tracker_connections_total").increment(1);
        }
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        gauge!("mailtap_tracker_connections").set(self.open as f64);
    }
}

/// A connection was cut or not taken.
pub(super) struct ConnectionCut {
    /// `head-timeout`, `idle-timeout`, `full`, `client-limit`, `handshake`, `protocol`, `stopping`, `proxy-…`.
    pub(super) reason: &'static str,
}

impl ConnectionCut {
    pub(super) fn emit(&self) {
        counter!("mailtap_tracker_connections_cut_total", "reason" => self.reason).increment(1);
        tracing::debug!(reason = self.reason, "connection cut");
    }
}

/// A connection came from none of `trusted_proxies`, and a PROXY header is wanted. Each is counted as cut; this is said
/// once.
pub(super) struct ProxyUntrusted;

impl ProxyUntrusted {
    pub(super) fn emit(&self) {
        tracing::warn!(
            "connections that come from none of tracker.trusted_proxies are closed without an answer, since \
             tracker.proxy_protocol is on: name the networks of your proxies there, or switch it off (said once; see \
             mailtap_tracker_connections_cut_total)"
        );
    }
}

/// A click or an open came by a proxy of ours that did not say from whom.
pub(super) struct ClientUnnamed {
    pub(super) is_first: bool,
}

impl ClientUnnamed {
    pub(super) fn emit(&self) {
        counter!("mailtap_tracker_unnamed_clients_total").increment(1);
        if self.is_first {
            tracing::warn!(
                "a trusted proxy names no client: rules on networks and sweeps leave such clicks and opens out, and all of \
                 them share one tracker.client_rate; have the proxy send X-Forwarded-For, or take its address out of \
                 tracker.trusted_proxies (said once; see mailtap_tracker_unnamed_clients_total)"
            );
        }
    }
}

/// Somebody asks more often than is recorded.
pub(super) struct Limited {
    /// `client` or `token`.
    pub(super) whose: &'static str,
    /// Whether an event is lost by it.
    pub(super) event: bool,
}

impl Limited {
    pub(super) fn emit(&self) {
        counter!("mailtap_tracker_limited_total", "rate" => self.whose).increment(1);
        if self.event {
            counter!("mailtap_tracker_lost_total", "reason" => "rate").increment(1);
        }
        tracing::debug!(rate = self.whose, "beyond the rate");
    }
}

/// A TLS handshake failed.
pub(super) struct HandshakeFailed<'a> {
    pub(super) error: &'a io::Error,
}

impl HandshakeFailed<'_> {
    pub(super) fn emit(&self) {
        counter!("mailtap_tracker_handshakes_failed_total").increment(1);
        tracing::debug!(error = %self.error, "no TLS");
    }
}

/// The keyring was read before its time, for a link of a key that was not in it.
pub(super) struct KeysLooked;

impl KeysLooked {
    pub(super) fn emit(&self) {
        tracing::info!(file = "keyring", "read again, for a key that was not known");
    }
}

/// The tracker can't begin beside the other roles, and tries again.
pub(super) struct CantBegin<'a> {
    pub(super) error: &'a str,
}

impl CantBegin<'_> {
    pub(super) fn emit(&self) {
        tracing::error!(
            error = self.error,
            "the tracker can't begin: links of mail don't work here until it does; trying again"
        );
    }
}

/// The files below `/.well-known/` were read again.
pub(super) struct FilesLoaded<'a> {
    pub(super) directory: &'a std::path::Path,
    pub(super) files: usize,
}

impl FilesLoaded<'_> {
    pub(super) fn emit(&self) {
        tracing::info!(directory = %self.directory.display(), files = self.files, "well-known files read again");
    }
}

/// They could not be read again.
pub(super) struct FilesRejected<'a> {
    pub(super) directory: &'a std::path::Path,
    pub(super) error: &'a io::Error,
}

impl FilesRejected<'_> {
    pub(super) fn emit(&self) {
        counter!("mailtap_tracker_well_known_errors_total").increment(1);
        tracing::error!(directory = %self.directory.display(), error = %self.error, "well-known files: those in use stay");
    }
}

/// A certificate was read again.
pub(super) struct CertificateLoaded<'a> {
    pub(super) certificate: &'a std::path::Path,
}

impl CertificateLoaded<'_> {
    pub(super) fn emit(&self) {
        counter!("mailtap_tracker_certificates_total", "result" => "ok").increment(1);
        tracing::info!(certificate = %self.certificate.display(), "certificate read again");
    }
}

/// A certificate could not be read again.
pub(super) struct CertificateRejected<'a> {
    pub(super) error: &'a dyn fmt::Display,
}

impl CertificateRejected<'_> {
    pub(super) fn emit(&self) {
        counter!("mailtap_tracker_certificates_total", "result" => "error").increment(1);
        tracing::error!(error = %self.error, "certificate changes nothing: the one in use stays");
    }
}

/// As many connections as allowed are open: the next ones wait.
pub(super) struct ConnectionsFull;

impl ConnectionsFull {
    pub(super) fn emit(&self) {
        counter!("mailtap_tracker_connections_full_total").increment(1);
        tracing::debug!("all connections are in use");
    }
}

/// The system gave no connection.
pub(super) struct AcceptFailed<'a> {
    pub(super) error: &'a io::Error,
}

impl AcceptFailed<'_> {
    pub(super) fn emit(&self) {
        counter!("mailtap_tracker_accept_errors_total").increment(1);
        let remedy = open_files::remedy(self.error);
        tracing::warn!(error = %self.error, remedy, "can't accept a connection; going on");
    }
}
