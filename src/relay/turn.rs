//! The relay's turns: take events, make requests of them, send, settle; none of it waits for another.
//!
//! - Layer: role
//! - Takes: a source, what sends.
//! - Gives: requests are sent on tasks of their own, those of one turn together, so that nothing holds up the reading of answers.
//! - On failure: see the role.
//! - Limits: `max_in_flight` requests; as many events are gathered as fit into so many full requests.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::breaker::Breakers;
use super::happenings::{CaughtUp, InFlight, Paced};
use super::lanes::Lanes;
use super::pace::Paces;
use super::settle::Settler;
use super::validate;
use super::work::{self, Answered, Item, Relay};
use crate::queue::source::{Delivery, Source, SourceError};
use crate::service::{Lifecycle, clock};

/// So many events for each request that could go out are gathered before their window ends.
const ENOUGH: usize = 4;
/// How many answers are dealt with in one turn.
const ANSWERS: usize = 1_024;
/// How often to look, while events wait, if they have waited for too long.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub(super) struct Turns {
    relay: Arc<Relay>,
    source: Box<dyn Source>,
    life: Lifecycle,
    breakers: Breakers,
    lanes: Lanes<Item>,
    settler: Settler,
    gathered: Gathered,
    /// The connection that the source had in the last turn.
    epoch: u64,
    sending: JoinSet<()>,
    answers: (UnboundedSender<Answered>, UnboundedReceiver<Answered>),
    /// The most events in hand that no request was begun with.
    most: usize,
    /// The most requests to one property under way.
    per_property: usize,
    paces: Paces,
    began: Instant,
}

impl Turns {
    pub(super) fn new(relay: Relay, source: Box<dyn Source>, life: Lifecycle) -> Self {
        let settings = &relay.settings;
        let names = settings.properties.iter().map(|property| property.measurement_id.clone()).collect();
        Self {
            breakers: Breakers::new(life.health.component("relay"), names),
            lanes: Lanes::new(settings.properties.len(), settings.max_in_flight),
            settler: Settler::new(source.settler(), relay.memory.clone()),
            gathered: Gathered::default(),
            epoch: source.epoch(),
            sending: JoinSet::new(),
            answers: mpsc::unbounded_channel(),
            most: settings.max_in_flight.saturating_mul(validate::MAX_EVENTS).max(1),
            per_property: if settings.per_property == 0 { usize::MAX } else { settings.per_property },
            paces: Paces::new(settings.properties.len(), settings.per_property_hour, &source.waits()),
            began: Instant::now(),
            relay: Arc::new(relay),
            source,
            life,
        }
    }

    /// Goes on until `life.stop`.
    pub(super) async fn run(mut self) {
        loop {
            self.let_go();
            self.turn_back();
            self.start();
            self.settler.tell();
            if !self.wait().await {
                // What was taken and not begun goes back with the source.
                return;
            }
            if self.is_due() {
                self.prepare().await;
            }
        }
    }

    fn is_paused(&self) -> bool {
        self.life.stop.is_cancelled() || self.breakers.is_paused()
    }

    /// What nothing was begun with and came over a connection that is gone: it comes again, and is not to be sent from here as
    /// well.
    fn let_go(&mut self) {
        let epoch = self.source.epoch();
        if std::mem::replace(&mut self.epoch, epoch) == epoch {
            return;
        }
        let mut gone = self.lanes.leave_out(|item| item.is_of(epoch));
        gone.iter().for_each(|item| self.settler.release(item.id()));
        self.gathered.deliveries.retain(|delivery| {
            let stays = delivery.tag.is_of(epoch);
            gone.extend((!stays).then(|| work::item(delivery)));
            stays
        });
        self.settler.add(work::let_go(&gone), &mut self.breakers);
    }

    /// What waits for a blocked property while others work: back to the queue, so that it takes nobody's room. One request
    /// of it tries the way after each pause. So too whatever waited for so long that the source can't leave it here; and what
    /// an hourly limit holds back, once it crowds the others.
    fn turn_back(&mut self) {
        for (property, pause) in self.breakers.to_turn_back() {
            let back = self.lanes.turn_back(property, self.breakers.allowed(property));
            self.settler.add(work::turn_back(&back, pause), &mut self.breakers);
        }
        if let Some(last) = self.source.overdue() {
            let back = self.lanes.leave_out(|item| item.is_after(last));
            if !back.is_empty() {
                self.settler.add(work::give_back(&back), &mut self.breakers);
            }
        }
        let crowds = self.source.is_full() || self.lanes.waiting_events().saturating_mul(2) > self.most;
        if self.relay.settings.properties.len() > 1 && crowds {
            self.put_off();
        }
    }

    /// What the hourly limits hold back, but for what goes soon and takes no more than a share of half the room.
    fn put_off(&mut self) {
        let now = self.began.elapsed();
        let share = self.most.min(self.source.most()) / (2 * self.relay.settings.properties.len());
        for (property, kept) in self.paces.kept(now) {
            let mut back = self.lanes.beyond(property, kept, share);
            for (count, time) in self.paces.put_off(property, self.lanes.ready(property), back.len(), now) {
                let later: Vec<_> = back.drain(..count.min(back.len())).collect();
                self.settler.add(work::put_off(&later, time), &mut self.breakers);
            }
        }
    }

