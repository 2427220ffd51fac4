#![allow(clippy::disallowed_methods)]

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// A log that a daemon writes and a tool rotates, and the follower that reads it.
struct World {
    directory: TempDir,
    writer: File,
    follower: Option<Follower>,
    saved: Vec<Position>,
    /// What was read when it was saved: what came after that, a killed process did not publish, or publishes again.
    read_at_save: usize,
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
    /// The log is emptied after all of it was read, without a copy.
    Truncate,
    /// The newest rotated file that nobody writes to is packed, and the original removed.
    Pack,
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
            read_at_save: 0,
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
        self.shift();
        let _ = fs::rename(self.path(), self.rotated(1));
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
        self.shift();
        fs::copy(self.path(), self.rotated(1)).unwrap();
        self.writer.set_len(0).unwrap();
    }

    /// `.1` becomes `.2`, and so on, packed or not.
    fn shift(&mut self) {
        for number in (1..=self.rotations).rev() {
            for ending in ["", ".gz"] {
                let name = |number: u32| PathBuf::from(format!("{}{ending}", self.rotated(number).display()));
                let _ = fs::rename(name(number), name(number + 1));
            }
        }
        self.rotations += 1;
    }

    fn truncate(&mut self) {
        self.reopen();
        self.act(Action::Save);
        self.writer.set_len(0).unwrap();
    }

    fn pack(&mut self) {
        self.reopen();
        let rotated = (1..=self.rotations).map(|number| self.rotated(number));
        if let Some(path) = rotated.into_iter().find(|path| path.exists()) {
            pack(&path);
        }
    }

    fn rotated(&self, number: u32) -> PathBuf {
        self.directory.path().join(format!("maillog.{number}"))
    }

    fn restart(&mut self) {
        self.read.truncate(self.read_at_save);
        self.start();
    }

    fn act(&mut self, action: Action) {
        self.tick();
        match action {
            Action::Line => self.line(),
            Action::HalfLine => self.half_line(),
            Action::Poll => self.poll(),
            Action::Rename { reopen } => self.rename(reopen),
            Action::Reopen => self.reopen(),
            Action::CopyTruncate => self.copy_truncate(),
            Action::Truncate => self.truncate(),
            Action::Pack => self.pack(),
            Action::Save => {
                self.poll();
                self.saved = self.follower.as_ref().unwrap().positions().unwrap();
                self.read_at_save = self.read.len();
            }
            Action::Restart => self.restart(),
        }
    }

    /// Times of files are compared: no two actions within one tick of the file system's clock, however long it takes on
    /// a busy machine.
    fn tick(&self) {
        let clock = self.directory.path().join("clock");
        let time = || {
            fs::write(&clock, "x").unwrap();
            modified_ns(&fs::metadata(&clock).unwrap())
        };
        let begun = time();
        while time() == begun {
            std::thread::sleep(Duration::from_millis(1));
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

/// As gzip(1) does: the time of the original, and the original removed.
fn pack(path: &Path) {
    let packed = PathBuf::from(format!("{}.gz", path.display()));
    let mut encoder = GzEncoder::new(File::create(&packed).unwrap(), Compression::fast());
    encoder.write_all(&fs::read(path).unwrap()).unwrap();
    encoder.finish().unwrap().set_modified(fs::metadata(path).unwrap().modified().unwrap()).unwrap();
    fs::remove_file(path).unwrap();
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
        1 => Just(Action::Truncate),
        1 => Just(Action::Pack),
    ]
}

fn with_restarts() -> impl Strategy<Value = Action> {
    prop_oneof![8 => action(), 1 => Just(Action::Save), 1 => Just(Action::Restart)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is written, rotated, cut, packed, and however often the process is killed: every line exactly once, in its
    /// order, when
    /// what a killed process read after its last save does not count (its events have the same ids the second time).
    #[test]
    fn every_line_once(actions in proptest::collection::vec(with_restarts(), 0..40)) {
        let mut world = World::new();
        for action in &actions {
            world.act(*action);
        }
        world.end();
        prop_assert_eq!(world.read, world.written);
    }
}

#[test]
fn an_inode_used_again_is_another_file() {
    let mut world = World::new();
    for action in [Action::CopyTruncate, Action::CopyTruncate, Action::Line, Action::Save] {
        world.act(action);
    }
    // The file of the second rotation is empty: nothing tells it from others but what the file system says.
    fs::remove_file(world.rotated(1)).unwrap();
    world.act(Action::CopyTruncate);
    let again = fs::metadata(world.rotated(1)).unwrap().ino();
    let empty = world.saved.iter_mut().find(|position| position.head_bytes == 0).unwrap();
    let mut position = serde_json::to_value(&*empty).unwrap();
    position["file"]["inode"] = again.into();
    *empty = serde_json::from_value(position).unwrap();
    world.act(Action::Restart);
    world.end();
    assert_eq!(world.read, world.written);
}

#[test]
fn what_came_since_keeps_its_order() {
    use Action::{CopyTruncate, Line, Rename, Restart, Save};
    let rename = Rename { reopen: true };
    let over_a_restart = [CopyTruncate, Save, Line, CopyTruncate, Line, rename, Restart];
    let between_two_polls = [CopyTruncate, Line, rename, Line, rename, Line];
    for actions in [&over_a_restart[..], &between_two_polls] {
        let mut world = World::new();
        actions.iter().for_each(|action| world.act(*action));
        world.end();
        assert_eq!(world.read, world.written, "{actions:?}");
    }
}

#[test]
fn packed_predecessors_are_read_after_days() {
    let mut world = World::new();
    for action in [Action::Line, Action::Line, Action::Save, Action::Line, Action::HalfLine] {
        world.act(action);
    }
    // The follower is away while the log is rotated every day; all but the newest is packed.
    for _ in 0..4 {
        for action in [Action::Rename { reopen: true }, Action::Line, Action::Line] {
            world.act(action);
        }
    }
    (2..=4).map(|number| world.rotated(number)).for_each(|path| pack(&path));
    world.act(Action::Restart);
    world.end();
    assert_eq!(world.read, world.written);
    assert_eq!(world.findings, [Finding::Rotated], "nothing is missing");
}

/// xz(1), bzip2(1) and zstd(1) keep the time of the original, as gzip(1) does.
#[test]
fn predecessors_of_other_packers_are_read_after_days() {
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/logs/packed");
    let plain = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/logs/postfix-3.7.11.log"));
    for ending in ["xz", "bz2", "zst"] {
        let mut world = World::new();
        let rotated = world.directory.path().join(format!("maillog.2.{ending}"));
        fs::copy(packed.join(format!("postfix-3.7.11.log.{ending}")), &rotated).unwrap();
        let written = std::time::SystemTime::now() + Duration::from_secs(10);
        File::options().append(true).open(&rotated).unwrap().set_modified(written).unwrap();
        world.written.extend(plain.lines().map(str::to_owned));
        world.act(Action::Restart);
        world.act(Action::Line);
        world.end();
        assert!(world.read == world.written, "{ending}: {} lines", world.read.len());
        assert_eq!(world.findings, [], "{ending}");
    }
}

#[test]
fn a_file_and_its_packed_twin_are_one() {
    let mut world = World::new();
    for action in [Action::Save, Action::Line, Action::Rename { reopen: true }, Action::Line] {
        world.act(action);
    }
    let rotated = world.rotated(1);
    let text = fs::read(&rotated).unwrap();
    let times = fs::metadata(&rotated).unwrap().modified().unwrap();
    pack(&rotated);
    fs::write(&rotated, text).unwrap();
    File::options().append(true).open(&rotated).unwrap().set_modified(times).unwrap();
    world.act(Action::Restart);
    world.end();
    assert_eq!(world.read, world.written);
}

#[test]
fn a_damaged_packed_predecessor_is_said_and_holds_nothing_up() {
    let mut world = World::new();
    for action in [Action::Save, Action::Line, Action::Rename { reopen: true }, Action::Line] {
        world.act(action);
    }
    world.act(Action::Rename { reopen: true });
    world.act(Action::Line);
    let second = world.rotated(1);
    pack(&second);
    let packed = PathBuf::from(format!("{}.gz", second.display()));
    let length = fs::metadata(&packed).unwrap().len();
    File::options().write(true).open(&packed).unwrap().set_len(length - 10).unwrap();
    world.act(Action::Restart);
    world.end();
    assert!(world.findings.contains(&Finding::PredecessorDamaged), "{:?}", world.findings);
    assert!(world.read.contains(world.written.last().unwrap()));
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
    let compressed = world.directory.path().join("maillog.1.lz4");
    fs::rename(rotated, &compressed).unwrap();
    world.act(Action::Restart);
    world.end();
    assert_eq!(
        world.findings,
        [Finding::PredecessorGone, Finding::PredecessorCompressed(compressed), Finding::Rotated]
    );
    assert_eq!(world.read.len(), 3);
}

#[test]
fn what_others_may_not_read_holds_nothing_up() {
    let mut world = World::new();
    world.act(Action::Line);
    // Clocks of file systems are coarse: what follows must be newer.
    let before = std::time::SystemTime::now() - Duration::from_secs(60);
    append(&world.directory.path().join("maillog")).set_modified(before).unwrap();
    for action in [Action::Save, Action::Line, Action::Rename { reopen: true }, Action::Line] {
        world.act(action);
    }
    // Root may read every file, but nobody the memory at address 0.
    let odd = world.directory.path().join("maillog.9");
    std::os::unix::fs::symlink("/proc/self/mem", &odd).unwrap();
    world.act(Action::Restart);
    world.end();
    assert!(world.findings.contains(&Finding::PredecessorUnreadable(odd)), "{:?}", world.findings);
    assert_eq!(world.read, world.written);
}

#[test]
fn a_link_to_a_file_of_the_day_is_followed_over_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let day = |day: u32| directory.path().join(format!("mail-202611{day:02}.log"));
    let path = directory.path().join("mail.log");
    let point = |target: PathBuf| {
        let _ = fs::remove_file(&path);
        std::os::unix::fs::symlink(target, &path).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    };
    fs::write(day(22), "old\n").unwrap();
    fs::write(day(23), "one\n").unwrap();
    point(day(23));
    let mut read = Vec::new();
    let mut each = |line: &[u8]| read.push(String::from_utf8_lossy(line).into_owned());
    let mut follower = Follower::new(&path, &[]).unwrap();
    follower.poll(Instant::now(), u64::MAX, &mut each).unwrap();
    let saved = follower.positions().unwrap();
    // While nobody reads: the day ends, and two more go by.
    writeln!(append(&day(23)), "two").unwrap();
    for (number, text) in [(24, "three\n"), (25, "four\n"), (26, "five\n")] {
        std::thread::sleep(Duration::from_millis(5));
        fs::write(day(number), text).unwrap();
        point(day(number));
    }
    let mut follower = Follower::new(&path, &saved).unwrap();
    let polled = follower.poll(Instant::now(), u64::MAX, &mut each).unwrap();
    assert!(!polled.findings.contains(&Finding::PredecessorGone), "{:?}", polled.findings);
    assert_eq!(read, ["one", "two", "three", "four", "five"]);
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
