//! The handler at work on one message.
//!
//! - Layer: edge
//! - Takes: a message, the handler.
//! - Gives: its response.
//! - On failure: a panic becomes nothing; whoever waits decides what is answered then.

use std::boxed::Box;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use super::{Fallback, Handler, Response};
use crate::session::Message;

/// Memory that is counted while the handler has a message, as a multiple of it: the message, the whole text that is made
/// of it, the new body, and the answer with it.
pub(super) const WORK_FACTOR: usize = 4;

/// A handler's work on a message.
pub(super) struct Work {
    future: Option<Pin<Box<dyn Future<Output = Response> + Send>>>,
    fallback: Arc<Fallback>,
}

impl Work {
    pub(super) fn new<H: Handler>(handler: Arc<H>, message: Message) -> Self {
        let fallback = Arc::new(Fallback::default());
        let for_handler = Arc::clone(&fallback);
        let future = async move { handler.message(message, &for_handler).await };
        Self { future: Some(Box::pin(future)), fallback }
    }

    /// Works; `None` after a panic.
    pub(super) async fn done(&mut self) -> Option<Response> {
        let Some(future) = &mut self.future else { return None };
        let poll = poll_fn(|context| {
            let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context)));
            polled.map_or(Poll::Ready(None), |poll| poll.map(Some))
        });
        let done = poll.await;
        self.stop();
        done
    }

    /// Ends the work; gives what the handler wants answered in place of its response.
    pub(super) fn give_up(mut self) -> Option<Response> {
        self.stop();
        self.fallback.take()
    }

    fn stop(&mut self) {
        let future = self.future.take();
        // A panic there must not cost a connection.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(future)));
    }
}
