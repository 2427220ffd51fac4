//! An MTA's client: sends mail through a filter as Postfix does.
//!
//! - Layer: edge
//! - Takes: a stream, mail.
//! - Gives: what the filter says, and the mail as edited; or, command by command, each reply.
//! - On failure: [`ClientError`], where Postfix would drop the connection and apply its default action.
//! - Limits: frames of 1 MiB; no timeouts of its own.
//! - See: Postfix `src/milter/milter8.c`

use std::io;
use std::vec::Vec;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::client::{
    Conversation, Delivery, EditError, Editor, Mail, Mailbox, OfferError, Outcome, Sending, refusal,
};
use crate::session::inbox::Inbox;
use crate::wire::{
    Command, Connect, DEFAULT_FRAME_LIMIT_BYTES, EnvelopePath, Family, FrameError, MacroPairs, MacroStage,
    Offer, Reply, ReplyError, Texts,
};

/// Who the MTA's client is, as told to the filter.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// Its name, or its address in brackets.
    pub host: Vec<u8>,
    /// The kind of address.
    pub family: Family,
    /// Its address.
    pub address: Vec<u8>,
    /// Its port.
    pub port: u16,
    /// Its name in HELO.
    pub helo: Vec<u8>,
}

impl Default for Peer {
    /// What Postfix tells of mail that did not come by SMTP.
    fn default() -> Self {
        Self {
            host: b"localhost".to_vec(),
            family: Family::Inet,
            address: b"127.0.0.1".to_vec(),
            port: 0,
            helo: b"localhost".to_vec(),
        }
    }
}

