//! One connected socket, TCP or Unix.
//!
//! - Layer: edge
//! - Takes: a socket of tokio.
//! - Gives: reads and writes that never block, the size of one write that is sure to be taken whole.
//! - On failure: the system's error.
//! - Limits: the send buffer that the system grants. Linux reports twice what was asked for, since it counts its own
//!   overhead: an empty socket was seen to take 0.98 of the reported number on Unix sockets and 0.99 and more on TCP,
//!   from 128 KiB to 8 MiB. We count on 3/4.
//! - See: socket(7) `SO_SNDBUF`, tcp(7) `TCP_QUICKACK`

use std::io;

use socket2::SockRef;
use tokio::net::{TcpStream, UnixStream};

/// A connected socket.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
}

impl Stream {
    /// Prepares the socket and gives the largest write, in bytes, that the system takes whole when nothing else waits.
    pub(super) fn prepare(&self, send_buffer_bytes: usize) -> io::Result<usize> {
        if let Self::Tcp(stream) = self {
            stream.set_nodelay(true)?;
        }
        let socket = self.socket();
        // Less than asked for is not an error: the system caps it.
        let _ = socket.set_send_buffer_size(send_buffer_bytes.min(i32::MAX as usize / 2));
        let reported = socket.send_buffer_size()?;
        Ok(if cfg!(target_os = "linux") { reported / 4 * 3 } else { reported / 4 })
    }

    /// Has the kernel acknowledge what comes next at once. Without it every command that gets no reply costs 40 ms,
    /// since Postfix writes on only after the acknowledgement. Linux forgets the setting, so it is renewed before each
    /// wait.
    pub(super) fn acknowledge_at_once(&self) {
        #[cfg(target_os = "linux")]
        if let Self::Tcp(stream) = self {
            let _ = SockRef::from(stream).set_tcp_quickack(true);
        }
    }

    pub(super) fn try_read(&self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(room),
            Self::Unix(stream) => stream.try_read(room),
        }
    }

    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
        }
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Unix(stream) => stream.readable().await,
        }
    }

    pub(super) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.writable().await,
            Self::Unix(stream) => stream.writable().await,
        }
    }

    fn socket(&self) -> SockRef<'_> {
        match self {
            Self::Tcp(stream) => SockRef::from(stream),
            Self::Unix(stream) => SockRef::from(stream),
        }
    }
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(stream)
    }
}

impl From<UnixStream> for Stream {
    fn from(stream: UnixStream) -> Self {
        Self::Unix(stream)
    }
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::vec;

    use tokio::net::TcpListener;

    use super::*;

    async fn pair(tcp: bool) -> (Stream, Stream) {
        if tcp {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (there, here) = tokio::join!(TcpStream::connect(address), listener.accept());
            return (here.unwrap().0.into(), there.unwrap().into());
        }
        let (here, there) = UnixStream::pair().unwrap();
        (here.into(), there.into())
    }

    /// The whole of what `prepare` promises is with the kernel after one write, though the peer does not read: also
    /// after small replies that the peer has read, and for every size of buffer that can be had.
    #[tokio::test]
    async fn one_write_takes_what_is_promised() {
        for tcp in [false, true] {
            for ask in [1, 16 << 10, 64 << 10, 212_992, 1 << 20, 4 << 20, 64 << 20] {
                let (here, there) = pair(tcp).await;
                let room = here.prepare(ask).unwrap();
                for _ in 0..50 {
                    here.writable().await.unwrap();
                    assert_eq!(here.try_write(b"\0\0\0\x01c").unwrap(), 5);
                    there.readable().await.unwrap();
                    assert_eq!(there.try_read(&mut [0; 100]).unwrap(), 5);
                }
                let taken = here.try_write(&vec![b'x'; room]).unwrap();
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
