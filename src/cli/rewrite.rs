//! `mailtap rewrite`: the very function that the milter applies, or the running milter itself, on one message.
//!
//! - Layer: cli
//! - Takes: a message on standard input, its envelope as options.
//! - Gives: the message as it would go out, or with `--diff` what changes, on standard output; with `--explain` the reasons on
//!   standard error.
//! - On failure: nothing is printed on standard output unless it is the whole message.
//! - Limits: `policy.max_message`, beyond which the message passes as it came.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{Read, Write};

use serde_json::{Value, json};

use super::assemble;
use super::diff;
use super::exit::{Exit, OrExit, Result};
use super::terminal::{CARE, DIM, GOOD, paint, shown};
use super::via_milter;
use crate::config::Config;
use crate::filter::decide::{self, Decision, Envelope, Means};
use crate::keys::{self, Keys};
use crate::rewrite::{LineCounter, LinkWhat, PartWhat, Reason, Report};
use crate::service::clock;

/// Rewrite one message from standard input, just as the milter does.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mailtap rewrite --sender news@example.org --recipient ann@example.net < in.eml > out.eml
  mailtap rewrite --sender news@example.org --recipient ann@example.net --explain < in.eml > /dev/null
  mailtap rewrite --sender news@example.org --recipient ann@example.net --diff < in.eml
  mailtap rewrite --sender news@example.org --recipient ann@example.net --via-milter inet:127.0.0.1:8891 < in.eml

With --via-milter the message goes through a running milter, ours or any other. Ours takes it for real mail: it is
counted, and its event is stored.")]
pub(super) struct Args {
    /// The envelope sender; empty for the null sender.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    sender: String,
    /// An envelope recipient; may be repeated.
    #[arg(long = "recipient", value_name = "ADDRESS", required = true, num_args = 1.., value_parser = address)]
    recipients: Vec<String>,
    /// Say on standard error what was done with the message, each part and each link, and why.
    #[arg(long)]
    explain: bool,
    /// Print what changes, decoded, in place of the message.
    #[arg(long)]
    diff: bool,
    /// With --explain: as JSON.
    #[arg(long, requires = "explain")]
    json: bool,
    /// Send the message through the milter at this address, unix:PATH or inet:HOST:PORT, as Postfix would.
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["explain", "json", "diff"])]
    via_milter: Option<String>,
}

impl Args {
    pub(super) fn run(self, load: impl FnOnce() -> Result<Config>) -> Result {
        if let Some(address) = &self.via_milter {
            return via_milter::run(address, &self.sender, &self.recipients, &read_input()?);
        }
        self.rewrite(&load()?)
    }

    fn rewrite(self, config: &Config) -> Result {
        let policy = assemble::policy(config).or_exit(Exit::Config)?;
        let ring = Keys::open(&config.keyring).or_exit(Exit::Config)?.current();
        let pseudonyms = keys::load_pseudonym_key(&config.pseudonym_key).or_exit(Exit::Config)?;
        let (consents, _) = assemble::consents(config)?;
        let input = read_input()?;
        let means = Means {
            policy: &policy,
            ring: &ring,
            pseudonyms: &pseudonyms,
            consents: &consents,
            now: clock::now(),
            random: rand::random(),
        };
        let envelope = Envelope { sender: &self.sender, recipients: &self.recipients };
        let decision = decide::decide(&input, envelope, &means);
        let output = match &decision {
            Decision::Pass(..) => Cow::Borrowed(&input),
            Decision::Track(tracked) => Cow::Owned(tracked.apply(&input)),
        };
        if self.diff {
            let text = match (diff::diff(&input, &output), verdict(&decision)) {
                (text, (_, Some((label, sentence)))) if text.is_empty() => {
                    format!("nothing changes: {sentence} {}\n", paint(DIM, &format!("({label})")))
                }
                (text, _) => text,
            };
            anstream::stdout().write_all(text.as_bytes()).or_exit(Exit::Io)?;
        } else {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(&output).and_then(|()| stdout.flush()).or_exit(Exit::Io)?;
        }
        if self.explain {
            let text = if self.json {
                as_json(&decision, &input).to_string() + "\n"
            } else {
                as_text(&decision, &input)
            };
            anstream::stderr().write_all(text.as_bytes()).or_exit(Exit::Io)?;
        }
        Ok(())
    }
}

/// An address as a client of SMTP could give it; the null sender is empty.
fn address(text: &str) -> std::result::Result<String, String> {
    let is_odd = |c: char| c.is_whitespace() || c.is_control();
    // Within quotes blanks may stand.
    if text.contains(is_odd) && !text.contains('"') {
        return Err("an address has no blanks, as in news@example.org".into());
    }
    Ok(text.to_owned())
}

fn read_input() -> Result<Vec<u8>> {
    let mut input = Vec::new();
    std::io::stdin().lock().read_to_end(&mut input).or_exit(Exit::NoInput)?;
    Ok(input)
}

/// What became of the message: the word, the reason's label, the reason's sentence.
fn verdict(decision: &Decision) -> (&'static str, Option<(&'static str, &'static str)>) {
    use crate::rewrite::Outcome::{LeftAlone, Rewritten, Unchanged};
    match decision {
        Decision::Pass(pass, _) => ("passed", Some((pass.as_str(), pass.explain()))),
        Decision::Track(tracked) => match tracked.report.outcome {
            Rewritten => ("rewritten", None),
            Unchanged(reason) | LeftAlone(reason) => {
                ("headers only", Some((reason.as_str(), reason.explain())))
            }
        },
    }
}

