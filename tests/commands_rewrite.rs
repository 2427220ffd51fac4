//! `mailtap rewrite` as postmasters meet it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::fs;

use harness::installed::installed;
use harness::{run_with_input, said};
use serde_json::Value;

#[test]
fn rewrite_leaves_what_is_out_of_scope_byte_for_byte() {
    let site = installed(&[]);
    let html = "<a href=\"https://www.example.org/\">x</a>";
    let odd = format!("From: a@other.example\nX-Odd :  v\nContent-Type: text/html\n\n{html}\r\nmixed\n\0");
    let output = site.rewrite("a@other.example", odd.as_bytes());
    assert!(output.status.success());
    assert_eq!(output.stdout, odd.as_bytes());
    let plain = "From: a@example.org\nSubject:  two   spaces\n\nno link here\n";
    let output = String::from_utf8(site.rewrite("a@example.org", plain.as_bytes()).stdout).unwrap();
    let (head, tail) = output.split_once("X-Mailtap-Ref: ").unwrap();
    assert_eq!(head, "From: a@example.org\nSubject:  two   spaces\n");
    assert_eq!(tail.split_once('\n').unwrap().1, "\nno link here\n");
}

#[test]
fn rewrite_tracks_links_and_says_why_not() {
    let site = installed(&[]);
    let message = "From: a@example.org\nMIME-Version: 1.0\nContent-Type: text/html; charset=utf-8\n\n\
                   <html><body><a href=\"https://www.example.org/?a=1&amp;b=2\">x</a>\n\
                   <a href=\"mailto:a@example.org\">y</a>\n\
                   <a clicktracking=off href=\"https://www.example.org/no\">z</a></body></html>\n";
    let mut command = site.command(&[
        "rewrite",
        "--sender",
        "a@example.org",
        "--recipient",
        "ann@example.net",
        "--explain",
    ]);
    let output = run_with_input(command.arg("--json"), message.as_bytes());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("https://t.example.org/c/") && text.contains("https://t.example.org/o/"), "{text}");
    assert!(!text.contains("\r\n"), "line endings of the input are kept");
    let why: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(why["outcome"], "rewritten");
    let links = why["links"].as_array().unwrap();
    assert_eq!(
        (links[0]["number"].as_u64(), links[0]["target"].as_str()),
        (Some(1), Some("https://www.example.org/?a=1&b=2"))
    );
    assert!(links.iter().any(|link| link["number"].is_null() && link["reason"].is_string()), "{why}");
    let token = text.split("https://t.example.org/c/").nth(1).unwrap().split('"').next().unwrap();
    let shown = site.json(&["token", "inspect", "--json", token]);
    assert_eq!(shown["target"], "https://www.example.org/?a=1&b=2");
}

#[test]
fn rules_hosts_and_the_pixels_place_come_from_the_configuration() {
    let site = installed(&[]);
    let text = fs::read_to_string(site.config()).unwrap();
    let text = text
        .replace("#only_link_hosts = []", "only_link_hosts = [\"*.example.org\"]")
        .replace("#skip_link_hosts = []", "skip_link_hosts = [\"cdn.example.org\"]")
        .replace("#pixel_at = \"end\"", "pixel_at = \"both\"");
    let rule = "[[policy.rules]]\nrecipient_domains = [\"example.net\"]\nopens = false\n";
    let message = b"From: a@example.org\r\nContent-Type: text/html\r\n\r\n<body>\r\n<a href=https://www.example.org/>1</a>\r\n\
                    <a href=https://cdn.example.org/>2</a>\r\n<a href=https://example.com/>3</a>\r\n</body>\r\n";
    let output = |text: &str| {
        fs::write(site.config(), text).unwrap();
        String::from_utf8(site.rewrite("a@example.org", message).stdout).unwrap()
    };
    let without = output(&text);
    assert_eq!((without.matches("/c/").count(), without.matches("/o/").count()), (1, 2), "{without}");
    assert!(
        without.contains("<a href=https://cdn.example.org/>2") && without.contains("https://example.com/>3")
    );
    let with =
        output(&text.replace("# Whether recipients may be", &format!("{rule}\n# Whether recipients may be")));
    assert_eq!((with.matches("/c/").count(), with.matches("/o/").count()), (1, 0), "{with}");
}

