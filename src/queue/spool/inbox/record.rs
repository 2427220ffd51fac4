//! The records of an inbox file: what they look like in bytes.
//!
//! - Layer: decision
//! - Takes: events on their way in; bytes of a file.
//! - Gives: bytes; records.
//! - On failure: what is cut and what is damaged are told apart; after damage, the next whole record is found.
//! - Limits: `MAX_BYTES` a record.
//! - See: `docs/decisions/0015-inbox-files.md`.

use crate::event::EventId;

/// What each record begins with; the last byte is the version of the form.
const MAGIC: [u8; 4] = *b"mtI\x01";
/// Magic, length of the rest, and its CRC-32, in little-endian order.
const HEAD: usize = 12;
/// The longest record. An event's JSON is far shorter: its fields have limits.
pub(in crate::queue::spool) const MAX_BYTES: usize = 1024 * 1024;

/// An event.
const EVENT: u8 = 1;
/// An event that may be the first of its kind.
const FIRST: u8 = 2;
/// An event that is not to be sent after all.
const REVOKED: u8 = 3;

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::queue::spool) enum Record<'a> {
    /// An event came in.
    Event(Incoming<'a>),
    /// The event with this id is taken out again, if nobody has claimed it.
    Revoked(EventId),
}

/// An event that came in. Times in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::queue::spool) struct Incoming<'a> {
    pub(in crate::queue::spool) id: EventId,
    pub(in crate::queue::spool) added_ms: u64,
    /// Not before.
    pub(in crate::queue::spool) at_ms: u64,
    /// What it may be the first of, and until when it counts.
    pub(in crate::queue::spool) first: Option<([u8; 16], u64)>,
    /// In JSON; unique, if it may be the first.
    pub(in crate::queue::spool) body: &'a str,
}

/// What stands at the beginning of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::queue::spool) enum Found<'a> {
    /// A record, and how long it is.
    Record(Record<'a>, usize),
    /// The beginning of a record, or nothing.
    Cut,
    /// No record.
    Damaged,
}

/// Adds the record of an event; `false`, and nothing, if it would be too long.
pub(in crate::queue::spool) fn put_event(bytes: &mut Vec<u8>, event: &Incoming<'_>) -> bool {
    put(bytes, |bytes| {
        bytes.push(if event.first.is_some() { FIRST } else { EVENT });
        bytes.extend_from_slice(event.id.as_bytes());
        bytes.extend_from_slice(&event.added_ms.to_le_bytes());
        bytes.extend_from_slice(&event.at_ms.to_le_bytes());
        if let Some((key, until_ms)) = event.first {
            bytes.extend_from_slice(&key);
            bytes.extend_from_slice(&until_ms.to_le_bytes());
        }
        bytes.extend_from_slice(event.body.as_bytes());
    })
}

/// Adds the record of a revocation.
pub(in crate::queue::spool) fn put_revoked(bytes: &mut Vec<u8>, id: EventId) {
    put(bytes, |bytes| {
        bytes.push(REVOKED);
        bytes.extend_from_slice(id.as_bytes());
    });
}

fn put(bytes: &mut Vec<u8>, content: impl FnOnce(&mut Vec<u8>)) -> bool {
    let begin = bytes.len();
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[0; HEAD - MAGIC.len()]);
    content(bytes);
    let length = bytes.len() - begin - HEAD;
    let Some((head, content)) = bytes.get_mut(begin..).and_then(|record| record.split_at_mut_checked(HEAD))
    else {
        return false;
    };
    let length = u32::try_from(length).ok().filter(|_| length + HEAD <= MAX_BYTES);
    let Some(length) = length else {
        bytes.truncate(begin);
        return false;
    };
    let sums = [length.to_le_bytes(), crc32fast::hash(content).to_le_bytes()];
    for (to, from) in head.iter_mut().skip(MAGIC.len()).zip(sums.as_flattened()) {
        *to = *from;
    }
    true
}

/// What the bytes begin with.
pub(in crate::queue::spool) fn read(bytes: &[u8]) -> Found<'_> {
    let Some((head, rest)) = bytes.split_at_checked(HEAD) else {
        let begun = bytes.len().min(MAGIC.len());
        return if bytes.get(..begun) == MAGIC.get(..begun) { Found::Cut } else { Found::Damaged };
    };
    let mut reader = Reader(head);
    let (Some(magic), Some(length), Some(sum)) = (reader.array(), reader.array(), reader.array()) else {
        return Found::Damaged;
    };
    let length = u32::from_le_bytes(length) as usize;
    if magic != MAGIC || length > MAX_BYTES - HEAD {
        return Found::Damaged;
    }
    let Some(content) = rest.get(..length) else { return Found::Cut };
    if crc32fast::hash(content) != u32::from_le_bytes(sum) {
        return Found::Damaged;
    }
    content_of(content).map_or(Found::Damaged, |record| Found::Record(record, HEAD + length))
}

