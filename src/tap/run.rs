//! The tap at work: read, publish, save, in this order, for ever.
//!
//! - Layer: role
//! - Takes: settings, keys and a publisher.
//! - Gives: published events and a checkpoint.
//! - On failure: reading and publishing are tried again, with growing pauses; the checkpoint waits for both.
//! - See: `tap` for what is promised.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::checkpoint::{Checkpoint, CheckpointError};
use super::correlate::{Correlator, Counts};
use super::follow::{Finding, Follower};
use super::happenings as happened;
use super::journal::{self, JournalFilter};
use super::journal_line::JournalLine;
use super::line::Line;
use super::sink::{LONGEST_PAUSE, Saver, Sink};
use super::split::Splitter;
use super::{Deps, Rules, Settings, Source, TapError};
use crate::event::Event;
use crate::identity::Timestamp;
use crate::queue::acceptances;
use crate::service::{Lifecycle, clock};

const CHECKPOINT: &str = "tap.json";
const PIPE_BYTES: usize = 64 * 1024;
/// At a stop, what standard input holds is still read: until nothing came for a moment, but no longer than this.
const LAST_LOOK: Duration = Duration::from_secs(2);
const NOTHING_MORE: Duration = Duration::from_millis(100);

pub(super) async fn run(settings: Settings, deps: Deps, life: Lifecycle) -> Result<(), TapError> {
    let component = life.health.component("tap");
    let path = settings.state_dir.join(CHECKPOINT);
    let checkpoint = match Checkpoint::load(&path) {
        Ok(checkpoint) => checkpoint.unwrap_or_default(),
        Err(error @ CheckpointError::Damaged { .. }) => {
            happened::CheckpointDamaged { error: &error }.emit();
            Checkpoint::default()
        }
        Err(error) => return Err(error.into()),
    };
    let parts = settings.parts(deps.pseudonyms, deps.verify_ref, deps.host).map_err(TapError::Rules)?;
    let correlator = Correlator::new(parts, Some(checkpoint.state)).only(settings.syslog_names.clone());
    let correlator = if deps.accepted.is_some() { correlator.knowing_marks() } else { correlator };
    let worker = Worker {
        rules: Some((settings.rules.clone(), life.reload.clone())),
        accepted: deps.accepted,
        ..Worker::new(correlator)
    };
    let sink = Sink { publisher: deps.publisher, batch: settings.batch_events.max(1), component, life };
    let saver =
        Saver { path, interval: settings.checkpoint_interval, saved: Instant::now(), took: Duration::ZERO };
    match settings.source.clone() {
        Source::Files(paths) => follow_files(&settings, paths, checkpoint.files, worker, sink, saver).await,
        Source::Journal(filter) => {
            follow_journal(filter, checkpoint.journal_cursor, worker, sink, saver).await
        }
        Source::Stdin => {
            let mut worker = worker;
            let mut saver = saver;
            let mut feed = Feed::Log(Splitter::default());
            let mut pipe = stdin()?;
            if !read_pipe(&mut pipe, &mut feed, &mut worker, &sink, &mut saver).await {
                return Ok(());
            }
            if sink.is_stopping() {
                last_look(&mut pipe, &mut feed, &mut worker).await;
            }
            feed.finish(&mut worker);
            if sink.publish(worker.take()).await {
                saver.save(
                    Checkpoint::new(BTreeMap::new(), None, worker.correlator.save()),
                    worker.correlator.tracked(),
                );
            }
            Ok(())
        }
    }
}

/// Reads what was written to the pipe before the stop: nobody else will.
async fn last_look(pipe: &mut (impl AsyncRead + Unpin), feed: &mut Feed, worker: &mut Worker) {
    let end = Instant::now() + LAST_LOOK;
    let mut chunk = vec![0; PIPE_BYTES];
    worker.now = clock::now();
    while Instant::now() < end {
        match tokio::time::timeout(NOTHING_MORE, pipe.read(&mut chunk)).await {
            Ok(Ok(bytes)) if bytes > 0 => feed.feed(chunk.get(..bytes).unwrap_or_default(), worker),
            _ => break,
        }
    }
}

