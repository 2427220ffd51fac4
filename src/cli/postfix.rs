//! `mailtap postfix`: the settings that belong into main.cf and master.cf.
//!
//! - Layer: cli
//! - Takes: the configuration, and where Postfix's queue directory is.
//! - Gives: text to copy; a warning where a setting is unsafe.
//! - On failure: where Postfix can't be asked, Debian's usual directory is taken, which is said.
//! - See: `docs/postfix.md`; postconf(5) smtpd_milters, milter_default_action, milter_header_checks.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::exit::Result;
use super::print;
use crate::config::Config;
use crate::config::units::Listen;
use crate::filter::postconf;

/// Print the settings for Postfix.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Postfix's queue directory. Default: what `postconf` says of each of milter.postfix_config_dirs, else /var/spool/postfix.
    #[arg(long, value_name = "DIR")]
    queue_dir: Option<PathBuf>,
}

impl Args {
    pub(super) fn run(self, config: &Config) -> Result {
        let (queue_dirs, unasked) = match self.queue_dir {
            Some(directory) => (vec![directory], Vec::new()),
            None => queue_directories(config),
        };
        print(settings(config, &queue_dirs, &decisions(config)))?;
        print(unasked.iter().map(|trouble| format!("\n# Note: {trouble}\n")).collect::<String>())
    }
}

/// The queue directory of each Postfix that the configuration names, and which of them can't be asked. Never none.
fn queue_directories(config: &Config) -> (Vec<PathBuf>, Vec<String>) {
    let (mut found, mut unasked) = (Vec::new(), Vec::new());
    for directory in &config.milter.postfix_config_dirs {
        match postconf::queue_directory(directory) {
            Ok(queue) => found.push(queue),
            Err(trouble) => unasked.push(format!(
                "the Postfix in {} (milter.postfix_config_dirs) can't be asked for its queue directory: {trouble}; \
                 --queue-dir names one.",
                directory.display()
            )),
        }
    }
    if found.is_empty() {
        found.push(PathBuf::from(USUAL_QUEUE));
    }
    (found, unasked)
}

/// What Postfix decides on the original, which copies have to meet as well.
#[derive(Debug, Default)]
pub(super) struct Decisions {
    header_checks: String,
    nested_header_checks: String,
    /// Of services that take mail, without those that take it back from the filter.
    content_filters: Vec<String>,
}

/// Asks the Postfix that takes the copies: the first that can be asked, since one port is one Postfix's.
fn decisions(config: &Config) -> Decisions {
    let Some(split) = &config.split else { return Decisions::default() };
    let port = split.address.to_string();
    let asked = |directory: &PathBuf| {
        let mut filters: Vec<String> = postconf::of_services(directory, "content_filter")?
            .into_iter()
            .filter(|(service, value)| *service != port && !value.is_empty())
            .map(|(_, value)| value)
            .collect();
        filters.sort();
        filters.dedup();
        Ok::<_, postconf::Trouble>(Decisions {
            header_checks: postconf::value(directory, "header_checks")?,
            nested_header_checks: postconf::value(directory, "nested_header_checks")?,
            content_filters: filters,
        })
    };
    config.milter.postfix_config_dirs.iter().find_map(|directory| asked(directory).ok()).unwrap_or_default()
}

/// Debian's, and most others'.
const USUAL_QUEUE: &str = "/var/spool/postfix";

/// What `postconf` says of the default Postfix, for who has no configuration yet; else Debian's.
pub(super) fn queue_directory() -> PathBuf {
    let said = std::process::Command::new(postconf::program()).args(["-h", "queue_directory"]).output().ok();
    let said = said.filter(|output| output.status.success());
    let path =
        said.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    if path.starts_with('/') { path.into() } else { USUAL_QUEUE.into() }
}

/// How long Postfix has to wait for an answer: longer than the milter works on one.
fn content_timeout(config: &Config) -> Duration {
    Duration::from_secs(120).max(config.milter.message_timeout + Duration::from_secs(60))
}

/// The least that does: the answer has to be written, too.
pub(super) fn least_content_timeout(config: &Config) -> Duration {
    config.milter.message_timeout + Duration::from_secs(5)
}

/// How long Postfix has to wait for the answer to a command: where systemd holds the socket, longer than the process before
/// drains, since the next one answers only after that.
fn command_timeout(config: &Config) -> Duration {
    Duration::from_secs(30).max(least_command_timeout(config))
}

pub(super) fn least_command_timeout(config: &Config) -> Duration {
    config.milter.drain.max(config.tracker.drain) + Duration::from_secs(10)
}

