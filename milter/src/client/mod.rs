//! The MTA's side: an MTA that treats a filter as Postfix does.
//!
//! - Layer: decision
//! - Takes: mail, and the replies of a filter.
//! - Gives: which commands to send; the mail as edited. With the feature `tokio`, a client that does both over a
//!   stream: `driver::Client`.
//! - On failure: [`EditError`], [`OfferError`]: Postfix would drop the connection.
//! - See: Postfix `src/milter/milter8.c`, `src/cleanup/cleanup_milter.c`

mod conversation;
mod editor;
mod mail;
mod verdict;

pub use conversation::{Conversation, OfferError, Sending};
pub use editor::{EditError, Editor};
pub use mail::{Field, Mail, Mailbox};
pub use verdict::{Delivery, Outcome, refusal};
