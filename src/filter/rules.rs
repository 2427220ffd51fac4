//! Rules of the site for some senders or recipients: whether links and opens are tracked there.
//!
//! - Layer: decision
//! - Takes: the rules in their order, the sender's domain, the recipients of one transaction.
//! - Gives: what is allowed. Each recipient is judged by the first rule that fits; of several, the strictest wins.
//! - On failure: cannot fail; an address without a domain fits no rule that names domains of its side.
//! - See: `docs/configuration.md`, "Rules for some mail"

use super::campaign::matches_domain;
use crate::delivery;

/// One rule: whose mail, and what is allowed there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// Domains of the envelope sender, `*.` patterns, ASCII, lower case; empty: every sender.
    pub sender_domains: Vec<String>,
    /// Domains of recipients, likewise; empty: every recipient.
    pub recipient_domains: Vec<String>,
    /// Whether links are rewritten; `None`: as the policy says.
    pub clicks: Option<bool>,
    /// Whether the pixel is added; `None`: as the policy says.
    pub opens: Option<bool>,
}

/// What is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// Links are rewritten.
    pub clicks: bool,
    /// The pixel is added.
    pub opens: bool,
}

impl Rule {
    fn fits(&self, sender: Option<&str>, recipient: Option<&str>) -> bool {
        let among = |patterns: &[String], domain: Option<&str>| {
            patterns.is_empty()
                || domain.is_some_and(|domain| patterns.iter().any(|pattern| matches_domain(pattern, domain)))
        };
        among(&self.sender_domains, sender) && among(&self.recipient_domains, recipient)
    }
}

/// Asks the rules; `policy` is what holds where none fits.
#[must_use]
pub fn allowed(rules: &[Rule], sender: &str, recipients: &[String], policy: Allowed) -> Allowed {
    if rules.is_empty() {
        return policy;
    }
    let sender = delivery::sender_domain(sender.as_bytes());
    let one = |recipient: &String| {
        let recipient = delivery::sender_domain(recipient.as_bytes());
        let rule = rules.iter().find(|rule| rule.fits(sender.as_deref(), recipient.as_deref()));
        rule.map_or(policy, |rule| Allowed {
            clicks: rule.clicks.unwrap_or(policy.clicks),
            opens: rule.opens.unwrap_or(policy.opens),
        })
    };
    let strictest =
        |a: Allowed, b: Allowed| Allowed { clicks: a.clicks && b.clicks, opens: a.opens && b.opens };
    recipients.iter().map(one).reduce(strictest).unwrap_or(policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Allowed = Allowed { clicks: true, opens: true };

    fn rule(senders: &[&str], recipients: &[&str], clicks: Option<bool>, opens: Option<bool>) -> Rule {
        let list = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        Rule { sender_domains: list(senders), recipient_domains: list(recipients), clicks, opens }
    }

    fn ask(rules: &[Rule], sender: &str, recipients: &[&str], policy: Allowed) -> (bool, bool) {
        let recipients: Vec<String> = recipients.iter().map(ToString::to_string).collect();
        let allowed = allowed(rules, sender, &recipients, policy);
        (allowed.clicks, allowed.opens)
    }

    #[test]
    fn the_first_rule_that_fits_decides_and_what_it_leaves_out_is_the_policys() {
        let rules = [
            rule(&["hr.example.org"], &[], Some(false), Some(false)),
            rule(&["*.example.org"], &["gov.example"], None, Some(false)),
            rule(&["*.example.org"], &[], Some(true), None),
        ];
        let of = |sender, recipient| ask(&rules, sender, &[recipient], ALL);
        assert_eq!(of("a@hr.example.org", "b@gov.example"), (false, false));
        assert_eq!(of("a@News.Example.org", "<B@GOV.example>"), (true, false));
        assert_eq!(of("a@news.example.org", "b@sub.gov.example"), (true, true));
        let none = Allowed { clicks: false, opens: false };
        assert_eq!(ask(&rules, "a@news.example.org", &["b@x.example"], none), (true, false));
        assert_eq!(ask(&rules, "a@example.org", &["b@gov.example"], ALL), (true, true), "no rule fits");
        assert_eq!(ask(&[], "a@hr.example.org", &["b@gov.example"], none), (false, false));
    }

    #[test]
    fn of_several_recipients_the_strictest_wins() {
        let rules = [
            rule(&[], &["no-opens.example"], None, Some(false)),
            rule(&[], &["no-clicks.example"], Some(false), None),
            rule(&[], &["more.example"], Some(true), Some(true)),
        ];
        let of = |recipients: &[&str], policy| ask(&rules, "a@example.org", recipients, policy);
        assert_eq!(of(&["a@no-opens.example", "b@no-opens.example"], ALL), (true, false));
        assert_eq!(of(&["a@no-opens.example", "b@no-clicks.example"], ALL), (false, false));
        let none = Allowed { clicks: false, opens: false };
        assert_eq!(of(&["a@more.example", "b@more.example"], none), (true, true));
        assert_eq!(of(&["a@more.example", "b@other.example"], none), (false, false));
    }

    #[test]
    fn an_address_without_domain_fits_no_rule_for_domains() {
        let rules =
            [rule(&[], &["example.net"], Some(false), Some(false)), rule(&[], &[], None, Some(false))];
        assert_eq!(ask(&rules, "a@example.org", &["root"], ALL), (true, false));
    }
}
