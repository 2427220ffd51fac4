//! `mailtap config check|show`.
//!
//! - Layer: cli
//! - Takes: the configuration file.
//! - Gives: `ok`, or every problem; the effective values as TOML or JSON, secrets redacted.
//! - On failure: exit code 78 with the report.

use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use clap::Subcommand;

use super::exit::{Exit, Failure, OrExit, Result};
use super::own_hosts::own_hosts;
use super::postfix;
use super::print;
use super::terminal::{CARE, GOOD, paint};
use super::{assemble, readable};
use crate::config::units::Listen;
use crate::config::{Config, TapSource};
use crate::consent::file::WithdrawnFile;
use crate::event::Kind;
use crate::filter::agreement::{Told, Verdict};
use crate::filter::postconf::{self, Said};
use crate::keys::ring::Use;
use crate::keys::{self, Keys};
use crate::queue::amqp::certificates;
use crate::{tap, tracker};

/// Check or show the configuration.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Report everything that is wrong, or `ok`
    Check,
    /// Show the effective values, secrets redacted
    Show {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

impl Args {
    pub(super) fn run(self, path: &Path) -> Result {
        let config = Config::load(path).or_exit(Exit::Config)?;
        match self.command {
            Command::Check => {
                let said = ask_postfix(&config);
                let (problem, careful) = default_action(&config, &said);
                open_files(&config, problem, path)?;
                let warnings = super::assemble_tracker::warnings(&config);
                let of_postfix = careful.into_iter().chain(short_patience(&config, &said));
                let of_postfix = of_postfix.chain(milters_before(&config, &said));
                for warning in warnings
                    .into_iter()
                    .chain(of_postfix)
                    .chain(milter(&config))
                    .chain(logs(&config))
                    .chain(names(&config))
                {
                    print(format!("{}: {}: {warning}\n", path.display(), paint(CARE, "warning")))?;
                }
                print(format!("{}: {}\n", path.display(), paint(GOOD, "ok")))?;
                print(own_hosts_note(&config))
            }
            Command::Show { json: true } => {
                let text = serde_json::to_string_pretty(&config.effective()).or_exit(Exit::Software)?;
                print(text + "\n")
            }
            Command::Show { json: false } => {
                print(toml::to_string(&config.effective()).or_exit(Exit::Software)?)
            }
        }
    }
}

/// Log files that are not there: one may come later, but a system without a syslog daemon writes none.
fn logs(config: &Config) -> impl Iterator<Item = String> {
    let files = match &config.tap_source {
        TapSource::Files(files) if config.raw.tap.enabled => &files[..],
        _ => &[],
    };
    let missing = files.iter().filter(|file| !file.exists());
    missing.map(|file| format!("tap.files: {} is not there: {}", file.display(), tap::NO_LOG_FILE))
}

/// Names of events that GA4 takes, and counts together with others.
fn names(config: &Config) -> impl Iterator<Item = String> {
    let mapping = &config.mapping;
    let measured =
        Kind::ALL.into_iter().filter(|kind| mapping.is_sent(*kind) && mapping.is_measured_name(*kind));
    measured.map(|kind| {
        let (key, name) = (kind.as_str().rsplit('.').next().unwrap_or_default(), mapping.name(kind));
        format!(
            "ga4.events.{key}: GA4's own measurement on the site sends `{name}` too, and its reports would count both together; \
             choose a name of its own, like \"email_{key}\""
        )
    })
}

/// Opens the files that the configuration names, as the roles would; reports all that can't be used, beside another problem.
fn open_files(config: &Config, problem: Option<String>, path: &Path) -> Result {
    let mut problems = Vec::from_iter(problem);
    let mut note = |key: &str, error: Option<String>, remedy: &str| {
        problems.extend(error.map(|error| format!("{key}: {error}; {remedy}")));
    };
    let keyring = Keys::open(&config.keyring).err();
    let pseudonyms = keys::load_pseudonym_key(&config.pseudonym_key).err();
    note("keys.keyring", text(keyring), "restore it from where it was made");
    note("keys.pseudonym_key", text(pseudonyms), "restore it from where it was made");
    // Whether they are there was looked at with the configuration; hand-offs are made on trackers only.
    if let Some(path) = config.handoff_keys.as_ref().filter(|_| config.raw.tracker.enabled) {
        let remedy = "restore it, or move it away and let `mailtap keys --use handoff init` make another";
        note("keys.handoff", text(Keys::open_for(path, Use::Handoff).err()), remedy);
    }
    if let Some(path) = &config.withdrawn_file {
        let remedy = "correct or restore it: who withdrew must not be lost";
        note("consent.withdrawn_file", text(WithdrawnFile::open(path).err()), remedy);
    }
    if config.raw.tracker.enabled {
        problems.extend(tracker::check_files(&super::assemble_tracker::settings(config, false)));
    }
    if let Some(amqp) = &config.amqp {
        // A credential is there only within its unit; that others are there was looked at with the configuration.
        let client = amqp.client_certificate.as_ref().filter(|(pem, key)| pem.exists() && key.exists());
        let loaded = certificates::load(
            amqp.ca_file.as_deref().filter(|path| path.exists()),
            client.map(|(pem, key)| (pem.as_path(), key.as_path())),
        );
        problems.extend(loaded.err().into_iter().flatten().map(|unusable| unusable.to_string()));
    }
    if config.raw.milter.enabled {
        let group = assemble::milter_address(config).check_group().err();
        problems.extend(group.map(|error| error.to_string()));
    }
    problems.extend(readable::problems(config));
    if problems.is_empty() {
        return Ok(());
    }
    let problems: Vec<_> = problems.iter().map(|problem| format!("{}: {problem}", path.display())).collect();
    Err(Failure::new(Exit::Config, problems.join("\n")))
}

fn text(error: Option<impl Display>) -> Option<String> {
    error.map(|error| error.to_string())
}

/// What the milter tells and asks Postfix.
fn told(config: &Config) -> Told {
    Told {
        tempfail: config.milter.tempfail,
        trusted: config.raw.milter.trust_default_action,
        message_size_limit: config.milter.message_size_limit,
        listens: assemble::milter_address(config).endpoint(),
    }
}

/// Asks each Postfix, as the milter does; none where there is no milter.
fn ask_postfix(config: &Config) -> Vec<Said> {
    let directories = if config.raw.milter.enabled { &config.milter.postfix_config_dirs[..] } else { &[] };
    postconf::ask(directories, &told(config).listens)
}

/// Whether Postfix says the same of a milter that fails: a problem, since a wrong pair can cost mail, or a warning.
fn default_action(config: &Config, said: &[Said]) -> (Option<String>, Option<String>) {
    if !config.raw.milter.enabled {
        return (None, None);
    }
    let verdict = Verdict::of(said);
    let advice = told(config).advice(&verdict);
    if matches!(verdict, Verdict::Accept(_)) { (advice, None) } else { (None, advice) }
}

/// Whether Postfix gives up before the milter does, and so decides on the message by itself.
fn short_patience(config: &Config, said: &[Said]) -> Vec<String> {
    let mut warnings = Vec::new();
    for Said { directory, says } in said {
        let Ok(says) = says else { continue };
        let main_cf = directory.join("main.cf");
        let (main_cf, milter) = (main_cf.display(), &config.milter);
        let needed = postfix::least_content_timeout(config);
        if let Some(waits) = says.content_timeout.filter(|waits| *waits < needed) {
            warnings.push(format!(
                "{main_cf}: Postfix waits {} s for the milter's answer to a message (content_timeout of its entry, or \
                 milter_content_timeout), and milter.message_timeout is {} s: then default_action decides; make it {} s or \
                 more there, or lower milter.message_timeout",
                waits.as_secs(),
                milter.message_timeout.as_secs(),
                needed.as_secs(),
            ));
        }
        let needed = postfix::least_command_timeout(config);
        if let Some(waits) = says.command_timeout.filter(|waits| *waits < needed) {
            warnings.push(format!(
                "{main_cf}: Postfix waits {} s for the milter's answer to a command (command_timeout of its entry, or \
                 milter_command_timeout), and a restart behind a socket that is held may take {} s (milter.drain and ten seconds): \
                 then default_action decides; make it as much there, or lower milter.drain",
                waits.as_secs(),
                needed.as_secs(),
            ));
        }
    }
    warnings
}

/// Whether what others decide is lost where mail is split.
fn milters_before(config: &Config, said: &[Said]) -> Vec<String> {
    let after_others = |said: &&Said| said.says.as_ref().is_ok_and(|says| says.after_others);
    let warning = |said: &Said| {
        format!(
            "{}: a milter is asked before mailtap, and policy.several_recipients is \"split\": what it changes of sender, recipients \
             and headers, and that it holds a message, is lost with the original; put mailtap first, or share",
            said.directory.join("main.cf").display()
        )
    };
    if config.split.is_none() { Vec::new() } else { said.iter().filter(after_others).map(warning).collect() }
}

/// Postfix waits for an SMTP client as long between two commands, and within a message: `smtpd_timeout`.
const POSTFIX_WAITS: Duration = Duration::from_secs(300);

/// What of the milter may not do as it stands, here or for Postfix.
fn milter(config: &Config) -> impl Iterator<Item = String> {
    let enabled = config.raw.milter.enabled;
    let unknown = enabled.then(|| assemble::milter_address(config).check_name().err()).flatten();
    let unknown = unknown.map(|error| format!("{error}; the milter can't start before it does"));
    let all = [unknown, private_socket(config), short_idle(config)];
    all.into_iter().flatten().filter(move |_| enabled)
}

/// Whether Postfix, which is another user, is kept from the socket.
fn private_socket(config: &Config) -> Option<String> {
    let mode = config.milter.socket_mode;
    let private = matches!(config.milter.listen, Listen::Unix(_)) && mode & 0o022 == 0;
    private.then(|| {
        format!(
            "milter.socket_mode = {:?}: only the user of mailtap can connect, and Postfix is another one; leave it at \"0660\", with \
             a group that Postfix's user is in",
            config.raw.milter.socket_mode
        )
    })
}

/// Whether sessions end that Postfix goes on with.
fn short_idle(config: &Config) -> Option<String> {
    let short = config.milter.idle_timeout <= POSTFIX_WAITS;
    short.then(|| {
        format!(
            "milter.idle_timeout = {:?}: Postfix waits {} s for an SMTP client between two commands (smtpd_timeout), and does not \
             connect again within a session: mail after a longer pause meets default_action; leave it at \"7210s\"",
            config.raw.milter.idle_timeout,
            POSTFIX_WAITS.as_secs()
        )
    })
}

/// Whose bounces count once is worth a word where nobody said it: on another host's report the guess may be wrong.
fn own_hosts_note(config: &Config) -> String {
    if !config.raw.tap.enabled || !config.raw.bounce.own_hosts.is_empty() {
        return String::new();
    }
    let hosts = own_hosts(config).join(", ");
    format!(
        "note: bounce.own_hosts is empty: what {hosts} report about their own queue is known from the log, and not \
         counted twice; name your other relays there too, if their bounces come back to this host\n"
    )
}
