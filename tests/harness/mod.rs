//! A whole site on loopback, for the tests: private Postfix instances, RabbitMQ, mailtap and its collector.
//!
//! Everything lives below one temporary directory and ends with it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations
)]

mod daemon;
mod http;
pub mod installed;
pub mod letters;
pub mod own_broker;
pub mod proxy;
pub mod session;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub use daemon::Daemon;
pub use http::http;

pub const DOMAIN: &str = "shop.example";
/// As Postfix names it.
const MILTER: &str = "unix:mailtap/milter.sock";
pub const SENDER: &str = "news@shop.example";

/// A newsletter with two links, in quoted-printable.
pub const NEWSLETTER: &str = "From: News <news@shop.example>\r\nTo: you\r\nSubject: =?utf-8?Q?Z=C3=A9ro?=\r\n\
    X-Mailtap-Campaign: spring\r\nMIME-Version: 1.0\r\nContent-Type: text/html; charset=utf-8\r\n\
    Content-Transfer-Encoding: quoted-printable\r\n\r\n\
    <html><body><p><a href=3D\"https://www.example.org/shop?a=3D1&amp;b=3D2\">sho=\r\np</a></p>\r\n\
    <p><a href=3D'https://www.example.org/two#part'>two</a></p></body></html>\r\n";

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn mailtap() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mailtap"));
    for name in
        ["MAILTAP_CONFIG", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"]
    {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// Runs a command and gives its output; panics with all that it said when it fails.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Starts, stops or asks the RabbitMQ below this directory (`tests/lib/rabbitmq COMMAND`), which ends with this process; gives what it said.
pub fn broker(dir: &Path, arguments: &[&str]) -> String {
    let (command, rest) = arguments.split_first().unwrap();
    let mut tool = Command::new(repository().join("tests/lib/rabbitmq"));
    tool.arg(command).arg("--dir").arg(dir).args(rest);
    if *command == "start" {
        tool.args(["--owner", &std::process::id().to_string()]);
    }
    let output = tool.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs with this on standard input.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// The log of a role. Its lines are written by a thread of their own: what was said a moment ago is waited for.
pub fn log_text(path: &Path) -> String {
    let read = || fs::read_to_string(path).unwrap_or_default();
    let mut text = read();
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(40));
        let before = std::mem::replace(&mut text, read());
        if before == text {
            break;
        }
    }
    text
}

/// Waits for something to become true; panics with `what` when it does not.
pub fn wait_for(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < end, "waited {limit:?} for: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub fn free_ports<const N: usize>() -> [u16; N] {
    let text = run(Command::new(repository().join("tests/lib/free-port")).arg(N.to_string()));
    let ports: Vec<u16> = text.split_whitespace().map(|port| port.parse().unwrap()).collect();
    ports.try_into().unwrap()
}

/// What a site is made of.
pub struct Options {
    pub default_action: &'static str,
    pub rabbitmq: bool,
    /// Changes to mailtap.toml: text to replace, and by what; `{dir}` stands for the site's directory.
    pub changes: Vec<(&'static str, String)>,
    /// Only the milter, `mailtap milter`, without a collector.
    pub milter_only: bool,
    /// Without Postfix: for what speaks the milter protocol itself.
    pub without_postfix: bool,
    /// More settings of both Postfix instances.
    pub settings: Vec<&'static str>,
    /// More services of the relay: lines of master.cf.
    pub services: Vec<String>,
    /// More recipients than `anna`, each `DOMAIN:USER,…`.
    pub mailboxes: Vec<&'static str>,
    /// More options of `tests/lib/postfix` for the relay; `{smtp}`, `{mx}` and `{dir}` stand for the two servers' ports
    /// and the site's directory.
    pub relay: Vec<String>,
    /// The same for the recipients' server.
    pub mx: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            default_action: "tempfail",
            rabbitmq: false,
            changes: Vec::new(),
            milter_only: false,
            without_postfix: false,
            settings: Vec::new(),
            services: Vec::new(),
            mailboxes: Vec::new(),
            relay: Vec::new(),
            mx: Vec::new(),
        }
    }
}

/// Postfix as the relay, another as the recipients' server (mailbox `anna`, and nobody else), mailtap, collector.
pub struct Site {
    pub dir: PathBuf,
    pub smtp: u16,
    pub mx: u16,
    pub tracker: u16,
    pub admin: u16,
    pub collector_port: u16,
    pub rabbitmq_port: u16,
    pub mailtap: Option<Daemon>,
    pub collector: Option<Daemon>,
    rabbitmq: bool,
    milter_only: bool,
    without_postfix: bool,
    _temporary: tempfile::TempDir,
}

