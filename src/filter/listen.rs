//! The milter's socket.
//!
//! - Layer: edge
//! - Takes: an address of the configuration, or a socket that systemd hands over.
//! - Gives: a listener, and where it really listens.
//! - On failure: `ListenError` with the path and the remedy.
//! - See: systemd.socket(5), `docs/postfix.md`.

use std::error::Error;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use mailtap_milter::driver::{BindError, Listener, UnixSocket};

use super::happenings::GroupKept;

/// The group that Postfix's own processes are in.
const POSTFIX: &str = "postfix";

/// Where the milter listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A host by its name.
    Named {
        /// The name.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket.
    Unix {
        /// Where it lies.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// The group that may connect. None: that of a setgid directory, else `postfix` where there is such a group.
        group: Option<String>,
    },
}

impl Address {
    /// Looks whether the socket's group is there.
    ///
    /// # Errors
    /// [`ListenError::Group`].
    pub fn check_group(&self) -> Result<(), ListenError> {
        match self {
            Self::Unix { group: Some(name), .. } => gid(name).map(drop),
            _ => Ok(()),
        }
    }

    /// Looks whether the host's name resolves, if there is one.
    ///
    /// # Errors
    /// [`ListenError::Name`].
    pub fn check_name(&self) -> Result<(), ListenError> {
        match self {
            Self::Named { host, port } => resolve(host, *port).map(drop),
            _ => Ok(()),
        }
    }

    /// Where connections are taken, if the socket is made here. Of a name that does not resolve the port is known.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        match self {
            Self::Tcp(address) => Endpoint::Tcp(*address),
            Self::Named { host, port } => {
                let address = resolve(host, *port);
                Endpoint::Tcp(address.unwrap_or_else(|_| (Ipv4Addr::UNSPECIFIED, *port).into()))
            }
            Self::Unix { path, .. } => Endpoint::Unix(path.clone()),
        }
    }
}

/// Where connections are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// On TCP.
    Tcp(SocketAddr),
    /// On a Unix socket; no path means one without a name, which Postfix can't reach.
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "inet:{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why the milter can't listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The system or another process is in the way.
    #[error("milter.listen: {error}{}{}", .error.source().map(|why| format!(": {why}")).unwrap_or_default(), in_use(.error))]
    Bind {
        /// What the system said.
        error: BindError,
    },
    /// The directory of the socket can't be made.
    #[error(
        "milter.listen: {directory}: {error}; as root: install -d -o mailtap -g postfix -m 2750 {directory}",
        directory = .directory.display()
    )]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// What systemd hands over is no socket that the milter can listen on.
    #[error(
        "LISTEN_FDS: the first of the descriptors handed over is no listening stream socket ({0}); in the .socket unit, write one \
         ListenStream= and nothing else"
    )]
    Inherited(std::io::Error),
    /// systemd hands over more than one: nobody would answer on the others.
    #[error(
        "LISTEN_FDS: {0} descriptors were handed over, and the milter listens on one socket: who connects to the others would wait \
         in vain; in the .socket unit, write one ListenStream= (in a drop-in, an empty ListenStream= before it takes back those above)"
    )]
    Several(usize),
    /// The host's name is not known, or nobody can be asked.
    #[error(
        "milter.listen: the name {host} does not resolve ({error}); correct it, look at /etc/hosts and the resolver \
         (getent ahosts {host}), or write an IP address"
    )]
    Name {
        /// The name.
        host: String,
        /// What the resolver said.
        error: std::io::Error,
    },
    /// The group does not exist.
    #[error(
        "milter.socket_group: there is no group {0:?} on this system (getent group {0}); groupadd {0}, or name one \
         that Postfix's user is in; \"\" keeps the group of the socket's directory"
    )]
    Group(String),
}

/// What to do where another process answers.
fn in_use(error: &BindError) -> &'static str {
    let in_use = match error {
        BindError::InUse { .. } => true,
        error => {
            let why = error.source().and_then(|why| why.downcast_ref::<std::io::Error>());
            why.is_some_and(|why| why.kind() == std::io::ErrorKind::AddrInUse)
        }
    };
    if in_use {
        "; `ss -xlp` (on TCP `ss -tlp`) names it: stop it, or listen elsewhere; where systemd holds the socket (mailtap-milter.socket), \
         start the service, which takes it over"
    } else {
        ""
    }
}

