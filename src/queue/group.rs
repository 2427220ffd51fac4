//! A thread for what blocks: it gathers what is asked for, so that one sync of the disk serves all who ask.
//!
//! - Layer: edge
//! - Takes: commands from any task.
//! - Gives: groups of them, on a thread of its own; the tasks wait for their answers.
//! - On failure: a thread that has ended answers nobody: `StoreError::Closed`.
//! - Limits: 4,096 commands under way; a group ends after its wait or at its weight.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, oneshot};

use super::StoreError;

/// How many commands are under way at most.
const COMMANDS: usize = 4_096;
/// How often the thread looks after its store.
const CARE_EVERY: Duration = Duration::from_secs(60);

/// Whoever has this may ask the thread; it ends when this goes.
#[derive(Debug)]
pub(super) struct Group<C> {
    commands: mpsc::Sender<C>,
    room: Semaphore,
}

/// How commands are gathered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gather {
    /// How long a group waits for company. Locks are free meanwhile, for other processes.
    pub(super) wait: Duration,
    /// From which weight on it waits no longer.
    pub(super) weight: usize,
}

/// What the thread does.
pub(super) trait Work: Send + 'static {
    /// What it is asked for.
    type Command: Send + 'static;

    /// How much of a group a command makes up.
    fn weight(command: &Self::Command) -> usize;

    /// Does what a group asks for, and answers it.
    fn work(&mut self, commands: Vec<Self::Command>);

    /// Does a little housekeeping; `true` if there is more of it.
    fn care(&mut self) -> bool;
}

impl<C: Send + 'static> Group<C> {
    /// Starts the thread.
    pub(super) fn start(
        name: &str,
        gather: Gather,
        mut work: impl Work<Command = C>,
    ) -> Result<Self, std::io::Error> {
        let (commands, receiver) = mpsc::channel();
        std::thread::Builder::new().name(name.into()).spawn(move || run(&receiver, gather, &mut work))?;
        Ok(Self { commands, room: Semaphore::new(COMMANDS) })
    }

    /// Asks, and waits for the answer. A caller that stops waiting has asked all the same.
    pub(super) async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> C,
    ) -> Result<T, StoreError> {
        let _room = self.room.acquire().await.map_err(|_| StoreError::Closed)?;
        let (answer, reply) = oneshot::channel();
        self.commands.send(command(answer)).map_err(|_| StoreError::Closed)?;
        reply.await.map_err(|_| StoreError::Closed)
    }

    /// Asks without waiting.
    pub(super) fn tell(&self, command: C) {
        // A thread that has ended does nothing more: whoever tells could not change that.
        let _ = self.commands.send(command);
    }
}

fn run<W: Work>(commands: &Receiver<W::Command>, gather: Gather, work: &mut W) {
    let mut cared = Instant::now();
    loop {
        match commands.recv_timeout(CARE_EVERY) {
            Ok(first) => work.work(gathered::<W>(commands, gather, first)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if cared.elapsed() >= CARE_EVERY && !work.care() {
            cared = Instant::now();
        }
    }
}

fn gathered<W: Work>(commands: &Receiver<W::Command>, gather: Gather, first: W::Command) -> Vec<W::Command> {
    let until = Instant::now() + gather.wait;
    let mut weight = W::weight(&first);
    let mut group = vec![first];
    while weight < gather.weight {
        let Ok(next) = commands.recv_timeout(until.saturating_duration_since(Instant::now())) else {
            break;
        };
        weight += W::weight(&next);
        group.push(next);
    }
    group
}
