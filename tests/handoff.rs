//! The hand-off, from a click at a real tracker to a real website that verifies it: the examples for Node.js, Flask and .NET.
//!
//! Where `node`, or Python with `flask` and `cryptography`, can't be had, its part passes without doing anything; with
//! `MAILTAP_TEST_LONG=1` it fails. The part of .NET needs the SDK, as `dotnet` or named by `MAILTAP_TEST_DOTNET`, and the
//! system's libsodium; as Debian has no such SDK, it never fails for want of them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "handoff/forgeries.rs"]
mod forgeries;
mod harness;

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, fs};

use harness::{Daemon, free_ports, http, long, mailtap, repository, run, wait_for};
use mailtap::identity::{MessageId, Pseudonym};
use mailtap::keys::Keys;
use mailtap::keys::ring::{Keyring, Use};
use mailtap::keys::token::{self, Click, Token};
use mailtap::service::clock;
use serde_json::Value;

const AUDIENCE: &str = "www.example.org";

struct Tracker {
    dir: tempfile::TempDir,
    port: u16,
    _daemon: Daemon,
}

impl Tracker {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [port, admin] = free_ports::<2>();
        let url = format!("http://127.0.0.1:{port}");
        run(mailtap()
            .args(["init", "--domain", "example.org", "--tracking-url", &url, "--dir"])
            .arg(dir.path())
            .args(["--tracker-listen", &format!("127.0.0.1:{port}")]));
        let config = dir.path().join("mailtap.toml");
        let mut text = fs::read_to_string(&config).unwrap();
        for (from, to) in [
            ("#identity = \"denied\"", "identity = \"granted\"".to_owned()),
            ("#withdrawn_file = \"\"", "withdrawn_file = \"withdrawn.list\"".to_owned()),
            ("#handoff_hosts = []", format!("handoff_hosts = [\"{AUDIENCE}\", \"other.example.org\"]")),
            ("#tracker = \"127.0.0.1:9743\"", format!("tracker = \"127.0.0.1:{admin}\"")),
        ] {
            assert!(text.contains(from), "{from}");
            text = text.replace(from, &to);
        }
        fs::write(&config, text).unwrap();
        let command = |arguments: &[&str]| {
            let mut command = mailtap();
            command.arg("--config").arg(&config).args(arguments);
            command
        };
        run(&mut command(&["consent", "init"]));
        run(&mut command(&["keys", "--use", "handoff", "init"]));
        let daemon = Daemon::start(command(&["tracker"]).stdout(Stdio::null()).stderr(Stdio::null()));
        wait_for("the tracker", Duration::from_secs(20), || {
            http(admin, "GET", "/readyz", &[]).is_some_and(|answer| answer.status == 200)
        });
        Self { dir, port, _daemon: daemon }
    }

    fn issuer(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = mailtap();
        command.arg("--config").arg(self.dir.path().join("mailtap.toml")).args(arguments);
        command
    }

    /// Follows ann's link; gives the JWT of the redirect, if there is one.
    fn click(&self, target: &str) -> Option<String> {
        let keys = Keys::open(&self.dir.path().join("keyring.json")).unwrap().current();
        let now = clock::now();
        let token = Token::Click(Click {
            message: MessageId::new(now.minus(Duration::from_secs(3_600)), 7),
            recipient: Some(ann()),
            link: 3,
            campaign: Some("spring".parse().unwrap()),
            target: target.to_owned(),
        });
        let path = format!("/c/{}", token::sign(&token, keys.signing(now).unwrap()));
        let answer = http(self.port, "GET", &path, &[("User-Agent", "Mozilla/5.0 Firefox/128.0")]).unwrap();
        assert_eq!(answer.status, 302);
        let location = answer.header("location").unwrap().to_owned();
        let (front, rest) = location.split_once("mt=")?;
        assert!(front.ends_with(['?', '&']), "{location}");
        Some(rest.split(['&', '#']).next().unwrap().to_owned())
    }

    fn handoff_keys(&self) -> std::sync::Arc<Keyring> {
        Keys::open_for(&self.dir.path().join("handoff.json"), Use::Handoff).unwrap().current()
    }
}

fn ann() -> Pseudonym {
    Pseudonym::from([0x11; 12])
}

/// A website that is one of the examples.
struct Website {
    port: u16,
    _daemon: Daemon,
}

