//! A TCP proxy on loopback that cuts connections in the middle of anything, or lets nothing through for a while.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    ToServer,
    ToClient,
}

/// The proxy; its threads end with the process.
pub struct Proxy {
    pub port: u16,
    wire: Arc<Wire>,
}

#[derive(Default)]
struct Wire {
    /// Both ends of every connection.
    open: Mutex<Vec<TcpStream>>,
    /// How many bytes may still pass each way; `u64::MAX`: as many as come.
    left: [AtomicU64; 2],
    stalled: AtomicBool,
    cuts: AtomicU64,
}

impl Proxy {
    /// Passes connections on to a port of loopback.
    pub fn start(port: u16, server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let wire = Arc::new(Wire { left: [u64::MAX.into(), u64::MAX.into()], ..Wire::default() });
        let shared = wire.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                shared
                    .open
                    .lock()
                    .unwrap()
                    .extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
                for (from, to, way) in [(&client, &server, Way::ToServer), (&server, &client, Way::ToClient)]
                {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let wire = shared.clone();
                    std::thread::spawn(move || wire.pass(from, to, way));
                }
            }
        });
        Self { port, wire }
    }

    /// Lets so many more bytes pass one way, then cuts all connections: a frame is most likely cut in two. If so many don't
    /// come within `limit`, it cuts all the same. New connections pass.
    pub fn cut(&self, way: Way, bytes: u64, limit: Duration) {
        let before = self.wire.cuts.load(Ordering::SeqCst);
        self.wire.left[way as usize].store(bytes, Ordering::SeqCst);
        let end = std::time::Instant::now() + limit;
        while self.wire.cuts.load(Ordering::SeqCst) == before && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.wire.cut();
    }

    /// Lets nothing through for a while, as a network that is gone; then goes on, or cuts.
    pub fn stall(&self, time: Duration, cut: bool) {
        self.wire.stalled.store(true, Ordering::SeqCst);
        std::thread::sleep(time);
        if cut {
            self.wire.cut();
        }
        self.wire.stalled.store(false, Ordering::SeqCst);
    }
}

impl Wire {
    fn pass(&self, mut from: TcpStream, mut to: TcpStream, way: Way) {
        let mut buffer = [0; 16_384];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            while self.stalled.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            let take =
                |left: u64| Some(if left == u64::MAX { left } else { left.saturating_sub(count as u64) });
            let left =
                self.left[way as usize].fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).unwrap();
            let passes = count.min(usize::try_from(left).unwrap_or(usize::MAX));
            if to.write_all(&buffer[..passes]).is_err() {
                break;
            }
            if left <= count as u64 {
                self.cut();
                break;
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }

    fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.left.iter().for_each(|left| left.store(u64::MAX, Ordering::SeqCst));
        self.cuts.fetch_add(1, Ordering::SeqCst);
    }
}
