//! `mailtap rewrite --via-milter`: one message through a running milter, ours or any other, as Postfix would send it.
//!
//! - Layer: cli
//! - Takes: a milter's address, a message with its envelope.
//! - Gives: the message as Postfix would queue it, with the line ends it came with; on standard error the verdict, and each
//!   change of the envelope.
//! - On failure: nothing on standard output; `Exit::Unavailable` when the milter does not answer as it should.
//! - Limits: 30 s for the whole conversation, Postfix's default for one command.

use std::io::Write;
use std::time::Duration;

use mailtap_milter::client::{Delivery, Mail, Mailbox, Outcome};
use mailtap_milter::driver::{Client, ClientError, Peer};
use mailtap_milter::wire::Offer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::exit::{Exit, Failure, OrExit, Result};
use super::terminal::shown;
use crate::config::units::{self, Listen};

const PATIENCE: Duration = Duration::from_secs(30);
/// What stands for a queue id in the milter's log line.
const QUEUE_ID: &str = "via-milter";

/// Sends the message and prints what becomes of it.
pub(super) fn run(address: &str, sender: &str, recipients: &[String], message: &[u8]) -> Result {
    let listen = units::listen(address).or_exit(Exit::Usage)?;
    let mailbox = |address: &str| Mailbox::new(format!("<{}>", bare(address)));
    let recipients = recipients.iter().map(|address| mailbox(address)).collect();
    let mail = Mail::parse(mailbox(sender), recipients, &without_stray_cr(message));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(Exit::Software)?;
    let conversation = async { tokio::time::timeout(PATIENCE, deliver(&listen, &mail)).await };
    let delivery = match runtime.block_on(conversation) {
        Ok(Ok(delivery)) => delivery,
        Ok(Err(error)) => {
            let no_frame = matches!(error, ClientError::Frame(_) | ClientError::Reply(_));
            let question = if no_frame { "; is that a milter?" } else { "" };
            return Err(Failure::new(Exit::Unavailable, format!("{address}: {}{question}", chain(&error))));
        }
        Err(_) => {
            let text = format!("{address}: no verdict within {} s", PATIENCE.as_secs());
            return Err(Failure::new(Exit::Unavailable, text));
        }
    };
    show(&mail, &delivery, message)
}

async fn deliver(listen: &Listen, mail: &Mail) -> std::result::Result<Delivery, ClientError> {
    match listen {
        Listen::Unix(path) => converse(UnixStream::connect(path).await?, mail).await,
        Listen::Tcp(address) => converse(TcpStream::connect(address).await?, mail).await,
        Listen::Named { host, port } => {
            converse(TcpStream::connect((host.as_str(), *port)).await?, mail).await
        }
    }
}

async fn converse<S>(stream: S, mail: &Mail) -> std::result::Result<Delivery, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut client = Client::negotiate(stream, &Offer::POSTFIX).await?;
    client.open(&Peer::default()).await?;
    let delivery = client.send(mail, QUEUE_ID).await?;
    let _ = client.quit().await;
    Ok(delivery)
}

fn show(mail: &Mail, delivery: &Delivery, original: &[u8]) -> Result {
    match &delivery.outcome {
        Outcome::Refused(reply) => {
            let text =
                format!("the milter refuses the message: {}", String::from_utf8_lossy(reply).trim_end());
            return Err(Failure::new(Exit::No, text));
        }
        Outcome::Discarded => return Err(Failure::new(Exit::No, "the milter throws the message away")),
        Outcome::Accepted => (),
        other => {
            return Err(Failure::new(
                Exit::Software,
                format!("the milter's answer is not known here: {other:?}"),
            ));
        }
    }
    // Without an edit not even a line end is other than it was.
    let output =
        if delivery.edits == 0 { original.to_vec() } else { like(original, delivery.mail.to_bytes()) };
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&output).and_then(|()| stdout.flush()).or_exit(Exit::Io)?;
    let edits = if delivery.edits == 1 { "edit" } else { "edits" };
    let mut stderr = anstream::stderr();
    let _ = writeln!(stderr, "accepted, {} {edits}", delivery.edits);
    for change in envelope_changes(mail, delivery) {
        let _ = writeln!(stderr, "  {change}");
    }
    Ok(())
}

