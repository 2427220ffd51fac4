//! What the edits of a filter make of a mail.
//!
//! - Layer: decision
//! - Takes: a mail, edit replies in order, the final reply.
//! - Gives: the mail as Postfix would queue it.
//! - On failure: [`EditError`]; Postfix would drop the connection and apply its default action.
//! - See: Postfix `src/cleanup/cleanup_milter.c`, `src/milter/milter8.c`

use alloc::vec::Vec;

use super::mail::{Field, Mail, Mailbox};
use crate::wire::{Actions, Reply};

/// Applies edits to a mail.
#[derive(Debug)]
pub struct Editor {
    mail: Mail,
    actions: Actions,
    leading_space: bool,
    /// Where the MTA's own `Received:` stands, which the filter does not see.
    own: usize,
    body: Body,
    quarantine: Option<Vec<u8>>,
    edits: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Body {
    Original,
    Open(Vec<u8>),
    Replaced(Vec<u8>),
}

/// Why an edit is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EditError {
    /// The action was not agreed on. (Postfix lets this pass; other MTAs do not.)
    #[error("edit {code:#04x} without {missing}")]
    NotAgreed {
        /// The code of the reply.
        code: u8,
        /// What it needs.
        missing: Actions,
    },
    /// A body replacement began again after another reply.
    #[error("the new body came in two runs")]
    BodyInTwoRuns,
    /// A header without a name, or an index out of range.
    #[error("bad header edit {code:#04x}")]
    Header {
        /// The code of the reply.
        code: u8,
    },
    /// The reply is no edit.
    #[error("reply {code:#04x} is no edit")]
    NoEdit {
        /// The code of the reply.
        code: u8,
    },
}

impl Editor {
    /// Begins with the mail as received and the terms agreed on.
    #[must_use]
    pub fn new(mail: Mail, actions: Actions, leading_space: bool) -> Self {
        let mut editor =
            Self { mail, actions, leading_space, own: 0, body: Body::Original, quarantine: None, edits: 0 };
        editor.mail.headers.insert(0, Field { name: b"Received".to_vec(), value: b" own".to_vec() });
        editor
    }

    /// Applies one reply; progress counts for nothing.
    ///
    /// # Errors
    /// The MTA would drop the connection.
    pub fn apply(&mut self, reply: &Reply<'_>) -> Result<(), EditError> {
        if let Reply::ReplaceBody(piece) = reply {
            self.agreed(reply.code(), Actions::CHANGE_BODY)?;
            return self.body_piece(piece);
        }
        self.close_body();
        let code = reply.code();
        match reply {
            Reply::Progress => return Ok(()),
            Reply::AddHeader { name, value } => {
                self.agreed(code, Actions::ADD_HEADERS)?;
                let field = self.field(code, name, value)?;
                self.mail.headers.push(field);
            }
            Reply::InsertHeader { index, name, value } => {
                self.agreed(code, Actions::ADD_HEADERS)?;
                self.insert(code, *index, name, value)?;
            }
            Reply::ChangeHeader { index, name, value } => {
                self.agreed(code, Actions::CHANGE_HEADERS)?;
                self.change(code, *index, name, value)?;
            }
            Reply::AddRecipient(address) => {
                self.agreed(code, Actions::ADD_RECIPIENTS)?;
                self.mail.recipients.push(Mailbox::new(*address));
            }
            Reply::AddRecipientWithArgs { address, args } => {
                self.agreed(code, Actions::ADD_RECIPIENTS_WITH_ARGS)?;
                self.mail.recipients.push(mailbox(address, args));
            }
            Reply::DeleteRecipient(address) => {
                self.agreed(code, Actions::DELETE_RECIPIENTS)?;
                let gone = Mailbox::new(*address);
                self.mail.recipients.retain(|recipient| recipient.bare() != gone.bare());
            }
            Reply::ChangeSender { address, args } => {
                self.agreed(code, Actions::CHANGE_SENDER)?;
                self.mail.sender = mailbox(address, args);
            }
            Reply::Quarantine(reason) => {
                self.agreed(code, Actions::QUARANTINE)?;
                self.quarantine = Some(reason.to_vec());
            }
            _ => return Err(EditError::NoEdit { code }),
        }
        self.edits += 1;
        Ok(())
    }

    /// How many edits there were; a body counts once.
    #[must_use]
    pub const fn edits(&self) -> usize {
        self.edits
    }

    /// The mail as edited, and why it is to be held, if it is.
    #[must_use]
    pub fn finish(mut self) -> (Mail, Option<Vec<u8>>) {
        self.close_body();
        if let Body::Replaced(body) = self.body {
            self.mail.body = body;
        }
        self.mail.headers.remove(self.own);
        (self.mail, self.quarantine)
    }

    fn agreed(&self, code: u8, needed: Actions) -> Result<(), EditError> {
        let missing = needed - self.actions;
        if missing.is_empty() { Ok(()) } else { Err(EditError::NotAgreed { code, missing }) }
    }

    fn field(&self, code: u8, name: &[u8], value: &[u8]) -> Result<Field, EditError> {
        if name.is_empty() {
            return Err(EditError::Header { code });
        }
        let mut whole = Vec::with_capacity(value.len() + 1);
        if !self.leading_space {
            whole.push(b' ');
        }
        whole.extend_from_slice(value);
        Ok(Field { name: name.to_vec(), value: whole })
    }

    fn insert(&mut self, code: u8, index: u32, name: &[u8], value: &[u8]) -> Result<(), EditError> {
        let field = self.field(code, name, value)?;
        let index = usize::try_from(index).unwrap_or(usize::MAX).min(self.mail.headers.len());
        if index <= self.own {
            self.own += 1;
        }
        self.mail.headers.insert(index, field);
        Ok(())
    }

