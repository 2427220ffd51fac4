//! Restarts behind a socket that a supervisor holds: nobody is refused, nothing is lost.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use harness::letters::{Fate, Kind, fate, letter, number};
use harness::{Options, SENDER, Site, smtp};
use mailtap_milter::client::{Mail, Mailbox};
use mailtap_milter::driver::{Client, Peer};
use mailtap_milter::wire::Offer;
use tokio::io::{AsyncRead, AsyncWrite};

const RESTARTS: usize = 5;

/// Starts the milter with a listening socket as descriptor 3, as systemd does.
fn start_with(site: &mut Site, socket: OwnedFd) {
    let mailtap = site.command();
    let mut command = Command::new("bash");
    command
        .args(["-c", "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"", "bash"])
        .arg(mailtap.get_program())
        .args(mailtap.get_args())
        .arg("milter")
        .stdin(Stdio::from(socket));
    site.start_mailtap_by(&mut command);
}

/// Stops and starts the milter under a load, and tells the load when it is over.
fn restarts(site: &mut Site, over: &AtomicBool, socket: impl Fn() -> OwnedFd) {
    let pause = || thread::sleep(Duration::from_millis(400));
    for _ in 0..RESTARTS {
        pause();
        assert_eq!(site.mailtap.as_mut().unwrap().stop(), Some(0));
        pause();
        start_with(site, socket());
    }
    pause();
    over.store(true, Ordering::Relaxed);
}

/// Sends letters to the milter, a connection each, until it is over; gives how many were answered. Nobody is refused
/// and everybody is served, however long it takes.
async fn clients<S>(connect: impl AsyncFn() -> std::io::Result<S>, over: &AtomicBool, url: &str) -> usize
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut count = 0;
    while !over.load(Ordering::Relaxed) {
        let stream = connect().await.unwrap_or_else(|error| panic!("connection {count}: {error}"));
        let mut client = Client::negotiate(stream, &Offer::POSTFIX).await.unwrap();
        client.open(&Peer::default()).await.unwrap();
        let original = letter(count, Kind::Html(5_000));
        let recipients = vec![Mailbox::new("<anna@example.net>")];
        let mail = Mail::parse(Mailbox::new(format!("<{SENDER}>")), recipients, original.as_bytes());
        let delivery = client.send(&mail, &format!("Q{count}")).await.unwrap();
        let delivered = String::from_utf8(delivery.mail.to_bytes()).unwrap();
        assert_eq!(fate(&original, &delivered, url), Ok(Fate::Rewritten));
        client.quit().await.unwrap();
        count += 1;
    }
    count
}

/// Four clients on threads of their own, while the milter is restarted; each has letters answered.
fn serve_through_restarts<S>(
    connect: impl AsyncFn() -> std::io::Result<S> + Sync,
    socket: impl Fn() -> OwnedFd,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let options = Options { milter_only: true, without_postfix: true, ..Options::default() };
    let mut site = Site::start(&options);
    site.mailtap.as_mut().unwrap().stop();
    start_with(&mut site, socket());
    let (over, url) = (AtomicBool::new(false), site.tracking_url());
    thread::scope(|scope| {
        let client = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(clients(&connect, &over, &url))
        };
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(client)).collect();
        restarts(&mut site, &over, &socket);
        let counts: Vec<usize> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        assert!(counts.iter().all(|count| *count > RESTARTS), "{counts:?}");
    });
}

#[test]
fn nobody_is_refused_on_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("milter.sock");
    let held = UnixListener::bind(&path).unwrap();
    serve_through_restarts(
        async || tokio::net::UnixStream::connect(&path).await,
        || held.try_clone().unwrap().into(),
    );
    assert!(path.exists(), "a socket that is held by another is not the milter's to remove");
}

#[test]
fn nobody_is_refused_on_tcp() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap();
    serve_through_restarts(
        async || tokio::net::TcpStream::connect(address).await,
        || held.try_clone().unwrap().into(),
    );
}

/// With `tempfail` a connection refused or cut would be seen by the client of Postfix, with `accept` as an old body.
#[test]
fn no_message_through_postfix_notices_a_restart() {
    let mut site = Site::start(&Options { milter_only: true, ..Options::default() });
    assert_eq!(site.mailtap.as_mut().unwrap().stop(), Some(0));
    let held = UnixListener::bind(site.milter_socket()).unwrap();
    std::fs::set_permissions(site.milter_socket(), std::fs::Permissions::from_mode(0o666)).unwrap();
    let socket = || OwnedFd::from(held.try_clone().unwrap());
    start_with(&mut site, socket());
    let (over, port) = (AtomicBool::new(false), site.smtp);
    let mut sent = 0;
    let client = |client: usize| {
        let mut count = 0;
        while !over.load(Ordering::Relaxed) {
            let letter = letter(count * 4 + client, Kind::Html(5_000));
            let answer = smtp(port, SENDER, &["anna@example.net"], &letter);
            assert!(answer.starts_with("250 "), "{answer}");
            count += 1;
        }
        count
    };
    thread::scope(|scope| {
        let client = &client;
        let clients: Vec<_> = (0..4).map(|number| scope.spawn(move || client(number))).collect();
        restarts(&mut site, &over, socket);
        sent = clients.into_iter().map(|client| client.join().unwrap()).sum();
    });
    assert!(sent > 4 * RESTARTS, "{sent}");
    site.wait_for_empty_queues(Duration::from_secs(60));
    let mut numbers = Vec::new();
    for delivered in site.mailbox() {
        let number = number(&delivered).unwrap();
        let original = letter(number, Kind::Html(5_000));
        assert_eq!(fate(&original, &delivered, &site.tracking_url()), Ok(Fate::Rewritten));
        numbers.push(number);
    }
    assert_eq!(numbers.len(), sent);
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), sent, "each once");
}
