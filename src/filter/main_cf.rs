//! What Postfix's configuration says of us: whether a milter that fails costs the mail its way, or not.
//!
//! - Layer: decision
//! - Takes: what `postconf` printed of main.cf and master.cf; which milter addresses are ours.
//! - Gives: the default action for our address.
//! - On failure: what can't be understood names no milter.
//! - Limits: linear.
//! - See: postconf(5) `smtpd_milters`, `milter_default_action`; `MILTER_README`, "Advanced policy"

/// What Postfix does when we fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultAction {
    /// `accept`: the mail goes on as it came.
    Accept,
    /// `tempfail` and all others: the mail does not go on half-edited.
    NotAccept,
}

/// Finds the default action for our address; `None` when no list of milters names it.
///
/// `settings` has lines of `name = value`, as `postconf` and `postconf -P` print them. Where two places differ, `accept`
/// counts, since it is the one that asks for care.
pub fn default_action(settings: &str, is_ours: impl Fn(&str) -> bool) -> Option<DefaultAction> {
    let pairs = || {
        settings
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (last(name), value.trim()))
    };
    let accept_by_default = pairs().any(|(name, value)| name == "milter_default_action" && value == "accept");
    let mut found = None;
    for (_, list) in pairs().filter(|(name, _)| matches!(*name, "smtpd_milters" | "non_smtpd_milters")) {
        for entry in entries(list).into_iter().filter(|entry| is_ours(entry.address)) {
            let accept = entry.default_action.map_or(accept_by_default, |action| action == "accept");
            if accept {
                return Some(DefaultAction::Accept);
            }
            found = Some(DefaultAction::NotAccept);
        }
    }
    found
}

/// The name of a parameter of master.cf stands after its service: `smtp/inet/smtpd_milters`.
fn last(name: &str) -> &str {
    name.trim().rsplit('/').next().unwrap_or_default()
}

struct Entry<'a> {
    address: &'a str,
    default_action: Option<&'a str>,
}

/// Splits a list of milters, some with settings of their own in braces.
fn entries(list: &str) -> Vec<Entry<'_>> {
    let mut entries = Vec::new();
    let mut rest = list;
    loop {
        rest = rest.trim_start_matches(|c: char| c == ',' || c.is_whitespace());
        if rest.is_empty() {
            return entries;
        }
        let (text, after) = match rest.strip_prefix('{') {
            Some(inner) => inner.split_once('}').unwrap_or((inner, "")),
            None => rest.split_at(rest.find(|c: char| c == ',' || c.is_whitespace()).unwrap_or(rest.len())),
        };
        rest = after;
        let mut words =
            text.split(|c: char| c == ',' || c == '=' || c.is_whitespace()).filter(|word| !word.is_empty());
        if let Some(address) = words.next() {
            let default_action = words.find(|word| *word == "default_action").and_then(|_| words.next());
            entries.push(Entry { address, default_action });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(settings: &str) -> Option<DefaultAction> {
        default_action(settings, |address| address == "unix:mailtap/milter.sock")
    }

    #[test]
    fn the_settings_of_the_entry_come_before_those_of_all() {
        let list = "smtpd_milters = inet:127.0.0.1:8891, { unix:mailtap/milter.sock, connect_timeout=5s, \
                    default_action = tempfail }\nnon_smtpd_milters = \n";
        assert_eq!(of(&format!("{list}milter_default_action = accept\n")), Some(DefaultAction::NotAccept));
        let plain = "smtpd_milters = unix:mailtap/milter.sock\n";
        assert_eq!(of(&format!("milter_default_action = accept\n{plain}")), Some(DefaultAction::Accept));
        assert_eq!(of(&format!("{plain}milter_default_action = shutdown\n")), Some(DefaultAction::NotAccept));
    }

    #[test]
    fn the_place_that_needs_care_counts() {
        let settings = "smtpd_milters = {unix:mailtap/milter.sock,default_action=tempfail}\n\
                        milter_default_action = tempfail\n\
                        submission/inet/smtpd_milters = {unix:mailtap/milter.sock default_action=accept}\n";
        assert_eq!(of(settings), Some(DefaultAction::Accept));
        let settings = "smtpd_milters = unix:mailtap/milter.sock\nmilter_default_action = tempfail\n\
                        smtp/inet/milter_default_action = accept\n";
        assert_eq!(of(settings), Some(DefaultAction::Accept));
    }

    #[test]
    fn lists_of_others_say_nothing() {
        for settings in
            ["", "smtpd_milters = \n", "smtpd_milters = { , }{\n", "smtpd_milters = inet:127.0.0.1:1\n"]
        {
            assert_eq!(of(&format!("{settings}milter_default_action = accept\n")), None, "{settings}");
        }
    }
}
