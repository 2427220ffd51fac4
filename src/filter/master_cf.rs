//! What the services of master.cf set otherwise than main.cf does, and which of it matters.
//!
//! - Layer: decision
//! - Takes: the text of main.cf and master.cf.
//! - Gives: the services that may ask a milter, with their options `-o`; which parameters some others depend on.
//! - On failure: [`Odd`], for what Postfix itself might read in another way.
//! - Limits: linear, but for references: as many rounds as they are deep.
//! - See: master(5); `src/master/master_ent.c`, `src/master/single_server.c`

use std::collections::BTreeSet;

/// Programs of Postfix that ask no milter, whatever they are told.
const NEVER_ASK: [&str; 26] = [
    "anvil",
    "bounce",
    "discard",
    "dnsblog",
    "error",
    "flush",
    "lmtp",
    "local",
    "nqmgr",
    "oqmgr",
    "pickup",
    "pipe",
    "postlogd",
    "postscreen",
    "proxymap",
    "qmgr",
    "qmqpd",
    "scache",
    "showq",
    "smtp",
    "spawn",
    "tlsmgr",
    "tlsproxy",
    "trivial-rewrite",
    "verify",
    "virtual",
];
/// Options of a daemon without an argument; and with one, beside `-o`.
const FLAGS: &str = "cdDlSuvVz";
const ARGUMENTS: &str = "imnst";
/// What only the running process knows: another one, like `postconf`, has other values.
const OF_THE_PROCESS: [&str; 3] = ["process_name", "service_name", "stress"];

/// A line of master.cf that is not understood: its service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the service {0} of master.cf has options that are not understood")]
pub struct Odd(pub String);

/// Which lists of milters count for a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// smtpd(8).
    Smtpd,
    /// cleanup(8): mail that came another way.
    Cleanup,
    /// One that we don't know.
    Other,
}

/// A service that may ask a milter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Service {
    /// What runs.
    pub program: Program,
    /// What it sets otherwise than main.cf; the last one of a name counts.
    pub overrides: Vec<(String, String)>,
}

/// The services that may ask a milter.
///
/// # Errors
/// A line that is not understood.
pub fn services(master_cf: &str) -> Result<Vec<Service>, Odd> {
    let mut services = Vec::new();
    for line in lines(master_cf) {
        let mut words = words(&line).into_iter();
        let (name, kind) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let odd = || Odd(format!("{name}/{kind}"));
        let command = words.nth(5).ok_or_else(odd)?;
        let program = match command {
            "smtpd" => Program::Smtpd,
            "cleanup" => Program::Cleanup,
            _ if NEVER_ASK.contains(&command) => continue,
            _ => Program::Other,
        };
        let overrides = overrides(words).ok_or_else(odd)?;
        services.push(Service { program, overrides });
    }
    Ok(services)
}

/// The options `-o`, as getopt(3) finds them; nothing if there is something else.
fn overrides<'a>(arguments: impl Iterator<Item = &'a str>) -> Option<Vec<(String, String)>> {
    let mut arguments = arguments.map(|word| match word.strip_prefix('{') {
        Some(rest) => rest.strip_suffix('}').map(str::trim),
        None => Some(word),
    });
    let mut overrides = Vec::new();
    while let Some(argument) = arguments.next() {
        let mut flags = argument?.strip_prefix('-').filter(|flags| !flags.is_empty())?;
        while let Some(flag) = flags.chars().next() {
            flags = flags.get(flag.len_utf8()..)?;
            if flag == 'o' || ARGUMENTS.contains(flag) {
                let value = if flags.is_empty() { arguments.next()?? } else { flags };
                if flag == 'o' {
                    overrides.push(pair(value)?);
                }
                break;
            }
            FLAGS.contains(flag).then_some(())?;
        }
    }
    Some(overrides)
}

fn pair(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    let name = name.trim();
    let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    plain.then(|| (name.to_owned(), value.trim().to_owned()))
}

