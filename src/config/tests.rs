//! Tests of the whole configuration: the example, the report, the secrets.
//!
//! - Layer: edge
//! - Takes: the example, changed.
//! - Gives: proof that example, defaults and checks agree.
//! - On failure: the test fails.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

/// The example with every commented key in force.
fn all_keys() -> String {
    EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') && !rest.is_empty() => rest,
            _ => line,
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn the_example_says_the_defaults() {
    let (raw, problems) = parse::parse(&all_keys()).unwrap();
    assert_eq!(problems, []);
    let mut expected = Raw::default();
    expected.tracking.url = "https://t.example.org".into();
    expected.policy.sender_domains = vec!["example.org".into()];
    let mut found = raw;
    assert_eq!((found.policy.campaign_rules.len(), found.ga4.properties.len()), (1, 1));
    assert_eq!(found.policy.rules.len(), 1);
    found.policy.rules.clear();
    found.policy.campaign_rules.clear();
    assert_eq!(found.tracking.hosts.len(), 1);
    found.tracking.hosts.clear();
    found.ga4.properties.clear();
    assert_eq!(found, expected);
    assert_eq!(parse::parse(EXAMPLE), Ok((expected, vec![])));
}

#[test]
fn the_pixel_is_the_rewriters_own() {
    assert_eq!(raw::DEFAULT_PIXEL, crate::rewrite::DEFAULT_PIXEL);
}

#[test]
fn no_key_is_missing_from_the_example() {
    let found: toml::Table = toml::from_str(&all_keys()).unwrap();
    let known = toml::Table::try_from(Raw::sample()).unwrap();
    compare("", &known, &found);

    fn compare(path: &str, known: &toml::Table, found: &toml::Table) {
        for (key, value) in known {
            let found = found.get(key).unwrap_or_else(|| panic!("{path}{key} is not in the example"));
            if let (Some(known), Some(found)) = (value.as_table(), found.as_table()) {
                compare(&format!("{path}{key}."), known, found);
            }
            if let (Some(known), Some(found)) = (first_table(value), first_table(found)) {
                compare(&format!("{path}{key}[]."), known, found);
            }
        }
    }

    fn first_table(value: &toml::Value) -> Option<&toml::Table> {
        value.as_array()?.first()?.as_table()
    }
}

fn site(text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    for name in ["keyring.json", "pseudonym.key", "ga4.secret"] {
        files::replace(&directory.path().join(name), b"s3cret", 0o600).unwrap();
    }
    let path = directory.path().join("mailtap.toml");
    fs::write(&path, text).unwrap();
    (directory, path)
}

#[test]
fn a_good_file_is_read_with_its_units() {
    let text = EXAMPLE
        .replace("#measurement_id = \"\"", "measurement_id = \"G-1\"")
        .replace("#api_secret_file = \"\"", "api_secret_file = \"ga4.secret\"");
    let text = text.replace("#previous_urls = []", "previous_urls = [\"http://old.example.org/t\"]");
    let text = text.replace("#partitions = 1", "partitions = 2").replace("#queues = []", "queues = [2]");
    let (directory, path) = site(&text);
    let config = Config::load(&path).unwrap();
    assert_eq!(config.tracking_hosts[0].url, "https://t.example.org/");
    assert_eq!(config.previous_tracking_urls, ["http://old.example.org/t/"]);
    assert_eq!(config.keyring, directory.path().join("keyring.json"));
    assert_eq!(config.tracker.late_after, Duration::from_secs(90 * 86_400));
    assert_eq!((config.relay.queues.as_slice(), config.properties.len()), (&[2][..], 1));
    assert_eq!(config.properties[0].api_secret.as_ref().unwrap().expose(), "s3cret");
}

#[test]
fn all_problems_are_reported_at_once() {
    let text = r#"
        [keys]
        keyring = "nowhere.json"
        [policy]
        sender_domains = ["exa mple"]
        clickz = true
        [tracker]
        late_after = "90 days"
        listen = 8025
        [milter]
        listen = "/run/x.sock"
        [ga4]
        measurement_id = "UA-1"
    "#;
    let (_directory, path) = site(text);
    let report = Config::load(&path).unwrap_err().to_string();
    for part in [
        "mailtap.toml: 9 problems",
        "policy.clickz: unknown key; did you mean `clicks`?",
        "tracker.listen: expected text in quotes, found a whole number",
        "keys.keyring: ",
        "tracking.url: is missing",
        "policy.sender_domains: `exa mple` is not a domain",
        "tracker.late_after: `90 days` is not a duration",
        "milter.listen: `/run/x.sock` is not a milter address",
        "ga4.measurement_id: must be G-",
        "ga4.api_secret_file: is missing",
    ] {
        assert!(report.contains(part), "{part} is not in:\n{report}");
    }
}

/// What could not be read is not missing.
#[test]
fn a_mistake_in_the_text_is_the_only_problem() {
    for (from, to, problem) in [
        ("[milter]", "[milter", "line "),
        ("[milter]", "[milter]\nenabled = true\nenabled = true", "line "),
        ("#max_connections = 1000\n", "max_connections = -1\n", "milter.max_connections: -1 is too few"),
        (
            "sender_domains = [\"example.org\"]",
            "sender_domains = [1]",
            "policy.sender_domains[0]: expected text",
        ),
        ("url = \"https://t.example.org\"", "url = 1", "tracking.url: expected text"),
        ("#level = \"info\"", "level = \"warning\"", "log.level: `warning` is not a level: write \"warn\""),
        ("#level = \"info\"", "level = \"debug,,=\"", "log.level: `debug,,=` has an empty part"),
    ] {
        assert!(EXAMPLE.contains(from), "{from}");
        let (_directory, path) = site(&EXAMPLE.replacen(from, to, 1));
        let report = Config::load(&path).unwrap_err().to_string();
        let (head, said) = report.split_once('\n').unwrap();
        assert!(head.ends_with(": 1 problem") && said.trim().starts_with(problem), "{to}: {report}");
        let has_line = said.contains("line ") || said.contains("log.level");
        assert!(has_line && said.lines().count() == 1, "{report}");
    }
}

#[test]
fn properties_are_named_by_campaign_or_domain() {
    let with = |names: &str| {
        let text = format!(
            "{EXAMPLE}\n[[ga4.properties]]\n{names}\nmeasurement_id=\"G-2\"\napi_secret_file=\"ga4.secret\"\n"
        );
        let (_directory, path) = site(&text);
        Config::load(&path)
    };
    let config = with("campaigns = [\"newsletter-*\", \"sale\"]").unwrap();
    assert_eq!(config.properties[0].campaigns, ["newsletter-*", "sale"]);
    let all_others: Vec<bool> = config.properties.iter().map(PropertyConfig::takes_all_others).collect();
    assert_eq!(all_others, [false]);
    for (names, part) in [
        ("", "ga4.properties[0].sender_domains: is missing"),
        ("campaigns = [\"a*b\"]", "ga4.properties[0].campaigns: `a*b` is not a campaign"),
        ("campaigns = [\"*\"]", "`*` is not a campaign (it is empty)"),
    ] {
        let report = with(names).unwrap_err().to_string();
        assert!(report.contains(part), "{report}");
    }
}

#[test]
fn a_secret_that_others_can_read_is_a_problem() {
    let text = format!(
        "{EXAMPLE}\n[[ga4.properties]]\nsender_domains=[\"a.example\"]\nmeasurement_id=\"G-2\"\napi_secret_file=\"ga4.secret\"\n"
    );
    let (directory, path) = site(&text);
    fs::set_permissions(directory.path().join("ga4.secret"), fs::Permissions::from_mode(0o644)).unwrap();
    let report = Config::load(&path).unwrap_err().to_string();
    assert!(report.contains("ga4.properties[0].api_secret_file") && report.contains("chmod 600"), "{report}");
}

#[test]
fn no_secret_shows() {
    let text = EXAMPLE
        .replace("#url = \"\"\n# More addresses", "url = \"amqp://u:MARKER@localhost\"\n# More addresses");
    let (directory, path) = site(&text);
    files::replace(&directory.path().join("ga4.secret"), b"MARKER", 0o600).unwrap();
    let config = Config::load(&path).unwrap();
    let shown = toml::to_string(&config.effective()).unwrap();
    assert!(!shown.contains("MARKER") && shown.contains("u:redacted@"), "{shown}");
    assert!(!format!("{:?} {:?}", config.amqp, config.properties).contains("MARKER"));
    let bad = text.replace("amqp://", "amqq://");
    fs::write(&path, bad).unwrap();
    assert!(!Config::load(&path).unwrap_err().to_string().contains("MARKER"));
}

#[test]
fn rules_are_read_checked_and_may_leave_keys_out() {
    let with = |rules: &str| {
        let text =
            EXAMPLE.replace("# Whether recipients may be", &format!("{rules}\n# Whether recipients may be"));
        let (directory, path) = site(&text);
        (directory, Config::load(&path))
    };
    let (_directory, config) =
        with("[[policy.rules]]\nrecipient_domains = [\"*.Bücher.example\"]\nopens = false");
    let config = config.unwrap();
    assert_eq!(config.rules[0].recipient_domains, ["*.xn--bcher-kva.example"]);
    assert_eq!((config.rules[0].clicks, config.rules[0].opens), (None, Some(false)));
    assert!(toml::to_string(&config.effective()).unwrap().contains("opens = false"));
    let (_directory, config) =
        with("[[policy.rules]]\n[[policy.rules]]\nsender_domains = [\"a b\"]\nclicks = 1");
    let report = config.unwrap_err().to_string();
    for part in [
        "policy.rules[0]: fits all mail",
        "policy.rules[0]: changes nothing",
        "policy.rules[1].sender_domains: `a b` is not a domain",
        "policy.rules[1].clicks: expected true or false",
    ] {
        assert!(report.contains(part), "{part} is not in:\n{report}");
    }
}

#[test]
fn a_pixel_that_could_not_be_added_and_limits_that_could_not_hold_are_problems() {
    let with = |from: &str, to: &str| {
        assert!(EXAMPLE.contains(from), "{from}");
        let (_directory, path) = site(&EXAMPLE.replace(from, to));
        Config::load(&path).err().map(|error| error.to_string()).unwrap_or_default()
    };
    let pixel = EXAMPLE.lines().find(|line| line.starts_with("#pixel = ")).unwrap();
    for (template, problem) in [
        ("<img src='x'>", "must contain {url}"),
        ("<img src='{url}' alt='\u{e9}'>", "must be one line of ASCII"),
        ("<img src={url}>", "within the quotes"),
        ("{url} <img src='{url}'>", "within the quotes"),
        (&format!("<img src='{{url}}' alt='{}'>", "x".repeat(600)), "must not be longer"),
    ] {
        let report = with(pixel, &format!("pixel = \"{template}\""));
        assert!(report.contains("policy.pixel: ") && report.contains(problem), "{template}: {report}");
    }
    assert_eq!(with(pixel, "pixel = \"<img src='{url}'>\""), "");
    assert!(
        with("#max_links = 1000", "max_links = 65536")
            .contains("policy.max_links: must not be more than 65535")
    );
    assert!(with("#max_depth = 20", "max_depth = 101").contains("policy.max_depth: "));
    assert!(with("#max_parts = 500", "max_parts = 0").contains("policy.max_parts: 0 is too few"));
}

#[test]
fn links_that_the_tracker_would_not_answer_are_problems() {
    let with = |from: &str, to: &str| {
        assert!(EXAMPLE.contains(from), "{from}");
        let (_directory, path) = site(&EXAMPLE.replace(from, to));
        Config::load(&path).err().map(|error| error.to_string()).unwrap_or_default()
    };
    for (from, key) in [("#click_paths = [\"c\"]", "click_paths"), ("#open_paths = [\"o\"]", "open_paths")] {
        let report = with(from, &format!("{key} = [\".well-known\"]"));
        assert!(report.contains(&format!("tracking.{key}: `.well-known` is where files are")), "{report}");
    }
    let url =
        EXAMPLE.lines().find(|line| line.trim_start_matches('#').starts_with("url = \"https://")).unwrap();
    for (path, problem) in [
        ("/.well-known", "below /.well-known/ are files"),
        ("/.well-known/x/", "below /.well-known/ are files"),
        ("/a//b", "the path has ``"),
        ("/a%20b", "the path has `a%20b`"),
        ("/m/.well-known", ""),
        ("/m/n/", ""),
    ] {
        let report = with(url, &format!("url = \"https://t.example.org{path}\""));
        assert!(report.contains(problem), "{path}: {report}");
        assert_eq!(report.is_empty(), problem.is_empty(), "{path}: {report}");
    }
    let long = |bytes: u32| with("#max_url_bytes = 2000", &format!("max_url_bytes = {bytes}"));
    assert_eq!(long(16_384), "");
    let report = long(16_385);
    assert!(
        report.contains("tracking.max_url_bytes: must be at most half of tracker.max_head (32KiB)"),
        "{report}"
    );
    let (_directory, path) = site(
        &EXAMPLE
            .replace("#max_url_bytes = 2000", "max_url_bytes = 60001")
            .replace("#max_head = \"32KiB\"", "max_head = \"1MiB\""),
    );
    assert!(Config::load(&path).unwrap_err().to_string().contains("tracking.max_url_bytes"));
}

#[test]
fn a_missing_key_file_names_what_makes_it() {
    let (directory, path) = site(EXAMPLE);
    for name in ["keyring.json", "pseudonym.key"] {
        fs::remove_file(directory.path().join(name)).unwrap();
    }
    let report = Config::load(&path).unwrap_err().to_string();
    for part in [
        "keys.keyring: ",
        "`mailtap keys init`",
        "keys.pseudonym_key: ",
        "copy it from another host",
        "basenc",
    ] {
        assert!(report.contains(part), "{part} is not in:\n{report}");
    }
}

#[test]
fn mail_is_split_only_where_nobody_can_get_two_copies() {
    let text = EXAMPLE
        .replace("#several_recipients = \"shared\"", "several_recipients = \"split\"")
        .replace("#default_action = \"tempfail\"", "default_action = \"accept\"")
        .replace("#drain = \"20s\"", "drain = \"5s\"")
        .replace("#timeout = \"10s\"\n\n# Whether", "timeout = \"11s\"\n\n# Whether");
    let (_directory, path) = site(&text);
    let report = Config::load(&path).unwrap_err().to_string();
    for key in ["policy.several_recipients", "split.timeout", "milter.drain"] {
        assert!(report.contains(key), "{key}: {report}");
    }
    let text = EXAMPLE.replace("#several_recipients = \"shared\"", "several_recipients = \"split\"");
    let (_directory, path) = site(&text);
    assert_eq!(Config::load(&path).unwrap().split.unwrap().max_recipients, 50);
}

#[test]
fn a_milter_that_could_not_work_is_none() {
    let with = |from: &str, to: &str| {
        assert!(EXAMPLE.contains(from), "{from}");
        let (_directory, path) = site(&EXAMPLE.replace(from, to));
        Config::load(&path).map_or_else(|error| error.to_string(), |_| String::new())
    };
    for key in ["message_timeout", "idle_timeout", "first_timeout", "content_timeout", "write_timeout"] {
        let at = EXAMPLE.find("[milter]").unwrap();
        let line = EXAMPLE[at..].lines().find(|line| line.starts_with(&format!("#{key} = "))).unwrap();
        for bad in ["0s", "999ms"] {
            let report = with(&format!("\n{line}"), &format!("\n{key} = \"{bad}\""));
            assert!(report.contains(&format!("milter.{key}: `{bad}` is too short")), "{report}");
        }
        assert_eq!(with(&format!("\n{line}"), &format!("\n{key} = \"1000s\"")), "");
    }
    let header = |size: &str| with("#max_header_size = \"1MiB\"", &format!("max_header_size = \"{size}\""));
    for few in ["0KiB", "1023B"] {
        let report = header(few);
        assert!(report.contains(&format!("milter.max_header_size: `{few}` is too small")), "{report}");
    }
    assert_eq!(header("1KiB"), "");
    let report = with("#max_connections = 1000\n", "max_connections = 10000000\n");
    assert!(report.contains("milter.max_connections: must not be more than 100000"), "{report}");
    let report = with("#socket_mode = \"0660\"", "socket_mode = \"66\"");
    assert!(report.contains("milter.socket_mode: `66`"), "{report}");
    let listen = |place: &str| {
        with("#listen = \"unix:/var/spool/postfix/mailtap/milter.sock\"", &format!("listen = \"{place}\""))
    };
    let report = listen("unix:mailtap/milter.sock");
    assert!(
        report.contains("milter.listen: ") && report.contains("unix:/var/spool/postfix/mailtap/milter.sock")
    );
    assert_eq!(listen(&format!("unix:/{}", "x".repeat(106))), "");
    let report = listen(&format!("unix:/{}", "x".repeat(107)));
    assert!(report.contains("milter.listen: the path has 108 bytes"), "{report}");
}

#[test]
fn memory_has_room_for_the_largest_message() {
    let with = |memory: &str| {
        let text = EXAMPLE.replace("#max_memory = \"1GiB\"", &format!("max_memory = \"{memory}\""));
        let (_directory, path) = site(&text);
        Config::load(&path).map_err(|error| error.to_string())
    };
    let report = with("160MiB").unwrap_err();
    assert!(
        report.contains("milter.max_memory: must be more than four times policy.max_message (40MiB)"),
        "{report}"
    );
    assert_eq!(with("161MiB").unwrap().milter.max_memory_bytes, 161 << 20);
}

#[test]
fn tracking_hosts_take_from_the_first_what_they_leave_out() {
    let host = "[[tracking.hosts]]\nurl = \"https://b.example/x\"\naliases = [\"B2.example\"]\nsender_domains = [\"b.example\"]\n\
                click_paths = [\"go\"]\n[policy]";
    let text = EXAMPLE
        .replace("#utm_source = \"\"", "utm_source = \"news\"")
        .replace(
            "#privacy_url = \"\"\n#languages = [\"en\"",
            "privacy_url = \"https://p.example\"\n#languages = [\"en\"",
        )
        .replace("[policy]", host);
    let (_directory, path) = site(&text);
    let config = Config::load(&path).unwrap();
    let [first, second] = &config.tracking_hosts[..] else { panic!("{:?}", config.tracking_hosts) };
    assert_eq!(
        (first.names.as_slice(), second.names.as_slice()),
        (&["t.example.org".to_owned()][..], &["b.example".to_owned(), "b2.example".into()][..])
    );
    assert_eq!(
        (second.url.as_str(), &second.click_paths[..], &second.open_paths[..]),
        ("https://b.example/x/", &["go".to_owned()][..], &["o".to_owned()][..])
    );
    assert_eq!(second.utm, [("utm_source".to_owned(), "news".to_owned())]);
    assert_eq!(second.privacy_url.as_deref(), Some("https://p.example"));

    let wrong = "[[tracking.hosts]]\nurl = \"https://t.example.org\"\nsite = \"a b\"\nclick_paths = [\"o\"]\nutm = [\"utm_x\", \"source=1\"]\n\
                 languages = [\"fr\"]\ntls_key = \"k.pem\"\nwell_known_dir = \"nowhere\"\nprivacy_url = \"javascript:x\"\n[policy]";
    let (_directory, path) = site(&EXAMPLE.replace("[policy]", wrong));
    let report = Config::load(&path).unwrap_err().to_string();
    for part in [
        "tracking.hosts[0]: t.example.org is named twice",
        "tracking.hosts[0].sender_domains: is missing",
        "tracking.hosts[0].site: `a b`",
        "tracking.hosts[0].click_paths: `o` can't be both",
        "tracking.hosts[0].utm: `utm_x` is not like",
        "tracking.hosts[0].utm: `source`: ",
        "tracking.hosts[0].languages: `fr` is not one of: en, pl, de",
        "tracking.hosts[0]: tls_certificate and tls_key come together",
        "tracking.hosts[0].well_known_dir: ",
        "tracking.hosts[0].privacy_url: must begin with https://",
    ] {
        assert!(report.contains(part), "{part} is not in:\n{report}");
    }
}

#[test]
fn a_pattern_that_is_none_is_named() {
    let text = EXAMPLE.replace("#skip_link_patterns = []", "skip_link_patterns = [\"/account\", \"/\"]");
    let (_directory, path) = site(&text);
    let report = Config::load(&path).unwrap_err().to_string();
    assert!(report.contains("policy.skip_link_patterns"), "{report}");
}

/// Who does not need a credential that only the unit has is not held up by it.
#[test]
fn a_credential_of_the_unit_is_missed_only_where_it_is_needed() {
    assert!(std::env::var_os("CREDENTIALS_DIRECTORY").is_none(), "this test runs in no unit");
    let text = EXAMPLE
        .replace("#measurement_id = \"\"", "measurement_id = \"G-1\"")
        .replace("#api_secret_file = \"\"", "api_secret_file = \"credential:ga4\"")
        .replace("#url = \"\"\n# More addresses", "url = \"amqp://u@localhost\"\n# More addresses")
        .replace("#password_file = \"\"", "password_file = \"credential:amqp\"");
    let (_directory, path) = site(&text);
    let config = Config::load(&path).unwrap();
    let missing = config.properties[0].missing.as_deref().unwrap();
    assert!(missing.contains("ga4.api_secret_file: credential:ga4"), "{missing}");
    let amqp = config.amqp.unwrap();
    assert!(amqp.missing.unwrap().contains("amqp.password_file: credential:amqp"));
    assert!(amqp.urls.iter().all(|url| !url.expose().contains("u:")));
}

/// Each of these was taken, and cost events or said something that was not so.
#[test]
fn values_by_which_events_would_be_lost_are_problems() {
    let set = |key: &str, value: &str| {
        let line = all_keys().lines().find(|line| line.starts_with(&format!("{key} = "))).unwrap().to_owned();
        (format!("#{line}"), format!("{key} = \"{value}\""))
    };
    let amqp = [
        (
            "#url = \"\"\n# More addresses".to_owned(),
            "url = \"amqps://u:open-word@h\"\n# More addresses".to_owned(),
        ),
        (
            "#password_file = \"\"\n# With amqps".to_owned(),
            "password_file = \"ga4.secret\"\n# With amqps".to_owned(),
        ),
        ("#client_certificate = \"\"".to_owned(), "client_certificate = \"keyring.json\"".to_owned()),
        set("prefix", ""),
    ];
    let relay_timeout = "#timeout = \"10s\"\n# When an answer".to_owned();
    let timeout =
        |value: &str| vec![(relay_timeout.clone(), format!("timeout = \"{value}\"\n# When an answer"))];
    let two = "[[ga4.properties]]\nsender_domains = [\"shop.example.org\"]\nmeasurement_id = \"G-2\"\napi_secret_file = \"ga4.secret\"\n";
    let google = |url: &str| {
        vec![
            ("#measurement_id = \"\"".to_owned(), "measurement_id = \"G-1\"".to_owned()),
            ("#api_secret_file = \"\"".to_owned(), "api_secret_file = \"ga4.secret\"".to_owned()),
            ("#url = \"https://www.google-analytics.com\"".to_owned(), format!("url = \"{url}\"")),
        ]
    };
    let shared = vec![
        ("#measurement_id = \"\"".to_owned(), "measurement_id = \"G-1\"".to_owned()),
        ("#api_secret_file = \"\"".to_owned(), "api_secret_file = \"ga4.secret\"".to_owned()),
        ("#path = \"/mp/collect\"".to_owned(), "path = \"collect\"".to_owned()),
        ("#preview_file = \"\"".to_owned(), "preview_file = \"gone\"".to_owned()),
        ("#[[ga4.properties]]".to_owned(), format!("{two}#")),
    ];
    for (changes, keys) in [
        (timeout("0s"), vec!["relay.timeout"]),
        (timeout("499ms"), vec!["relay.timeout"]),
        (timeout("301s"), vec!["relay.timeout"]),
        (timeout("500ms"), vec![]),
        (timeout("5m"), vec![]),
        (vec![set("batch_window", "5h")], vec!["relay.batch_window"]),
        (vec![set("batch_window", "1m")], vec![]),
        (vec![set("max_bytes", "1KiB")], vec!["spool.max_bytes"]),
        (vec![set("max_bytes", "16MiB")], vec![]),
        (vec![set("max_age", "72h")], vec!["spool.max_age"]),
        (amqp.to_vec(), vec!["amqp.url", "amqp.client_key", "amqp.prefix"]),
        (shared, vec!["ga4.path", "ga4.preview_file"]),
        (vec![set("path", "/debug/mp/collect")], vec!["ga4.path"]),
        (google("https://www.google-analytics.com/debug"), vec!["ga4.url"]),
        (google("https://region1.google-analytics.com/mp/collect"), vec!["ga4.url"]),
        (google("https://region1.google-analytics.com/"), vec![]),
    ] {
        let text = changes.iter().fold(EXAMPLE.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replacen(from, to, 1)
        });
        let (_directory, path) = site(&text);
        let report = Config::load(&path).err().map(|error| error.to_string()).unwrap_or_default();
        let count = |key: &&str| report.matches(&format!("{key}: ")).count() == 1;
        assert!(keys.iter().all(count), "{keys:?}: {report}");
        assert_eq!(report.is_empty(), keys.is_empty(), "{report}");
        assert!(!report.contains("open-word") && !report.contains("chmod"), "{report}");
    }
}
