//! Whether the user may publish and consume, asked without doing either.
//!
//! - Layer: edge
//! - Takes: a connection.
//! - Gives: what the user may not do that forwarder or relay have to.
//! - On failure: `AmqpError`.
//! - Limits: whether the relay may make its locks beside a work queue can't be asked without making it.
//! - See: RabbitMQ, "Access Control". It looks at the permission before it looks at the rest: a message with an expiration that is no
//!   number, and a consumer with a priority that is none, are refused where all is well, and for that reason.

use std::future::Future;
use std::time::Duration;

use lapin::options::{BasicConsumeOptions, BasicPublishOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};

use super::link::within;
use super::{AmqpError, Fault, How, Link};

/// What is no number.
const NONE: &str = "none";
/// How often to look whether the broker takes messages.
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl Link {
    /// The same answer, unless the broker takes no messages: then most questions have none.
    ///
    /// # Errors
    /// `AmqpError`: `Blocked`, or that of the question; with host and port.
    pub async fn unless_blocked<T>(
        &self,
        question: impl Future<Output = Result<T, AmqpError>>,
    ) -> Result<T, AmqpError> {
        let blocked = async {
            while !self.is_blocked() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let answer = tokio::select! {
            answer = question => answer,
            () = blocked => Err(AmqpError::Blocked),
        };
        answer.map_err(|error| error.at(self.broker()))
    }

    /// What the user lacks: to write to the exchanges, to read from the queues.
    ///
    /// # Errors
    /// `AmqpError`.
    pub async fn lacking(&self) -> Result<Vec<Fault>, AmqpError> {
        let topology = self.topology();
        let mut lacking = Vec::new();
        for (exchange, whose) in [
            (topology.to_work().0, "the forwarder"),
            (topology.dead_exchange(), "the relay"),
            // Retries, and whose a work queue is, go by the default exchange.
            (String::new(), "the relay"),
        ] {
            let channel = self.confirming().await?;
            let said = write(&channel, &exchange);
            lacking.extend(denied(within(self.timeout(), said).await, &exchange, whose, "write to")?);
        }
        for queue in topology.work_queues().iter().chain([&topology.dead_queue()]) {
            let whose = if *queue == topology.dead_queue() { "`mailtap dead`" } else { "the relay" };
            let channel = self.channel().await?;
            let said = read(&channel, queue);
            lacking.extend(denied(within(self.timeout(), said).await, queue, whose, "read from")?);
        }
        Ok(lacking)
    }

    /// What the forwarder lacks for copies, which only those who watch need.
    ///
    /// # Errors
    /// `AmqpError`.
    pub async fn lacking_for_copies(&self) -> Result<Option<Fault>, AmqpError> {
        let exchange = self.topology().events_exchange();
        let channel = self.confirming().await?;
        let said = write(&channel, &exchange);
        denied(within(self.timeout(), said).await, &exchange, "the forwarder", "write to")
    }
}

async fn write(channel: &Channel, exchange: &str) -> lapin::Result<()> {
    let properties = BasicProperties::default().with_expiration(NONE.into()).with_user_id(NONE.into());
    let options = BasicPublishOptions::default();
    channel.basic_publish(exchange.into(), NONE.into(), options, &[], properties).await?.await.map(drop)
}

async fn read(channel: &Channel, queue: &str) -> lapin::Result<()> {
    let mut arguments = FieldTable::default();
    arguments.insert("x-priority".into(), AMQPValue::LongString(NONE.into()));
    let options = BasicConsumeOptions::default();
    channel.basic_consume(queue.into(), "".into(), options, arguments).await.map(drop)
}

fn denied(
    answer: Result<(), AmqpError>,
    name: &str,
    whose: &str,
    what: &str,
) -> Result<Option<Fault>, AmqpError> {
    match answer {
        Err(AmqpError::Client(said)) if said.starts_with("ACCESS_REFUSED") => {
            let name = if name.is_empty() { "the default exchange" } else { name }.to_owned();
            let how = How::Other(format!("{said}; the user of {whose} needs the permission to {what} it"));
            Ok(Some(Fault { name, how }))
        }
        Ok(()) | Err(AmqpError::Client(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
