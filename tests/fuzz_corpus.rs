//! Replays the corpus of every fuzz target: what was found once is not found again.
//!
//! The targets themselves run with `cargo fuzz run --fuzz-dir tests/fuzz TARGET`.
#![allow(clippy::unwrap_used)]

#[path = "fuzz/src/lib.rs"]
mod targets;

use std::fs;
use std::path::Path;

#[test]
fn every_corpus_is_replayed() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
    for (name, target) in targets::ALL {
        let corpus = fuzz.join("corpus").join(name);
        let mut inputs = 0;
        for entry in fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display())) {
            let input = fs::read(entry.unwrap().path()).unwrap();
            target(&input);
            // Every prefix too: most findings are about an end in the wrong place.
            for end in (0..input.len()).step_by(1 + input.len() / 200) {
                target(&input[..end]);
            }
            inputs += 1;
        }
        assert!(inputs > 0, "{name} has no corpus");
        assert!(fuzz.join(format!("targets/{name}.rs")).exists(), "{name} has no target");
    }
    let files = fs::read_dir(fuzz.join("targets")).unwrap().count();
    assert_eq!(files, targets::ALL.len(), "every target is listed in ALL");
}
