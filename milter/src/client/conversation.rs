//! What an MTA sends, and whether it waits.
//!
//! - Layer: decision
//! - Takes: the offer, the filter's reply to it, the replies that end a kind of command or a message.
//! - Gives: for each command whether it is sent, and whether a reply is awaited.
//! - On failure: [`OfferError`] for a filter that takes what was not offered.
//! - See: Postfix `src/milter/milter8.c`, `milter8_connect` and `milter8_event`

use alloc::vec::Vec;

use crate::wire::{Actions, MacroLists, MacroStage, Offer, Protocol, Reply};

/// What to do about a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// Nothing.
    Nothing,
    /// Macros only.
    MacrosOnly,
    /// Macros and command, without waiting.
    NoReply,
    /// Macros and command, then wait for a reply.
    Reply,
}

/// Why an MTA drops a filter at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OfferError {
    /// A newer version than offered.
    #[error("the filter speaks version {version}, newer than {offered}")]
    Version {
        /// The filter's version.
        version: u32,
        /// The MTA's version.
        offered: u32,
    },
    /// Actions that were not offered.
    #[error("the filter takes {extra}, which was not offered")]
    Actions {
        /// What was not offered.
        extra: Actions,
    },
}

/// The state of a conversation with a filter.
#[derive(Debug, Clone)]
pub struct Conversation {
    agreed: Offer,
    macros: Option<Vec<(u32, Vec<u8>)>>,
    session_over: bool,
    message_over: bool,
    skipped: Option<u8>,
}

impl Conversation {
    /// Begins with the MTA's offer and the filter's reply to it.
    ///
    /// # Errors
    /// The filter takes what was not offered.
    pub fn new(offer: &Offer, reply: &Offer, macros: MacroLists<'_>) -> Result<Self, OfferError> {
        if reply.version > offer.version {
            return Err(OfferError::Version { version: reply.version, offered: offer.version });
        }
        let extra = reply.actions - offer.actions;
        if !extra.is_empty() {
            return Err(OfferError::Actions { extra });
        }
        let macros: Vec<_> = macros.iter().map(|(stage, list)| (stage, list.to_vec())).collect();
        Ok(Self {
            agreed: *reply,
            macros: (!macros.is_empty()).then_some(macros),
            session_over: false,
            message_over: false,
            skipped: None,
        })
    }

    /// What the filter takes.
    #[must_use]
    pub const fn agreed(&self) -> &Offer {
        &self.agreed
    }

    /// Whether a macro goes with a stage: all do unless the filter asked for lists.
    #[must_use]
    pub fn macro_wanted(&self, stage: MacroStage, name: &[u8]) -> bool {
        let Some(lists) = &self.macros else { return true };
        let number = stage.number();
        let mut names = lists
            .iter()
            .filter(|(stage, _)| *stage == number)
            .flat_map(|(_, list)| list.split(u8::is_ascii_whitespace));
        names.any(|wanted| wanted == name)
    }

    /// Whether the filter has ended the session, or the current message.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.session_over || self.message_over
    }

    /// What to do about the command with this code.
    pub fn sending(&mut self, code: u8) -> Sending {
        match code {
            b'O' | b'D' | b'A' | b'Q' | b'K' => return Sending::NoReply,
            _ if self.session_over || self.message_over => return Sending::Nothing,
            _ => (),
        }
        if self.skipped == Some(code) {
            return Sending::Nothing;
        }
        self.skipped = None;
        let (left_out, silent) = flags(code);
        let has = |flag: Protocol| !flag.is_empty() && self.agreed.protocol.contains(flag);
        if has(left_out) {
            return Sending::MacrosOnly;
        }
        if has(silent) { Sending::NoReply } else { Sending::Reply }
    }

    /// Takes a final reply to the command with this code.
    pub const fn replied(&mut self, code: u8, reply: &Reply<'_>) {
        let connecting = matches!(code, b'C' | b'H');
        match reply {
            Reply::Skip => self.skipped = Some(code),
            Reply::Accept | Reply::Reject | Reply::TempFail | Reply::ReplyCode(_) if connecting => {
                self.session_over = true;
            }
            Reply::Accept | Reply::Discard => self.message_over = true,
            // A refused recipient does not end the message.
            Reply::Reject | Reply::TempFail | Reply::ReplyCode(_) if code != b'R' && code != b'U' => {
                self.message_over = true;
            }
            Reply::Shutdown => self.session_over = true,
            _ => (),
        }
    }

    /// The message is over, the next may begin.
    pub const fn end_message(&mut self) {
        self.message_over = false;
    }
}

/// The flags that leave a command out, and its reply.
const fn flags(code: u8) -> (Protocol, Protocol) {
    match code {
        b'C' => (Protocol::NO_CONNECT, Protocol::NO_REPLY_CONNECT),
        b'H' => (Protocol::NO_HELO, Protocol::NO_REPLY_HELO),
        b'M' => (Protocol::NO_MAIL, Protocol::NO_REPLY_MAIL),
        b'R' => (Protocol::NO_RCPT, Protocol::NO_REPLY_RCPT),
        b'T' => (Protocol::NO_DATA, Protocol::NO_REPLY_DATA),
        b'U' => (Protocol::NO_UNKNOWN, Protocol::NO_REPLY_UNKNOWN),
        b'L' => (Protocol::NO_HEADERS, Protocol::NO_REPLY_HEADER),
        b'N' => (Protocol::NO_END_OF_HEADERS, Protocol::NO_REPLY_END_OF_HEADERS),
        b'B' => (Protocol::NO_BODY, Protocol::NO_REPLY_BODY),
        _ => (Protocol::NONE, Protocol::NONE),
    }
}
