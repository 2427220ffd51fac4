//! The daemon on real sockets, with a client that behaves like Postfix.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "common/server.rs"]
mod server;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mailtap_milter::client::{Mail, Mailbox, Outcome};
use mailtap_milter::driver::{
    BindError, Client, Listener, Oversize, Peer, Settings, Settled, UnixSocket, serve,
};
use mailtap_milter::session::{SessionLimits, Wanted};
use mailtap_milter::wire::{Actions, Command, Frame, MacroLists, Offer, Protocol, Reply};
use server::{Filter, Server, Socket, edited, mail, on_both, set};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn send(client: &mut Client<Socket>, mail: &Mail, queue_id: &str) -> Vec<u8> {
    let delivery = client.send(mail, queue_id).await.unwrap();
    assert_eq!(delivery.outcome, Outcome::Accepted);
    delivery.mail.to_bytes()
}

#[test]
fn messages_are_edited_one_after_the_other() {
    on_both(|tcp| async move {
        let server = Server::start(tcp, Settings::default());
        let mut client = server.client().await;
        client.open(&Peer::default()).await.unwrap();
        for number in 0..5 {
            let mail = mail("hello", &vec![b'a' + number; 1_000 * usize::from(number)]);
            let queue_id = format!("Q{number}");
            assert!(send(&mut client, &mail, &queue_id).await == edited(&mail, &queue_id));
        }
        client.quit_new_connection().await.unwrap();
        let last = mail("hello", b"again\r\n");
        assert!(send(&mut client, &last, "Q").await == edited(&last, "Q"));
        client.quit().await.unwrap();
        server.sees("Closed { end: Quit, messages: 6, cut_off: None }").await;
        assert!(server.filter.settled().iter().all(|fate| matches!(fate, Settled::Sent { .. })));
        assert_eq!(server.filter.saw("AnswerInPieces"), 0);
    });
}

#[test]
fn every_term_of_the_protocol_gives_the_same_mail() {
    on_both(|tcp| async move {
        for protocol in [
            Protocol::NONE,
            Protocol::POSTFIX
                - Protocol::NO_MAIL
                - Protocol::NO_RCPT
                - Protocol::NO_BODY
                - Protocol::NO_HEADERS
                - Protocol::NO_END_OF_HEADERS,
        ] {
            let server = Server::start(tcp, set(|settings| settings.wanted.protocol = protocol));
            let mut client = server.client().await;
            client.open(&Peer::default()).await.unwrap();
            let mail = mail("hello", &vec![b'x'; 200_000]);
            assert!(send(&mut client, &mail, "Q").await == edited(&mail, "Q"), "{protocol}");
        }
    });
}

#[test]
fn a_message_accepted_at_its_headers_sends_no_body() {
    on_both(|tcp| async move {
        let server = Server::start(tcp, Settings::default());
        let mut client = server.client().await;
        let mail = mail("accept", b"body");
        assert!(send(&mut client, &mail, "Q1").await == mail.to_bytes());
        assert_eq!(server.filter.bodies.load(Ordering::Relaxed), 0);
        assert_eq!(server.filter.saw("AcceptedAtHeaders"), 1);
    });
}

/// A filter that never accepts at the end of headers has no MTA wait there, until it does again.
#[test]
fn a_reply_that_nobody_needs_is_not_waited_for() {
    on_both(|tcp| async move {
        let server = Server::start(tcp, Settings::default());
        let waits =
            |client: &Client<Socket>| !client.agreed().protocol.contains(Protocol::NO_REPLY_END_OF_HEADERS);
        let mut client = server.client().await;
        assert!(waits(&client));
        let (fine, accepted) = (mail("fine", b"body\r\n"), mail("accept", b"body\r\n"));
        for _ in 0..300 {
            assert!(send(&mut client, &fine, "Q1").await == edited(&fine, "Q1"));
        }
        let mut client = server.client().await;
        assert!(!waits(&client));
        assert!(send(&mut client, &fine, "Q2").await == edited(&fine, "Q2"));
        for _ in 0..20 {
            assert!(send(&mut client, &accepted, "Q3").await == accepted.to_bytes());
        }
        assert_eq!(server.filter.bodies.load(Ordering::Relaxed), 301);
        assert_eq!(server.filter.saw("AcceptedAtHeaders"), 20);
        assert!(waits(&server.client().await));
    });
}

