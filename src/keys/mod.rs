//! Keys and what they sign: the keyring, its life, and the tokens in links, pixels and headers.
//!
//! - Layer: edge
//! - Takes: the keyring file.
//! - Gives: `Keys`, a handle that always has the newest valid keyring; `token` and `ring`, which are pure.
//! - On failure: a file that can't be read or understood changes nothing: the keyring in use stays.
//! - See: `docs/token-format.md`, `docs/keys.md`.

mod file;
pub mod jwt;
pub mod ring;
pub mod token;
pub mod visitor;

pub use file::{
    KeyFileError, Keys, NO_PSEUDONYM_KEY, create_pseudonym_key, create_ring, create_ring_for,
    load_pseudonym_key, maker, update_ring,
};
