//! Lines of the log on their way to standard error, so that whoever reads them holds up nobody.
//!
//! - Layer: edge
//! - Takes: whole lines.
//! - Gives: the same, written by a thread of its own.
//! - On failure: a line that can't be written, or for which there is no room any more, is lost and counted.
//! - Limits: 8 MiB of lines wait; at the end they have a second.
//! - See: `docs/operations.md`. (`tracing-appender` does nearly this, but writes its own troubles to standard error, where it
//!   hangs or panics when that is the trouble.)

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// So many bytes may wait.
const MOST_BYTES: usize = 8 << 20;
/// What a line takes beside its text.
const OF_A_LINE: usize = 64;
/// Lines that wait go out together, up to so many bytes.
const AT_ONCE: usize = 32 << 10;
/// At the end, for what still waits.
const LAST: Duration = Duration::from_secs(1);
/// Between two tries where nothing can be taken now.
const AGAIN: Duration = Duration::from_millis(20);

/// Where lines go. Clones share the way.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    sender: Sender<Said>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    bytes: AtomicUsize,
    lost: AtomicU64,
}

#[derive(Debug)]
enum Said {
    Line(Vec<u8>),
    /// Say when all before it is out.
    End(SyncSender<()>),
}

impl Lines {
    /// Begins to write to `to`.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn start(to: impl Write + Send + 'static) -> io::Result<Self> {
        let (sender, receiver) = channel();
        let shared = Arc::<Shared>::default();
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new().name("log".into()).spawn(move || write_all(&receiver, to, &of_thread))?;
        Ok(Self { sender, shared })
    }

    /// How many lines were lost since the last call.
    pub(super) fn take_lost(&self) -> u64 {
        self.shared.lost.swap(0, Ordering::Relaxed)
    }

    /// Waits until all lines are out, but not for long.
    pub(super) fn finish(&self) {
        let (sender, receiver) = sync_channel(1);
        if self.sender.send(Said::End(sender)).is_ok() {
            let _ = receiver.recv_timeout(LAST);
        }
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Write for Lines {
    /// Takes a whole line, or loses it; never fails and never waits.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let size = line.len() + OF_A_LINE;
        let before = self.shared.bytes.fetch_add(size, Ordering::Relaxed);
        if before + size > MOST_BYTES || self.sender.send(Said::Line(line.to_vec())).is_err() {
            self.shared.bytes.fetch_sub(size, Ordering::Relaxed);
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_all(receiver: &Receiver<Said>, mut to: impl Write, shared: &Shared) {
    let mut text = Vec::new();
    while let Ok(first) = receiver.recv() {
        let (mut said, mut lines, mut end) = (Some(first), 0, None);
        text.clear();
        while let Some(next) = said {
            match next {
                Said::Line(line) => {
                    text.extend_from_slice(&line);
                    lines += 1;
                }
                Said::End(sender) => end = Some(sender),
            }
            said = if text.len() < AT_ONCE && end.is_none() { receiver.try_recv().ok() } else { None };
        }
        if write_whole(&mut to, &text).is_err() {
            shared.lost.fetch_add(lines, Ordering::Relaxed);
        }
        let size = text.len() + usize::try_from(lines).unwrap_or_default() * OF_A_LINE;
        shared.bytes.fetch_sub(size, Ordering::Relaxed);
        if let Some(end) = end {
            let _ = end.send(());
        }
    }
}

/// Goes on where it is not to wait, but has to.
fn write_whole(to: &mut impl Write, mut text: &[u8]) -> io::Result<()> {
    while !text.is_empty() {
        match to.write(text) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => text = text.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(AGAIN),
            Err(error) => return Err(error),
        }
    }
    to.flush()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::telemetry::Captured;

    /// Takes as many bytes as it has room for, and nothing more before it is read.
    fn a_full_pipe() -> (io::PipeReader, io::PipeWriter) {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(&vec![b'.'; 65_536]).unwrap();
        (reader, writer)
    }

    #[test]
    fn lines_come_whole_and_in_order() {
        let captured = Captured::default();
        let mut lines = Lines::start(captured.clone()).unwrap();
        let expected: String = (0..10_000).map(|number| format!("line {number}\n")).collect();
        for line in expected.split_inclusive('\n') {
            lines.write_all(line.as_bytes()).unwrap();
        }
        lines.finish();
        assert_eq!((captured.text(), lines.take_lost()), (expected, 0));
        assert_eq!(lines.shared.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn whoever_does_not_read_holds_up_nobody() {
        let (mut reader, writer) = a_full_pipe();
        let mut lines = Lines::start(writer).unwrap();
        let line = [b'x'; 1_000];
        for _ in 0..20_000 {
            assert_eq!(lines.write(&line).unwrap(), line.len());
        }
        let lost = lines.take_lost();
        assert!((12_000..12_200).contains(&lost), "{lost}");
        lines.finish();
        // It reads again: what waited comes, and there is room.
        let reading = std::thread::spawn(move || io::copy(&mut reader, &mut io::sink()).unwrap());
        while lines.shared.bytes.load(Ordering::Relaxed) > 0 {
            std::thread::sleep(AGAIN);
        }
        lines.write_all(&line).unwrap();
        lines.finish();
        assert_eq!(lines.take_lost(), 0);
        drop(lines);
        assert_eq!(reading.join().unwrap(), 65_536 + (20_001 - lost) * 1_000);
    }

    #[test]
    fn what_cannot_be_written_is_lost_and_counted() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut lines = Lines::start(full).unwrap();
        for _ in 0..10 {
            lines.write_all(b"line\n").unwrap();
        }
        lines.finish();
        assert_eq!((lines.take_lost(), lines.take_lost()), (10, 0));
    }
}
