//! One connection of an MTA.
//!
//! - Layer: edge
//! - Takes: a socket, a session, the handler.
//! - Gives: every message answered; every answer in one write.
//! - On failure: whatever the handler does wrong lets its message through unmodified. What the MTA does wrong ends the
//!   connection.
//! - Limits: the timeouts; an answer larger than the send buffer is not begun, unless [`Oversize::Stream`].
//! - See: Postfix `src/cleanup/cleanup_milter.c`: the new body replaces the old one in place as it arrives, so a connection
//!   that breaks in the middle leaves a mixture (fixed after 3.11)

use std::boxed::Box;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::budget::{Budget, Share};
use super::serve::Tide;
use super::{End, Handler, Happening, Oversize, Response, Settings, Settled, Stream};
use crate::edits::Answer;
use crate::session::{Event, Interest, Message, Session, Stage};

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared<H> {
    pub(super) handler: Arc<H>,
    pub(super) settings: Settings,
    pub(super) budget: Arc<Budget>,
}

impl<H: Handler> Shared<H> {
    /// Tells the handler; a panic there must not cost a connection.
    pub(super) fn observe(&self, happening: &Happening<'_>) {
        let _ = catch_unwind(AssertUnwindSafe(|| self.handler.observe(happening)));
    }
}

pub(super) struct Connection<H> {
    stream: Stream,
    session: Session,
    shared: Arc<Shared<H>>,
    tide: watch::Receiver<Tide>,
    share: Share,
    messages: u64,
}

impl<H: Handler> Connection<H> {
    pub(super) fn new(
        stream: Stream,
        session: Session,
        shared: Arc<Shared<H>>,
        tide: watch::Receiver<Tide>,
    ) -> Self {
        let share = shared.budget.share();
        Self { stream, session, shared, tide, share, messages: 0 }
    }

    pub(super) async fn run(mut self) {
        let end = self.serve().await;
        self.shared.observe(&Happening::Closed { end: &end, messages: self.messages });
    }

    async fn serve(&mut self) -> End {
        match self.stream.prepare(self.shared.settings.send_buffer_bytes) {
            Ok(room) => {
                let room = (self.shared.settings.oversize == Oversize::PassUnmodified).then_some(room);
                self.session.set_answer_room_bytes(room);
            }
            Err(error) => return End::Io(error),
        }
        loop {
            if let Err(end) = self.turn().await {
                return end;
            }
        }
    }

    /// Works off what is there, then waits for more.
    async fn turn(&mut self) -> Result<(), End> {
        while let Some(event) = self.session.poll().map_err(End::Protocol)? {
            self.take(event).await?;
        }
        self.flush().await?;
        if !self.share.set(self.session.held_bytes()) && self.session.give_up() {
            self.shared
                .observe(&Happening::OverLimit { queue_id: &[], excess: crate::session::Excess::Memory });
            self.share.set(self.session.held_bytes());
        }
        self.read().await
    }

    async fn take(&mut self, event: Event) -> Result<(), End> {
        match event {
            Event::Negotiated | Event::NewSession => (),
            Event::PassingThrough(error) => self.shared.observe(&Happening::CannotNegotiate(error)),
            Event::Headers => self.headers(),
            Event::Message(message) => return self.message(message).await,
            Event::OverLimit(excess) => {
                self.shared.observe(&Happening::OverLimit { queue_id: &[], excess });
            }
            Event::Aborted => self.shared.observe(&Happening::Aborted),
            Event::Quit => return Err(End::Quit),
        }
        Ok(())
    }

    fn headers(&mut self) {
        let Some(message) = self.session.message() else { return };
        let handler = &self.shared.handler;
        let queue_id = message.queue_id().unwrap_or_default();
        let interest = catch_unwind(AssertUnwindSafe(|| handler.headers(message))).unwrap_or_else(|_| {
            self.shared.observe(&Happening::Panicked { queue_id });
            Interest::Accept
        });
        if interest == Interest::Accept {
            self.shared.observe(&Happening::AcceptedAtHeaders { queue_id });
            self.messages += 1;
        }
        self.session.answer_headers(interest);
    }

    async fn message(&mut self, message: Box<Message>) -> Result<(), End> {
        self.flush().await?;
        let queue_id = message.queue_id().unwrap_or_default().to_vec();
        let held = message.held_bytes();
        // After a long stop of this process the MTA may have given up: the handler must not take the message for sent.
        if let Err(end) = self.still_there() {
            self.shared.observe(&Happening::AnswerLost { queue_id: &queue_id });
            return Err(end);
        }
        let handler = Arc::clone(&self.shared.handler);
        let mut task = tokio::spawn(async move { handler.message(*message).await });
        let response = self.response(&mut task, &queue_id).await.inspect_err(|_| task.abort())?;
        let Response { answer, settled } = response;
        if let Err(end) = self.still_there() {
            Response::settle(settled, Settled::Lost);
            self.shared.observe(&Happening::AnswerLost { queue_id: &queue_id });
            return Err(end);
        }
        // The message is gone: its share counts for the answer. There is no going back from here.
        self.share.set(held.max(2 * answer.body_bytes()));
        let composed = self.session.answer(&answer);
        drop(answer);
        if let Err(why) = composed {
            self.shared.observe(&Happening::CannotEdit { queue_id: &queue_id, why });
        }
        let written = self.write_answer(&queue_id).await;
        let fate = match (&written, composed) {
            (Err(_), _) => Settled::Lost,
            (Ok(()), Err(why)) => Settled::Unmodified(why),
            (Ok(()), Ok(bytes)) => Settled::Sent { bytes },
        };
        Response::settle(settled, fate);
        match written {
            Ok(()) => {
                let bytes = composed.unwrap_or(5);
                self.shared.observe(&Happening::Answered { queue_id: &queue_id, bytes });
            }
            Err(_) => self.shared.observe(&Happening::AnswerLost { queue_id: &queue_id }),
        }
        self.messages += 1;
        self.share.set(0);
        written
    }

