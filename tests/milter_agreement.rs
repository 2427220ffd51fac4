//! What the milter dares as long as it does not know that Postfix answers 451 when the milter fails: nothing that could cost
//! mail. A main.cf of the test's own is asked by `postconf`; the test itself speaks the milter protocol.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use harness::letters::{Fate, Kind, fate, letter};
use harness::{Options, SENDER, Site, free_ports, said, wait_for};
use mailtap_milter::client::{Mail, Mailbox};
use mailtap_milter::driver::{Client, Peer};
use mailtap_milter::wire::Offer;

const DIRS: &str = "#postfix_config_dirs = [\"/etc/postfix\"]";

/// Writes a Postfix's configuration that names this milter.
fn main_cf(directory: &Path, milter: &str, action: &str) {
    fs::create_dir_all(directory).unwrap();
    let text = format!(
        "compatibility_level = 3.6\nqueue_directory = /var/spool/postfix\nsmtpd_milters = {milter}\n\
         milter_default_action = {action}\n"
    );
    fs::write(directory.join("main.cf"), text).unwrap();
    fs::write(directory.join("master.cf"), "").unwrap();
}

/// A milter told `tempfail`, on this port of all addresses; `dirs` is what is in `milter.postfix_config_dirs`.
fn site(port: u16, dirs: &str, more: &[(&'static str, &str)]) -> Site {
    let mut changes = vec![
        (
            "listen = \"unix:{dir}/relay/queue/mailtap/milter.sock\"",
            format!("listen = \"inet:0.0.0.0:{port}\""),
        ),
        (DIRS, format!("postfix_config_dirs = {dirs}")),
        // Any file stands for a log, since there is no Postfix: a missing one would be a warning.
        ("\"{dir}/relay/log/maillog\"", "\"{dir}/ga4-secret\"".to_owned()),
        // For a build without optimisation, on a busy machine.
        ("#message_timeout = \"20s\"", "message_timeout = \"100s\"".to_owned()),
    ];
    changes.extend(more.iter().map(|(from, to)| (*from, (*to).to_owned())));
    Site::start(&Options { milter_only: true, without_postfix: true, changes, ..Options::default() })
}

/// What becomes of a letter whose answer does not fit the socket's buffer, as large as the system lets it be.
fn large(site: &Site, port: u16) -> Fate {
    let granted: usize = fs::read_to_string("/proc/sys/net/core/wmem_max").unwrap().trim().parse().unwrap();
    let bytes = granted.min(64 << 20) / 2 * 3 + 1_000_000;
    assert!(
        bytes < 40 << 20,
        "net.core.wmem_max is too large for this test: no message is larger than the buffer"
    );
    let original = letter(1, Kind::Attachment(bytes));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let delivered = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut client = Client::negotiate(stream, &Offer::POSTFIX).await.unwrap();
        client.open(&Peer::default()).await.unwrap();
        let recipients = vec![Mailbox::new("<anna@example.net>")];
        let mail = Mail::parse(Mailbox::new(format!("<{SENDER}>")), recipients, original.as_bytes());
        let delivery = client.send(&mail, "Q1").await.unwrap();
        client.quit().await.unwrap();
        String::from_utf8(delivery.mail.to_bytes()).unwrap()
    });
    fate(&original, &delivered, &site.tracking_url()).unwrap()
}

fn refused_for_size(site: &Site) -> usize {
    site.log("mailtap").matches("\"reason\":\"answer_too_large\"").count()
}

/// Reloads, and waits until the milter has said this once more.
fn reload(site: &Site, says: &str) {
    let count = || site.log("mailtap").matches(says).count();
    let before = count();
    site.mailtap.as_ref().unwrap().signal("HUP");
    wait_for(says, Duration::from_secs(20), || count() > before);
}

const AGREES: &str = "main.cf says default_action=tempfail";
const DIFFERS: &str = "says default_action=accept";

