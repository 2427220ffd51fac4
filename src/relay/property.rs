//! Which property an event goes to.
//!
//! - Layer: decision
//! - Takes: an event, what each property takes.
//! - Gives: the first property that names the event's campaign; else the first that names its sender's domain; else the one
//!   that names nothing.
//! - On failure: nothing can fail; `None` where no property takes it.
//! - See: `docs/ga4.md`.

use crate::event::Event;

/// What a property takes; nothing named: what no other does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Takes {
    /// Campaigns, or `begin*`.
    pub campaigns: Vec<String>,
    /// Sender domains, or `*.` and what is above them.
    pub domains: Vec<String>,
}

impl Takes {
    fn is_all_others(&self) -> bool {
        self.campaigns.is_empty() && self.domains.is_empty()
    }
}

/// The property's place in the list.
#[must_use]
pub fn property(event: &Event, takes: &[Takes]) -> Option<usize> {
    let campaign = event.data.campaign.as_ref().map(|campaign| campaign.as_str());
    let domain = event.data.sender_domain.as_deref().unwrap_or_default();
    let by_campaign = campaign.and_then(|campaign| {
        takes.iter().position(|of| of.campaigns.iter().any(|pattern| is_campaign(pattern, campaign)))
    });
    by_campaign
        .or_else(|| takes.iter().position(|of| of.domains.iter().any(|pattern| is_domain(pattern, domain))))
        .or_else(|| takes.iter().position(Takes::is_all_others))
}

fn is_campaign(pattern: &str, campaign: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(begin) => campaign.starts_with(begin),
        None => pattern == campaign,
    }
}

fn is_domain(pattern: &str, domain: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(parent) => domain.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.')),
        None => pattern == domain,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::queue::testing::event;

    fn takes(campaigns: &[&str], domains: &[&str]) -> Takes {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        Takes { campaigns: texts(campaigns), domains: texts(domains) }
    }

    fn place(list: &[Takes], campaign: Option<&str>, domain: Option<&str>) -> Option<usize> {
        let mut event = event(1);
        event.data.campaign = campaign.map(|campaign| campaign.parse().unwrap());
        event.data.sender_domain = domain.map(str::to_owned);
        property(&event, list)
    }

    #[test]
    fn a_campaign_wins_over_a_domain_and_the_first_that_names_it_over_later_ones() {
        let list = [
            takes(&[], &["shop.example", "*.shop.example"]),
            takes(&["news-*", "sale"], &[]),
            takes(&["news-2026-*", "sale*"], &["b.example"]),
            takes(&[], &[]),
        ];
        assert_eq!(place(&list, Some("news-7"), Some("shop.example")), Some(1));
        assert_eq!(place(&list, Some("news-2026-1"), None), Some(1), "the first, not the longest");
        assert_eq!(place(&list, Some("sale"), Some("b.example")), Some(1));
        assert_eq!(place(&list, Some("sale-2"), Some("shop.example")), Some(2));
        assert_eq!(place(&list, Some("other"), Some("b.example")), Some(2), "either of the two lists");
        assert_eq!(place(&list, None, Some("a.shop.example")), Some(0));
        for (campaign, domain) in [("News-7", "x.example"), ("new", "ashop.example"), ("a-sale", "")] {
            assert_eq!(place(&list, Some(campaign), Some(domain)), Some(3), "{campaign}");
        }
    }

    #[test]
    fn one_with_campaigns_alone_is_not_the_one_for_all_others() {
        let list = [takes(&["news*"], &[])];
        assert_eq!(place(&list, Some("news"), None), Some(0));
        assert_eq!(place(&list, Some("sale"), Some("a.example")), None);
        assert_eq!(place(&list, None, None), None);
    }
}
