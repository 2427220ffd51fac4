//! A load for filters: sends newsletters over many connections, as Postfix does, and prints what it took as JSON.
//!
//! `load ADDRESS [--connections N] [--messages N | --seconds S] [--body BYTES] [--edits N] [--pid PID]`, ADDRESS being
//! `unix:/path/to/socket` or `127.0.0.1:PORT`. Each connection sends its share of the messages, or as many as it can in
//! the time, one after another. `--edits` says how many edits each answer must have; another number, or any message not accepted, is a failure.
//! `--pid` names the filter's process: its processor time and memory are read too (Linux). `load --print --body BYTES`
//! prints the newsletter instead.

use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mailtap_milter::client::{Mail, Mailbox, Outcome};
use mailtap_milter::driver::{Client, Peer};
use mailtap_milter::wire::Offer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Barrier;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Linux counts processor time in these for every process that asks, whatever its own clock.
const TICKS_PER_SECOND: u64 = 100;
/// One link to so many bytes of a newsletter.
const BYTES_PER_LINK: usize = 330;

#[derive(Debug, Clone)]
struct Options {
    address: String,
    connections: usize,
    messages: usize,
    seconds: Option<f64>,
    body_bytes: usize,
    edits: Option<usize>,
    pid: Option<u32>,
    print: bool,
}

fn options() -> Result<Options> {
    let mut options = Options {
        address: String::new(),
        connections: 1,
        messages: 1_000,
        seconds: None,
        body_bytes: 4_096,
        edits: None,
        pid: None,
        print: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--connections" => options.connections = value()?.parse()?,
            "--messages" => options.messages = value()?.parse()?,
            "--seconds" => options.seconds = Some(value()?.parse()?),
            "--body" => options.body_bytes = value()?.parse()?,
            "--edits" => options.edits = Some(value()?.parse()?),
            "--pid" => options.pid = Some(value()?.parse()?),
            "--print" => options.print = true,
            _ if arg.starts_with('-') => return Err(format!("unknown option {arg}").into()),
            _ => options.address = arg,
        }
    }
    if options.address.is_empty() && !options.print {
        return Err("usage: load unix:/PATH|HOST:PORT [--connections N] [--messages N] [--body BYTES]".into());
    }
    Ok(options)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = options()?;
    let text = newsletter(options.body_bytes);
    if options.print {
        io::stdout().write_all(&text)?;
        return Ok(());
    }
    let sender = Mailbox::new("<news@shop.example>");
    let mail = Arc::new(Mail::parse(sender, vec![Mailbox::new("<ann@example.net>")], &text));
    // All connections, and this function.
    let meet = Arc::new(Barrier::new(options.connections + 1));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..options.connections {
        let share = options.messages / options.connections
            + usize::from(number < options.messages % options.connections);
        let (address, mail, meet) = (options.address.clone(), Arc::clone(&mail), Arc::clone(&meet));
        let limit = options.seconds.map(Duration::from_secs_f64);
        let work = Work { number, share, limit, edits: options.edits, mail, meet };
        tasks.spawn(async move {
            match address.strip_prefix("unix:") {
                Some(path) => work.run(UnixStream::connect(path).await?).await,
                None => work.run(TcpStream::connect(&address).await?).await,
            }
        });
    }
    // A connection that fails leaves the others waiting: its error must end all.
    let met = |tasks: &mut tokio::task::JoinSet<_>| {
        let first = tasks.try_join_next();
        first.map_or(Ok(()), |done: std::result::Result<Result<Vec<Duration>>, _>| done?.map(drop))
    };
    together(&meet, &mut tasks, met).await?;
    let idle = options.pid.map(usage).transpose()?;
    let began = Instant::now();
    together(&meet, &mut tasks, met).await?;
    together(&meet, &mut tasks, met).await?;
    let took = began.elapsed();
    let busy = options.pid.map(usage).transpose()?;
    together(&meet, &mut tasks, met).await?;
    let mut times = Vec::with_capacity(options.messages);
    while let Some(done) = tasks.join_next().await {
        times.extend(done??);
    }
    print(&options, took, &mut times, idle.zip(busy))
}

/// Waits for all connections, or for the first that fails.
async fn together<T: 'static>(
    meet: &Barrier,
    tasks: &mut tokio::task::JoinSet<T>,
    failed: impl Fn(&mut tokio::task::JoinSet<T>) -> Result<()>,
) -> Result<()> {
    let mut wait = std::pin::pin!(meet.wait());
    loop {
        if tokio::time::timeout(Duration::from_millis(100), &mut wait).await.is_ok() {
            return Ok(());
        }
        failed(tasks)?;
    }
}

