//! What happens at the driver's limits of time, places and memory, and that it is told.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "common/server.rs"]
mod server;

use std::time::Duration;

use mailtap_milter::driver::{Client, Oversize, Peer, Settings};
use mailtap_milter::session::Wanted;
use mailtap_milter::wire::{Command, MacroPairs, Offer, Protocol};
use server::{Server, edited, mail, on_both, set};
use tokio::io::AsyncWriteExt;

const SOON: Duration = Duration::from_millis(100);

/// One who falls silent is cut off after the time of its stage, with the message that was under way.
#[test]
fn each_stage_has_its_own_time() {
    on_both(|tcp| async move {
        let mail = mail("hello", b"body\r\n");
        let server = Server::start(tcp, set(|settings| settings.timeouts.content = SOON));
        let mut client = server.client().await;
        client.envelope(&mail).await.unwrap();
        client.command(&Command::Data).await.unwrap();
        let macros = MacroPairs::join(&[("i", "4jY8")]);
        let mut bytes = Vec::new();
        Command::Macros { stage: b'T', pairs: MacroPairs::new(&macros) }.encode(&mut bytes);
        client.flush().await.unwrap();
        client.stream().write_all(&bytes).await.unwrap();
        client.command(&Command::Header { name: b"Subject", value: b" x" }).await.unwrap();
        client.flush().await.unwrap();
        server.sees("TimedOut(Content), messages: 0, cut_off: Some(Which { queue_id: \"4jY8\", rec").await;

        let server = Server::start(tcp, set(|settings| settings.timeouts.idle = SOON));
        let mut client = server.client().await;
        client.envelope(&mail).await.unwrap();
        client.flush().await.unwrap();
        server.sees("TimedOut(Envelope), messages: 0, cut_off: Some(Which { queue_id: \"\", rec").await;

        let mut client = server.client().await;
        client.send(&mail, "Q1").await.unwrap();
        server.sees("TimedOut(Idle), messages: 1, cut_off: None").await;
    });
}

/// Of a message that was let through at its headers all is said, even if its rest never comes.
#[test]
fn a_message_is_told_of_once() {
    on_both(|tcp| async move {
        let settings = set(|settings| {
            settings.timeouts.content = SOON;
            settings.wanted.protocol = Wanted::FEW_ROUND_TRIPS | Protocol::NO_REPLY_END_OF_HEADERS;
        });
        let server = Server::start(tcp, settings);
        let mut client = server.client().await;
        let mail = mail("accept", b"body\r\n");
        client.envelope(&mail).await.unwrap();
        client.content(&mail).await.unwrap();
        client.flush().await.unwrap();
        server.sees("TimedOut(Content), messages: 1, cut_off: None").await;
        assert_eq!(server.filter.saw("AcceptedAtHeaders"), 1);
    });
}

/// An MTA that reads nothing of its answer.
#[test]
fn a_write_that_is_not_taken_ends_in_time() {
    on_both(|tcp| async move {
        let (oversize, send_buffer_bytes) = (Oversize::Stream, 64 << 10);
        let server = Server::start(
            tcp,
            set(|settings| {
                settings.timeouts.write = SOON;
                settings.oversize = oversize;
                settings.send_buffer_bytes = send_buffer_bytes;
            }),
        );
        let mut client = server.client().await;
        let mail = mail("large", b"body\r\n");
        client.envelope(&mail).await.unwrap();
        client.content(&mail).await.unwrap();
        let mut bytes = Vec::new();
        Command::EndOfMessage(b"").encode(&mut bytes);
        client.flush().await.unwrap();
        client.stream().write_all(&bytes).await.unwrap();
        server.sees("WriteTimedOut(Answer), messages: 1, cut_off: None").await;
        assert_eq!(server.filter.saw("AnswerLost"), 1);
    });
}

/// Five times the connections are answered; the next one waits, which is told, until one of them ends.
#[test]
fn a_connection_that_waits_is_told_of_and_served_in_turn() {
    on_both(|tcp| async move {
        let server = Server::start(tcp, set(|settings| settings.connections = 1));
        let mut clients = Vec::new();
        for _ in 0..5 {
            clients.push(server.client().await);
        }
        assert_eq!(server.filter.saw("ConnectionWaits"), 0);
        let waiting = server.connect().await;
        server.sees("ConnectionWaits").await;
        clients.remove(0).quit().await.unwrap();
        let mut client = Client::negotiate(waiting, &Offer::POSTFIX).await.unwrap();
        client.open(&Peer::default()).await.unwrap();
        let mail = mail("hello", b"body\r\n");
        assert_eq!(client.send(&mail, "Q1").await.unwrap().mail.to_bytes(), mail.to_bytes());
        assert_eq!(server.filter.saw("ConnectionWaits"), 1);
        drop(clients);
        client.quit().await.unwrap();
        let mut last = server.client().await;
        // Their ends are seen one by one: until then the daemon counts them.
        for _ in 0..100 {
            if last.send(&mail, "Q2").await.unwrap().mail.to_bytes() == edited(&mail, "Q2") {
                return;
            }
            last.quit().await.unwrap();
            last = server.client().await;
        }
        panic!("no place is ever free again");
    });
}

/// A connection that waits when the daemon ends is not thrown away.
#[test]
fn a_connection_that_waits_is_served_at_the_end() {
    on_both(|tcp| async move {
        let mut server = Server::start(tcp, set(|settings| settings.connections = 1));
        let mut clients = Vec::new();
        for _ in 0..5 {
            clients.push(server.client().await);
        }
        let waiting = server.connect().await;
        server.sees("ConnectionWaits").await;
        server.stop();
        let mut client = Client::negotiate(waiting, &Offer::POSTFIX).await.unwrap();
        let mail = mail("hello", b"body\r\n");
        assert_eq!(client.send(&mail, "Q1").await.unwrap().mail.to_bytes(), mail.to_bytes());
        client.quit().await.unwrap();
        drop(clients);
        server.ended().await;
    });
}

/// The changes of what is held add up, and to nothing in the end.
#[test]
fn the_memory_held_is_told() {
    on_both(|tcp| async move {
        let mut server = Server::start(tcp, Settings::default());
        let mut client = server.client().await;
        client.send(&mail("hello", &vec![b'x'; 1 << 20]), "Q1").await.unwrap();
        let mut cut = server.client().await;
        let half = mail("hello", &vec![b'x'; 1 << 20]);
        cut.envelope(&half).await.unwrap();
        cut.content(&half).await.unwrap();
        cut.flush().await.unwrap();
        drop(cut);
        client.quit().await.unwrap();
        server.stop();
        server.ended().await;
        let happenings = server.filter.happenings.lock().unwrap().clone();
        let number = |text: &str, key: &str| -> i64 {
            let rest = text.split_once(key).unwrap().1;
            rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap()].parse().unwrap()
        };
        let changes = happenings.iter().filter(|line| line.starts_with("MemoryHeld"));
        let (mut held, mut most) = (0, 0);
        for line in changes {
            held += number(line, "now: ") - number(line, "before: ");
            most = most.max(held);
        }
        assert_eq!(held, 0);
        assert!(most >= 4 << 20, "four times a message while it is worked on: {most}");
    });
}
