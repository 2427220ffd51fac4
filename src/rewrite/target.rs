//! Judges the value of a link: whether it may lead through the tracker, and where it leads.
//!
//! - Layer: decision
//! - Takes: the decoded value of a link and what the message and the plan say.
//! - Gives: the target, cleaned as a browser cleans it.
//! - On failure: the `Reason` why the link is left alone, with the target as far as it could be read.
//! - Limits: linear.
//! - See: WHATWG URL section 4.4

use std::collections::HashSet;

use super::html::is_own;
use super::plan::{HostRule, Plan};
use super::reason::Reason;

/// Marks of templates that somebody forgot to fill in.
const TEMPLATE_MARKS: &[&str] = &["{{", "{%", "%%", "*|", "|*", "[[", "<%", "${"];

/// The scheme suffix with which Postal marks links that are not tracked.
pub(super) const NO_TRACK_SCHEME: &str = "+notrack";

/// A link as a browser would take it: blanks around it cut, tabs and line breaks within removed.
pub(super) fn clean(value: &str) -> String {
    let value = value.trim_matches(|c: char| c <= ' ');
    if value.contains(['\t', '\r', '\n']) {
        return value.chars().filter(|c| !matches!(c, '\t' | '\r' | '\n')).collect();
    }
    value.to_owned()
}

/// Says why a cleaned link is not tracked, if it is not.
pub(super) fn judge(link: &str, plan: &Plan, unsubscribe: &HashSet<String>) -> Result<(), Reason> {
    let first = link.bytes().next().ok_or(Reason::EmptyLink)?;
    if TEMPLATE_MARKS.iter().any(|mark| link.contains(mark)) {
        return Err(Reason::Template);
    }
    if first == b'#' {
        return Err(Reason::Fragment);
    }
    let rest = after_scheme(link)?;
    if is_own(&plan.own_prefixes, link.as_bytes()) {
        return Err(Reason::AlreadyTracked);
    }
    if link.len() > plan.max_url_bytes {
        return Err(Reason::UrlTooLong);
    }
    // C1 controls too: the tracker would refuse what it once signed.
    if link.chars().any(char::is_control) {
        return Err(Reason::BadUrl);
    }
    let authority_len = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at_checked(authority_len).ok_or(Reason::BadUrl)?;
    if authority.contains('@') {
        return Err(Reason::UserInfo);
    }
    let host = host_of(authority).ok_or(Reason::BadUrl)?;
    if !HostRule::permits(&plan.host_rules, host) {
        return Err(Reason::HostDenied);
    }
    if unsubscribe.contains(link) {
        return Err(Reason::Unsubscribe);
    }
    let tail = tail.split_once('#').map_or(tail, |(tail, _)| tail).to_ascii_lowercase();
    let (path, query) = tail.split_once('?').unwrap_or((&tail, ""));
    if query.split('&').any(|pair| pair == "disable-tracking=true") {
        return Err(Reason::LinkOptOut);
    }
    let path = format!("/{}/", path.trim_matches('/'));
    if plan.login_patterns.iter().any(|pattern| pattern.matches(&path, query)) {
        return Err(Reason::LoginLink);
    }
    Ok(())
}

/// What follows `http://` or `https://`.
fn after_scheme(link: &str) -> Result<&str, Reason> {
    let scheme_len = link.bytes().take_while(|b| b.is_ascii_alphanumeric() || b"+-.".contains(b)).count();
    let (scheme, rest) = link.split_at_checked(scheme_len).ok_or(Reason::Relative)?;
    let starts_with_letter = scheme.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
    let Some(rest) = rest.strip_prefix(':').filter(|_| starts_with_letter) else {
        return Err(Reason::Relative);
    };
    let scheme = scheme.to_ascii_lowercase();
    match scheme.as_str() {
        "http" | "https" => rest.strip_prefix("//").ok_or(Reason::BadUrl),
        "http+notrack" | "https+notrack" => Err(Reason::LinkOptOut),
        _ => Err(Reason::OtherScheme),
    }
}

/// The host of an authority without user name, if it can be one.
pub(super) fn host_of(authority: &str) -> Option<&str> {
    let (host, port) = match authority.rfind(']') {
        Some(end) => authority.split_at_checked(end + 1)?,
        None => authority.split_at_checked(authority.find(':').unwrap_or(authority.len()))?,
    };
    let port_is_fine = port.is_empty()
        || port.strip_prefix(':').is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()));
    let is_host = |c: char| c.is_ascii_alphanumeric() || !c.is_ascii() || "-._%~!$&'()*+,;=".contains(c);
    let host_is_fine = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').is_some_and(|ip| {
            ip.contains(':') && ip.bytes().all(|b| b.is_ascii_hexdigit() || b":.".contains(&b))
        }),
        None => !host.is_empty() && host.chars().all(is_host),
    };
    (port_is_fine && host_is_fine).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(link: &str) -> Result<(), Reason> {
        let plan = Plan { own_prefixes: vec!["https://t.example.org/c".to_owned()], ..Plan::default() };
        judge(&clean(link), &plan, &HashSet::from(["https://e.com/leave".to_owned()]))
    }

    #[test]
    fn links_that_are_tracked() {
        for link in [
            "https://e.com/?a=1&b=2",
            "https://e.com?x=1",
            "HTTPS://E.com/Up",
            " https://e.com/a\r\n  b ",
            "https://пример.рф/путь",
            "https://e.com/a,b!c$d*e@f'g|h",
            "https://e.com/?f[0]=x&q={x}",
            "https://e.com/share?u=1&href=http://g.ca/",
            "https://e.com/100%/a b",
            "https://[::1]:8080/",
            "https://t.example.org.evil.com/c",
        ] {
            assert_eq!(judged(link), Ok(()), "{link}");
        }
    }

    #[test]
    fn links_that_are_not() {
        for (link, reason) in [
            ("", Reason::EmptyLink),
            ("  ", Reason::EmptyLink),
            ("#top", Reason::Fragment),
            ("/rel", Reason::Relative),
            ("//e.com/", Reason::Relative),
            ("www.e.com", Reason::Relative),
            ("mailto:a@e.com", Reason::OtherScheme),
            ("javascript:x", Reason::OtherScheme),
            ("https:e.com", Reason::BadUrl),
            ("https://", Reason::BadUrl),
            ("https:///x", Reason::BadUrl),
            ("https://e com/", Reason::BadUrl),
            ("https://e.com:x/", Reason::BadUrl),
            ("https://me@e.com/", Reason::UserInfo),
            ("{{ url }}", Reason::Template),
            ("https://e.com/*|ID|*", Reason::Template),
            ("https+notrack://e.com/", Reason::LinkOptOut),
            ("https://e.com/?disable-tracking=true", Reason::LinkOptOut),
            ("https://T.example.org/c/abc", Reason::AlreadyTracked),
            ("https://e.com/leave", Reason::Unsubscribe),
            ("https://e.com/user/Login?next=/", Reason::LoginLink),
            ("https://e.com/x?Token=abc", Reason::LoginLink),
        ] {
            assert_eq!(judged(link), Err(reason), "{link}");
        }
        let long = format!("https://e.com/{}", "a".repeat(2000));
        assert_eq!(judged(&long), Err(Reason::UrlTooLong));
    }
}