    fn change(&mut self, code: u8, index: u32, name: &[u8], value: &[u8]) -> Result<(), EditError> {
        let field = self.field(code, name, value)?;
        let nth = usize::try_from(index.max(1)).unwrap_or(usize::MAX);
        let own = self.own;
        let found = self
            .mail
            .headers
            .iter()
            .enumerate()
            .filter(|(position, found)| *position != own && found.name.eq_ignore_ascii_case(name))
            .map(|(position, _)| position)
            .nth(nth - 1);
        match (found, value.is_empty()) {
            (Some(position), true) => {
                self.mail.headers.remove(position);
                if position < self.own {
                    self.own -= 1;
                }
            }
            (Some(position), false) => {
                if let Some(old) = self.mail.headers.get_mut(position) {
                    *old = field;
                }
            }
            (None, true) => (),
            (None, false) => self.mail.headers.push(field),
        }
        Ok(())
    }

    fn body_piece(&mut self, piece: &[u8]) -> Result<(), EditError> {
        match &mut self.body {
            Body::Original => {
                self.edits += 1;
                self.body = Body::Open(piece.to_vec());
            }
            Body::Open(body) => body.extend_from_slice(piece),
            Body::Replaced(_) => return Err(EditError::BodyInTwoRuns),
        }
        Ok(())
    }

    fn close_body(&mut self) {
        match core::mem::replace(&mut self.body, Body::Original) {
            Body::Open(body) => {
                let mut body = super::mail::with_crlf(&body);
                if body.last().is_some_and(|last| *last != b'\n') {
                    body.extend_from_slice(b"\r\n");
                }
                self.body = Body::Replaced(body);
            }
            other => self.body = other,
        }
    }
}

fn mailbox(address: &[u8], args: &[u8]) -> Mailbox {
    let args = args.split(|byte| *byte == b' ').filter(|arg| !arg.is_empty()).map(<[u8]>::to_vec).collect();
    Mailbox { address: address.to_vec(), args }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use alloc::string::String;
    use alloc::vec;

    use super::*;

    fn editor() -> Editor {
        let text = b"X: 1\nReceived: before\nX: 2\nX: 3\n\nold\n";
        let mail = Mail::parse(Mailbox::new("<a@b>"), vec![Mailbox::new("<c@d>")], text);
        Editor::new(mail, Actions::VERSION_6, false)
    }

    fn text(editor: Editor) -> String {
        String::from_utf8(editor.finish().0.to_bytes()).unwrap()
    }

    #[test]
    fn edits_act_at_once() {
        let mut editor = editor();
        editor.apply(&Reply::ChangeHeader { index: 1, name: b"x", value: b"" }).unwrap();
        editor.apply(&Reply::ChangeHeader { index: 2, name: b"x", value: b"new" }).unwrap();
        editor.apply(&Reply::ChangeHeader { index: 3, name: b"x", value: b"appended" }).unwrap();
        editor.apply(&Reply::ChangeHeader { index: 1, name: b"Received", value: b"seen" }).unwrap();
        assert_eq!(text(editor), "Received: seen\r\nX: 2\r\nx: new\r\nx: appended\r\n\r\nold\r\n");
    }

    #[test]
    fn insertions_count_the_hidden_header() {
        let mut editor = editor();
        for (index, value) in [(0, b"top"), (1, b"two"), (99, b"end")] {
            editor.apply(&Reply::InsertHeader { index, name: b"I", value }).unwrap();
        }
        let (mail, _) = editor.finish();
        let values: Vec<_> = mail.headers.iter().map(|field| field.value.as_slice()).collect();
        assert_eq!(values, [b" top".as_slice(), b" two", b" 1", b" before", b" 2", b" 3", b" end"]);
    }

    #[test]
    fn a_body_comes_in_one_run() {
        let mut editor = editor();
        editor.apply(&Reply::ReplaceBody(b"new\r")).unwrap();
        editor.apply(&Reply::ReplaceBody(b"\nend")).unwrap();
        editor.apply(&Reply::Progress).unwrap();
        assert_eq!(editor.apply(&Reply::ReplaceBody(b"")), Err(EditError::BodyInTwoRuns));
        assert_eq!(editor.edits(), 1);
        assert!(text(editor).ends_with("\r\n\r\nnew\r\nend\r\n"));
    }

    #[test]
    fn the_envelope_changes() {
        let mut editor = editor();
        editor.apply(&Reply::DeleteRecipient(b"c@d")).unwrap();
        editor.apply(&Reply::AddRecipientWithArgs { address: b"<e@f>", args: b"NOTIFY=NEVER" }).unwrap();
        editor.apply(&Reply::ChangeSender { address: b"<>", args: b"" }).unwrap();
        editor.apply(&Reply::Quarantine(b"why")).unwrap();
        let (mail, quarantine) = editor.finish();
        assert_eq!(mail.sender, Mailbox::new("<>"));
        assert_eq!(
            mail.recipients,
            [Mailbox { address: b"<e@f>".to_vec(), args: vec![b"NOTIFY=NEVER".to_vec()] }]
        );
        assert_eq!(quarantine.unwrap(), b"why");
    }

    #[test]
    fn only_what_was_agreed() {
        let mut editor = Editor::new(Mail::default(), Actions::NONE, false);
        let error = editor.apply(&Reply::AddRecipient(b"a")).unwrap_err();
        assert_eq!(error, EditError::NotAgreed { code: b'+', missing: Actions::ADD_RECIPIENTS });
    }
}
