//! Gives copies of a message back to Postfix, through a port that asks no milter of ours.
//!
//! - Layer: edge
//! - Takes: envelope and message of each copy, one after the other over one SMTP connection.
//! - Gives: for each whether the server took it.
//! - On failure: `Sent::Uncertain` when the connection broke after the last byte; the server may have taken the copy then.
//! - Limits: the caller's patience for each copy.
//! - See: RFC 5321; `docs/postfix.md`, "Several recipients"

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use lettre::transport::smtp::client::AsyncSmtpConnection;
use lettre::transport::smtp::commands::Data;
use lettre::transport::smtp::extension::ClientId;
use mailtap_milter::session::Path;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What became of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// The server answers for it now.
    Accepted,
    /// The server did not take it.
    Refused,
    /// The connection is of no use any more, and the copy was not sent.
    Broken,
    /// The connection broke before the answer: nobody knows.
    Uncertain,
}

/// An SMTP connection to our own Postfix.
pub(super) struct Door {
    connection: AsyncSmtpConnection,
    patience: Duration,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("patience", &self.patience).finish_non_exhaustive()
    }
}

impl Door {
    /// Connects and greets; `None` when nobody answers as a server should.
    pub(super) async fn open(address: SocketAddr, patience: Duration) -> Option<Self> {
        let connect = async {
            let stream = TcpStream::connect(address).await.ok()?;
            // The end of a message is a write of its own, which would wait for 40 ms otherwise.
            stream.set_nodelay(true).ok()?;
            AsyncSmtpConnection::connect_with_transport(Box::new(stream), &ClientId::default()).await.ok()
        };
        let connection = timeout(patience, connect).await.ok()??;
        Some(Self { connection, patience })
    }

    /// Asks whether a copy would be taken, up to the answer to `DATA`: nothing of it is sent yet. Who then does not send it drops
    /// the connection, and the server forgets it.
    ///
    /// # Errors
    /// `Refused` or `Broken`.
    pub(super) async fn ask(&mut self, sender: &Path, recipient: &Path) -> Result<(), Sent> {
        let (Some(mail), Some(rcpt)) = (command("MAIL FROM", sender), command("RCPT TO", recipient)) else {
            return Err(Sent::Refused);
        };
        self.lines([mail, rcpt, Data.to_string()]).await
    }

    /// Asks whether a recipient would be taken; nothing is begun by it.
    ///
    /// # Errors
    /// `Refused` or `Broken`.
    pub(super) async fn would_take(&mut self, sender: &Path, recipient: &Path) -> Result<(), Sent> {
        let (Some(mail), Some(rcpt)) = (command("MAIL FROM", sender), command("RCPT TO", recipient)) else {
            return Err(Sent::Refused);
        };
        self.lines([mail, rcpt, "RSET\r\n".to_owned()]).await
    }

    /// Sends the copy that was asked for; gives its queue id as well, where the server says it.
    pub(super) async fn send(&mut self, message: &[u8]) -> (Sent, Option<String>) {
        // The library ends the last line itself.
        let message = message.strip_suffix(b"\r\n").unwrap_or(message);
        match timeout(self.patience, self.connection.message(message)).await {
            Ok(Ok(response)) => (Sent::Accepted, response.message().find_map(queued_as)),
            Ok(Err(error)) if error.is_permanent() || error.is_transient() => (Sent::Refused, None),
            _ => (Sent::Uncertain, None),
        }
    }

    /// Says goodbye; nobody waits for the answer.
    pub(super) async fn close(mut self) {
        let _ = timeout(Duration::from_millis(100), self.connection.quit()).await;
    }

    async fn lines(&mut self, lines: impl IntoIterator<Item = String>) -> Result<(), Sent> {
        for line in lines {
            match timeout(self.patience, self.connection.command(line)).await {
                Ok(Ok(_)) => (),
                Ok(Err(error)) if error.is_permanent() || error.is_transient() => {
                    return Err(self.refused().await);
                }
                _ => return Err(Sent::Broken),
            }
        }
        Ok(())
    }

    async fn refused(&mut self) -> Sent {
        match timeout(self.patience, self.connection.command("RSET\r\n")).await {
            Ok(Ok(_)) => Sent::Refused,
            _ => Sent::Broken,
        }
    }
}

/// The queue id in `2.0.0 Ok: queued as X`.
fn queued_as(line: &str) -> Option<String> {
    let (_, id) = line.rsplit_once("queued as ")?;
    let end = id.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(id.len());
    id.get(..end).filter(|id| !id.is_empty()).map(str::to_owned)
}

/// An envelope command with the arguments that the MTA was given, but for the size, which has changed.
fn command(verb: &str, path: &Path) -> Option<String> {
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
    let mut line = format!("{verb}:<{}>", text(path.bare())?);
    for argument in path.args() {
        if argument.get(..5).is_some_and(|name| name.eq_ignore_ascii_case(b"SIZE=")) {
            continue;
        }
        line.push(' ');
        line.push_str(&text(argument)?);
    }
    let good = !line.chars().any(char::is_control) && !path.bare().contains(&b'>');
    good.then(|| line + "\r\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_lines() {
        let of = |address: &str| command("RCPT TO", &Path::new(address));
        assert_eq!(of("<ann@example.net>").unwrap(), "RCPT TO:<ann@example.net>\r\n");
        assert_eq!(of("\"a b\"@example.net").unwrap(), "RCPT TO:<\"a b\"@example.net>\r\n");
        assert_eq!(of("").unwrap(), "RCPT TO:<>\r\n");
        assert_eq!(of("<a@b>\r\nRSET"), None);
        assert_eq!(of("a@b> NOTIFY=NEVER"), None);
    }
}