    /// Begins the requests that may begin.
    fn start(&mut self) {
        let now = self.began.elapsed();
        let mut begun = Vec::new();
        while !self.is_paused() {
            let (breakers, paces, most) = (&self.breakers, &self.paces, self.per_property);
            let allowed = |property| breakers.allowed(property).min(most).min(paces.allowed(property, now));
            let Some(request) = self.lanes.start(allowed) else { break };
            let property = request.property;
            let (request, expired) = work::fresh(request, clock::now());
            self.settler.add(expired, &mut self.breakers);
            match request {
                Some(request) => {
                    self.paces.take(property, now);
                    begun.push(request);
                }
                None => self.lanes.ended(property),
            }
        }
        if !begun.is_empty() {
            let (relay, answers) = (self.relay.clone(), self.answers.0.clone());
            self.sending.spawn(async move { relay.send(begun, &answers).await });
        }
        InFlight { requests: self.lanes.under_way() }.emit();
        self.tell_paces(now);
    }

    fn tell_paces(&mut self, now: Duration) {
        let lanes = &self.lanes;
        for (property, waits) in self.paces.news(|property| lanes.waits(property), now) {
            let Some(of) = self.relay.settings.properties.get(property) else { continue };
            let what = &of.measurement_id;
            if waits { Paced { what }.emit() } else { CaughtUp { what }.emit() }
        }
    }

    /// Waits until something happens; `false` when it is time to stop and nothing is open any more.
    async fn wait(&mut self) -> bool {
        let stopping = self.life.stop.is_cancelled();
        let room = self.most.saturating_sub(self.gathered.deliveries.len() + self.lanes.waiting_events());
        let (breakers, paces, most) = (&self.breakers, &self.paces, self.per_property);
        let now = self.began.elapsed();
        let held = paces.next(|property| self.lanes.waits(property), now).map(|next| self.began + next);
        let may_take = room > 0
            && !self.is_paused()
            && !self.settler.is_stuck()
            && self.lanes.wants_more(|property| {
                breakers.allowed(property).min(most).min(paces.allowed(property, now))
            });
        let (pause, again) = (self.breakers.next_end(), self.settler.again);
        let telling = self.settler.is_telling();
        let waits = self.lanes.waiting_events() > 0;
        let Self { source, life, breakers, lanes, settler, gathered, sending, answers, .. } = self;
        let (mut answered, answers) = (Vec::new(), &mut answers.1);
        tokio::select! {
            1.. = answers.recv_many(&mut answered, ANSWERS), if lanes.under_way() > 0 => {
                for (property, settled) in answered {
                    lanes.ended(property);
                    settler.add(settled, breakers);
                }
            }
            Some(sent) = sending.join_next(), if !sending.is_empty() => finished(sent),
            Some(told) = settler.told(), if telling => settler.close(told, breakers),
            taken = take(source, room, may_take), if may_take || !stopping => match taken {
                Ok(Taken::Events(taken)) => {
                    breakers.queue_works();
                    gathered.add(taken, self.relay.settings.batch_window);
                }
                Ok(Taken::Overdue(unseen)) => settler.add(work::give_back_unseen(&unseen), breakers),
                Err(error) => breakers.queue_trouble(error.to_string()),
            },
            () = at(gathered.until), if gathered.until.is_some() && !stopping => gathered.until = None,
            () = at(pause), if pause.is_some() && !stopping => breakers.end_pauses(),
            () = at(held), if held.is_some() && !stopping => {}
            () = tokio::time::sleep(LOOK_EVERY), if waits && !stopping => {}
            () = at(again), if again.is_some() && !stopping => {}
            () = life.stop.cancelled(), if !stopping => {}
            else => return false,
        }
        true
    }

    /// Whether to wait no longer for more events of the same clients: their time is over and a request could go out, no more can
    /// come, or there are enough for all requests that could go out now.
    fn is_due(&self) -> bool {
        let count = self.gathered.deliveries.len();
        let idle = self.relay.settings.max_in_flight.saturating_sub(self.lanes.under_way());
        let enough = self.lanes.waiting_events() == 0 && idle > 0 && count >= idle.saturating_mul(ENOUGH);
        let full = count >= self.most || self.source.is_full();
        let over = self.gathered.until.is_none() && idle > 0;
        count > 0 && !self.life.stop.is_cancelled() && (over || full || enough)
    }

    async fn prepare(&mut self) {
        self.gathered.until = None;
        let deliveries = std::mem::take(&mut self.gathered.deliveries);
        let (requests, sorted_out) = self.relay.prepare(deliveries, &mut self.settler).await;
        self.lanes.put(requests);
        self.settler.add(sorted_out, &mut self.breakers);
    }
}

/// Takes what the source gives. While nothing may be taken, what was refused could wait for ever without this.
async fn take(source: &mut Box<dyn Source>, room: usize, may_take: bool) -> Result<Taken, SourceError> {
    if !may_take {
        return Ok(Taken::Overdue(source.tend().await));
    }
    source.next(room).await.map(Taken::Events)
}

/// What the source gave.
enum Taken {
    Events(Vec<Delivery>),
    /// What it can hold no longer, and nobody took.
    Overdue(Vec<Delivery>),
}

fn finished<T>(sent: Result<T, tokio::task::JoinError>) -> T {
    // Nobody aborts them: it can only have panicked.
    sent.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Deliveries that wait a little for more of the same clients.
#[derive(Debug, Default)]
struct Gathered {
    deliveries: Vec<Delivery>,
    until: Option<Instant>,
}

impl Gathered {
    fn add(&mut self, taken: Vec<Delivery>, window: Duration) {
        if self.deliveries.is_empty() && !taken.is_empty() {
            self.until = Some(Instant::now() + window);
        }
        self.deliveries.extend(taken);
    }
}

async fn at(moment: Option<Instant>) {
    if let Some(moment) = moment {
        tokio::time::sleep_until(moment).await;
    }
}
