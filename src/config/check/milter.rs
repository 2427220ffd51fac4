//! `[milter]`: where it listens, how long it waits, what it may use.
//!
//! - Layer: edge
//! - Takes: `Raw`.
//! - Gives: `MilterConfig`.
//! - On failure: problems, each with the remedy: what would let every message pass unmodified, or nobody in, is none to start with.
//! - See: unix(7), postconf(5) `milter_content_timeout`

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Checker;
use crate::config::MilterConfig;
use crate::config::raw::Raw;
use crate::config::units::{self, Listen};

/// What `sockaddr_un` has room for, less the zero at its end.
const LONGEST_SOCKET_PATH_BYTES: usize = 107;
/// Anything less only lets mail pass unmodified, or cuts its connections.
const SHORTEST: Duration = Duration::from_secs(1);
const LEAST_HEADER_BYTES: u64 = 1 << 10;
/// Far more than Postfix has processes.
const MOST_CONNECTIONS: u64 = 100_000;

pub(super) fn milter(at: &mut Checker<'_>, raw: &Raw) -> MilterConfig {
    let milter = &raw.milter;
    let listen = at.some("milter.listen", units::listen(&milter.listen));
    if let Some(Listen::Unix(path)) = &listen {
        socket_path(at, path);
    }
    memory_for_one(at, raw);
    MilterConfig {
        listen: listen.unwrap_or_else(|| Listen::Unix(PathBuf::new())),
        socket_mode: at.ok("milter.socket_mode", units::socket_mode(&milter.socket_mode)),
        socket_group: (!milter.socket_group.is_empty()).then(|| milter.socket_group.clone()),
        tempfail: at.one_of(
            "milter.default_action",
            &milter.default_action,
            &[("accept", false), ("tempfail", true)],
        ),
        postfix_config_dirs: milter.postfix_config_dirs.iter().map(|dir| at.path(dir)).collect(),
        message_size_limit: (!milter.message_size_limit.is_empty())
            .then(|| at.some("milter.message_size_limit", units::bytes(&milter.message_size_limit)))
            .flatten(),
        max_connections: at.up_to("milter.max_connections", milter.max_connections, MOST_CONNECTIONS),
        message_timeout: patience(at, "milter.message_timeout", &milter.message_timeout),
        idle_timeout: patience(at, "milter.idle_timeout", &milter.idle_timeout),
        first_timeout: patience(at, "milter.first_timeout", &milter.first_timeout),
        content_timeout: patience(at, "milter.content_timeout", &milter.content_timeout),
        write_timeout: patience(at, "milter.write_timeout", &milter.write_timeout),
        max_memory_bytes: at.size("milter.max_memory", &milter.max_memory),
        max_headers: at.count("milter.max_headers", milter.max_headers),
        max_header_bytes: header_size(at, &milter.max_header_size),
        max_recipients: at.count("milter.max_recipients", milter.max_recipients),
        drain: at.ok("milter.drain", units::duration(&milter.drain)),
    }
}

/// Where headers have no room, all mail would pass as it came.
fn header_size(at: &mut Checker<'_>, text: &str) -> usize {
    let key = "milter.max_header_size";
    let size = at.some(key, units::bytes(text));
    if size.is_some_and(|size| size < LEAST_HEADER_BYTES) {
        at.note(key, format!("`{text}` is too small for the headers of any message: write \"1KiB\" or more, better \"1MiB\""));
    }
    usize::try_from(size.unwrap_or_default()).unwrap_or(usize::MAX)
}

fn patience(at: &mut Checker<'_>, key: &str, text: &str) -> Duration {
    let time = at.some(key, units::duration(text));
    if time.is_some_and(|time| time < SHORTEST) {
        at.note(key, format!("`{text}` is too short: write \"1s\" or more"));
    }
    time.unwrap_or(SHORTEST)
}

fn socket_path(at: &mut Checker<'_>, path: &Path) {
    let key = "milter.listen";
    let bytes = path.as_os_str().as_bytes().len();
    if !path.is_absolute() {
        at.note(
            key,
            format!(
                "`unix:{0}` must begin with unix:/ : in main.cf the path begins at Postfix's queue directory, here it is the whole \
                 one, like \"unix:/var/spool/postfix/{0}\"",
                path.display()
            ),
        );
    } else if bytes > LONGEST_SOCKET_PATH_BYTES {
        at.note(
            key,
            format!("the path has {bytes} bytes, and a socket's may have {LONGEST_SOCKET_PATH_BYTES}: choose a shorter one"),
        );
    }
}

/// A message counts four times while it is worked on: what has no room even alone would pass as it came, for ever.
fn memory_for_one(at: &mut Checker<'_>, raw: &Raw) {
    let bytes = |text| units::bytes(text).ok();
    let (Some(memory), Some(message)) = (bytes(&raw.milter.max_memory), bytes(&raw.policy.max_message))
    else {
        return;
    };
    if memory <= message.saturating_mul(4) {
        at.note(
            "milter.max_memory",
            format!(
                "must be more than four times policy.max_message ({}): as much is counted while a message is worked on, and \
                 larger ones would pass as they came; raise it, or lower policy.max_message",
                raw.policy.max_message
            ),
        );
    }
}
