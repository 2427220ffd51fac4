#![allow(clippy::disallowed_methods)]

use std::io::Write;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// A log that a daemon writes and a tool rotates, and the follower that reads it.
struct World {
    directory: TempDir,
    writer: File,
    follower: Option<Follower>,
    saved: Vec<Position>,
    now: Instant,
    written: Vec<String>,
    /// The beginning of a line whose rest is not written yet.
    open_line: Option<String>,
    read: Vec<String>,
    findings: Vec<Finding>,
    rotations: u32,
}

#[derive(Debug, Clone, Copy)]
enum Action {
    Line,
    HalfLine,
    Poll,
    /// Renames; the daemon opens the new file at once, or goes on writing to the old one until `Reopen`.
    Rename {
        reopen: bool,
    },
    Reopen,
    CopyTruncate,
    /// Saves the positions, as after publishing.
    Save,
    /// Ends without saving what was read since, and starts again.
    Restart,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let writer = append(&directory.path().join("maillog"));
        let mut world = Self {
            directory,
            writer,
            follower: None,
            saved: Vec::new(),
            now: Instant::now(),
            written: Vec::new(),
            open_line: None,
            read: Vec::new(),
            findings: Vec::new(),
            rotations: 0,
        };
        world.start();
        world.line();
        world.act(Action::Save);
        world
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("maillog")
    }

    fn start(&mut self) {
        self.follower = Some(Follower::new(&self.path(), &self.saved).unwrap());
    }

    fn poll(&mut self) {
        let read = &mut self.read;
        loop {
            let polled = self
                .follower
                .as_mut()
                .unwrap()
                .poll(self.now, 1, &mut |line| read.push(String::from_utf8_lossy(line).into_owned()))
                .unwrap();
            self.findings.extend(polled.findings);
            if !polled.more {
                break;
            }
        }
    }

    fn line(&mut self) {
        let line = self.open_line.take().unwrap_or_else(|| {
            let line = format!("line {}", self.written.len());
            write!(self.writer, "{line}").unwrap();
            line
        });
        // Files are told apart by their beginning: it is never the same in real logs either, for they begin with a time.
        writeln!(self.writer, " end").unwrap();
        self.written.push(format!("{line} end"));
    }

    fn half_line(&mut self) {
        if self.open_line.is_none() {
            let line = format!("line {}", self.written.len());
            write!(self.writer, "{line}").unwrap();
            self.open_line = Some(line);
        }
    }

    fn rename(&mut self, reopen: bool) {
        self.rotations += 1;
        let _ = fs::rename(self.path(), self.directory.path().join(format!("maillog.{}", self.rotations)));
        if reopen {
            self.reopen();
        } else {
            append(&self.path());
        }
    }

    fn reopen(&mut self) {
        if self.open_line.is_some() {
            self.line();
        }
        self.writer = append(&self.path());
    }

    fn copy_truncate(&mut self) {
        self.reopen();
        self.rotations += 1;
        fs::copy(self.path(), self.directory.path().join(format!("maillog.{}", self.rotations))).unwrap();
        self.writer.set_len(0).unwrap();
    }

    fn act(&mut self, action: Action) {
        // Times of files are compared: no two actions within one tick of the file system's clock.
        std::thread::sleep(Duration::from_millis(5));
        match action {
            Action::Line => self.line(),
            Action::HalfLine => self.half_line(),
            Action::Poll => self.poll(),
            Action::Rename { reopen } => self.rename(reopen),
            Action::Reopen => self.reopen(),
            Action::CopyTruncate => self.copy_truncate(),
            Action::Save => {
                self.poll();
                self.saved = self.follower.as_ref().unwrap().positions().unwrap();
            }
            Action::Restart => self.start(),
        }
    }

    fn end(&mut self) {
        self.reopen();
        self.poll();
        self.now += QUIET * 2;
        self.poll();
        self.now += QUIET * 2;
        self.poll();
    }
}

fn append(path: &Path) -> File {
    File::options().create(true).append(true).open(path).unwrap()
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => Just(Action::Line),
        2 => Just(Action::HalfLine),
        3 => Just(Action::Poll),
        1 => any::<bool>().prop_map(|reopen| Action::Rename { reopen }),
        1 => Just(Action::Reopen),
        1 => Just(Action::CopyTruncate),
    ]
}

fn with_restarts() -> impl Strategy<Value = Action> {
    prop_oneof![8 => action(), 1 => Just(Action::Save), 1 => Just(Action::Restart)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// Without restarts: every line exactly once.
    #[test]
    fn every_line_once(actions in proptest::collection::vec(action(), 0..40)) {
        let mut world = World::new();
        for action in actions {
            world.act(action);
        }
        world.end();
        let mut read = world.read.clone();
        read.sort_by_key(|line| line.split(' ').nth(1).and_then(|number| number.parse::<u32>().ok()));
        prop_assert_eq!(read, world.written);
    }

    /// With ends at any moment: no line is lost. Those read since the last save are read again, which is what event
    /// ids are for.
    #[test]
    fn no_line_lost_over_restarts(actions in proptest::collection::vec(with_restarts(), 0..40)) {
        let mut world = World::new();
        for action in actions {
            world.act(action);
        }
        world.end();
        for line in &world.written {
            prop_assert!(world.read.contains(line), "{} is missing", line);
        }
        for line in &world.read {
            prop_assert!(world.written.contains(line), "{} was never written so", line);
        }
    }
}

#[test]
fn a_restart_after_saving_reads_nothing_twice() {
    for rotate in [Action::Rename { reopen: true }, Action::CopyTruncate] {
        let mut world = World::new();
        for action in [
            Action::Line,
            Action::Line,
            Action::Save,
            Action::Line,
            rotate,
            Action::Line,
            Action::Rename { reopen: true },
        ] {
            world.act(action);
        }
        world.act(Action::Line);
        world.act(Action::Restart);
        world.end();
        assert_eq!(world.read, world.written, "{rotate:?}");
    }
}

#[test]
fn what_can_not_be_read_is_said() {
    let mut world = World::new();
    for action in [Action::Line, Action::Save, Action::Line, Action::Rename { reopen: true }, Action::Line] {
        world.act(action);
    }
    let rotated = world.directory.path().join("maillog.1");
    let compressed = world.directory.path().join("maillog.1.gz");
    fs::rename(rotated, &compressed).unwrap();
    world.act(Action::Restart);
    world.end();
    assert_eq!(world.findings, [Finding::PredecessorGone, Finding::PredecessorCompressed(compressed)]);
    assert_eq!(world.read.len(), 3);
}

#[test]
fn late_creation_and_links() {
    let directory = tempfile::tempdir().unwrap();
    let (path, target) = (directory.path().join("log"), directory.path().join("real"));
    let mut follower = Follower::new(&path, &[]).unwrap();
    let mut lines = 0;
    let mut poll = |follower: &mut Follower| {
        let polled = follower.poll(Instant::now(), u64::MAX, &mut |_| lines += 1).unwrap();
        (polled.is_open, lines)
    };
    assert_eq!(poll(&mut follower), (false, 0));
    std::os::unix::fs::symlink(&target, &path).unwrap();
    assert_eq!(poll(&mut follower), (false, 0));
    fs::write(&target, "one\ntwo\nthree").unwrap();
    assert_eq!(poll(&mut follower), (true, 2));
    let positions = follower.positions().unwrap();
    fs::rename(&target, directory.path().join("real.1")).unwrap();
    fs::write(&target, "four\n").unwrap();
    let mut again = Follower::new(&path, &positions).unwrap();
    assert_eq!(poll(&mut again), (true, 3), "the third line has no end yet");
}
