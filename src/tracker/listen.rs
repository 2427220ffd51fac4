//! The tracker's listening socket.
//!
//! - Layer: edge
//! - Takes: an address of the configuration, or a socket that systemd hands over.
//! - Gives: a listener whose queue holds what a burst brings.
//! - On failure: `io::Error`.
//! - Limits: 4,096 connections wait, as far as `net.core.somaxconn` allows.
//! - See: systemd.socket(5), `systemd/mailtap-tracker.socket`.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

const BACKLOG: u32 = 4_096;

/// Listens; with `inherit`, a socket that systemd hands over comes before the address.
pub(super) fn bind(address: SocketAddr, inherit: bool) -> io::Result<TcpListener> {
    let mut inherited = if inherit { listenfd::ListenFd::from_env() } else { listenfd::ListenFd::empty() };
    if inherited.len() > 1 {
        // Who connects to the others would wait in vain.
        return Err(io::Error::other(format!(
            "LISTEN_FDS: {} descriptors were handed over, and the tracker listens on one socket; in the .socket unit, write one \
             ListenStream= (in a drop-in, an empty ListenStream= before it takes back those above)",
            inherited.len()
        )));
    }
    if let Some(listener) = inherited.take_tcp_listener(0)? {
        listener.set_nonblocking(true)?;
        return TcpListener::from_std(listener);
    }
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