/// Standard input, read by a thread of its own that nobody waits for: a read of a terminal or pipe can't be cancelled.
fn stdin() -> Result<UnixStream, TapError> {
    let (mut writer, reader) = std::os::unix::net::UnixStream::pair().map_err(TapError::Stdin)?;
    reader.set_nonblocking(true).map_err(TapError::Stdin)?;
    std::thread::spawn(move || io::copy(&mut io::stdin().lock(), &mut writer));
    UnixStream::from_std(reader).map_err(TapError::Stdin)
}

/// From lines to events that wait to be published.
struct Worker {
    correlator: Correlator,
    events: Vec<Event>,
    foreign: u64,
    /// Gives new rules, when the process is told to read its files again.
    rules: Option<(Rules, watch::Receiver<u64>)>,
    /// Entries of the journal that are none.
    unreadable: u64,
    now: Timestamp,
    reported: Counts,
    /// What the milter of this process marks.
    accepted: Option<acceptances::News>,
}

impl Worker {
    fn new(correlator: Correlator) -> Self {
        let reported = correlator.counts();
        Self {
            correlator,
            events: Vec::new(),
            foreign: 0,
            rules: None,
            unreadable: 0,
            now: clock::now(),
            reported,
            accepted: None,
        }
    }

    /// What comes before each piece of the log.
    fn begin(&mut self) {
        self.now = clock::now();
        let Some((rules, reload)) = &mut self.rules else { return };
        if !reload.has_changed().unwrap_or(false) {
            return;
        }
        reload.mark_unchanged();
        match (rules.0)() {
            Ok(classifier) => {
                happened::RulesRead.emit();
                self.correlator.classify_by(classifier);
            }
            Err(error) => happened::RulesUnreadable { error: &error }.emit(),
        }
    }

    fn line(&mut self, line: &[u8]) {
        match Line::parse(line) {
            Some(line) => self.correlator.line(&line, self.now, &mut self.events),
            None => {
                self.foreign += 1;
                self.correlator.other(line);
            }
        }
    }

    fn entry(&mut self, entry: &JournalLine) {
        match entry.line() {
            Some(line) => self.correlator.line(&line, self.now, &mut self.events),
            None => {
                self.foreign += 1;
                self.correlator.other(b"");
            }
        }
        if let Some(loss) = entry.dropped() {
            self.correlator.lost(loss);
        }
    }

    /// No entry: longer than any of Postfix, and cut for that, or no JSON.
    fn no_entry(&mut self) {
        self.unreadable += 1;
    }

    /// The events so far; reports what was counted since the last call.
    fn take(&mut self) -> Vec<Event> {
        let (before, after) = (self.reported, self.correlator.counts());
        let (foreign, unreadable) = (std::mem::take(&mut self.foreign), std::mem::take(&mut self.unreadable));
        let tracked = self.correlator.tracked();
        happened::Read { before, after, foreign, unreadable, tracked }.emit();
        if before.unverified_refs == 0 && after.unverified_refs > 0 {
            happened::RefUnverified.emit();
        }
        let deliveries = after.counted_early - before.counted_early;
        happened::CountedEarly { deliveries, begins: before.counted_early == 0 }.emit();
        self.reported = after;
        self.settle();
        std::mem::take(&mut self.events)
    }

    /// Tells of references that were not logged. Only after reading: the news of a message are there before its log is.
    fn settle(&mut self) {
        while let Some(Ok(news)) = self.accepted.as_mut().map(acceptances::News::try_recv) {
            self.correlator.marked(&news.queue_id, news.message, news.is_copy, self.now);
        }
        self.correlator.missing(self.now).iter().for_each(|missing| happened::RefUnlogged(missing).emit());
        self.correlator.silent().iter().for_each(|silent| happened::RefsMissing(silent).emit());
    }
}

/// The followed files and what reads them: goes to a blocking thread and back.
struct Files {
    followers: Vec<(PathBuf, Follower)>,
    worker: Worker,
    saver: Saver,
    batch_bytes: u64,
}

/// What one round over all files gave.
struct Round {
    events: Vec<Event>,
    findings: Vec<(PathBuf, Finding)>,
    missing: Option<PathBuf>,
    failed: Option<(PathBuf, io::Error)>,
    more: bool,
    bytes: u64,
}

