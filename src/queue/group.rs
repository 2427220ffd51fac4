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
/// When it does so first: a process that lives for one event leaves it to others.
const FIRST_CARE: Duration = Duration::from_secs(1);
/// How long it leaves the store alone between two pieces of that.
const CARE_PAUSE: Duration = Duration::from_millis(20);

/// Whoever has this may ask the thread; it ends when this goes.
#[derive(Debug)]
pub(super) struct Group<C> {
    commands: mpsc::Sender<C>,
    room: Semaphore,
}

/// How commands are gathered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gather {
    /// How long a group waits for company when the thread has had no rest since the last one. Locks are free meanwhile,
    /// for other processes. A command that finds the thread idle does not wait.
    pub(super) wait: Duration,
    /// From which weight on it waits no longer: there is company enough.
    pub(super) enough: usize,
    /// From which weight on it takes no more.
    pub(super) weight: usize,
}

/// What the thread does.
pub(super) trait Work: Send + 'static {
    /// What it is asked for.
    type Command: Send + 'static;

    /// How often it looks after its store.
    const CARE_EVERY: Duration = Duration::from_secs(60);

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
    let mut care_at = Instant::now() + FIRST_CARE;
    let mut meanwhile = None;
    loop {
        // Whoever comes while a group is worked off shares the next one. Who finds the thread idle has nothing to wait for.
        let wait = if meanwhile.is_some() { gather.wait } else { Duration::ZERO };
        let rest = care_at.saturating_duration_since(Instant::now());
        match meanwhile.take().map_or_else(|| commands.recv_timeout(rest), Ok) {
            Ok(first) => {
                work.work(gathered::<W>(commands, Gather { wait, ..gather }, first));
                meanwhile = commands.try_recv().ok();
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if Instant::now() >= care_at {
            care_at = Instant::now() + if work.care() { CARE_PAUSE } else { W::CARE_EVERY };
        }
    }
}

fn gathered<W: Work>(commands: &Receiver<W::Command>, gather: Gather, first: W::Command) -> Vec<W::Command> {
    let until = Instant::now() + gather.wait;
    let mut weight = W::weight(&first);
    let mut group = vec![first];
    while weight < gather.weight {
        let wait = if weight < gather.enough {
            until.saturating_duration_since(Instant::now())
        } else {
            Duration::ZERO
        };
        let Ok(next) = commands.recv_timeout(wait) else { break };
        weight += W::weight(&next);
        group.push(next);
    }
    group
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Tells how large each group was, and takes its time; has a little to care for.
    struct Slow {
        sizes: mpsc::Sender<usize>,
        takes: Duration,
        cares: usize,
    }

    impl Work for Slow {
        type Command = oneshot::Sender<()>;

        fn weight(_: &Self::Command) -> usize {
            1
        }

        fn work(&mut self, commands: Vec<Self::Command>) {
            self.sizes.send(commands.len()).unwrap();
            std::thread::sleep(self.takes);
            commands.into_iter().for_each(|answer| answer.send(()).unwrap());
        }

        fn care(&mut self) -> bool {
            self.sizes.send(0).unwrap();
            self.cares -= 1;
            self.cares > 0
        }
    }

    fn start(wait: Duration, takes: Duration) -> (Group<oneshot::Sender<()>>, Receiver<usize>) {
        let (sizes, seen) = mpsc::channel();
        let gather = Gather { wait, enough: 5, weight: 5 };
        (Group::start("slow", gather, Slow { sizes, takes, cares: 5 }).unwrap(), seen)
    }

    #[tokio::test]
    async fn who_comes_alone_does_not_wait() {
        let (group, _seen) = start(Duration::from_secs(10), Duration::ZERO);
        let began = Instant::now();
        group.ask(|answer| answer).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_comes_meanwhile_shares_the_next_group() {
        let (group, seen) = start(Duration::from_secs(10), Duration::from_millis(300));
        let first = group.ask(|answer| answer);
        let others = async {
            // The first one is at work by now.
            assert_eq!(tokio::task::block_in_place(|| seen.recv()).unwrap(), 1);
            let five = std::iter::repeat_with(|| group.ask(|answer| answer)).take(5);
            futures_util::future::join_all(five).await
        };
        let (first, others) = tokio::join!(first, others);
        assert!(first.is_ok() && others.iter().all(Result::is_ok));
        assert_eq!(seen.recv().unwrap(), 5);
    }

    #[test]
    fn a_group_that_is_large_enough_takes_what_is_there_and_waits_no_longer() {
        let (commands, receiver) = mpsc::channel();
        let answer = || oneshot::channel().0;
        let gather = Gather { wait: Duration::from_secs(600), enough: 3, weight: 5 };
        for (sent, gathered) in [(4, 5), (9, 5), (2, 5), (0, 4)] {
            (0..sent).for_each(|_| commands.send(answer()).unwrap());
            assert_eq!(super::gathered::<Slow>(&receiver, gather, answer()).len(), gathered);
        }
    }

    #[test]
    fn an_idle_thread_goes_on_caring_while_there_is_more() {
        let (_group, seen) = start(Duration::ZERO, Duration::ZERO);
        for _ in 0..5 {
            assert_eq!(seen.recv_timeout(Duration::from_secs(30)), Ok(0));
        }
    }
}
