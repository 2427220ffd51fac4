//! Requests that wait for their turn, a lane for each property: one that is slow leaves room for the others.
//!
//! - Layer: decision
//! - Takes: requests; how many of each property may be under way.
//! - Gives: the next request to send, by turns.
//! - On failure: nothing can fail.
//! - Limits: `most` requests under way; of these, half is shared out evenly and kept free for each property, the rest goes to
//!   whoever comes.

use std::collections::VecDeque;

use super::batch::Request;

/// The lanes.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    lanes: Vec<Lane<T>>,
    most: usize,
    under_way: usize,
    /// Events that wait.
    waiting: usize,
    turn: usize,
}

#[derive(Debug)]
struct Lane<T> {
    ready: VecDeque<Request<T>>,
    under_way: usize,
}

impl<T> Lanes<T> {
    pub(super) fn new(properties: usize, most: usize) -> Self {
        let lane = || Lane { ready: VecDeque::new(), under_way: 0 };
        let lanes = (0..properties.max(1)).map(|_| lane()).collect();
        Self { lanes, most: most.max(1), under_way: 0, waiting: 0, turn: 0 }
    }

    /// Adds requests; one of a property that there is not has nowhere to go and is never made.
    pub(super) fn put(&mut self, requests: Vec<Request<T>>) {
        for request in requests {
            if let Some(lane) = self.lanes.get_mut(request.property) {
                self.waiting += request.tags.len();
                lane.ready.push_back(request);
            }
        }
    }

    /// The next request to send, if one may be sent now; `allowed` says how many of a property may be under way.
    pub(super) fn start(&mut self, allowed: impl Fn(usize) -> usize) -> Option<Request<T>> {
        let count = self.lanes.len();
        let turns = (0..count).map(|step| (self.turn + step) % count);
        let property = turns.into_iter().find(|at| {
            self.lanes.get(*at).is_some_and(|lane| !lane.ready.is_empty()) && self.may_start(*at, &allowed)
        })?;
        self.turn = (property + 1) % count;
        let lane = self.lanes.get_mut(property)?;
        let request = lane.ready.pop_front()?;
        lane.under_way += 1;
        self.under_way += 1;
        self.waiting -= request.tags.len();
        Some(request)
    }

    /// A request of this property is no longer under way.
    pub(super) fn ended(&mut self, property: usize) {
        if let Some(lane) = self.lanes.get_mut(property) {
            lane.under_way = lane.under_way.saturating_sub(1);
            self.under_way = self.under_way.saturating_sub(1);
        }
    }

    /// Takes out what waits of a property beyond so many requests, those under way counted.
    pub(super) fn turn_back(&mut self, property: usize, beyond: usize) -> Vec<Request<T>> {
        let under_way = self.lanes.get(property).map_or(0, |lane| lane.under_way);
        self.take_out(property, beyond.saturating_sub(under_way))
    }

    /// Takes out what waits of a property beyond the first so many requests, or beyond those with so many events together.
    pub(super) fn beyond(&mut self, property: usize, requests: usize, events: usize) -> Vec<Request<T>> {
        let Some(lane) = self.lanes.get_mut(property) else { return Vec::new() };
        let mut sum = 0_usize;
        let fits = lane.ready.iter().take(requests).take_while(|request| {
            sum = sum.saturating_add(request.tags.len());
            sum <= events
        });
        let kept = fits.count();
        self.take_out(property, kept)
    }

    fn take_out(&mut self, property: usize, kept: usize) -> Vec<Request<T>> {
        let Some(lane) = self.lanes.get_mut(property) else { return Vec::new() };
        let back: Vec<Request<T>> = lane.ready.split_off(kept.min(lane.ready.len())).into();
        self.waiting -= back.iter().map(|request| request.tags.len()).sum::<usize>();
        back
    }

    /// How many requests of this property wait.
    pub(super) fn ready(&self, property: usize) -> usize {
        self.lanes.get(property).map_or(0, |lane| lane.ready.len())
    }

    /// Takes the events out of what waits that are not to be kept.
    pub(super) fn leave_out(&mut self, keep: impl Fn(&T) -> bool) -> Vec<T> {
        let mut out = Vec::new();
        for lane in &mut self.lanes {
            lane.ready.iter_mut().for_each(|request| out.extend(request.leave_out(&keep)));
            lane.ready.retain(|request| !request.tags.is_empty());
        }
        self.waiting -= out.len();
        out
    }

    /// Whether requests of this property wait.
    pub(super) fn waits(&self, property: usize) -> bool {
        self.ready(property) > 0
    }

