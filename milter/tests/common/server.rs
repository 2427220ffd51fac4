//! A daemon on a real socket.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use mailtap_milter::client::{Mail, Mailbox};
use mailtap_milter::driver::{
    Client, Fallback, Handler, Happening, Listener, Oversize, Response, Settings, Settled, UnixSocket, serve,
};
use mailtap_milter::edits::{Answer, Edit};
use mailtap_milter::session::{Interest, Message};
use mailtap_milter::wire::Offer;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Does what the subject of a message says: `panic`, `panic at headers`, `slow`, `stuck`, `large`, `large at last` (which may
/// not be streamed any more), `accept`, `no body`; edits all other messages. After `fallback` it first leaves an answer with the header `X-Fallback`.
#[derive(Debug, Default)]
pub struct Filter {
    pub happenings: Mutex<Vec<String>>,
    pub settled: Arc<Mutex<Vec<Settled>>>,
    pub taken: Arc<AtomicUsize>,
    pub bodies: AtomicUsize,
    /// Has answers keep to one write, whatever the settings say.
    pub careful: AtomicBool,
}

impl Filter {
    pub fn saw(&self, what: &str) -> usize {
        self.happenings.lock().unwrap().iter().filter(|line| line.contains(what)).count()
    }

    pub fn settled(&self) -> Vec<Settled> {
        self.settled.lock().unwrap().clone()
    }
}

fn subject(message: &Message) -> String {
    let value = message.header("Subject").map(|header| header.value.trim_ascii().to_vec());
    String::from_utf8(value.unwrap_or_default()).unwrap()
}

impl Handler for Filter {
    fn headers(&self, message: &Message) -> Interest {
        match subject(message).as_str() {
            "accept" => Interest::Accept,
            "no body" => Interest::BodyUpTo(0),
            "panic at headers" => panic!("as told"),
            _ => Interest::Body,
        }
    }

    async fn message(&self, message: Message, fallback: &Fallback) -> Response {
        self.bodies.fetch_add(1, Ordering::Relaxed);
        let mut body = b"edited: ".to_vec();
        let subject = subject(&message);
        if subject.starts_with("fallback") {
            let edit = Edit::AddHeader { name: b"X-Fallback".to_vec(), value: b"yes".to_vec() };
            fallback.set(Answer::edited(vec![edit]));
        }
        match subject.strip_prefix("fallback ").unwrap_or(&subject) {
            "panic" => panic!("as told"),
            "slow" => tokio::time::sleep(Duration::from_millis(700)).await,
            "stuck" => {
                let work = || std::thread::sleep(Duration::from_millis(700));
                tokio::task::spawn_blocking(work).await.unwrap();
            }
            "large" => body.resize(9_000_000, b'x'),
            "large at last" => {
                body.resize(9_000_000, b'x');
                self.careful.store(true, Ordering::Relaxed);
            }
            "no body" => {
                assert!(message.body().is_empty() && !message.body_is_whole());
                return Answer::unmodified().into();
            }
            _ => (),
        }
        body.extend_from_slice(message.body());
        let name = b"X-Edited".to_vec();
        let value = message.queue_id().unwrap_or(b"none").to_vec();
        let answer = Answer::edited(vec![Edit::AddHeader { name, value }, Edit::ReplaceBody(body)]);
        let settled = Arc::clone(&self.settled);
        let taken = Arc::clone(&self.taken);
        Response::new(answer, move |fate| settled.lock().unwrap().push(fate)).when_taken(move || {
            taken.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn oversize(&self, set: Oversize) -> Oversize {
        if self.careful.load(Ordering::Relaxed) { Oversize::PassUnmodified } else { set }
    }

    fn observe(&self, happening: &Happening<'_>) {
        self.happenings.lock().unwrap().push(format!("{happening:?}"));
    }
}

#[derive(Debug, Clone)]
pub enum At {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

#[derive(Debug)]
pub struct Server {
    pub at: At,
    pub filter: Arc<Filter>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
    _folder: TempDir,
}

/// The default settings, changed.
pub fn set(change: impl FnOnce(&mut Settings)) -> Settings {
    let mut settings = Settings::default();
    change(&mut settings);
    settings
}

impl Server {
    pub fn start(tcp: bool, settings: Settings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("milter.sock");
        let listener = if tcp {
            Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap()
        } else {
            Listener::unix(&UnixSocket::new(&path, 0o600)).unwrap()
        };
        let at = listener.tcp_address().map_or(At::Unix(path), At::Tcp);
        let filter = Arc::new(Filter::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let task = tokio::spawn(serve(listener, Arc::clone(&filter), settings, shutdown));
        Self { at, filter, stop: Some(stop), task, _folder: folder }
    }

    pub async fn connect(&self) -> Socket {
        match &self.at {
            At::Tcp(address) => Socket::Tcp(TcpStream::connect(address).await.unwrap()),
            At::Unix(path) => Socket::Unix(UnixStream::connect(path).await.unwrap()),
        }
    }

    pub async fn client(&self) -> Client<Socket> {
        Client::negotiate(self.connect().await, &Offer::POSTFIX).await.unwrap()
    }

    /// Tells the daemon to end.
    pub fn stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    /// Waits for its end.
    pub async fn ended(&mut self) {
        (&mut self.task).await.unwrap();
    }

    /// Waits until a happening was seen.
    pub async fn sees(&self, what: &str) {
        for _ in 0..500 {
            if self.filter.saw(what) > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what} never happened: {:?}", self.filter.happenings.lock().unwrap());
    }
}

#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

pub fn mail(subject: &str, body: &[u8]) -> Mail {
    let end: &[u8] = if body.is_empty() || body.ends_with(b"\r\n") { b"" } else { b"\r\n" };
    let text = [format!("Subject: {subject}\r\nTo: c@d\r\n\r\n").as_bytes(), body, end].concat();
    Mail::parse(Mailbox::new("<a@b>"), vec![Mailbox::new("<c@d>")], &text)
}

/// What [`Filter`] makes of a mail.
pub fn edited(mail: &Mail, queue_id: &str) -> Vec<u8> {
    let mut edited = mail.clone();
    edited.body.splice(0..0, b"edited: ".iter().copied());
    if !edited.body.ends_with(b"\r\n") {
        edited.body.extend_from_slice(b"\r\n");
    }
    let value = format!(" {queue_id}").into_bytes();
    edited.headers.push(mailtap_milter::client::Field { name: b"X-Edited".to_vec(), value });
    edited.to_bytes()
}

/// Runs a test on both kinds of socket.
pub fn on_both<F: Future<Output = ()>>(test: impl Fn(bool) -> F) {
    for tcp in [false, true] {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(60), test(tcp)).await.expect("in time");
        });
    }
}
