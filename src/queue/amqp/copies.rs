//! Copies of events for whoever watches, as `mailtap events tail` does.
//!
//! - Layer: edge
//! - Takes: messages that the broker has confirmed.
//! - Gives: a copy of each to the topic exchange of events, while something is bound there.
//! - On failure: the copy is dropped. Nothing waits for one, and what it is a copy of is done with.
//! - Limits: while nobody watches, one copy each second asks whether somebody does; what passes meanwhile is not seen. 4,096 copies wait to
//!   be written. Denied, or without a channel, it is tried again after ten seconds.
//! - See: `docs/decisions/0017-straight-to-the-work-queue.md`. The broker returns a mandatory message that no queue is bound for, before
//!   it answers what is asked next on the same channel.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use lapin::Channel;
use lapin::options::{BasicPublishOptions, BasicQosOptions};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::link::within;
use super::publisher::properties;
use super::{AmqpError, Link, Message};
use crate::queue::happenings::{CopiesDenied, CopyDropped};

/// How long nobody is taken to watch.
const ASK_EVERY: Duration = Duration::from_secs(1);
const AGAIN_AFTER: Duration = Duration::from_secs(10);
const WAITING: usize = 4_096;
const AT_ONCE: usize = 64;
/// AMQP's number for: need not survive the broker.
const TRANSIENT: u8 = 1;

/// Hands on copies, over a channel of its own, for as long as it lives.
#[derive(Debug)]
pub struct Copies {
    exchange: String,
    wanted: Arc<AtomicBool>,
    sender: mpsc::Sender<Message>,
    task: JoinHandle<()>,
}

impl Copies {
    /// Begins on this link.
    #[must_use]
    pub fn begin(link: Arc<Link>) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        let wanted = Arc::new(AtomicBool::new(false));
        let exchange = link.topology().events_exchange();
        let task = tokio::spawn(hand_on(link, wanted.clone(), receiver));
        Self { exchange, wanted, sender, task }
    }

    /// Hands on a copy, if somebody watches or it is time to ask. Never waits.
    pub fn of(&self, message: Message) {
        if !self.wanted.load(Ordering::Relaxed) {
            return;
        }
        let (exchange, key) = (self.exchange.clone(), message.kind.clone());
        if self.sender.try_send(Message { exchange, key, ..message }).is_err() {
            CopyDropped.emit();
        }
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn hand_on(link: Arc<Link>, wanted: Arc<AtomicBool>, mut receiver: mpsc::Receiver<Message>) {
    while link.is_connected() {
        let began = Instant::now();
        let wait = match hand_on_over(&link, &wanted, &mut receiver).await {
            Ok(()) => return,
            Err(error) => {
                CopiesDenied { why: &error }.emit();
                // The true messages don't need this exchange, so that they never find it missing.
                let missing = matches!(&error, AmqpError::Client(said) if said.starts_with("NOT_FOUND"));
                if missing && link.mend(began).await { ASK_EVERY } else { AGAIN_AFTER }
            }
        };
        pause(&wanted, &mut receiver, wait).await;
    }
}

/// Over one channel; ends in order when nobody can hand anything on any more.
async fn hand_on_over(
    link: &Link,
    wanted: &AtomicBool,
    receiver: &mut mpsc::Receiver<Message>,
) -> Result<(), AmqpError> {
    let channel = link.channel().await?;
    loop {
        wanted.store(true, Ordering::Relaxed);
        let Some(first) = receiver.recv().await else { return Ok(()) };
        wanted.store(false, Ordering::Relaxed);
        if asks(link, &channel, first).await? {
            wanted.store(true, Ordering::Relaxed);
            watched(link, &channel, receiver).await?;
        }
        pause(wanted, receiver, ASK_EVERY).await;
    }
}

/// Whether somebody watches.
async fn asks(link: &Link, channel: &Channel, message: Message) -> Result<bool, AmqpError> {
    copy(link, channel, &message).await?;
    // Any question will do: the answer comes after what is returned.
    within(link.timeout(), channel.basic_qos(1, BasicQosOptions::default())).await?;
    Ok(channel.wait_for_confirms().await?.is_empty())
}

/// Until a copy comes back.
async fn watched(
    link: &Link,
    channel: &Channel,
    receiver: &mut mpsc::Receiver<Message>,
) -> Result<(), AmqpError> {
    let mut messages = Vec::with_capacity(AT_ONCE);
    while receiver.recv_many(&mut messages, AT_ONCE).await > 0 {
        try_join_all(messages.iter().map(|message| copy(link, channel, message))).await?;
        messages.clear();
        if !channel.wait_for_confirms().await?.is_empty() {
            return Ok(());
        }
    }
    Ok(())
}

async fn copy(link: &Link, channel: &Channel, message: &Message) -> Result<(), AmqpError> {
    let (exchange, key) = (message.exchange.as_str().into(), message.key.as_str().into());
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let properties = properties(message, link.topology()).with_delivery_mode(TRANSIENT);
    // It gives no confirm, and takes as long as the broker takes no messages.
    channel.basic_publish(exchange, key, options, &message.body, properties).await?;
    Ok(())
}

/// Nothing is handed on for a while.
async fn pause(wanted: &AtomicBool, receiver: &mut mpsc::Receiver<Message>, wait: Duration) {
    wanted.store(false, Ordering::Relaxed);
    tokio::time::sleep(wait).await;
    while receiver.try_recv().is_ok() {}
}