    /// Waits for the handler, with signs of life in between. Whatever goes wrong becomes an unmodified message.
    async fn response(&mut self, task: &mut JoinHandle<Response>, queue_id: &[u8]) -> Result<Response, End> {
        let timeouts = self.shared.settings.timeouts;
        let deadline = Instant::now() + timeouts.handler;
        let mut sign = Instant::now() + timeouts.progress;
        let mut tide = self.tide.clone();
        loop {
            let late = tokio::select! {
                biased;
                done = &mut *task => {
                    return Ok(done.unwrap_or_else(|_| {
                        self.shared.observe(&Happening::Panicked { queue_id });
                        Answer::unmodified().into()
                    }));
                }
                () = tokio::time::sleep_until(deadline.min(sign)) => Instant::now() >= deadline,
                _ = tide.wait_for(|tide| *tide == Tide::Ending) => {
                    task.abort();
                    self.shared.observe(&Happening::DrainedUnanswered { queue_id });
                    return Ok(Answer::unmodified().into());
                }
            };
            if late {
                task.abort();
                self.shared.observe(&Happening::TimedOut { queue_id });
                return Ok(Answer::unmodified().into());
            }
            self.session.progress();
            self.flush().await?;
            sign = Instant::now() + timeouts.progress;
        }
    }

    /// Writes an answer, by one write if it fits; tells if it did not.
    async fn write_answer(&mut self, queue_id: &[u8]) -> Result<(), End> {
        let bytes = self.session.outgoing().len();
        let first_bytes = self.write_once().await?;
        if first_bytes < bytes {
            self.shared.observe(&Happening::AnswerInPieces { queue_id, bytes, first_bytes });
        }
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), End> {
        while !self.session.outgoing().is_empty() {
            self.write_once().await?;
        }
        Ok(())
    }

    /// One write that the system takes, whole or in part.
    async fn write_once(&mut self) -> Result<usize, End> {
        loop {
            match self.stream.try_write(self.session.outgoing()) {
                Ok(count) => {
                    self.session.sent(count);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.broken(error)),
            }
            let limit = self.shared.settings.timeouts.write;
            timeout(limit, self.stream.writable()).await.map_err(|_| End::WriteTimedOut)?.map_err(End::Io)?;
        }
    }

    /// Looks whether the MTA has gone while the handler worked: TCP takes an answer even then.
    fn still_there(&mut self) -> Result<(), End> {
        match self.stream.try_read(self.session.room()) {
            Ok(0) => Err(End::PeerClosed(self.session.stage())),
            Ok(count) => {
                self.session.filled(count);
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(())
            }
            Err(error) => Err(self.broken(error)),
        }
    }

    /// Takes what came, or waits for it.
    async fn read(&mut self) -> Result<(), End> {
        loop {
            match self.stream.try_read(self.session.room()) {
                Ok(0) => return Err(End::PeerClosed(self.session.stage())),
                Ok(count) => {
                    self.session.filled(count);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.broken(error)),
            }
            if self.session.at_boundary() {
                self.session.shrink();
            }
            self.stream.acknowledge_at_once();
            self.wait().await?;
        }
    }

    async fn wait(&mut self) -> Result<(), End> {
        let stage = self.session.stage();
        let boundary = self.session.at_boundary();
        let now = *self.tide.borrow_and_update();
        if now == Tide::Ending {
            return Err(End::Drained(stage));
        }
        let drained = now == Tide::Draining && boundary;
        let limit = self.patience(stage, drained);
        let readable = within(limit, self.stream.readable());
        tokio::select! {
            biased;
            readable = readable => match readable {
                Some(readable) => readable.map_err(End::Io),
                None if drained => Err(End::Drained(stage)),
                None => Err(End::TimedOut(stage)),
            },
            // The tide turned: look again.
            _ = self.tide.changed() => Ok(()),
        }
    }

    fn patience(&self, stage: Stage, drained: bool) -> Duration {
        let timeouts = &self.shared.settings.timeouts;
        match stage {
            _ if drained => timeouts.drain_idle,
            Stage::Negotiation => timeouts.negotiation,
            Stage::Content => timeouts.content,
            _ => timeouts.idle,
        }
    }

    fn broken(&self, error: io::Error) -> End {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                End::PeerClosed(self.session.stage())
            }
            _ => End::Io(error),
        }
    }
}

async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    timeout(limit, future).await.ok()
}