    /// How many requests are under way.
    pub(super) fn under_way(&self) -> usize {
        self.under_way
    }

    /// How many events wait.
    pub(super) fn waiting_events(&self) -> usize {
        self.waiting
    }

    /// Whether more is wanted: nothing waits, or a property that could send has nothing.
    pub(super) fn wants_more(&self, allowed: impl Fn(usize) -> usize) -> bool {
        let idle = |(at, lane): (usize, &Lane<T>)| lane.ready.is_empty() && self.may_start(at, &allowed);
        self.lanes.iter().all(|lane| lane.ready.is_empty()) || self.lanes.iter().enumerate().any(idle)
    }

    fn may_start(&self, property: usize, allowed: &impl Fn(usize) -> usize) -> bool {
        let Some(lane) = self.lanes.get(property) else { return false };
        let share = self.most / (2 * self.lanes.len());
        let others = self.lanes.iter().enumerate().filter(|(at, _)| *at != property);
        let kept_free: usize = others.map(|(_, lane)| share.saturating_sub(lane.under_way)).sum();
        lane.under_way < allowed(property)
            && self.under_way < self.most
            && (lane.under_way < share || self.under_way + kept_free < self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(properties: &[usize]) -> Vec<Request<()>> {
        let request = |property: &usize| Request::empty(*property, vec![(), ()]);
        properties.iter().map(request).collect()
    }

    fn started(lanes: &mut Lanes<()>, allowed: impl Fn(usize) -> usize + Copy) -> Vec<usize> {
        std::iter::from_fn(|| lanes.start(allowed)).map(|request| request.property).collect()
    }

    #[test]
    fn properties_take_turns_and_leave_room_for_each_other() {
        let mut lanes = Lanes::new(2, 8);
        lanes.put(requests(&[0; 20]));
        assert_eq!(started(&mut lanes, |_| 99), [0; 6], "two places are kept for the other one");
        assert!(lanes.wants_more(|_| 99), "the other one could send");
        lanes.put(requests(&[1; 5]));
        assert_eq!(started(&mut lanes, |_| 99), [1, 1]);
        assert_eq!((lanes.under_way(), lanes.waiting_events()), (8, 2 * (14 + 3)));
        assert!(!lanes.wants_more(|_| 99));
        for property in [0, 0, 0, 1] {
            lanes.ended(property);
        }
        assert_eq!(started(&mut lanes, |_| 99), [0, 1, 0, 1]);
    }

    #[test]
    fn one_property_has_all_the_room() {
        let mut lanes = Lanes::new(1, 8);
        assert!(lanes.wants_more(|_| 99));
        lanes.put(requests(&[0; 20]));
        assert_eq!(started(&mut lanes, |_| 99).len(), 8);
        assert!(!lanes.wants_more(|_| 99));
        let mut lanes = Lanes::new(3, 1);
        lanes.put(requests(&[2, 1, 0]));
        assert_eq!(started(&mut lanes, |_| 99).len(), 1, "never more than there may be");
    }

    #[test]
    fn a_blocked_property_keeps_at_most_what_tries_the_way() {
        let mut lanes = Lanes::new(2, 8);
        lanes.put(requests(&[0, 0, 0, 1]));
        let allowed = |property| if property == 0 { 1 } else { 99 };
        assert_eq!(started(&mut lanes, allowed), [0, 1]);
        assert_eq!(lanes.turn_back(0, 1).len(), 2);
        lanes.ended(0);
        lanes.put(requests(&[0, 0, 0]));
        assert_eq!(lanes.turn_back(0, 1).len(), 2);
        assert_eq!(lanes.turn_back(0, 0).len(), 1);
        assert_eq!((lanes.waiting_events(), lanes.turn_back(7, 0).len()), (0, 0));
    }

    #[test]
    fn what_is_kept_has_a_limit_of_requests_and_one_of_events() {
        let mut lanes = Lanes::new(2, 8);
        lanes.put(requests(&[0; 9]));
        assert_eq!((lanes.beyond(0, 8, 99).len(), lanes.ready(0)), (1, 8));
        assert_eq!((lanes.beyond(0, 8, 11).len(), lanes.ready(0)), (3, 5));
        assert_eq!((lanes.beyond(0, 9, 0).len(), lanes.waiting_events()), (5, 0));
        assert_eq!((lanes.beyond(0, 9, 9).len(), lanes.beyond(7, 0, 0).len()), (0, 0));
    }
}
