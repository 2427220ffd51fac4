//! From the text of the file to `Raw`, with every structural problem at once.
//!
//! - Layer: decision
//! - Takes: TOML text.
//! - Gives: `Raw` of all that could be understood, and the problems: unknown keys with a suggestion, wrong types.
//! - On failure: text that is no TOML is one problem, with its line, and nothing else is said of it.
//! - Limits: 1 MiB is the caller's limit for the file.

use toml::de::DeTable;
use toml::{Table, Value};

use super::raw::Raw;

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key, like `tracker.listen`; empty for the whole file.
    pub key: String,
    /// What is wrong, and what to do.
    pub what: String,
}

impl Problem {
    /// A problem with a key.
    pub fn new(key: impl Into<String>, what: impl Into<String>) -> Self {
        Self { key: key.into(), what: what.into() }
    }
}

/// Reads the text.
///
/// # Errors
/// The problem of text of which nothing can be understood: what it leaves out is not known.
pub(super) fn parse(text: &str) -> Result<(Raw, Vec<Problem>), Problem> {
    let mut problems = Vec::new();
    let mut table: Table = toml::from_str(text).map_err(|error| syntax_problem(text, &error))?;
    let Ok(Value::Table(known)) = Value::try_from(Raw::sample()) else {
        return Err(Problem::new("", "mailtap can't list its own keys: please report this"));
    };
    compare(&mut table, &known, "", &mut problems);
    if let Ok(places) = DeTable::parse(text) {
        for problem in &mut problems {
            if let Some(at) = place(places.get_ref(), &problem.key) {
                problem.what += &format!(" (line {})", line(text, at));
            }
        }
    }
    let raw = Value::Table(table).try_into();
    let raw = raw.map_err(|error: toml::de::Error| Problem::new("", error.message().trim()))?;
    Ok((raw, problems))
}

fn syntax_problem(text: &str, error: &toml::de::Error) -> Problem {
    let number = line(text, error.span().map_or(0, |span| span.start));
    let message = error.message().trim();
    // The parser holds numbers wider than TOML's, and says so of one that does not fit.
    let what = if message.contains(" as i128") || message.contains(" as u128") {
        "the number is too large"
    } else {
        message
    };
    let key =
        text.lines().nth(number - 1).and_then(key_of).map(|key| format!(" ({key})")).unwrap_or_default();
    Problem::new("", format!("line {number}{key}: {what}"))
}

/// The key of a line. Its value may be secret.
fn key_of(line: &str) -> Option<&str> {
    let key = line.split_once('=')?.0.trim();
    let is_key = |key: &str| key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    Some(key).filter(|key| !key.is_empty() && key.len() < 64 && is_key(key))
}

/// The number of the line with this byte.
fn line(text: &str, at: usize) -> usize {
    text.get(..at).unwrap_or_default().matches('\n').count() + 1
}

/// Where a key like `ga4.properties[0].path` stands in the text.
fn place(table: &DeTable<'_>, key: &str) -> Option<usize> {
    let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
    let (name, index) = step(first)?;
    let (word, mut value) = table.iter().find(|(word, _)| word.get_ref() == name)?;
    let mut at = word.span().start;
    if let Some(index) = index {
        value = value.get_ref().as_array()?.get(index)?;
        at = value.span().start;
    }
    match rest {
        None => Some(at),
        Some(rest) => place(value.get_ref().as_table()?, rest),
    }
}

/// `properties[0]` as name and number.
fn step(text: &str) -> Option<(&str, Option<usize>)> {
    match text.split_once('[') {
        None => Some((text, None)),
        Some((name, rest)) => Some((name, Some(rest.strip_suffix(']')?.parse().ok()?))),
    }
}

/// Removes from `table` what `known` has not, or has with another type, and notes it.
fn compare(table: &mut Table, known: &Table, path: &str, problems: &mut Vec<Problem>) {
    table.retain(|key, value| {
        let full = if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
        let Some(expected) = known.get(key) else {
            problems.push(Problem::new(&full, unknown(key, known)));
            return false;
        };
        match (value, expected) {
            (Value::Table(inner), Value::Table(known)) => {
                compare(inner, known, &full, problems);
                true
            }
            (Value::Array(items), Value::Array(samples)) => compare_list(items, samples, &full, problems),
            (value, expected) if value.same_type(expected) => not_negative(value, &full, problems),
            (value, expected) => {
                let (want, have) = (kind(expected), kind(value));
                problems.push(Problem::new(&full, format!("expected {want}, found {have}")));
                false
            }
        }
    });
}