impl Site {
    pub fn start(options: &Options) -> Self {
        let temporary = tempfile::Builder::new().prefix("mailtap-test-").tempdir().unwrap();
        let dir = temporary.path().to_owned();
        let [mx, smtp, tracker, admin, collector_port, rabbitmq_port] = free_ports::<6>();
        let site = Self {
            dir: dir.clone(),
            smtp,
            mx,
            tracker,
            admin,
            collector_port,
            rabbitmq_port,
            mailtap: None,
            collector: None,
            rabbitmq: options.rabbitmq,
            milter_only: options.milter_only,
            without_postfix: options.without_postfix,
            _temporary: temporary,
        };
        if !options.without_postfix {
            site.start_postfix(options);
        }
        site.init(options);
        let mut site = site;
        if !options.milter_only {
            site.start_collector(&[]);
        }
        site.start_mailtap();
        site
    }

    fn start_postfix(&self, options: &Options) {
        let mx = self.mx;
        let (mx_port, smtp, relayhost) = (mx.to_string(), self.smtp.to_string(), format!("127.0.0.1:{mx}"));
        let mut mx_options = vec!["--port", &mx_port, "--name", "mx.example.net"];
        for mailboxes in ["example.net:anna", "shop.example:news"].iter().chain(&options.mailboxes) {
            mx_options.extend(["--mailboxes", mailboxes]);
        }
        let mut relay = vec!["--port", &smtp, "--relayhost", &relayhost, "--milter", MILTER];
        relay.extend(["--milter-default-action", options.default_action]);
        for setting in &options.settings {
            mx_options.extend(["--set", setting]);
            relay.extend(["--set", setting]);
        }
        for service in &options.services {
            relay.extend(["--master", service]);
        }
        let (more_mx, more_relay) = (self.filled(&options.mx), self.filled(&options.relay));
        mx_options.extend(more_mx.iter().map(String::as_str));
        relay.extend(more_relay.iter().map(String::as_str));
        std::thread::scope(|scope| {
            scope.spawn(|| self.postfix("start", "mx", &mx_options));
            scope.spawn(|| self.postfix("start", "relay", &relay));
        });
    }

    fn filled(&self, options: &[String]) -> Vec<String> {
        let (smtp, mx, dir) = (self.smtp.to_string(), self.mx.to_string(), self.dir.to_string_lossy());
        let fill =
            |option: &String| option.replace("{smtp}", &smtp).replace("{mx}", &mx).replace("{dir}", &dir);
        options.iter().map(fill).collect()
    }

    fn postfix(&self, action: &str, name: &str, more: &[&str]) {
        let mut command = Command::new(repository().join("tests/lib/postfix"));
        command.arg(action).arg("--dir").arg(self.dir.join(name)).args(more);
        if action == "start" {
            command.arg("--owner").arg(std::process::id().to_string());
        }
        run(&mut command);
    }

    pub fn rabbitmq(&self, action: &str) -> String {
        let mut command = Command::new(repository().join("tests/lib/rabbitmq"));
        command.arg(action).arg("--dir").arg(self.dir.join("rabbitmq"));
        if action == "start" {
            command.arg("--port").arg(self.rabbitmq_port.to_string());
            command.arg("--owner").arg(std::process::id().to_string());
        }
        run(&mut command).trim().to_owned()
    }

