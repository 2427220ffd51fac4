//! Where the tap puts things: events to the publisher, the checkpoint to its file.
//!
//! - Layer: edge
//! - Takes: events; a checkpoint after its events were published.
//! - Gives: both, durable.
//! - On failure: publishing is tried again with growing pauses until the process stops; a checkpoint that can't be saved
//!   is reported, and tried again when the next one is due.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::checkpoint::Checkpoint;
use super::happenings as happened;
use crate::event::Event;
use crate::queue::Publisher;
use crate::service::{Component, Lifecycle};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause before something is tried again.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Saving takes at most one part in so many of the time.
const SAVING_SHARE: u32 = 20;

/// Where events go.
pub(super) struct Sink {
    pub(super) publisher: Publisher,
    pub(super) batch: usize,
    pub(super) component: Component,
    pub(super) life: Lifecycle,
}

impl Sink {
    /// Publishes all events; `false` if the process stops before that was possible.
    pub(super) async fn publish(&self, mut events: Vec<Event>) -> bool {
        while !events.is_empty() {
            let rest = events.split_off(events.len().min(self.batch));
            if !self.publish_batch(events).await {
                return false;
            }
            events = rest;
        }
        true
    }

    async fn publish_batch(&self, events: Vec<Event>) -> bool {
        let mut pause = FIRST_PAUSE;
        loop {
            let Err(error) = self.publisher.publish(events.clone()).await else {
                if pause > FIRST_PAUSE {
                    self.component.ready();
                }
                happened::Published(&events).emit();
                return true;
            };
            happened::PublishFailed { error: &error, events: events.len(), retry_in: pause }.emit();
            self.component.not_ready(format!("can't publish: {error}"));
            if !self.wait(pause).await {
                return false;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Waits; `false` if the process stops meanwhile.
    pub(super) async fn wait(&self, pause: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(pause) => true,
            () = self.life.stop.cancelled() => false,
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.life.stop.is_cancelled()
    }
}

/// Where the checkpoint goes.
pub(super) struct Saver {
    pub(super) path: PathBuf,
    pub(super) interval: Duration,
    pub(super) saved: Instant,
    pub(super) took: Duration,
}

impl Saver {
    pub(super) fn is_due(&self) -> bool {
        self.saved.elapsed() >= self.interval.max(self.took * SAVING_SHARE)
    }

    pub(super) fn save(&mut self, checkpoint: Checkpoint, tracked: usize) {
        let begun = Instant::now();
        match checkpoint.save(&self.path) {
            Ok(()) => happened::CheckpointSaved { took: begun.elapsed(), tracked }.emit(),
            Err(error) => happened::CheckpointFailed { error: &error }.emit(),
        }
        self.took = begun.elapsed();
        self.saved = Instant::now();
    }
}
