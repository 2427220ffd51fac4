//! `mailtap consent init|withdraw|allow|list`.
//!
//! - Layer: cli
//! - Takes: addresses or pseudonyms; the list that the configuration names.
//! - Gives: the changed list, which running roles read again within a second.
//! - On failure: the list stays as it was.
//! - See: `docs/privacy.md`, "Consent".

use std::path::Path;

use clap::{Subcommand, ValueEnum};
use serde_json::json;

use super::exit::{Exit, Failure, OrExit, Result};
use super::print;
use crate::config::Config;
use crate::consent::file::{WithdrawnFile, update};
use crate::consent::{Refused, Withdrawn};
use crate::identity::Pseudonym;
use crate::keys;

/// Keep the list of recipients who withdrew their consent.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mailtap consent init
  mailtap consent withdraw ann@example.net           nothing personal is recorded of her any more
  mailtap consent withdraw ann@example.net --only opens
  mailtap consent allow ann@example.net
  mailtap consent list ann@example.net")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
    /// As JSON, for scripts.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an empty list; an existing one stays as it is
    Init,
    /// Note that somebody withdraws
    Withdraw(Who),
    /// Note that somebody agrees again
    Allow(Who),
    /// Show who withdrew: pseudonyms, or one recipient's state
    List {
        /// An address, or a pseudonym.
        #[arg(value_name = "ADDRESS|PSEUDONYM", allow_hyphen_values = true)]
        who: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
struct Who {
    /// An address, or a pseudonym.
    #[arg(value_name = "ADDRESS|PSEUDONYM", allow_hyphen_values = true)]
    who: String,
    /// Only for pixels, or only for links.
    #[arg(long, value_enum)]
    only: Option<Only>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Only {
    Opens,
    Clicks,
}

impl Who {
    const fn what(&self) -> Refused {
        match self.only {
            None => Refused::ALL,
            Some(Only::Opens) => Refused { opens: true, clicks: false },
            Some(Only::Clicks) => Refused { opens: false, clicks: true },
        }
    }
}

impl Args {
    pub(super) fn run(self, config: &Path) -> Result {
        let (list, key) = Config::consent_paths(config).or_exit(Exit::Config)?;
        let list = list.ok_or_else(|| {
            let text = "consent.withdrawn_file is not set; name a file there, like \"withdrawn.list\"";
            Failure::new(Exit::Config, text)
        })?;
        let recipient = |who: &str| recipient(who, &key);
        let (action, recipient) = match &self.command {
            Command::Init => {
                update(&list, true, |_| ()).or_exit(Exit::CantCreate)?;
                return print(format!("{}\n", list.display()));
            }
            Command::List { who } => return self.list(&list, who.as_deref().map(recipient).transpose()?),
            Command::Withdraw(who) => {
                let (recipient, what) = (recipient(&who.who)?, who.what());
                update(&list, true, |list| list.withdraw(recipient, what)).or_exit(Exit::CantCreate)?;
                ("withdraw", recipient)
            }
            Command::Allow(who) => {
                let (recipient, what) = (recipient(&who.who)?, who.what());
                update(&list, false, |list| list.allow(recipient, what)).or_exit(Exit::CantCreate)?;
                ("allow", recipient)
            }
        };
        let now = WithdrawnFile::open(&list).or_exit(Exit::Config)?.current();
        self.say(action, recipient, &now)
    }

    fn list(&self, path: &Path, recipient: Option<Pseudonym>) -> Result {
        let list = WithdrawnFile::open(path).or_exit(Exit::Config)?.current();
        if let Some(recipient) = recipient {
            return self.say("list", recipient, &list);
        }
        list.iter().try_for_each(|(recipient, _)| self.say("list", recipient, &list))
    }

    fn say(&self, action: &str, recipient: Pseudonym, list: &Withdrawn) -> Result {
        let refused = list.of(&recipient);
        let word = |refused: bool| if refused { "withdrawn" } else { "not withdrawn" };
        if self.json {
            let object = json!({
                "action": action,
                "recipient": recipient,
                "opens_withdrawn": refused.opens,
                "clicks_withdrawn": refused.clicks,
            });
            return print(object.to_string() + "\n");
        }
        print(format!("{recipient}  opens {}, clicks {}\n", word(refused.opens), word(refused.clicks)))
    }
}

/// A pseudonym as it stands; anything else is an address, hashed with the site's key.
fn recipient(who: &str, key: &Path) -> Result<Pseudonym> {
    if let Ok(pseudonym) = who.parse() {
        return Ok(pseudonym);
    }
    if !who.contains('@') {
        return Err(Failure::new(Exit::Usage, "expected an address, or a pseudonym of 16 characters"));
    }
    Ok(keys::load_pseudonym_key(key).or_exit(Exit::Config)?.pseudonym(who))
}
