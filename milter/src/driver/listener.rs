//! Where MTAs connect.
//!
//! - Layer: edge
//! - Takes: an address, a path with mode and group, or a socket inherited from a supervisor.
//! - Gives: connections.
//! - On failure: [`BindError`] at the start. A socket file that nobody answers on is replaced; one that somebody
//!   answers on, or a file of another kind, never is.
//! - Limits: 1,024 connections wait in the system's queue.
//! - See: Postfix needs write permission on the socket for its user `postfix`

use std::fs::{File, TryLockError};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::stream::{Stream, registered, send_room};

const BACKLOG: i32 = 1_024;
/// How long another daemon that is just starting is waited for.
const TURN: Duration = Duration::from_secs(2);

/// A Unix socket to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnixSocket {
    /// Where it lies. Its directory must exist.
    pub path: PathBuf,
    /// Its permissions, such as `0o660`.
    pub mode: u32,
    /// The number of its group; `None` to leave it.
    pub group: Option<u32>,
}

impl UnixSocket {
    /// A socket with these permissions, and no group of its own.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, mode: u32) -> Self {
        Self { path: path.into(), mode, group: None }
    }
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: Bound,
    /// The socket file to remove at the end.
    file: Option<SocketFile>,
}

#[derive(Debug)]
enum Bound {
    Tcp(AsyncFd<TcpListener>),
    Unix(AsyncFd<UnixListener>),
}

impl Bound {
    fn tcp(listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::Tcp(registered(listener, Interest::READABLE)?))
    }

    fn unix(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::Unix(registered(listener, Interest::READABLE)?))
    }
}

/// Why nothing can listen there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another process answers on the socket.
    #[error("{}: another process answers on it", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The path names something that is no socket.
    #[error("{}: exists and is no socket", path.display())]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refused, for a path.
    #[error("{}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The system refused, for an address.
    #[error("{address}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// An inherited socket can't be used.
    #[error("inherited socket")]
    Inherited(#[source] io::Error),
}

impl Listener {
    /// Listens on TCP. Must be called within a tokio runtime, as all these.
    ///
    /// # Errors
    /// The system refuses the address.
    pub fn tcp(address: SocketAddr) -> Result<Self, BindError> {
        let bind = || {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Bound::tcp(socket.into())
        };
        let socket = bind().map_err(|source| BindError::Address { address, source })?;
        Ok(Self { socket, file: None })
    }

    /// Listens on a Unix socket; its file is removed at the end if it is still the same.
    ///
    /// # Errors
    /// Somebody answers on the socket, the path is something else, or the system refuses.
    pub fn unix(at: &UnixSocket) -> Result<Self, BindError> {
        let failed = |source| BindError::Path { path: at.path.clone(), source };
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
        let address = SockAddr::unix(&at.path).map_err(failed)?;
        let _turn = take_turn(&at.path)?;
        match socket.bind(&address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(&at.path)?;
                socket.bind(&address).map_err(failed)?;
            }
            other => other.map_err(failed)?,
        }
        let file = SocketFile::new(&at.path).map_err(failed)?;
        // Rights come before connections: nobody gets in with those of the umask.
        if at.group.is_some() {
            std::os::unix::fs::chown(&at.path, None, at.group).map_err(failed)?;
        }
        std::fs::set_permissions(&at.path, std::fs::Permissions::from_mode(at.mode)).map_err(failed)?;
        socket.listen(BACKLOG).map_err(failed)?;
        let socket = Bound::unix(socket.into()).map_err(failed)?;
        Ok(Self { socket, file: Some(file) })
    }

    /// Takes over a TCP socket that a supervisor has bound.
    ///
    /// # Errors
    /// The socket can't be used.
    pub fn from_tcp(listener: TcpListener) -> Result<Self, BindError> {
        Ok(Self { socket: Bound::tcp(listener).map_err(BindError::Inherited)?, file: None })
    }

    /// Takes over a Unix socket that a supervisor has bound; its file stays at the end.
    ///
    /// # Errors
    /// The socket can't be used.
    pub fn from_unix(listener: UnixListener) -> Result<Self, BindError> {
        Ok(Self { socket: Bound::unix(listener).map_err(BindError::Inherited)?, file: None })
    }

    /// The TCP address listened on.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Bound::Tcp(listener) => listener.get_ref().local_addr().ok(),
            Bound::Unix(_) => None,
        }
    }

    /// The path of the Unix socket, if it was bound here.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| file.path.as_path())
    }

    /// The largest answer, in bytes, that a connection takes in one write when a send buffer of `send_buffer_bytes` is asked
    /// for: what [`Oversize::PassUnmodified`](super::Oversize) goes by.
    ///
    /// # Errors
    /// The system makes no socket.
    pub fn answer_room_bytes(&self, send_buffer_bytes: usize) -> io::Result<usize> {
        let domain = self.tcp_address().map_or(Domain::UNIX, Domain::for_address);
        let socket = Socket::new(domain, Type::STREAM, None)?;
        send_room((&socket).into(), send_buffer_bytes)
    }

    pub(super) async fn accept(&self) -> io::Result<Stream> {
        match &self.socket {
            Bound::Tcp(listener) => {
                Stream::tcp(listener.async_io(Interest::READABLE, |listener| listener.accept()).await?.0)
            }
            Bound::Unix(listener) => {
                Stream::unix(listener.async_io(Interest::READABLE, |listener| listener.accept()).await?.0)
            }
        }
    }
}

/// Of several daemons that start together, one at a time looks at a socket file, replaces it and listens: between its
/// binding and its listening a socket looks stale. What is locked is the directory, so that nothing is left behind.
fn take_turn(path: &Path) -> Result<Option<File>, BindError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Where there is no lock to be had, there is no second daemon to be expected either.
    let Ok(directory) = File::open(directory) else { return Ok(None) };
    let end = Instant::now() + TURN;
    loop {
        match directory.try_lock() {
            Ok(()) => return Ok(Some(directory)),
            Err(TryLockError::WouldBlock) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(TryLockError::WouldBlock) => return Err(BindError::InUse { path: path.to_path_buf() }),
            Err(TryLockError::Error(_)) => return Ok(None),
        }
    }
}

/// Removes a socket file that nobody answers on.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let failed = |source| BindError::Path { path: path.to_path_buf(), source };
    let found = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed)?,
    };
    if !found.file_type().is_socket() {
        return Err(BindError::NoSocket { path: path.to_path_buf() });
    }
    // Not to wait: a daemon whose queue is full is there.
    let probe = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    match probe() {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) | Err(_) => Err(BindError::InUse { path: path.to_path_buf() }),
    }
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        let found = std::fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_path_buf(), device: found.dev(), inode: found.ino() })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|found| found.dev() == self.device && found.ino() == self.inode);
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
