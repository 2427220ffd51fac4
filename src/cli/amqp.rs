//! `mailtap amqp definitions`: exchanges and queues for an administrator to make.
//!
//! - Layer: cli
//! - Takes: the configuration.
//! - Gives: a definitions file for `rabbitmqctl import_definitions`; whether all is there.
//! - On failure: exit code 78 where no RabbitMQ is configured, 69 where it does not answer, 1 where something is missing or
//!   otherwise.
//! - See: RabbitMQ, "Schema Definition Export and Import"; `amqp.topology = "check"`.

use clap::Subcommand;

use super::dead_broker::runtime;
use super::exit::{Exit, Failure, OrExit, Result};
use super::{assemble, print};
use crate::config::Config;
use crate::queue::amqp::topology::Topology;
use crate::queue::amqp::{AmqpError, Link, Mode, Settings, vhost_of};

/// Prepare RabbitMQ by hand.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print exchanges, queues and bindings as a definitions file
    #[command(after_help = "\
Example, with amqp.topology = \"check\" in the configuration:
  mailtap amqp definitions > definitions.json && rabbitmqctl import_definitions definitions.json")]
    Definitions {
        /// The virtual host; by default that of `amqp.url`.
        #[arg(long)]
        vhost: Option<String>,
    },
    /// Look whether exchanges and queues are there and as they should be, and whether the user may write and read
    ///
    /// Nothing is published or taken. Arguments are compared where the user may declare. Bindings can't be asked for over AMQP: those that are needed are listed.
    /// A missing one to a work queue shows in /readyz of the forwarder when the first event for it is published; nothing is lost by that.
    Check,
}

impl Args {
    pub(super) fn run(self, config: &Config) -> Result {
        let Some(amqp) = &config.amqp else {
            return Err(Failure::new(Exit::Config, "amqp.url is missing: there is no RabbitMQ to prepare"));
        };
        let vhost = match self.command {
            Command::Definitions { vhost } => {
                vhost.or_else(|| vhost_of(&config.raw.amqp.url)).unwrap_or_else(|| "/".to_owned())
            }
            Command::Check => return check(assemble::broker(amqp)?),
        };
        let definitions = Topology::new(assemble::shape(amqp)).definitions(&vhost);
        print(serde_json::to_string_pretty(&definitions).or_exit(Exit::Software)? + "\n")
    }
}

fn check(settings: Settings) -> Result {
    let settings = Settings { topology: Mode::Check, ..settings };
    runtime()?.block_on(async {
        let link = match Link::open(&settings, "mailtap amqp check").await {
            Ok(link) => link,
            Err(error) => {
                let answers = matches!(error.cause(), AmqpError::Topology(_));
                return Err(Failure::new(if answers { Exit::No } else { Exit::Unavailable }, error));
            }
        };
        let topology = link.topology();
        let queues = topology.queues.iter().map(|queue| &queue.name);
        let names: Vec<_> =
            topology.exchanges.iter().chain(&topology.spread).chain(queues).cloned().collect();
        let asked =
            async { Ok((link.lacking().await?, link.lacking_for_copies().await?, link.left_over().await?)) };
        let (lacking, no_copies, left) = link.unless_blocked(asked).await.or_exit(Exit::Unavailable)?;
        link.close().await;
        if !lacking.is_empty() {
            return Err(Failure::new(Exit::No, AmqpError::Topology(lacking).at(link.broker())));
        }
        let no_copies = no_copies.map(|fault| {
            let why = AmqpError::Topology(vec![fault]);
            format!("note: `mailtap events tail` shows nothing, all else works: {why}\n")
        });
        let left: String = left.iter().map(|(queue, count)| left_note(queue, *count)).collect();
        print(names.join("\n") + "\n" + &bindings_note(topology) + &no_copies.unwrap_or_default() + &left)
    })
}

fn left_note(queue: &str, count: u32) -> String {
    format!(
        "warning: {queue} holds {count} messages and is of a layout with another amqp.partitions: no relay takes them; see \"To \
         change partitions\" in docs/operations.md\n"
    )
}

/// AMQP has no question for a binding, only ways to make one; a test message could be taken for an event.
fn bindings_note(topology: &Topology) -> String {
    let to_queues = topology.bindings.iter().map(|binding| {
        let arguments: String =
            binding.arguments().iter().map(|(name, value)| format!(", {name}={value}")).collect();
        format!("  {} -> {} (key \"{}\"{arguments})\n", binding.exchange, binding.queue, binding.key)
    });
    let bindings: String = to_queues.collect();
    format!(
        "note: not checked, because AMQP can't ask for bindings; compare with `rabbitmqctl list_bindings`, or import what \
         `mailtap amqp definitions` prints:\n{bindings}note: not checked either: whether the relay may make its locks beside each work queue, NAME.owner.claim and NAME.owner.taken (configure)\n"
    )
}
