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
use super::port::{Found, Port};
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
    pub(super) port: Port,
}

/// The way to the port, for one message.
struct Way<'a> {
    splitter: &'a Splitter,
    door: Option<Door>,
    /// For the first sign of the port, as long as there was none.
    first: Duration,
    until: Instant,
    accepted: bool,
    refused: bool,
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
                Some(key) if served.contains(key) => copies.took(message, &recipient, *key),
                Some(key) => left.push((recipient, *key)),
                None => (),
            }
        }
        self.fall_back_on(&copies, message, fallback);
        if left.is_empty() {
            return copies;
        }
        let Some(first) = splitter.port.next_wait() else {
            SplitStopped { reason: "port_away", error: None }.emit();
            return copies;
        };
        let mut way = Way { splitter, door: None, first, until, accepted: false, refused: false };
        let stopped =
            self.hand_out(&mut way, message, &original, &left, &mut copies, now, fallback).await.err();
        if let Some((reason, error)) = &stopped {
            SplitStopped { reason, error: error.as_ref() }.emit();
        }
        if let Some(found) = way.found(stopped.map(|(reason, _)| reason)) {
            splitter.port.learn(found);
        }
        if let Some(door) = way.door {
            door.close().await;
        }
        copies
    }

    /// Makes and sends copies, one after the other.
    ///
    /// # Errors
    /// Why those who have none are left with the original.
    #[allow(clippy::too_many_arguments)]
    async fn hand_out(
        &self,
        way: &mut Way<'_>,
        message: &Arc<Message>,
        original: &Arc<Vec<u8>>,
        left: &[(Path, CopyKey)],
        copies: &mut Copies,
        now: Timestamp,
        fallback: &Fallback,
    ) -> Result<(), (&'static str, Option<StoreError>)> {
        let alone = |reason| (reason, None);
        if copies.addresses.is_empty() && !can_be_taken_off(message) {
            self.all_would(way, message, original, left).await.map_err(alone)?;
        }
        for (recipient, key) in left {
            match self.serve(way, message, original, recipient).await.map_err(alone)? {
                Some(links) => copies.links += links,
                None => continue,
            }
            copies.took(message, recipient, *key);
            self.fall_back_on(copies, message, fallback);
            // This copy is out; without a memory there must be no further ones.
            let noted = within(way.until, way.splitter.served.note(*key, now)).await;
            noted.map_err(|error| ("memory", error))?;
        }
        Ok(())
    }

    /// Asks beforehand, where Postfix can't be told afterwards who is to be taken off the original.
    ///
    /// # Errors
    /// Somebody would have to stay with it.
    async fn all_would(
        &self,
        way: &mut Way<'_>,
        message: &Arc<Message>,
        original: &Arc<Vec<u8>>,
        left: &[(Path, CopyKey)],
    ) -> Result<(), &'static str> {
        for (recipient, _) in left {
            let copy = tokio::time::timeout(way.left(), self.copy(message, original, recipient)).await;
            match copy.map_err(|_| "late")? {
                Ok(_) => (),
                Err(Missing::Pointless) => return Err("nothing_to_split"),
                Err(Missing::Untracked(_)) => return Err("not_all"),
            }
            let sign = way.sign();
            let asked =
                tokio::time::timeout(sign, way.open().await?.would_take(message.sender(), recipient)).await;
            way.heard(asked.unwrap_or(Err(Sent::Broken)))
                .map_err(|sent| if sent == Sent::Refused { "not_all" } else { "connection_broke" })?;
        }
        Ok(())
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
        way: &mut Way<'_>,
        message: &Arc<Message>,
        original: &Arc<Vec<u8>>,
        recipient: &Path,
    ) -> Result<Option<u32>, &'static str> {
        let until = way.until;
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
        let sign = way.sign();
        let open = way.open().await?;
        // Whom the port refuses stays with the original, which has an event of its own: none is stored for the copy.
        let asked = tokio::time::timeout(sign, open.ask(message.sender(), recipient)).await;
        let sent = match way.heard(asked.unwrap_or(Err(Sent::Broken))) {
            Ok(()) => {
                if let Some(tracked) = &copy.tracked {
                    let published =
                        tokio::time::timeout(left(), self.publish("", tracked, clock::now())).await;
                    if let Err(reason) =
                        published.map_err(|_| "late").and_then(|done| done.map_err(|(_, reason)| reason))
                    {
                        // The server waits for the copy: nothing else can be said on this connection.
                        way.door = None;
                        return Err(reason);
                    }
                }
                let sent = tokio::time::timeout(left(), way.open().await?.send(&copy.message)).await;
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
        way.accepted |= sent == Sent::Accepted;
        way.refused |= sent == Sent::Refused;
        match sent {
            Sent::Accepted => Ok(Some(copy.tracked.map_or(0, |tracked| tracked.report.tracked.into()))),
            Sent::Refused => Ok(None),
            Sent::Broken | Sent::Uncertain => {
                way.door = None;
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

impl Way<'_> {
    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// How long the next answer may take.
    fn sign(&self) -> Duration {
        self.left().min(self.first)
    }

    async fn open(&mut self) -> Result<&mut Door, &'static str> {
        let door = match self.door.take() {
            Some(door) => door,
            None => {
                let (address, left) = (self.splitter.settings.address, self.left());
                let opened = tokio::time::timeout(self.sign(), Door::open(address, left)).await;
                opened.ok().flatten().ok_or("no_connection")?
            }
        };
        Ok(self.door.insert(door))
    }

    /// Takes note of an answer to a recipient.
    fn heard(&mut self, asked: Result<(), Sent>) -> Result<(), Sent> {
        match asked {
            Ok(()) => self.first = Duration::MAX,
            Err(Sent::Refused) => (self.first, self.refused) = (Duration::MAX, true),
            Err(_) => self.door = None,
        }
        asked
    }

    /// What the message says of the port, if anything.
    fn found(&self, stopped: Option<&'static str>) -> Option<Found> {
        match stopped {
            Some("no_connection" | "connection_broke") => Some(Found::Away),
            _ if self.accepted => Some(Found::Takes),
            _ => self.refused.then_some(Found::Refuses),
        }
    }
}

impl Copies {
    /// However the recipient's address is written in the envelope.
    fn took(&mut self, message: &Message, recipient: &Path, key: CopyKey) {
        let written = message.recipients().iter().filter(|path| folded(path) == folded(recipient));
        self.addresses.extend(written.map(|path| path.address.clone()));
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

/// The recipients, each once, as Postfix delivers; nothing if there is one only, or too many.
fn recipients(message: &Message, most: usize) -> Option<Vec<Path>> {
    let mut seen = HashSet::new();
    let each: Vec<Path> =
        message.recipients().iter().filter(|path| seen.insert(folded(path))).cloned().collect();
    (2..=most).contains(&each.len()).then_some(each)
}

/// As Postfix compares addresses when it looks for duplicates.
fn folded(path: &Path) -> Vec<u8> {
    path.bare().to_ascii_lowercase()
}

/// Whether Postfix knows each recipient by the form that it showed: it shows addresses of mail that did not come by SMTP (without
/// `<>`) after it has rewritten them, and knows those of other forms by what it made of them.
fn can_be_taken_off(message: &Message) -> bool {
    let plain =
        |byte: &u8| byte.is_ascii_alphanumeric() || !byte.is_ascii() || b".#$&'*+-/=?^_`{|}~@".contains(byte);
    message.recipients().iter().all(|path| {
        let inner = path.address.strip_prefix(b"<").and_then(|address| address.strip_suffix(b">"));
        inner.is_some_and(|inner| {
            let domain = inner.iter().position(|byte| *byte == b'@').and_then(|at| inner.get(at + 1..));
            inner.iter().all(plain)
                && !inner.starts_with(b"@")
                && domain.is_some_and(|domain| {
                    !domain.is_empty() && !domain.contains(&b'@') && !domain.ends_with(b".")
                })
        })
    })
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