fn report(decision: &Decision) -> Option<&Report> {
    match decision {
        Decision::Pass(_, report) => report.as_deref(),
        Decision::Track(tracked) => Some(&tracked.report),
    }
}

fn as_text(decision: &Decision, message: &[u8]) -> String {
    let (word, reason) = verdict(decision);
    let style = if word == "rewritten" { GOOD } else { CARE };
    let mut text = format!("message    {}", paint(style, word));
    if let Some((label, sentence)) = reason {
        let _ = write!(text, ": {sentence} {}", paint(DIM, &format!("({label})")));
    }
    text.push('\n');
    if let Decision::Track(tracked) = decision {
        let campaign = tracked.data.campaign.as_ref().map_or("none", |campaign| campaign.as_str());
        let _ = writeln!(text, "campaign   {campaign}\nmessage id {}", tracked.id);
    }
    let Some(report) = report(decision) else { return text };
    for part in &report.parts {
        let what = match part.what {
            PartWhat::Rewritten => paint(GOOD, "rewritten"),
            PartWhat::Opened => "its parts follow".to_owned(),
            PartWhat::Left(reason) => left(reason),
        };
        let path = if part.path.is_empty() { "-" } else { &part.path };
        let labels = [part.encoding.as_str(), part.charset.as_deref().unwrap_or_default()];
        let labels: String =
            labels.iter().filter(|label| !label.is_empty()).map(|label| format!(", {label}")).collect();
        let _ = writeln!(text, "part {path:<5} {}: {what}", shown(&format!("{}{labels}", part.content_type)));
    }
    let mut lines = LineCounter::new(message);
    for link in &report.links {
        let what = match link.what {
            LinkWhat::Tracked => paint(GOOD, &format!("link {}", link.number.unwrap_or_default())),
            LinkWhat::Left(reason) => left(reason),
        };
        let (line, target) = (lines.line_of(link.offset), shown(&link.target));
        let _ = writeln!(text, "line {line:<5} {target}\n           {what}");
    }
    if report.unlisted_links > 0 {
        let _ = writeln!(text, "links      {} more, which are not listed", report.unlisted_links);
    }
    for (name, pixel) in [("pixel", Some(&report.pixel)), ("AMP pixel", report.amp_pixel.as_ref())] {
        let _ = match pixel {
            Some(Ok(part)) => {
                writeln!(text, "{name:<10} in part {}", report.parts.get(*part).map_or("", |part| &part.path))
            }
            Some(Err(reason)) => writeln!(text, "{name:<10} {}: {}", paint(CARE, "none"), reason.explain()),
            None => Ok(()),
        };
    }
    text
}

fn left(reason: Reason) -> String {
    let label = paint(DIM, &format!("({})", reason.as_str()));
    format!("{}: {} {label}", paint(CARE, "left"), reason.explain())
}

fn as_json(decision: &Decision, message: &[u8]) -> Value {
    let (word, reason) = verdict(decision);
    let mut object = json!({ "outcome": word, "reason": reason.map(|(label, _)| label) });
    if let Decision::Track(tracked) = decision {
        object["message_id"] = json!(tracked.id);
        object["campaign"] = json!(tracked.data.campaign);
    }
    let Some(report) = report(decision) else { return object };
    let part_of = |index: usize| report.parts.get(index).map(|part| part.path.clone());
    object["parts"] = report
        .parts
        .iter()
        .map(|part| {
            let (what, reason) = match &part.what {
                PartWhat::Rewritten => ("rewritten", None),
                PartWhat::Opened => ("opened", None),
                PartWhat::Left(reason) => ("left", Some(reason.as_str())),
            };
            json!({ "part": part.path, "type": part.content_type, "encoding": part.encoding, "charset": part.charset,
                    "what": what, "reason": reason })
        })
        .collect();
    let mut lines = LineCounter::new(message);
    object["links"] = report
        .links
        .iter()
        .map(|link| {
            let reason = match &link.what {
                LinkWhat::Tracked => None,
                LinkWhat::Left(reason) => Some(reason.as_str()),
            };
            json!({ "part": part_of(link.part), "line": lines.line_of(link.offset), "target": link.target,
                    "number": link.number, "reason": reason })
        })
        .collect();
    let counts: serde_json::Map<_, _> =
        report.left_links.iter().map(|(reason, count)| (reason.as_str().to_owned(), json!(count))).collect();
    object["tracked"] = json!(report.tracked);
    object["left"] = Value::Object(counts);
    object["unlisted_links"] = json!(report.unlisted_links);
    let wish = report.opt_out;
    object["opt_out"] = json!({ "clicks": wish.clicks, "text": wish.text, "opens": wish.opens });
    for (name, pixel) in [("pixel", Some(&report.pixel)), ("amp_pixel", report.amp_pixel.as_ref())] {
        object[name] = match pixel {
            Some(Ok(part)) => json!({ "part": part_of(*part) }),
            Some(Err(reason)) => json!({ "part": null, "reason": reason.as_str() }),
            None => Value::Null,
        };
    }
    object
}
