//! What loggers say about lines that they lost.
//!
//! - Layer: decision
//! - Takes: a line that no daemon of Postfix wrote.
//! - Gives: how many lines the logger says are missing, and of which unit, or came more than once.
//! - On failure: `None` for any other line.
//! - See: rsyslog's imuxsock and imjournal, systemd-journald's rate limit.

#![warn(clippy::indexing_slicing)]

use memchr::memmem;

/// Lines that are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss<'a> {
    /// How many.
    pub lines: u64,
    /// Whose they were, as far as the logger says.
    pub unit: Option<&'a [u8]>,
}

/// How many lines were lost, by `imuxsock lost 5 messages from pid …`, `… 5 messages lost due to rate-limiting` or
/// `Suppressed 5 messages from …`.
#[must_use]
pub fn loss(line: &[u8]) -> Option<Loss<'_>> {
    let of_nobody = |lines| Loss { lines, unit: None };
    if let Some(at) = memmem::find(line, b" lost ") {
        let is_imuxsock = line.get(..at)?.ends_with(b"imuxsock");
        return match line.get(at + 6..) {
            Some(rest) if is_imuxsock => leading_number(rest).map(of_nobody),
            Some(rest) if rest.starts_with(b"due to rate-limiting") => {
                let before = line.get(..at)?.strip_suffix(b" messages")?;
                leading_number(before.rsplit(|byte| *byte == b' ').next()?).map(of_nobody)
            }
            _ => None,
        };
    }
    suppressed(line.get(memmem::find(line, b": Suppressed ")? + 2..)?)
}

/// What journald says itself: `Suppressed 5 messages from nginx.service`, or from the path of its control group.
#[must_use]
pub fn suppressed(message: &[u8]) -> Option<Loss<'_>> {
    let rest = message.strip_prefix(b"Suppressed ")?;
    let lines = leading_number(rest)?;
    let unit = rest.get(memmem::find(rest, b" messages from ")? + 15..)?.trim_ascii();
    let unit = unit.rsplit(|byte| *byte == b'/').next().filter(|unit| !unit.is_empty());
    Some(Loss { lines, unit })
}

/// Whether what is missing may have been Postfix's: of a unit that is followed, or that has its name. Where no unit is
/// followed, nobody can tell.
#[must_use]
pub fn may_be_ours(unit: Option<&[u8]>, units: &[String]) -> bool {
    let Some(unit) = unit else { return true };
    units.is_empty()
        || units.iter().any(|own| own.as_bytes() == unit)
        || memmem::find(&unit.to_ascii_lowercase(), b"postfix").is_some()
}

/// How often the line before came once more, by `last message repeated 3 times` of old syslog daemons.
#[must_use]
pub fn repetitions(line: &[u8]) -> Option<u32> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let at = memmem::find(line, b"last message repeated ")?;
    let count = line.get(at + 22..)?;
    let count = count.strip_suffix(b" times").or_else(|| count.strip_suffix(b" time"))?;
    std::str::from_utf8(count).ok()?.parse().ok()
}

fn leading_number(text: &[u8]) -> Option<u64> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(text.get(..digits)?).ok()?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_are_read() {
        for (line, count) in [
            ("Nov 23 16:25:11 mx last message repeated 3 times", Some(3)),
            ("<22>Nov 23 16:25:11 mx last message repeated 1 time", Some(1)),
            ("last message repeated 2 times", Some(2)),
            ("Nov 23 16:25:11 mx last message repeated many times", None),
            ("Nov 23 16:25:11 mx last message repeated 3 times, he said", None),
        ] {
            assert_eq!(repetitions(line.as_bytes()), count, "{line}");
        }
    }

    #[test]
    fn losses_are_read() {
        for (line, lost) in [
            (
                "Nov 23 16:25:11 mx rsyslogd: imuxsock lost 5 messages from pid 1 due to rate-limiting",
                Some(5),
            ),
            (
                "Nov 23 16:25:11 mx rsyslogd: imjournal: 77 messages lost due to rate-limiting (20000 allowed)",
                Some(77),
            ),
            ("Nov 23 16:25:11 mx systemd-journald[1]: Suppressed 9 messages from postfix@-.service", Some(9)),
            ("Nov 23 16:25:11 mx app: he lost 5 keys", None),
            ("Nov 23 16:25:11 mx app: x messages lost due to rate-limiting", None),
            ("", None),
        ] {
            assert_eq!(loss(line.as_bytes()).map(|loss| loss.lines), lost, "{line}");
        }
    }

    #[test]
    fn what_others_lost_is_told_apart() {
        let units = ["postfix@-.service".to_owned(), "mta.service".to_owned()];
        for (unit, ours) in [
            ("nginx.service", false),
            ("/system.slice/nginx.service", false),
            ("postfix@-.service", true),
            ("/system.slice/system-postfix.slice/postfix@out.service", true),
            ("mta.service", true),
        ] {
            let line = format!("Nov 23 16:25:11 mx systemd-journald[1]: Suppressed 9 messages from {unit}");
            let loss = loss(line.as_bytes()).unwrap();
            assert_eq!((loss.lines, may_be_ours(loss.unit, &units)), (9, ours), "{unit}");
            assert!(may_be_ours(loss.unit, &[]));
        }
        assert!(may_be_ours(None, &units));
    }
}
