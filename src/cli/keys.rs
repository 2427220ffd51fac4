//! `mailtap keys init|list|rotate|retire|revoke|remove`.
//!
//! - Layer: cli
//! - Takes: the keyring that the configuration names.
//! - Gives: the changed keyring file, and one line of audit for each change on standard error and in the audit file.
//! - On failure: the keyring stays as it was; where only the audit file can't be written it is changed, and the exit code 74.
//! - See: `docs/keys.md`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use serde_json::json;

use super::exit::{Exit, Failure, OrExit, Result};
use super::print;
use super::terminal::{BAD, CARE, DIM, GOOD, paint, table};
use crate::config::{Config, units};
use crate::identity::Timestamp;
use crate::keys::ring::{Key, KeyId, Keyring, RingError, State, Use};
use crate::keys::{self, KeyFileError, Keys};
use crate::service::{clock, files};

/// Make, list and change keys.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mailtap keys list
  mailtap keys rotate --activate-in 1h     copy keyring.json to the other hosts within the hour
  mailtap keys rotate --site shop          a key for the tracking host with `site` shop only
  mailtap keys retire 1                    links signed by key 1 go on working
  mailtap keys revoke 1                    key 1 leaked: its links ask before they redirect
  mailtap keys remove 1                    links signed by key 1 stop working
  mailtap keys --use handoff rotate        the keys of hand-offs to websites, on trackers only")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
    /// The keyring file, instead of the one that the configuration names.
    #[arg(long, global = true, value_name = "FILE")]
    keyring: Option<PathBuf>,
    /// What the keys are for: tokens (`keys.keyring`), or hand-offs to websites (`keys.handoff`).
    #[arg(long = "use", global = true, value_enum, default_value = "tokens")]
    use_: What,
    /// As JSON, for scripts.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Make a keyring with one active key; overwrites nothing
    Init,
    /// List the keys and where they stand
    List,
    /// Add a key that signs from now on, or later
    Rotate {
        /// Wait before the new key signs, so that all hosts can receive it: 30m, 1h, 2d.
        #[arg(long, value_name = "TIME", default_value = "0s", value_parser = units::duration)]
        activate_in: Duration,
        /// Only for the tracking host that the configuration gives this `site`.
        #[arg(long, value_name = "NAME")]
        site: Option<String>,
    },
    /// Let a key verify only
    Retire {
        /// Its id, from `keys list`.
        id: KeyId,
    },
    /// Declare a key leaked
    Revoke {
        /// Its id, from `keys list`.
        id: KeyId,
    },
    /// Forget a retired or revoked key
    Remove {
        /// Its id, from `keys list`.
        id: KeyId,
    },
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum What {
    Tokens,
    Handoff,
}

impl From<What> for Use {
    fn from(what: What) -> Self {
        match what {
            What::Tokens => Self::Tokens,
            What::Handoff => Self::Handoff,
        }
    }
}

impl Args {
    pub(super) fn run(self, config: &Path) -> Result {
        let path = match &self.keyring {
            Some(path) => path.clone(),
            None => match self.use_ {
                What::Tokens => Config::keyring_path(config).or_exit(Exit::Config)?,
                What::Handoff => Config::handoff_path(config).or_exit(Exit::Config)?,
            },
        };
        if !matches!(self.command, Command::Init) {
            // Before anything changes: a ring of the other use is somebody's mistake.
            Keys::open_for(&path, self.use_.into()).map_err(failure)?;
        }
        let now = clock::now();
        let (action, id) = match &self.command {
            Command::Init => {
                keys::create_ring_for(&path, self.use_.into()).map_err(failure)?;
                ("init", 1)
            }
            Command::List => return self.list(&path, now),
            Command::Rotate { activate_in, site } => {
                let change = |ring: &mut Keyring, secret| {
                    ring.rotate_for(site.as_deref(), secret, now, now.plus(*activate_in))
                };
                ("rotate", keys::update_ring(&path, change).map_err(failure)?)
            }
            &Command::Retire { id } => ("retire", change(&path, id, |ring| ring.retire(id, now))?),
            &Command::Revoke { id } => ("revoke", change(&path, id, |ring| ring.revoke(id, now))?),
            &Command::Remove { id } => ("remove", change(&path, id, |ring| ring.remove(id, now))?),
        };
        let audited = audit(&path, action, id, now);
        // A key made just now signs from just now on.
        let now = clock::now();
        let ring = Keys::open_for(&path, self.use_.into()).map_err(failure)?.current();
        let key = ring.by_id(id);
        if self.json {
            let key = key.map(|key| entry(&ring, key, now));
            print(json!({ "action": action, "id": id, "keyring": path, "key": key }).to_string() + "\n")?;
            return audited;
        }
        let state = key.map(|key| ring.state(key, now));
        let word = state.map(|state| format!(", now {}", state.as_str())).unwrap_or_default();
        let later =
            key.filter(|_| state == Some(State::Pending)).map(|key| format!(" until {}", key.activates));
        print(format!("{action}: key {id}{word}{}\n", later.unwrap_or_default()))?;
        audited
    }

