//! Behind nginx, as most sites run it: requests that two servers could read differently, tricks with paths, and the client's name.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::{Daemon, Options, Site, free_ports, wait_for};
use mailtap::identity::MessageId;
use mailtap::keys::Keys;
use mailtap::keys::token::{Click, Token, sign};
use mailtap::service::clock;

struct Front {
    site: Site,
    port: u16,
    link: String,
    _nginx: Daemon,
}

/// nginx with connections to the tracker that are kept and shared by all its clients.
fn front() -> Front {
    let site = Site::start(&Options {
        without_postfix: true,
        changes: vec![
            ("[tap]\n#enabled = true", "[tap]\nenabled = false".to_owned()),
            ("[relay]\n#enabled = true", "[relay]\nenabled = false".to_owned()),
        ],
        ..Options::default()
    });
    let [port] = free_ports::<1>();
    let dir = site.dir.join("nginx");
    fs::create_dir_all(&dir).unwrap();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {}/{name};", dir.display()))
        .join(" ");
    let configuration = format!(
        "daemon off; master_process off; pid {dir}/pid; error_log {dir}/error.log;\nevents {{}}\nhttp {{ access_log off; {temporary}\n\
         upstream tracker {{ server 127.0.0.1:{tracker}; keepalive 4; }}\n\
         server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://tracker; proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\"; proxy_set_header Host $host;\n\
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }} }}\n",
        dir = dir.display(),
        tracker = site.tracker,
    );
    fs::write(dir.join("nginx.conf"), configuration).unwrap();
    let mut command = Command::new("/usr/sbin/nginx");
    command.arg("-c").arg(dir.join("nginx.conf")).arg("-e").arg(dir.join("error.log"));
    let nginx = Daemon::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
    wait_for("nginx: tests/lib/install nginx", Duration::from_secs(10), || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let keys = Keys::open(&site.dir.join("mailtap/keyring.json")).unwrap();
    let now = clock::now();
    let token = Token::Click(Click {
        message: MessageId::new(now.minus(Duration::from_secs(3_600)), 7),
        recipient: None,
        link: 1,
        campaign: None,
        target: "https://shop.example/".to_owned(),
    });
    let link = format!("/c/{}", sign(&token, keys.current().signing(now).unwrap()));
    Front { site, port, link, _nginx: nginx }
}

impl Front {
    /// All that comes back until the other side closes, or says nothing for a second.
    fn send(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        while let Ok(read) = stream.read(&mut piece) {
            if read == 0 {
                break;
            }
            answer.extend_from_slice(&piece[..read]);
        }
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn get(&self, path: &str) -> String {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").as_bytes())
    }

    fn clicks(&self) -> usize {
        let list = harness::run(self.site.command().args(["events", "list", "--json", "--max", "1000"]));
        list.lines().filter(|line| line.contains("mailtap.link.clicked")).count()
    }
}

#[test]
fn behind_nginx_links_work_and_no_request_hides_in_another() {
    let front = front();
    assert!(front.get(&front.link).starts_with("HTTP/1.1 302"));
    assert_eq!(front.clicks(), 1);
    let smuggled = format!("GET {} HTTP/1.1\r\nHost: t\r\nX: ", front.link);
    let chunked = format!("{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len());
    let length = smuggled.len();
    let heads = [
        format!("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: {length}\r\n\r\n{smuggled}"),
        format!("GET / HTTP/1.1\r\nHost: t\r\nContent-Length: {length}\r\n\r\n{smuggled}"),
        format!("POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"),
        format!(
            "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
        ),
        format!(
            "POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: xchunked\r\nContent-Length: {length}\r\n\r\n{smuggled}"
        ),
        format!(
            "POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding : chunked\r\nContent-Length: {length}\r\n\r\n{smuggled}"
        ),
        format!(
            "POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding:\x0bchunked\r\nContent-Length: {length}\r\n\r\n{smuggled}"
        ),
        format!(
            "POST / HTTP/1.1\r\nHost: t\r\nX: a\rTransfer-Encoding: chunked\r\nContent-Length: {length}\r\n\r\n{smuggled}"
        ),
        format!("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: +{length}\r\n\r\n{smuggled}"),
        format!(
            "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\nContent-Length: {length}\r\n\r\n{smuggled}"
        ),
        format!(
            "POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n1 ;a\r\nZ\r\n0\r\nX: y\r\n\r\n{smuggled}"
        ),
        format!(
            "POST / HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n{smuggled}"
        ),
    ];
    for head in &heads {
        let _ = front.send(head.as_bytes());
        // Whoever comes next over the connections that nginx keeps must get the answer to their own question.
        for _ in 0..5 {
            let next = front.get("/robots.txt");
            assert!(
                next.starts_with("HTTP/1.1 200") && next.contains("Disallow: /"),
                "after {head:?}: {next}"
            );
        }
        assert_eq!(front.clicks(), 1, "{head:?}");
    }
}

#[test]
fn behind_nginx_tricks_with_paths_lead_nowhere() {
    let front = front();
    let (_, token) = front.link.rsplit_once('/').unwrap();
    for path in [
        format!("/x/..{}", front.link),
        format!("//c/{token}"),
        format!("/%63/{token}"),
        format!("/./c/{token}"),
    ] {
        // nginx may clean a path up; it is the link then, or nothing.
        let answer = front.get(&path);
        let is_link = answer.starts_with("HTTP/1.1 302")
            && answer.contains("\r\nLocation: https://shop.example/\r\n")
            || answer.contains("\r\nlocation: https://shop.example/\r\n");
        assert!(is_link || answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
    }
    for path in [
        "//evil.example/%2e%2e",
        "/c/..;/evil.example",
        "/c/%0d%0aLocation:%20https://evil.example/",
        "/\\evil.example",
        "/c/https://evil.example",
        "/.well-known/../../etc/passwd",
        "/c%2f..%2f..%2fetc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
    ] {
        let answer = front.get(path);
        let head = answer.split("\r\n\r\n").next().unwrap_or_default().to_ascii_lowercase();
        assert!(!head.contains("\r\nlocation:") && !answer.contains("root:"), "{path}: {answer}");
        assert!(head.starts_with("http/1.1 404") || head.starts_with("http/1.1 400"), "{path}: {answer}");
    }
}
