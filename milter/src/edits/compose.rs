//! The answer to the end of a message, as bytes.
//!
//! - Layer: decision
//! - Takes: an [`Answer`], the agreed terms, the room there is.
//! - Gives: the whole answer in one buffer. Order: header changes and deletions, of each name from the last to the first;
//!   insertions; additions; envelope; quarantine; the body in one run; the verdict.
//! - On failure: [`CannotEdit`], and nothing is written.
//! - Limits: pieces of a body as agreed, 65,535 bytes unless more.
//! - See: Postfix `src/milter/milter8.c` (`body_edit_lockout`: a body in two runs is an error), `src/cleanup/cleanup_milter.c`
//!   (`cleanup_find_header_start`: every edit counts the headers left by those before it)

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::validate::{Flaw, FlawKind, check};
use super::{Answer, Edit, Verdict};
use crate::session::Terms;
use crate::wire::{Actions, Reply};

/// Why an answer can't be given. The message goes through unmodified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CannotEdit {
    /// Edits need what was not agreed on.
    #[error("{missing} was not agreed on")]
    Missing {
        /// What they need.
        missing: Actions,
    },
    /// An edit is not sound.
    #[error(transparent)]
    Flaw(#[from] Flaw),
    /// The answer is too large for one write.
    #[error("an answer of {needed_bytes} bytes, more than the {room_bytes} that fit")]
    TooLarge {
        /// Its size on the wire, in bytes.
        needed_bytes: usize,
        /// The room, in bytes.
        room_bytes: usize,
    },
    /// There is no memory for the answer.
    #[error("no memory for an answer of {needed_bytes} bytes")]
    NoMemory {
        /// What it needs.
        needed_bytes: usize,
    },
}

/// Appends the whole answer to `out`, or nothing.
pub(crate) fn compose(
    answer: &Answer,
    terms: &Terms,
    room_bytes: Option<usize>,
    out: &mut Vec<u8>,
) -> Result<(), CannotEdit> {
    let edits = if answer.verdict == Verdict::Accept { answer.edits.as_slice() } else { &[] };
    possible(edits, terms.actions)?;
    let mut ordered: Vec<&Edit> = edits.iter().collect();
    ordered.sort_by_key(|edit| (rank(edit), from_the_last(edit)));

    let verdict = match &answer.verdict {
        Verdict::Accept => Reply::Accept,
        Verdict::Reject => Reply::Reject,
        Verdict::TempFail => Reply::TempFail,
        Verdict::Discard => Reply::Discard,
        Verdict::Reply(reply) => Reply::ReplyCode(reply.wire()),
    };
    let needed_bytes = size(&ordered, &answer.verdict, terms.body_chunk_bytes());
    if let Some(room_bytes) = room_bytes.filter(|room| needed_bytes > *room) {
        return Err(CannotEdit::TooLarge { needed_bytes, room_bytes });
    }
    out.reserve(needed_bytes);
    for edit in ordered {
        write(edit, terms, out);
    }
    verdict.encode(out);
    Ok(())
}

fn possible(edits: &[Edit], actions: Actions) -> Result<(), CannotEdit> {
    let needs = edits.iter().fold(Actions::NONE, |needs, edit| needs | edit.needs());
    let missing = needs - actions;
    if !missing.is_empty() {
        return Err(CannotEdit::Missing { missing });
    }
    let mut seen = BTreeSet::new();
    for (edit, found) in edits.iter().enumerate() {
        check(found).map_err(|kind| Flaw { edit, kind })?;
        let once = match found {
            Edit::ChangeHeader { index, name, .. } | Edit::DeleteHeader { index, name } => {
                (rank(found), name.to_ascii_lowercase(), *index)
            }
            Edit::ReplaceBody(_) | Edit::ChangeSender { .. } => (rank(found), Vec::new(), 0),
            _ => continue,
        };
        if !seen.insert(once) {
            return Err(Flaw { edit, kind: FlawKind::Twice }.into());
        }
    }
    Ok(())
}