impl Files {
    fn round(&mut self) -> Round {
        self.worker.begin();
        let mut round = Round {
            events: Vec::new(),
            findings: Vec::new(),
            missing: None,
            failed: None,
            more: false,
            bytes: 0,
        };
        for (path, follower) in &mut self.followers {
            let worker = &mut self.worker;
            match follower.poll(Instant::now(), self.batch_bytes, &mut |line| worker.line(line)) {
                Ok(polled) => {
                    round.more |= polled.more;
                    round.bytes += polled.bytes;
                    round.findings.extend(polled.findings.into_iter().map(|finding| (path.clone(), finding)));
                    if !polled.is_open {
                        round.missing = Some(path.clone());
                    }
                }
                Err(error) => round.failed = Some((path.clone(), error)),
            }
        }
        round.events = self.worker.take();
        round
    }

    fn save(&mut self) {
        let positions =
            self.followers.iter().map(|(path, follower)| Ok((path.clone(), follower.positions()?)));
        match positions.collect::<io::Result<BTreeMap<_, _>>>() {
            Ok(positions) => {
                let checkpoint = Checkpoint::new(positions, None, self.worker.correlator.save());
                self.saver.save(checkpoint, self.worker.correlator.tracked());
            }
            Err(error) => happened::CheckpointFailed { error: &error }.emit(),
        }
    }
}

async fn follow_files(
    settings: &Settings,
    paths: Vec<PathBuf>,
    mut positions: BTreeMap<PathBuf, Vec<super::rotation::Position>>,
    worker: Worker,
    sink: Sink,
    saver: Saver,
) -> Result<(), TapError> {
    let mut followers = Vec::new();
    let mut told = Told::default();
    for path in paths {
        let saved = positions.remove(&path).unwrap_or_default();
        loop {
            match Follower::new(&path, &saved) {
                Ok(follower) => {
                    followers.push((path, follower));
                    break;
                }
                Err(error) => {
                    told.failed(&path, &error, &sink);
                    if !sink.wait(Duration::from_secs(1)).await {
                        return Ok(());
                    }
                }
            }
        }
    }
    let mut files = Files { followers, worker, saver, batch_bytes: settings.batch_bytes.max(1) };
    let mut dirty = false;
    // A first run that is killed must find its file again, whatever it is called by then.
    files.save();
    loop {
        let (back, round) = spawn_blocking(move || {
            let round = files.round();
            (files, round)
        })
        .await
        .map_err(|_| TapError::Reader)?;
        files = back;
        told.report(&round, &sink);
        dirty |= round.bytes > 0 || !round.findings.is_empty();
        if !sink.publish(round.events).await {
            return Ok(());
        }
        let stopping = sink.is_stopping();
        if dirty && (stopping || files.saver.is_due()) {
            files = spawn_blocking(move || {
                files.save();
                files
            })
            .await
            .map_err(|_| TapError::Reader)?;
            dirty = false;
        }
        if stopping {
            return Ok(());
        }
        if !round.more || round.failed.is_some() {
            // A stop is noticed after one more round, which also publishes what was written meanwhile.
            sink.wait(settings.poll_interval).await;
        }
    }
}

/// The trouble with the files that was told last; it is told again when it is another.
#[derive(Default)]
struct Told(Option<String>);

impl Told {
    fn report(&mut self, round: &Round, sink: &Sink) {
        for (path, finding) in &round.findings {
            happened::Found { path, finding }.emit();
        }
        match (&round.failed, &round.missing) {
            (Some((path, error)), _) => self.failed(path, error, sink),
            (None, Some(path)) => {
                if self.is_news(format!("{} does not exist (yet)", path.display()), sink) {
                    happened::SourceMissing(path).emit();
                }
            }
            (None, None) => {
                sink.component.ready();
                if self.0.take().is_some() {
                    happened::SourceBack.emit();
                }
            }
        }
    }

    fn failed(&mut self, path: &Path, error: &io::Error, sink: &Sink) {
        let is_news = self.is_news(format!("can't read {}: {error}", path.display()), sink);
        happened::SourceFailed { source: path.display().to_string(), error, is_news }.emit();
    }

