//! Campaign parameters on targets.
//!
//! - Layer: decision
//! - Takes: a target, the parameters that the site wants, campaign and link of the click.
//! - Gives: the target with those that it has not yet, behind its own, before its fragment.
//! - On failure: `UtmError` for a template that can't work; a value that is not known leaves its parameter out.
//! - See: `docs/tracker.md`; nothing else is ever appended.
#![warn(clippy::indexing_slicing)]

use super::percent;
use super::target::Target;
use crate::identity::CampaignId;

/// One parameter: its name, and its value with `{campaign}` and `{link}` to be filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UtmParameter {
    name: String,
    template: String,
}

/// Why a parameter can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UtmError {
    /// Not `utm_` and letters.
    #[error("a name begins with utm_ and has only a-z, 0-9 and _")]
    Name,
    /// A `{word}` that is neither `{campaign}` nor `{link}`: nothing that names a person goes into a URL.
    #[error("only {{campaign}} and {{link}} can be filled in")]
    Placeholder,
    /// An `@` may be an address.
    #[error("a value has no @")]
    Address,
}

impl UtmParameter {
    /// Checks name and template.
    ///
    /// # Errors
    /// See [`UtmError`].
    pub fn new(name: &str, template: &str) -> Result<Self, UtmError> {
        let word = name.strip_prefix("utm_").ok_or(UtmError::Name)?;
        if word.is_empty() || !word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        {
            return Err(UtmError::Name);
        }
        let literal = template.replace("{campaign}", "").replace("{link}", "");
        if literal.contains(['{', '}']) {
            return Err(UtmError::Placeholder);
        }
        if literal.contains('@') {
            return Err(UtmError::Address);
        }
        Ok(Self { name: name.to_owned(), template: template.to_owned() })
    }

    fn value(&self, campaign: Option<&CampaignId>, link: u16) -> Option<String> {
        let mut value = self.template.clone();
        if value.contains("{campaign}") {
            value = value.replace("{campaign}", campaign?.as_str());
        }
        Some(value.replace("{link}", &link.to_string()))
    }
}

/// The target with the parameters that it has not yet.
#[must_use]
pub fn tag(target: Target, parameters: &[UtmParameter], campaign: Option<&CampaignId>, link: u16) -> Target {
    if parameters.is_empty() {
        return target;
    }
    let (front, fragment) = match target.location().split_once('#') {
        Some((front, fragment)) => (front, Some(fragment)),
        None => (target.location(), None),
    };
    let query = front.split_once('?').map(|(_, query)| query);
    let mut tagged = front.to_owned();
    for parameter in parameters {
        if query.is_some_and(|query| has(query, &parameter.name)) {
            continue;
        }
        let Some(value) = parameter.value(campaign, link) else { continue };
        match tagged.split_once('?') {
            None => tagged.push('?'),
            Some((_, "")) => {}
            Some((_, query)) if query.ends_with('&') => {}
            Some(_) => tagged.push('&'),
        }
        tagged.push_str(&parameter.name);
        tagged.push('=');
        tagged.push_str(&percent::encode_value(&value));
    }
    if let Some(fragment) = fragment {
        tagged.push('#');
        tagged.push_str(fragment);
    }
    target.with_location(tagged)
}

/// Whether a query has a parameter of this name, however it is written.
pub(super) fn has(query: &str, name: &str) -> bool {
    query.split('&').any(|pair| {
        let known = pair.split_once('=').map_or(pair, |(known, _)| known);
        percent::decode(known).eq_ignore_ascii_case(name.as_bytes())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn tagged(target: &str, campaign: Option<&str>) -> String {
        let parameters = [
            UtmParameter::new("utm_source", "newsletter").unwrap(),
            UtmParameter::new("utm_campaign", "{campaign}").unwrap(),
            UtmParameter::new("utm_content", "link {link}").unwrap(),
        ];
        let campaign: Option<CampaignId> = campaign.map(|id| id.parse().unwrap());
        tag(Target::parse(target).unwrap(), &parameters, campaign.as_ref(), 3).location().to_owned()
    }

    #[test]
    fn parameters_go_behind_the_query_and_before_the_fragment() {
        const ALL: &str = "utm_source=newsletter&utm_campaign=a%2Fb&utm_content=link%203";
        for (from, to) in [
            ("https://e.com", format!("https://e.com?{ALL}")),
            ("https://e.com/#top", format!("https://e.com/?{ALL}#top")),
            ("https://e.com/?b=2&a=1#top?x", format!("https://e.com/?b=2&a=1&{ALL}#top?x")),
            ("https://e.com/?", format!("https://e.com/?{ALL}")),
            ("https://e.com/?a&", format!("https://e.com/?a&{ALL}")),
            ("https://e.com/#a?b#c", format!("https://e.com/?{ALL}#a?b#c")),
        ] {
            assert_eq!(tagged(from, Some("a/b")), to);
        }
    }

    #[test]
    fn the_authors_own_parameter_wins_and_an_unknown_value_is_left_out() {
        assert_eq!(
            tagged("https://e.com/?utm_source=own&UTM_Campaign=x", Some("c")),
            "https://e.com/?utm_source=own&UTM_Campaign=x&utm_content=link%203"
        );
        assert_eq!(
            tagged("https://e.com/?utm%5Fsource&z=1", None),
            "https://e.com/?utm%5Fsource&z=1&utm_content=link%203"
        );
    }

    #[test]
    fn templates_that_name_people_are_refused() {
        assert_eq!(UtmParameter::new("utm_term", "{recipient}"), Err(UtmError::Placeholder));
        assert_eq!(UtmParameter::new("utm_term", "a@b"), Err(UtmError::Address));
        for name in ["source", "utm_", "utm_Source", "utm_a&b"] {
            assert_eq!(UtmParameter::new(name, "x"), Err(UtmError::Name));
        }
    }
}