/// After a long stop there may be more behind the end of a message: the MTA has given it up, and nothing is done with it.
#[test]
fn a_message_that_the_mta_gave_up_is_not_handled() {
    on_both(|tcp| async move {
        let server = Server::start(tcp, Settings::default());
        let mut client = server.client().await;
        let mail = mail("hello", b"body\r\n");
        client.envelope(&mail).await.unwrap();
        client.content(&mail).await.unwrap();
        let mut bytes = Vec::new();
        Command::EndOfMessage(&[]).encode(&mut bytes);
        Command::Abort.encode(&mut bytes);
        client.stream().write_all(&bytes).await.unwrap();
        server.sees("AnswerLost").await;
        assert_eq!(server.filter.bodies.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn a_panic_lets_the_message_through() {
    on_both(|tcp| async move {
        let server = Server::start(tcp, Settings::default());
        let mut client = server.client().await;
        for subject in ["panic", "panic at headers"] {
            let mail = mail(subject, b"body\r\n");
            assert!(send(&mut client, &mail, "Q1").await == mail.to_bytes());
        }
        let fine = mail("fine", b"body\r\n");
        assert!(send(&mut client, &fine, "Q2").await == edited(&fine, "Q2"));
        assert_eq!(server.filter.saw("why: Panicked"), 2);
    });
}

#[test]
fn a_late_handler_lets_the_message_through() {
    on_both(|tcp| async move {
        let server =
            Server::start(tcp, set(|settings| settings.timeouts.handler = Duration::from_millis(200)));
        let mut client = server.client().await;
        for subject in ["slow", "stuck"] {
            let mail = mail(subject, b"body\r\n");
            let start = Instant::now();
            assert!(send(&mut client, &mail, "Q1").await == mail.to_bytes());
            assert!(start.elapsed() < Duration::from_millis(600), "{subject}");
        }
        assert_eq!(server.filter.saw("why: TimedOut"), 2);
    });
}

#[test]
fn a_slow_handler_gives_signs_of_life() {
    on_both(|tcp| async move {
        let server =
            Server::start(tcp, set(|settings| settings.timeouts.progress = Duration::from_millis(50)));
        let mut client = server.client().await;
        let mail = mail("slow", b"body\r\n");
        assert!(send(&mut client, &mail, "Q1").await == edited(&mail, "Q1"));
    });
}

#[test]
fn what_does_not_fit_one_write_passes_or_streams() {
    on_both(|tcp| async move {
        for oversize in [Oversize::PassUnmodified, Oversize::Stream] {
            let settings = set(|settings| {
                settings.oversize = oversize;
                settings.send_buffer_bytes = 64 << 10;
            });
            let server = Server::start(tcp, settings);
            let mut client = server.client().await;
            let mail = mail("large", b"body\r\n");
            if oversize == Oversize::Stream {
                client.envelope(&mail).await.unwrap();
                client.content(&mail).await.unwrap();
                client.flush().await.unwrap();
                let mut end = Vec::new();
                Command::EndOfMessage(b"").encode(&mut end);
                client.stream().write_all(&end).await.unwrap();
                // Nobody reads until the first piece is known to be one.
                server.sees("AnswerInPieces").await;
                let mut answer = Vec::new();
                while !answer.ends_with(b"\0\0\0\x01a") {
                    client.stream().read_buf(&mut answer).await.unwrap();
                }
                assert!(answer.len() > 9_000_000);
            } else {
                let delivery = client.send(&mail, "Q1").await.unwrap();
                assert_eq!(delivery.mail, mail);
                assert_eq!(delivery.edits, 0);
                server.sees("Answered").await;
                assert!(matches!(server.filter.settled()[..], [Settled::Unmodified(_)]));
                assert_eq!(server.filter.saw("TooLarge"), 1);
            }
        }
    });
}

/// Within one connection, and even for a message that the handler has already.
#[test]
fn whether_answers_stream_may_change_with_each_message() {
    on_both(|tcp| async move {
        let settings = set(|settings| {
            settings.oversize = Oversize::Stream;
            settings.send_buffer_bytes = 64 << 10;
        });
        let server = Server::start(tcp, settings);
        let mut client = server.client().await;
        let (large, last) = (mail("large", b"body\r\n"), mail("large at last", b"body\r\n"));
        for (careful, mail, streams) in
            [(false, &large, true), (true, &large, false), (false, &large, true), (false, &last, false)]
        {
            server.filter.careful.store(careful, Ordering::Relaxed);
            let delivery = client.send(mail, "Q1").await.unwrap();
            assert_eq!(delivery.edits > 0, streams, "{careful} {streams}");
            assert_eq!(delivery.mail == *mail, !streams);
        }
        server.sees("Answered").await;
        assert_eq!(server.filter.saw("TooLarge"), 2);
    });
}

#[test]
fn a_message_of_30_mb() {
    on_both(|tcp| async move {
        let server = Server::start(tcp, set(|settings| settings.oversize = Oversize::Stream));
        let mut client = server.client().await;
        let body = b"0123456789012345678901234567890123456789\r\n".repeat(750_000);
        let mail = mail("hello", &body);
        assert!(send(&mut client, &mail, "Q1").await == edited(&mail, "Q1"));
        // The memory is back.
        let small = mail_again();
        assert!(send(&mut client, &small, "Q2").await == edited(&small, "Q2"));
    });
}

fn mail_again() -> Mail {
    mail("hello", b"again\r\n")
}

#[test]
fn five_hundred_connections_at_once() {
    on_both(|tcp| async move {
        let server = Server::start(tcp, Settings::default());
        let mut clients = Vec::new();
        for _ in 0..500 {
            clients.push(server.client().await);
        }
        let mut tasks = Vec::new();
        for (number, mut client) in clients.into_iter().enumerate() {
            tasks.push(tokio::spawn(async move {
                let mail = mail(&format!("number {number}"), &vec![b'x'; number * 100]);
                for round in 0..3 {
                    let queue_id = format!("Q{number}-{round}");
                    assert!(send(&mut client, &mail, &queue_id).await == edited(&mail, &queue_id));
                }
                client.quit().await.unwrap();
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(server.filter.saw("Answered"), 1_500);
    });
}

#[test]
fn one_connection_too_many_has_its_mail_passed_at_once() {
    on_both(|tcp| async move {
        let server = Server::start(tcp, set(|settings| settings.connections = 1));
        let mut first = server.client().await;
        let mut second = server.client().await;
        second.open(&Peer::default()).await.unwrap();
        let mail = mail("hello", b"body\r\n");
        assert!(send(&mut second, &mail, "Q2").await == mail.to_bytes());
        assert!(send(&mut first, &mail, "Q1").await == edited(&mail, "Q1"));
        assert!(send(&mut second, &mail, "Q2b").await == mail.to_bytes());
        assert_eq!(server.filter.saw("TooManyConnections"), 1);
        assert_eq!(server.filter.saw("why: Connections"), 2, "one for each message");
        first.quit().await.unwrap();
        server.sees("Closed { end: Quit, messages: 1, cut_off: None }").await;
        second.quit().await.unwrap();
        server.sees("Closed { end: Quit, messages: 0, cut_off: None }").await;
        let mut third = server.client().await;
        assert!(send(&mut third, &mail, "Q3").await == edited(&mail, "Q3"));
    });
}

#[test]
fn beyond_the_memory_a_message_passes() {
    on_both(|tcp| async move {
        let server = Server::start(tcp, set(|settings| settings.memory_bytes = 1 << 20));
        let mut client = server.client().await;
        let large = mail("hello", &vec![b'x'; 3 << 20]);
        assert!(send(&mut client, &large, "Q1").await == large.to_bytes());
        assert_eq!(server.filter.saw("why: Memory"), 1);
        // It fits as it comes, but not what is made of it.
        let middle = mail("hello", &vec![b'x'; 300 << 10]);
        assert!(send(&mut client, &middle, "Q2").await == middle.to_bytes());
        assert_eq!(server.filter.saw("why: Memory"), 2);
        assert_eq!(server.filter.bodies.load(Ordering::Relaxed), 0);
        let small = mail("hello", &vec![b'x'; 100 << 10]);
        assert!(send(&mut client, &small, "Q3").await == edited(&small, "Q3"));
        let large = mail("large", b"body\r\n");
        assert!(send(&mut client, &large, "Q4").await == large.to_bytes(), "the answer needs too much");
        assert_eq!(server.filter.saw("NoMemory"), 1);
        assert!(send(&mut client, &small, "Q5").await == edited(&small, "Q5"), "all is given back");
    });
}

/// Recipients and macros are memory too.
#[test]
fn beyond_the_memory_a_message_with_many_recipients_passes() {
    on_both(|tcp| async move {
        let server = Server::start(tcp, set(|settings| settings.memory_bytes = 1 << 20));
        let mut client = server.client().await;
        let mut crowded = mail("hello", b"body\r\n");
        crowded.recipients = vec![Mailbox::new([b"<".as_slice(), &[b'x'; 2_000], b">"].concat()); 1_000];
        assert!(send(&mut client, &crowded, "Q1").await == crowded.to_bytes());
        assert_eq!(server.filter.saw("recipients: 1000, took: None }, why: Memory"), 1);
        let small = mail("hello", b"body\r\n");
        assert!(send(&mut client, &small, "Q2").await == edited(&small, "Q2"));
    });
}

#[test]
fn a_body_that_is_not_wanted_is_not_sent() {
    on_both(|tcp| async move {
        let protocol = Wanted::SKIPS_BODIES;
        let settings = set(|settings| settings.wanted.protocol = protocol);
        let server = Server::start(tcp, settings);
        let mut client = server.client().await;
        let (none, all) = (mail("no body", &[b'x'; 300_000]), mail("hello", &[b'x'; 300_000]));
        assert!(send(&mut client, &none, "Q1").await == none.to_bytes());
        assert!(send(&mut client, &all, "Q2").await == edited(&all, "Q2"));
        assert_eq!(server.filter.bodies.load(Ordering::Relaxed), 2);
    });
}

/// Pieces of 256 KB and 1 MB, where the MTA offers them: there and back.
#[test]
fn large_pieces() {
    on_both(|tcp| async move {
        for size in [Protocol::DATA_256K, Protocol::DATA_1M] {
            let oversize = Oversize::Stream;
            let server = Server::start(
                tcp,
                set(|settings| {
                    settings.wanted.protocol = Wanted::FEW_ROUND_TRIPS | size;
                    settings.oversize = oversize;
                }),
            );
            let offer = Offer { protocol: Protocol::POSTFIX | size, ..Offer::POSTFIX };
            let mut client = Client::negotiate(server.connect().await, &offer).await.unwrap();
            assert!(client.agreed().protocol.contains(size));
            let mail = mail("hello", &vec![b'x'; 5 << 20]);
            assert!(send(&mut client, &mail, "Q1").await == edited(&mail, "Q1"), "{size}");
        }
    });
}

/// What a handler has already done outside of a message must not be undone by its end.
#[test]
fn a_fallback_is_answered_in_place_of_a_handler_that_fails() {
    on_both(|tcp| async move {
        let server =
            Server::start(tcp, set(|settings| settings.timeouts.handler = Duration::from_millis(200)));
        let mut client = server.client().await;
        for subject in ["fallback panic", "fallback slow", "fallback stuck"] {
            let original = mail(subject, b"body\r\n");
            let delivered = client.send(&original, "Q1").await.unwrap().mail;
            assert_eq!(delivered.headers.last().unwrap().name, b"X-Fallback", "{subject}");
            assert_eq!(delivered.body, original.body);
        }
        assert_eq!(server.filter.saw("fallback: true"), 3);
        let fine = mail("fallback", b"body\r\n");
        assert!(send(&mut client, &fine, "Q2").await == edited(&fine, "Q2"));
    });
}

#[test]
fn an_answer_is_taken_when_the_mta_goes_on() {
    on_both(|tcp| async move {
        let server = Server::start(tcp, Settings::default());
        let taken = || server.filter.taken.load(Ordering::Relaxed);
        let mail = mail("hello", b"body\r\n");
        let mut gone = server.client().await;
        gone.envelope(&mail).await.unwrap();
        gone.content(&mail).await.unwrap();
        gone.end(&mail).await.unwrap();
        drop(gone);
        server.sees("Closed").await;
        assert_eq!((server.filter.settled().len(), taken()), (1, 0), "it may have been read, or not");
        let mut client = server.client().await;
        send(&mut client, &mail, "Q2").await;
        client.quit().await.unwrap();
        server.sees("end: Quit").await;
        assert_eq!(taken(), 1);
    });
}

#[test]
fn beyond_the_size_limit_a_message_passes() {
    on_both(|tcp| async move {
        let mut session = SessionLimits::default();
        session.message.message_bytes = 100_000;
        let server = Server::start(tcp, set(|settings| settings.session = session));
        let mut client = server.client().await;
        let large = mail("hello", &vec![b'x'; 300_000]);
        assert!(send(&mut client, &large, "Q1").await == large.to_bytes());
        assert_eq!(server.filter.saw("why: MessageBytes"), 1);
        assert_eq!(server.filter.saw("LetThrough { which: Which { queue_id: \"Q1\""), 1);
        let small = mail("hello", &vec![b'x'; 90_000]);
        assert!(send(&mut client, &small, "Q2").await == edited(&small, "Q2"));
    });
}

#[test]
fn an_mta_that_lacks_an_action_has_its_mail_passed() {
    on_both(|tcp| async move {
        let server = Server::start(tcp, Settings::default());
        let offer = Offer { actions: Actions::ADD_HEADERS, ..Offer::POSTFIX };
        let mut client = Client::negotiate(server.connect().await, &offer).await.unwrap();
        client.open(&Peer::default()).await.unwrap();
        let mail = mail("hello", b"body\r\n");
        assert!(send(&mut client, &mail, "Q1").await == mail.to_bytes());
        assert_eq!(server.filter.saw("CannotNegotiate(Actions"), 1);
    });
}

#[test]
fn an_idle_connection_ends_after_its_time() {
    on_both(|tcp| async move {
        let server = Server::start(
            tcp,
            set(|settings| {
                settings.timeouts.negotiation = Duration::from_millis(50);
                settings.timeouts.idle = Duration::from_millis(200);
            }),
        );
        let silent = server.connect().await;
        server.sees("TimedOut(Negotiation)").await;
        drop(silent);
        let _client = server.client().await;
        server.sees("TimedOut(Idle)").await;
    });
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("milter.sock");
    let at = UnixSocket::new(path.clone(), 0o660);
    // Dropped without removal: what a killed daemon leaves.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listener = Listener::unix(&at).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    assert!(matches!(Listener::unix(&at), Err(BindError::InUse { .. })));
    // A second instance took the path over: it is not ours to remove.
    fs::remove_file(&path).unwrap();
    let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    drop(listener);
    assert!(path.exists());
    drop(other);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    assert!(matches!(Listener::unix(&at), Err(BindError::NoSocket { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    let nowhere = UnixSocket::new(folder.path().join("no/such/folder"), 0o660);
    assert!(matches!(Listener::unix(&nowhere), Err(BindError::Path { .. })));
}

/// Many daemons that start at once over a stale socket: one listens, and nobody removes its file.
#[tokio::test]
async fn of_daemons_that_start_together_one_listens() {
    for _ in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("milter.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let runtime = tokio::runtime::Handle::current();
        let listeners: Vec<_> = std::thread::scope(|scope| {
            let start = || {
                let _runtime = runtime.enter();
                Listener::unix(&UnixSocket::new(path.clone(), 0o600))
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(listeners.iter().filter(|listener| listener.is_ok()).count(), 1, "{listeners:?}");
        std::os::unix::net::UnixStream::connect(&path).unwrap();
    }
}

#[tokio::test]
async fn a_daemon_whose_queue_is_full_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("milter.sock");
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    socket.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    socket.listen(0).unwrap();
    let _waits = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let at = UnixSocket::new(path, 0o600);
    assert!(matches!(Listener::unix(&at), Err(BindError::InUse { .. })));
}

/// A filter that says `reply` to recipients whose address begins with `no`, and goes on with all else.
async fn refuse(mut stream: tokio::io::DuplexStream, reply: Reply<'static>) {
    let mut bytes = Vec::new();
    while stream.read_buf(&mut bytes).await.unwrap() > 0 {
        let mut out = Vec::new();
        while let Some((frame, size)) = Frame::decode(&bytes, 1 << 20).unwrap() {
            match Command::decode(frame).unwrap() {
                Command::Negotiate(offer) => {
                    let offer = Offer { protocol: Protocol::NONE, ..offer };
                    Reply::Negotiate { offer, macros: MacroLists::new(&[]) }.encode(&mut out);
                }
                Command::Macros { .. } | Command::Abort | Command::Quit => (),
                Command::Rcpt(path) if path.address.starts_with(b"<no") => reply.encode(&mut out),
                _ => Reply::Continue.encode(&mut out),
            }
            bytes.drain(..size);
        }
        stream.write_all(&out).await.unwrap();
    }
}

/// As in Postfix: a refused recipient is no recipient, one accepted or discarded decides on the message.
#[tokio::test]
async fn a_client_drops_the_recipients_that_are_refused() {
    let mut original = mail("hello", b"body\r\n");
    original.recipients = ["<no@d>", "<yes@d>", "<nobody@d>"].map(Mailbox::new).to_vec();
    for (reply, outcome, left) in [
        (Reply::ReplyCode(b"550 5.1.1 unknown"), Outcome::Accepted, 1),
        (Reply::TempFail, Outcome::Accepted, 1),
        (Reply::Discard, Outcome::Discarded, 3),
        (Reply::Accept, Outcome::Accepted, 3),
    ] {
        let (here, there) = tokio::io::duplex(1 << 16);
        let filter = tokio::spawn(refuse(there, reply));
        let mut client = Client::negotiate(here, &Offer::POSTFIX).await.unwrap();
        for _ in 0..2 {
            let delivery = client.send(&original, "Q1").await.unwrap();
            assert_eq!((&delivery.outcome, delivery.mail.recipients.len()), (&outcome, left), "{reply:?}");
        }
        client.quit().await.unwrap();
        filter.await.unwrap();
    }
}

/// A socket that a supervisor holds: two daemons in turn, and a connection in between is served by the second.
#[tokio::test]
async fn a_second_daemon_takes_the_socket_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("milter.sock");
    let held = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mail = mail("hello", b"body\r\n");
    for _ in 0..2 {
        let waiting = tokio::net::UnixStream::connect(&path).await.unwrap();
        let listener = Listener::from_unix(held.try_clone().unwrap()).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let daemon =
            tokio::spawn(serve(listener, Arc::new(Filter::default()), Settings::default(), shutdown));
        let mut client = Client::negotiate(Socket::Unix(waiting), &Offer::POSTFIX).await.unwrap();
        assert!(send(&mut client, &mail, "Q1").await == edited(&mail, "Q1"));
        client.quit().await.unwrap();
        let _ = stop.send(());
        daemon.await.unwrap();
        assert!(path.exists(), "an inherited socket stays");
    }
}
