//! A publisher that tells others in the same process of what it published.
//!
//! - Layer: edge
//! - Takes: a publisher, and what is news of an event.
//! - Gives: a publisher that does the same, and tells the news once the event is on disk.
//! - On failure: a listener that does not keep up misses news, which is counted; publishing never waits for it.
//! - Limits: 16,384 news under way.
//! - See: `deliveries` and `acceptances`; roles still meet only at the queue.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::happenings::NewsMissed;
use super::{Publish, PublishError, Publisher};
use crate::event::Event;

/// How many news can be under way.
pub(super) const NEWS: usize = 16_384;

/// What is news of an event, if anything is.
pub(super) type Pick<T> = fn(&Event) -> Option<T>;

struct Telling<T> {
    inner: Publisher,
    pick: Pick<T>,
    teller: Teller<T>,
}

impl<T> std::fmt::Debug for Telling<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telling")
            .field("about", &self.teller.about)
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

/// Where news are told; `about` is their word in metrics.
pub(super) struct Teller<T> {
    about: &'static str,
    news: mpsc::Sender<T>,
}

impl<T> Clone for Teller<T> {
    fn clone(&self) -> Self {
        Self { about: self.about, news: self.news.clone() }
    }
}

/// Where news are told, and where they are heard.
pub(super) fn channel<T>(about: &'static str) -> (Teller<T>, mpsc::Receiver<T>) {
    let (news, listener) = mpsc::channel(NEWS);
    (Teller { about, news }, listener)
}

/// The publisher that tells.
pub(super) fn telling<T: Send + 'static>(inner: Publisher, pick: Pick<T>, teller: Teller<T>) -> Publisher {
    Arc::new(Telling { inner, pick, teller })
}

impl<T> Teller<T> {
    pub(super) fn tell(&self, news: T) {
        if self.news.try_send(news).is_err() {
            NewsMissed { about: self.about }.emit();
        }
    }
}

impl<T> Telling<T> {
    fn picked(&self, events: &[Event]) -> Vec<T> {
        events.iter().filter_map(self.pick).collect()
    }

    fn tell(&self, picked: Vec<T>) {
        picked.into_iter().for_each(|news| self.teller.tell(news));
    }
}

impl<T: Send + 'static> Publish for Telling<T> {
    fn publish(
        &self,
        events: Vec<Event>,
    ) -> Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send + '_>> {
        let picked = self.picked(&events);
        Box::pin(async move {
            self.inner.publish(events).await?;
            self.tell(picked);
            Ok(())
        })
    }

    fn offer(
        &self,
        events: Vec<Event>,
    ) -> Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send + '_>> {
        let picked = self.picked(&events);
        Box::pin(async move {
            self.inner.offer(events).await?;
            self.tell(picked);
            Ok(())
        })
    }
}
