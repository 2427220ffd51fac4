//! One connection of an MTA.
//!
//! - Layer: edge
//! - Takes: a socket, a session, the handler.
//! - Gives: every message answered; every answer in one write.
//! - On failure: whatever the handler does wrong lets its message through unmodified, or as its fallback says. What the MTA
//!   does wrong ends the connection.
//! - Limits: the timeouts; an answer larger than the send buffer is not begun, unless [`Oversize::Stream`].
//! - See: Postfix `src/cleanup/cleanup_milter.c`: the new body replaces the old one in place as it arrives, so a connection
//!   that breaks in the middle leaves a mixture (fixed after 3.11)

use std::boxed::Box;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use std::vec::Vec;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::budget::{Budget, Share};
use super::habit::Habit;
use super::handler::OnTaken;
use super::serve::{Place, Tide};
use super::stream::Stream;
use super::work::{WORK_FACTOR, Work};
use super::{End, Failure, Handler, Happening, Oversize, Response, Settings, Settled, Which};
use crate::edits::{Answer, CannotEdit};
use crate::session::{Event, Interest, LetThrough, Message, Session, Stage, Unseen};

/// Buffers of a connection that has brought several messages are kept for the next one as long.
const KEEP_BUFFERS: Duration = Duration::from_secs(2);
/// So many messages show that a connection brings several. Most bring one, and then idle or end.
const SEVERAL: u64 = 2;

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared<H> {
    pub(super) handler: Arc<H>,
    pub(super) settings: Settings,
    pub(super) budget: Arc<Budget>,
    pub(super) habit: Habit,
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
    /// The largest answer that one write takes, in bytes.
    room_bytes: usize,
    messages: u64,
    /// Whether no message has come so far.
    fresh: bool,
    /// What is to be done once the MTA goes on after the last answer.
    untaken: Option<OnTaken>,
    /// When to stop waiting for a message that passes, once the daemon ends.
    last_call: Option<Instant>,
    _place: Place,
}

/// The message that the handler has.
struct Current {
    queue_id: Vec<u8>,
    recipients: usize,
    started: Instant,
}

impl Current {
    fn new(message: &Message) -> Self {
        let queue_id = message.queue_id().unwrap_or_default().to_vec();
        Self { queue_id, recipients: message.recipients().len(), started: Instant::now() }
    }

    fn which(&self) -> Which<'_> {
        Which { queue_id: &self.queue_id, recipients: self.recipients, took: Some(self.started.elapsed()) }
    }
}

impl<H: Handler> Connection<H> {
    pub(super) fn new(
        stream: Stream,
        session: Session,
        shared: Arc<Shared<H>>,
        tide: watch::Receiver<Tide>,
        place: Place,
    ) -> Self {
        let share = shared.budget.share();
        Self {
            stream,
            session,
            shared,
            tide,
            share,
            room_bytes: 0,
            messages: 0,
            fresh: true,
            untaken: None,
            last_call: None,
            _place: place,
        }
    }

    /// Serves the connection to its end. Not an `async fn`: its future would hold the connection twice.
    #[allow(clippy::manual_async_fn)]
    pub(super) fn run(mut self) -> impl Future<Output = ()> {
        async move {
            let end = self.serve().await;
            let cut_off = self.session.under_way();
            let which = |(queue_id, recipients)| Which { queue_id, recipients, took: None };
            let (messages, cut_off) = (self.messages, cut_off.map(which));
            self.shared.observe(&Happening::Closed { end: &end, messages, cut_off });
            self.hold(0);
        }
    }

