//! Several tracking hosts: whose settings a request is answered by.
//!
//! - Layer: decision
//! - Takes: the settings of each host; the name that a request asked for.
//! - Gives: the host's own things.
//! - On failure: a name that is nobody's gets the first host: links must work behind proxies that change the name.
//! - See: `docs/tracker.md`, "Several hosts".

use super::settings::Site;

/// Things of hosts, found by their names.
#[derive(Debug)]
pub struct Hosts<T> {
    first: T,
    others: Vec<T>,
    /// Names in lower case, each with its place among `others`; the first host needs none.
    names: Vec<(String, usize)>,
}

impl<T> Hosts<T> {
    /// Makes what each host has, in their order.
    pub fn new(first: &Site, others: &[Site], mut make: impl FnMut(&Site) -> T) -> Self {
        let numbered = others.iter().enumerate();
        let names = numbered.flat_map(|(number, site)| {
            site.names.iter().map(move |name| (name.to_ascii_lowercase(), number))
        });
        // A name of the first that another has too is the first's.
        let names = names.filter(|(name, _)| !first.names.contains(name)).collect();
        Self { first: make(first), others: others.iter().map(&mut make).collect(), names }
    }

    /// What the host of this name has; in any case, without a port.
    #[must_use]
    pub fn of(&self, name: Option<&str>) -> &T {
        let Some(name) = name.filter(|_| !self.names.is_empty()) else { return &self.first };
        let found = self.names.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.and_then(|(_, number)| self.others.get(*number)).unwrap_or(&self.first)
    }

    /// All of them, the first first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_found_by_any_of_its_names_and_the_first_takes_the_rest() {
        let named = |names: &[&str]| Site {
            names: names.iter().copied().map(str::to_owned).collect(),
            ..Site::default()
        };
        let others = [named(&["b.example", "B2.example"]), named(&["c.example", "a.example"])];
        let mut number = 0;
        let hosts = Hosts::new(&named(&["a.example"]), &others, |_| {
            number += 1;
            number
        });
        for (name, expected) in [
            (Some("a.example"), 1),
            (Some("b.example"), 2),
            (Some("b2.EXAMPLE"), 2),
            (Some("c.example"), 3),
            (Some("127.0.0.1"), 1),
            (Some(""), 1),
            (None, 1),
        ] {
            assert_eq!(*hosts.of(name), expected, "{name:?}");
        }
        assert_eq!(hosts.iter().copied().collect::<Vec<_>>(), [1, 2, 3]);
    }
}