#[test]
fn a_port_is_recognised_by_any_host_and_postfix_asked_again_at_a_reload() {
    let [port] = free_ports::<1>();
    let folder = tempfile::tempdir().unwrap();
    main_cf(folder.path(), &format!("inet:127.0.0.1:{port}"), "accept");
    let site = site(port, &format!("[{:?}]", folder.path()), &[]);
    wait_for(DIFFERS, Duration::from_secs(20), || site.log("mailtap").contains(DIFFERS));
    assert_eq!((large(&site, port), refused_for_size(&site)), (Fate::AsItCame, 1));
    let metrics = harness::http(site.admin, "GET", "/metrics", &[]).unwrap();
    let metrics = String::from_utf8(metrics.body).unwrap();
    assert!(metrics.contains("mailtap_milter_default_action_differs 1"), "{metrics}");

    let checked = site.command().args(["config", "check"]).output().unwrap();
    let text = said(&checked);
    assert_eq!(checked.status.code(), Some(78), "{text}");
    let main_cf_path = folder.path().join("main.cf");
    for part in
        [main_cf_path.to_str().unwrap(), "mailtap.toml", "milter.default_action", "default_action=tempfail"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }

    main_cf(folder.path(), &format!("{{ inet:relay.test:{port}, default_action=tempfail }}"), "accept");
    reload(&site, AGREES);
    assert_eq!((large(&site, port), refused_for_size(&site)), (Fate::Rewritten, 1));
    let checked = site.command().args(["config", "check"]).output().unwrap();
    assert!(checked.status.success() && !said(&checked).contains("warning"), "{}", said(&checked));

    main_cf(folder.path(), &format!("inet:localhost:{port}"), "accept");
    reload(&site, DIFFERS);
    assert_eq!((large(&site, port), refused_for_size(&site)), (Fate::AsItCame, 2));
}

/// As Postfix takes them; and in a further instance.
#[test]
fn accept_is_found_however_and_wherever_it_is_written() {
    let [port] = free_ports::<1>();
    let folder = tempfile::tempdir().unwrap();
    let (main, further) = (folder.path().join("main"), folder.path().join("further"));
    let ours = format!("inet:127.0.0.1:{port}");
    main_cf(&main, &ours, "tempfail");
    let mut site = site(port, &format!("[{main:?}]"), &[]);
    site.mailtap.as_mut().unwrap().stop();
    let check = || {
        let checked = site.command().args(["config", "check"]).output().unwrap();
        (checked.status.code(), said(&checked))
    };
    for entry in [
        format!("{{ {ours}, {{default_action = accept}} }}"),
        format!("{{ {ours}, {{ connect_timeout = 5s }}, {{ default_action = accept }} }}"),
        format!("{{ {ours}, default_action=tempfail, default_action=Accept }}"),
        format!("unix:other, {{{ours} connect_timeout=5s default_action=QUARANTINE}}"),
    ] {
        main_cf(&main, &entry, "tempfail");
        let (code, text) = check();
        assert!(code == Some(78) && text.contains(DIFFERS), "{entry}: {text}");
    }
    main_cf(
        &main,
        &format!("{{ {ours}, {{ connect_timeout = 5s }}, {{ default_action = tempfail }} }}"),
        "accept",
    );
    assert_eq!(check().0, Some(0), "{}", check().1);

    main_cf(&further, &ours, "accept");
    let lists_it = fs::read_to_string(main.join("main.cf")).unwrap()
        + &format!("multi_instance_directories = {}\n", further.display());
    fs::write(main.join("main.cf"), lists_it).unwrap();
    let (code, text) = check();
    assert!(code == Some(78) && text.contains(further.to_str().unwrap()), "{text}");
}

