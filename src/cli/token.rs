//! `mailtap token inspect` and `mailtap pseudonym`.
//!
//! - Layer: cli
//! - Takes: a token or a URL that holds one; an address.
//! - Gives: every field of the token, and whether the signature holds; the pseudonym.
//! - On failure: exit code 1 for a token that is not valid, with the reason.
//! - See: `docs/token-format.md`.

use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::exit::{Exit, Failure, OrExit, Result};
use super::print;
use super::terminal::{BAD, CARE, GOOD, paint};
use crate::config::Config;
use crate::keys::token::{self, Standing, Token, TokenError, Verified};
use crate::keys::{self, Keys};

/// Look into tokens.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Verify a token and show every field
    #[command(after_help = "\
Examples:
  mailtap token inspect https://t.example.org/c/EQAB…
  mailtap token inspect EwAB… --json | jq .message_id")]
    Inspect {
        /// The token, the tracking URL that holds it, or the value of X-Mailtap-Ref.
        #[arg(value_name = "TOKEN|URL")]
        token: String,
        /// As JSON, for scripts.
        #[arg(long)]
        json: bool,
    },
}

impl Args {
    pub(super) fn run(self, config: &Config) -> Result {
        let Command::Inspect { token, json } = self.command;
        let ring = Keys::open(&config.keyring).or_exit(Exit::Config)?.current();
        let result = token::verify(token_of(&token), &ring);
        let valid = matches!(&result, Ok(verified) if verified.standing == Standing::Good);
        if json {
            print(as_json(&result).to_string() + "\n")?;
        } else {
            print(as_text(&result))?;
        }
        if valid { Ok(()) } else { Err(Failure::silent(Exit::No)) }
    }
}

/// The token in a URL: the last segment of its path.
fn token_of(text: &str) -> &str {
    let text = text.trim();
    if !text.contains("://") {
        return text;
    }
    let path = text.split(['?', '#']).next().unwrap_or_default();
    let last = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    last.strip_suffix(".gif").unwrap_or(last)
}

fn as_json(result: &std::result::Result<Verified, TokenError>) -> Value {
    let verified = match result {
        Ok(verified) => verified,
        Err(error) => return json!({ "valid": false, "error": error.as_str() }),
    };
    let mut object = Map::new();
    object.insert("valid".into(), json!(verified.standing == Standing::Good));
    if verified.standing == Standing::Revoked {
        object.insert("error".into(), json!("revoked-key"));
    }
    for (name, value) in fields(verified) {
        object.insert(name.into(), value);
    }
    Value::Object(object)
}

fn fields(verified: &Verified) -> Vec<(&'static str, Value)> {
    let (kind, message, recipient, link, campaign, target) = match &verified.token {
        Token::Click(click) => (
            "click",
            click.message,
            click.recipient,
            Some(click.link),
            click.campaign.clone(),
            Some(&click.target),
        ),
        Token::Open(open) => ("open", open.message, open.recipient, None, open.campaign.clone(), None),
        Token::Ref(reference) => ("ref", reference.message, None, None, None, None),
    };
    vec![
        ("kind", json!(kind)),
        ("key_id", json!(verified.key_id)),
        ("message_id", json!(message)),
        ("message_time", json!(message.time())),
        ("recipient", json!(recipient)),
        ("link", json!(link)),
        ("campaign", json!(campaign)),
        ("target", json!(target)),
    ]
}

fn as_text(result: &std::result::Result<Verified, TokenError>) -> String {
    let verified = match result {
        Ok(verified) => verified,
        Err(error) => return format!("{}: {error}\n", paint(BAD, "not valid")),
    };
    let head = match verified.standing {
        Standing::Good => paint(GOOD, "valid"),
        Standing::Revoked => paint(CARE, "signed by a revoked key: not to be trusted"),
    };
    let lines = fields(verified).into_iter().filter(|(_, value)| !value.is_null());
    let lines = lines.map(|(name, value)| match value {
        Value::String(text) => format!("{name:<13} {text}\n"),
        other => format!("{name:<13} {other}\n"),
    });
    format!("{head}\n{}", lines.collect::<String>())
}

/// Print the pseudonym of an address.
#[derive(Debug, clap::Args)]
pub(super) struct PseudonymArgs {
    /// The address.
    address: String,
    /// As JSON, for scripts.
    #[arg(long)]
    json: bool,
}

impl PseudonymArgs {
    pub(super) fn run(self, config: &Config) -> Result {
        let key = keys::load_pseudonym_key(&config.pseudonym_key).or_exit(Exit::Config)?;
        if !self.address.contains('@') {
            return Err(Failure::new(Exit::Usage, "an address has an @: user@example.org"));
        }
        let pseudonym = key.pseudonym(&self.address);
        if self.json {
            print(json!({ "pseudonym": pseudonym }).to_string() + "\n")
        } else {
            print(format!("{pseudonym}\n"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_in_what_people_paste() {
        for text in [
            "EQAB",
            " EQAB ",
            "https://t.example.org/c/EQAB",
            "https://t.example.org/x/c/EQAB?utm=1#f",
            "http://t/o/EQAB.gif",
        ] {
            assert_eq!(token_of(text), "EQAB", "{text}");
        }
    }
}
