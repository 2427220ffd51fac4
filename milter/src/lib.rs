#![doc = include_str!("../README.md")]
#![no_std]

extern crate alloc;
#[cfg(any(feature = "tokio", test))]
extern crate std;

// What travels.
pub mod wire;

// One connection, without socket or clock.
pub mod edits;
pub mod session;

// Its other end: an MTA that behaves like Postfix.
pub mod client;

// Sockets, time and tasks.
#[cfg(feature = "tokio")]
pub mod driver;
