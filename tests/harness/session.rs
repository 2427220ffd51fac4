//! An SMTP session, command by command.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A client's session.
pub struct Session {
    reader: BufReader<TcpStream>,
}

impl Session {
    /// Connects and says EHLO, whatever the server answers.
    pub fn open(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(300)))?;
        stream.set_nodelay(true)?;
        let mut session = Self { reader: BufReader::new(stream) };
        session.answer()?;
        session.command("EHLO test.example")?;
        Ok(session)
    }

    /// The last line of the server's next answer.
    pub fn answer(&mut self) -> io::Result<String> {
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(line.trim_end().to_owned());
            }
        }
    }

    /// One command and its answer.
    pub fn command(&mut self, line: &str) -> io::Result<String> {
        self.reader.get_mut().write_all(format!("{line}\r\n").as_bytes())?;
        self.answer()
    }

    /// Commands one after the other, up to the first that is refused; the last answer.
    pub fn commands(&mut self, lines: &[String]) -> io::Result<String> {
        let mut answer = String::new();
        for line in lines {
            answer = self.command(line)?;
            if !answer.starts_with(['2', '3']) {
                break;
            }
        }
        Ok(answer)
    }

    /// Sender, recipients and DATA; the answer is 354 unless something is refused.
    pub fn envelope(&mut self, sender: &str, recipients: &[&str]) -> io::Result<String> {
        let mut commands = vec![format!("MAIL FROM:<{sender}>")];
        commands.extend(recipients.iter().map(|recipient| format!("RCPT TO:<{recipient}>")));
        commands.push("DATA".to_owned());
        self.commands(&commands)
    }

    /// A piece of content that ends with a line and holds none that begins with a dot.
    pub fn raw(&mut self, lines: &str) -> io::Result<()> {
        self.reader.get_mut().write_all(lines.as_bytes())
    }

    /// The whole content and its end, without waiting for the answer.
    pub fn content(&mut self, message: &str) -> io::Result<()> {
        let mut data = String::with_capacity(message.len() + 64);
        for line in message.split_inclusive("\r\n") {
            data.push_str(if line.starts_with('.') { "." } else { "" });
            data.push_str(line);
        }
        data.push_str(if data.ends_with("\r\n") { ".\r\n" } else { "\r\n.\r\n" });
        self.reader.get_mut().write_all(data.as_bytes())
    }

    /// One transaction; the answer to the end of data, or the first refusal.
    pub fn send(&mut self, sender: &str, recipients: &[&str], message: &str) -> io::Result<String> {
        let answer = self.envelope(sender, recipients)?;
        if !answer.starts_with('3') {
            return Ok(answer);
        }
        self.content(message)?;
        self.answer()
    }
}