/// What a service of master.cf sets for itself, in whatever way Postfix takes it; or nobody can know.
#[test]
fn accept_is_found_in_what_a_service_overrides() {
    let [port] = free_ports::<1>();
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path();
    let ours = format!("inet:127.0.0.1:{port}");
    main_cf(directory, &ours, "tempfail");
    let mut site = site(port, &format!("[{directory:?}]"), &[]);
    site.mailtap.as_mut().unwrap().stop();
    let tempfail = format!("{{{ours},default_action=tempfail}}");
    let accept = format!("{{{ours},default_action=accept}}");
    let smtp = "smtp inet n - n - - smtpd";
    let (found, unseen) = (Some(DIFFERS), Some("so nobody knows whether it says"));
    for (main, master, says) in [
        (format!("smtpd_milters=$mine\nmine={tempfail}"), format!("{smtp} -o mine={accept}"), found),
        (
            format!("smtpd_milters={ours}\nmilter_default_action=$mda\nmda=tempfail"),
            format!("{smtp} -o mda=accept"),
            found,
        ),
        (
            format!("smtpd_milters={{{ours}, default_action=$da}}\nda=$db\ndb=tempfail"),
            format!("{smtp} -v\n  -o {{ db = accept }}"),
            found,
        ),
        (
            format!("smtpd_milters={tempfail}\nnon_smtpd_milters=$nm\nnm="),
            format!("cleanup unix n - n - 0 cleanup -o nm={accept}"),
            found,
        ),
        (
            format!("smtpd_milters={tempfail}\nsmtpd_milter_maps=$mmm\nmmm="),
            format!("{smtp} -o {{ mmm = inline:{{ {{ 192.0.2.1 = {accept} }} }} }}"),
            found,
        ),
        // `postconf` cuts options up at each `o`, Postfix obeys them.
        (format!("smtpd_milters={ours}"), format!("{smtp} -vomilter_default_action=accept"), found),
        // It warns of the brace that it cut off.
        (format!("smtpd_milters={tempfail}"), format!("{smtp} -osmtpd_milters={accept}"), unseen),
        (format!("smtpd_milters={tempfail}"), format!("{smtp} -o mine"), unseen),
        (format!("smtpd_milters={tempfail}"), format!("{smtp} -o {{mine=1"), unseen),
        (format!("smtpd_milters=$mine\nmine={tempfail}"), format!("{smtp} -o mine=$(x"), unseen),
        (
            format!("smtpd_milters={ours}\nmilter_default_action=${{stress?{{accept}}:{{tempfail}}}}"),
            smtp.to_owned(),
            unseen,
        ),
        (format!("smtpd_milters=$mine $undefined\nmine={tempfail}"), smtp.to_owned(), unseen),
        (
            format!("smtpd_milters={tempfail}\nunused=1\nunused=2"),
            format!(
                "{smtp} -o syslog_name=x/$service_name -o content_filter= -o smtpd_milters={ours}\n\
                     uucp unix - n n - - pipe flags=Fqhu user=uucp argv=uux -r -n -z -a$sender - $nexthop!rmail"
            ),
            None,
        ),
    ] {
        let head = "compatibility_level=3.6\nqueue_directory=/var/spool/postfix\n";
        fs::write(directory.join("main.cf"), format!("{head}{main}\n")).unwrap();
        fs::write(directory.join("master.cf"), format!("{master}\n")).unwrap();
        let checked = site.command().args(["config", "check"]).output().unwrap();
        let text = said(&checked);
        match says {
            Some(says) => assert!(text.contains(says), "{main}\n{master}: {text}"),
            None => {
                assert!(checked.status.success() && !text.contains("warning"), "{main}\n{master}: {text}")
            }
        }
        assert_eq!(checked.status.code() == Some(78), says == found, "{main}\n{master}: {text}");
    }
}

/// What Postfix waits for is compared with what we take.
#[test]
fn a_postfix_without_patience_is_warned_of() {
    let [port] = free_ports::<1>();
    let folder = tempfile::tempdir().unwrap();
    main_cf(folder.path(), "inet:127.0.0.1:1", "tempfail");
    let mut site = site(port, &format!("[{:?}]", folder.path()), &[]);
    site.mailtap.as_mut().unwrap().stop();
    let check = |settings: &str| {
        main_cf(folder.path(), &format!("{{ inet:127.0.0.1:{port}, {settings} }}"), "tempfail");
        let checked = site.command().args(["config", "check"]).output().unwrap();
        assert!(checked.status.success(), "{}", said(&checked));
        said(&checked)
    };
    let text = check("content_timeout=5s, command_timeout=1s");
    for part in ["waits 5 s", "milter.message_timeout is 100 s", "waits 1 s", "may take 30 s", "main.cf: "] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let text = check("content_timeout=3m, command_timeout=30s");
    assert!(!text.contains("warning"), "{text}");
}

