//! What leads from exchanges to work queues: made, unmade, and what other layouts left of it.
//!
//! - Layer: edge
//! - Takes: a connection.
//! - Gives: the bindings of the topology; none of earlier layouts; work queues of other layouts that still hold messages.
//! - On failure: `AmqpError`; what the broker refuses of a binding is gathered with what else is wrong.
//! - Limits: queues of other layouts are looked for by their names, up to the first number that is not there.
//! - See: `docs/decisions/0017-straight-to-the-work-queue.md`.

use lapin::options::{ExchangeUnbindOptions, QueueBindOptions};
use lapin::types::{AMQPValue, FieldTable};

use super::link::within;
use super::topology::{Binding, Bound};
use super::{AmqpError, Fault, Link, Mode};

impl Link {
    pub(super) async fn bind(&self, faults: &mut Vec<Fault>) -> Result<(), AmqpError> {
        for binding in &self.topology().bindings {
            let channel = self.channel().await?;
            let (queue, exchange) = (binding.queue.as_str().into(), binding.exchange.as_str().into());
            let options = QueueBindOptions::default();
            let bound = channel.queue_bind(queue, exchange, binding.key.into(), options, compared(binding));
            self.gather(faults, &binding.queue, within(self.timeout(), bound).await)?;
        }
        // Copies for watchers go to nobody who works events off.
        let (exchange, key, bound) = self.topology().formerly_bound();
        self.unbind(&exchange, key, &bound).await
    }

    /// What is not bound any more is no fault of anybody's.
    async fn unbind(&self, exchange: &str, key: &str, bound: &Bound) -> Result<(), AmqpError> {
        let channel = self.channel().await?;
        let (exchange, key, none) = (exchange.into(), key.into(), FieldTable::default());
        match bound {
            Bound::Queue(name) => {
                within(self.timeout(), channel.queue_unbind(name.as_str().into(), exchange, key, none)).await
            }
            Bound::Exchange(name) => {
                let options = ExchangeUnbindOptions::default();
                let unbound = channel.exchange_unbind(name.as_str().into(), exchange, key, options, none);
                within(self.timeout(), unbound).await
            }
        }
    }

    /// Work queues of layouts with another number of them that still hold messages, and how many: nobody takes these. What leads there
    /// is unbound where the topology is ours to declare.
    ///
    /// # Errors
    /// `AmqpError`.
    pub async fn left_over(&self) -> Result<Vec<(String, u32)>, AmqpError> {
        let mut found = Vec::new();
        let (events, key, _) = self.topology().formerly_bound();
        let is_ours = self.mode == Mode::Declare;
        if let Some(name) = self.topology().others_single()
            && let Some(count) = self.depth(&name).await?
        {
            if is_ours {
                self.unbind(&events, key, &Bound::Queue(name.clone())).await?;
            }
            found.push((name, count));
        }
        for (number, name) in self.topology().others_numbered() {
            let Some(count) = self.depth(&name).await? else { break };
            if let Some(spread) = self.topology().spread.clone().filter(|_| is_ours) {
                let binding = Binding::of_partition(spread, name.clone(), number);
                let channel = self.channel().await?;
                let (queue, exchange) = (binding.queue.as_str().into(), binding.exchange.as_str().into());
                let unbound = channel.queue_unbind(queue, exchange, binding.key.into(), compared(&binding));
                within(self.timeout(), unbound).await?;
            }
            found.push((name, count));
        }
        if let Some(spread) = self.topology().others_spread().filter(|_| is_ours && !found.is_empty()) {
            // It may be gone, and its queues not.
            let _ = self.unbind(&events, key, &Bound::Exchange(spread)).await;
        }
        found.retain(|(_, count)| *count > 0);
        Ok(found)
    }

    /// How many messages are ready in a queue that need not be there.
    pub(in crate::queue) async fn depth(&self, queue: &str) -> Result<Option<u32>, AmqpError> {
        match self.ready(&self.channel().await?, queue).await {
            Ok(count) => Ok(Some(count)),
            // It says the same, in other words, of one whose node is down.
            Err(AmqpError::Client(said)) if said.starts_with("NOT_FOUND - no queue") => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What a binding compares headers with.
fn compared(binding: &Binding) -> FieldTable {
    let mut arguments = FieldTable::default();
    for (name, value) in binding.arguments() {
        arguments.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    arguments
}
