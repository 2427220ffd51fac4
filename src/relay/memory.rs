//! The memory of what was sent, and what was told of its troubles.
//!
//! - Layer: role
//! - Takes: the memory; why it can't be read or written.
//! - Gives: one line in the log for an outage: many requests meet with it at once.
//! - On failure: nothing can fail.

use std::sync::{Mutex, PoisonError};

use super::happenings::QueueTrouble;
use crate::queue::StoreError;
use crate::queue::dedupe::Dedupe;
use crate::queue::outage::Outage;

#[derive(Debug)]
pub(super) struct Memory {
    pub(super) dedupe: Dedupe,
    outage: Mutex<Outage>,
}

impl Memory {
    pub(super) fn new(dedupe: Dedupe) -> Self {
        Self { dedupe, outage: Mutex::default() }
    }

    /// It could not be read or written.
    pub(super) fn failed(&self, error: &StoreError) {
        let why = error.to_string();
        let is_news = self.outage.lock().unwrap_or_else(PoisonError::into_inner).is_news(&why);
        QueueTrouble { why: &why, is_news }.emit();
    }

    /// Something was written.
    pub(super) fn works(&self) {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner).over();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::telemetry::Captured;

    #[test]
    fn an_outage_is_told_once_however_many_requests_meet_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let memory = Memory::new(Dedupe::open(directory.path()).unwrap());
        crate::telemetry::somebody_listens();
        let log = Captured::default();
        let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).finish();
        let listening = tracing::subscriber::set_default(subscriber);
        for _ in 0..2 {
            (0..300).for_each(|_| memory.failed(&StoreError::Sql("database or disk is full".into())));
            memory.works();
        }
        drop(listening);
        let log = log.text();
        assert_eq!(log.matches("disk is full").count(), 2, "{log}");
    }
}
