//! The two flag words of the negotiation.
//!
//! - Layer: word
//! - Takes: and
//! - Gives: 32-bit words as sets, with names for every bit that a milter peer knows.
//! - On failure: unknown bits are kept.
//! - See: Sendmail `include/libmilter/mfapi.h` (`SMFIF_*`), `mfdef.h` (`SMFIP_*`)

use core::fmt;
use core::ops::{BitAnd, BitOr, BitOrAssign, Sub};

use super::BODY_CHUNK_BYTES;

macro_rules! flag_set {
    ($(#[$about:meta])* $set:ident { $($(#[$doc:meta])* $name:ident = $bit:literal;)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
        pub struct $set(u32);

        impl $set {
            $($(#[$doc])* pub const $name: Self = Self($bit);)*

            /// No flag.
            pub const NONE: Self = Self(0);

            /// The set with these bits; unknown ones are kept.
            #[must_use]
            pub const fn from_bits(bits: u32) -> Self {
                Self(bits)
            }

            /// The bits.
            #[must_use]
            pub const fn bits(self) -> u32 {
                self.0
            }

            /// Whether every flag of `other` is in this set.
            #[must_use]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// Whether no flag is in this set.
            #[must_use]
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }

            /// Both sets together; usable in constants.
            #[must_use]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// This set without the other; usable in constants.
            #[must_use]
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }

            const NAMES: &'static [(&'static str, u32)] = &[$((stringify!($name), $bit),)*];
        }

        impl fmt::Display for $set {
            /// The names of the flags joined by `|`, unknown bits in hex, `NONE` for the empty set.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut rest = self.0;
                let mut first = true;
                for (name, bit) in Self::NAMES.iter().filter(|(_, bit)| self.0 & bit != 0) {
                    if !first {
                        f.write_str("|")?;
                    }
                    f.write_str(name)?;
                    first = false;
                    rest &= !bit;
                }
                match (rest, first) {
                    (0, true) => f.write_str("NONE"),
                    (0, false) => Ok(()),
                    (_, true) => write!(f, "{rest:#x}"),
                    (_, false) => write!(f, "|{rest:#x}"),
                }
            }
        }

        impl fmt::Debug for $set {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($set))
            }
        }

        impl BitOr for $set {
            type Output = Self;
            fn bitor(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }

        impl BitOrAssign for $set {
            fn bitor_assign(&mut self, other: Self) {
                self.0 |= other.0;
            }
        }

        impl BitAnd for $set {
            type Output = Self;
            fn bitand(self, other: Self) -> Self {
                Self(self.0 & other.0)
            }
        }

        impl Sub for $set {
            type Output = Self;
            fn sub(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }
        }
    };
}

flag_set! {
    /// What a filter may do to a message (`SMFIF_*`).
    Actions {
        /// Add and insert headers.
        ADD_HEADERS = 0x001;
        /// Replace the body.
        CHANGE_BODY = 0x002;
        /// Add recipients.
        ADD_RECIPIENTS = 0x004;
        /// Delete recipients.
        DELETE_RECIPIENTS = 0x008;
        /// Change and delete headers.
        CHANGE_HEADERS = 0x010;
        /// Put the message on hold.
        QUARANTINE = 0x020;
        /// Change the envelope sender.
        CHANGE_SENDER = 0x040;
        /// Add recipients with ESMTP arguments.
        ADD_RECIPIENTS_WITH_ARGS = 0x080;
        /// Ask for macros in the negotiation.
        REQUEST_MACROS = 0x100;
    }
}

flag_set! {
    /// What the MTA leaves out, and how the two speak (`SMFIP_*`).
    Protocol {
        /// The MTA sends no CONNECT.
        NO_CONNECT = 0x0000_0001;
        /// The MTA sends no HELO.
        NO_HELO = 0x0000_0002;
        /// The MTA sends no MAIL.
        NO_MAIL = 0x0000_0004;
        /// The MTA sends no RCPT.
        NO_RCPT = 0x0000_0008;
        /// The MTA sends no BODY.
        NO_BODY = 0x0000_0010;
        /// The MTA sends no HEADER.
        NO_HEADERS = 0x0000_0020;
        /// The MTA sends no end of headers.
        NO_END_OF_HEADERS = 0x0000_0040;
        /// The filter does not reply to HEADER.
        NO_REPLY_HEADER = 0x0000_0080;
        /// The MTA sends no unknown commands.
        NO_UNKNOWN = 0x0000_0100;
        /// The MTA sends no DATA.
        NO_DATA = 0x0000_0200;
        /// The MTA understands the reply SKIP.
        SKIP = 0x0000_0400;
        /// The MTA sends rejected recipients too.
        REJECTED_RECIPIENTS = 0x0000_0800;
        /// The filter does not reply to CONNECT.
        NO_REPLY_CONNECT = 0x0000_1000;
        /// The filter does not reply to HELO.
        NO_REPLY_HELO = 0x0000_2000;
        /// The filter does not reply to MAIL.
        NO_REPLY_MAIL = 0x0000_4000;
        /// The filter does not reply to RCPT.
        NO_REPLY_RCPT = 0x0000_8000;
        /// The filter does not reply to DATA.
        NO_REPLY_DATA = 0x0001_0000;
        /// The filter does not reply to unknown commands.
        NO_REPLY_UNKNOWN = 0x0002_0000;
        /// The filter does not reply to end of headers.
        NO_REPLY_END_OF_HEADERS = 0x0004_0000;
        /// The filter does not reply to BODY.
        NO_REPLY_BODY = 0x0008_0000;
        /// Header values keep the blank that follows the colon, both ways.
        LEADING_SPACE = 0x0010_0000;
        /// Frames of up to 256 KiB.
        DATA_256K = 0x1000_0000;
        /// Frames of up to 1 MiB.
        DATA_1M = 0x2000_0000;
    }
}

impl Protocol {
    /// Every bit that Postfix offers.
    pub const POSTFIX: Self = Self(0x001f_ffff);

    /// The largest piece of a body under these flags, in bytes.
    #[must_use]
    pub const fn body_chunk_bytes(self) -> usize {
        if self.contains(Self::DATA_1M) {
            (1 << 20) - 1
        } else if self.contains(Self::DATA_256K) {
            (256 << 10) - 1
        } else {
            BODY_CHUNK_BYTES
        }
    }
}

impl Actions {
    /// Every bit of protocol version 6.
    pub const VERSION_6: Self = Self(0x1ff);
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn words_are_those_of_the_protocol() {
        let all = Actions::NAMES.iter().fold(0, |all, (_, bit)| all | bit);
        assert_eq!(all, Actions::VERSION_6.bits());
        let all = Protocol::NAMES.iter().fold(0, |all, (_, bit)| all | bit);
        assert_eq!(all, Protocol::POSTFIX.bits() | 0x3000_0000);
    }

    #[test]
    fn a_set_names_its_flags() {
        let set = Actions::ADD_HEADERS | Actions::CHANGE_BODY | Actions::from_bits(0x8000);
        assert_eq!(set.to_string(), "ADD_HEADERS|CHANGE_BODY|0x8000");
        assert_eq!(Actions::NONE.to_string(), "NONE");
        assert!(!set.contains(Actions::QUARANTINE));
        assert_eq!(set - Actions::ADD_HEADERS - Actions::CHANGE_BODY, Actions::from_bits(0x8000));
    }
}
