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
#[non_exhaustive]
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
#[non_exhaustive]
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

    /// Whether the filter has ended the session.
    #[must_use]
    pub const fn is_session_over(&self) -> bool {
        self.session_over
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
            // There is nothing to discard yet: Postfix warns, and goes on.
            Reply::Discard if connecting => (),
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    fn taking(protocol: Protocol) -> Conversation {
        let reply = Offer { protocol, ..Offer::POSTFIX };
        Conversation::new(&Offer::POSTFIX, &reply, MacroLists::new(&[])).unwrap()
    }

    #[test]
    fn a_filter_that_takes_what_was_not_offered_is_dropped() {
        let offer = Offer { version: 6, actions: Actions::ADD_HEADERS, protocol: Protocol::NONE };
        let begin = |reply: &Offer| Conversation::new(&offer, reply, MacroLists::new(&[])).map(drop);
        assert_eq!(begin(&Offer { version: 2, actions: Actions::NONE, ..offer }), Ok(()));
        let newer = begin(&Offer { version: 7, ..offer }).unwrap_err();
        assert_eq!(newer, OfferError::Version { version: 7, offered: 6 });
        assert_eq!(newer.to_string(), "the filter speaks version 7, newer than 6");
        let more =
            begin(&Offer { actions: Actions::ADD_HEADERS | Actions::CHANGE_BODY, ..offer }).unwrap_err();
        assert_eq!(more, OfferError::Actions { extra: Actions::CHANGE_BODY });
    }

    #[test]
    fn flags_leave_out_commands_and_replies() {
        let commands = *b"CHMRTULNBE";
        let mut all = taking(Protocol::NONE);
        assert!(commands.iter().all(|code| all.sending(*code) == Sending::Reply));
        let leaving = Protocol::NO_CONNECT
            | Protocol::NO_HELO
            | Protocol::NO_MAIL
            | Protocol::NO_RCPT
            | Protocol::NO_DATA
            | Protocol::NO_UNKNOWN
            | Protocol::NO_HEADERS
            | Protocol::NO_END_OF_HEADERS
            | Protocol::NO_BODY;
        let silent = Protocol::NO_REPLY_CONNECT
            | Protocol::NO_REPLY_HELO
            | Protocol::NO_REPLY_MAIL
            | Protocol::NO_REPLY_RCPT
            | Protocol::NO_REPLY_DATA
            | Protocol::NO_REPLY_UNKNOWN
            | Protocol::NO_REPLY_HEADER
            | Protocol::NO_REPLY_END_OF_HEADERS
            | Protocol::NO_REPLY_BODY;
        for (protocol, sending) in [
            (leaving, Sending::MacrosOnly),
            (silent, Sending::NoReply),
            (leaving | silent, Sending::MacrosOnly),
        ] {
            let mut conversation = taking(protocol);
            for code in commands {
                let expected = if code == b'E' { Sending::Reply } else { sending };
                assert_eq!(conversation.sending(code), expected, "{}", char::from(code));
            }
        }
    }

    #[test]
    fn replies_end_a_kind_of_command_a_message_or_the_session() {
        let mut conversation = taking(Protocol::NONE);
        conversation.replied(b'B', &Reply::Skip);
        assert_eq!(conversation.sending(b'B'), Sending::Nothing);
        assert_eq!(conversation.sending(b'E'), Sending::Reply);
        assert_eq!(conversation.sending(b'B'), Sending::Reply, "of the next message");

        conversation.replied(b'R', &Reply::Reject);
        conversation.replied(b'U', &Reply::TempFail);
        assert!(!conversation.is_over(), "a recipient or a command was refused, no message");
        for (code, reply) in
            [(b'M', Reply::Accept), (b'L', Reply::Discard), (b'T', Reply::Reject), (b'N', Reply::TempFail)]
        {
            conversation.replied(code, &reply);
            assert!(conversation.is_over() && !conversation.is_session_over(), "{reply:?}");
            assert_eq!(conversation.sending(b'E'), Sending::Nothing);
            assert_eq!(conversation.sending(b'A'), Sending::NoReply, "it hears of the end");
            conversation.end_message();
            assert_eq!(conversation.sending(b'M'), Sending::Reply);
        }

        let ends = [
            (b'C', Reply::Accept),
            (b'H', Reply::Accept),
            (b'C', Reply::Reject),
            (b'H', Reply::ReplyCode(b"550 5.7.1 no")),
            (b'M', Reply::Shutdown),
        ];
        for (code, reply) in ends {
            let mut conversation = taking(Protocol::NONE);
            conversation.replied(code, &reply);
            conversation.end_message();
            assert!(conversation.is_session_over(), "{reply:?}");
            assert_eq!(conversation.sending(b'M'), Sending::Nothing, "{reply:?}");
            assert_eq!(conversation.sending(b'Q'), Sending::NoReply);
        }
        let mut conversation = taking(Protocol::NONE);
        conversation.replied(b'C', &Reply::Discard);
        assert!(!conversation.is_over(), "there is nothing to discard yet");
    }

    #[test]
    fn macros_are_those_asked_for() {
        assert!(taking(Protocol::NONE).macro_wanted(MacroStage::Mail, b"i"), "all, unless lists were sent");
        let lists = MacroLists::join(&[(MacroStage::EndOfHeaders, "i {auth_type}")]);
        let conversation =
            Conversation::new(&Offer::POSTFIX, &Offer::POSTFIX, MacroLists::new(&lists)).unwrap();
        assert!(conversation.macro_wanted(MacroStage::EndOfHeaders, b"{auth_type}"));
        assert!(!conversation.macro_wanted(MacroStage::EndOfHeaders, b"j"));
        assert!(!conversation.macro_wanted(MacroStage::Mail, b"i"), "no list, no macros");
    }
}
