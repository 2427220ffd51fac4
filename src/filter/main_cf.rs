//! What Postfix's configuration says of us: whether a milter that fails costs the mail its way, or not.
//!
//! - Layer: decision
//! - Takes: what `postconf` printed for one service; which milter addresses are ours.
//! - Gives: the default action for our address, and what else a milter should know of Postfix.
//! - On failure: what can't be understood names no milter; in an entry for ours it counts as `accept`, which asks for care.
//! - Limits: linear.
//! - See: postconf(5) `smtpd_milters`, `smtpd_milter_maps`, `milter_default_action`; `MILTER_README`, "Advanced policy"

use std::time::Duration;

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

/// What a service's settings say of us, or those of several that matter to us together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Says {
    /// The default action for our address; `None` if no list of milters names it. Of several, `accept` counts.
    pub action: Option<DefaultAction>,
    /// The largest message, as Postfix counts it; `None` if there is no limit. Of several, the smallest.
    pub message_size_limit: Option<u64>,
    /// How long Postfix waits for our answer to a command, and to the end of a message, where it names us. Of several, the shortest.
    pub command_timeout: Option<Duration>,
    /// See above.
    pub content_timeout: Option<Duration>,
    /// Whether a milter is asked before us.
    pub after_others: bool,
}

impl Says {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        fn least<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
            one.into_iter().chain(other).min()
        }
        let accepts = [self.action, other.action].contains(&Some(DefaultAction::Accept));
        Self {
            action: if accepts { Some(DefaultAction::Accept) } else { self.action.or(other.action) },
            message_size_limit: least(self.message_size_limit, other.message_size_limit),
            command_timeout: least(self.command_timeout, other.command_timeout),
            content_timeout: least(self.content_timeout, other.content_timeout),
            after_others: self.after_others || other.after_others,
        }
    }
}

const KEEPS_BACK: [&str; 3] = ["tempfail", "reject", "shutdown"];

/// What the settings of one service say of our address: lines of `name = value`, as `postconf -x` prints them.
pub fn says(settings: &str, program: Program, is_ours: impl Fn(&str) -> bool) -> Says {
    let goes_on = |action: &str| !KEEPS_BACK.iter().any(|keeps| action.eq_ignore_ascii_case(keeps));
    let value = |wanted: &str| pairs(settings).find_map(|(name, value)| (name == wanted).then_some(value));
    let accept_by_default = value("milter_default_action").is_some_and(goes_on);
    let counts = |name: &str| match name {
        "smtpd_milters" => program != Program::Cleanup,
        "non_smtpd_milters" => program != Program::Smtpd,
        _ => false,
    };
    let limit = value("message_size_limit").and_then(|value| value.parse().ok()).filter(|limit| *limit > 0);
    let mut says = Says { message_size_limit: limit, ..Says::default() };
    for (_, list) in pairs(settings).filter(|(name, _)| counts(name)) {
        for (place, entry) in
            entries(list).into_iter().enumerate().filter(|(_, entry)| is_ours(entry.address))
        {
            let accepts =
                entry.setting("default_action").map_or(accept_by_default, goes_on) || !is_balanced(list);
            let waits = |name: &str, all: &str| seconds(entry.setting(name).or(value(all))?);
            says = says.and(Says {
                action: Some(if accepts { DefaultAction::Accept } else { DefaultAction::NotAccept }),
                message_size_limit: limit,
                command_timeout: waits("command_timeout", "milter_command_timeout"),
                content_timeout: waits("content_timeout", "milter_content_timeout"),
                after_others: place > 0,
            });
        }
    }
    says
}

/// A time as Postfix writes it: seconds, or with a unit.
fn seconds(text: &str) -> Option<Duration> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end)?;
    let unit = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit).map(Duration::from_secs)
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

/// The lists of milters in a table, as lines for [`says`]: what stands after the key of each of its lines, or
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
    settings: Vec<&'a str>,
}

impl<'a> Entry<'a> {
    /// The value of a setting: the last one of its name counts. A value that is missing is none that we know.
    fn setting(&self, name: &str) -> Option<&'a str> {
        let at = self.settings.iter().rposition(|word| word.to_ascii_lowercase().contains(name));
        at.map(|at| self.settings.get(at + 1).copied().unwrap_or_default())
    }
}

/// Splits a list of milters, some with settings of their own in braces: each of these may stand in braces again.
fn entries(list: &str) -> Vec<Entry<'_>> {
    items(list).into_iter().filter_map(entry).collect()
}

fn entry(item: &str) -> Option<Entry<'_>> {
    let ends = |c: char| matches!(c, ',' | '=' | '{' | '}') || c.is_whitespace();
    let words: Vec<&str> = item.split(ends).filter(|word| !word.is_empty()).collect();
    let (address, settings) = words.split_first()?;
    Some(Entry { address, settings: settings.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(settings: &str) -> Option<DefaultAction> {
        says(settings, Program::Other, |address| address == "unix:mailtap/milter.sock").action
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
        let of = |program| says(settings, program, |address| address == "unix:mailtap/milter.sock").action;
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

    #[test]
    fn of_several_lists_the_strictest_counts() {
        let settings = "message_size_limit = 1000\nmilter_command_timeout = 1m\nmilter_content_timeout = 300s\n\
                        smtpd_milters = {unix:mailtap/milter.sock, command_timeout = 7, default_action=tempfail}\n\
                        non_smtpd_milters = unix:x, {unix:mailtap/milter.sock content_timeout=5s, default_action=reject}\n";
        let of =
            |settings: &str| says(settings, Program::Other, |address| address == "unix:mailtap/milter.sock");
        let all = of(settings);
        let expected = Says {
            action: Some(DefaultAction::NotAccept),
            message_size_limit: Some(1000),
            command_timeout: Some(Duration::from_secs(7)),
            content_timeout: Some(Duration::from_secs(5)),
            after_others: true,
        };
        assert_eq!(all, expected);
        let other = of("message_size_limit = 0\n");
        assert_eq!(other, Says::default());
        assert_eq!(all.and(other), expected);
    }
}
