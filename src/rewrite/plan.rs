//! What may be done to one message: the policy's decision, and the maker of tracking URLs.
//!
//! - Layer: decision
//! - Takes: values that the caller has decided.
//! - Gives: the plan and host rules that the rewriter asks.
//! - On failure: a pattern that is no pattern is an error with the text's position, never its content.
//! - Limits: see the fields of `Plan`.

use super::pattern::LinkPatterns;

/// The pixel as it is by default: loads in webmail, shows nothing, and moves nothing; where a client drops `position`, it takes
/// a line of one pixel.
pub const DEFAULT_PIXEL: &str = "<img src=\"{url}\" width=\"1\" height=\"1\" alt=\"\" \
     style=\"position:absolute;display:block;width:1px;height:1px;border:0;margin:0;padding:0\">";

/// What may be done to this message; the caller's policy has decided it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Links in HTML become tracking links. Default true.
    pub clicks: bool,
    /// A pixel is added to the HTML. Default true.
    pub opens: bool,
    /// Links in text/plain become tracking links, where `clicks` is allowed too. Default false.
    pub text: bool,
    /// Base URLs of the tracker, present and past: links that begin so already are ours.
    pub own_prefixes: Vec<String>,
    /// Markup of the pixel, with `{url}` in a quoted attribute. ASCII. Default [`DEFAULT_PIXEL`].
    pub pixel_template: String,
    /// Where the pixel goes. Default at the end.
    pub pixel_at: PixelAt,
    /// AMP parts are rewritten too. Default true.
    pub amp: bool,
    /// Tracking URLs are https, without which AMP parts are left alone. Default true.
    pub https: bool,
    /// Links inside Outlook's conditional comments, and VML there, are links too. Default true.
    pub conditional_comments: bool,
    /// Leaves a link alone when its text is its own address. Default false.
    pub skip_visible_url: bool,
    /// Rewrites although the message carries a DKIM or ARC signature. Default false.
    pub rewrite_dkim_signed: bool,
    /// Rewrites mail that a machine sent on its own (Auto-Submitted: auto-generated, auto-notified). Default false.
    pub rewrite_auto_generated: bool,
    /// Rewrites answers by machines (any other Auto-Submitted but `no`). Default false.
    pub rewrite_auto_replies: bool,
    /// Rewrites the HTML of meeting invitations. Default false.
    pub rewrite_invitations: bool,
    /// Most links rewritten in one message. Default 1000.
    pub max_links: u16,
    /// Longest target that is rewritten, in bytes of UTF-8. Default 2000.
    pub max_url_bytes: usize,
    /// Largest message that is looked at, in bytes. Default 32 MiB.
    pub max_message_bytes: usize,
    /// Most MIME parts, containers included. Default 500.
    pub max_parts: usize,
    /// Deepest nesting of multiparts. Default 20.
    pub max_depth: usize,
    /// Hosts that may or may not be tracked; the first rule that matches decides.
    pub host_rules: Vec<HostRule>,
    /// Links left alone because they log in, confirm or unsubscribe. Default [`LinkPatterns::logins`].
    pub login_patterns: LinkPatterns,
    /// Lists links in the report one by one, for people; they are counted in any case. Default true.
    pub list_links: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            clicks: true,
            opens: true,
            text: false,
            own_prefixes: Vec::new(),
            pixel_template: DEFAULT_PIXEL.to_owned(),
            pixel_at: PixelAt::End,
            amp: true,
            https: true,
            conditional_comments: true,
            skip_visible_url: false,
            rewrite_dkim_signed: false,
            rewrite_auto_generated: false,
            rewrite_auto_replies: false,
            rewrite_invitations: false,
            max_links: 1000,
            max_url_bytes: 2000,
            max_message_bytes: 32 << 20,
            max_parts: 500,
            max_depth: 20,
            host_rules: Vec::new(),
            login_patterns: LinkPatterns::logins(),
            list_links: true,
        }
    }
}

/// Where the pixel goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PixelAt {
    /// Before the end of the body.
    #[default]
    End,
    /// Right after the body begins, where a clipped message still has it.
    Top,
    /// Both; one URL, so that it counts once.
    Both,
}

