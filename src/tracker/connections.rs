//! Connections: how many, from whom, and how long each may take.
//!
//! - Layer: edge
//! - Takes: peers, and the bytes and answers that pass.
//! - Gives: a place for each connection, and the moment at which it has to be cut.
//! - On failure: a poisoned lock is read as it stands.
//! - Limits: those of `Limits`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::happenings::Connections;

/// How many connections each client has open.
#[derive(Debug, Default)]
pub(super) struct PerClient(Mutex<HashMap<IpAddr, usize>>);

/// One of a client's connections, as long as it lives.
#[derive(Debug)]
pub(super) struct Place {
    clients: Arc<PerClient>,
    client: IpAddr,
}

impl PerClient {
    /// A place for one more connection, unless the client has `limit` already.
    pub(super) fn place(self: &Arc<Self>, client: IpAddr, limit: usize) -> Option<Place> {
        let client = network(client);
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(client).or_insert(0);
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Place { clients: Arc::clone(self), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.clients.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.client);
            }
        }
    }
}

/// What counts as one client: an IPv4 address, or the /64 that one line of a provider has.
fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// Nothing, since its last answer.
    Idle,
    /// Sending the head of a request; a new connection begins here.
    Head,
    /// Waiting for our answers.
    Answer,
}

/// Since when a connection is doing what.
#[derive(Debug)]
pub(super) struct Watch {
    began: Instant,
    /// Whether a head is under way: the low bit, over milliseconds.
    state: AtomicU64,
    /// Requests that wait for their answer: one at most, but for HTTP/2.
    answering: AtomicU32,
    /// HTTP/2: bytes between requests may be no request.
    multiplexed: AtomicBool,
    /// The client takes no bytes, and there are some for it.
    blocked: AtomicBool,
    /// A request had a body, of which there may be more to come.
    has_body: AtomicBool,
    evicted: AtomicBool,
    stopping: AtomicBool,
    told: Notify,
}

/// What a connection is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// The place is needed for somebody else.
    Evicted,
    /// No more requests; said once.
    Stopping,
}

/// A request that waits for its answer; dropping it is the end, also where the client gave up.
#[derive(Debug)]
pub(super) struct Answering(Arc<Watch>);

impl Drop for Answering {
    fn drop(&mut self) {
        if self.0.answering.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.set(false);
        }
    }
}

impl Watch {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            state: AtomicU64::new(1),
            answering: AtomicU32::new(0),
            multiplexed: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            has_body: AtomicBool::new(false),
            evicted: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            told: Notify::new(),
        })
    }

    /// A request has come whole.
    pub(super) fn answering(self: &Arc<Self>, multiplexed: bool) -> Answering {
        if multiplexed {
            self.multiplexed.store(true, Ordering::Relaxed);
        }
        self.answering.fetch_add(1, Ordering::Relaxed);
        Answering(Arc::clone(self))
    }

    /// Waits for something to be told.
    pub(super) async fn told(&self) -> Told {
        loop {
            if self.evicted.load(Ordering::Relaxed) {
                return Told::Evicted;
            }
            if self.stopping.swap(false, Ordering::Relaxed) {
                return Told::Stopping;
            }
            self.told.notified().await;
        }
    }

    fn tell(&self, what: Told) {
        match what {
            Told::Evicted => self.evicted.store(true, Ordering::Relaxed),
            Told::Stopping => self.stopping.store(true, Ordering::Relaxed),
        }
        self.told.notify_one();
    }

    /// Whether all that was said has been heard, for so long that nothing needs to be kept ready.
    pub(super) fn rests(&self, for_: Duration) -> bool {
        let (doing, since) = self.doing();
        let has_more = self.blocked.load(Ordering::Relaxed) || self.has_body.load(Ordering::Relaxed);
        doing == Doing::Idle && !has_more && since.elapsed() >= for_
    }

    /// Notes that what comes next may be no head.
    pub(super) fn has_body(&self) {
        self.has_body.store(true, Ordering::Relaxed);
    }

    /// Notes whether the client takes bytes.
    pub(super) fn blocked(&self, blocked: bool) {
        self.blocked.store(blocked, Ordering::Relaxed);
    }

    fn set(&self, head: bool) {
        let millis = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX >> 1);
        self.state.store(millis << 1 | u64::from(head), Ordering::Relaxed);
    }

    fn doing(&self) -> (Doing, Instant) {
        let state = self.state.load(Ordering::Relaxed);
        let doing = match state & 1 {
            _ if self.answering.load(Ordering::Relaxed) > 0 => Doing::Answer,
            0 => Doing::Idle,
            _ => Doing::Head,
        };
        (doing, self.began + Duration::from_millis(state >> 1))
    }

    /// Whether the connection took too long, and for what; otherwise when to look again.
    ///
    /// The next look is never further away than `head_timeout`, so that a head that begins now is cut in time.
    pub(super) fn check(
        &self,
        head_timeout: Duration,
        idle_timeout: Duration,
    ) -> Result<Instant, &'static str> {
        let (doing, since) = self.doing();
        let now = Instant::now();
        let (end, reason) = match doing {
            Doing::Head => (since + head_timeout, "head-timeout"),
            Doing::Idle => (since + idle_timeout, "idle-timeout"),
            Doing::Answer => return Ok(now + head_timeout),
        };
        if now >= end { Err(reason) } else { Ok(end.min(now + head_timeout)) }
    }

    /// Bytes came.
    pub(super) fn heard(&self) {
        let idle = self.state.load(Ordering::Relaxed) & 1 == 0 && self.answering.load(Ordering::Relaxed) == 0;
        // A PING of HTTP/2 begins no request, and lengthens no idle time.
        if idle && !self.multiplexed.load(Ordering::Relaxed) {
            self.set(true);
        }
    }
}

