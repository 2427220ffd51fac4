//! `log.level` as people write it.
//!
//! - Layer: decision
//! - Takes: text like `info` or `info,mailtap::tap=debug`.
//! - Gives: the same as directives that the log's filter understands, whose own reading takes any word for a target and would log
//!   nothing.
//! - On failure: a sentence that says what was expected.
//! - See: `docs/operations.md`

const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
/// What people write who come from syslog(3) and other daemons.
const OTHERS: [(&str, &str); 9] = [
    ("warning", "warn"),
    ("err", "error"),
    ("crit", "error"),
    ("critical", "error"),
    ("fatal", "error"),
    ("notice", "info"),
    ("verbose", "debug"),
    ("none", "off"),
    ("quiet", "warn"),
];

/// Reads the level. Targets that it does not name keep `info`, unless it names a level for them too.
///
/// # Errors
/// A sentence for people.
pub fn directives(text: &str) -> Result<String, String> {
    let (mut of_all, mut of_some) = (None, Vec::new());
    for part in text.split(',') {
        let part = part.trim();
        match part.split_once('=') {
            None if part.is_empty() => return Err(format!("`{text}` has an empty part: {EXPECTED}")),
            Some((target, word)) if is_target(target.trim()) => {
                of_some.push(format!("{}={}", target.trim(), level(word.trim())?));
            }
            Some((target, _)) => {
                return Err(format!("`{}` is no part of mailtap: {EXPECTED}", target.trim()));
            }
            None => {
                if of_all.replace(level(part)?).is_some() {
                    return Err(format!("`{text}` names two levels: {EXPECTED}"));
                }
            }
        }
    }
    let all = std::iter::once(of_all.unwrap_or("info").to_owned()).chain(of_some);
    Ok(all.collect::<Vec<_>>().join(","))
}

const EXPECTED: &str = "write error, warn, info, debug, trace or off, and after it, if some parts are to differ, PART=LEVEL, \
                        like \"info,mailtap::tap=debug\"";

fn level(word: &str) -> Result<&'static str, String> {
    let known = |name: &&str| name.eq_ignore_ascii_case(word);
    if let Some(level) = LEVELS.into_iter().find(known) {
        return Ok(level);
    }
    Err(match OTHERS.iter().find(|(other, _)| other.eq_ignore_ascii_case(word)) {
        Some((_, level)) => format!("`{word}` is not a level: write \"{level}\""),
        None => format!("`{word}` is not a level: {EXPECTED}"),
    })
}

fn is_target(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:.-".contains(&byte))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_read_as_it_is_meant() {
        for (text, read) in [
            ("info", "info"),
            ("WARN", "warn"),
            ("off", "off"),
            (" debug , mailtap::tap = Trace", "debug,mailtap::tap=trace"),
            ("mailtap::tap=debug,info", "info,mailtap::tap=debug"),
            ("mailtap::tap=debug", "info,mailtap::tap=debug"),
            ("info,lapin=warn", "info,lapin=warn"),
        ] {
            assert_eq!(directives(text).unwrap(), read, "{text}");
        }
    }

    #[test]
    fn a_word_that_is_no_level_is_refused_with_the_one_that_is_meant() {
        for (text, remedy) in [
            ("warning", "write \"warn\""),
            ("Warning", "write \"warn\""),
            ("info,mailtap=err", "write \"error\""),
            ("loud", "`loud` is not a level: write error, warn,"),
            ("mailtap", "`mailtap` is not a level"),
            ("debug,,=", "`debug,,=` has an empty part: write error, warn,"),
            ("debug,=", "`` is no part of mailtap"),
            ("", "`` has an empty part"),
            ("info,debug", "names two levels"),
            ("mailtap[x]=debug", "`mailtap[x]` is no part of mailtap"),
        ] {
            let error = directives(text).unwrap_err();
            assert!(error.contains(remedy), "{text}: {error}");
        }
    }
}
