//! Asks Postfix what it does when we fail, since a wrong pair of settings can cost mail.
//!
//! - Layer: edge
//! - Takes: directories with a main.cf, where we listen.
//! - Gives: the default action that each of them has for us, if it names us; its largest message.
//! - On failure: [`Trouble`]: who can't be asked has not agreed.
//! - Limits: 5 s for each call of `postconf`, of whose answer the first MiB counts; of a table of clients its first MiB, where
//!   it is a file of text.
//! - See: postconf(1), postconf(5) `milter_default_action`

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::listen::Endpoint;
use super::main_cf::{Says, lists, says, tables};
use super::master_cf::{self, Odd, Program, Service, reachable};

const PATIENCE: Duration = Duration::from_secs(5);
const MOST_BYTES: u64 = 1 << 20;
/// What a service may set for itself.
const PARAMETERS: [&str; 7] = [
    "smtpd_milters",
    "smtpd_milter_maps",
    "non_smtpd_milters",
    "milter_default_action",
    "milter_command_timeout",
    "milter_content_timeout",
    "message_size_limit",
];
const INSTANCES: &str = "multi_instance_directories";
/// Warnings that say nothing of what a parameter is: of one that is not used, set twice, or on its way out.
const HARMLESS: [&str; 3] =
    [": unused parameter: ", ": overriding earlier entry: ", ": support for parameter "];
/// Where `postconf` lies, whatever a service's PATH.
const USUAL: [&str; 3] = ["/usr/sbin/postconf", "/usr/local/sbin/postconf", "/usr/bin/postconf"];

/// What one Postfix says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The directory of its main.cf.
    pub directory: PathBuf,
    /// Its default action for our address, and what else we want to know.
    pub says: Result<Says, Trouble>,
}

/// Why a Postfix can't be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// There is nothing to be read.
    #[error("main.cf can't be read ({0})")]
    MainCf(std::io::ErrorKind),
    /// The services can't be seen.
    #[error("master.cf can't be read ({0})")]
    MasterCf(std::io::ErrorKind),
    /// No `postconf`, or none that starts.
    #[error("postconf can't be run ({0})")]
    Postconf(std::io::ErrorKind),
    /// It says no.
    #[error("postconf fails ({0})")]
    Fails(String),
    /// It says nothing.
    #[error("postconf gives no answer within {} s", PATIENCE.as_secs())]
    Late,
    /// A service may be set otherwise than is seen.
    #[error(transparent)]
    Odd(#[from] Odd),
    /// What a running daemon alone knows.
    #[error("the milters depend on ${0}, which only a running service knows")]
    Unknowable(String),
    /// It understands something in another way than a daemon might.
    #[error("postconf warns ({0})")]
    Warns(String),
    /// A table of clients that may name us.
    #[error("the table {0} of smtpd_milter_maps can't be read as text")]
    Table(String),
}

/// Asks each Postfix, and each further instance that one of them names.
#[must_use]
pub fn ask(directories: &[PathBuf], listens: &Endpoint) -> Vec<Said> {
    let mut said = Vec::new();
    let mut further = Vec::new();
    for directory in directories {
        let (says, instances) = match ask_one(directory, listens) {
            Ok((says, instances)) => (Ok(says), instances),
            Err(trouble) => (Err(trouble), Vec::new()),
        };
        said.push(Said { directory: directory.clone(), says });
        further.extend(instances);
    }
    for directory in further {
        if said.iter().all(|said| real(&said.directory) != real(&directory)) {
            let says = ask_one(&directory, listens).map(|(says, _)| says);
            said.push(Said { directory, says });
        }
    }
    said
}

/// Its queue directory, where the paths in main.cf begin.
///
/// # Errors
/// It can't be asked.
pub fn queue_directory(directory: &Path) -> Result<PathBuf, Trouble> {
    let (said, _) = postconf(directory, &["-x", "-h", "queue_directory"])?;
    let path = PathBuf::from(said.trim());
    if path.is_absolute() { Ok(path) } else { Err(Trouble::Fails("it names no queue_directory".into())) }
}

/// What main.cf says of a parameter.
///
/// # Errors
/// It can't be asked.
pub fn value(directory: &Path, name: &str) -> Result<String, Trouble> {
    let (said, _) = postconf(directory, &["-x", "-h", name])?;
    Ok(said.trim().to_owned())
}

/// What services on a port set a parameter to in master.cf: service and value.
///
/// # Errors
/// It can't be asked.
pub fn of_services(directory: &Path, name: &str) -> Result<Vec<(String, String)>, Trouble> {
    let (said, _) = postconf(directory, &["-x", "-P", &format!("*/inet/{name}")])?;
    let lines = said.lines().filter_map(|line| line.split_once('='));
    let service = |key: &str| key.split('/').next().unwrap_or_default().trim().to_owned();
    Ok(lines.map(|(key, value)| (service(key), value.trim().to_owned())).collect())
}

