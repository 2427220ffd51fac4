//! The parameters of a GA4 event.
//!
//! - Layer: decision
//! - Takes: names and values.
//! - Gives: each name once, in the order they were put in; JSON.
//! - On failure: nothing can fail.
//! - Limits: made for the few that an event has: each look goes through all of them.

use std::borrow::Cow;
use std::ops::Index;

use serde::ser::{Serialize, Serializer};
use serde_json::Value;

/// Parameters.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Params<'a>(Vec<(Cow<'a, str>, Value)>);

impl<'a> Params<'a> {
    /// Without any, with room for so many.
    #[must_use]
    pub fn with_capacity(count: usize) -> Self {
        Self(Vec::with_capacity(count))
    }

    /// Puts one in, in place of the one of this name.
    pub fn insert(&mut self, name: impl Into<Cow<'a, str>>, value: Value) {
        let name = name.into();
        match self.0.iter_mut().find(|(present, _)| *present == name) {
            Some(present) => present.1 = value,
            None => self.0.push((name, value)),
        }
    }

    /// The value of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(present, _)| present == name).map(|(_, value)| value)
    }

    /// Whether one of this name is there.
    #[must_use]
    pub fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Keeps those that are to be kept; values may be changed on the way.
    pub fn retain(&mut self, mut keeps: impl FnMut(&str, &mut Value) -> bool) {
        self.0.retain_mut(|(name, value)| keeps(name, value));
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| &**name)
    }

    /// Their values.
    pub fn values(&self) -> impl Iterator<Item = &Value> {
        self.0.iter().map(|(_, value)| value)
    }
}

/// Of a name that there is not: null.
impl Index<&str> for Params<'_> {
    type Output = Value;

    fn index(&self, name: &str) -> &Value {
        self.get(name).unwrap_or(&Value::Null)
    }
}

impl<'a, N: Into<Cow<'a, str>>> FromIterator<(N, Value)> for Params<'a> {
    fn from_iter<I: IntoIterator<Item = (N, Value)>>(list: I) -> Self {
        let mut params = Self::default();
        list.into_iter().for_each(|(name, value)| params.insert(name, value));
        params
    }
}

impl Serialize for Params<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}