impl From<BindError> for ListenError {
    fn from(error: BindError) -> Self {
        Self::Bind { error }
    }
}

/// Listens; a socket that systemd hands over comes before the configured one.
pub(super) fn bind(address: &Address) -> Result<(Listener, Endpoint), ListenError> {
    if let Some(listener) = handed_over(&mut listenfd::ListenFd::from_env())? {
        return Ok(listener);
    }
    let listener = match address {
        Address::Tcp(address) => Listener::tcp(*address)?,
        Address::Named { host, port } => Listener::tcp(resolve(host, *port)?)?,
        Address::Unix { path, mode, group } => bind_unix(path, *mode, group.as_deref())?,
    };
    let endpoint = listener.tcp_address().map_or_else(|| address.endpoint(), Endpoint::Tcp);
    Ok((listener, endpoint))
}

/// The descriptor handed over. One that can't be used is an error, and so is a second one: the supervisor would go on holding
/// a socket that nobody answers on.
fn handed_over(inherited: &mut listenfd::ListenFd) -> Result<Option<(Listener, Endpoint)>, ListenError> {
    match inherited.len() {
        0 => return Ok(None),
        1 => {}
        several => return Err(ListenError::Several(several)),
    }
    if let Ok(Some(listener)) = inherited.take_unix_listener(0) {
        let path = listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned));
        let endpoint = Endpoint::Unix(path.unwrap_or_default());
        return Ok(Some((Listener::from_unix(listener)?, endpoint)));
    }
    match inherited.take_tcp_listener(0) {
        Ok(Some(listener)) => {
            let endpoint = Endpoint::Tcp(listener.local_addr().map_err(ListenError::Inherited)?);
            Ok(Some((Listener::from_tcp(listener)?, endpoint)))
        }
        Ok(None) => Ok(None),
        Err(error) => Err(ListenError::Inherited(error)),
    }
}

/// The first address of a host.
fn resolve(host: &str, port: u16) -> Result<SocketAddr, ListenError> {
    let none = || std::io::Error::other("it has no address");
    let first = (host, port).to_socket_addrs().and_then(|mut all| all.next().ok_or_else(none));
    first.map_err(|error| ListenError::Name { host: host.to_owned(), error })
}

/// Makes the directory of the socket where there is none, for others to pass through whatever the umask.
fn make_directory(directory: &Path) -> Result<(), ListenError> {
    let make = || {
        let missing: Vec<&Path> = directory.ancestors().take_while(|place| !place.exists()).collect();
        for place in missing.into_iter().rev() {
            std::fs::create_dir(place)?;
            std::fs::set_permissions(place, std::fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    };
    make().map_err(|error| ListenError::Directory { directory: directory.to_owned(), error })
}

fn bind_unix(path: &Path, mode: u32, group: Option<&str>) -> Result<Listener, ListenError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let wanted = match group {
        Some(name) => Some((name, gid(name)?)),
        None if is_setgid(directory) => None,
        None => gid(POSTFIX).ok().map(|gid| (POSTFIX, gid)),
    };
    make_directory(directory)?;
    let unix = |group| {
        let mut socket = UnixSocket::new(path, mode);
        socket.group = group;
        socket
    };
    let Some((name, gid)) = wanted else {
        return Ok(Listener::unix(&unix(None))?);
    };
    match Listener::unix(&unix(Some(gid))) {
        Ok(listener) => Ok(listener),
        Err(error) => {
            let listener = Listener::unix(&unix(None))?;
            GroupKept { path, group: name, error: &error }.emit();
            Ok(listener)
        }
    }
}

/// The number of a group.
fn gid(name: &str) -> Result<u32, ListenError> {
    let found = nix::unistd::Group::from_name(name).ok().flatten();
    found.map(|group| group.gid.as_raw()).ok_or_else(|| ListenError::Group(name.to_owned()))
}

/// Whether new files get the directory's group.
fn is_setgid(directory: &Path) -> bool {
    std::fs::metadata(directory).is_ok_and(|meta| meta.permissions().mode() & 0o2000 != 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_made_here_lets_others_through() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("postfix/mailtap");
        make_directory(&directory).unwrap();
        for made in [&directory, directory.parent().unwrap()] {
            let mode = std::fs::metadata(made).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o755, "{}", made.display());
        }
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o2750)).unwrap();
        make_directory(&directory).unwrap();
        let mode = std::fs::metadata(&directory).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o2750, "one that is there stays as it is");
    }
}
