//! Connections: how many, from whom, and how long each may take.
//!
//! - Layer: edge
//! - Takes: peers, and the bytes and answers that pass.
//! - Gives: a place for each connection, and the moment at which it has to be cut.
//! - On failure: a poisoned lock is read as it stands.
//! - Limits: those of `Limits`.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// How many connections each client has open.
#[derive(Debug, Default)]
pub(super) struct PerClient(Mutex<HashMap<IpAddr, usize>>);

/// One of a client's connections, as long as it lives.
#[derive(Debug)]
pub(super) struct Place {
    clients: Arc<PerClient>,
    client: IpAddr,
}

impl PerClient {
    /// A place for one more connection, unless the client has `limit` already.
    pub(super) fn place(self: &Arc<Self>, client: IpAddr, limit: usize) -> Option<Place> {
        let client = network(client);
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(client).or_insert(0);
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Place { clients: Arc::clone(self), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.clients.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.client);
            }
        }
    }
}

/// What counts as one client: an IPv4 address, or the /64 that one line of a provider has.
fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// Nothing, since its last answer.
    Idle,
    /// Sending the head of a request; a new connection begins here.
    Head,
    /// Waiting for our answer.
    Answer,
}

/// Since when a connection is doing what: the low two bits, over milliseconds.
#[derive(Debug)]
pub(super) struct Watch {
    began: Instant,
    state: AtomicU64,
}

impl Watch {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), state: AtomicU64::new(1) })
    }

    pub(super) fn set(&self, doing: Doing) {
        let code = match doing {
            Doing::Idle => 0,
            Doing::Head => 1,
            Doing::Answer => 2,
        };
        let millis = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX >> 2);
        self.state.store(millis << 2 | code, Ordering::Relaxed);
    }

    fn doing(&self) -> (Doing, Instant) {
        let state = self.state.load(Ordering::Relaxed);
        let doing = match state & 0b11 {
            0 => Doing::Idle,
            1 => Doing::Head,
            _ => Doing::Answer,
        };
        (doing, self.began + Duration::from_millis(state >> 2))
    }

    /// Whether the connection took too long, and for what; otherwise when to look again.
    ///
    /// The next look is never further away than `head_timeout`, so that a head that begins now is cut in time.
    pub(super) fn check(
        &self,
        head_timeout: Duration,
        idle_timeout: Duration,
    ) -> Result<Instant, &'static str> {
        let (doing, since) = self.doing();
        let now = Instant::now();
        let (end, reason) = match doing {
            Doing::Head => (since + head_timeout, "head-timeout"),
            Doing::Idle => (since + idle_timeout, "idle-timeout"),
            Doing::Answer => return Ok(now + head_timeout),
        };
        if now >= end { Err(reason) } else { Ok(end.min(now + head_timeout)) }
    }

    fn heard(&self) {
        if self.state.load(Ordering::Relaxed) & 0b11 == 0 {
            self.set(Doing::Head);
        }
    }
}

/// A socket that tells its watch when bytes come.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) stream: TcpStream,
    pub(super) watch: Arc<Watch>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.watch.heard();
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_a_number_of_places() {
        let clients = Arc::new(PerClient::default());
        let place = |address: &str| clients.place(address.parse().unwrap(), 2);
        let (one, two) = (place("192.0.2.1"), place("::ffff:192.0.2.1"));
        assert!(
            one.is_some() && two.is_some() && place("192.0.2.1").is_none() && place("192.0.2.2").is_some()
        );
        drop(one);
        assert!(place("192.0.2.1").is_some());
        let (_one, _two) = (place("2001:db8::1"), place("2001:db8::2"));
        assert!(place("2001:db8::3").is_none() && place("2001:db8:0:1::3").is_some());
        drop(two);
        assert!(!clients.0.lock().unwrap().contains_key(&"192.0.2.1".parse::<IpAddr>().unwrap()));
    }
}