/// All open connections, to find those that can best be spared.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    members: Mutex<Members>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Members {
    open: HashMap<u64, Arc<Watch>>,
    stopping: bool,
}

/// A connection's membership, as long as it lives.
#[derive(Debug)]
pub(super) struct Member {
    crowd: Arc<Crowd>,
    number: u64,
}

impl Crowd {
    /// How long a connection without a request is left alone whatever happens.
    const SPARED: Duration = Duration::from_secs(1);

    pub(super) fn join(self: &Arc<Self>, watch: &Arc<Watch>) -> Member {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let open = {
            let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
            if members.stopping {
                watch.tell(Told::Stopping);
            }
            members.open.insert(number, Arc::clone(watch));
            members.open.len()
        };
        Connections { open, began: true }.emit();
        Member { crowd: Arc::clone(self), number }
    }

    /// Cuts a few of the connections that have had no request for the longest time.
    pub(super) fn make_room(&self) {
        let now = Instant::now();
        let members = &self.members.lock().unwrap_or_else(PoisonError::into_inner).open;
        let idle = members.values().filter_map(|watch| {
            let (doing, since) = watch.doing();
            (doing != Doing::Answer && now.duration_since(since) >= Self::SPARED).then_some((since, watch))
        });
        let mut idle: Vec<_> = idle.collect();
        let few = (members.len() / 64).max(1).min(idle.len());
        if few > 0 {
            idle.select_nth_unstable_by_key(few - 1, |(since, _)| *since);
        }
        for (_, watch) in idle.iter().take(few) {
            watch.tell(Told::Evicted);
        }
    }

    /// Tells all, and whoever joins later, that there are to be no more requests.
    pub(super) fn stop(&self) {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.stopping = true;
        members.open.values().for_each(|watch| watch.tell(Told::Stopping));
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let open = {
            let mut members = self.crowd.members.lock().unwrap_or_else(PoisonError::into_inner);
            members.open.remove(&self.number);
            members.open.len()
        };
        Connections { open, began: false }.emit();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_a_number_of_places() {
        let clients = Arc::new(PerClient::default());
        let place = |address: &str| clients.place(address.parse().unwrap(), 2);
        let (one, two) = (place("192.0.2.1"), place("::ffff:192.0.2.1"));
        assert!(
            one.is_some() && two.is_some() && place("192.0.2.1").is_none() && place("192.0.2.2").is_some()
        );
        drop(one);
        assert!(place("192.0.2.1").is_some());
        let (_one, _two) = (place("2001:db8::1"), place("2001:db8::2"));
        assert!(place("2001:db8::3").is_none() && place("2001:db8:0:1::3").is_some());
        drop(two);
        assert!(!clients.0.lock().unwrap().contains_key(&"192.0.2.1".parse::<IpAddr>().unwrap()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_goes_first_and_who_waits_for_an_answer_stays() {
        let crowd = Arc::new(Crowd::default());
        let (old, busy, young) = (Watch::new(), Watch::new(), Watch::new());
        let _members = [&old, &busy, &young].map(|watch| crowd.join(watch));
        let answering = busy.answering(false);
        tokio::time::advance(Duration::from_secs(5)).await;
        drop(young.answering(false));
        let is_cut = async |watch: &Watch| {
            tokio::time::timeout(Duration::from_millis(1), watch.told()).await == Ok(Told::Evicted)
        };
        crowd.make_room();
        assert!(is_cut(&old).await && !is_cut(&busy).await && !is_cut(&young).await);
        drop(answering);
        assert_eq!(busy.doing().0, Doing::Idle);
        assert!(!busy.rests(Duration::from_secs(1)) && young.rests(Duration::from_millis(1)));
        young.blocked(true);
        assert!(!young.rests(Duration::ZERO), "there is an answer that the client does not take");
        crowd.stop();
        let late = Watch::new();
        let _member = crowd.join(&late);
        for watch in [&busy, &late] {
            assert_eq!(watch.told().await, Told::Stopping);
            let again = tokio::time::timeout(Duration::from_millis(1), watch.told()).await;
            assert!(again.is_err(), "once");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_between_requests_begin_a_head_but_for_http_2() {
        let (head, idle) = (Duration::from_secs(10), Duration::from_secs(75));
        for (multiplexed, cut) in [(false, Some("head-timeout")), (true, None)] {
            let watch = Watch::new();
            drop(watch.answering(multiplexed));
            tokio::time::advance(Duration::from_secs(20)).await;
            watch.heard();
            tokio::time::advance(Duration::from_secs(20)).await;
            assert_eq!(watch.check(head, idle).err(), cut);
            tokio::time::advance(Duration::from_secs(40)).await;
            watch.heard();
            assert!(watch.check(head, idle).is_err(), "a PING lengthens no idle time");
        }
    }
}
