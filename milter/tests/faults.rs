//! An MTA that goes away, or speaks nonsense, at every step: the daemon goes on, and the next message is whole.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/server.rs"]
mod server;

use std::time::Duration;

use common::{Dice, encode};
use mailtap_milter::driver::Settings;
use mailtap_milter::wire::{Command, EnvelopePath, MacroPairs, Offer, Texts};
use server::{Server, Socket, edited, mail, on_both, set};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn session() -> Vec<Command<'static>> {
    let path = EnvelopePath { address: b"<a@b>", args: Texts::new(b"SIZE=9\0") };
    vec![
        Command::Negotiate(Offer::POSTFIX),
        Command::Macros { stage: b'M', pairs: MacroPairs::new(b"i\0Q\0") },
        Command::Mail(path),
        Command::Rcpt(path),
        Command::Data,
        Command::Header { name: b"Subject", value: b" x" },
        Command::EndOfHeaders,
        Command::Body(b"body\r\n"),
        Command::EndOfMessage(b""),
        Command::Abort,
        Command::QuitNewConnection,
        Command::Mail(path),
        Command::EndOfMessage(b"second"),
        Command::Quit,
    ]
}

async fn still_serves(server: &Server) {
    let mail = mail("hello", b"body\r\n");
    let mut client = server.client().await;
    let delivery = client.send(&mail, "Q").await.unwrap();
    assert_eq!(delivery.mail.to_bytes(), edited(&mail, "Q"));
    client.quit().await.unwrap();
}

#[test]
fn an_mta_that_goes_away_after_each_command_and_within_it() {
    on_both(|tcp| async move {
        let server = Server::start(tcp, Settings::default());
        let commands = session();
        for count in 0..=commands.len() {
            let bytes = encode(&commands[..count]);
            for cut in [0, 1, 4, 5] {
                let mut socket = server.connect().await;
                socket.write_all(&bytes[..bytes.len().saturating_sub(cut)]).await.unwrap();
                drop(socket);
            }
        }
        still_serves(&server).await;
    });
}

/// An MTA that sends a whole message and is gone.
async fn goes_before_the_answer(server: &Server) {
    let mut client = server.client().await;
    let mail = mail("slow", b"body\r\n");
    client.envelope(&mail).await.unwrap();
    client.content(&mail).await.unwrap();
    client.flush().await.unwrap();
    client.stream().write_all(&encode(&[Command::EndOfMessage(b"")])).await.unwrap();
}

#[test]
fn an_mta_that_does_not_wait_for_the_answer() {
    on_both(|tcp| async move {
        let server = Server::start(tcp, Settings::default());
        goes_before_the_answer(&server).await;
        server.sees("AnswerLost").await;
        still_serves(&server).await;
    });
}

/// The signs of life of a slow handler show that nobody listens any more.
#[test]
fn an_mta_that_goes_while_the_handler_works() {
    on_both(|tcp| async move {
        let server =
            Server::start(tcp, set(|settings| settings.timeouts.progress = Duration::from_millis(20)));
        goes_before_the_answer(&server).await;
        server.sees("answered: false").await;
        server.sees("Closed").await;
        assert!(server.filter.settled().is_empty(), "the handler was given up");
        still_serves(&server).await;
    });
}

#[test]
fn a_message_whose_mta_has_gone_is_not_worked_on() {
    for tcp in [false, true] {
        // One thread: between two waits of the MTA the daemon does nothing.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Server::start(tcp, Settings::default());
            let mut client = server.client().await;
            let mail = mail("gone", b"body\r\n");
            client.envelope(&mail).await.unwrap();
            client.content(&mail).await.unwrap();
            client.flush().await.unwrap();
            let bytes = encode(&[Command::EndOfMessage(b"")]);
            let sent = match client.stream() {
                Socket::Tcp(stream) => stream.try_write(&bytes),
                Socket::Unix(stream) => stream.try_write(&bytes),
            };
            assert_eq!(sent.unwrap(), bytes.len());
            drop(client);
            server.sees("AnswerLost").await;
            assert_eq!(server.filter.bodies.load(std::sync::atomic::Ordering::Relaxed), 0);
            still_serves(&server).await;
        });
    }
}

#[test]
fn nonsense_ends_its_connection_only() {
    on_both(|tcp| async move {
        let server = Server::start(tcp, Settings::default());
        let mut dice = Dice(42);
        let offer = encode(&[Command::Negotiate(Offer::POSTFIX)]);
        for round in 0..200 {
            let mut socket = server.connect().await;
            let mut nonsense: Vec<u8> = (0..dice.below(300)).map(|_| dice.below(256) as u8).collect();
            if round % 2 == 0 {
                nonsense.splice(0..0, offer.iter().copied());
            }
            let _ = socket.write_all(&nonsense).await;
            let _ = socket.shutdown().await;
            let _ = socket.read_to_end(&mut Vec::new()).await;
        }
        still_serves(&server).await;
        assert!(server.filter.saw("Protocol(") > 50);
    });
}

/// Thousands of messages, a third of whose connections end at a random byte.
#[test]
fn random_disconnects() {
    on_both(|tcp| async move {
        let server = std::sync::Arc::new(Server::start(tcp, Settings::default()));
        let bytes = encode(&session());
        let mut tasks = Vec::new();
        for worker in 0..10_u64 {
            let (server, bytes) = (std::sync::Arc::clone(&server), bytes.clone());
            tasks.push(tokio::spawn(async move {
                let mut dice = Dice(worker + 1);
                for _ in 0..100 {
                    if dice.below(3) == 0 {
                        let mut socket = server.connect().await;
                        socket.write_all(&bytes[..dice.below(bytes.len())]).await.unwrap();
                    } else {
                        still_serves(&server).await;
                    }
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
}