/// What one connection does.
struct Work {
    number: usize,
    share: usize,
    limit: Option<Duration>,
    edits: Option<usize>,
    mail: Arc<Mail>,
    meet: Arc<Barrier>,
}

impl Work {
    /// The time of each message.
    async fn run<S: AsyncRead + AsyncWrite + Unpin>(self, stream: S) -> Result<Vec<Duration>> {
        let mut client = Client::negotiate(stream, &Offer::POSTFIX).await?;
        client.open(&Peer::default()).await?;
        let mut times = Vec::with_capacity(self.share);
        self.meet.wait().await;
        self.meet.wait().await;
        let start = Instant::now();
        for message in 0.. {
            let began = Instant::now();
            if self.limit.map_or(message >= self.share, |limit| began - start >= limit) {
                break;
            }
            let delivery = client.send(&self.mail, &format!("{:X}z{message:X}", self.number)).await?;
            times.push(began.elapsed());
            if delivery.outcome != Outcome::Accepted
                || self.edits.is_some_and(|edits| edits != delivery.edits)
            {
                return Err(format!("{:?} with {} edits", delivery.outcome, delivery.edits).into());
            }
        }
        // The filter's memory is read while all connections stand.
        self.meet.wait().await;
        self.meet.wait().await;
        client.quit().await?;
        Ok(times)
    }
}

/// Processor time and memory of a process.
#[derive(Debug, Clone, Copy)]
struct Usage {
    cpu_us: u64,
    resident_kib: u64,
    most_resident_kib: u64,
}

fn usage(pid: u32) -> Result<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").ok_or("no such /proc/PID/stat")?;
    // proc(5): utime and stime are fields 14 and 15; the state, field 3, is the first after the name.
    let ticks: u64 = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
        line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
    };
    Ok(Usage {
        cpu_us: ticks * 1_000_000 / TICKS_PER_SECOND,
        resident_kib: kib("VmRSS:"),
        most_resident_kib: kib("VmHWM:"),
    })
}

fn print(
    options: &Options,
    took: Duration,
    times: &mut [Duration],
    usage: Option<(Usage, Usage)>,
) -> Result<()> {
    times.sort_unstable();
    let at = |percent: usize| {
        times
            .get((times.len() * percent / 100).min(times.len().saturating_sub(1)))
            .map_or(0, Duration::as_micros)
    };
    let messages = times.len();
    let rate = messages as f64 / took.as_secs_f64();
    let mut line = format!(
        "{{\"connections\":{},\"messages\":{messages},\"body_bytes\":{},\"messages_per_s\":{rate:.1},\
         \"p50_us\":{},\"p99_us\":{},\"max_us\":{}",
        options.connections,
        options.body_bytes,
        at(50),
        at(99),
        at(100)
    );
    if let Some((idle, busy)) = usage {
        let cpu = (busy.cpu_us - idle.cpu_us) as f64 / messages.max(1) as f64;
        line += &format!(
            ",\"cpu_us_per_message\":{cpu:.1},\"idle_rss_kib\":{},\"rss_kib\":{},\"most_rss_kib\":{}",
            idle.resident_kib, busy.resident_kib, busy.most_resident_kib
        );
    }
    writeln!(io::stdout(), "{line}}}")?;
    Ok(())
}

/// A newsletter in HTML, of about so many bytes.
fn newsletter(bytes: usize) -> Vec<u8> {
    let filler = "<td style=\"padding:4px;color:#222\">Lorem ipsum dolor sit amet, consectetur adipiscing elit.</td>\r\n";
    let mut body = String::from("<html><head><title>News</title></head><body><table>\r\n");
    let links = (bytes / BYTES_PER_LINK).max(1);
    for number in 0..links {
        body += &format!(
            "<tr><td><a class=\"b\" href=\"https://www.example.org/shop/item?id={number}&amp;src=mail\">Item</a></td>\r\n"
        );
        while body.len() + filler.len() < bytes * (number + 1) / links {
            body += filler;
        }
        body += "</tr>\r\n";
    }
    body += "</table></body></html>\r\n";
    let head = "From: News <news@shop.example>\r\nTo: ann@example.net\r\nSubject: This week\r\n\
        Date: Tue, 24 Nov 2026 08:00:00 +0000\r\nMessage-Id: <1@shop.example>\r\nMIME-Version: 1.0\r\n\
        Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n";
    format!("{head}{body}").into_bytes()
}
