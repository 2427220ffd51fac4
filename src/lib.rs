//! mailtap turns the mail flow of your own Postfix relays into Google Analytics 4 events.
//!
//! The map, in the order of the flow; `docs/architecture.md` has the picture.

// Words: what everybody speaks of.
pub mod event;
pub mod identity;

// Decisions and edges that several roles share, in the order of the flow.
pub mod consent;
pub mod keys;
pub mod queue;

// What every daemon needs.
pub mod config;
pub mod service;
pub mod telemetry;
