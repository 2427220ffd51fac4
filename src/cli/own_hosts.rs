//! Whose own bounces the tap has from the log: those that the configuration names, or else those of this host.
//!
//! - Layer: cli
//! - Takes: the configuration; what `postconf` says.
//! - Gives: names as `Reporting-MTA` has them.
//! - On failure: a Postfix that can't be asked is left out; without the tap role there is none.
//! - See: `docs/postfix.md`, "Returned mail"; postconf(5) myhostname, multi_instance_directories.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::config::Config;
use crate::filter::postconf;

/// The names.
pub(super) fn own_hosts(config: &Config) -> Vec<String> {
    let named = &config.raw.bounce.own_hosts;
    if !named.is_empty() || !config.raw.tap.enabled {
        return named.clone();
    }
    // pipe(8) tells by which Postfix the report was handed in.
    let caller = std::env::var_os("MAIL_CONFIG").map(PathBuf::from);
    let directories: BTreeSet<PathBuf> =
        config.milter.postfix_config_dirs.iter().cloned().chain(caller).collect();
    let more = directories.iter().flat_map(|directory| {
        let list = ask(directory, "multi_instance_directories").unwrap_or_default();
        list.split([' ', ',']).map(PathBuf::from).filter(|path| path.is_absolute()).collect::<Vec<_>>()
    });
    let all: BTreeSet<PathBuf> = more.chain(directories.iter().cloned()).collect();
    let mut hosts: BTreeSet<String> =
        all.iter().filter_map(|directory| ask(directory, "myhostname")).collect();
    hosts.insert(config.host.clone());
    hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect()
}

fn ask(directory: &Path, parameter: &str) -> Option<String> {
    if !directory.join("main.cf").exists() {
        return None;
    }
    let mut command = Command::new(postconf::program());
    command.arg("-c").arg(directory).args(["-hx", parameter]).stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output().ok().filter(|output| output.status.success())?;
    let value = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!value.is_empty()).then_some(value)
}
