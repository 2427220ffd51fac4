//! How much of a log is known: the share of its lines, and the shapes of those that are not.
//!
//! - Layer: decision
//! - Takes: the lines of a log.
//! - Gives: `Coverage`: counts, and shapes without names, addresses, numbers or texts.
//! - On failure: nothing can fail.
//! - Limits: `MAX_SHAPES` different shapes; further ones are counted together.

use std::collections::HashMap;

use super::line::Line;
use super::loss::{loss, repetitions};
use super::record::{Name, Record};
use super::shape::shape;

/// More shapes than anybody reads.
const MAX_SHAPES: usize = 1_000;

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Coverage {
    /// All lines.
    pub lines: u64,
    /// Of these, lines that no daemon of Postfix wrote.
    pub foreign: u64,
    /// Lines of Postfix that tell what became of a message.
    pub relevant: u64,
    /// Lines of Postfix that are known to tell nothing about it.
    pub ignored: u64,
    /// Lines of Postfix of a shape that is not known.
    pub unknown: u64,
    /// Of the relevant ones, attempts to deliver.
    pub attempts: u64,
    /// Of the relevant ones, logged references.
    pub references: u64,
    /// Lines that the logger says it left out.
    pub lost: u64,
    shapes: HashMap<String, u64>,
    other_shapes: u64,
}

/// A shape of which there are unknown lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// The daemon, and what it says, with placeholders.
    pub text: String,
    /// How many lines have it.
    pub count: u64,
}

impl Coverage {
    /// Takes a line of Postfix.
    pub fn line(&mut self, line: &Line<'_>) {
        self.lines += 1;
        match Record::parse(line) {
            Record::Irrelevant => self.ignored += 1,
            Record::Unknown => {
                self.unknown += 1;
                self.shape(line);
            }
            record => {
                self.relevant += 1;
                match record {
                    Record::Delivery(_) => self.attempts += 1,
                    Record::Header(header) if header.name == Name::Ref => self.references += 1,
                    Record::Repeated(count) => self.lost += u64::from(count),
                    _ => {}
                }
            }
        }
    }

    /// Takes a line that no daemon of Postfix wrote; `dropped` is what journald says in it.
    pub fn other(&mut self, line: &[u8], dropped: u64) {
        self.lines += 1;
        self.foreign += 1;
        self.lost += dropped + loss(line).map_or(0, |loss| loss.lines);
        self.lost += repetitions(line).map_or(0, u64::from);
    }

    /// Lines of Postfix.
    #[must_use]
    pub const fn postfix(&self) -> u64 {
        self.relevant + self.ignored + self.unknown
    }

    /// The share of the lines of Postfix that are known, from 0 to 1; 1 without any line.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a share of two counts below 2^52")]
    pub fn known_share(&self) -> f64 {
        match self.postfix() {
            0 => 1.0,
            lines => (lines - self.unknown) as f64 / lines as f64,
        }
    }

    /// The unknown shapes, the most frequent first.
    #[must_use]
    pub fn shapes(&self) -> Vec<Shape> {
        let mut shapes: Vec<Shape> =
            self.shapes.iter().map(|(text, count)| Shape { text: text.clone(), count: *count }).collect();
        shapes.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.text.cmp(&b.text)));
        if self.other_shapes > 0 {
            shapes.push(Shape { text: "(further shapes)".to_owned(), count: self.other_shapes });
        }
        shapes
    }

    fn shape(&mut self, line: &Line<'_>) {
        let text = shape(line.daemon, line.message);
        if let Some(count) = self.shapes.get_mut(&text) {
            *count += 1;
        } else if self.shapes.len() < MAX_SHAPES {
            self.shapes.insert(text, 1);
        } else {
            self.other_shapes += 1;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn coverage(log: &str) -> Coverage {
        let mut coverage = Coverage::default();
        for text in log.lines() {
            match Line::parse(text.as_bytes()) {
                Some(line) => coverage.line(&line),
                None => coverage.other(text.as_bytes(), 0),
            }
        }
        coverage
    }

    #[test]
    fn lines_are_counted_by_what_they_are() {
        let head = "Nov 23 16:25:11 mx postfix";
        let log = format!(
            "{head}/smtp[1]: A1B2C3D4: to=<a@b>, relay=none, delay=0, delays=0/0/0/0, dsn=2.0.0, status=sent (ok)\n\
             {head}/smtpd[1]: connect from x[192.0.2.1]\n\
             {head}/smtpd[1]: something new 17 about <a@b.example>\n{head}/smtpd[1]: something new 18 about <c@d.example>\n\
             Nov 23 16:25:11 mx sshd[1]: hello\nNov 23 16:25:11 mx rsyslogd: imuxsock lost 5 messages from pid 1\n"
        );
        let coverage = coverage(&log);
        assert_eq!(
            (coverage.lines, coverage.foreign, coverage.relevant, coverage.ignored, coverage.unknown),
            (6, 2, 1, 1, 2)
        );
        assert_eq!((coverage.attempts, coverage.references, coverage.lost), (1, 0, 5));
        assert!((coverage.known_share() - 0.5).abs() < 1e-9);
        assert_eq!(
            coverage.shapes(),
            [Shape { text: "smtpd: something new N about <…>".to_owned(), count: 2 }]
        );
    }

    #[test]
    fn shapes_are_bounded() {
        let mut coverage = Coverage::default();
        for number in 0..2_000_u32 {
            let name: String =
                format!("{number:05}").bytes().map(|digit| char::from(b'a' + digit - b'0')).collect();
            let text = format!("Nov 23 16:25:11 mx postfix/smtpd[1]: {name} {name}");
            coverage.line(&Line::parse(text.as_bytes()).unwrap());
        }
        let shapes = coverage.shapes();
        assert_eq!((shapes.len(), shapes.last().unwrap().count), (MAX_SHAPES + 1, 1_000));
    }
}
