//! Judges the value of a link: whether it may lead through the tracker, and where it leads.
//!
//! - Layer: decision
//! - Takes: the decoded value of a link and what the message and the plan say.
//! - Gives: the target, cleaned as a browser cleans it.
//! - On failure: the `Reason` why the link is left alone, with the target as far as it could be read.
//! - Limits: linear.
//! - See: WHATWG URL section 4.4

use std::borrow::Cow;
use std::collections::HashSet;

use memchr::{memchr, memchr_iter, memmem};

use super::html::is_own;
use super::plan::{HostRule, Plan};
use super::reason::Reason;
use crate::tracker::target::Target;

/// The scheme suffix with which Postal marks links that are not tracked.
pub(super) const NO_TRACK_SCHEME: &str = "+notrack";

/// The parameter with which a link of some platforms says that it is not to be tracked.
const OPT_OUT: &str = "disable-tracking=true";

/// Makes the link that begins at an offset of a text what a browser would take: blanks around it cut, tabs and line breaks
/// within removed.
pub(super) fn clean_from(text: &mut String, start: usize) {
    let link = text.get(start..).unwrap_or_default();
    // Without a way out early, so that it is done many bytes at a time.
    if link.bytes().fold(true, |good, byte| good & (byte > b' ')) {
        return;
    }
    let trimmed = link.trim_matches(|c: char| c <= ' ');
    let cleaned: String = trimmed.chars().filter(|c| !matches!(c, '\t' | '\r' | '\n')).collect();
    text.truncate(start);
    text.push_str(&cleaned);
}

/// A link by itself, cleaned.
#[cfg(test)]
pub(super) fn clean(value: Cow<'_, str>) -> String {
    let mut link = value.into_owned();
    clean_from(&mut link, 0);
    link
}

/// What stands before and after an ASCII sign.
pub(super) fn cut(text: &str, sign: u8) -> Option<(&str, &str)> {
    let at = memchr(sign, text.as_bytes())?;
    Some((text.get(..at)?, text.get(at + 1..)?))
}

/// The link that a browser would follow, without Postal's suffix.
pub(super) fn without_no_track(link: &str) -> Cow<'_, str> {
    let Some((scheme, rest)) = link.split_once("://") else { return Cow::Borrowed(link) };
    let suffix = scheme.len().checked_sub(NO_TRACK_SCHEME.len());
    let cut = suffix.and_then(|at| scheme.split_at_checked(at));
    match cut.filter(|(_, suffix)| suffix.eq_ignore_ascii_case(NO_TRACK_SCHEME)) {
        Some((scheme, _)) => Cow::Owned(format!("{scheme}://{rest}")),
        None => Cow::Borrowed(link),
    }
}

/// Says why a cleaned link is not tracked, if it is not.
pub(super) fn judge(link: &str, plan: &Plan, unsubscribe: &HashSet<String>) -> Result<(), Reason> {
    let first = link.bytes().next().ok_or(Reason::EmptyLink)?;
    if has_template_mark(link) {
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
    if has_control(link) {
        return Err(Reason::BadUrl);
    }
    let ends = |b: u8| matches!(b, b'/' | b'?' | b'#' | b'\\');
    let authority_len = rest.bytes().position(ends).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at_checked(authority_len).ok_or(Reason::BadUrl)?;
    let host = match plain_host(authority) {
        Some(host) => host,
        None if authority.contains('@') => return Err(Reason::UserInfo),
        // The tracker must take what was signed, or the click would end on an error page.
        None => host_of(authority).filter(|_| Target::parse(link).is_ok()).ok_or(Reason::BadUrl)?,
    };
    if !HostRule::permits(&plan.host_rules, host) {
        return Err(Reason::HostDenied);
    }
    if unsubscribe.contains(link) {
        return Err(Reason::Unsubscribe);
    }
    let tail = cut(tail, b'#').map_or(tail, |(tail, _)| tail);
    let (path, query) = cut(tail, b'?').unwrap_or((tail, ""));
    if query.len() >= OPT_OUT.len() && query.split('&').any(|pair| pair.eq_ignore_ascii_case(OPT_OUT)) {
        return Err(Reason::LinkOptOut);
    }
    if plan.login_patterns.matches(path, query) {
        return Err(Reason::LoginLink);
    }
    Ok(())
}

/// Whether a link has a mark of a template that somebody forgot to fill in.
fn has_template_mark(link: &str) -> bool {
    let begins = |b: u8| matches!(b, b'{' | b'%' | b'*' | b'|' | b'[' | b'<' | b'$');
    if !link.bytes().fold(false, |found, byte| found | begins(byte)) {
        return false;
    }
    let mut pairs = link.bytes().zip(link.bytes().skip(1));
    let has_pair = pairs.any(|pair| {
        matches!(
            pair,
            (b'{', b'{' | b'%') | (b'*', b'|') | (b'|', b'*') | (b'[', b'[') | (b'<', b'%') | (b'$', b'{')
        )
    });
    has_pair || (link.contains('%') && has_percent_template(link.as_bytes()))
}

/// `%%name%%`, `%%=v(@name)=%%`, `%name%`, `[%name%]`: but not what may be percent-encoding.
fn has_percent_template(link: &[u8]) -> bool {
    let is_escape = |at: usize| link.get(at..at + 2).is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit));
    let is_name = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b':');
    let mut marks = memchr_iter(b'%', link);
    marks.any(|at| {
        let rest = link.get(at + 1..).unwrap_or_default();
        if let Some(inner) = rest.strip_prefix(b"%") {
            let starts =
                inner.first().is_some_and(|b| b.is_ascii_alphabetic() || matches!(b, b'_' | b'=' | b'['));
            return starts && memmem::find(inner, b"%%").is_some();
        }
        if at > 0 && link.get(at - 1) == Some(&b'[') && !is_escape(at + 1) {
            return true;
        }
        let name_len = rest.iter().take_while(|b| is_name(b)).count();
        let end = at + 1 + name_len;
        let is_word = rest.first().is_some_and(|b| b.is_ascii_alphabetic() || *b == b'_');
        // Where the first sign may begin an escape, the second must not.
        is_word && name_len > 1 && link.get(end) == Some(&b'%') && !(is_escape(at + 1) && is_escape(end + 1))
    })
}

