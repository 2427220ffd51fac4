//! What travels on a milter connection: frames, commands, replies, flags and macros, both ways.
//!
//! - Layer: word
//! - Takes: bytes of one connection, either direction.
//! - Gives: borrowed [`Command`]s and [`Reply`]s, or bytes from them. Texts are bytes: nothing here is taken for UTF-8.
//! - On failure: [`FrameError`], [`CommandError`] or [`ReplyError`], with code and length, never with content.
//! - Limits: one frame is at most [`DEFAULT_FRAME_LIMIT_BYTES`] unless told otherwise; nothing is allocated for a frame
//!   before it is there.
//! - See: Sendmail `include/libmilter/mfdef.h`, Postfix `src/milter/milter8.c`

mod command;
mod flags;
mod frame;
mod macros;
mod negotiation;
mod reply;
mod text;

pub use command::{Command, CommandError, Connect, EnvelopePath, Family};
pub use flags::{Actions, Protocol};
pub use frame::{DEFAULT_FRAME_LIMIT_BYTES, Frame, FrameError};
pub use macros::{MacroLists, MacroPairs, MacroStage};
pub use negotiation::{NEWEST_VERSION, OLDEST_VERSION, Offer};
pub use reply::{Reply, ReplyError};
pub use text::Texts;

/// The largest body chunk, in bytes, either way, unless both sides agreed on more.
pub const BODY_CHUNK_BYTES: usize = 65_535;