/// The program: the first in PATH, or where it usually lies.
#[must_use]
pub fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|directory| directory.join("postconf"));
    let found = in_path.chain(USUAL.map(PathBuf::from)).find(|program| program.is_file());
    found.unwrap_or_else(|| "postconf".into())
}

/// What it says of us, and the directories of further instances.
fn ask_one(directory: &Path, listens: &Endpoint) -> Result<(Says, Vec<PathBuf>), Trouble> {
    let main_cf = read(&directory.join("main.cf"))?;
    let mut services = master_cf::services(&read(&directory.join("master.cf"))?)?;
    // Stands for `sendmail -bs` too, and for each service without options that matter.
    let plain = Service { program: Program::Other, overrides: Vec::new() };
    services.push(plain.clone());
    let mut ways = BTreeSet::new();
    for mut service in services {
        let matter = reachable(&main_cf, &service.overrides, &PARAMETERS).map_err(Trouble::Unknowable)?;
        service.overrides.retain(|(name, _)| matter.contains(name));
        ways.insert(if service.overrides.is_empty() { plain.clone() } else { service });
    }
    let (mut found, mut instances) = (Says::default(), Vec::new());
    for way in ways {
        let settings = settings(directory, &way)?;
        let value =
            |name: &str| settings.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" ="));
        let queue = value("queue_directory").map(|value| value.trim().to_owned());
        let queue = queue.ok_or_else(|| Trouble::Fails("it names no queue_directory".into()))?;
        let says = says(&settings, way.program, |entry| is_ours(entry, Path::new(&queue), listens));
        // What another service takes is no limit for our mail; but cleanup(8) edits all of it.
        if says.action.is_some() || way.program != Program::Smtpd {
            found = found.and(says);
        }
        let words = value(INSTANCES).unwrap_or_default().split([',', ' ', '\t']);
        instances.extend(words.map(PathBuf::from).filter(|path| path.is_absolute()));
    }
    Ok((found, instances))
}

/// What it says of a service as it is set in master.cf; and the lists in the tables that it names.
fn settings(directory: &Path, service: &Service) -> Result<String, Trouble> {
    let overrides =
        service.overrides.iter().flat_map(|(name, value)| ["-o".to_owned(), format!("{name}={value}")]);
    let asked = [&PARAMETERS[..], &["queue_directory", INSTANCES]].concat();
    let arguments: Vec<String> = std::iter::once("-x".to_owned()).chain(overrides).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(asked).collect();
    let (mut settings, warnings) = postconf(directory, &arguments)?;
    let mut warnings = warnings.lines().filter(|line| !HARMLESS.iter().any(|known| line.contains(known)));
    if let Some(warning) = warnings.next() {
        return Err(Trouble::Warns(warning.to_owned()));
    }
    let mut in_tables = String::new();
    for table in tables(&settings) {
        let text = if table.starts_with("inline:") { None } else { Some(text(table)?) };
        in_tables += &lists(table, text.as_deref());
    }
    settings.push_str(&in_tables);
    Ok(settings)
}

/// A file of Postfix's configuration.
fn read(path: &Path) -> Result<String, Trouble> {
    let unreadable = |error: std::io::Error| match path.file_name() {
        Some(name) if name == "master.cf" => Trouble::MasterCf(error.kind()),
        _ => Trouble::MainCf(error.kind()),
    };
    let mut bytes = Vec::new();
    File::open(path).map_err(unreadable)?.take(MOST_BYTES).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The text that a table is made of.
fn text(table: &str) -> Result<String, Trouble> {
    let read = || {
        let (_, path) = table.split_once(":/")?;
        let mut text = String::new();
        let file = File::open(Path::new("/").join(path)).ok()?;
        file.take(MOST_BYTES + 1).read_to_string(&mut text).ok()?;
        (text.len() as u64 <= MOST_BYTES).then_some(text)
    };
    read().ok_or_else(|| Trouble::Table(table.to_owned()))
}

/// Whether an entry of a list of milters means us. On TCP the port decides: a host may be written in many ways, and the socket
/// may listen on all addresses, or behind others.
fn is_ours(entry: &str, queue: &Path, listens: &Endpoint) -> bool {
    match listens {
        Endpoint::Tcp(address) => {
            let place = entry.strip_prefix("inet:").and_then(|place| place.rsplit(':').next());
            place.and_then(port) == Some(address.port())
        }
        Endpoint::Unix(path) => {
            let place = entry.strip_prefix("unix:").or_else(|| entry.strip_prefix("local:"));
            // In a chroot, an absolute path begins at the queue directory.
            place.is_some_and(|place| {
                let jailed = queue.join(place.trim_start_matches('/'));
                [queue.join(place), jailed].iter().any(|place| real(place) == real(path))
            })
        }
    }
}

/// A port by its number, or by its name in services(5).
fn port(text: &str) -> Option<u16> {
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let services = std::fs::read_to_string("/etc/services").ok()?;
    services.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let (name, port) = (words.next()?, words.next()?.strip_suffix("/tcp")?);
        (name == text || words.any(|alias| alias == text)).then(|| port.parse().ok())?
    })
}

