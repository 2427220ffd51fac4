//! What was said of an outage already: a reason is told once, and again when it is another one.
//!
//! - Layer: decision
//! - Takes: why each try failed.
//! - Gives: whether that is news.
//! - On failure: nothing can fail.

/// The outage under way, if there is one.
#[derive(Debug, Default)]
pub struct Outage(Option<String>);

impl Outage {
    /// A try failed; whether nobody was told of this reason.
    pub fn is_news(&mut self, why: &str) -> bool {
        if self.0.as_deref() == Some(why) {
            return false;
        }
        self.0 = Some(why.to_owned());
        true
    }

    /// It is over.
    pub fn over(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_news_once_in_an_outage() {
        let mut outage = Outage::default();
        let news: Vec<bool> = ["a", "a", "b", "b", "a"].iter().map(|why| outage.is_news(why)).collect();
        assert_eq!(news, [true, false, true, false, true]);
        outage.over();
        assert!(outage.is_news("a"));
    }
}
