//! A site with a broker of its own, and TLS, for the tests: certificates, a collector, roles.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mailtap::collector::report;
use mailtap::event::{Data, Event, EventId, Kind};
use mailtap::identity::MessageId;
use mailtap::queue::Publish;
use mailtap::queue::spool::{self, Spool};
use mailtap::service::clock;

use super::{Daemon, free_ports, http, mailtap, repository, run, said, wait_for};

pub struct Site {
    pub dir: tempfile::TempDir,
    pub port: u16,
    pub tls_port: u16,
    pub collector_port: u16,
    pub roles: Vec<Daemon>,
}

impl Site {
    /// A broker that speaks TLS too, a collector that speaks nothing else, certificates of one authority for all.
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("mailtap-own-").tempdir().unwrap();
        let [port, tls_port, collector_port] = free_ports::<3>();
        certificates(dir.path());
        let site = Self { dir, port, tls_port, collector_port, roles: Vec::new() };
        let tls = site.dir.path().to_str().unwrap().to_owned();
        site.broker(&[
            "start",
            "--port",
            &port.to_string(),
            "--tls",
            &tls,
            "--tls-port",
            &tls_port.to_string(),
        ]);
        site
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn broker(&self, arguments: &[&str]) -> String {
        super::broker(&self.file("rabbitmq"), arguments)
    }

    pub fn ctl(&self, arguments: &[&str]) -> String {
        self.broker(&[&["ctl", "--"], arguments].concat())
    }

    /// A configuration under this name, with these lines in `[amqp]` and `[relay]`.
    pub fn configure(&self, name: &str, amqp: &str, relay: &str) {
        let directory = self.file(name);
        let mut init = mailtap();
        init.args(["init", "--domain", "shop.example", "--tracking-url", "https://t.shop.example"]);
        init.args(["--ga4", "G-OWN", "--amqp", "amqp://guest:guest@127.0.0.1:1/%2f", "--dir"])
            .arg(&directory);
        init.arg("--state-dir").arg(self.file("state"));
        fs::write(self.file("secret"), "test-secret\n").unwrap();
        init.arg("--ga4-secret-file").arg(self.file("secret"));
        run(init.args(["--ga4-url", &format!("https://localhost:{}", self.collector_port)]));
        let config = directory.join("mailtap.toml");
        let mut text = fs::read_to_string(&config).unwrap();
        let url = text.lines().find(|line| line.starts_with("url = \"amqp")).unwrap().to_owned();
        for (from, to) in [
            (url.as_str(), amqp),
            ("[relay]", relay),
            ("#relay = \"127.0.0.1:9744\"", "relay = \"\""),
            ("#forward = \"127.0.0.1:9745\"", "forward = \"\""),
        ] {
            assert!(text.contains(from), "{from}");
            text = text.replacen(from, to, 1);
        }
        fs::write(&config, text).unwrap();
    }

    /// Gives a configuration a state of its own.
    pub fn own_state(&self, name: &str) {
        let config = self.file(name).join("mailtap.toml");
        let text = fs::read_to_string(&config).unwrap();
        let line = |state: &str| format!("state_dir = \"{}\"", self.file(state).display());
        let (common, own) = (line("state"), line(&format!("state-{name}")));
        assert!(text.contains(&common), "{common}");
        fs::write(&config, text.replace(&common, &own)).unwrap();
    }

