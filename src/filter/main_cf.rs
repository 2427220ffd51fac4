//! What Postfix's configuration says of us: whether a milter that fails costs the mail its way, or not.
//!
//! - Layer: decision
//! - Takes: what `postconf` printed for one service; which milter addresses are ours.
//! - Gives: the default action for our address.
//! - On failure: what can't be understood names no milter; in an entry for ours it counts as `accept`, which asks for care.
//! - Limits: linear.
//! - See: postconf(5) `smtpd_milters`, `smtpd_milter_maps`, `milter_default_action`; `MILTER_README`, "Advanced policy"

use super::master_cf::Program;

/// What Postfix does when we fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultAction {
    /// `accept`: the mail goes on as it came; or `quarantine`: it does once it is released. Half-edited, if we die meanwhile. And
    /// whatever else is not certain to keep it back.
    Accept,
    /// `tempfail`, `reject` or `shutdown`: nothing goes on half-edited.
    NotAccept,
}

const KEEPS_BACK: [&str; 3] = ["tempfail", "reject", "shutdown"];

/// Finds the default action that one service has for our address; `None` when no list of milters names it.
///
/// `settings` has lines of `name = value`, as `postconf -x` prints them. Where two lists differ, `accept` counts, since it is the
/// one that asks for care.
pub fn default_action(
    settings: &str,
    program: Program,
    is_ours: impl Fn(&str) -> bool,
) -> Option<DefaultAction> {
    let goes_on = |action: &str| !KEEPS_BACK.iter().any(|keeps| action.eq_ignore_ascii_case(keeps));
    let accept_by_default =
        pairs(settings).any(|(name, value)| name == "milter_default_action" && goes_on(value));
    let counts = |name: &str| match name {
        "smtpd_milters" => program != Program::Cleanup,
        "non_smtpd_milters" => program != Program::Smtpd,
        _ => false,
    };
    let mut found = None;
    for (_, list) in pairs(settings).filter(|(name, _)| counts(name)) {
        for entry in entries(list).into_iter().filter(|entry| is_ours(entry.address)) {
            let accept = entry.default_action.map_or(accept_by_default, goes_on);
            if accept || !is_balanced(list) {
                return Some(DefaultAction::Accept);
            }
            found = Some(DefaultAction::NotAccept);
        }
    }
    found
}

fn pairs(settings: &str) -> impl Iterator<Item = (&str, &str)> {
    let pairs = settings.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.trim(), value.trim()))
}

/// Whether each brace has its other one.
fn is_balanced(list: &str) -> bool {
    let depth = list.chars().try_fold(0_usize, |depth, c| match c {
        '{' => depth.checked_add(1),
        '}' => depth.checked_sub(1),
        _ => Some(depth),
    });
    depth == Some(0)
}

/// The tables that `smtpd_milter_maps` names.
pub fn tables(settings: &str) -> Vec<&str> {
    let maps = pairs(settings).filter(|(name, _)| *name == "smtpd_milter_maps");
    maps.flat_map(|(_, value)| items(value)).collect()
}

/// The lists of milters in a table, as lines for [`default_action`]: what stands after the key of each of its lines, or
/// of each item where the table stands in main.cf itself (`inline:{…}`).
pub fn lists(table: &str, text: Option<&str>) -> String {
    let mut lists = String::new();
    let mut add = |list: &str| {
        lists.push_str("smtpd_milters = ");
        lists.push_str(list.trim());
        lists.push('\n');
    };
    if let Some(inline) = table.strip_prefix("inline:") {
        for item in items(bare(inline)) {
            if let Some((_, list)) = bare(item).split_once('=') {
                add(list);
            }
        }
    }
    let text = text.unwrap_or_default().replace("\n ", " ").replace("\n\t", " ");
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        if let Some((_, list)) = line.trim().split_once(char::is_whitespace) {
            add(list);
        }
    }
    lists
}

/// Without the braces around it.
fn bare(text: &str) -> &str {
    let text = text.trim();
    text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).map_or(text, str::trim)
}

/// Splits at commas and blanks that stand outside of braces.
fn items(text: &str) -> Vec<&str> {
    split(text, |c| c == ',' || c.is_whitespace())
}

/// Splits at what stands outside of braces.
pub(super) fn split(text: &str, separates: impl Fn(char) -> bool) -> Vec<&str> {
    let mut depth = 0_usize;
    let parts = text.split(|c: char| {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => (),
        }
        depth == 0 && separates(c)
    });
    parts.filter(|part| !part.is_empty()).collect()
}

struct Entry<'a> {
    address: &'a str,
    default_action: Option<&'a str>,
}

/// Splits a list of milters, some with settings of their own in braces: each of these may stand in braces again, and the last
/// one of a name counts.
fn entries(list: &str) -> Vec<Entry<'_>> {
    items(list).into_iter().filter_map(entry).collect()
}

