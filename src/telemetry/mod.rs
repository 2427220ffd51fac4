//! What administrators see: logs and metrics.
//!
//! - Layer: edge
//! - Takes: the log level and format.
//! - Gives: logs on standard error (text on a terminal, JSON lines otherwise), metrics as Prometheus text.
//! - On failure: a second initialisation in one process is an error; a line that can't be written is lost and counted, and
//!   whoever reads no lines holds up nobody.
//! - See: `docs/operations.md`.

mod catalogue;
mod level;
mod lines;

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::sync::OnceLock;

pub use catalogue::count_from_zero;
pub use level::directives;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use lines::Lines;

/// The targets of libraries whose own lines are left out: that of AMQP, and that which looks at certificates of servers.
const LEFT_OUT: [&str; 2] = ["lapin", "rustls_platform_verifier"];

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// One line of text for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why telemetry can't begin.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// It is no level, as the sentence says.
    #[error("log.level: {0}")]
    Level(String),
    /// Nobody can write the log.
    #[error("the log can't begin: {0}")]
    Thread(#[source] std::io::Error),
    /// Logs or metrics were set up already.
    #[error("logs or metrics were set up already in this process")]
    Twice,
}

/// The way of the lines of this process.
static LINES: OnceLock<Lines> = OnceLock::new();

/// Waits until what was logged is out, but not for long: the process is about to end.
pub fn finish_logs() {
    if let Some(lines) = LINES.get() {
        lines.finish();
    }
}

/// Counts lines that were lost since the last call, and says so.
pub fn tell_lost_lines() {
    let lost = LINES.get().map_or(0, Lines::take_lost);
    if lost > 0 {
        metrics::counter!("mailtap_log_lines_lost_total").increment(lost);
        tracing::warn!(lines = lost, "lines of the log were lost: standard error did not take them");
    }
}

/// Begins to log, on standard error; panics too. Gives the format, which is never `Auto` then.
///
/// # Errors
/// See [`TelemetryError`].
pub fn start_logs(level: &str, format: Format) -> Result<Format, TelemetryError> {
    let filter = filter(level)?;
    // Not through the handle that the whole process shares, which is locked while a write waits.
    let to = std::io::stderr().as_fd().try_clone_to_owned().map(File::from);
    let lines = to.and_then(Lines::start).map_err(TelemetryError::Thread)?;
    LINES.set(lines.clone()).map_err(|_| TelemetryError::Twice)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(lines)
        // It would say so on standard error, and panic where that can't be written.
        .log_internal_errors(false);
    let terminal = std::io::stderr().is_terminal();
    let as_text = match format {
        Format::Auto => terminal,
        Format::Text => true,
        Format::Json => false,
    };
    let done = if as_text {
        builder.with_target(false).with_ansi(terminal).try_init()
    } else {
        builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
    };
    done.map_err(|_| TelemetryError::Twice)?;
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(thread, %backtrace, "{panic}");
        finish_logs();
    }));
    Ok(if as_text { Format::Text } else { Format::Json })
}

/// The level, without what these libraries say of their own, unless somebody asks for it by name: that of AMQP writes down each message that
/// comes back, whole, the other one an error with a path of its build at each try; what else they say is said by who uses them.
fn filter(level: &str) -> Result<EnvFilter, TelemetryError> {
    let asked = directives(level).map_err(TelemetryError::Level)?;
    let silent = LEFT_OUT.iter().filter(|library| !asked.contains(**library));
    let silent: String = silent.map(|library| format!(",{library}=off")).collect();
    EnvFilter::try_new(asked + &silent).map_err(|error| TelemetryError::Level(error.to_string()))
}

/// For tests that capture the log of their thread. A place in the code that is first reached while nobody listens, by another
/// test, is taken for one that never logs; so somebody listens for the whole process.
#[cfg(test)]
pub(crate) fn somebody_listens() {
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry());
}

/// The log that a test captures: `with_writer(log.clone())` of a subscriber of its own. Clones share it.
#[cfg(test)]
#[derive(Debug, Clone, Default)]
pub(crate) struct Captured(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

#[cfg(test)]
impl Captured {
    fn bytes(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Captures the log of this thread, debug lines included, while the guard lives.
    pub(crate) fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        somebody_listens();
        let captured = Self::default();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(captured.clone())
            .finish();
        (captured, tracing::subscriber::set_default(subscriber))
    }

    /// What was logged so far.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
}

#[cfg(test)]
impl std::io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.bytes().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
impl tracing_subscriber::fmt::MakeWriter<'_> for Captured {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// Where metrics are read.
#[derive(Debug, Clone)]
pub struct Metrics(PrometheusHandle);

/// Seconds, from fast answers within a process to slow ones of other sites.
const LATENCY_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Begins to count.
///
/// # Errors
/// `TelemetryError::Twice`.
pub fn start_metrics() -> Result<Metrics, TelemetryError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), LATENCY_BUCKETS)
        .map_err(|_| TelemetryError::Twice)?
        .install_recorder()
        .map_err(|_| TelemetryError::Twice)?;
    catalogue::describe();
    metrics::gauge!("mailtap_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(Metrics(handle))
}

impl Metrics {
    /// Takes in what histograms gathered: without it they grow until somebody reads them.
    pub fn settle(&self) {
        self.0.run_upkeep();
    }

    /// All metrics in the text form of Prometheus.
    #[must_use]
    pub fn render(&self) -> String {
        self.settle();
        self.0.render()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn libraries_that_say_too_much_are_heard_only_by_who_asks_for_them() {
        somebody_listens();
        for (level, heard) in
            [("info", false), ("debug", false), ("trace,mailtap=info", false), ("info,lapin=warn", true)]
        {
            let lines = Captured::default();
            let log = tracing_subscriber::fmt()
                .with_env_filter(filter(level).unwrap())
                .with_writer(lines.clone())
                .finish();
            tracing::subscriber::with_default(log, || {
                tracing::warn!(target: "lapin::returned_messages", "a message whole");
                tracing::error!(target: "lapin::channel", "closed");
                tracing::error!(target: "rustls_platform_verifier::verification::others", "failed to verify");
                tracing::warn!("ours");
            });
            let text = lines.text();
            assert_eq!(text.contains("a message whole"), heard, "{level}: {text}");
            assert!(text.contains("ours") && !text.contains("failed to verify"), "{level}: {text}");
        }
        assert!(filter("loud=loud").is_err());
    }

    /// The filter itself takes such a word for a target, and logs nothing.
    #[test]
    fn a_word_that_is_no_level_does_not_silence_the_log() {
        for word in ["warning", "loud", "debug,,=", ""] {
            assert!(filter(word).is_err(), "{word}");
        }
    }
}
