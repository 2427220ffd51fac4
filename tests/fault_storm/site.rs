//! Every process of the event path, each by itself, and the blows that strike them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::harness::letters::Dice;
use crate::harness::proxy::{Proxy, Way};
use crate::harness::{self, Daemon, free_ports, mailtap, repository, run};

/// The processes, in the order in which they are started: the name of each and its role.
const ROLES: [(&str, &str); 6] = [
    ("milter", "milter"),
    ("tap", "tap"),
    ("tracker", "tracker"),
    ("forward", "forward"),
    ("relay1", "relay"),
    ("relay2", "relay"),
];
/// The relays: each has a work queue of its own, events are spread by recipient.
pub const RELAYS: [&str; 2] = ["relay1", "relay2"];

/// What strikes. Each strikes at least once, in an order that the seed gives.
#[derive(Debug, Clone, Copy)]
pub enum Blow {
    /// `kill -9` of a role.
    Kill(&'static str),
    /// `kill -9` of the broker.
    KillBroker,
    /// A restart of the broker in order.
    RestartBroker,
    /// A connection to the broker that is cut after some more bytes.
    Cut(&'static str, Way),
    /// A network through which nothing comes for a while.
    Stall(&'static str),
    /// GA4 in trouble.
    Ga4(&'static str),
}

pub const BLOWS: [Blow; 20] = [
    Blow::Kill("milter"),
    Blow::Kill("tap"),
    Blow::Kill("tracker"),
    Blow::Kill("forward"),
    Blow::Kill("relay1"),
    Blow::Kill("relay2"),
    Blow::Cut("forward", Way::ToServer),
    Blow::Cut("forward", Way::ToClient),
    Blow::Cut("relay1", Way::ToServer),
    Blow::Cut("relay1", Way::ToClient),
    Blow::Cut("relay2", Way::ToServer),
    Blow::Stall("forward"),
    Blow::Stall("relay2"),
    Blow::Ga4("500"),
    Blow::Ga4("503:0.3"),
    Blow::Ga4("hang-before:0.2"),
    Blow::Ga4("hang-after:0.2"),
    Blow::Ga4("reset:0.2"),
    Blow::KillBroker,
    Blow::RestartBroker,
];

impl Blow {
    pub fn name(self) -> String {
        match self {
            Self::Kill(name) => format!("kill {}", role(name)),
            Self::KillBroker => "kill broker".into(),
            Self::RestartBroker => "restart broker".into(),
            Self::Cut(name, _) => format!("cut {}", role(name)),
            Self::Stall(name) => format!("stall {}", role(name)),
            Self::Ga4(fault) => fault.split(':').next().unwrap_or_default().into(),
        }
    }
}

pub struct Site {
    dir: tempfile::TempDir,
    roles: BTreeMap<&'static str, Daemon>,
    proxies: BTreeMap<&'static str, Proxy>,
    collector_port: u16,
    pub tracker: u16,
    pub tracking_url: String,
    _collector: Daemon,
}

impl Site {
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("mailtap-storm-").tempdir().unwrap();
        let [broker, collector_port, tracker, forward, relay1, relay2] = free_ports::<6>();
        let path = dir.path();
        let tracking_url = format!("http://127.0.0.1:{tracker}");
        rabbitmq(path, &["start", "--port", &broker.to_string()]);
        let ports = [("forward", forward), ("relay1", relay1), ("relay2", relay2)];
        let proxies = ports.into_iter().map(|(name, port)| (name, Proxy::start(port, broker))).collect();
        configure(path, &tracking_url, tracker, collector_port, broker, &ports);
        let mut collector = mailtap();
        collector.args(["collector", "--listen", &format!("127.0.0.1:{collector_port}"), "--record"]);
        let collector = logged(collector.arg(path.join("record.jsonl")), &path.join("collector.log"));
        let roles = BTreeMap::new();
        let mut site =
            Self { roles, proxies, collector_port, tracker, tracking_url, _collector: collector, dir };
        for (name, _) in ROLES {
            site.start_role(name);
        }
        harness::wait_for("milter and tracker", Duration::from_secs(30), || {
            site.file("milter.sock").exists() && TcpStream::connect(("127.0.0.1", tracker)).is_ok()
        });
        site
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start_role(&mut self, name: &'static str) {
        let config = if self.proxies.contains_key(name) { name } else { "mailtap" };
        let config = self.file(&format!("etc/{config}.toml"));
        let log = self.file(&format!("{name}.log"));
        let daemon = logged(mailtap().arg("--config").arg(config).arg(role(name)), &log);
        self.roles.insert(name, daemon);
    }

    pub fn strike(&mut self, blow: Blow, dice: &mut Dice) {
        let millis = |dice: &mut Dice, limit| Duration::from_millis(dice.below(limit) as u64);
        match blow {
            Blow::Kill(role) => {
                self.roles.remove(role);
                std::thread::sleep(millis(dice, 300));
                self.start_role(role);
            }
            Blow::KillBroker => {
                rabbitmq(self.dir.path(), &["kill"]);
                rabbitmq(self.dir.path(), &["restart"]);
            }
            Blow::RestartBroker => {
                rabbitmq(self.dir.path(), &["stop"]);
                rabbitmq(self.dir.path(), &["restart"]);
            }
            Blow::Cut(role, way) => {
                self.proxies[role].cut(way, dice.below(5_000) as u64, Duration::from_millis(500));
            }
            Blow::Stall(role) => {
                let cut = dice.below(2) == 0;
                self.proxies[role].stall(millis(dice, 2_000), cut);
            }
            Blow::Ga4(fault) => {
                self.fail(fault);
                std::thread::sleep(Duration::from_millis(300) + millis(dice, 900));
                self.fail("none");
            }
        }
    }

    fn fail(&self, mode: &str) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.collector_port)).unwrap();
        let request = format!(
            "POST /collector/fail HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{mode}",
            mode.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 2"), "{mode}: {answer}");
    }

    pub fn command(&self, arguments: &[&str]) -> String {
        run(mailtap().arg("--config").arg(self.file("etc/mailtap.toml")).args(arguments))
    }

    pub fn queues(&self) -> String {
        rabbitmq(self.dir.path(), &["ctl", "--", "list_queues", "name", "messages"])
    }

    /// All lines of a role's log.
    pub fn log(&self, role: &str) -> String {
        fs::read_to_string(self.file(&format!("{role}.log"))).unwrap_or_default()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.roles.clear();
        if std::thread::panicking() {
            for (name, _) in ROLES {
                let text = self.log(name);
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("---- {name} ----\n{}", lines[lines.len().saturating_sub(15)..].join("\n"));
            }
        }
        let tool = repository().join("tests/lib/rabbitmq");
        let _ = Command::new(tool).args(["stop", "--remove", "--dir"]).arg(self.file("rabbitmq")).output();
    }
}

fn role(name: &str) -> &'static str {
    ROLES.iter().find(|(other, _)| *other == name).map(|(_, role)| *role).unwrap()
}

/// The configuration, and one for each process with a way of its own to the broker.
fn configure(
    dir: &Path,
    tracking_url: &str,
    tracker: u16,
    collector: u16,
    broker: u16,
    ways: &[(&str, u16)],
) {
    fs::write(dir.join("secret"), "test-secret\n").unwrap();
    fs::write(dir.join("maillog"), "").unwrap();
    let url = |port: u16| format!("amqp://guest@127.0.0.1:{port}/%2f");
    let mut init = mailtap();
    init.args([
        "init",
        "--domain",
        harness::DOMAIN,
        "--tracking-url",
        tracking_url,
        "--ga4",
        "G-STORM",
        "--dir",
    ]);
    init.arg(dir.join("etc")).arg("--state-dir").arg(dir.join("state"));
    init.arg("--ga4-secret-file").arg(dir.join("secret")).arg("--log-file").arg(dir.join("maillog"));
    init.args(["--milter-listen", &format!("unix:{}", dir.join("milter.sock").display())]);
    init.args(["--tracker-listen", &format!("127.0.0.1:{tracker}")]);
    init.args(["--amqp", &url(broker).replace("guest@", "guest:guest@")]);
    run(init.args(["--ga4-url", &format!("http://127.0.0.1:{collector}")]));
    let path = dir.join("etc/mailtap.toml");
    let mut text = fs::read_to_string(&path).unwrap();
    for (from, to) in [
        ("#timeout = \"10s\"\n# When an answer", "timeout = \"1s\"\n# When an answer"),
        ("#format = \"auto\"", "format = \"json\""),
        // That an answer went out before its event was stored is only said at this level.
        ("#level = \"info\"", "level = \"info,mailtap::tracker=debug\""),
        ("#partitions = 1", "partitions = 2"),
        ("#answer_wait = \"250ms\"", "answer_wait = \"30s\""),
        ("#hold = \"30s\"", "hold = \"1s\""),
        ("#milter = \"127.0.0.1:9741\"", "milter = \"\""),
        ("#tap = \"127.0.0.1:9742\"", "tap = \"\""),
        ("#tracker = \"127.0.0.1:9743\"", "tracker = \"\""),
        ("#relay = \"127.0.0.1:9744\"", "relay = \"\""),
        ("#forward = \"127.0.0.1:9745\"", "forward = \"\""),
    ] {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    fs::write(&path, &text).unwrap();
    for (name, port) in ways {
        let mut own = text.replace(&url(broker), &url(*port));
        assert!(own.contains(&url(*port)), "{port}");
        if let Some(number) = RELAYS.iter().position(|relay| relay == name) {
            // Its memory is its own.
            let state = dir.join(name);
            own = own.replace(&format!("{:?}", dir.join("state")), &format!("{state:?}"));
            own = own.replace("#queues = []", &format!("queues = [{}]", number + 1));
            assert!(own.contains(&format!("{state:?}")) && own.contains("\nqueues = ["), "{name}");
        }
        fs::write(dir.join(format!("etc/{name}.toml")), own).unwrap();
    }
}

/// Starts a process; what it says is appended to `log`.
fn logged(command: &mut Command, log: &Path) -> Daemon {
    let log = fs::OpenOptions::new().append(true).create(true).open(log).unwrap();
    Daemon::start(command.stdout(log.try_clone().unwrap()).stderr(log))
}

fn rabbitmq(dir: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(repository().join("tests/lib/rabbitmq"));
    command.arg(arguments[0]).arg("--dir").arg(dir.join("rabbitmq"));
    if arguments[0] == "start" {
        command.arg("--owner").arg(std::process::id().to_string());
    }
    run(command.args(&arguments[1..])).trim().to_owned()
}
