//! The macros of a session, by the stage they were sent at.
//!
//! - Layer: decision
//! - Takes: macro frames, resets.
//! - Gives: what counts for a message, earlier stages first.
//! - On failure: macros of unknown stages are left out.
//! - Limits: one frame for each stage.
//! - See: Sendmail `libmilter/engine.c`: macros of a stage clear those of the same and all later stages

use alloc::vec::Vec;

/// The stages in order. Macros before each header and each body chunk are left out: they repeat those of the end of
/// headers and the end of message.
const STAGES: [u8; 7] = *b"CHMRTNE";
/// The first stage that belongs to a message.
const MESSAGE: usize = 2;

#[derive(Debug, Default)]
pub(super) struct StageMacros {
    stages: [Vec<u8>; STAGES.len()],
}

impl StageMacros {
    pub(super) fn take(&mut self, stage: u8, pairs: &[u8]) {
        let Some(index) = STAGES.iter().position(|known| *known == stage) else { return };
        self.clear_from(index);
        if let Some(kept) = self.stages.get_mut(index) {
            kept.extend_from_slice(pairs);
        }
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
