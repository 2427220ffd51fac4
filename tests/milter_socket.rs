//! Mode and group of the milter's socket, as the daemon makes it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use harness::{Options, Site, said};
use nix::unistd::{Gid, Group};

const GROUP: &str = "#socket_group = \"\"";
const MODE: &str = "#socket_mode = \"0660\"";

/// Two groups that sockets may be given to by who runs this: any two for root, else two of their own.
fn groups() -> Option<[Group; 2]> {
    let named = |name: &&str| Group::from_name(name).unwrap();
    let groups: Vec<Group> = if nix::unistd::geteuid().is_root() {
        ["daemon", "mail", "bin"].iter().filter_map(named).take(2).collect()
    } else {
        let own = nix::unistd::getgroups().unwrap().into_iter().filter(|gid| *gid != nix::unistd::getegid());
        own.filter_map(|gid| Group::from_gid(gid).unwrap()).take(2).collect()
    };
    groups.try_into().ok()
}

fn site(changes: Vec<(&'static str, String)>) -> Site {
    Site::start(&Options { milter_only: true, without_postfix: true, changes, ..Options::default() })
}

/// Stops the milter, and starts it again in this setgid directory with these settings.
fn restart_in(site: &mut Site, directory: &Path, group: Gid, (mode, socket_group): (&str, &str)) {
    site.mailtap.as_mut().unwrap().stop();
    fs::create_dir_all(directory).unwrap();
    std::os::unix::fs::chown(directory, None, Some(group.as_raw())).unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o2755)).unwrap();
    let text = fs::read_to_string(site.config()).unwrap();
    let set = |key: &str, value: &str| format!("{key} = \"{value}\"");
    let lines = text.lines().map(|line| match line.trim_start_matches('#').split_once(" = ") {
        Some(("listen", old)) if old.contains("milter.sock") => {
            set("listen", &format!("unix:{}", directory.join("milter.sock").display()))
        }
        Some(("socket_mode", _)) => set("socket_mode", mode),
        Some(("socket_group", _)) => set("socket_group", socket_group),
        _ => line.to_owned(),
    });
    fs::write(site.config(), lines.collect::<Vec<_>>().join("\n")).unwrap();
    site.start_mailtap();
}

#[test]
fn mode_and_group_are_as_configured_also_in_a_setgid_directory() {
    let Some([directorys, other]) = groups() else {
        return assert!(std::env::var_os("MAILTAP_TEST_REQUIRED").is_none());
    };
    let mut site = site(Vec::new());
    let directory = site.dir.join("setgid");
    for (settings, mode, group) in [
        (("0666", other.name.as_str()), 0o666, other.gid),
        (("0660", ""), 0o660, directorys.gid),
        (("600", directorys.name.as_str()), 0o600, directorys.gid),
    ] {
        restart_in(&mut site, &directory, directorys.gid, settings);
        let found = fs::metadata(directory.join("milter.sock")).unwrap();
        assert_eq!((found.mode() & 0o7777, found.gid()), (mode, group.as_raw()), "{settings:?}");
    }
}

/// In a user namespace, as PrivateUsers= makes one, other groups are not known: the socket has its directory's all the same, and
/// who wants another hears what is in the way.
#[test]
fn where_groups_are_unknown_the_directory_gives_the_socket_its_group() {
    let Some([directorys, other]) = groups() else {
        return assert!(std::env::var_os("MAILTAP_TEST_REQUIRED").is_none());
    };
    let namespace = ["--user", "--map-root-user"];
    if !Command::new("unshare").args(namespace).arg("true").status().is_ok_and(|status| status.success()) {
        eprintln!("not checked: no user namespaces here");
        return assert!(std::env::var_os("MAILTAP_TEST_REQUIRED").is_none());
    }
    let mut site = site(Vec::new());
    let directory = site.dir.join("setgid");
    for (group, told) in [("", false), (other.name.as_str(), true)] {
        restart_in(&mut site, &directory, directorys.gid, ("0660", group));
        site.mailtap.as_mut().unwrap().stop();
        let mailtap = site.command();
        let mut command = Command::new("unshare");
        command.args(namespace).arg(mailtap.get_program()).args(mailtap.get_args()).arg("milter");
        let before = site.log("mailtap").len();
        site.start_mailtap_by(&mut command);
        let said = site.log("mailtap").split_off(before);
        let found = fs::metadata(directory.join("milter.sock")).unwrap();
        assert_eq!((found.mode() & 0o7777, found.gid()), (0o660, directorys.gid.as_raw()), "{group:?}");
        assert_eq!(said.contains("keeps the one it was made with"), told, "{said}");
        assert_eq!(said.contains("PrivateUsers=yes") && said.contains("install -d"), told, "{said}");
    }
}

#[test]
fn a_group_that_is_not_there_is_named() {
    let mut site = site(vec![(MODE, "socket_mode = \"0660\"".into())]);
    site.mailtap.as_mut().unwrap().stop();
    let text = fs::read_to_string(site.config()).unwrap();
    assert!(text.contains(GROUP), "{text}");
    fs::write(site.config(), text.replace(GROUP, "socket_group = \"no-such-group\"")).unwrap();
    for (arguments, code) in [(&["milter"][..], 69), (&["config", "check"], 78)] {
        let output = site.command().args(arguments).output().unwrap();
        // Quotes are escaped in JSON.
        let text = said(&output).replace('\\', "");
        assert_eq!(output.status.code(), Some(code), "{text}");
        for part in ["milter.socket_group: there is no group \"no-such-group\"", "groupadd"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(text.matches("mailtap.toml").count(), usize::from(code == 78), "{text}");
    }
    assert!(!site.milter_socket().exists());
}