    fn init(&self, options: &Options) {
        let secret = self.dir.join("ga4-secret");
        fs::write(&secret, "test-secret\n").unwrap();
        let mut command = mailtap();
        command
            .args(["init", "--domain", DOMAIN, "--ga4", "G-TEST123", "--tracking-url", &self.tracking_url()])
            .arg("--dir")
            .arg(self.dir.join("mailtap"))
            .arg("--ga4-secret-file")
            .arg(&secret)
            .arg("--log-file")
            .arg(self.dir.join("relay/log/maillog"))
            .arg("--postfix-queue-dir")
            .arg(self.dir.join("relay/queue"))
            .args(["--ga4-url", &format!("http://127.0.0.1:{}", self.collector_port)])
            .args(["--tracker-listen", &format!("127.0.0.1:{}", self.tracker)])
            .args(["--admin-listen", &format!("127.0.0.1:{}", self.admin)]);
        if options.rabbitmq {
            command.args(["--amqp", &self.rabbitmq("start")]);
        }
        run(&mut command);
        let mut text = fs::read_to_string(self.config()).unwrap();
        let action = format!("default_action = \"{}\"", options.default_action);
        let mut changes = vec![("#default_action = \"tempfail\"", action)];
        // Long enough to be held at all, and no longer: tests wait for what comes after it.
        changes.push(("#hold = \"30s\"", "hold = \"1s\"".to_owned()));
        if options.milter_only {
            changes.push(("#milter = \"127.0.0.1:9741\"", format!("milter = \"127.0.0.1:{}\"", self.admin)));
        }
        let dirs = "#postfix_config_dirs = [\"/etc/postfix\"]";
        if !options.without_postfix && !options.changes.iter().any(|(from, _)| *from == dirs) {
            changes.push((dirs, "postfix_config_dirs = [\"{dir}/relay/config\"]".to_owned()));
        }
        changes.extend(options.changes.iter().cloned());
        for (from, to) in changes {
            let dir = self.dir.to_string_lossy();
            let (from, to) = (from.replace("{dir}", &dir), to.replace("{dir}", &dir));
            assert!(text.contains(&from), "{from} is not in mailtap.toml");
            text = text.replace(&from, &to);
        }
        fs::write(self.config(), text).unwrap();
    }

    pub fn config(&self) -> PathBuf {
        self.dir.join("mailtap/mailtap.toml")
    }

    pub fn command(&self) -> Command {
        let mut command = mailtap();
        command.arg("--config").arg(self.config());
        command
    }

