//! One message as the MTA showed it.
//!
//! - Layer: word
//! - Takes: the commands of one message; or parts, for tests of a handler.
//! - Gives: envelope, macros, headers in order and as received, body.
//! - On failure: nothing can fail.
//! - Limits: [`MessageLimits`], watched by the session.
//! - See: Postfix hides its own first `Received:` header; Sendmail 8 semantics of header positions count without it

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use crate::wire::{EnvelopePath, Family, MacroPairs, Texts};

/// What one message may hold. Beyond any of these it goes through unmodified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MessageLimits {
    /// Headers and body together, in bytes. Default 64 MiB.
    pub message_bytes: usize,
    /// Names and values of all headers together, in bytes. Default 1 MiB.
    pub header_bytes: usize,
    /// The number of headers. Default 2,000.
    pub headers: usize,
    /// The number of recipients. Default 50,000.
    pub recipients: usize,
}

impl Default for MessageLimits {
    fn default() -> Self {
        Self { message_bytes: 64 << 20, header_bytes: 1 << 20, headers: 2_000, recipients: 50_000 }
    }
}

/// A piece of a body that is as long is not the last one: Postfix sends pieces of this size, and a rest.
const WHOLE_PIECE_BYTES: usize = 65_535;

/// Why a message is let through without the filter having seen it whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unseen {
    /// [`MessageLimits::message_bytes`].
    MessageBytes,
    /// [`MessageLimits::header_bytes`].
    HeaderBytes,
    /// [`MessageLimits::headers`].
    Headers,
    /// [`MessageLimits::recipients`].
    Recipients,
    /// The memory of all connections together.
    Memory,
    /// The number of connections.
    Connections,
    /// The MTA lacks what the filter requires.
    Negotiation,
    /// The daemon ends.
    Stopping,
}

impl Unseen {
    /// Each of them.
    pub const ALL: &'static [Self] = &[
        Self::MessageBytes,
        Self::HeaderBytes,
        Self::Headers,
        Self::Recipients,
        Self::Memory,
        Self::Connections,
        Self::Negotiation,
        Self::Stopping,
    ];

    /// A word for logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MessageBytes => "message_bytes",
            Self::HeaderBytes => "header_bytes",
            Self::Headers => "headers",
            Self::Recipients => "recipients",
            Self::Memory => "memory",
            Self::Connections => "connections",
            Self::Negotiation => "negotiation",
            Self::Stopping => "stopping",
        }
    }
}

/// The client of the MTA; empty where the filter did not ask for CONNECT and HELO.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Client {
    /// The client's name, or its address in brackets.
    pub host: Vec<u8>,
    /// The kind of address.
    pub family: Family,
    /// The address as text.
    pub address: Vec<u8>,
    /// The port; 0 if unknown.
    pub port: u16,
    /// The name in HELO or EHLO.
    pub helo: Vec<u8>,
}

/// An envelope address with its ESMTP arguments.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Path {
    /// The address as the MTA gave it: Postfix gives mail that came by SMTP with angle brackets, other mail without.
    pub address: Vec<u8>,
    /// ESMTP arguments in wire form.
    args: Vec<u8>,
}

impl Path {
    /// A path without arguments.
    #[must_use]
    pub fn new(address: impl Into<Vec<u8>>) -> Self {
        Self { address: address.into(), args: Vec::new() }
    }

    /// The address without angle brackets; empty for the null sender.
    #[must_use]
    pub fn bare(&self) -> &[u8] {
        let address = self.address.as_slice();
        address.strip_prefix(b"<").and_then(|address| address.strip_suffix(b">")).unwrap_or(address)
    }

    /// ESMTP arguments such as `SIZE=1000`.
    pub fn args(&self) -> impl Iterator<Item = &[u8]> {
        Texts::new(&self.args).iter()
    }

    pub(crate) fn take(path: &EnvelopePath<'_>) -> Self {
        Self { address: path.address.to_vec(), args: path.args.raw().to_vec() }
    }
}

/// One header of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    /// The name, spelled as received.
    pub name: &'a [u8],
    /// The value as received, folds joined by LF. It begins with the blank after the colon if
    /// [`Message::leading_space`].
    pub value: &'a [u8],
}

