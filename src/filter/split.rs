//! Several recipients in one transaction: each gets a copy of its own, so that clicks and opens are one person's.
//!
//! - Layer: role
//! - Takes: a message in scope with several recipients.
//! - Gives: copies, handed back to Postfix one by one; who has got one, and who has not.
//! - On failure: whoever has no copy stays with the original; nobody who has one does, whether the rest of the work panics, is
//!   late or is cut off at a stop.
//! - Limits: `Settings::max_recipients`; half of the time that a message may take.
//! - See: `docs/decisions/0007-split.md`

use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mailtap_milter::driver::Fallback;
use mailtap_milter::edits::{Answer, Edit};
use mailtap_milter::session::{Message, Path};

use super::decide::{self, Decision, Envelope, Means, Pass, Tracked};
use super::handler::{Filter, text};
use super::happenings::{CopyDone, LeftAlone, NoCopy, SplitStopped};
use super::reinject::{Door, Sent};
use crate::identity::Timestamp;
use crate::queue::StoreError;
use crate::queue::served::{CopyKey, Fingerprint, Served, copy_key};
use crate::rewrite::Reason;
use crate::service::clock;

/// How copies are made.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The port of our own Postfix that takes copies, and asks no milter of ours.
    pub address: SocketAddr,
    /// A message with more recipients is shared.
    pub max_recipients: usize,
    /// All copies of a message must be through by then.
    pub timeout: Duration,
}

/// What splits messages.
#[derive(Debug)]
pub(super) struct Splitter {
    pub(super) settings: Settings,
    pub(super) served: Served,
}

/// Who of a message's recipients got a copy.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// Their addresses, as the MTA gave them.
    pub(super) addresses: HashSet<Vec<u8>>,
    /// What remembers them until Postfix has the answer.
    pub(super) keys: Vec<CopyKey>,
    /// Links in all copies together.
    pub(super) links: u32,
}

impl Copies {
    /// Whether everybody has got one.
    pub(super) fn cover(&self, message: &Message) -> bool {
        !self.addresses.is_empty()
            && message.recipients().iter().all(|path| self.addresses.contains(&path.address))
    }
}

/// One recipient's copy.
struct Copy {
    message: Vec<u8>,
    tracked: Option<Box<Tracked>>,
}

/// Why there is no copy for one recipient.
enum Missing {
    /// There would be none for anybody.
    Pointless,
    /// Nothing is rewritten for this recipient, but others may have something.
    Untracked(&'static str),
}

impl Filter {
    /// Hands out copies, as far as it gets. Gives nothing where the message is none to be split. Whatever happens to the
    /// rest of the work, the fallback keeps the original from those who have a copy.
    pub(super) async fn split(
        &self,
        splitter: &Splitter,
        message: &Arc<Message>,
        now: Timestamp,
        fallback: &Fallback,
    ) -> Copies {
        let mut copies = Copies::default();
        let Some(pending) = recipients(message, splitter.settings.max_recipients) else { return copies };
        let until = Instant::now() + splitter.settings.timeout;
        let original = Arc::new(message.to_bytes());
        let hashed = Arc::clone(&original);
        let fingerprint = self.off_the_runtime(original.len(), move || Fingerprint::of(&hashed)).await;
        let key = |path: &Path| copy_key(&message.sender().address, &path.address, fingerprint);
        let keys: BTreeMap<Vec<u8>, CopyKey> =
            pending.iter().map(|path| (path.address.clone(), key(path))).collect();
        let remembered = splitter.served.among(keys.values().copied().collect(), now);
        let served = match within(until, remembered).await {
            Ok(served) => served,
            Err(error) => {
                SplitStopped { reason: "memory", error: error.as_ref() }.emit();
                return copies;
            }
        };
        let mut left = Vec::new();
        for recipient in pending {
            match keys.get(&recipient.address) {
                Some(key) if served.contains(key) => copies.took(&recipient, *key),
                Some(key) => left.push((recipient, *key)),
                None => (),
            }
        }
        self.fall_back_on(&copies, message, fallback);
        let mut door = None;
        for (recipient, key) in &left {
            match self.serve(splitter, &mut door, message, &original, recipient, until).await {
                Ok(Some(links)) => copies.links += links,
                Ok(None) => continue,
                Err(reason) => {
                    SplitStopped { reason, error: None }.emit();
                    break;
                }
            }
            copies.took(recipient, *key);
            self.fall_back_on(&copies, message, fallback);
            if let Err(error) = within(until, splitter.served.note(*key, now)).await {
                // This copy is out; without a memory there must be no further ones.
                SplitStopped { reason: "memory", error: error.as_ref() }.emit();
                break;
            }
        }
        if let Some(door) = door {
            door.close().await;
        }
        copies
    }

    /// Should the rest of the work come to nothing: who has a copy gets no original, all others get it as it came.
    fn fall_back_on(&self, copies: &Copies, message: &Message, fallback: &Fallback) {
        if !copies.addresses.is_empty() {
            let rest = || Answer::edited(without(copies)).into();
            fallback.set(if copies.cover(message) { self.discard(copies.keys.clone()) } else { rest() });
        }
    }