fn has_control(link: &str) -> bool {
    if link.is_ascii() {
        link.bytes().fold(false, |found, byte| found | byte.is_ascii_control())
    } else {
        link.chars().any(char::is_control)
    }
}

/// What follows `http://` or `https://`.
fn after_scheme(link: &str) -> Result<&str, Reason> {
    let scheme_len = link.bytes().take_while(|b| b.is_ascii_alphanumeric() || b"+-.".contains(b)).count();
    let (scheme, rest) = link.split_at_checked(scheme_len).ok_or(Reason::Relative)?;
    let starts_with_letter = scheme.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
    let Some(rest) = rest.strip_prefix(':').filter(|_| starts_with_letter) else {
        return Err(Reason::Relative);
    };
    let is = |word: &str| scheme.eq_ignore_ascii_case(word);
    if is("http") || is("https") {
        return rest.strip_prefix("//").ok_or(Reason::BadUrl);
    }
    Err(if is("http+notrack") || is("https+notrack") { Reason::LinkOptOut } else { Reason::OtherScheme })
}

/// The host of an authority that is so plain that no parser needs to be asked.
fn plain_host(authority: &str) -> Option<&str> {
    let is_sign = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    let host_len = authority.bytes().position(|b| !is_sign(b)).unwrap_or(authority.len());
    let (host, port) = authority.split_at_checked(host_len)?;
    let port_is_plain = match port.strip_prefix(':') {
        Some(port) => port.len() <= 4 && port.bytes().all(|b| b.is_ascii_digit()),
        None => port.is_empty(),
    };
    let last = host.bytes().rposition(|b| b == b'.').map_or(0, |dot| dot + 1);
    let top_is_plain = host.as_bytes().get(last).is_some_and(u8::is_ascii_alphabetic);
    (port_is_plain && top_is_plain && !has_punycode(host)).then_some(host)
}

fn has_punycode(host: &str) -> bool {
    let is_mark = |label: &[u8]| label.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"xn--"));
    // Nothing has it that has no two hyphens.
    host.bytes().filter(|b| *b == b'-').nth(1).is_some() && host.as_bytes().split(|b| *b == b'.').any(is_mark)
}

/// The host of an authority without user name, if it can be one.
pub(super) fn host_of(authority: &str) -> Option<&str> {
    let (host, port) = match authority.rfind(']') {
        Some(end) => authority.split_at_checked(end + 1)?,
        None => authority.split_at_checked(authority.find(':').unwrap_or(authority.len()))?,
    };
    let port_is_fine = port.is_empty()
        || port.strip_prefix(':').is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()));
    let is_host = |b: u8| b.is_ascii_alphanumeric() || !b.is_ascii() || b"-._%~!$&'()*+,;=".contains(&b);
    let host_is_fine = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').is_some_and(|ip| {
            ip.contains(':') && ip.bytes().all(|b| b.is_ascii_hexdigit() || b":.".contains(&b))
        }),
        None => !host.is_empty() && host.bytes().all(is_host),
    };
    (port_is_fine && host_is_fine).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(link: &str) -> Result<(), Reason> {
        let plan = Plan { own_prefixes: vec!["https://t.example.org/c".to_owned()], ..Plan::default() };
        let mut text = format!(" before {link}");
        clean_from(&mut text, " before ".len());
        let link = text.strip_prefix(" before ").unwrap_or_default();
        judge(link, &plan, &HashSet::from(["https://e.com/leave".to_owned()]))
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
            "https://e.com/100%%20off",
            "https://e.com/%DExy%20z",
            "https://e.com/?f[%20]=1",
            "https://e.com/a%b%c",
            "https://e.com/%e4%b8%ad",
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
            ("https://e.com/?r=%recipient.id%", Reason::Template),
            ("https://e.com/?d=%date%&x", Reason::Template),
            ("https://e.com/?n=[%name%]", Reason::Template),
            ("https://e.com/[% name %]", Reason::Template),
            ("https://e.com/%%deal%%", Reason::Template),
            ("https://e.com/%%=v(@a)=%%", Reason::Template),
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