/// What the milter made of the envelope, which the message itself does not show.
fn envelope_changes(before: &Mail, delivery: &Delivery) -> Vec<String> {
    let after = &delivery.mail;
    let mut changes = Vec::new();
    if before.sender != after.sender {
        changes.push(format!("sender changed: {} to {}", mailbox(&before.sender), mailbox(&after.sender)));
    }
    for gone in without(&before.recipients, &after.recipients) {
        changes.push(format!("recipient deleted: {}", mailbox(gone)));
    }
    for new in without(&after.recipients, &before.recipients) {
        changes.push(format!("recipient added: {}", mailbox(new)));
    }
    if let Some(reason) = &delivery.quarantine {
        changes.push(format!("to be held: {}", shown(&String::from_utf8_lossy(reason))));
    }
    changes
}

/// Those of one list that the other lacks, each as often as it does.
fn without<'a>(list: &'a [Mailbox], other: &[Mailbox]) -> Vec<&'a Mailbox> {
    let mut others: Vec<_> = other.iter().collect();
    let mut left = Vec::new();
    for mailbox in list {
        match others.iter().position(|other| *other == mailbox) {
            Some(at) => drop(others.swap_remove(at)),
            None => left.push(mailbox),
        }
    }
    left
}

/// A mailbox with its arguments.
fn mailbox(mailbox: &Mailbox) -> String {
    let parts = std::iter::once(&mailbox.address).chain(&mailbox.args);
    parts.map(|part| shown(&String::from_utf8_lossy(part))).collect::<Vec<_>>().join(" ")
}

/// Gives a message with CRLF the line ends of another.
fn like(original: &[u8], message: Vec<u8>) -> Vec<u8> {
    let first = memchr::memchr(b'\n', original);
    if first.is_none_or(|at| at > 0 && original.get(at - 1) == Some(&b'\r')) {
        return message;
    }
    let mut output = Vec::with_capacity(message.len());
    let mut rest = message.as_slice();
    while let Some(at) = memchr::memmem::find(rest, b"\r\n") {
        let (line, after) = rest.split_at(at);
        output.extend_from_slice(line);
        output.push(b'\n');
        rest = after.get(2..).unwrap_or_default();
    }
    output.extend_from_slice(rest);
    output
}

/// As Postfix takes it: a CR that ends no line becomes a blank (postconf(5), `cleanup_replace_stray_cr_lf`).
fn without_stray_cr(message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let stray: Vec<usize> =
        memchr::memchr_iter(b'\r', &message).filter(|at| message.get(at + 1) != Some(&b'\n')).collect();
    for at in stray {
        if let Some(byte) = message.get_mut(at) {
            *byte = b' ';
        }
    }
    message
}

fn bare(address: &str) -> &str {
    address.strip_prefix('<').and_then(|rest| rest.strip_suffix('>')).unwrap_or(address)
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_of_the_envelope_is_listed() {
        let mailbox = |address: &str| Mailbox::new(address);
        let before = Mail::parse(mailbox("<a@b>"), ["<c@d>", "<e@f>"].map(mailbox).to_vec(), b"X: 1\r\n\r\n");
        let mut delivery = Delivery::unchanged(before.clone());
        assert!(envelope_changes(&before, &delivery).is_empty());
        let new = Mailbox { address: b"<g@h>".to_vec(), args: vec![b"NOTIFY=NEVER".to_vec()] };
        delivery.mail.sender = mailbox("<>");
        delivery.mail.recipients = vec![mailbox("<e@f>"), new, mailbox("<e@f>")];
        delivery.quarantine = Some(b"looks\x1b odd".to_vec());
        assert_eq!(
            envelope_changes(&before, &delivery),
            [
                "sender changed: <a@b> to <>",
                "recipient deleted: <c@d>",
                "recipient added: <g@h> NOTIFY=NEVER",
                "recipient added: <e@f>",
                "to be held: looks\u{241b} odd",
            ]
        );
    }

    #[test]
    fn a_cr_that_ends_no_line_is_a_blank() {
        assert_eq!(without_stray_cr(b"a\rb\r\nc\r\r\nd\r"), b"a b\r\nc \r\nd ");
    }

    #[test]
    fn line_ends_are_those_of_the_original() {
        let message = || b"A: b\r\n\r\nc\rd\r\n".to_vec();
        assert_eq!(like(b"A: b\n\nc\n", message()), b"A: b\n\nc\rd\n");
        assert_eq!(like(b"A: b\r\n\r\nc\n", message()), message());
        assert_eq!(like(b"", message()), message());
    }
}