/// The settings, with why: for the first Postfix that has the socket below its queue directory.
pub(super) fn settings(config: &Config, queue_dirs: &[PathBuf], decisions: &Decisions) -> String {
    let action = if config.milter.tempfail { "tempfail" } else { "accept" };
    let address = match &config.milter.listen {
        Listen::Tcp(address) => format!("inet:{}:{}", address.ip(), address.port()),
        Listen::Named { host, port } => format!("inet:{host}:{port}"),
        Listen::Unix(path) => {
            let relative = queue_dirs.iter().find_map(|queue| path.strip_prefix(queue).ok());
            format!("unix:{}", relative.unwrap_or(path).display())
        }
    };
    let content_timeout = content_timeout(config).as_secs();
    let command_timeout = command_timeout(config).as_secs();
    let mut text = String::new();
    let _ = write!(
        text,
        "\
# main.cf: mail goes through mailtap. Put mailtap before the milter that signs with DKIM.
smtpd_milters = {{ {address}, connect_timeout=5s, command_timeout={command_timeout}s, content_timeout={content_timeout}s, default_action={action} }}
non_smtpd_milters = $smtpd_milters

# main.cf: Postfix logs mailtap's two headers, from which `mailtap tap` knows each message.
milter_header_checks = regexp:{{{{/^X-Mailtap-(Ref|Campaign):/ INFO}}}}
# main.cf: queue ids that are never used twice.
enable_long_queue_ids = yes
"
    );
    if let Listen::Unix(path) = &config.milter.listen {
        for queue in queue_dirs.iter().filter(|queue| !path.starts_with(queue)) {
            let _ = writeln!(
                text,
                "\n# Note: {} is not below {}: this Postfix needs the whole path, and can't reach it in a chroot (master.cf).",
                path.display(),
                queue.display()
            );
        }
    }
    if !config.milter.tempfail {
        let _ = writeln!(
            text,
            "\n# Note: with default_action=accept Postfix up to 3.11 can lose a message whose milter dies while it sends a new\n\
             # body. mailtap therefore sends only answers that fit the socket's buffer at once and lets larger messages pass\n\
             # unmodified. With milter.default_action = \"tempfail\" (and the same above) nothing passes unmodified for its size."
        );
    }
    if let Some(split) = &config.split {
        text.push_str(&split_service(split.address, decisions));
    }
    text.push_str(
        "
# A gateway further down the road that only relays logs the same headers with
#   header_checks = regexp:{{/^X-Mailtap-(Ref|Campaign):/ INFO}}
# and not those of a newsletter that somebody forwards as an attachment:
#   nested_header_checks =

# master.cf, on the host that receives returned mail (a transport for the bounce addresses):
#   mailtap-bounce unix - n n - 4 pipe flags=Rq user=mailtap argv=/usr/bin/mailtap bounce
",
    );
    text
}

/// The service for copies. What the original met on its way in goes with it: they have to meet the same.
fn split_service(address: SocketAddr, decisions: &Decisions) -> String {
    let Decisions { header_checks, nested_header_checks, content_filters } = decisions;
    let mut text = format!(
        "
# master.cf: where mailtap hands in the copies of mail to several recipients. No milter of mailtap here, but those that
# follow it: put the milter that signs with DKIM after `smtpd_milters=`. The two headers are logged as above. What Postfix
# decides on the original is lost with it: a content_filter= that the smtpd(8) before sets, and header_checks, belong here too.
{address} inet n - n - - smtpd
    -o smtpd_milters= -o cleanup_service_name=mailtap-copies
    -o mynetworks=127.0.0.0/8 -o {{ smtpd_relay_restrictions = permit_mynetworks, reject }}
"
    );
    if let Some(filter) = content_filters.first() {
        let _ = writeln!(text, "    -o {{ content_filter = {filter} }}");
    }
    let nested = match nested_header_checks.as_str() {
        "" => " -o nested_header_checks=".to_owned(),
        checks => format!("\n    -o {{ nested_header_checks = {checks} }}"),
    };
    let own = if header_checks.is_empty() { String::new() } else { format!(", {header_checks}") };
    let _ = write!(
        text,
        "\
mailtap-copies unix n - n - 0 cleanup
    -o {{ header_checks = regexp:{{{{/^X-Mailtap-(Ref|Campaign):/ INFO}}}}{own} }}{nested}
"
    );
    if content_filters.len() > 1 {
        let all = content_filters.join(", ");
        let _ = writeln!(
            text,
            "# Note: services of master.cf have different filters ({all}): choose the one for mail with several recipients."
        );
    }
    text
}
