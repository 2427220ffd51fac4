//! Texts that are looked for in user agents, all in one pass.
//!
//! - Layer: decision
//! - Takes: words and parts of words; a text.
//! - Gives: which of them stand in the text, in any letter case.
//! - On failure: `None` for more text than an automaton can hold, which no limit on a rules file allows.
//! - See: `rules`; `docs/bots.md`.
#![warn(clippy::indexing_slicing)]

use aho_corasick::AhoCorasick;

/// Texts to look for.
#[derive(Debug, Clone, Default)]
pub(super) struct Words {
    texts: Vec<String>,
    /// Whether no letter or digit may touch it.
    whole: Vec<bool>,
    automaton: Option<AhoCorasick>,
}

/// Which of the texts were found, by their numbers.
#[derive(Debug, Clone, Default)]
pub(super) struct Found(Vec<bool>);

impl Words {
    /// Adds a text; `whole` where "bot" is not to be found in "Cubot". Gives its number.
    pub(super) fn add(&mut self, text: &str, whole: bool) -> usize {
        let text = text.to_ascii_lowercase();
        let known =
            self.texts.iter().zip(&self.whole).position(|(known, as_)| *known == text && *as_ == whole);
        known.unwrap_or_else(|| {
            self.texts.push(text);
            self.whole.push(whole);
            self.texts.len() - 1
        })
    }

    /// Makes ready to search; what is added later is not found.
    pub(super) fn compile(mut self) -> Option<Self> {
        let automaton = AhoCorasick::builder().ascii_case_insensitive(true).build(&self.texts).ok()?;
        self.automaton = Some(automaton);
        Some(self)
    }

    /// Finds all that stand in a text.
    pub(super) fn find(&self, text: &[u8]) -> Found {
        let mut found = vec![false; self.texts.len()];
        let Some(automaton) = &self.automaton else { return Found(found) };
        for hit in automaton.find_overlapping_iter(text) {
            let number = hit.pattern().as_usize();
            let whole = self.whole.get(number).is_none_or(|whole| *whole);
            if let Some(known) = found.get_mut(number) {
                *known = *known || !whole || is_whole(text, hit.start(), hit.end());
            }
        }
        Found(found)
    }
}

impl Found {
    /// Whether the text of this number was found.
    pub(super) fn has(&self, number: usize) -> bool {
        self.0.get(number).is_some_and(|found| *found)
    }
}

/// Whether no letter or digit outside touches one inside.
pub(super) fn is_whole(text: &[u8], start: usize, end: usize) -> bool {
    let at = |place: Option<usize>| place.and_then(|place| text.get(place));
    let joined = |outer: Option<&u8>, inner: Option<&u8>| {
        outer.is_some_and(u8::is_ascii_alphanumeric) && inner.is_some_and(u8::is_ascii_alphanumeric)
    };
    !joined(at(start.checked_sub(1)), at(Some(start))) && !joined(at(Some(end)), at(end.checked_sub(1)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn words_are_whole_and_parts_are_anywhere() {
        let mut words = Words::default();
        let bot = words.add("Bot", true);
        let curl = words.add("curl/", true);
        let part = words.add("bot", false);
        assert_eq!(words.add("bot", true), bot, "one number for one word");
        let words = words.compile().unwrap();
        for (text, expected) in [
            ("CUBOT NOTE", [false, false, true]),
            ("a (BOT; x)", [true, false, true]),
            ("cubot bot", [true, false, true]),
            ("CURL/8.0", [false, true, false]),
            ("xcurl/8", [false, false, false]),
            ("", [false, false, false]),
        ] {
            let found = words.find(text.as_bytes());
            assert_eq!([bot, curl, part].map(|number| found.has(number)), expected, "{text}");
        }
        assert!(!Words::default().find(b"bot").has(0));
    }
}
