//! Which Postfix instances deliver mail of which no reference is ever logged.
//!
//! - Layer: decision
//! - Takes: attempts, with and without a reference, and logged references, by host and `syslog_name`.
//! - Gives: each instance once, after many attempts without a single reference.
//! - On failure: instances over the limit are not looked at.
//! - Limits: 64 instances.
//! - See: `unlogged` for what is known for certain, where the milter runs in the same process.

use super::state::instance_of;

/// So many attempts without a single reference are worth a word: an instance that has tracked mail has seen one by then.
pub(super) const MANY_ATTEMPTS: u64 = 50;
const MAX_INSTANCES: usize = 64;

/// An instance without references.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silent {
    /// Its name in the log.
    pub instance: String,
    /// How many attempts were logged.
    pub attempts: u64,
}

/// What was seen of each instance.
#[derive(Debug, Default)]
pub(super) struct Tallies(Vec<Tally>);

#[derive(Debug)]
struct Tally {
    host: Box<[u8]>,
    instance: Box<[u8]>,
    attempts: u64,
    /// Nothing more is to be said of it.
    is_settled: bool,
}

impl Tallies {
    /// An attempt to deliver a message that has no reference.
    pub(super) fn without_ref(&mut self, host: &[u8], syslog_name: &[u8]) {
        if let Some(tally) = self.of(host, syslog_name) {
            tally.attempts += 1;
        }
    }

    /// A reference of this instance was logged, or is known.
    pub(super) fn with_ref(&mut self, host: &[u8], syslog_name: &[u8]) {
        if let Some(tally) = self.of(host, syslog_name) {
            tally.is_settled = true;
        }
    }

    /// Something was said of an instance of this name already.
    pub(super) fn said(&mut self, syslog_name: &[u8]) {
        let instance = instance_of(syslog_name);
        for tally in self.0.iter_mut().filter(|tally| *tally.instance == *instance) {
            tally.is_settled = true;
        }
    }

    /// The instances that are news.
    pub(super) fn news(&mut self) -> Vec<Silent> {
        let silent = self.0.iter_mut().filter(|tally| !tally.is_settled && tally.attempts >= MANY_ATTEMPTS);
        silent
            .map(|tally| {
                tally.is_settled = true;
                let instance = String::from_utf8_lossy(&tally.instance).into_owned();
                Silent { instance, attempts: tally.attempts }
            })
            .collect()
    }

    fn of(&mut self, host: &[u8], syslog_name: &[u8]) -> Option<&mut Tally> {
        let instance = instance_of(syslog_name);
        let at = self.0.iter().position(|tally| *tally.instance == *instance && *tally.host == *host);
        match at {
            Some(at) => self.0.get_mut(at),
            None if self.0.len() >= MAX_INSTANCES => None,
            None => {
                let (host, instance) = (host.into(), instance.into());
                self.0.push(Tally { host, instance, attempts: 0, is_settled: false });
                self.0.last_mut()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_instance_is_said_once_and_one_with_a_reference_never() {
        let mut tallies = Tallies::default();
        for round in 0..200 {
            tallies.without_ref(b"mx", b"postfix-out/smtp");
            tallies.without_ref(b"mx", b"postfix");
            tallies.without_ref(b"gate", b"postfix");
            tallies.without_ref(b"mx", b"postfix-said");
            if round == 10 {
                tallies.with_ref(b"mx", b"postfix/cleanup");
                tallies.said(b"postfix-said/cleanup");
            }
            let expected: &[&str] = if round == 49 { &["postfix-out", "postfix"] } else { &[] };
            let news = tallies.news();
            assert_eq!(news.iter().map(|silent| silent.instance.as_str()).collect::<Vec<_>>(), expected);
        }
        for number in 0..1_000 {
            tallies.without_ref(b"mx", format!("postfix-{number}").as_bytes());
        }
        assert_eq!(tallies.0.len(), MAX_INSTANCES);
    }
}