impl Header<'_> {
    /// Whether the header has this name.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }
}

#[derive(Debug, Clone)]
struct Span {
    name: Range<usize>,
    value: Range<usize>,
}

/// A message: envelope, macros, headers and body.
#[derive(Debug, Clone, Default)]
pub struct Message {
    client: Arc<Client>,
    sender: Path,
    recipients: Vec<Path>,
    /// Addresses and arguments of the recipients, in bytes.
    recipient_bytes: usize,
    macros: Vec<u8>,
    header_text: Vec<u8>,
    headers: Vec<Span>,
    body: Vec<u8>,
    body_cut: bool,
    leading_space: bool,
    answer_room_bytes: Option<usize>,
}

impl Message {
    /// A message from this sender, without anything else: for tests, and to be filled by the `with_` functions.
    #[must_use]
    pub fn new(sender: Path) -> Self {
        Self { sender, ..Self::default() }
    }

    /// Adds a recipient.
    #[must_use]
    pub fn with_recipient(mut self, recipient: Path) -> Self {
        self.recipient_bytes += recipient.address.len() + recipient.args.len();
        self.recipients.push(recipient);
        self
    }

    /// Adds a macro.
    #[must_use]
    pub fn with_macro(mut self, name: &str, value: &[u8]) -> Self {
        self.macros.extend(MacroPairs::join(&[(name.as_bytes(), value)]));
        self
    }

    /// Adds a header, its value without the blank after the colon.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &[u8]) -> Self {
        self.push_header(name.as_bytes(), value);
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn with_body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// The MTA's client.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The envelope sender.
    #[must_use]
    pub const fn sender(&self) -> &Path {
        &self.sender
    }

    /// The recipients, in order.
    #[must_use]
    pub fn recipients(&self) -> &[Path] {
        &self.recipients
    }

    /// The value of a macro, with or without braces in `name`; the one sent last.
    #[must_use]
    pub fn macro_value(&self, name: &str) -> Option<&[u8]> {
        MacroPairs::new(&self.macros).value(name.as_bytes())
    }

    /// The queue id: the macro `i`. Postfix gives it from DATA on, so it is there with the headers.
    #[must_use]
    pub fn queue_id(&self) -> Option<&[u8]> {
        self.macro_value("i")
    }