impl Website {
    fn start(mut command: Command, issuer: &str) -> Self {
        let [port] = free_ports::<1>();
        command.arg(port.to_string()).args([issuer, AUDIENCE]);
        let daemon = Daemon::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
        wait_for("the website", Duration::from_secs(30), || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { port, _daemon: daemon }
    }

    /// Where the website sends who comes by this address, with a token that is none.
    fn redirect(&self, path: &str) -> String {
        let answer = http(self.port, "GET", path, &[]).unwrap();
        assert_eq!((answer.status, answer.header("set-cookie")), (303, None), "{path}");
        answer.header("location").unwrap().to_owned()
    }

    /// Who the website takes the visitor for, who comes with this token.
    fn visit(&self, jwt: &str) -> String {
        let path = format!("/shop?a=1&mt={jwt}&b=%20");
        let answer = http(self.port, "GET", &path, &[]).unwrap();
        assert_eq!(answer.status, 303, "the token leaves the address bar, good or bad");
        let location = answer.header("location").unwrap();
        assert!(location.starts_with("/shop?a=1&b=") && !location.contains("mt="), "{location}");
        let cookie = answer.header("set-cookie").map(|cookie| cookie.split(';').next().unwrap().to_owned());
        let headers: Vec<(&str, &str)> = cookie.iter().map(|cookie| ("Cookie", cookie.as_str())).collect();
        String::from_utf8(http(self.port, "GET", location, &headers).unwrap().body).unwrap()
    }
}

fn node() -> Option<Command> {
    let known = Command::new("node").arg("--version").output().is_ok_and(|output| output.status.success());
    let mut command = Command::new("node");
    command.arg(repository().join("examples/handoff/node/server.mjs"));
    known.then_some(command)
}

fn flask() -> Option<Command> {
    // Debian's packages belong to its own Python.
    let pythons = ["/usr/bin/python3", "python3"];
    let python = pythons.into_iter().find(|python| {
        let imports = Command::new(python).args(["-c", "import flask, cryptography"]).output();
        imports.is_ok_and(|output| output.status.success())
    })?;
    let mut command = Command::new(python);
    command.arg("-B").arg(repository().join("examples/handoff/flask/app.py"));
    Some(command)
}

/// The website for .NET, compiled.
struct Dotnet {
    program: PathBuf,
    dir: tempfile::TempDir,
}

impl Dotnet {
    fn build() -> Option<Self> {
        let program = PathBuf::from(env::var_os("MAILTAP_TEST_DOTNET").unwrap_or_else(|| "dotnet".into()));
        let dotnet = Self { program, dir: tempfile::tempdir().unwrap() };
        let version =
            dotnet.command().arg("--version").output().ok().filter(|output| output.status.success())?;
        let version = String::from_utf8(version.stdout).unwrap();
        let libraries = Command::new("/sbin/ldconfig").arg("-p").output().ok()?;
        if !String::from_utf8_lossy(&libraries.stdout).contains("libsodium.so") {
            return None;
        }
        let major: u32 = version.split('.').next().unwrap().parse().expect(&version);
        let framework = if major < 5 { "netcoreapp3.1".to_owned() } else { format!("net{major}.0") };
        for file in ["Handoff.cs", "Program.cs", "Handoff.csproj"] {
            let source = repository().join("examples/handoff/dotnet").join(file);
            fs::copy(source, dotnet.dir.path().join(file)).unwrap();
        }
        // No package, so no feed is asked; no compiler stays behind as a server.
        run(dotnet
            .command()
            .args(["build", "--nologo", "--output", "out", "-nodeReuse:false"])
            .arg(format!("-p:TargetFramework={framework}"))
            .args(["-p:SystemLibsodium=true", "-p:UseSharedCompilation=false", "-p:UseAppHost=false"]));
        Some(dotnet)
    }

    /// `dotnet`, that writes nowhere but in our directory and tells nobody.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(self.dir.path()).env("NUGET_PACKAGES", self.dir.path().join("packages"));
        for name in ["HOME", "TMPDIR", "DOTNET_CLI_HOME"] {
            command.env(name, self.dir.path());
        }
        for name in ["DOTNET_CLI_TELEMETRY_OPTOUT", "DOTNET_NOLOGO", "DOTNET_SYSTEM_GLOBALIZATION_INVARIANT"]
        {
            command.env(name, "1");
        }
        command
            .env("DOTNET_SKIP_FIRST_TIME_EXPERIENCE", "1")
            .env("DOTNET_GENERATE_ASPNET_CERTIFICATE", "false");
        command
    }

    fn website(&self) -> Command {
        let mut command = self.command();
        command.arg("out/Handoff.dll");
        command
    }
}

