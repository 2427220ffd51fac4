//! Restarts behind a socket that a supervisor holds: nobody is refused, nothing is lost.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use harness::letters::{Fate, Kind, fate, letter, number};
use harness::{Options, SENDER, Site, smtp};
use mailtap_milter::client::{Mail, Mailbox};
use mailtap_milter::driver::{Client, Peer};
use mailtap_milter::wire::Offer;
use tokio::io::{AsyncRead, AsyncWrite};

const RESTARTS: usize = 5;

/// Stops and starts the milter under a load, and tells the load when it is over.
fn restarts(site: &mut Site, over: &AtomicBool, socket: impl Fn() -> OwnedFd) {
    let pause = || thread::sleep(Duration::from_millis(400));
    for _ in 0..RESTARTS {
        pause();
        assert_eq!(site.mailtap.as_mut().unwrap().stop(), Some(0));
        pause();
        site.start_milter_on(socket());
    }
    pause();
    over.store(true, Ordering::Relaxed);
}

/// Starts each instance before the one before it ends, with the same configuration: the one drains while the other already
/// serves, and shows its health and metrics as soon as the address is free.
fn overlapping(site: &mut Site, over: &AtomicBool, socket: impl Fn() -> OwnedFd) {
    for round in 1..=RESTARTS {
        thread::sleep(Duration::from_millis(400));
        let mut before = site.mailtap.take().unwrap();
        let name = format!("instance-{round}");
        let mailtap = site.command();
        let mut command = Command::new("bash");
        command
            .args(["-c", "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"", "bash"])
            .arg(mailtap.get_program())
            .args(mailtap.get_args())
            .arg("milter")
            .stdin(Stdio::from(socket()));
        site.mailtap = Some(site.daemon(&name, &mut command));
        let log = || site.log(&name);
        harness::wait_for("the next instance", Duration::from_secs(30), || log().contains("milter listens"));
        assert!(before.is_running() && site.is_ready(), "both serve");
        assert_eq!(before.stop(), Some(0));
        harness::wait_for("its health", Duration::from_secs(30), || site.is_ready());
        assert_eq!(log().matches("no metrics until the address is free").count(), 1);
    }
    thread::sleep(Duration::from_millis(400));
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
    restarts: impl Fn(&mut Site, &AtomicBool, &dyn Fn() -> OwnedFd),
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let options = Options { milter_only: true, without_postfix: true, ..Options::default() };
    let mut site = Site::start(&options);
    site.mailtap.as_mut().unwrap().stop();
    site.start_milter_on(socket());
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
        |site, over, socket| restarts(site, over, socket),
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
        |site, over, socket| restarts(site, over, socket),
    );
}

#[test]
fn a_second_instance_serves_while_the_first_drains() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("milter.sock");
    let held = UnixListener::bind(&path).unwrap();
    serve_through_restarts(
        async || tokio::net::UnixStream::connect(&path).await,
        || held.try_clone().unwrap().into(),
        |site, over, socket| overlapping(site, over, socket),
    );
}