/// Why a filter can't be used any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The connection broke.
    #[error("connection to the filter")]
    Io(#[from] io::Error),
    /// The filter closed the connection.
    #[error("the filter closed the connection")]
    Closed,
    /// No frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// No reply.
    #[error(transparent)]
    Reply(#[from] ReplyError),
    /// It takes what was not offered.
    #[error(transparent)]
    Offer(#[from] OfferError),
    /// An edit that can't be applied.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// A reply that has no place here.
    #[error("reply {reply:#04x} to command {command:#04x}")]
    Unexpected {
        /// The reply's code.
        reply: u8,
        /// The command's code.
        command: u8,
    },
}

/// A connection to a filter.
#[derive(Debug)]
pub struct Client<S> {
    stream: S,
    inbox: Inbox,
    out: Vec<u8>,
    conversation: Conversation,
    queue_id: Vec<u8>,
    /// The SMTP reply, or nothing, with which the filter ended session or message.
    refusal: Option<Outcome>,
    /// Recipients of the current mail that the filter refused.
    refused: Vec<Mailbox>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// Negotiates.
    ///
    /// # Errors
    /// The filter does not answer, or takes what is not offered.
    pub async fn negotiate(stream: S, offer: &Offer) -> Result<Self, ClientError> {
        let nothing = Offer { version: 0, actions: crate::wire::Actions::NONE, ..*offer };
        let empty = crate::wire::MacroLists::new(&[]);
        let mut client = Self {
            stream,
            inbox: Inbox::new(DEFAULT_FRAME_LIMIT_BYTES),
            out: Vec::new(),
            conversation: Conversation::new(offer, &nothing, empty)?,
            queue_id: Vec::new(),
            refusal: None,
            refused: Vec::new(),
        };
        Command::Negotiate(*offer).encode(&mut client.out);
        client.flush().await?;
        let conversation = client
            .reply(|reply| match reply {
                Reply::Negotiate { offer: taken, macros } => Ok(Conversation::new(offer, taken, *macros)?),
                other => Err(ClientError::Unexpected { reply: other.code(), command: b'O' }),
            })
            .await?;
        client.conversation = conversation;
        Ok(client)
    }

    /// What the filter takes of the offer.
    #[must_use]
    pub const fn agreed(&self) -> &Offer {
        self.conversation.agreed()
    }

    /// Tells of the MTA's client.
    ///
    /// # Errors
    /// The filter breaks the protocol, or off.
    pub async fn open(&mut self, peer: &Peer) -> Result<(), ClientError> {
        let Peer { host, family, address, port, helo } = peer;
        let connect = Connect { host, family: *family, port: *port, address };
        self.command(&Command::Connect(connect)).await?;
        self.command(&Command::Helo(helo)).await
    }

    /// Sends a mail and applies the filter's edits. `queue_id` is given from DATA on, as in Postfix.
    ///
    /// # Errors
    /// The filter breaks the protocol, or off: the mail is then as it was.
    pub async fn send(&mut self, mail: &Mail, queue_id: &str) -> Result<Delivery, ClientError> {
        self.queue_id.clear();
        self.envelope(mail).await?;
        self.send_content(mail, queue_id).await
    }

    /// Sends all that follows the envelope, and applies the filter's edits.
    ///
    /// # Errors
    /// The filter breaks the protocol, or off: the mail is then as it was.
    pub async fn send_content(&mut self, mail: &Mail, queue_id: &str) -> Result<Delivery, ClientError> {
        self.queue_id = queue_id.as_bytes().to_vec();
        self.command(&Command::Data).await?;
        // smtpd(8) hands the connection over to cleanup(8) here.
        self.flush().await?;
        self.content(mail).await?;
        let delivery = self.end(mail).await?;
        // The verdict stands, even if the filter has gone since.
        let _ = self.abort().await;
        Ok(delivery)
    }

    /// Sends envelope and content, but not the end, of a mail.
    ///
    /// # Errors
    /// The filter breaks the protocol, or off.
    pub async fn envelope(&mut self, mail: &Mail) -> Result<(), ClientError> {
        let args = Texts::join(&mail.sender.args);
        self.command(&Command::Mail(path(&mail.sender, &args))).await?;
        self.refused.clear();
        for recipient in &mail.recipients {
            let args = Texts::join(&recipient.args);
            self.command(&Command::Rcpt(path(recipient, &args))).await?;
            if let Some(Outcome::Refused(_)) = self.refusal.take_if(|_| !self.conversation.is_over()) {
                self.refused.push(recipient.clone());
            }
        }
        Ok(())
    }

    /// Sends headers and body.
    ///
    /// # Errors
    /// The filter breaks the protocol, or off.
    pub async fn content(&mut self, mail: &Mail) -> Result<(), ClientError> {
        let leading_space = self.agreed().protocol.contains(crate::wire::Protocol::LEADING_SPACE);
        for field in &mail.headers {
            let value = field.value.as_slice();
            let eaten = if leading_space { value } else { value.strip_prefix(b" ").unwrap_or(value) };
            self.command(&Command::Header { name: &field.name, value: eaten }).await?;
        }
        self.command(&Command::EndOfHeaders).await?;
        for piece in mail.body.chunks(self.agreed().protocol.body_chunk_bytes()) {
            self.command(&Command::Body(piece)).await?;
        }
        Ok(())
    }

    /// Ends a mail and applies the edits.
    ///
    /// # Errors
    /// The filter breaks the protocol, or off.
    pub async fn end(&mut self, mail: &Mail) -> Result<Delivery, ClientError> {
        let agreed = self.conversation.agreed();
        let leading_space = agreed.protocol.contains(crate::wire::Protocol::LEADING_SPACE);
        let mut mail = mail.clone();
        mail.recipients.retain(|recipient| !self.refused.contains(recipient));
        let mut editor = Editor::new(mail.clone(), agreed.actions, leading_space);
        if self.put(&Command::EndOfMessage(&[])) == Sending::Reply {
            self.flush().await?;
            while !self.edit(&mut editor).await? {}
        }
        // Who refuses the session refuses all its mail.
        let over = self.conversation.is_session_over();
        let refusal = if over { self.refusal.clone() } else { self.refusal.take() };
        let outcome = refusal.unwrap_or(Outcome::Accepted);
        let edits = editor.edits();
        if outcome != Outcome::Accepted {
            return Ok(Delivery { outcome, mail, quarantine: None, edits });
        }
        let (mail, quarantine) = editor.finish();
        Ok(Delivery { outcome, mail, quarantine, edits })
    }

    /// Aborts the mail, as smtpd(8) does after every one.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn abort(&mut self) -> Result<(), ClientError> {
        Command::Abort.encode(&mut self.out);
        self.conversation.end_message();
        self.flush().await
    }

    /// Ends the connection.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn quit(mut self) -> Result<(), ClientError> {
        Command::Quit.encode(&mut self.out);
        self.flush().await
    }

    /// Ends the SMTP session, but not the connection. Postfix never does this.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn quit_new_connection(&mut self) -> Result<(), ClientError> {
        Command::QuitNewConnection.encode(&mut self.out);
        self.conversation.end_message();
        self.flush().await
    }

    /// The stream, for tests that misbehave.
    pub const fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Sends one command with its macros, unless the filter wants none of it, and waits for its reply, if one is due.
    ///
    /// # Errors
    /// The filter breaks the protocol, or off.
    pub async fn command(&mut self, command: &Command<'_>) -> Result<(), ClientError> {
        if self.put(command) != Sending::Reply {
            return Ok(());
        }
        self.flush().await?;
        let code = command.code();
        loop {
            let (reply, outcome) = self
                .reply(|reply| match reply {
                    Reply::Progress => Ok((None, None)),
                    Reply::Continue => Ok((Some(Reply::Continue), None)),
                    Reply::Accept => Ok((Some(Reply::Accept), None)),
                    Reply::Skip => Ok((Some(Reply::Skip), None)),
                    Reply::Discard if matches!(code, b'C' | b'H') => Ok((Some(Reply::Continue), None)),
                    Reply::Discard => Ok((Some(Reply::Discard), Some(Outcome::Discarded))),
                    Reply::Shutdown => Ok((Some(Reply::Shutdown), refusal(reply))),
                    other => match refusal(other) {
                        Some(outcome) => Ok((Some(Reply::Reject), Some(outcome))),
                        None => Err(ClientError::Unexpected { reply: other.code(), command: code }),
                    },
                })
                .await?;
            if let Some(reply) = reply {
                self.conversation.replied(code, &reply);
                self.refusal = outcome.or(self.refusal.take());
                return Ok(());
            }
        }
    }

    /// Takes one reply to the end of a message; whether it was the last.
    async fn edit(&mut self, editor: &mut Editor) -> Result<bool, ClientError> {
        let outcome = self
            .reply(|reply| {
                if let Some(outcome) = refusal(reply) {
                    return Ok(Some(outcome));
                }
                match reply {
                    Reply::Accept | Reply::Continue => Ok(Some(Outcome::Accepted)),
                    edit => {
                        editor.apply(edit)?;
                        Ok(None)
                    }
                }
            })
            .await?;
        let over = outcome.is_some();
        self.refusal = outcome;
        Ok(over)
    }

    fn put(&mut self, command: &Command<'_>) -> Sending {
        let sending = self.conversation.sending(command.code());
        if sending == Sending::Nothing {
            return sending;
        }
        let pairs = self.macros(command);
        Command::Macros { stage: command.code(), pairs: MacroPairs::new(&pairs) }.encode(&mut self.out);
        if sending != Sending::MacrosOnly {
            command.encode(&mut self.out);
        }
        sending
    }

    /// The macros that Postfix sends with a command by default.
    fn macros(&self, command: &Command<'_>) -> Vec<u8> {
        let (stage, pairs): (_, Vec<(&str, &[u8])>) = match command {
            Command::Connect(_) => (
                MacroStage::Connect,
                [
                    ("j", b"mta.example.org".as_slice()),
                    ("{daemon_name}", b"mta.example.org"),
                    ("{daemon_addr}", b"127.0.0.1"),
                    ("v", b"Postfix 3.7.11"),
                    ("_", b"localhost [127.0.0.1]"),
                ]
                .to_vec(),
            ),
            Command::Helo(_) => (MacroStage::Helo, Vec::new()),
            Command::Mail(path) => (
                MacroStage::Mail,
                [("i", self.queue_id.as_slice()), ("{mail_addr}", path.address), ("{mail_mailer}", b"smtp")]
                    .to_vec(),
            ),
            Command::Rcpt(path) => (
                MacroStage::Rcpt,
                [("i", self.queue_id.as_slice()), ("{rcpt_addr}", path.address), ("{rcpt_mailer}", b"smtp")]
                    .to_vec(),
            ),
            Command::Data => (MacroStage::Data, [("i", self.queue_id.as_slice())].to_vec()),
            Command::Header { .. } | Command::EndOfHeaders => {
                (MacroStage::EndOfHeaders, [("i", self.queue_id.as_slice())].to_vec())
            }
            _ => (MacroStage::EndOfMessage, [("i", self.queue_id.as_slice())].to_vec()),
        };
        let wanted = |name: &str| self.conversation.macro_wanted(stage, name.as_bytes());
        let sent: Vec<_> =
            pairs.into_iter().filter(|(name, value)| !value.is_empty() && wanted(name)).collect();
        MacroPairs::join(&sent)
    }

    /// Writes what waits. Commands without a reply wait until one with a reply, or the end of the envelope.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn flush(&mut self) -> Result<(), ClientError> {
        self.stream.write_all(&self.out).await?;
        self.out.clear();
        Ok(())
    }

    /// Reads one reply.
    async fn reply<T>(
        &mut self,
        take: impl FnOnce(&Reply<'_>) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        while !self.inbox.has_frame()? {
            let room = self.inbox.room();
            let count = self.stream.read(room).await?;
            if count == 0 {
                return Err(ClientError::Closed);
            }
            self.inbox.filled(count);
        }
        let Some(frame) = self.inbox.frame()? else { return Err(ClientError::Closed) };
        take(&Reply::decode(frame)?)
    }
}

fn path<'a>(mailbox: &'a Mailbox, args: &'a [u8]) -> EnvelopePath<'a> {
    EnvelopePath { address: &mailbox.address, args: Texts::new(args) }
}
