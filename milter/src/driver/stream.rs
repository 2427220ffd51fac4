//! One connected socket, TCP or Unix.
//!
//! - Layer: edge
//! - Takes: a connected socket.
//! - Gives: reads and writes that never block, the size of one write that is sure to be taken whole.
//! - On failure: the system's error.
//! - Limits: the send buffer that the system grants. Linux reports twice what was asked for, since it counts its own
//!   overhead: an empty socket was seen to take 0.98 of the reported number on Unix sockets and 0.99 and more on TCP,
//!   from 128 KiB to 8 MiB. We count on 3/4.
//! - See: socket(7) `SO_SNDBUF`, tcp(7) `TCP_QUICKACK`, epoll(7) "edge-triggered"

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A connected socket. The system wakes us when there is something to read, and not, as tokio's own streams ask it to, each
/// time that the peer has read something of ours as well.
#[derive(Debug)]
pub(super) enum Stream {
    /// TCP.
    Tcp(AsyncFd<TcpStream>),
    /// A Unix socket.
    Unix(AsyncFd<UnixStream>),
}

impl Stream {
    /// Takes a TCP connection. Must be called within a tokio runtime, as `unix`.
    pub(super) fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self::Tcp(registered(stream, Interest::READABLE)?))
    }

    /// Takes a connection over a Unix socket.
    pub(super) fn unix(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self::Unix(registered(stream, Interest::READABLE)?))
    }

    /// Prepares the socket and gives the largest write, in bytes, that the system takes whole when nothing else waits.
    pub(super) fn prepare(&self, send_buffer_bytes: usize) -> io::Result<usize> {
        if let Self::Tcp(stream) = self {
            stream.get_ref().set_nodelay(true)?;
        }
        send_room(self.socket(), send_buffer_bytes)
    }

    /// Has the kernel acknowledge what comes next at once. Without it every command that gets no reply costs 40 ms,
    /// since Postfix writes on only after the acknowledgement. Linux forgets the setting, so it is renewed before each
    /// wait.
    pub(super) fn acknowledge_at_once(&self) {
        #[cfg(target_os = "linux")]
        if let Self::Tcp(_) = self {
            let _ = self.socket().set_tcp_quickack(true);
        }
    }

    /// Reads, if the system has told that something is there.
    pub(super) fn try_read(&self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_io(Interest::READABLE, |mut stream| stream.read(room)),
            Self::Unix(stream) => stream.try_io(Interest::READABLE, |mut stream| stream.read(room)),
        }
    }

    /// Reads, whatever the system has told so far.
    pub(super) fn read_now(&self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.get_ref().read(room),
            Self::Unix(stream) => stream.get_ref().read(room),
        }
    }

    pub(super) fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.get_ref().write(bytes),
            Self::Unix(stream) => stream.get_ref().write(bytes),
        }
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await.map(drop),
            Self::Unix(stream) => stream.readable().await.map(drop),
        }
    }

    /// Waits until something can be written: seldom needed, since what we write fits the send buffer unless the peer is
    /// long idle.
    pub(super) async fn writable(&self) -> io::Result<()> {
        // A second descriptor, since the first is registered for reading alone.
        let socket = registered(self.socket().try_clone()?, Interest::WRITABLE)?;
        socket.writable().await.map(drop)
    }

    fn socket(&self) -> SockRef<'_> {
        match self {
            Self::Tcp(stream) => SockRef::from(stream),
            Self::Unix(stream) => SockRef::from(stream),
        }
    }
}

/// Asks for a send buffer, and gives what one write takes for certain.
pub(super) fn send_room(socket: SockRef<'_>, send_buffer_bytes: usize) -> io::Result<usize> {
    // Less than asked for is not an error: the system caps it.
    let _ = socket.set_send_buffer_size(send_buffer_bytes.min(i32::MAX as usize / 2));
    let reported = socket.send_buffer_size()?;
    Ok(if cfg!(target_os = "linux") { reported / 4 * 3 } else { reported / 4 })
}

/// Has tokio watch a socket. Its newer functions for this are unsafe, for objects whose descriptor may change while they are
/// watched: that of a socket does not.
#[allow(deprecated)]
pub(super) fn registered<S: AsRawFd>(socket: S, interest: Interest) -> io::Result<AsyncFd<S>> {
    AsyncFd::with_interest(socket, interest)
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::net::TcpListener;
    use std::vec;

    use super::*;

    fn pair(tcp: bool) -> (Stream, Stream) {
        if tcp {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let there = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let here = listener.accept().unwrap().0;
            return (Stream::tcp(here).unwrap(), Stream::tcp(there).unwrap());
        }
        let (here, there) = UnixStream::pair().unwrap();
        (Stream::unix(here).unwrap(), Stream::unix(there).unwrap())
    }

    /// The whole of what `prepare` promises is with the kernel after one write, though the peer does not read: also
    /// after small replies that the peer has read, and for every size of buffer that can be had.
    #[tokio::test]
    async fn one_write_takes_what_is_promised() {
        for tcp in [false, true] {
            for ask in [1, 16 << 10, 64 << 10, 212_992, 1 << 20, 4 << 20, 64 << 20] {
                let (here, there) = pair(tcp);
                let room = here.prepare(ask).unwrap();
                for _ in 0..50 {
                    here.writable().await.unwrap();
                    assert_eq!(here.write_now(b"\0\0\0\x01c").unwrap(), 5);
                    there.readable().await.unwrap();
                    assert_eq!(there.try_read(&mut [0; 100]).unwrap(), 5);
                }
                let taken = here.write_now(&vec![b'x'; room]).unwrap();
                assert_eq!(taken, room, "tcp: {tcp}, asked for {ask}");
                drop(here);
                let mut left = room;
                let mut chunk = vec![0; 1 << 20];
                while left > 0 {
                    there.readable().await.unwrap();
                    match there.try_read(&mut chunk) {
                        Ok(0) => break,
                        Ok(count) => left -= count,
                        Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                    }
                }
                assert_eq!(left, 0, "all arrives after the writer is gone; tcp: {tcp}, asked for {ask}");
            }
        }
    }
}