fn verifier(name: &str, website: impl Fn() -> Option<Command>) {
    let Some(command) = website() else {
        assert!(!long(), "{name} is not here");
        eprintln!("skipped: {name} is not here");
        return;
    };
    let tracker = Tracker::start();
    let issuer = tracker.issuer();
    let site = Website::start(command, &issuer);
    let known = format!("recipient {}\n", ann());
    let nobody = "nobody we know\n";

    let good = tracker.click("https://www.example.org/shop#part").unwrap();
    // Everything that is not the token itself, first: a token is spent only by being good.
    for (what, bad) in forgeries::all(&issuer, &tracker.handoff_keys(), &good) {
        assert_eq!(site.visit(&bad), nobody, "{name}: {what}");
    }
    redirects_stay_here(name, &site);
    assert_eq!(site.visit(&good), known, "{name}");
    assert_eq!(site.visit(&good), nobody, "{name}: once");
    assert_eq!(site.visit(&tracker.click("https://www.example.org/").unwrap()), known, "{name}: another");
    let other = tracker.click("https://other.example.org/").unwrap();
    assert_eq!(site.visit(&other), nobody, "{name}: meant for another host");

    // A key that leaked is gone for whoever asks for the keys from now on.
    let leaked = tracker.handoff_keys();
    run(&mut tracker.command(&["keys", "--use", "handoff", "rotate"]));
    run(&mut tracker.command(&["keys", "--use", "handoff", "revoke", "1"]));
    wait_for("the new keys", Duration::from_secs(10), || {
        let set = http(tracker.port, "GET", "/.well-known/jwks.json", &[]).unwrap();
        !String::from_utf8(set.body).unwrap().contains("\"kid\":\"1\"")
    });
    let site = Website::start(website().unwrap(), &issuer);
    let forged = forgeries::sign(&leaked, |claims| claims.iss = &issuer);
    assert_eq!(site.visit(&forged), nobody, "{name}: signed by a revoked key");
    assert_eq!(site.visit(&tracker.click("https://www.example.org/").unwrap()), known, "{name}: the new key");

    // Who withdraws is told of to nobody.
    run(&mut tracker.command(&["consent", "withdraw", &ann().to_string()]));
    wait_for("the withdrawal", Duration::from_secs(10), || {
        tracker.click("https://www.example.org/").is_none()
    });
}

/// The redirect leads to the same address, and to no other host, whatever the address is.
fn redirects_stay_here(name: &str, site: &Website) {
    assert_eq!(site.redirect("/%3Fa%23b?mt=x"), "/%3Fa%23b", "{name}");
    assert_eq!(site.redirect("/shop?MT=1&mt=x"), "/shop?MT=1", "{name}");
    for path in [
        "//evil.example/",
        "///evil.example",
        "/.//evil.example/",
        "/%2E//evil.example/",
        "/\\evil.example/",
        "/%5Cevil.example/",
        "//",
        "//[",
        "/%0D%0ASet-Cookie:%20a=b",
    ] {
        let location = site.redirect(&format!("{path}?mt=x"));
        let mut characters = location.chars();
        assert_eq!(characters.next(), Some('/'), "{name}: {path} leads to {location}");
        assert!(!matches!(characters.next(), Some('/' | '\\')), "{name}: {path} leads to {location}");
    }
}

#[test]
fn the_example_for_node_believes_what_is_true_once() {
    verifier("node", node);
}

#[test]
fn the_example_for_flask_believes_what_is_true_once() {
    verifier("flask", flask);
}

#[test]
fn the_example_for_dotnet_believes_what_is_true_once() {
    let Some(dotnet) = Dotnet::build() else {
        assert!(
            env::var_os("MAILTAP_TEST_DOTNET").is_none(),
            "the SDK of .NET that is named, or libsodium, is not here"
        );
        eprintln!("skipped: the SDK of .NET, or libsodium, is not here");
        return;
    };
    verifier("dotnet", || Some(dotnet.website()));
}

#[test]
fn the_keys_are_published_with_a_tag() {
    let tracker = Tracker::start();
    let first = http(tracker.port, "GET", "/.well-known/jwks.json", &[]).unwrap();
    assert_eq!((first.status, first.header("cache-control")), (200, Some("max-age=300")));
    let set: Value = serde_json::from_slice(&first.body).unwrap();
    assert_eq!(set["keys"][0]["crv"], "Ed25519");
    let tag = first.header("etag").unwrap();
    let again = http(tracker.port, "GET", "/.well-known/jwks.json", &[("If-None-Match", tag)]).unwrap();
    assert_eq!((again.status, again.body.len(), again.header("etag")), (304, 0, Some(tag)));
    let gpc = tracker.command(&["keys", "--use", "tokens", "list"]).output().unwrap();
    assert!(gpc.status.success());
    let mixed = mailtap()
        .args(["keys", "--keyring"])
        .arg(tracker.dir.path().join("handoff.json"))
        .arg("list")
        .output();
    let mixed = mixed.unwrap();
    assert!(!mixed.status.success());
    let said = harness::said(&mixed);
    assert!(said.contains("for handoff, not for tokens"), "{said}");
}
