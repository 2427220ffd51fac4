//! `mailtap amqp definitions`: exchanges and queues for an administrator to make.
//!
//! - Layer: cli
//! - Takes: the configuration.
//! - Gives: a definitions file for `rabbitmqctl import_definitions`.
//! - On failure: exit code 78 where no RabbitMQ is configured.
//! - See: RabbitMQ, "Schema Definition Export and Import"; `amqp.topology = "check"`.

use clap::Subcommand;

use super::exit::{Exit, Failure, OrExit, Result};
use super::{assemble, print};
use crate::config::Config;
use crate::queue::amqp::topology::Topology;

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
        /// The virtual host.
        #[arg(long, default_value = "/")]
        vhost: String,
    },
}

impl Args {
    pub(super) fn run(self, config: &Config) -> Result {
        let Command::Definitions { vhost } = self.command;
        let Some(amqp) = &config.amqp else {
            return Err(Failure::new(Exit::Config, "amqp.url is missing: there is no RabbitMQ to prepare"));
        };
        let definitions = Topology::new(assemble::broker(amqp).shape).definitions(&vhost);
        print(serde_json::to_string_pretty(&definitions).or_exit(Exit::Software)? + "\n")
    }
}
