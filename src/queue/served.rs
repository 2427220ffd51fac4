//! Which recipients of which message got their copy already, also when the milter is killed before Postfix hears of it.
//!
//! - Layer: edge
//! - Takes: keys of copies that a server has accepted.
//! - Gives: whether one was accepted in the last day.
//! - On failure: `StoreError`; nothing should be split then, since nobody could remember it.
//! - Limits: one fsync a copy; a row lasts until Postfix has the answer, or a day.
//! - See: `docs/decisions/0007-split.md`

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use sha2::{Digest, Sha256};

use super::{StoreError, sqlite};
use crate::identity::Timestamp;

/// A client tries again within hours; byte-identical mail of another day is other mail.
const KEEP_SECS: u64 = 24 * 60 * 60;

const MIGRATIONS: &[&str] = &["
CREATE TABLE served (
    key BLOB PRIMARY KEY, -- 32 bytes
    at_s INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX served_at ON served (at_s);
"];

/// Names the copy of one recipient.
pub type CopyKey = [u8; 32];

/// Stands for every byte of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a message: the long part of the work, done once for all its copies.
    #[must_use]
    pub fn of(message: &[u8]) -> Self {
        Self(Sha256::digest(message).into())
    }
}

/// The key of a recipient's copy: sender, recipient and every byte of the message. A client that repeats a message repeats
/// these; only where Postfix itself adds Message-ID or Date, a repetition looks new.
#[must_use]
pub fn copy_key(sender: &[u8], recipient: &[u8], message: Fingerprint) -> CopyKey {
    let mut hash = Sha256::new();
    for piece in [sender, recipient] {
        hash.update(u64::try_from(piece.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(piece);
    }
    hash.update(message.0);
    hash.finalize().into()
}

/// The memory of copies. Clones share it.
#[derive(Debug, Clone)]
pub struct Served(Arc<Mutex<Connection>>);

impl Served {
    /// Opens the memory in this directory, as `split.db`. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// `StoreError`.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let connection = sqlite::open(&directory.join("split.db"), 0o600, MIGRATIONS)?;
        Ok(Self(Arc::new(Mutex::new(connection))))
    }

    /// Those of the keys that were served.
    ///
    /// # Errors
    /// `StoreError`.
    pub async fn among(&self, keys: Vec<CopyKey>, now: Timestamp) -> Result<HashSet<CopyKey>, StoreError> {
        self.with(move |connection| {
            let since = now.as_secs().saturating_sub(KEEP_SECS);
            connection.execute("DELETE FROM served WHERE at_s < ?1", [since.cast_signed()])?;
            let mut find = connection.prepare_cached("SELECT 1 FROM served WHERE key = ?1")?;
            let mut found = HashSet::new();
            for key in keys {
                if find.exists([key])? {
                    found.insert(key);
                }
            }
            Ok(found)
        })
        .await
    }

    /// Notes that a copy was accepted; on disk when it returns.
    ///
    /// # Errors
    /// `StoreError`: it may be forgotten.
    pub async fn note(&self, key: CopyKey, now: Timestamp) -> Result<(), StoreError> {
        self.with(move |connection| {
            let row = (key, now.as_secs().cast_signed());
            connection.execute("INSERT OR REPLACE INTO served (key, at_s) VALUES (?1, ?2)", row).map(drop)
        })
        .await
    }

    /// Forgets copies whose message Postfix has taken off our hands.
    ///
    /// # Errors
    /// `StoreError`: they are remembered until the day is over.
    pub async fn forget(&self, keys: Vec<CopyKey>) -> Result<(), StoreError> {
        self.with(move |connection| {
            let transaction = connection.transaction()?;
            for key in keys {
                transaction.execute("DELETE FROM served WHERE key = ?1", [key])?;
            }
            transaction.commit()
        })
        .await
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.0);
        let work = move || work(&mut shared.lock().unwrap_or_else(PoisonError::into_inner));
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result.map_err(StoreError::from),
            // The runtime ends, and this with it.
            Err(error) if error.is_cancelled() => std::future::pending().await,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_sender_recipient_and_message_apart() {
        let of = |sender: &str, recipient: &str, message: &str| {
            copy_key(sender.as_bytes(), recipient.as_bytes(), Fingerprint::of(message.as_bytes()))
        };
        let key = of("a", "b", "c");
        assert_eq!(key, of("a", "b", "c"));
        for other in [of("ab", "", "c"), of("a", "bc", ""), of("a", "b", "C")] {
            assert_ne!(key, other);
        }
    }

    #[tokio::test]
    async fn what_was_served_is_known_to_the_next_process_for_a_day() {
        let directory = tempfile::tempdir().unwrap();
        let now = Timestamp::from_secs(1_795_000_000);
        let message = Fingerprint::of(b"c");
        let (one, two) = (copy_key(b"a", b"b", message), copy_key(b"a", b"d", message));
        let served = Served::open(directory.path()).unwrap();
        served.note(one, now).await.unwrap();
        drop(served);
        let served = Served::open(directory.path()).unwrap();
        assert_eq!(served.among(vec![one, two], now).await.unwrap(), HashSet::from([one]));
        served.note(two, now).await.unwrap();
        served.forget(vec![one]).await.unwrap();
        assert_eq!(served.among(vec![one, two], now).await.unwrap(), HashSet::from([two]));
        let later = Timestamp::from_secs(1_795_000_000 + KEEP_SECS + 1);
        assert!(served.among(vec![two], later).await.unwrap().is_empty());
    }
}