/// The place of an edit in the answer. The body comes last, so that as little as possible stands between it and the
/// verdict.
const fn rank(edit: &Edit) -> u8 {
    match edit {
        Edit::ChangeHeader { .. } | Edit::DeleteHeader { .. } => 0,
        Edit::InsertHeader { .. } => 1,
        Edit::AddHeader { .. } => 2,
        Edit::DeleteRecipient { .. } => 3,
        Edit::AddRecipient { .. } => 4,
        Edit::ChangeSender { .. } => 5,
        Edit::Quarantine { .. } => 6,
        Edit::ReplaceBody(_) => 7,
    }
}

/// Highest index first, so that an edit does not move the headers that later ones count.
const fn from_the_last(edit: &Edit) -> u32 {
    match edit {
        Edit::ChangeHeader { index, .. } | Edit::DeleteHeader { index, .. } => u32::MAX - *index,
        _ => 0,
    }
}

/// Space for an answer with these edits: the exact size for bodies, an upper bound for all else.
fn size(edits: &[&Edit], verdict: &Verdict, chunk_bytes: usize) -> usize {
    const FRAME: usize = 5;
    const FIELDS: usize = FRAME + 7;
    let verdict = if let Verdict::Reply(reply) = verdict { FRAME + 1 + reply.wire().len() } else { FRAME };
    edits.iter().fold(verdict, |sum, edit| {
        sum + match edit {
            Edit::AddHeader { name, value }
            | Edit::InsertHeader { name, value, .. }
            | Edit::ChangeHeader { name, value, .. } => FIELDS + name.len() + value.len(),
            Edit::DeleteHeader { name, .. } => FIELDS + name.len(),
            Edit::ReplaceBody(body) => body.len() + FRAME * body.len().div_ceil(chunk_bytes).max(1),
            Edit::AddRecipient { address, args } | Edit::ChangeSender { address, args } => {
                FIELDS + address.len() + args.len()
            }
            Edit::DeleteRecipient { address } => FIELDS + address.len(),
            Edit::Quarantine { reason } => FIELDS + reason.len(),
        }
    })
}

fn write(edit: &Edit, terms: &Terms, out: &mut Vec<u8>) {
    match edit {
        Edit::AddHeader { name, value } => {
            with_value(value, terms, |value| Reply::AddHeader { name, value }.encode(out));
        }
        Edit::InsertHeader { index, name, value } => {
            with_value(value, terms, |value| Reply::InsertHeader { index: *index, name, value }.encode(out));
        }
        Edit::ChangeHeader { index, name, value } => {
            with_value(value, terms, |value| Reply::ChangeHeader { index: *index, name, value }.encode(out));
        }
        Edit::DeleteHeader { index, name } => {
            Reply::ChangeHeader { index: *index, name, value: &[] }.encode(out);
        }
        Edit::ReplaceBody(body) if body.is_empty() => Reply::ReplaceBody(&[]).encode(out),
        Edit::ReplaceBody(body) => {
            for piece in body.chunks(terms.body_chunk_bytes()) {
                Reply::ReplaceBody(piece).encode(out);
            }
        }
        Edit::AddRecipient { address, args } if args.is_empty() => Reply::AddRecipient(address).encode(out),
        Edit::AddRecipient { address, args } => Reply::AddRecipientWithArgs { address, args }.encode(out),
        Edit::DeleteRecipient { address } => Reply::DeleteRecipient(address).encode(out),
        Edit::ChangeSender { address, args } => Reply::ChangeSender { address, args }.encode(out),
        Edit::Quarantine { reason } => Reply::Quarantine(reason).encode(out),
    }
}

/// Gives a header value in the form agreed on: with the blank after the colon, or without the one that the MTA adds.
fn with_value(value: &[u8], terms: &Terms, write: impl FnOnce(&[u8])) {
    let whole = value.first().is_some_and(|first| matches!(first, b' ' | b'\t'));
    match (terms.leading_space(), whole) {
        (true, true) => write(value),
        (true, false) => {
            let mut spaced = Vec::with_capacity(value.len() + 1);
            spaced.push(b' ');
            spaced.extend_from_slice(value);
            write(&spaced);
        }
        (false, _) => write(value.strip_prefix(b" ").unwrap_or(value)),
    }
}