fn content_of(content: &[u8]) -> Option<Record<'_>> {
    let mut reader = Reader(content);
    let [kind] = reader.array()?;
    let id = EventId::from(reader.array::<{ EventId::BYTES }>()?);
    if kind == REVOKED {
        return Some(Record::Revoked(id));
    }
    let [added_ms, at_ms] = [reader.number()?, reader.number()?];
    let first = match kind {
        EVENT => None,
        FIRST => Some((reader.array()?, reader.number()?)),
        _ => return None,
    };
    let body = std::str::from_utf8(reader.0).ok()?;
    Some(Record::Event(Incoming { id, added_ms, at_ms, first, body }))
}

/// How many bytes are to be skipped, at least one, until a whole record begins, or might.
pub(in crate::queue::spool) fn damage(bytes: &[u8]) -> usize {
    let begins = |at: &usize| !matches!(bytes.get(*at..).map(read), Some(Found::Damaged) | None);
    memchr::memchr_iter(MAGIC[0], bytes).filter(|at| *at > 0).find(begins).unwrap_or(bytes.len())
}

/// Bytes that are taken from the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (front, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*front)
    }

    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

/// Reads bytes as an inbox file would be read after its writer has gone: for fuzzing and tests.
/// Gives the number of whole records, and of bytes that are none.
#[must_use]
pub fn survey(mut bytes: &[u8]) -> (usize, usize) {
    let (mut records, mut lost) = (0, 0);
    while !bytes.is_empty() {
        let step = if let Found::Record(_, length) = read(bytes) {
            records += 1;
            length
        } else {
            let skipped = damage(bytes);
            lost += skipped;
            skipped
        };
        bytes = bytes.get(step..).unwrap_or_default();
    }
    (records, lost)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::identity::Timestamp;
    use crate::queue::First;
    use crate::queue::spool::store::NewRow;
    use crate::queue::testing::event;

    const NOW: u64 = 1_795_453_000_000;

    fn row(number: u64, held: bool, first: bool) -> NewRow {
        let held_until = held.then(|| Timestamp::from_millis(NOW + 5_000));
        let first = first.then_some(First { key: [number as u8; 16], within: Duration::from_secs(9) });
        NewRow { held_until, first, ..NewRow::from(&event(number)) }
    }

    proptest! {
        #[test]
        fn what_was_put_is_read_and_a_cut_or_damaged_byte_is_noticed(
            rows in prop::collection::vec((any::<u64>(), any::<bool>(), any::<bool>()), 1..5),
            at in any::<prop::sample::Index>(),
            flip in 1_u8..=255,
        ) {
            let rows: Vec<_> = rows.into_iter().map(|(number, held, first)| row(number, held, first)).collect();
            let mut bytes = Vec::new();
            let mut ends = Vec::new();
            for row in &rows {
                prop_assert!(put_event(&mut bytes, &row.incoming(Timestamp::from_millis(NOW))));
                ends.push(bytes.len());
            }
            put_revoked(&mut bytes, rows[0].id);
            let mut rest = bytes.as_slice();
            for row in &rows {
                let Found::Record(Record::Event(incoming), length) = read(rest) else { panic!() };
                rest = &rest[length..];
                prop_assert_eq!((incoming.id, incoming.body), (row.id, row.body.as_str()));
                prop_assert_eq!(incoming.added_ms, NOW);
                prop_assert_eq!(incoming.at_ms, NOW + if row.held_until.is_some() { 5_000 } else { 0 });
                prop_assert_eq!(incoming.first, row.first.map(|first| (first.key, NOW + 9_000)));
            }
            prop_assert_eq!(read(rest), Found::Record(Record::Revoked(rows[0].id), rest.len()));

            let cut = at.index(ends[0]);
            prop_assert_eq!(read(&bytes[..cut]), Found::Cut);

            let place = at.index(bytes.len());
            let mut damaged = bytes.clone();
            damaged[place] ^= flip;
            let (records, lost) = survey(&damaged);
            prop_assert_eq!(records, rows.len(), "one of the {} is not whole", rows.len() + 1);
            prop_assert!(lost > 0);
        }

        #[test]
        fn whatever_the_bytes_are_each_is_looked_at_once(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let (_, lost) = survey(&bytes);
            prop_assert!(lost <= bytes.len());
        }
    }

    #[test]
    fn what_is_too_long_is_not_put() {
        let mut bytes = b"before".to_vec();
        let long = NewRow { body: "x".repeat(MAX_BYTES), ..row(1, false, false) };
        assert!(!put_event(&mut bytes, &long.incoming(Timestamp::from_millis(NOW))));
        assert_eq!(bytes, b"before");
    }
}
