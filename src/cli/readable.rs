//! Whether the services can read what root has prepared for them: a part of `config check`, when root runs it.
//!
//! - Layer: cli
//! - Takes: a checked configuration; owners, groups and modes of the files that it names.
//! - Gives: a problem for each file that the services' user can't read, with the command that helps.
//! - On failure: where nobody can tell who the services run as, nothing is said.
//! - Limits: by owner, group and mode, as they stand; no access lists. Logs are left out: the units add the groups that read them.
//! - See: `systemd/README.md`.

use std::ffi::CString;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User, geteuid, getgrouplist};

use crate::config::Config;

/// Who the services run as: whoever the state directory belongs to, as systemd leaves it, else that of the configuration.
struct Reader {
    user: u32,
    groups: Vec<u32>,
    /// As chown(1) takes it.
    owner: String,
    /// Whose owner it is.
    known_by: PathBuf,
}

/// What keeps the services' user from a file.
enum Stop {
    /// One on the way to it.
    Directory(PathBuf),
    File,
}

/// What the services' user can't read, or not write where it has to.
pub(super) fn problems(config: &Config) -> Vec<String> {
    if !geteuid().is_root() {
        // Whoever it is has just read everything.
        return Vec::new();
    }
    let directory = config.path.parent().unwrap_or(Path::new("."));
    let Some(reader) = [&config.state_dir, directory].into_iter().find_map(Reader::of) else {
        return Vec::new();
    };
    let unreadable = named(config).into_iter().filter_map(|(key, path)| {
        let stop = reader.stopped_at(&path)?;
        let (owner, file) = (&reader.owner, path.display());
        let remedy = match stop {
            Stop::Directory(closed) if closed == directory => {
                format!("run: chown {owner} {}", closed.display())
            }
            Stop::Directory(closed) => {
                format!("{} keeps them out: move the file, or open that to them", closed.display())
            }
            Stop::File if key.starts_with("tls_") => {
                "let a group of theirs read it (chgrp, chmod 640), or hand it over by LoadCredential="
                    .to_owned()
            }
            Stop::File => format!("run: chown {owner} {file}"),
        };
        Some(format!("{key}: {file}: {}, can't read it; {remedy}", reader.who()))
    });
    let foreign = reader.foreign(&config.state_dir).map(|path| {
        let (path, state) = (path.display(), config.state_dir.display());
        format!(
            "state_dir: {path}: {}, can't write it; stop mailtap and run: chown -R {} {state}",
            reader.who(),
            reader.owner
        )
    });
    unreadable.chain(foreign).collect()
}

/// The files that the configuration names, each with its key. Credentials of a unit are not ours to look at.
fn named(config: &Config) -> Vec<(String, PathBuf)> {
    let raw = &config.raw;
    let directory = config.path.parent().unwrap_or(Path::new("."));
    let mut files: Vec<(String, PathBuf)> = Vec::new();
    let mut name = |key: String, path: &Path| files.push((key, path.to_owned()));
    name("the configuration".to_owned(), &config.path);
    name("keys.keyring".to_owned(), &config.keyring);
    name("keys.pseudonym_key".to_owned(), &config.pseudonym_key);
    for (key, path) in [
        ("keys.handoff", config.handoff_keys.as_ref().filter(|_| raw.tracker.enabled)),
        ("consent.withdrawn_file", config.withdrawn_file.as_ref()),
        ("delivery.bounce_rules_file", config.bounce_rules.as_ref()),
        ("tracker.rules_file", config.tracker.rules_file.as_ref()),
        ("amqp.ca_file", config.amqp.as_ref().and_then(|amqp| amqp.ca_file.as_ref())),
    ] {
        path.into_iter().for_each(|path| name(key.to_owned(), path));
    }
    let pairs = config.tracking_hosts.iter().filter_map(|host| host.tls.as_ref());
    for (certificate, key) in pairs.filter(|_| raw.tracker.enabled) {
        name("tls_certificate".to_owned(), certificate);
        name("tls_key".to_owned(), key);
    }
    if let Some((certificate, key)) = config.amqp.as_ref().and_then(|amqp| amqp.client_certificate.as_ref()) {
        name("amqp.client_certificate".to_owned(), certificate);
        name("amqp.client_key".to_owned(), key);
    }
    let properties = raw.ga4.properties.iter().enumerate().map(|(number, property)| {
        (format!("ga4.properties[{number}].api_secret_file"), &property.api_secret_file)
    });
    let secrets = [
        ("ga4.api_secret_file".to_owned(), &raw.ga4.api_secret_file),
        ("ga4.preview_file".to_owned(), &raw.ga4.preview_file),
        ("amqp.password_file".to_owned(), &raw.amqp.password_file),
    ];
    let secrets = secrets.into_iter().chain(properties).filter(|(_, file)| !file.is_empty());
    secrets.for_each(|(key, file)| name(key, &directory.join(file)));
    files.retain(|(_, path)| path.exists());
    files
}

impl Reader {
    fn of(directory: impl AsRef<Path>) -> Option<Self> {
        let directory = directory.as_ref();
        let meta = fs::metadata(directory).ok().filter(|meta| meta.uid() != 0)?;
        let user = User::from_uid(Uid::from_raw(meta.uid())).ok().flatten();
        let group = Group::from_gid(Gid::from_raw(meta.gid())).ok().flatten();
        let groups = user
            .as_ref()
            .and_then(|user| getgrouplist(&CString::new(user.name.as_str()).ok()?, user.gid).ok());
        let groups = groups.unwrap_or_default().into_iter().map(Gid::as_raw).chain([meta.gid()]);
        let user_name = user.map_or_else(|| meta.uid().to_string(), |user| user.name);
        let group_name = group.map_or_else(|| meta.gid().to_string(), |group| group.name);
        Some(Self {
            user: meta.uid(),
            groups: groups.collect(),
            owner: format!("{user_name}:{group_name}"),
            known_by: directory.to_owned(),
        })
    }

    /// Whether all of these rights (read 4, write 2, enter 1) are there.
    fn may(&self, meta: &Metadata, rights: u32) -> bool {
        let shift = if meta.uid() == self.user {
            6
        } else if self.groups.contains(&meta.gid()) {
            3
        } else {
            0
        };
        (meta.mode() >> shift) & rights == rights
    }

    fn stopped_at(&self, path: &Path) -> Option<Stop> {
        let path = fs::canonicalize(path).ok()?;
        let lets_through = |at: &Path, rights| fs::metadata(at).is_ok_and(|meta| self.may(&meta, rights));
        let mut way: Vec<&Path> = path.ancestors().skip(1).collect();
        way.reverse();
        let closed = way.into_iter().find(|directory| !lets_through(directory, 1));
        let closed = closed.map(|directory| Stop::Directory(directory.to_owned()));
        closed.or_else(|| (!lets_through(&path, 4)).then_some(Stop::File))
    }

    /// The first thing in the state directory that somebody else has made.
    fn foreign(&self, state: &Path) -> Option<PathBuf> {
        let below = |directory: &Path| {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).collect::<Vec<_>>()
        };
        let first = below(state);
        let second = first.iter().filter(|path| path.is_dir()).flat_map(|directory| below(directory));
        let all: Vec<PathBuf> = first.iter().cloned().chain(second).collect();
        all.into_iter().find(|path| fs::metadata(path).is_ok_and(|meta| !self.may(&meta, 6)))
    }

    fn who(&self) -> String {
        let user = self.owner.split(':').next().unwrap_or_default();
        format!("{user}, the user whom {} belongs to", self.known_by.display())
    }
}
