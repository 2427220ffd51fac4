//! `mailtap token inspect` and `mailtap pseudonym`.
//!
//! - Layer: cli
//! - Takes: a token, or a URL or cookie that holds one; an address.
//! - Gives: every field of the token, and whether the signature holds; the pseudonym.
//! - On failure: exit code 1 for a token that is not valid, with the reason.
//! - See: `docs/token-format.md`.

use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::exit::{Exit, Failure, OrExit, Result};
use super::print;
use super::terminal::{BAD, CARE, GOOD, paint};
use crate::config::Config;
use crate::keys::ring::Keyring;
use crate::keys::token::{self, Standing, Token, TokenError, Verified};
use crate::keys::visitor::{self, Signed};
use crate::keys::{self, Keys};
use crate::relay::map::of_recipient as client_id_of;

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
  mailtap token inspect EwAB… --json | jq .message_id
  mailtap token inspect FAAB… --json | jq .issued")]
    Inspect {
        /// The token, the tracking URL that holds it, the value of X-Mailtap-Ref, or a visitor's cookie.
        #[arg(value_name = "TOKEN|URL|COOKIE")]
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
        let result = read(token_of(&token), &ring);
        let valid = matches!(&result, Ok(found) if found.standing() == Standing::Good);
        if json {
            print(as_json(&result).to_string() + "\n")?;
        } else {
            print(as_text(&result))?;
        }
        if valid { Ok(()) } else { Err(Failure::silent(Exit::No)) }
    }
}

/// A token whose signature holds.
enum Found {
    /// In a message.
    Mailed(Verified),
    /// In a cookie.
    Visitor(Signed),
}

impl Found {
    const fn standing(&self) -> Standing {
        match self {
            Self::Mailed(verified) => verified.standing,
            Self::Visitor(signed) => signed.standing,
        }
    }
}

fn read(text: &str, ring: &Keyring) -> std::result::Result<Found, TokenError> {
    match token::verify(text, ring) {
        // Of a kind that no message carries; what is no cookie's either keeps this answer.
        Err(TokenError::Version) => match visitor::inspect(text, ring) {
            Err(TokenError::Encoding) => Err(TokenError::Version),
            result => result.map(Found::Visitor),
        },
        result => result.map(Found::Mailed),
    }
}

/// The token in a URL: the last segment of its path; in a cookie: its value.
fn token_of(text: &str) -> &str {
    let text = text.trim();
    if !text.contains("://") {
        let (_, value) = text.split_once('=').unwrap_or(("", text));
        return value.split(';').next().unwrap_or(value).trim();
    }
    let path = text.split(['?', '#']).next().unwrap_or_default();
    let last = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    last.strip_suffix(".gif").unwrap_or(last)
}

fn as_json(result: &std::result::Result<Found, TokenError>) -> Value {
    let found = match result {
        Ok(found) => found,
        Err(error) => return json!({ "valid": false, "error": error.as_str() }),
    };
    let mut object = Map::new();
    object.insert("valid".into(), json!(found.standing() == Standing::Good));
    if found.standing() == Standing::Revoked {
        object.insert("error".into(), json!("revoked-key"));
    }
    for (name, value) in fields(found) {
        object.insert(name.into(), value);
    }
    Value::Object(object)
}

fn fields(found: &Found) -> Vec<(&'static str, Value)> {
    match found {
        Found::Mailed(verified) => mailed(verified),
        Found::Visitor(Signed { visitor, key_id, .. }) => vec![
            ("kind", json!("visitor")),
            ("key_id", json!(key_id)),
            ("recipient", json!(visitor.recipient)),
            ("issued", json!(visitor.issued)),
        ],
    }
}

fn mailed(verified: &Verified) -> Vec<(&'static str, Value)> {
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

fn as_text(result: &std::result::Result<Found, TokenError>) -> String {
    let found = match result {
        Ok(found) => found,
        Err(error) => return format!("{}: {error}\n", paint(BAD, "not valid")),
    };
    let head = match found.standing() {
        Standing::Good => paint(GOOD, "valid"),
        Standing::Revoked => paint(CARE, "signed by a revoked key: not to be trusted"),
    };
    let lines = fields(found).into_iter().filter(|(_, value)| !value.is_null());
    let lines = lines.map(|(name, value)| match value {
        Value::String(text) => format!("{name:<13} {text}\n"),
        other => format!("{name:<13} {other}\n"),
    });
    format!("{head}\n{}", lines.collect::<String>())
}

/// Print the pseudonym of an address.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mailtap pseudonym ann@example.net
  mailtap pseudonym ann@example.net --client-id      whom to erase in GA4
  mailtap dead drop --recipient \"$(mailtap pseudonym ann@example.net)\"")]
pub(super) struct PseudonymArgs {
    /// The address.
    address: String,
    /// The client_id in GA4 that is derived from it, instead; a visitor whose own was known is another client there.
    #[arg(long, conflicts_with = "json")]
    client_id: bool,
    /// As JSON, for scripts: both.
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
        let client_id = client_id_of(&pseudonym);
        if self.json {
            print(json!({ "pseudonym": pseudonym, "client_id": client_id }).to_string() + "\n")
        } else if self.client_id {
            print(client_id + "\n")
        } else {
            print(format!("{pseudonym}\n"))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
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
            "mailtap_v=EQAB",
            "mailtap_v=EQAB; Max-Age=1; Secure",
        ] {
            assert_eq!(token_of(text), "EQAB", "{text}");
        }
    }
    #[test]
    fn a_visitors_cookie_is_read_and_a_changed_one_is_not() {
        let now = crate::identity::Timestamp::from_secs(1_795_000_000);
        let ring = Keyring::new([7; 32], now);
        let recipient = crate::identity::Pseudonym::from([0x11; 12]);
        let cookie = visitor::Visitor { recipient, issued: now };
        let text = visitor::sign(&cookie, ring.signing_for(None, now).unwrap());
        let value = as_json(&read(&text, &ring));
        assert_eq!((&value["valid"], &value["kind"]), (&json!(true), &json!("visitor")), "{value}");
        assert_eq!((&value["recipient"], &value["issued"]), (&json!(recipient), &json!(now)), "{value}");
        assert!(as_text(&read(&text, &ring)).contains("visitor"));
        let other = Keyring::new([8; 32], now);
        assert_eq!(as_json(&read(&text, &other)), json!({ "valid": false, "error": "mac" }));
        assert_eq!(as_json(&read(&text[..46], &ring))["valid"], json!(false));
        assert_eq!(as_json(&read("FEAB", &ring)), json!({ "valid": false, "error": "version" }));
    }
}
