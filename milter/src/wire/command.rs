//! Commands, from the MTA to the filter.
//!
//! - Layer: word
//! - Takes: one frame.
//! - Gives: a [`Command`] that borrows from it; or a frame from a command.
//! - On failure: [`CommandError`] for an unknown code or a short negotiation. Everything else is read leniently, since an
//!   error here would cost mail: missing NULs are taken as there, missing fields as empty, what follows the last field is ignored.
//! - See: Postfix `src/milter/milter8.c`; Sendmail `libmilter/engine.c`

#![warn(clippy::indexing_slicing)]

use alloc::vec::Vec;

use super::frame::put_frame;
use super::text::{put_text, take_text};
use super::{Frame, MacroPairs, Offer, Texts};

/// A command of the MTA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command<'a> {
    /// `O`: what the MTA offers.
    Negotiate(Offer),
    /// `D`: macros for the command with this code.
    Macros {
        /// The code of the command that follows.
        stage: u8,
        /// The macros.
        pairs: MacroPairs<'a>,
    },
    /// `C`: a client connected.
    Connect(Connect<'a>),
    /// `H`: the name in HELO or EHLO.
    Helo(&'a [u8]),
    /// `M`: the envelope sender.
    Mail(EnvelopePath<'a>),
    /// `R`: one recipient.
    Rcpt(EnvelopePath<'a>),
    /// `T`: DATA.
    Data,
    /// `L`: one header; folds are joined by LF.
    Header {
        /// The name, without the colon.
        name: &'a [u8],
        /// The value as it came; with [`super::Protocol::LEADING_SPACE`] all that follows the colon.
        value: &'a [u8],
    },
    /// `N`: end of headers.
    EndOfHeaders,
    /// `B`: a piece of the body, cut anywhere.
    Body(&'a [u8]),
    /// `E`: end of message, with the last piece of the body if the MTA wishes.
    EndOfMessage(&'a [u8]),
    /// `A`: forget the message.
    Abort,
    /// `Q`: the connection ends.
    Quit,
    /// `K`: the SMTP session ends, another follows on the same connection.
    QuitNewConnection,
    /// `U`: an SMTP command that the MTA does not know.
    Unknown(&'a [u8]),
}

/// Who connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connect<'a> {
    /// The client's name, or its address in brackets.
    pub host: &'a [u8],
    /// The kind of address.
    pub family: Family,
    /// The client's port; 0 if unknown, and for mail that did not come by SMTP.
    pub port: u16,
    /// The address as text, or the path of a Unix socket; empty for [`Family::Unknown`].
    pub address: &'a [u8],
}

/// The kind of a client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Family {
    /// `U`: unknown.
    #[default]
    Unknown,
    /// `L`: a Unix socket.
    Unix,
    /// `4`: IPv4.
    Inet,
    /// `6`: IPv6.
    Inet6,
}

/// An envelope address with its ESMTP arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnvelopePath<'a> {
    /// The address as the MTA gives it: with angle brackets for SMTP mail, without for other mail in Postfix.
    pub address: &'a [u8],
    /// ESMTP arguments such as `SIZE=1000`.
    pub args: Texts<'a>,
}

/// Why a frame is no command. The connection can't be used any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// No command has this code.
    #[error("unknown command {code:#04x}")]
    Unknown {
        /// The code.
        code: u8,
    },
    /// The data is too short.
    #[error("command {code:#04x} with only {length} bytes of data")]
    Short {
        /// The code.
        code: u8,
        /// The length of the data, in bytes.
        length: usize,
    },
}

impl Family {
    const fn from_code(code: u8) -> Self {
        match code {
            b'L' => Self::Unix,
            b'4' => Self::Inet,
            b'6' => Self::Inet6,
            _ => Self::Unknown,
        }
    }

    const fn code(self) -> u8 {
        match self {
            Self::Unknown => b'U',
            Self::Unix => b'L',
            Self::Inet => b'4',
            Self::Inet6 => b'6',
        }
    }
}

impl<'a> Connect<'a> {
    fn decode(data: &'a [u8]) -> Self {
        let (host, rest) = take_text(data);
        let (family, rest) = rest
            .split_first()
            .map_or((Family::Unknown, rest), |(code, rest)| (Family::from_code(*code), rest));
        if family == Family::Unknown {
            return Self { host, family, port: 0, address: &[] };
        }
        let (port, rest) = rest
            .split_first_chunk::<2>()
            .map_or((0, [].as_slice()), |(port, rest)| (u16::from_be_bytes(*port), rest));
        Self { host, family, port, address: take_text(rest).0 }
    }

    fn put(&self, out: &mut Vec<u8>) {
        put_text(out, self.host);
        out.push(self.family.code());
        if self.family != Family::Unknown {
            out.extend_from_slice(&self.port.to_be_bytes());
            put_text(out, self.address);
        }
    }
}

impl<'a> EnvelopePath<'a> {
    fn decode(data: &'a [u8]) -> Self {
        let (address, rest) = take_text(data);
        Self { address, args: Texts::new(rest) }
    }

    fn put(&self, out: &mut Vec<u8>) {
        put_text(out, self.address);
        self.args.put(out);
    }
}

impl<'a> Command<'a> {
    /// Reads a command from its frame.
    ///
    /// # Errors
    /// An unknown code, or a negotiation of fewer than 12 bytes.
    pub fn decode(frame: Frame<'a>) -> Result<Self, CommandError> {
        let Frame { code, data } = frame;
        let short = CommandError::Short { code, length: data.len() };
        Ok(match code {
            b'O' => Self::Negotiate(Offer::split(data).ok_or(short)?.0),
            b'D' => {
                let (stage, pairs) = data.split_first().ok_or(short)?;
                Self::Macros { stage: *stage, pairs: MacroPairs::new(pairs) }
            }
            b'C' => Self::Connect(Connect::decode(data)),
            b'H' => Self::Helo(take_text(data).0),
            b'M' => Self::Mail(EnvelopePath::decode(data)),
            b'R' => Self::Rcpt(EnvelopePath::decode(data)),
            b'T' => Self::Data,
            b'L' => {
                let (name, rest) = take_text(data);
                Self::Header { name, value: take_text(rest).0 }
            }
            b'N' => Self::EndOfHeaders,
            b'B' => Self::Body(data),
            b'E' => Self::EndOfMessage(data),
            b'A' => Self::Abort,
            b'Q' => Self::Quit,
            b'K' => Self::QuitNewConnection,
            b'U' => Self::Unknown(take_text(data).0),
            _ => return Err(CommandError::Unknown { code }),
        })
    }

    /// The code on the wire.
    #[must_use]
    pub const fn code(&self) -> u8 {
        match self {
            Self::Negotiate(_) => b'O',
            Self::Macros { .. } => b'D',
            Self::Connect(_) => b'C',
            Self::Helo(_) => b'H',
            Self::Mail(_) => b'M',
            Self::Rcpt(_) => b'R',
            Self::Data => b'T',
            Self::Header { .. } => b'L',
            Self::EndOfHeaders => b'N',
            Self::Body(_) => b'B',
            Self::EndOfMessage(_) => b'E',
            Self::Abort => b'A',
            Self::Quit => b'Q',
            Self::QuitNewConnection => b'K',
            Self::Unknown(_) => b'U',
        }
    }

    /// Appends the command's frame to `out`. As in C, a text ends at its first NUL.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_frame(out, self.code(), |out| match self {
            Self::Negotiate(offer) => offer.put(out),
            Self::Macros { stage, pairs } => {
                out.push(*stage);
                out.extend_from_slice(pairs.raw());
            }
            Self::Connect(connect) => connect.put(out),
            Self::Helo(text) | Self::Unknown(text) => put_text(out, text),
            Self::Mail(path) | Self::Rcpt(path) => path.put(out),
            Self::Header { name, value } => {
                put_text(out, name);
                put_text(out, value);
            }
            Self::Body(piece) | Self::EndOfMessage(piece) => out.extend_from_slice(piece),
            Self::Data | Self::EndOfHeaders | Self::Abort | Self::Quit | Self::QuitNewConnection => (),
        });
    }
}
