//! What a session knows and does, command by command.
//!
//! - Layer: decision
//! - Takes: commands and answers in the order they come.
//! - Gives: events, and replies where the terms call for one.
//! - On failure: a command out of order never stays without the reply that its sender waits for, and never harms a
//!   message: it is answered so that mail goes on.
//! - See: Sendmail `libmilter/engine.c` (its table of transitions; where libmilter stays silent, we reply)

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::macros::StageMacros;
use super::{
    Client, Event, Interest, LetThrough, Message, Path, SessionError, SessionLimits, Stage, Terms, Unseen,
    Wanted,
};
use crate::edits::{Answer, CannotEdit, compose};
use crate::wire::{Command, Connect, EnvelopePath, MacroLists, Offer, Reply};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Before the negotiation.
    Start,
    /// Between messages.
    Idle,
    /// A message is being collected.
    Collecting,
    /// The rest of a message is let through unseen.
    Skipping,
    /// The filter is asked about the headers; `ended` if the message ended already.
    Asked { ended: bool },
    /// The message is with the filter.
    Answering,
    /// Over.
    Closed,
}

#[derive(Debug)]
pub(super) struct State {
    wanted: Wanted,
    limits: SessionLimits,
    terms: Option<Terms>,
    /// Why every message of the connection is let through, if so.
    passing: Option<Unseen>,
    phase: Phase,
    /// Whether headers or body of the current message have begun.
    in_content: bool,
    /// Whether the filter was asked about the headers of the current message.
    asked: bool,
    /// How much of the current message's body the filter wants; nothing: all of it.
    body_wanted: Option<usize>,
    /// Why the current message is let through unseen, if so.
    unseen: Option<Unseen>,
    /// Recipients of the current message.
    recipients: usize,
    macros: StageMacros,
    client: Arc<Client>,
    message: Option<Box<Message>>,
}

impl State {
    pub(super) fn new(wanted: Wanted, limits: SessionLimits) -> Self {
        Self {
            wanted,
            limits,
            terms: None,
            passing: None,
            phase: Phase::Start,
            in_content: false,
            asked: false,
            body_wanted: None,
            unseen: None,
            recipients: 0,
            macros: StageMacros::default(),
            client: Arc::default(),
            message: None,
        }
    }

    pub(super) const fn pass_through(&mut self, why: Unseen) {
        self.passing = Some(why);
    }

    pub(super) const fn terms(&self) -> Option<&Terms> {
        self.terms.as_ref()
    }

    pub(super) fn message(&self) -> Option<&Message> {
        self.message.as_deref()
    }

    pub(super) const fn set_answer_room(&mut self, room: Option<usize>) {
        self.limits.answer_room_bytes = room;
    }

    pub(super) fn queue_id(&self) -> Option<&[u8]> {
        self.macros.value(b"i")
    }

    #[cfg(feature = "tokio")]
    pub(super) fn under_way(&self) -> Option<(&[u8], usize)> {
        // Of one that the filter has accepted at its headers everything is said.
        let open = match self.phase {
            Phase::Collecting | Phase::Asked { .. } => true,
            Phase::Skipping => self.unseen.is_some(),
            Phase::Start | Phase::Idle | Phase::Answering | Phase::Closed => false,
        };
        open.then(|| (self.queue_id().unwrap_or_default(), self.recipients))
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.macros.held_bytes() + self.message.as_ref().map_or(0, |message| message.held_bytes())
    }

    /// Whether commands can be taken: not while an answer is awaited.
    pub(super) const fn listens(&self) -> bool {
        !matches!(self.phase, Phase::Asked { .. } | Phase::Answering | Phase::Closed)
    }

    pub(super) const fn stage(&self) -> Stage {
        match self.phase {
            Phase::Start => Stage::Negotiation,
            Phase::Idle => Stage::Idle,
            Phase::Collecting | Phase::Skipping if self.in_content => Stage::Content,
            Phase::Collecting | Phase::Skipping => Stage::Envelope,
            Phase::Asked { .. } | Phase::Answering => Stage::Answer,
            Phase::Closed => Stage::Closed,
        }
    }

    /// A message that ended while the filter was asked about its headers.
    pub(super) fn pending(&mut self) -> Option<Event> {
        if self.phase != Phase::Answering {
            return None;
        }
        self.message.take().map(Event::Message)
    }