    async fn serve(&mut self) -> End {
        match self.stream.prepare(self.shared.settings.send_buffer_bytes) {
            Ok(room) => self.room_bytes = room,
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
        self.set_answer_room();
        while let Some(event) = self.session.poll().map_err(End::Protocol)? {
            self.take(event).await?;
        }
        self.flush().await?;
        if !self.hold(self.session.held_bytes()) && self.session.give_up(Unseen::Memory) {
            self.hold(self.session.held_bytes());
        }
        self.read().await
    }

    /// Has answers keep to what one write takes, unless they may be streamed now.
    fn set_answer_room(&mut self) {
        let (handler, set) = (&self.shared.handler, self.shared.settings.oversize);
        let oversize = catch_unwind(AssertUnwindSafe(|| handler.oversize(set))).unwrap_or_default();
        self.session.set_answer_room_bytes((oversize == Oversize::PassUnmodified).then_some(self.room_bytes));
    }

    /// Counts `bytes` as held; `false` if there is no memory for them.
    fn hold(&mut self, bytes: usize) -> bool {
        let before = self.share.held_bytes();
        let held = self.share.set(bytes);
        let now = self.share.held_bytes();
        if now != before {
            self.shared.observe(&Happening::MemoryHeld { before, now });
        }
        held
    }

    async fn take(&mut self, event: Event) -> Result<(), End> {
        match event {
            Event::Negotiated | Event::NewSession => (),
            Event::PassingThrough(error) => self.shared.observe(&Happening::CannotNegotiate(error)),
            Event::Headers => {
                self.fresh = false;
                self.headers();
            }
            // Boxed, so that a connection without a message does not carry the state of one.
            Event::Message(message) => return Box::pin(self.message(message)).await,
            Event::LetThrough(LetThrough { why, queue_id, recipients }) => {
                self.fresh = false;
                let which = Which { queue_id: &queue_id, recipients, took: None };
                self.shared.observe(&Happening::LetThrough { which, why });
            }
            Event::Aborted => self.shared.observe(&Happening::Aborted),
            Event::Quit => return Err(End::Quit),
        }
        Ok(())
    }

    fn headers(&mut self) {
        let Some(message) = self.session.message() else { return };
        let handler = &self.shared.handler;
        let current = Current::new(message);
        let interest = catch_unwind(AssertUnwindSafe(|| handler.headers(message))).unwrap_or_else(|_| {
            let (which, why) = (current.which(), Failure::Panicked);
            self.shared.observe(&Happening::Unanswered { which, why, fallback: false });
            Interest::Accept
        });
        self.shared.habit.note(interest == Interest::Accept);
        if interest == Interest::Accept {
            self.shared.observe(&Happening::AcceptedAtHeaders(current.which()));
            self.messages += 1;
        }
        self.session.answer_headers(interest);
    }

    async fn message(&mut self, message: Box<Message>) -> Result<(), End> {
        let current = Current::new(&message);
        let flushed = self.flush().await;
        // After a long stop of this process the MTA may have given up: the handler must not take the message for sent.
        if let Err(end) = flushed.and_then(|()| self.still_there()) {
            return Err(self.lost(&current, end));
        }
        let Some(Response { answer, settled, taken }) = self.work(message, &current).await? else {
            self.session.answer(&Answer::unmodified()).ok();
            let which = Which { took: None, ..current.which() };
            self.shared.observe(&Happening::LetThrough { which, why: Unseen::Memory });
            self.messages += 1;
            self.hold(self.session.held_bytes());
            return self.flush().await;
        };
        if let Err(end) = self.still_there() {
            Response::settle(settled, Settled::Lost);
            self.shared.observe(&Happening::AnswerLost { which: current.which(), answered: true });
            return Err(end);
        }
        // The message is gone: its share counts for the answer. There is no going back from here.
        let composed = self.compose(answer);
        if let Err(why) = composed {
            self.shared.observe(&Happening::CannotEdit { which: current.which(), why });
        }
        let written = self.write_answer(&current).await;
        let fate = match (&written, composed) {
            (Err(_), _) => Settled::Lost,
            (Ok(()), Err(why)) => Settled::Unmodified(why),
            (Ok(()), Ok(bytes)) => Settled::Sent { bytes },
        };
        Response::settle(settled, fate);
        match written {
            Ok(()) => {
                let bytes = composed.unwrap_or(5);
                self.untaken = taken.filter(|_| composed.is_ok());
                self.shared.observe(&Happening::Answered { which: current.which(), bytes });
            }
            Err(_) => {
                self.shared.observe(&Happening::AnswerLost { which: current.which(), answered: true });
            }
        }
        self.messages += 1;
        self.hold(self.session.held_bytes());
        written
    }

    /// Tells of a message whose MTA went before the handler had answered.
    fn lost(&self, current: &Current, end: End) -> End {
        self.shared.observe(&Happening::AnswerLost { which: current.which(), answered: false });
        end
    }

    /// Composes an answer, if there is memory for a second copy of its body.
    fn compose(&mut self, answer: Answer) -> Result<usize, CannotEdit> {
        let needed_bytes = answer.body_bytes() * 2 + self.session.held_bytes();
        self.set_answer_room();
        let answer = if self.hold(needed_bytes) { Some(answer) } else { None };
        let composed = self.session.answer(answer.as_ref().unwrap_or(&Answer::unmodified()));
        if answer.is_none() { Err(CannotEdit::NoMemory { needed_bytes }) } else { composed }
    }

    /// Has the handler work, if there is memory for it, with signs of life in between. Whatever goes wrong becomes its
    /// fallback, or an unmodified message.
    async fn work(&mut self, message: Box<Message>, current: &Current) -> Result<Option<Response>, End> {
        if self.messages < SEVERAL {
            // All of it is taken, and the work may have to wait for others.
            self.session.shrink();
        }
        let reserved = message.held_bytes().saturating_mul(WORK_FACTOR) + self.session.held_bytes();
        if !self.hold(reserved) {
            return Ok(None);
        }
        let timeouts = self.shared.settings.timeouts;
        let deadline = Instant::now() + timeouts.handler;
        let mut sign = Instant::now() + timeouts.progress;
        let mut tide = self.tide.clone();
        let mut work = Work::new(Arc::clone(&self.shared.handler), *message);
        let why = loop {
            tokio::select! {
                biased;
                done = work.done() => match done {
                    Some(response) => return Ok(Some(response)),
                    None => break Failure::Panicked,
                },
                () = tokio::time::sleep_until(deadline.min(sign)) => {
                    if Instant::now() >= deadline {
                        break Failure::TimedOut;
                    }
                }
                _ = tide.wait_for(|tide| *tide == Tide::Ending) => break Failure::Stopping,
            }
            self.session.progress();
            if let Err(end) = self.flush().await {
                return Err(self.lost(current, end));
            }
            sign = Instant::now() + timeouts.progress;
        };
        let fallback = work.give_up();
        let which = current.which();
        self.shared.observe(&Happening::Unanswered { which, why, fallback: fallback.is_some() });
        Ok(Some(fallback.unwrap_or_else(|| Answer::unmodified().into())))
    }

    /// Writes an answer, by one write if it fits; tells if it did not.
    async fn write_answer(&mut self, current: &Current) -> Result<(), End> {
        let bytes = self.session.outgoing().len();
        let late =
            |end| if let End::WriteTimedOut(_) = end { End::WriteTimedOut(Stage::Answer) } else { end };
        let first_bytes = self.write_once().await.map_err(late)?;
        if first_bytes < bytes {
            let which = current.which();
            self.shared.observe(&Happening::AnswerInPieces { which, bytes, first_bytes });
        }
        self.flush().await.map_err(late)
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
            match self.stream.write_now(self.session.outgoing()) {
                Ok(count) => {
                    self.session.sent(count);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.broken(error)),
            }
            let limit = self.shared.settings.timeouts.write;
            let late = |_| End::WriteTimedOut(self.session.stage());
            timeout(limit, self.stream.writable()).await.map_err(late)?.map_err(End::Io)?;
        }
    }