    pub fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = mailtap();
        command.env("SSL_CERT_FILE", self.file("ca.pem"));
        command.arg("--config").arg(self.file(name).join("mailtap.toml")).args(arguments);
        command
    }

    pub fn role(&mut self, name: &str, role: &str) {
        let log =
            fs::OpenOptions::new().append(true).create(true).open(self.file(&format!("{role}.log"))).unwrap();
        let mut command = self.command(name, &[role]);
        self.roles.push(Daemon::start(command.stdout(log.try_clone().unwrap()).stderr(log)));
    }

    pub fn collector(&mut self) {
        let log = fs::File::create(self.file("collector.log")).unwrap();
        let mut collector = mailtap();
        collector.args(["collector", "--listen", &format!("127.0.0.1:{}", self.collector_port), "--record"]);
        collector.arg(self.file("record.jsonl")).arg("--tls-cert").arg(self.file("server.pem"));
        collector.arg("--tls-key").arg(self.file("server.key"));
        self.roles.push(Daemon::start(collector.stdout(log.try_clone().unwrap()).stderr(log)));
    }

    pub fn publish(&self, numbers: std::ops::Range<u64>) {
        self.publish_in("state", numbers);
    }

    pub fn publish_in(&self, state: &str, numbers: std::ops::Range<u64>) {
        self.publish_events(state, numbers.map(event).collect());
    }

    pub fn publish_events(&self, state: &str, events: Vec<Event>) {
        let directory = self.file(state).join("spool");
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let spool = Spool::open(spool::Settings { directory, ..spool::Settings::default() }).unwrap();
            spool.publish(events).await.unwrap();
        });
    }

    pub fn arrived(&self) -> BTreeMap<String, usize> {
        let mut arrived = BTreeMap::new();
        for row in report::report(&fs::read_to_string(self.file("record.jsonl")).unwrap_or_default()).rows {
            *arrived.entry(row.event_id).or_default() += 1;
        }
        arrived
    }

    pub fn wait_for_arrived(&self, count: usize) {
        wait_for("events at the collector", Duration::from_secs(90), || self.arrived().len() == count);
        assert!(self.arrived().values().all(|times| *times == 1), "counted twice");
    }

    pub fn log(&self, role: &str) -> String {
        super::log_text(&self.file(&format!("{role}.log")))
    }

    /// Messages that are ready in a queue; none where it is not there.
    pub fn ready(&self, queue: &str) -> u64 {
        let queues = self.ctl(&["list_queues", "name", "messages_ready"]);
        let line = queues.lines().find_map(|line| line.strip_prefix(&format!("{queue}\t")));
        line.map_or(0, |count| count.trim().parse().unwrap())
    }

    /// Gives a role of a configuration its address for metrics and readiness.
    pub fn admin(&self, name: &str, role: &str) -> u16 {
        let [port] = free_ports::<1>();
        let config = self.file(name).join("mailtap.toml");
        let text = fs::read_to_string(&config).unwrap();
        let nowhere = format!("{role} = \"\"");
        assert!(text.contains(&nowhere), "{nowhere}");
        fs::write(&config, text.replace(&nowhere, &format!("{role} = \"127.0.0.1:{port}\""))).unwrap();
        port
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.roles.clear();
        if std::thread::panicking() {
            for name in ["relay", "forward", "collector"] {
                let text = self.log(name);
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("---- {name} ----\n{}", lines[lines.len().saturating_sub(15)..].join("\n"));
            }
        }
        let tool = repository().join("tests/lib/rabbitmq");
        let _ = Command::new(tool).args(["stop", "--remove", "--dir"]).arg(self.file("rabbitmq")).output();
    }
}

pub fn event(number: u64) -> Event {
    let now = clock::now();
    Event {
        id: EventId::of("own broker").part(number.to_be_bytes()).finish(),
        source: "mailtap/test/host".into(),
        kind: Kind::ALL[usize::try_from(number).unwrap() % Kind::ALL.len()],
        time: now.minus(Duration::from_secs(60)),
        message: MessageId::new(now, u32::try_from(number).unwrap()),
        data: Data {
            campaign: Some("own".parse().unwrap()),
            recipient: Some([u8::try_from(number % 251).unwrap(); 12].into()),
            ..Data::default()
        },
    }
}

/// An authority, a certificate for servers on loopback, one for clients.
fn certificates(dir: &Path) {
    let openssl = |arguments: &str| {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "openssl {arguments}: {}", said(&output));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=test-authority"));
    for (name, usage) in [("server", "serverAuth"), ("client", "clientAuth")] {
        let names = "subjectAltName=DNS:localhost,IP:127.0.0.1";
        fs::write(dir.join("extensions"), format!("{names}\nextendedKeyUsage={usage}\n")).unwrap();
        openssl(&format!("req {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out {name}.pem"
        ));
    }
    // Without extensions it is of version 1.
    openssl("x509 -req -in client.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out version1.pem");
}

/// Nothing before the role listens.
pub fn ask(admin: u16, path: &str) -> (u16, String) {
    let answer = http(admin, "GET", path, &[]);
    answer
        .map_or_else(|| (0, String::new()), |answer| (answer.status, String::from_utf8(answer.body).unwrap()))
}