/// What Postfix decides on the original is lost with it, unless its copies meet the same.
#[test]
fn copies_meet_what_the_original_met() {
    let [port] = free_ports::<1>();
    let folder = tempfile::tempdir().unwrap();
    let split = ("#several_recipients = \"shared\"", "several_recipients = \"split\"");
    let longer = ("#drain = \"20s\"", "drain = \"100s\"");
    main_cf(folder.path(), &format!("{{ inet:127.0.0.1:{port}, command_timeout=110s }}"), "tempfail");
    let mut site = site(port, &format!("[{:?}]", folder.path()), &[split, longer]);
    site.mailtap.as_mut().unwrap().stop();
    let printed = |arguments: &[&str]| {
        let output = site.command().args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    };
    let text = printed(&["postfix"]);
    assert!(text.contains("INFO}} } -o nested_header_checks=\n"), "{text}");
    assert!(!text.contains("-o { content_filter"), "{text}");
    let text = printed(&["config", "check"]);
    assert!(!text.contains("warning"), "{text}");

    main_cf(
        folder.path(),
        &format!("inet:127.0.0.1:1, {{ inet:127.0.0.1:{port}, command_timeout=110s }}"),
        "tempfail",
    );
    let more = "hold = regexp:{{/^X-Bad/ HOLD}}\nheader_checks = regexp:/etc/mine, $hold\n";
    fs::write(
        folder.path().join("main.cf"),
        fs::read_to_string(folder.path().join("main.cf")).unwrap() + more,
    )
    .unwrap();
    let services = "smtp inet n - n - - smtpd -o content_filter=scan:[127.0.0.1]:10024\n\
                    10025 inet n - n - - smtpd -o content_filter= -o smtpd_milters=\n";
    fs::write(folder.path().join("master.cf"), services).unwrap();
    let text = printed(&["postfix"]);
    for part in [
        "-o { content_filter = scan:[127.0.0.1]:10024 }\n",
        "/^X-Mailtap-(Ref|Campaign):/ INFO}}, regexp:/etc/mine, regexp:{{/^X-Bad/ HOLD}} }",
        "-o { nested_header_checks = regexp:/etc/mine, regexp:{{/^X-Bad/ HOLD}} }",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let text = printed(&["config", "check"]);
    assert!(text.contains("a milter is asked before mailtap"), "{text}");
}

/// The socket that systemd hands over counts, not the one in mailtap.toml.
#[test]
fn an_inherited_socket_is_what_postfix_is_asked_about() {
    let [port] = free_ports::<1>();
    let folder = tempfile::tempdir().unwrap();
    let mut site = site(port, &format!("[{:?}]", folder.path()), &[]);
    site.mailtap.as_mut().unwrap().stop();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    for (action, expected) in [("accept", Fate::AsItCame), ("tempfail", Fate::Rewritten)] {
        main_cf(folder.path(), &format!("inet:{address}"), action);
        site.start_milter_on(listener.try_clone().unwrap().into());
        assert_eq!(large(&site, address.port()), expected, "{action}");
        site.mailtap.as_mut().unwrap().stop();
    }
    let log = site.log("mailtap");
    let listens = log.lines().rfind(|line| line.contains("milter listens")).unwrap();
    assert!(listens.contains(&format!("inet:{address}")), "{listens}");
}

#[test]
fn who_cannot_be_asked_has_not_agreed() {
    let folder = tempfile::tempdir().unwrap();
    main_cf(&folder.path().join("other"), "inet:127.0.0.1:1", "tempfail");
    let missing = folder.path().join("missing");
    for (dirs, says) in [
        ("[]".to_owned(), "milter.postfix_config_dirs names no main.cf"),
        (format!("[{missing:?}]"), "missing: main.cf can't be read"),
        (format!("[{:?}]", folder.path().join("other")), "names no milter at inet:0.0.0.0:"),
    ] {
        let [port] = free_ports::<1>();
        let mut site = site(port, &dirs, &[]);
        wait_for(says, Duration::from_secs(20), || site.log("mailtap").contains(says));
        let log = site.log("mailtap");
        let line = log.lines().find(|line| line.contains(says)).unwrap();
        assert!(line.contains("WARN") && line.contains("milter.trust_default_action"), "{line}");
        assert_eq!((large(&site, port), refused_for_size(&site)), (Fate::AsItCame, 1), "{dirs}");
        let checked = site.command().args(["config", "check"]).output().unwrap();
        assert!(checked.status.success() && said(&checked).contains(says), "{}", said(&checked));

        site.mailtap.as_mut().unwrap().stop();
        let text = fs::read_to_string(site.config()).unwrap();
        let text = text.replace("#trust_default_action = false", "trust_default_action = true");
        fs::write(site.config(), text).unwrap();
        site.start_mailtap();
        assert_eq!(large(&site, port), Fate::Rewritten, "{dirs}: somebody vouches for it");
    }
}
