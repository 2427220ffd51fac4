//! The macros of a session, by the stage they were sent at.
//!
//! - Layer: decision
//! - Takes: macro frames, resets.
//! - Gives: what counts for a message, earlier stages first.
//! - On failure: macros of unknown stages are left out.
//! - Limits: 16 KiB for each stage; pairs beyond are left out.
//! - See: Sendmail `libmilter/engine.c`: macros of a stage clear those of the same and all later stages

use alloc::vec::Vec;

use crate::wire::MacroPairs;

/// The stages in order. Macros before each header and each body chunk are left out: they repeat those of the end of
/// headers and the end of message.
const STAGES: [u8; 7] = *b"CHMRTNE";
/// The first stage that belongs to a message.
const MESSAGE: usize = 2;
/// What is kept of each stage, in bytes.
const STAGE_BYTES: usize = 16 << 10;

#[derive(Debug, Default)]
pub(super) struct StageMacros {
    stages: [Vec<u8>; STAGES.len()],
}

impl StageMacros {
    pub(super) fn take(&mut self, stage: u8, pairs: &[u8]) {
        let Some(index) = STAGES.iter().position(|known| *known == stage) else { return };
        self.clear_from(index);
        if let Some(kept) = self.stages.get_mut(index) {
            // Whole pairs only: what follows must not be read as the value of a name that had none.
            for (name, value) in MacroPairs::new(pairs).iter() {
                if kept.len() + name.len() + value.len() + 2 > STAGE_BYTES {
                    break;
                }
                kept.extend_from_slice(name);
                kept.push(0);
                kept.extend_from_slice(value);
                kept.push(0);
            }
        }
    }

    /// The value of a macro at the latest stage that has it.
    pub(super) fn value(&self, name: &[u8]) -> Option<&[u8]> {
        self.stages.iter().rev().find_map(|pairs| MacroPairs::new(pairs).value(name))
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.stages.iter().map(Vec::capacity).sum()
    }

    pub(super) fn clear_message(&mut self) {
        self.clear_from(MESSAGE);
    }

    pub(super) fn clear(&mut self) {
        self.clear_from(0);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.stages.iter().map(Vec::as_slice)
    }

    fn clear_from(&mut self, index: usize) {
        self.stages.iter_mut().skip(index).for_each(Vec::clear);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value<'a>(raw: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
        MacroPairs::new(raw).value(name)
    }

    #[test]
    fn a_stage_is_bounded() {
        let mut macros = StageMacros::default();
        macros.take(b'M', &[b"i\0Q1\0x\0".as_slice(), &[b'y'; 1 << 20], b"\0z\0z\0"].concat());
        assert_eq!(macros.value(b"i"), Some(b"Q1".as_slice()));
        assert!(macros.held_bytes() <= STAGE_BYTES);
    }

    #[test]
    fn a_stage_clears_itself_and_what_is_later() {
        let mut macros = StageMacros::default();
        macros.take(b'C', b"j\0mta\0");
        macros.take(b'M', b"i\0Q1\0odd");
        macros.take(b'E', b"i\0Q1\0");
        macros.take(b'L', b"i\0other\0");
        let all: Vec<u8> = macros.iter().flatten().copied().collect();
        assert_eq!(all, b"j\0mta\0i\0Q1\0i\0Q1\0");
        macros.take(b'M', b"x\0y\0");
        let all: Vec<u8> = macros.iter().flatten().copied().collect();
        assert_eq!((value(&all, b"i"), value(&all, b"x")), (None, Some(b"y".as_slice())));
        macros.clear_message();
        assert_eq!(macros.iter().flatten().count(), 6);
    }
}