fn entry(item: &str) -> Option<Entry<'_>> {
    let words = |text| {
        let ends = |c: char| matches!(c, ',' | '=' | '{' | '}') || c.is_whitespace();
        str::split(text, ends).filter(|word| !word.is_empty()).collect::<Vec<_>>()
    };
    let is_action = |word: &str| word.to_ascii_lowercase().contains("default_action");
    let words = words(item);
    let (address, settings) = words.split_first()?;
    let at = settings.iter().rposition(|word| is_action(word));
    // A value that is missing is none that we know.
    let default_action = at.map(|at| settings.get(at + 1).copied().unwrap_or_default());
    Some(Entry { address, default_action })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(settings: &str) -> Option<DefaultAction> {
        default_action(settings, Program::Other, |address| address == "unix:mailtap/milter.sock")
    }

    #[test]
    fn the_settings_of_the_entry_come_before_those_of_all() {
        let list = "smtpd_milters = inet:127.0.0.1:8891, { unix:mailtap/milter.sock, connect_timeout=5s, \
                    default_action = tempfail }\nnon_smtpd_milters = \n";
        assert_eq!(of(&format!("{list}milter_default_action = accept\n")), Some(DefaultAction::NotAccept));
        let plain = "smtpd_milters = unix:mailtap/milter.sock\n";
        assert_eq!(of(&format!("milter_default_action = accept\n{plain}")), Some(DefaultAction::Accept));
        assert_eq!(of(&format!("{plain}milter_default_action = shutdown\n")), Some(DefaultAction::NotAccept));
        assert_eq!(of(&format!("{plain}milter_default_action = quarantine\n")), Some(DefaultAction::Accept));
    }

    /// How Postfix reads them was tried: 3.7.11 takes the mail with each of these when nobody listens.
    #[test]
    fn accept_is_seen_however_it_is_written() {
        for entry in [
            "{ unix:mailtap/milter.sock, {default_action = accept} }",
            "{ unix:mailtap/milter.sock, { connect_timeout = 5s }, { default_action = accept } }",
            "{unix:mailtap/milter.sock,{default_action=accept}}",
            "{unix:mailtap/milter.sock default_action=ACCEPT}",
            "{unix:mailtap/milter.sock, default_action=tempfail, default_action=accept}",
            "inet:127.0.0.1:8891, {unix:mailtap/milter.sock, {connect_timeout=5s}, default_action=Quarantine}, unix:x",
            "{unix:mailtap/milter.sock, default_action=unheard-of}",
            "{unix:mailtap/milter.sock, default_action=}",
            "{unix:mailtap/milter.sock, default_action",
            "{unix:mailtap/milter.sock, default_action=tempfail",
            "unix:x}, {unix:mailtap/milter.sock, default_action=tempfail",
        ] {
            let settings = format!("smtpd_milters = {entry}\nmilter_default_action = tempfail\n");
            assert_eq!(of(&settings), Some(DefaultAction::Accept), "{entry}");
        }
        for action in ["Accept", "QUARANTINE", "", "unheard-of"] {
            let settings =
                format!("smtpd_milters = unix:mailtap/milter.sock\nmilter_default_action = {action}\n");
            assert_eq!(of(&settings), Some(DefaultAction::Accept), "{action}");
        }
        for entry in [
            "{ unix:mailtap/milter.sock, { connect_timeout = 5s }, { default_action = tempfail } }",
            "{unix:mailtap/milter.sock, default_action=accept, {default_action=Reject}}",
            "{unix:x, default_action=accept} {unix:mailtap/milter.sock, {connect_timeout=5s}}",
        ] {
            let settings = format!("smtpd_milters = {entry}\nmilter_default_action = shutdown\n");
            assert_eq!(of(&settings), Some(DefaultAction::NotAccept), "{entry}");
        }
    }

    #[test]
    fn each_program_has_a_list_of_its_own() {
        let settings = "smtpd_milters = {unix:mailtap/milter.sock,default_action=tempfail}\n\
                        non_smtpd_milters = unix:mailtap/milter.sock\nmilter_default_action = accept\n";
        let of = |program| default_action(settings, program, |address| address == "unix:mailtap/milter.sock");
        assert_eq!(of(Program::Smtpd), Some(DefaultAction::NotAccept));
        assert_eq!(of(Program::Cleanup), Some(DefaultAction::Accept));
        assert_eq!(of(Program::Other), Some(DefaultAction::Accept));
    }

    #[test]
    fn a_table_of_clients_counts() {
        let file = "smtpd_milters =\nsmtpd_milter_maps = cidr:/etc/postfix/milters, hash:/x\n";
        assert_eq!(tables(file), ["cidr:/etc/postfix/milters", "hash:/x"]);
        let text =
            "# all\n192.0.2.0/24 DISABLE\n::/0\n  { unix:mailtap/milter.sock,\n\tdefault_action = accept }\n";
        let lists_of_file = lists("cidr:/etc/postfix/milters", Some(text));
        assert_eq!(of(&(file.to_owned() + &lists_of_file)), Some(DefaultAction::Accept), "{lists_of_file}");
        let inline = "smtpd_milter_maps = inline:{ 192.0.2.1=DISABLE, {192.0.2.2 = unix:mailtap/milter.sock} }\n\
                      milter_default_action = tempfail\n";
        let [table] = tables(inline)[..] else { panic!("{inline}") };
        assert_eq!(of(&(inline.to_owned() + &lists(table, None))), Some(DefaultAction::NotAccept));
        assert_eq!(of(inline), None, "only the table names it");
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