/// Changes keys of a site's configuration and rewrites.
fn rewritten_with(changes: &[(&str, &str)], message: &str) -> String {
    let site = installed(&[]);
    let mut text = fs::read_to_string(site.config()).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    fs::write(site.config(), text).unwrap();
    let output = site.rewrite("a@example.org", message.as_bytes());
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Each key, a message, and how many links are tracked without and with it.
#[test]
fn keys_of_the_policy_do_what_they_say() {
    let html = |head: &str, body: &str| {
        format!("From: a@example.org\r\n{head}Content-Type: text/html\r\n\r\n<body>{body}</body>\r\n")
    };
    let link = "<a href=\"https://www.example.org/a\">x</a>";
    let amp = "From: a@example.org\r\nContent-Type: text/x-amp-html\r\n\r\n<html amp4email><body><a href=\"https://www.example.org/a\">x</a></body></html>\r\n";
    let invitation = format!(
        "From: a@example.org\r\nContent-Type: multipart/alternative; boundary=b\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\n\
        <body>{link}</body>\r\n--b\r\nContent-Type: text/calendar; method=REQUEST; name=i.ics\r\n\r\nBEGIN:VCALENDAR\r\n--b--\r\n"
    );
    let cases: &[(&str, &str, String, [usize; 2])] = &[
        (
            "#outlook_comments = true",
            "outlook_comments = false",
            html("", &format!("<!--[if mso]>{link}<![endif]-->")),
            [1, 0],
        ),
        (
            "#skip_visible_urls = false",
            "skip_visible_urls = true",
            html("", "<a href=\"https://www.example.org/a\">www.example.org/a</a>"),
            [1, 0],
        ),
        ("#amp_parts = true", "amp_parts = false", amp.to_owned(), [1, 0]),
        (
            "#previous_urls = []",
            "previous_urls = [\"https://www.example.org\"]",
            html("", "<a href=\"https://www.example.org/c/a\">x</a>"),
            [1, 0],
        ),
        ("#skip_link_patterns = []", "skip_link_patterns = [\"/a\"]", html("", link), [1, 0]),
        (
            "#rewrite_auto_generated = false",
            "rewrite_auto_generated = true",
            html("Auto-Submitted: auto-generated\r\n", link),
            [0, 1],
        ),
        (
            "#rewrite_auto_replies = false",
            "rewrite_auto_replies = true",
            html("Auto-Submitted: auto-replied\r\n", link),
            [0, 1],
        ),
        ("#rewrite_invitations = false", "rewrite_invitations = true", invitation.clone(), [0, 1]),
        ("#max_links = 1000", "max_links = 1", html("", &link.repeat(3)), [3, 1]),
        (
            "#max_parts = 500",
            "max_parts = 2",
            invitation.replace("text/calendar; method=REQUEST; name=i.ics", "text/plain"),
            [1, 0],
        ),
        (
            "#max_depth = 20",
            "max_depth = 1",
            invitation
                .replace("text/calendar; method=REQUEST; name=i.ics", "multipart/mixed; boundary=c")
                .replace("BEGIN:VCALENDAR", "--c\r\n\r\nx\r\n--c--"),
            [1, 0],
        ),
    ];
    for (from, to, message, expected) in cases {
        let links = |changes: &[(&str, &str)]| {
            rewritten_with(changes, message).matches("https://t.example.org/c/").count()
        };
        assert_eq!([links(&[]), links(&[(from, to)])], *expected, "{to}");
    }
}

#[test]
fn the_explanation_for_people_names_everything_and_touches_no_terminal() {
    let site = installed(&[]);
    let message = "From: a@example.org\r\nX-Mailtap-Track: clicks\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\
        Content-Type: text/html; charset=utf-8\r\n\r\n<body><a href=\"https://www.example.org/a\">x</a>\r\n<a href=\"https://e.com/\x1B[2J\">y</a></body>\r\n--b\r\n\
        Content-Type: image/png\r\nContent-Disposition: attachment\r\n\r\nx\r\n--b--\r\n";
    let explain = |more: &[&str]| {
        let arguments =
            [&["rewrite", "--sender", "a@example.org", "--recipient", "ann@example.net", "--explain"], more]
                .concat();
        String::from_utf8(run_with_input(&mut site.command(&arguments), message.as_bytes()).stderr).unwrap()
    };
    let text = explain(&[]);
    for part in [
        "message    rewritten\n",
        "part -     multipart/mixed: its parts follow\n",
        "part 1     text/html, utf-8: rewritten\n",
        "part 2     image/png: left: The part is an attachment",
        "line 8     https://www.example.org/a\n           link 1\n",
        "line 9     https://e.com/\u{241B}[2J\n           left: The link is not a URL that a browser would follow. (bad_url)\n",
        "pixel      none: Opens are not tracked in this message.\n",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    assert!(!text.contains('\x1B'), "{text}");
    let json: Value = serde_json::from_str(&explain(&["--json"])).unwrap();
    assert_eq!(
        (&json["tracked"], &json["left"]["bad_url"], &json["unlisted_links"]),
        (&1.into(), &1.into(), &0.into())
    );
    assert_eq!((&json["opt_out"]["clicks"], &json["opt_out"]["opens"]), (&true.into(), &false.into()));
    assert_eq!((&json["parts"][0]["what"], &json["links"][1]["line"]), (&"opened".into(), &9.into()));
}

#[test]
fn rewrite_shows_what_changes_without_colours_in_a_pipe() {
    let site = installed(&[]);
    let rewrite = ["rewrite", "--sender", "a@example.org", "--recipient", "ann@example.net", "--diff"];
    let html =
        data_encoding::BASE64.encode(b"<p>hello</p>\r\n<a href=\"https://www.example.org/\">x</a>\r\n");
    let head = "From: a@example.org\r\nX-Mailtap-Track: yes\r\nContent-Type: text/html\r\nContent-Transfer-Encoding: base64";
    let message = format!("{head}\r\n\r\n{html}\r\n");
    let output = run_with_input(&mut site.command(&rewrite), message.as_bytes());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{text}");
    for part in [
        "\n-X-Mailtap-Track: yes\n",
        "\n+X-Mailtap-Ref: ",
        "--- part 1, text/html, as it came\n",
        "\n <p>hello</p>\n-<a href=\"https://www.example.org/\">x</a>\n+<a href=\"https://t.example.org/c/",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    assert!(!text.contains('\x1B') && !text.contains("Content-Transfer-Encoding: base64\n\n"), "{text}");
    let output = run_with_input(
        &mut site.command(&rewrite),
        b"From: a@example.org\r\nDKIM-Signature: v=1\r\n\r\nx\r\n",
    );
    assert!(
        String::from_utf8(output.stdout).unwrap().contains("nothing changes: The message carries a DKIM")
    );
    let colours = run_with_input(site.command(&rewrite).env("CLICOLOR_FORCE", "1"), message.as_bytes());
    assert!(String::from_utf8(colours.stdout).unwrap().contains("\x1B[32m+X-Mailtap-Ref: "));
    let none = run_with_input(site.command(&rewrite).env("NO_COLOR", "1"), message.as_bytes());
    assert!(!String::from_utf8(none.stdout).unwrap().contains('\x1B'));
}