    /// Looks whether the MTA has gone while the handler worked, or gone on: TCP takes an answer even then, and after a long
    /// stop smtpd(8) may have sent ABORT though cleanup(8) waited for an answer.
    fn still_there(&mut self) -> Result<(), End> {
        match self.stream.read_now(self.session.room()) {
            Ok(0) => return Err(End::PeerClosed(self.session.stage())),
            Ok(count) => self.session.filled(count),
            Err(error) => {
                if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) {
                    return Err(self.broken(error));
                }
            }
        }
        if self.session.was_given_up() { Err(End::PeerClosed(self.session.stage())) } else { Ok(()) }
    }

    /// Takes what came, or waits for it.
    async fn read(&mut self) -> Result<(), End> {
        let mut readable = false;
        loop {
            if !readable && self.session.has_no_buffer() {
                // An idle connection costs none: there will be one when something is there to be read.
                self.stream.acknowledge_at_once();
                readable = self.wait().await?;
                continue;
            }
            match self.stream.try_read(self.session.room()) {
                Ok(0) => return Err(End::PeerClosed(self.session.stage())),
                Ok(count) => {
                    self.session.filled(count);
                    if let Some(taken) = self.untaken.take() {
                        let _ = catch_unwind(AssertUnwindSafe(taken));
                    }
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.broken(error)),
            }
            self.stream.acknowledge_at_once();
            readable = self.wait().await?;
        }
    }

    /// Waits until something can be read; `false` if there is another reason to look again.
    async fn wait(&mut self) -> Result<bool, End> {
        let stage = self.session.stage();
        let boundary = self.session.at_boundary();
        if boundary && self.messages < SEVERAL {
            self.session.shrink();
        }
        let now = *self.tide.borrow_and_update();
        if now == Tide::Ending {
            return self.last_wait(stage, boundary).await;
        }
        // What Postfix has of the first message may not have been sent yet.
        let expected = self.fresh && stage == Stage::Idle;
        let drained = now == Tide::Draining && boundary && !expected;
        let limit = self.patience(stage, drained);
        let shrinks = boundary && limit > KEEP_BUFFERS && !self.session.has_no_buffer();
        let readable = within(if shrinks { KEEP_BUFFERS } else { limit }, self.stream.readable());
        tokio::select! {
            biased;
            readable = readable => match readable {
                Some(readable) => readable.map(|()| true).map_err(End::Io),
                None if drained => Err(End::Drained(stage)),
                None if shrinks => {
                    self.session.shrink();
                    Ok(false)
                }
                None => Err(End::TimedOut(stage)),
            },
            // The tide turned: look again.
            _ = self.tide.changed() => Ok(false),
        }
    }

    /// Waits for the rest of a message that passes now, since the daemon ends.
    async fn last_wait(&mut self, stage: Stage, boundary: bool) -> Result<bool, End> {
        self.session.give_up(Unseen::Stopping);
        let patience = self.shared.settings.timeouts.drain_passing;
        let end = *self.last_call.get_or_insert_with(|| Instant::now() + patience);
        if boundary {
            return Err(End::Drained(stage));
        }
        match tokio::time::timeout_at(end, self.stream.readable()).await {
            Ok(readable) => readable.map(|()| true).map_err(End::Io),
            Err(_) => Err(End::Drained(stage)),
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::driver::Fallback;
    use crate::session::SessionLimits;

    struct Nothing;

    impl Handler for Nothing {
        async fn message(&self, _: Message, _: &Fallback) -> Response {
            Answer::unmodified().into()
        }
    }

    #[tokio::test]
    async fn a_connection_takes_little_while_it_idles() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let session = Session::new(crate::session::Wanted::default(), SessionLimits::default());
        let settings = Settings::default();
        let budget = Budget::new(settings.memory_bytes);
        let shared =
            Arc::new(Shared { handler: Arc::new(Nothing), settings, budget, habit: Habit::default() });
        let (_sender, tide) = watch::channel(Tide::Open);
        let place = Place::take(Arc::new(AtomicUsize::new(0)));
        let task = Connection::new(Stream::unix(ours).unwrap(), session, shared, tide, place).run();
        assert!(size_of_val(&task) <= 1_536, "{} bytes", size_of_val(&task));
    }
}