    fn is_news(&mut self, trouble: String, sink: &Sink) -> bool {
        sink.component.not_ready(&trouble);
        let is_news = self.0.as_ref() != Some(&trouble);
        self.0 = Some(trouble);
        is_news
    }
}

/// What comes through a pipe.
enum Feed {
    Log(Splitter),
    Journal { splitter: Splitter, cursor: Option<String> },
}

impl Feed {
    fn feed(&mut self, piece: &[u8], worker: &mut Worker) {
        match self {
            Self::Log(splitter) => splitter.feed(piece, &mut |line| worker.line(line)),
            Self::Journal { splitter, cursor } => {
                splitter.feed(piece, &mut |line| match JournalLine::parse(line) {
                    Some(entry) => {
                        worker.entry(&entry);
                        *cursor = Some(entry.cursor);
                    }
                    None => worker.no_entry(),
                })
            }
        }
    }

    /// A last line without an end counts for a log; an entry of the journal comes again.
    fn finish(&mut self, worker: &mut Worker) {
        if let Self::Log(splitter) = self {
            splitter.finish(&mut |line| worker.line(line));
        }
    }

    fn cursor(&self) -> Option<String> {
        match self {
            Self::Log(_) => None,
            Self::Journal { cursor, .. } => cursor.clone(),
        }
    }
}

/// Reads until the pipe ends or the process stops. Everything read was published on return, unless it stops first:
/// `false` then, and nothing more may be saved.
async fn read_pipe(
    pipe: &mut (impl AsyncRead + Unpin),
    feed: &mut Feed,
    worker: &mut Worker,
    sink: &Sink,
    saver: &mut Saver,
) -> bool {
    sink.component.ready();
    let mut chunk = vec![0; PIPE_BYTES];
    let mut dirty = false;
    loop {
        let read = tokio::select! {
            read = pipe.read(&mut chunk) => Some(read),
            () = tokio::time::sleep(saver.interval) => None,
            () = sink.life.stop.cancelled() => return true,
        };
        match read {
            Some(Ok(0)) => return true,
            Some(Ok(bytes)) => {
                worker.begin();
                feed.feed(chunk.get(..bytes).unwrap_or_default(), worker);
                dirty = true;
                if !sink.publish(worker.take()).await {
                    return false;
                }
            }
            Some(Err(error)) => {
                happened::SourceFailed { source: "pipe".to_owned(), error: &error, is_news: true }.emit();
                return true;
            }
            None => {
                worker.begin();
                worker.settle();
            }
        }
        if dirty && saver.is_due() {
            dirty = false;
            saver.save(
                Checkpoint::new(BTreeMap::new(), feed.cursor(), worker.correlator.save()),
                worker.correlator.tracked(),
            );
        }
    }
}

async fn follow_journal(
    filter: JournalFilter,
    cursor: Option<String>,
    mut worker: Worker,
    sink: Sink,
    mut saver: Saver,
) -> Result<(), TapError> {
    let mut feed = Feed::Journal { splitter: Splitter::default(), cursor };
    let mut pause = Duration::from_secs(1);
    loop {
        let begun = Instant::now();
        let status = match journal::start("journalctl", &filter, feed.cursor().as_deref()) {
            Ok(mut child) => {
                if let Some(mut pipe) = child.stdout.take()
                    && !read_pipe(&mut pipe, &mut feed, &mut worker, &sink, &mut saver).await
                {
                    return Ok(());
                }
                if sink.is_stopping() {
                    break;
                }
                child.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string())
            }
            Err(error) => error.to_string(),
        };
        // What was cut off comes again, after the cursor.
        feed = Feed::Journal { splitter: Splitter::default(), cursor: feed.cursor() };
        if begun.elapsed() > LONGEST_PAUSE {
            pause = Duration::from_secs(1);
        }
        sink.component.not_ready("journalctl ended");
        happened::JournalEnded { status, restart_in: pause }.emit();
        if !sink.wait(pause).await {
            break;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    saver.save(
        Checkpoint::new(BTreeMap::new(), feed.cursor(), worker.correlator.save()),
        worker.correlator.tracked(),
    );
    Ok(())
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