    /// The headers in order.
    pub fn headers(&self) -> impl DoubleEndedIterator<Item = Header<'_>> + ExactSizeIterator {
        self.headers.iter().map(|span| Header {
            name: self.header_text.get(span.name.clone()).unwrap_or_default(),
            value: self.header_text.get(span.value.clone()).unwrap_or_default(),
        })
    }

    /// The first header of this name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<Header<'_>> {
        self.headers().find(|header| header.is(name))
    }

    /// The body as received: lines end in CRLF, the empty line after the headers is not part of it.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Whether the body is there to its end: not once [`Interest::BodyUpTo`](super::Interest) has been enough.
    #[must_use]
    pub const fn body_is_whole(&self) -> bool {
        !self.body_cut
    }

    /// Takes the body out.
    #[must_use]
    pub fn into_body(self) -> Vec<u8> {
        self.body
    }

    /// Whether header values begin with the blank that followed the colon. If not, the MTA removed one.
    #[must_use]
    pub const fn leading_space(&self) -> bool {
        self.leading_space
    }

    /// How many bytes an answer may have on the wire; `None` for any number. A replaced body takes its own size and 5
    /// bytes for each 65,535 of it, a header its own size and 16 bytes.
    #[must_use]
    pub const fn answer_room_bytes(&self) -> Option<usize> {
        self.answer_room_bytes
    }

    /// Headers, empty line and body as they would be sent: folds and lines end in CRLF.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.content_bytes() + self.headers.len() * 4 + 2);
        for Header { name, value } in self.headers() {
            out.extend_from_slice(name);
            out.push(b':');
            if !self.leading_space {
                out.push(b' ');
            }
            for (position, line) in value.split(|byte| *byte == b'\n').enumerate() {
                if position > 0 {
                    out.extend_from_slice(b"\r\n");
                }
                out.extend_from_slice(line.strip_suffix(b"\r").unwrap_or(line));
            }
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&self.body);
        out
    }

    /// Headers and body, in bytes.
    pub(crate) const fn content_bytes(&self) -> usize {
        self.header_text.len() + self.body.len()
    }

    /// The memory that recipients, macros, headers and body take, in bytes.
    #[must_use]
    pub const fn held_bytes(&self) -> usize {
        let recipients = self.recipients.capacity() * size_of::<Path>() + self.recipient_bytes;
        let headers = self.header_text.capacity() + self.headers.capacity() * size_of::<Span>();
        recipients + headers + self.macros.capacity() + self.body.capacity()
    }

    pub(crate) fn start(client: Arc<Client>, sender: Path, leading_space: bool, room: Option<usize>) -> Self {
        Self { client, sender, leading_space, answer_room_bytes: room, ..Self::default() }
    }

    pub(crate) fn push_recipient(&mut self, recipient: Path, limits: &MessageLimits) -> Result<(), Unseen> {
        if self.recipients.len() >= limits.recipients {
            return Err(Unseen::Recipients);
        }
        self.recipient_bytes += recipient.address.len() + recipient.args.len();
        self.recipients.push(recipient);
        Ok(())
    }

    fn push_header(&mut self, name: &[u8], value: &[u8]) {
        let start = self.header_text.len();
        self.header_text.extend_from_slice(name);
        let colon = self.header_text.len();
        self.header_text.extend_from_slice(value);
        self.headers.push(Span { name: start..colon, value: colon..self.header_text.len() });
    }

    pub(crate) fn take_header(
        &mut self,
        name: &[u8],
        value: &[u8],
        limits: &MessageLimits,
    ) -> Result<(), Unseen> {
        if self.headers.len() >= limits.headers {
            return Err(Unseen::Headers);
        }
        let bytes = name.len() + value.len();
        if self.header_text.len() + bytes > limits.header_bytes {
            return Err(Unseen::HeaderBytes);
        }
        if self.content_bytes() + bytes > limits.message_bytes {
            return Err(Unseen::MessageBytes);
        }
        self.push_header(name, value);
        Ok(())
    }

    pub(crate) fn take_body(&mut self, piece: &[u8], limits: &MessageLimits) -> Result<(), Unseen> {
        if self.content_bytes() + piece.len() > limits.message_bytes {
            return Err(Unseen::MessageBytes);
        }
        if self.body.is_empty() && piece.len() >= WHOLE_PIECE_BYTES {
            // More follows.
            self.body.reserve(2 * piece.len());
        }
        self.body.extend_from_slice(piece);
        Ok(())
    }

    /// Takes what is still wanted of the body; whether the rest is not.
    pub(crate) fn take_body_up_to(&mut self, piece: &[u8], wanted: usize) -> bool {
        if piece.is_empty() {
            return false;
        }
        let room = wanted.saturating_sub(self.body.len());
        let kept = piece.get(..room).unwrap_or(piece);
        self.body.extend_from_slice(kept);
        let enough = self.body.len() >= wanted;
        self.body_cut |= enough;
        enough
    }

    pub(crate) fn set_macros<'a>(&mut self, stages: impl Iterator<Item = &'a [u8]>) {
        self.macros.clear();
        for stage in stages {
            self.macros.extend_from_slice(stage);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_bare_with_and_without_brackets() {
        assert_eq!(Path::new("<a@b>").bare(), b"a@b");
        assert_eq!(Path::new("a@b").bare(), b"a@b");
        assert_eq!(Path::new("<>").bare(), b"");
        assert_eq!(Path::new("").bare(), b"");
    }

    #[test]
    fn a_message_becomes_text_again() {
        let message = Message::new(Path::new("<a@b>"))
            .with_header("Subject", b"one\n\ttwo")
            .with_header("To", b"x")
            .with_body("body\r\n");
        assert_eq!(message.to_bytes(), b"Subject: one\r\n\ttwo\r\nTo: x\r\n\r\nbody\r\n");
        assert_eq!(message.header("subject").unwrap().value, b"one\n\ttwo");
    }
}