/// All that `wanted` depend on, by what main.cf and these options say, and themselves.
///
/// # Errors
/// What only the running process knows is among it: the name.
pub fn reachable(
    main_cf: &str,
    overrides: &[(String, String)],
    wanted: &[&str],
) -> Result<BTreeSet<String>, String> {
    let settings: Vec<(String, String)> =
        lines(main_cf).iter().filter_map(|line| pair(line)).chain(overrides.iter().cloned()).collect();
    let mut found: BTreeSet<String> = wanted.iter().map(|&name| name.to_owned()).collect();
    loop {
        let named = settings.iter().filter(|(name, _)| found.contains(name));
        let more: BTreeSet<String> = named.flat_map(|(_, value)| references(value)).collect();
        if let Some(name) = more.iter().find(|name| OF_THE_PROCESS.contains(&name.as_str())) {
            return Err(name.clone());
        }
        let before = found.len();
        found.extend(more);
        if found.len() == before {
            return Ok(found);
        }
    }
}

/// The names behind each `$`, `${` or `$(`.
fn references(value: &str) -> impl Iterator<Item = String> {
    let named = value.split('$').skip(1).map(|rest| {
        let name = rest.trim_start_matches(['{', '(']).trim_start();
        let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(name.len());
        name.get(..end).unwrap_or_default().to_owned()
    });
    named.filter(|name| !name.is_empty())
}

/// Lines with those that continue them; without comments.
fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        match lines.last_mut().filter(|_| line.starts_with(char::is_whitespace)) {
            Some(last) => last.push_str(line),
            None => lines.push(line.to_owned()),
        }
    }
    lines
}

/// Splits at blanks that stand outside of braces.
fn words(line: &str) -> Vec<&str> {
    super::main_cf::split(line, char::is_whitespace)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(options: &str) -> Option<Vec<(String, String)>> {
        let services = services(&format!("smtp inet n - n - - smtpd\n {options}\n")).ok()?;
        services.into_iter().next().map(|service| service.overrides)
    }

    fn one(name: &str, value: &str) -> Option<Vec<(String, String)>> {
        Some(vec![(name.to_owned(), value.to_owned())])
    }

    /// As Postfix 3.7.11 takes them; its `postconf` cuts up the second and third, at each `o`.
    #[test]
    fn options_are_read_as_the_daemon_does() {
        let value = "unix:mailtap/milter.sock";
        for options in [
            format!("-o smtpd_milters={value}"),
            format!("-osmtpd_milters={value}"),
            format!("-vosmtpd_milters={value}"),
            format!("-v -vo smtpd_milters={value} -D"),
            format!("-o {{ smtpd_milters = {value} }}"),
            format!("-o\n# a comment\n\n  smtpd_milters={value}"),
            format!("-n x -o smtpd_milters={value}"),
        ] {
            assert_eq!(of(&options), one("smtpd_milters", value), "{options}");
        }
        let braces = "{ unix:x, { default_action = accept } }";
        assert_eq!(of(&format!("-o mine={braces}")), one("mine", braces));
        assert_eq!(of("-o a="), one("a", ""));
        assert_eq!(of(""), Some(Vec::new()));
    }

    #[test]
    fn what_is_odd_is_said() {
        for options in
            ["-o", "-o mine", "-o {mine=1", "-o mine={a,b} c", "-q", "--", "-", "-o {{mine=1}}", "x"]
        {
            assert_eq!(of(options), None, "{options}");
        }
        assert_eq!(services("smtp inet n - n -\n"), Err(Odd("smtp/inet".into())));
    }

    #[test]
    fn programs_that_ask_no_milter_are_left_out() {
        let text = "# service type\nsmtp inet n - y - - smtpd -o a=1\npickup unix n - n 60 1 pickup -o b=1\n\
                    cl unix n - n - 0 cleanup\nfoo unix - n n - - pipe\n  user=x argv=/bin/foo -o ${sender}\nmy inet n - n - - mine\n";
        let programs: Vec<Program> =
            services(text).unwrap().into_iter().map(|service| service.program).collect();
        assert_eq!(programs, [Program::Smtpd, Program::Cleanup, Program::Other]);
    }

    #[test]
    fn references_are_followed() {
        let main = "smtpd_milters = $a ${b?{$(c)}}\na =\n ${ d }\nd=$$e\nz=$y\n";
        let found = reachable(main, &[("e".into(), "$f".into())], &["smtpd_milters"]).unwrap();
        let found: Vec<&str> = found.iter().map(String::as_str).collect();
        assert_eq!(found, ["a", "b", "c", "d", "e", "f", "smtpd_milters"]);
        assert_eq!(reachable("a=${stress?{b}}", &[], &["a"]), Err("stress".into()));
        assert!(reachable("syslog_name=x/$service_name", &[], &["a"]).is_ok());
    }
}