/// Makes tracking URLs, so that the rewriter knows no keys.
pub trait Mint {
    /// The tracking URL of the link `number` (1, 2, …) to `target`; `None` leaves the link alone. Visible ASCII only. A URL
    /// may be asked for and then not be used; its number is then asked for again.
    fn link(&mut self, target: &str, number: u16) -> Option<String>;

    /// The URL of the message's pixel; `None` for no pixel.
    fn pixel(&mut self) -> Option<String>;
}

/// A text that is no host rule or link pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a {what}: {why}")]
pub struct PatternError {
    /// What the text should have been.
    pub what: &'static str,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Says whether links to some hosts are tracked. Rules are asked in order, the first match decides; where none
/// matches, the link is tracked unless some rule allows hosts (then the rules are a closed list).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRule {
    host: String,
    subdomains: bool,
    allow: bool,
}

impl HostRule {
    /// A rule that allows: `example.com` that host, `*.example.com` all below it, `*` every host.
    ///
    /// # Errors
    /// When the text is neither a host name nor a wildcard in front of one.
    pub fn allow(pattern: &str) -> Result<Self, PatternError> {
        Self::new(pattern, true)
    }

    /// A rule that denies; patterns as in [`HostRule::allow`].
    ///
    /// # Errors
    /// When the text is neither a host name nor a wildcard in front of one.
    pub fn deny(pattern: &str) -> Result<Self, PatternError> {
        Self::new(pattern, false)
    }

    /// Whether a set of rules lets links to this host (as written in the URL, without port) be tracked.
    #[must_use]
    pub fn permits(rules: &[Self], host: &str) -> bool {
        if rules.is_empty() {
            return true;
        }
        let Some(host) = ascii_host(host) else { return false };
        match rules.iter().find(|rule| rule.matches(&host)) {
            Some(rule) => rule.allow,
            None => rules.iter().all(|rule| !rule.allow),
        }
    }

    fn new(pattern: &str, allow: bool) -> Result<Self, PatternError> {
        let error = |why| PatternError { what: "host rule", why };
        if pattern == "*" {
            return Ok(Self { host: String::new(), subdomains: true, allow });
        }
        let (host, subdomains) = match pattern.strip_prefix("*.") {
            Some(rest) => (rest, true),
            None => (pattern, false),
        };
        if host.is_empty() {
            return Err(error("no host name"));
        }
        if host.contains(['*', '/', '@', ' ']) {
            return Err(error("a wildcard is only allowed as the first label, and there is no path"));
        }
        let host = ascii_host(host).ok_or_else(|| error("not a host name"))?;
        Ok(Self { host, subdomains, allow })
    }

    fn matches(&self, host: &str) -> bool {
        if !self.subdomains {
            return self.host == host;
        }
        self.host.is_empty()
            || host.strip_suffix(&self.host).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
    }
}

/// The host in lower-case ASCII, without a final dot.
fn ascii_host(host: &str) -> Option<String> {
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.is_ascii() {
        return Some(host.to_ascii_lowercase());
    }
    idna::domain_to_ascii(host).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn host_rules_first_match_decides() {
        let rules = [HostRule::deny("cdn.e.com").unwrap(), HostRule::allow("*.e.com").unwrap()];
        assert!(HostRule::permits(&rules, "www.E.com"));
        assert!(!HostRule::permits(&rules, "cdn.e.com"));
        assert!(!HostRule::permits(&rules, "e.com"), "a wildcard needs a label");
        assert!(!HostRule::permits(&rules, "note.com"));
        assert!(HostRule::permits(&[], "anything"));
        assert!(HostRule::permits(&[HostRule::deny("x.org").unwrap()], "y.org"));
    }

    #[test]
    fn host_rules_know_idn() {
        let rules = [HostRule::deny("bücher.example").unwrap()];
        assert!(!HostRule::permits(&rules, "xn--bcher-kva.example"));
        assert!(!HostRule::permits(&rules, "BÜCHER.example."));
        assert!(HostRule::deny("a.*.b").is_err());
    }
}