/// The path without symbolic links; the socket itself need not be there.
fn real(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    let directory = path.parent().and_then(|directory| directory.canonicalize().ok());
    directory.zip(path.file_name()).map_or_else(|| path.to_owned(), |(directory, name)| directory.join(name))
}

/// What it says, and its warnings.
fn postconf(directory: &Path, arguments: &[&str]) -> Result<(String, String), Trouble> {
    let mut command = Command::new(program());
    command.arg("-c").arg(directory).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| Trouble::Postconf(error.kind()))?;
    let said = reader(child.stdout.take());
    let complaint = reader(child.stderr.take());
    let good = wait(&mut child)?;
    let complaint = complaint.join().ok().flatten().unwrap_or_default();
    if good {
        let said =
            said.join().ok().flatten().ok_or_else(|| Trouble::Fails("its answer is no text".into()))?;
        return Ok((said, complaint));
    }
    Err(Trouble::Fails(complaint.lines().last().unwrap_or("it says nothing").to_owned()))
}

/// Reads on a thread of its own, so that a process that hangs is not waited for.
fn reader(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Option<String>> {
    std::thread::spawn(move || {
        let mut text = String::new();
        pipe?.take(MOST_BYTES).read_to_string(&mut text).ok().map(|_| text)
    })
}

/// Whether it ends well; in time.
fn wait(child: &mut Child) -> Result<bool, Trouble> {
    let end = Instant::now() + PATIENCE;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status.success()),
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(Trouble::Late);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_ours_by_whatever_name() {
        let queue = Path::new("/var/spool/postfix");
        for address in ["0.0.0.0:8893", "127.0.0.1:8893", "[::]:8893"] {
            let listens = Endpoint::Tcp(address.parse().unwrap());
            for ours in ["127.0.0.1:8893", "localhost:8893", "relay.test:8893", "[::1]:8893", "8893"] {
                assert!(is_ours(&format!("inet:{ours}"), queue, &listens), "{ours}");
            }
            for other in ["inet:127.0.0.1:8891", "inet:127.0.0.1:smtp", "unix:8893", "inet:x:y"] {
                assert!(!is_ours(other, queue, &listens), "{other}");
            }
        }
        let smtp = Endpoint::Tcp("127.0.0.1:25".parse().unwrap());
        assert!(!Path::new("/etc/services").exists() || is_ours("inet:localhost:smtp", queue, &smtp));
    }

    #[test]
    fn a_socket_is_ours_by_whatever_path() {
        let folder = tempfile::tempdir().unwrap();
        let queue = folder.path().join("queue");
        std::fs::create_dir_all(queue.join("mailtap")).unwrap();
        std::os::unix::fs::symlink(&queue, folder.path().join("link")).unwrap();
        let listens = Endpoint::Unix(folder.path().join("link/mailtap/milter.sock"));
        let absolute = format!("unix:{}/mailtap/milter.sock", queue.display());
        for ours in
            ["unix:mailtap/milter.sock", "local:mailtap/milter.sock", "unix:/mailtap/milter.sock", &absolute]
        {
            assert!(is_ours(ours, &queue, &listens), "{ours}");
        }
        for other in ["unix:mailtap/other.sock", "unix:/milter.sock", "inet:mailtap/milter.sock"] {
            assert!(!is_ours(other, &queue, &listens), "{other}");
        }
    }

    #[test]
    fn who_cannot_be_asked_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let listens = Endpoint::Unix("/x".into());
        let said = ask(&[folder.path().to_owned()], &listens);
        let trouble = Trouble::MainCf(std::io::ErrorKind::NotFound);
        assert_eq!(said, [Said { directory: folder.path().to_owned(), says: Err(trouble) }]);
        assert!(matches!(text("ldap:milters"), Err(Trouble::Table(_))));
        assert!(matches!(text("cidr:/nowhere/milters"), Err(Trouble::Table(_))));
    }
}
