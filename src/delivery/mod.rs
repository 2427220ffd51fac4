//! What a delivery's outcome means: the class of a failure, and the provider behind a relay, the sender's
//! domain.
//!
//! - Layer: decision
//! - Takes: status codes, the text of a reply, the name of a relay.
//! - Gives: a class with its explanation; a provider's word.
//! - On failure: `BounceClass::Unknown`, no provider.
//! - See: `class_rules.txt`, RFC 3463, RFC 5248.

pub mod class;
mod domain;
mod provider;
mod replies;
mod reply;

pub use class::{Classifier, RuleError, Verdict};
pub use domain::sender_domain;
pub use provider::Providers;
pub use replies::Replies;
pub use reply::{EnhancedCode, enhanced_code, smtp_code, spoken};