    fn list(&self, path: &Path, now: Timestamp) -> Result {
        let ring = Keys::open_for(path, self.use_.into()).map_err(failure)?.current();
        if self.json {
            let keys: Vec<_> = ring.keys().iter().map(|key| entry(&ring, key, now)).collect();
            return print(json!({ "keyring": path, "keys": keys }).to_string() + "\n");
        }
        let rows = ring.keys().iter().map(|key| {
            let ended = key.revoked.or(key.retired).map(|time| time.to_string());
            vec![
                key.id.to_string(),
                ring.state(key, now).as_str().to_owned(),
                key.activates.to_string(),
                key.site.clone().unwrap_or_default(),
                ended.unwrap_or_default(),
            ]
        });
        let text = table(&["key", "state", "signs from", "site", "ended"], &rows.collect::<Vec<_>>());
        let text = text.replace("  active", &format!("  {}", paint(GOOD, "active")));
        let text = text.replace("  revoked", &format!("  {}", paint(BAD, "revoked")));
        let text = text.replace("  pending", &format!("  {}", paint(CARE, "pending")));
        print(text)?;
        print(paint(DIM, &format!("{}\n", path.display())))
    }
}

fn change(
    path: &Path,
    id: KeyId,
    change: impl FnOnce(&mut Keyring) -> std::result::Result<(), RingError>,
) -> Result<KeyId> {
    keys::update_ring(path, |ring, _| change(ring)).map_err(failure)?;
    Ok(id)
}

fn failure(error: KeyFileError) -> Failure {
    let exit = match &error {
        KeyFileError::Io { .. } | KeyFileError::Missing { .. } => Exit::NoInput,
        KeyFileError::Save { .. } | KeyFileError::Exists { .. } => Exit::CantCreate,
        KeyFileError::Ring {
            error:
                RingError::NoSuchKey(_)
                | RingError::LastActive(_)
                | RingError::NotRetired { .. }
                | RingError::Site(_),
            ..
        } => Exit::Usage,
        _ => Exit::Config,
    };
    Failure::new(exit, error)
}

fn entry(ring: &Keyring, key: &Key, now: Timestamp) -> serde_json::Value {
    let state: State = ring.state(key, now);
    json!({
        "id": key.id,
        "state": state,
        "created": key.created,
        "activates": key.activates,
        "retired": key.retired,
        "revoked": key.revoked,
        "site": key.site,
    })
}

/// One line for every change: who, what, when; beside the keyring, and on standard error. The change is made by then: what fails here
/// is only that it is kept.
fn audit(path: &Path, action: &str, id: KeyId, now: Timestamp) -> Result {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten();
    let user = user.map_or_else(|| nix::unistd::getuid().to_string(), |user| user.name);
    let line =
        json!({ "time": now, "action": format!("keys.{action}"), "key_id": id, "user": user }).to_string();
    let log = path.with_extension("audit.jsonl");
    let _ = writeln!(anstream::stderr(), "audit: {line}");
    files::append_line(&log, &line).map_err(|error| {
        let remedy = match error.kind() {
            std::io::ErrorKind::PermissionDenied => ", and give the file to the user mailtap runs as (chown)",
            _ => "",
        };
        let text = format!(
            "{}: {error}: the change is made (don't repeat it), but its line of audit is not kept; append the line above{remedy}",
            log.display()
        );
        Failure::new(Exit::Io, text)
    })
}