    pub(super) fn take(
        &mut self,
        command: Command<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Option<Event>, SessionError> {
        if let Command::Negotiate(offer) = command {
            return Ok(Some(self.negotiate(&offer, out)));
        }
        if self.phase == Phase::Start && command != Command::Quit {
            return Err(SessionError::NotNegotiated { code: command.code() });
        }
        Ok(match command {
            Command::Negotiate(_) => None,
            Command::Macros { stage, pairs } => {
                self.macros.take(stage, pairs.raw());
                None
            }
            Command::Abort => self.end_message().then_some(Event::Aborted),
            Command::Quit => {
                self.end_message();
                self.phase = Phase::Closed;
                Some(Event::Quit)
            }
            Command::QuitNewConnection => {
                self.end_message();
                self.macros.clear();
                self.client = Arc::default();
                Some(Event::NewSession)
            }
            Command::Header { .. } | Command::EndOfHeaders | Command::Body(_) | Command::EndOfMessage(_) => {
                self.content(command, out)
            }
            _ => {
                self.envelope(command, out);
                None
            }
        })
    }

    fn negotiate(&mut self, offer: &Offer, out: &mut Vec<u8>) -> Event {
        self.end_message();
        self.macros.clear();
        self.phase = Phase::Idle;
        let (terms, event) = match self.wanted.agree(offer) {
            _ if self.passing.is_some() => (Terms::pass_through(offer), Event::Negotiated),
            Ok(terms) => (terms, Event::Negotiated),
            Err(error) => {
                self.passing = Some(Unseen::Negotiation);
                (Terms::pass_through(offer), Event::PassingThrough(error))
            }
        };
        let offer = Offer { version: terms.version, actions: terms.actions, protocol: terms.protocol };
        Reply::Negotiate { offer, macros: MacroLists::new(&terms.macros) }.encode(out);
        self.terms = Some(terms);
        event
    }

    fn envelope(&mut self, command: Command<'_>, out: &mut Vec<u8>) {
        match command {
            Command::Connect(connect) => {
                self.end_message();
                self.client = Arc::new(client(&connect));
            }
            Command::Helo(helo) => Arc::make_mut(&mut self.client).helo = helo.to_vec(),
            Command::Mail(path) => self.start(&path),
            Command::Rcpt(path) => {
                self.recipients += 1;
                if let Some(message) = &mut self.message {
                    let taken = message.push_recipient(Path::take(&path), &self.limits.message);
                    self.checked(taken);
                }
            }
            _ => (),
        }
        self.reply(command.code(), Reply::Continue, out);
    }

    fn start(&mut self, sender: &EnvelopePath<'_>) {
        self.drop_message();
        self.phase = Phase::Skipping;
        self.unseen = self.passing;
        if self.passing.is_none() {
            let leading_space = self.terms.as_ref().is_some_and(Terms::leading_space);
            let room = self.limits.answer_room_bytes;
            let client = Arc::clone(&self.client);
            self.message = Some(Box::new(Message::start(client, Path::take(sender), leading_space, room)));
            self.phase = Phase::Collecting;
        }
    }

    fn content(&mut self, command: Command<'_>, out: &mut Vec<u8>) -> Option<Event> {
        self.in_content = self.phase != Phase::Idle;
        let limits = &self.limits.message;
        let mut enough = false;
        let taken = match (&mut self.message, command, self.body_wanted) {
            (None, ..) => return self.let_through(command.code(), out),
            (Some(message), Command::Header { name, value }, _) => message.take_header(name, value, limits),
            (Some(message), Command::Body(piece) | Command::EndOfMessage(piece), Some(wanted)) => {
                enough = message.take_body_up_to(piece, wanted.min(limits.message_bytes));
                Ok(())
            }
            (Some(message), Command::Body(piece) | Command::EndOfMessage(piece), None) => {
                message.take_body(piece, limits)
            }
            (Some(_), ..) => Ok(()),
        };
        self.checked(taken);
        if self.message.is_none() {
            return self.let_through(command.code(), out);
        }
        match command {
            Command::EndOfHeaders if !self.asked => self.ask(false),
            Command::EndOfMessage(_) => self.ask(true),
            Command::Body(_) if enough && self.terms.as_ref().is_some_and(Terms::can_skip) => {
                self.reply(b'B', Reply::Skip, out);
                None
            }
            _ => {
                self.reply(command.code(), Reply::Continue, out);
                None
            }
        }
    }

    /// Turns to the filter: with the headers if it has not seen them, otherwise with the message.
    fn ask(&mut self, ended: bool) -> Option<Event> {
        let message = self.message.as_mut()?;
        message.set_macros(self.macros.iter());
        if !self.asked {
            self.asked = true;
            self.phase = Phase::Asked { ended };
            return Some(Event::Headers);
        }
        self.phase = Phase::Answering;
        self.pending()
    }

    pub(super) fn answer_headers(&mut self, interest: Interest, out: &mut Vec<u8>) {
        let Phase::Asked { ended } = self.phase else { return };
        match (interest, ended) {
            (Interest::Body | Interest::BodyUpTo(_), true) => self.phase = Phase::Answering,
            (Interest::Body | Interest::BodyUpTo(_), false) => {
                self.phase = Phase::Collecting;
                self.body_wanted = if let Interest::BodyUpTo(bytes) = interest { Some(bytes) } else { None };
                self.reply(b'N', Reply::Continue, out);
            }
            (Interest::Accept, _) => {
                self.message = None;
                self.phase = Phase::Skipping;
                self.let_through(if ended { b'E' } else { b'N' }, out);
            }
        }
    }

    pub(super) fn answer(&mut self, answer: &Answer, out: &mut Vec<u8>) -> Result<usize, CannotEdit> {
        let (Phase::Answering, Some(terms)) = (self.phase, &self.terms) else { return Ok(0) };
        let start = out.len();
        let composed = compose(answer, terms, self.limits.answer_room_bytes, out);
        if composed.is_err() {
            out.truncate(start);
            Reply::Accept.encode(out);
        }
        self.end_message();
        composed.map(|()| out.len() - start)
    }

    pub(super) fn progress(&self, out: &mut Vec<u8>) {
        if self.phase == Phase::Answering {
            Reply::Progress.encode(out);
        }
    }

    pub(super) fn give_up(&mut self, why: Unseen) -> bool {
        if self.phase != Phase::Collecting {
            return false;
        }
        self.unseen = Some(why);
        self.message = None;
        self.phase = Phase::Skipping;
        true
    }

    /// Forgets the current message and all that belongs to it; whether there was one.
    fn end_message(&mut self) -> bool {
        self.macros.clear_message();
        self.drop_message()
    }

    /// Forgets the current message. Its macros stay: those of the next MAIL came before it.
    fn drop_message(&mut self) -> bool {
        let open = !matches!(self.phase, Phase::Idle | Phase::Start | Phase::Closed);
        self.message = None;
        self.in_content = false;
        self.asked = false;
        self.body_wanted = None;
        self.unseen = None;
        self.recipients = 0;
        if open {
            self.phase = Phase::Idle;
        }
        open
    }

    /// Gives up a message that passed a limit.
    fn checked(&mut self, taken: Result<(), Unseen>) {
        if let Err(why) = taken {
            self.give_up(why);
        }
    }

    /// Accepts the message if the MTA waits for a reply: it then sends no more of it.
    fn let_through(&mut self, code: u8, out: &mut Vec<u8>) -> Option<Event> {
        if !self.reply(code, Reply::Accept, out) {
            return None;
        }
        let event = self.unseen.map(|why| {
            let queue_id = self.queue_id().unwrap_or_default().to_vec();
            Event::LetThrough(LetThrough { why, queue_id, recipients: self.recipients })
        });
        self.end_message();
        event
    }

    /// Replies if the MTA waits for it; whether it does.
    fn reply(&self, code: u8, reply: Reply<'_>, out: &mut Vec<u8>) -> bool {
        let due = self.terms.as_ref().is_some_and(|terms| terms.reply_due(code));
        if due {
            reply.encode(out);
        }
        due
    }
}

fn client(connect: &Connect<'_>) -> Client {
    Client {
        host: connect.host.to_vec(),
        family: connect.family,
        address: connect.address.to_vec(),
        port: connect.port,
        helo: Vec::new(),
    }
}
