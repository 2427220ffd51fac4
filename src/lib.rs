//! mailtap turns the mail flow of your own Postfix relays into Google Analytics 4 events.
//!
//! The map, in the order of the flow; `docs/architecture.md` has the picture.

// Words: what everybody speaks of.
pub mod event;
pub mod identity;

// Decisions that several roles share.
pub mod consent;
pub mod delivery;
pub mod keys;
pub mod rewrite;

// The roles, in the order of the flow, and the queue at which they meet.
pub mod bounce;
pub mod collector;
pub mod filter;
pub mod forward;
pub mod queue;
pub mod relay;
pub mod tap;
pub mod tracker;

// What every process needs.
pub mod cli;
pub mod config;
pub mod service;
pub mod telemetry;
