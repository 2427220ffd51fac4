//! A daemon that is to stop: busy connections finish, idle ones go, and nothing takes longer than it may.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "common/server.rs"]
mod server;

use std::sync::atomic::Ordering;
use std::time::Duration;

use server::{At, Server, edited, mail, on_both, set};

#[test]
fn draining_lets_busy_connections_finish_and_closes_idle_ones() {
    on_both(|tcp| async move {
        let mut server =
            Server::start(tcp, set(|settings| settings.timeouts.drain_idle = Duration::from_millis(100)));
        let mut idle = server.client().await;
        let mut busy = server.client().await;
        let mut begun = server.client().await;
        let slow = mail("slow", b"body\r\n");
        let quick = mail("quick", b"body\r\n");
        idle.send(&quick, "Q0").await.unwrap();
        begun.envelope(&quick).await.unwrap();
        begun.flush().await.unwrap();
        let task = tokio::spawn(async move {
            let delivery = busy.send(&slow, "Q1").await.unwrap();
            assert_eq!(delivery.mail.to_bytes(), edited(&slow, "Q1"));
        });
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.stop();
        server.sees("Closed { end: Drained(Idle)").await;
        assert!(idle.send(&quick, "Q2").await.is_err(), "an idle connection is closed");
        task.await.unwrap();
        begun.content(&quick).await.unwrap();
        assert_eq!(begun.end(&quick).await.unwrap().mail.to_bytes(), edited(&quick, "none"));
        server.ended().await;
        if let At::Unix(path) = &server.at {
            assert!(!path.exists(), "the socket file is removed");
        }
    });
}

/// Postfix keeps MAIL and RCPT to itself until there is something to be replied to: a connection whose first message has not
/// been seen yet may be in the middle of its envelope.
#[test]
fn draining_waits_for_the_first_message_of_a_connection() {
    on_both(|tcp| async move {
        let mut server = Server::start(tcp, set(|settings| settings.timeouts.drain_idle = Duration::ZERO));
        let mut fresh = server.client().await;
        let mut used = server.client().await;
        let quick = mail("quick", b"body\r\n");
        fresh.envelope(&quick).await.unwrap();
        used.send(&quick, "Q1").await.unwrap();
        server.stop();
        server.sees("Closed { end: Drained(Idle), messages: 1").await;
        let delivery = fresh.send_content(&quick, "Q2").await.unwrap();
        assert_eq!(delivery.mail.to_bytes(), edited(&quick, "Q2"));
        server.ended().await;
    });
}

#[test]
fn draining_ends_at_its_deadline_with_messages_unmodified() {
    on_both(|tcp| async move {
        let mut server =
            Server::start(tcp, set(|settings| settings.timeouts.drain = Duration::from_millis(100)));
        let (slow, left) = (mail("slow", b"body\r\n"), mail("fallback slow", b"body\r\n"));
        let mut clients = Vec::new();
        for mail in [&slow, &left] {
            let (mut client, mail) = (server.client().await, mail.clone());
            clients.push(tokio::spawn(async move { client.send(&mail, "Q1").await.unwrap().mail }));
        }
        // One that is still being received passes unmodified too, if it ends soon.
        let mut begun = server.client().await;
        begun.envelope(&slow).await.unwrap();
        begun.flush().await.unwrap();
        while server.filter.bodies.load(Ordering::Relaxed) < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        server.stop();
        server.sees("why: Stopping").await;
        assert_eq!(begun.send_content(&slow, "Q2").await.unwrap().mail, slow);
        server.ended().await;
        let mut delivered = Vec::new();
        for client in clients {
            delivered.push(client.await.unwrap());
        }
        assert_eq!(delivered[0], slow);
        assert_eq!(delivered[1].headers.last().unwrap().name, b"X-Fallback", "as the handler left it");
        assert_eq!(server.filter.saw("why: Stopping, fallback"), 2);
        assert_eq!(server.filter.saw("recipients: 1, took: None }, why: Stopping"), 1);
    });
}

#[test]
fn a_message_that_does_not_end_ends_with_the_daemon() {
    on_both(|tcp| async move {
        let moment = Duration::from_millis(100);
        let mut server = Server::start(
            tcp,
            set(|settings| {
                settings.timeouts.drain = moment;
                settings.timeouts.drain_passing = moment;
            }),
        );
        let mut begun = server.client().await;
        begun.envelope(&mail("slow", b"")).await.unwrap();
        begun.flush().await.unwrap();
        server.sees("Opened").await;
        server.stop();
        server.ended().await;
        assert_eq!(
            server.filter.saw("Drained(Envelope), messages: 0, cut_off: Some(Which { queue_id: \"\""),
            1
        );
        drop(begun);
    });
}
