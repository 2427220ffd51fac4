//! Sockets, time and tasks: the daemon around [`crate::session`], and an MTA's client.
//!
//! - Layer: edge
//! - Takes: a [`Listener`], a [`Handler`], [`Settings`], and a future that ends when the daemon shall.
//! - Gives: [`serve`], which answers every connection until then; [`Client`].
//! - On failure: mail goes on. A handler that panics, is late or asks for the impossible lets its message through
//!   unmodified, unless it left a [`Fallback`]; each such case is a [`Happening`].
//! - Limits: [`Settings`].
//! - See: Postfix `MILTER_README`

mod budget;
mod client;
mod connection;
mod habit;
mod handler;
mod happening;
mod listener;
mod serve;
mod settings;
mod stream;
mod work;

pub use client::{Client, ClientError, Peer};
pub use handler::{Fallback, Handler, Response, Settled};
pub use happening::{End, Failure, Happening, Which};
pub use listener::{BindError, Listener, UnixSocket};
pub use serve::serve;
pub use settings::{Oversize, Settings, Timeouts};
