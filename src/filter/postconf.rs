//! Asks Postfix what it does when we fail, since a wrong pair of settings can cost mail.
//!
//! - Layer: edge
//! - Takes: directories with a main.cf, our address.
//! - Gives: the default action that each of them has for us, if it names us.
//! - On failure: a directory that `postconf` can't read is skipped.
//! - Limits: 5 s for each call of `postconf`; of a table of clients its first MiB, where it is a file of text.
//! - See: postconf(1), postconf(5) `milter_default_action`

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::listen::Address;
use super::main_cf::{DefaultAction, default_action, lists, tables};

const PATIENCE: Duration = Duration::from_secs(5);
const TABLE_BYTES: u64 = 1 << 20;
const PARAMETERS: [&str; 5] =
    ["queue_directory", "smtpd_milters", "smtpd_milter_maps", "non_smtpd_milters", "milter_default_action"];

/// What one Postfix says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The directory of its main.cf.
    pub directory: PathBuf,
    /// Its default action for our address; `None` if no list of milters names it.
    pub action: Option<DefaultAction>,
}

/// Asks each Postfix that can be asked.
#[must_use]
pub fn ask(directories: &[PathBuf], address: &Address) -> Vec<Said> {
    let ask = |directory: &PathBuf| {
        let action = ask_one(directory, address)?;
        Some(Said { directory: directory.clone(), action })
    };
    directories.iter().filter_map(ask).collect()
}

fn ask_one(directory: &Path, address: &Address) -> Option<Option<DefaultAction>> {
    if !directory.join("main.cf").exists() {
        return None;
    }
    let main = postconf(directory, &[&["-x"], &PARAMETERS[..]].concat())?;
    let master = postconf(directory, &["-xP"])?;
    let queue = main.lines().find_map(|line| line.strip_prefix("queue_directory = "))?.to_owned();
    let mut settings = main + &master;
    let tables: String =
        tables(&settings).into_iter().map(|table| lists(table, text(table).as_deref())).collect();
    settings.push_str(&tables);
    Some(default_action(&settings, |entry| is_ours(entry, Path::new(&queue), address)))
}

/// The text that a table is made of; nothing where it is no file of reasonable size.
fn text(table: &str) -> Option<String> {
    let (_, path) = table.split_once(":/")?;
    let mut text = String::new();
    std::fs::File::open(Path::new("/").join(path)).ok()?.take(TABLE_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

fn is_ours(entry: &str, queue: &Path, address: &Address) -> bool {
    match address {
        Address::Tcp(address) => {
            let Some(place) = entry.strip_prefix("inet:") else { return false };
            place.parse() == Ok(*address) || place == format!("localhost:{}", address.port())
        }
        Address::Unix { path, .. } => entry
            .strip_prefix("unix:")
            .or_else(|| entry.strip_prefix("local:"))
            .is_some_and(|place| real(&queue.join(place)) == real(path)),
    }
}

/// The path without symbolic links; the socket itself need not be there.
fn real(path: &Path) -> PathBuf {
    let directory = path.parent().and_then(|directory| directory.canonicalize().ok());
    directory.zip(path.file_name()).map_or_else(|| path.to_owned(), |(directory, name)| directory.join(name))
}

fn postconf(directory: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("postconf");
    command.arg("-c").arg(directory).args(arguments);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    let mut stdout = child.stdout.take()?;
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).ok().map(|_| text)
    });
    let end = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    };
    reader.join().ok().flatten().filter(|_| status.success())
}