/// systemd's own tool for trying units out: it listens, and starts the milter for the first connection, which is served.
#[test]
fn systemd_hands_over_its_socket() {
    if Command::new("systemd-socket-activate").arg("--version").output().is_err() {
        assert!(!harness::long(), "systemd-socket-activate is missing");
        eprintln!("not checked: there is no systemd-socket-activate");
        return;
    }
    let options = Options { milter_only: true, without_postfix: true, ..Options::default() };
    let mut site = Site::start(&options);
    site.mailtap.as_mut().unwrap().stop();
    let path = site.dir.join("held.sock");
    let mailtap = site.command();
    let mut command = Command::new("systemd-socket-activate");
    command.arg("--listen").arg(&path).arg(mailtap.get_program()).args(mailtap.get_args()).arg("milter");
    let mut held = site.daemon("held", &mut command);
    harness::wait_for("the socket", Duration::from_secs(10), || path.exists());
    assert!(!site.is_ready(), "nobody has connected");
    let (over, url, sent) = (AtomicBool::new(false), site.tracking_url(), AtomicUsize::new(0));
    let connect = async || {
        over.store(sent.fetch_add(1, Ordering::Relaxed) == 2, Ordering::Relaxed);
        tokio::net::UnixStream::connect(&path).await
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(runtime.block_on(clients(connect, &over, &url)), 3);
    assert!(site.is_ready());
    assert_eq!(held.stop(), Some(0));
    assert!(path.exists(), "the socket is not the milter's to remove");
}

/// Starts a role with descriptors from 3 on, all of them this one; gives what it said when it had ended by itself.
fn refusal(site: &Site, role: &str, descriptors: &str, count: usize, first: OwnedFd) -> String {
    let mut command = Command::new("bash");
    command
        .args([
            "-c",
            &format!("exec {descriptors} </dev/null; LISTEN_PID=$$ LISTEN_FDS={count} exec \"$@\""),
            "bash",
        ])
        .arg(site.command().get_program())
        .args(site.command().get_args())
        .arg(role)
        .stdin(Stdio::from(first));
    let mut refused = site.daemon(&format!("refused-{role}"), &mut command);
    harness::wait_for("its end", Duration::from_secs(20), || !refused.is_running());
    let said = site.log(&format!("refused-{role}"));
    assert_eq!(refused.exit_code(), Some(69), "{said}");
    said
}

/// What is handed over and can't be listened on is an error, not a reason to listen elsewhere; nor is one of two served alone.
#[test]
fn wrong_descriptors_are_refused() {
    let options = Options { milter_only: true, without_postfix: true, ..Options::default() };
    let mut site = Site::start(&options);
    site.mailtap.as_mut().unwrap().stop();
    let file = std::fs::File::open(site.config()).unwrap();
    let said = refusal(&site, "milter", "3<&0", 1, file.into());
    assert!(said.contains("LISTEN_FDS"), "{said}");
    let held = [
        ("milter", OwnedFd::from(UnixListener::bind(site.dir.join("held.sock")).unwrap())),
        ("tracker", TcpListener::bind("127.0.0.1:0").unwrap().into()),
    ];
    for (role, held) in held {
        let said = refusal(&site, role, "3<&0 4<&0", 2, held);
        assert!(said.contains("LISTEN_FDS: 2 ") && said.contains("one ListenStream="), "{said}");
    }
}

/// Else systemd would kill it after TimeoutStopSec= of the unit.
#[test]
fn systemd_hears_how_long_a_stop_may_take() {
    let changes = vec![("#drain = \"20s\"", "drain = \"90s\"".into())];
    let mut site =
        Site::start(&Options { milter_only: true, without_postfix: true, changes, ..Options::default() });
    site.mailtap.as_mut().unwrap().stop();
    let path = site.dir.join("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    systemd.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    site.start_mailtap_by(site.command().arg("milter").env("NOTIFY_SOCKET", &path));
    assert_eq!(site.mailtap.as_mut().unwrap().stop(), Some(0));
    let mut buffer = [0; 4096];
    let told = loop {
        let length = systemd.recv(&mut buffer).unwrap();
        let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if message.contains("STOPPING=1") {
            break message;
        }
    };
    let stop = told.lines().find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC=")).unwrap();
    assert!(stop.parse::<u64>().unwrap() > 95_000_000, "{told}");
}

/// Under systemd the umask is 0077: Postfix must get to a socket in a directory that the milter made all the same.
#[test]
fn a_directory_made_at_the_start_lets_others_in() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("made/here");
    let mut site = Site::start(&Options { milter_only: true, without_postfix: true, ..Options::default() });
    site.mailtap.as_mut().unwrap().stop();
    let text = std::fs::read_to_string(site.config()).unwrap();
    let old = format!("unix:{}", site.milter_socket().display());
    let new = format!("unix:{}/milter.sock", directory.display());
    assert!(text.contains(&old), "{text}");
    std::fs::write(site.config(), text.replace(&old, &new)).unwrap();
    let mut command = Command::new("bash");
    command
        .args(["-c", "umask 0077; exec \"$@\"", "bash"])
        .arg(site.command().get_program())
        .args(site.command().get_args())
        .arg("milter");
    site.start_mailtap_by(&mut command);
    for made in [&directory, directory.parent().unwrap()] {
        let mode = std::fs::metadata(made).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755, "{}", made.display());
    }
    let socket = std::fs::metadata(directory.join("milter.sock")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o660);
}

/// With `tempfail` a connection refused or cut would be seen by the client of Postfix, with `accept` as an old body.
#[test]
fn no_message_through_postfix_notices_a_restart() {
    let mut site = Site::start(&Options { milter_only: true, ..Options::default() });
    assert_eq!(site.mailtap.as_mut().unwrap().stop(), Some(0));
    let held = UnixListener::bind(site.milter_socket()).unwrap();
    std::fs::set_permissions(site.milter_socket(), std::fs::Permissions::from_mode(0o666)).unwrap();
    let socket = || OwnedFd::from(held.try_clone().unwrap());
    site.start_milter_on(socket());
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