    /// Makes and sends one copy: its links if it was taken, nothing if this recipient has to stay with the original.
    ///
    /// # Errors
    /// Why no further copy should be tried.
    async fn serve(
        &self,
        splitter: &Splitter,
        door: &mut Option<Door>,
        message: &Arc<Message>,
        original: &Arc<Vec<u8>>,
        recipient: &Path,
        until: Instant,
    ) -> Result<Option<u32>, &'static str> {
        let left = || until.saturating_duration_since(Instant::now());
        if left().is_zero() {
            return Err("late");
        }
        let copy = tokio::time::timeout(left(), self.copy(message, original, recipient)).await;
        let copy = match copy.map_err(|_| "late")? {
            Ok(copy) => copy,
            Err(Missing::Pointless) => return Err("nothing_to_split"),
            Err(Missing::Untracked(reason)) => {
                NoCopy { reason }.emit();
                return Ok(None);
            }
        };
        if door.is_none() {
            *door = Some(Door::open(splitter.settings.address, left()).await.ok_or("no_connection")?);
        }
        let Some(open) = door else { return Err("no_connection") };
        // Whom the port refuses stays with the original, which has an event of its own: none is stored for the copy.
        let asked = tokio::time::timeout(left(), open.ask(message.sender(), recipient)).await;
        let sent = match asked.unwrap_or(Err(Sent::Broken)) {
            Ok(()) => {
                if let Some(tracked) = &copy.tracked {
                    let published =
                        tokio::time::timeout(left(), self.publish("", tracked, clock::now())).await;
                    if let Err(reason) =
                        published.map_err(|_| "late").and_then(|done| done.map_err(|(_, reason)| reason))
                    {
                        // The server waits for the copy: nothing else can be said on this connection.
                        *door = None;
                        return Err(reason);
                    }
                }
                let sent = tokio::time::timeout(left(), open.send(&copy.message)).await;
                let (sent, queue_id) = sent.unwrap_or((Sent::Uncertain, None));
                if let (Some(copies), Some(tracked), Some(queue_id)) =
                    (&self.deps.copies, &copy.tracked, queue_id)
                {
                    copies.taken(queue_id, tracked.id);
                }
                sent
            }
            Err(sent) => sent,
        };
        CopyDone { sent, id: copy.tracked.as_ref().map(|tracked| tracked.id) }.emit();
        if let (Sent::Accepted, Some(tracked)) = (sent, &copy.tracked) {
            LeftAlone(&tracked.report).emit();
        }
        match sent {
            Sent::Accepted => Ok(Some(copy.tracked.map_or(0, |tracked| tracked.report.tracked.into()))),
            Sent::Refused => Ok(None),
            Sent::Broken | Sent::Uncertain => {
                *door = None;
                Err("connection_broke")
            }
        }
    }

    /// The copy for one recipient.
    async fn copy(
        &self,
        message: &Arc<Message>,
        original: &Arc<Vec<u8>>,
        recipient: &Path,
    ) -> Result<Copy, Missing> {
        let (policy, deps) = (Arc::clone(&self.policy), self.deps.clone());
        let (original, sender) = (Arc::clone(original), text(message.sender().bare()).into_owned());
        let recipients = [text(recipient.bare()).into_owned()];
        let bytes = original.len();
        let work = move || {
            let ring = deps.keys.current();
            let means = Means {
                policy: &policy,
                ring: &ring,
                pseudonyms: &deps.pseudonyms,
                consents: &*deps.consents,
                now: clock::now(),
                random: rand::random(),
            };
            match decide::decide(&original, Envelope { sender: &sender, recipients: &recipients }, &means) {
                Decision::Track(tracked) if tracked.rewrites() => {
                    Ok(Copy { message: tracked.apply(&original), tracked: Some(tracked) })
                }
                // Less is allowed for this recipient than for others, or more: theirs are asked by themselves.
                Decision::Track(tracked) if tracked.ruled => {
                    Err(Missing::Untracked(tracked.report.outcome.reason().map_or("", Reason::as_str)))
                }
                // This recipient may not be followed, others may.
                Decision::Pass(Pass::NoConsent, _) => Ok(Copy { message: original.to_vec(), tracked: None }),
                _ => Err(Missing::Pointless),
            }
        };
        self.off_the_runtime(bytes, work).await
    }
}

impl Copies {
    fn took(&mut self, recipient: &Path, key: CopyKey) {
        self.addresses.insert(recipient.address.clone());
        self.keys.push(key);
    }
}

/// Waits for the memory of copies, but not for ever: a disk that does not answer gives nothing.
async fn within<T>(
    until: Instant,
    asked: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, Option<StoreError>> {
    let left = until.saturating_duration_since(Instant::now());
    tokio::time::timeout(left, asked).await.map_err(|_| None)?.map_err(Some)
}

/// Takes those who have their copy off the original.
pub(super) fn without(copies: &Copies) -> Vec<Edit> {
    copies.addresses.iter().map(|address| Edit::DeleteRecipient { address: address.clone() }).collect()
}

/// The recipients, each once; nothing if there is one only, or too many.
fn recipients(message: &Message, most: usize) -> Option<Vec<Path>> {
    let mut seen = HashSet::new();
    let each: Vec<Path> =
        message.recipients().iter().filter(|path| seen.insert(path.address.as_slice())).cloned().collect();
    (2..=most).contains(&each.len()).then_some(each)
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