fn compare_list(items: &mut [Value], samples: &[Value], path: &str, problems: &mut Vec<Problem>) -> bool {
    // Every list of ours holds texts, unless its sample holds something else.
    let sample = samples.first().cloned().unwrap_or_else(|| Value::String(String::new()));
    let mut good = true;
    for (at, item) in items.iter_mut().enumerate() {
        let full = format!("{path}[{at}]");
        match (item, &sample) {
            (Value::Table(inner), Value::Table(known)) => compare(inner, known, &full, problems),
            (item, sample) if item.same_type(sample) => good &= not_negative(item, &full, problems),
            (item, sample) => {
                problems.push(Problem::new(full, format!("expected {}, found {}", kind(sample), kind(item))));
                good = false;
            }
        }
    }
    good
}

/// Numbers of ours count something.
fn not_negative(value: &Value, path: &str, problems: &mut Vec<Problem>) -> bool {
    let negative = value.as_integer().filter(|number| *number < 0);
    if let Some(number) = negative {
        problems.push(Problem::new(path, format!("{number} is too few: must not be negative")));
    }
    negative.is_none()
}

const fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text in quotes",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number with a fraction",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

fn unknown(key: &str, known: &Table) -> String {
    let nearest = known.keys().map(|other| (distance(key, other), other)).min();
    match nearest {
        Some((steps, other)) if steps <= other.len().div_ceil(3) => {
            format!("unknown key; did you mean `{other}`?")
        }
        _ => format!("unknown key; here are: {}", known.keys().cloned().collect::<Vec<_>>().join(", ")),
    }
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, cb) in row.iter_mut().skip(1).zip(&b) {
            let up = *cell;
            let step = (diagonal + usize::from(ca != *cb)).min(up + 1).min(left + 1);
            (diagonal, left, *cell) = (up, step, step);
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn either(text: &str) -> Vec<Problem> {
        parse(text).map_or_else(|problem| vec![problem], |(_, problems)| problems)
    }

    fn problems(text: &str) -> Vec<String> {
        either(text).into_iter().map(|problem| format!("{}: {}", problem.key, problem.what)).collect()
    }

    #[test]
    fn all_structural_problems_come_at_once_and_the_rest_is_read() {
        let text = "state_dri = \"/x\"\n[tracker]\nlisten = 8025\nmax_connections = 7\n[policy]\nsender_domains = [1]\n\
                    [[ga4.properties]]\nmesurement_id = \"G-1\"\n[zzzzzz]\n";
        let Ok((raw, _)) = parse(text) else { panic!("it is TOML") };
        assert_eq!(raw.tracker.max_connections, 7);
        assert_eq!(raw.tracker.listen, "127.0.0.1:8025");
        let found = problems(text);
        assert_eq!(found.len(), 5, "{found:#?}");
        assert!(
            found.contains(&"state_dri: unknown key; did you mean `state_dir`? (line 1)".into()),
            "{found:#?}"
        );
        assert!(
            found.contains(&"tracker.listen: expected text in quotes, found a whole number (line 3)".into())
        );
        assert!(found.contains(
            &"policy.sender_domains[0]: expected text in quotes, found a whole number (line 6)".into()
        ));
        assert!(found.contains(
            &"ga4.properties[0].mesurement_id: unknown key; did you mean `measurement_id`? (line 8)".into()
        ));
        assert!(found.iter().any(|line| line.starts_with("zzzzzz: unknown key; here are: ")));
    }

    #[test]
    fn text_that_is_no_toml_names_its_line() {
        assert!(problems("a = 1\nb = = 2\n")[0].starts_with(": line 2 (b): "));
        assert_eq!(problems("a = 1\n\na = 2\n"), [": line 3 (a): duplicate key"]);
        assert_eq!(problems("a = 99999999999999999999\n"), [": line 1 (a): the number is too large"]);
        assert!(problems("[x")[0].starts_with(": line 1: "));
    }

    #[test]
    fn a_negative_number_is_named_with_its_line_and_the_rest_is_read() {
        let text = "[milter]\nmax_connections = -1\nmax_headers = 7\n[relay]\nqueues = [\n1,\n-2]\n";
        let Ok((raw, problems)) = parse(text) else { panic!("it is TOML") };
        assert_eq!(raw.milter.max_headers, 7);
        let expected = [
            ("milter.max_connections", "-1 is too few: must not be negative (line 2)"),
            ("relay.queues[1]", "-2 is too few: must not be negative (line 7)"),
        ];
        assert_eq!(problems, expected.map(|(key, what)| Problem::new(key, what)));
    }

    #[test]
    fn an_unknown_key_is_found_in_every_table() {
        let Ok(sample) = toml::to_string(&Raw::sample()) else { panic!("the sample can be written") };
        assert!(either(&sample).is_empty());
        let lines: Vec<&str> = sample.lines().collect();
        for (at, _) in lines.iter().enumerate().filter(|(_, line)| line.starts_with('[')) {
            let mut changed = lines.clone();
            changed.insert(at + 1, "zzz_unknown = 1");
            assert_eq!(either(&changed.join("\n")).len(), 1, "after {}", lines[at]);
        }
    }
}
