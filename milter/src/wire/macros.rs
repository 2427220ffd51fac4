//! Macros: named values that the MTA sends before a command, and the lists by which a filter asks for them.
//!
//! - Layer: word
//! - Takes: the data of a macro frame, or of a negotiation reply after its three words.
//! - Gives: pairs of name and value; stages and their lists.
//! - On failure: a name without a value counts as not sent; a broken list ends the iteration.
//! - See: Postfix `MILTER_README`, "Macros"; Sendmail `SMFIM_*`

#![warn(clippy::indexing_slicing)]

use alloc::vec::Vec;

use super::negotiation::split_u32;
use super::text::{put_text, split_text, take_text};

/// Where in a session a macro list applies. Note that end of message has the number 5 and end of headers 6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum MacroStage {
    /// With CONNECT.
    Connect = 0,
    /// With HELO.
    Helo = 1,
    /// With MAIL.
    Mail = 2,
    /// With RCPT.
    Rcpt = 3,
    /// With DATA.
    Data = 4,
    /// With end of message; Postfix uses the list for body chunks too.
    EndOfMessage = 5,
    /// With end of headers; Postfix uses the list for headers too.
    EndOfHeaders = 6,
}

impl MacroStage {
    /// Every stage, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Connect,
        Self::Helo,
        Self::Mail,
        Self::Rcpt,
        Self::Data,
        Self::EndOfMessage,
        Self::EndOfHeaders,
    ];

    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The stage of a number on the wire.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.number() == number)
    }
}

/// Pairs of name and value as they lie in a macro frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MacroPairs<'a> {
    raw: &'a [u8],
}

impl<'a> MacroPairs<'a> {
    /// Takes pairs in wire form: name, NUL, value, NUL and so on.
    #[must_use]
    pub const fn new(raw: &'a [u8]) -> Self {
        Self { raw }
    }

    /// The wire form.
    #[must_use]
    pub const fn raw(self) -> &'a [u8] {
        self.raw
    }

    /// Each pair. Names stand as sent: `i` and `j` bare, longer ones in braces.
    pub fn iter(self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let mut rest = self.raw;
        core::iter::from_fn(move || {
            let (name, after) = split_text(rest);
            let (value, after) = split_text(after.filter(|after| !after.is_empty())?);
            rest = after.unwrap_or_default();
            Some((name, value))
        })
    }

    /// The value of a macro; the last one of several. `name` may be given with or without its braces.
    #[must_use]
    pub fn value(self, name: &[u8]) -> Option<&'a [u8]> {
        let name = bare(name);
        self.iter().filter(|(found, _)| bare(found) == name).last().map(|(_, value)| value)
    }

    /// Brings pairs into wire form.
    #[must_use]
    pub fn join<N: AsRef<[u8]>, V: AsRef<[u8]>>(pairs: &[(N, V)]) -> Vec<u8> {
        let mut raw = Vec::new();
        for (name, value) in pairs {
            put_text(&mut raw, name.as_ref());
            put_text(&mut raw, value.as_ref());
        }
        raw
    }
}

/// A macro's name without its braces.
fn bare(name: &[u8]) -> &[u8] {
    name.strip_prefix(b"{").and_then(|name| name.strip_suffix(b"}")).unwrap_or(name)
}

/// The macro lists of a negotiation reply, as they lie in the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MacroLists<'a> {
    raw: &'a [u8],
}

impl<'a> MacroLists<'a> {
    /// Takes lists in wire form: a stage number of four bytes, a list, NUL and so on.
    #[must_use]
    pub const fn new(raw: &'a [u8]) -> Self {
        Self { raw }
    }

    /// The wire form.
    #[must_use]
    pub const fn raw(self) -> &'a [u8] {
        self.raw
    }

    /// Each stage number with its list of macro names, separated by blanks.
    pub fn iter(self) -> impl Iterator<Item = (u32, &'a [u8])> {
        let mut rest = self.raw;
        core::iter::from_fn(move || {
            let (stage, after) = split_u32(rest)?;
            let (list, after) = take_text(after);
            rest = after;
            Some((stage, list))
        })
    }

    /// Brings lists into wire form.
    #[must_use]
    pub fn join<L: AsRef<[u8]>>(lists: &[(MacroStage, L)]) -> Vec<u8> {
        let mut raw = Vec::new();
        for (stage, list) in lists {
            raw.extend_from_slice(&stage.number().to_be_bytes());
            put_text(&mut raw, list.as_ref());
        }
        raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_counts_and_braces_do_not() {
        let pairs = MacroPairs::new(b"i\0Q1\0{mail_addr}\0a@b\0i\0Q2\0odd\0");
        assert_eq!(pairs.value(b"i"), Some(b"Q2".as_slice()));
        assert_eq!(pairs.value(b"{i}"), Some(b"Q2".as_slice()));
        assert_eq!(pairs.value(b"mail_addr"), Some(b"a@b".as_slice()));
        assert_eq!(pairs.value(b"odd"), None);
        assert_eq!(pairs.iter().count(), 3);
    }

    #[test]
    fn an_empty_value_is_a_value() {
        assert_eq!(MacroPairs::new(b"i\0\0").value(b"i"), Some(b"".as_slice()));
    }

    #[test]
    fn end_of_message_comes_before_end_of_headers() {
        assert_eq!(MacroStage::from_number(5), Some(MacroStage::EndOfMessage));
        assert_eq!(MacroStage::from_number(6), Some(MacroStage::EndOfHeaders));
        assert_eq!(MacroStage::from_number(7), None);
    }
}
