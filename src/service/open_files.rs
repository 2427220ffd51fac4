//! How many files and connections this process may have open at once.
//!
//! - Layer: edge
//! - Takes: the limits that the process was started with.
//! - Gives: the soft limit raised to the hard one, which only ever was low for the sake of select(2), unused here; a word where
//!   even that is less than the configuration may need.
//! - On failure: the limit stays, and is judged as it is.
//! - See: getrlimit(2), systemd.exec(5) `LimitNOFILE=`

use std::io;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Beside connections: the spool's files, the log, the admin listener, connections to others.
const MARGIN: u64 = 256;

/// Raises the soft limit as far as this process may; gives what it is then.
#[must_use]
pub fn raise() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return u64::MAX };
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft }
}

/// What to say where the limit is too low for so many connections, each named by its setting.
#[must_use]
pub fn too_few(limit: u64, connections: &[(&str, u64)]) -> Option<String> {
    let sum = connections.iter().fold(MARGIN, |sum, (_, count)| sum.saturating_add(*count));
    let settings: Vec<&str> = connections.iter().map(|(setting, _)| *setting).collect();
    let settings = settings.join(" and ");
    (limit < sum && !connections.is_empty()).then(|| {
        format!(
            "this process may have {limit} files open, and {settings} let it need {sum}: beyond the limit no connection is taken and no \
             event stored; set LimitNOFILE={sum} in the unit (systemctl edit), or lower the setting"
        )
    })
}

/// What to do about an error of the system, where files or connections ran out.
#[must_use]
pub fn remedy(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE) => Some(
            "this process has too many files open: raise LimitNOFILE= in its unit, or lower max_connections",
        ),
        Some(Errno::ENFILE) => Some("the whole system has too many files open: raise fs.file-max"),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_too_low_for_what_the_settings_let_it_need() {
        let connections = [("milter.max_connections", 5_000), ("tracker.max_connections", 10_000)];
        assert_eq!(too_few(15_256, &connections), None);
        let said = too_few(15_255, &connections).unwrap();
        assert!(said.contains("milter.max_connections and tracker.max_connections"), "{said}");
        assert!(said.contains("15255 files") && said.contains("LimitNOFILE=15256"), "{said}");
        assert_eq!(too_few(64, &[]), None);
        assert!(too_few(64, &[("milter.max_connections", u64::MAX)]).is_some());
    }

    #[test]
    fn who_runs_out_of_files_is_told_what_to_raise() {
        let of = |number: Errno| remedy(&io::Error::from_raw_os_error(number as i32)).unwrap_or_default();
        assert!(of(Errno::EMFILE).contains("LimitNOFILE="));
        assert!(of(Errno::ENFILE).contains("fs.file-max"));
        assert_eq!(of(Errno::ECONNABORTED), "");
    }
}