    pub fn tracking_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.tracker)
    }

    /// Where the milter listens.
    pub fn milter_socket(&self) -> PathBuf {
        self.dir.join("relay/queue/mailtap/milter.sock")
    }

    /// Starts a command whose output goes to a log of this name.
    pub fn daemon(&self, name: &str, command: &mut Command) -> Daemon {
        let path = self.dir.join(format!("{name}.log"));
        let log = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        Daemon::start(command.stdout(log.try_clone().unwrap()).stderr(log))
    }

    pub fn start_mailtap(&mut self) {
        let role = if self.milter_only { "milter" } else { "run" };
        self.start_mailtap_by(self.command().arg(role));
    }

    /// Starts mailtap in a way of the test's own.
    pub fn start_mailtap_by(&mut self, command: &mut Command) {
        self.begin_mailtap_by(command);
        wait_for("mailtap to be ready", Duration::from_secs(30), || self.is_ready());
    }

    /// Without waiting for it.
    pub fn begin_mailtap_by(&mut self, command: &mut Command) {
        self.mailtap = Some(self.daemon("mailtap", command));
    }

    /// Starts the milter with a listening socket as descriptor 3, as systemd does.
    pub fn start_milter_on(&mut self, socket: OwnedFd) {
        let mailtap = self.command();
        let mut command = Command::new("bash");
        command
            .args(["-c", "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"", "bash"])
            .arg(mailtap.get_program())
            .args(mailtap.get_args())
            .arg("milter")
            .stdin(Stdio::from(socket));
        self.start_mailtap_by(&mut command);
    }

    pub fn start_collector(&mut self, more: &[&str]) {
        // The one before lets go of the port.
        self.collector = None;
        let listen = format!("127.0.0.1:{}", self.collector_port);
        let mut command = mailtap();
        command
            .args(["collector", "--listen", &listen, "--record"])
            .arg(self.dir.join("collected.jsonl"))
            .args(more);
        self.collector = Some(self.daemon("collector", &mut command));
        let port = self.collector_port;
        wait_for("the collector", Duration::from_secs(10), || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
    }

    pub fn is_ready(&self) -> bool {
        http(self.admin, "GET", "/readyz", &[]).is_some_and(|answer| answer.status == 200)
    }

    pub fn log(&self, name: &str) -> String {
        log_text(&self.dir.join(format!("{name}.log")))
    }

    pub fn maillog(&self) -> String {
        fs::read_to_string(self.dir.join("relay/log/maillog")).unwrap_or_default()
    }

    /// A command of Postfix (`postqueue`, `postsuper`) on the relay; gives what it says.
    pub fn relay_command(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(Path::new("/usr/sbin").join(program));
        run(command.arg("-c").arg(self.dir.join("relay/config")).args(arguments))
    }

    /// Gives mailtap's files to the user nobody, as whom pipe(8) transports of the tests run, and a copy of the program
    /// (`{dir}/program`); gives the spool's path.
    pub fn give_to_nobody(&self) -> PathBuf {
        let home = self.dir.join("mailtap");
        run(Command::new("chown").arg("-R").arg("nobody").arg(&home));
        run(Command::new("chmod").arg("a+x").arg(&self.dir));
        let (from, to) = (env!("CARGO_BIN_EXE_mailtap"), self.dir.join("program"));
        fs::hard_link(from, &to).or_else(|_| fs::copy(from, &to).map(drop)).unwrap();
        home.join("state/spool")
    }

    /// The pseudonym of an address, as events have it.
    pub fn pseudonym(&self, address: &str) -> String {
        run(self.command().args(["pseudonym", address])).trim().to_owned()
    }

    /// All events that the spool holds, in their order.
    pub fn events(&self) -> Vec<Value> {
        let text = run(self.command().args(["spool", "export"]));
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Messages delivered to anna, oldest first.
    pub fn mailbox(&self) -> Vec<String> {
        let read = |path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
        self.mail_files("anna").iter().map(read).collect()
    }

    /// Files of the messages delivered to somebody, oldest first.
    pub fn mail_files(&self, user: &str) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.dir.join("mx/mail").join(user).join("new")) else {
            return Vec::new();
        };
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
        files
    }

    /// Waits until the relay's and the recipients' Postfix have nothing left to deliver.
    pub fn wait_for_empty_queues(&self, limit: Duration) {
        let waiting = |name: &str| {
            let config = self.dir.join(name).join("config");
            run(Command::new("postqueue").arg("-c").arg(config).arg("-p"))
        };
        let empty = |name: &str| waiting(name).contains("Mail queue is empty");
        let end = Instant::now() + limit;
        while !(empty("relay") && empty("mx")) {
            assert!(Instant::now() < end, "still queued:\n{}", tail(&(waiting("relay") + &waiting("mx"))));
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Sends one message; gives the server's answer to the end of data.
    pub fn send(&self, recipient: &str, message: &str) -> String {
        smtp(self.smtp, SENDER, &[recipient], message)
    }

    /// Events that the collector accepted: GA4 name and event id, each as often as it came.
    pub fn collected(&self) -> Vec<(String, Value)> {
        let text = fs::read_to_string(self.dir.join("collected.jsonl")).unwrap_or_default();
        let mut events = Vec::new();
        for line in text.lines() {
            let Ok(record) = serde_json::from_str::<Value>(line) else { continue };
            for event in record["body"]["events"].as_array().into_iter().flatten() {
                events.push((event["name"].as_str().unwrap_or_default().to_owned(), event.clone()));
            }
        }
        events
    }

    pub fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (name, _) in self.collected() {
            *counts.entry(name).or_default() += 1;
        }
        counts
    }

    pub fn wait_for_events(&self, expected: &[(&str, usize)]) {
        let expected: BTreeMap<String, usize> =
            expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let end = Instant::now() + Duration::from_secs(60);
        while self.counts() != expected {
            assert!(
                Instant::now() < end,
                "events: {:?}, expected {expected:?}, spool: {}",
                self.counts(),
                run(self.command().args(["spool", "status", "--json"]))
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.mailtap = None;
        self.collector = None;
        if std::thread::panicking() {
            eprintln!("---- mailtap ----\n{}", tail(&self.log("mailtap")));
            eprintln!("---- maillog ----\n{}", tail(&self.maillog()));
        }
        // For new cases of `tests/data/logs`: the logs of all sites of this run.
        if let Some(keep) = std::env::var_os("MAILTAP_KEEP_LOGS") {
            let _ = fs::write(Path::new(&keep).join(format!("maillog-{}", self.smtp)), self.maillog());
        }
        let lib = repository().join("tests/lib");
        let mut servers = vec![];
        if !self.without_postfix {
            servers.extend([("postfix", "relay"), ("postfix", "mx")]);
        }
        if self.rabbitmq {
            servers.push(("rabbitmq", "rabbitmq"));
        }
        std::thread::scope(|scope| {
            for (tool, name) in servers {
                let mut command = Command::new(lib.join(tool));
                command.args(["stop", "--remove", "--dir"]).arg(self.dir.join(name));
                scope.spawn(move || command.output());
            }
        });
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// One SMTP transaction; gives the answer to the end of data, or the first refusal.
pub fn smtp(port: u16, sender: &str, recipients: &[&str], message: &str) -> String {
    let mut session = session::Session::open(port).unwrap();
    let answer = session.send(sender, recipients, message).unwrap();
    let _ = session.command("QUIT");
    answer
}

/// Whether the long forms of the tests are asked for.
pub fn long() -> bool {
    std::env::var_os("MAILTAP_TEST_LONG").is_some_and(|value| value == "1")
}
