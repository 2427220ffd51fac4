//! A process that ends with its test.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A child process that is killed when the test ends.
pub struct Daemon(Child);

impl Daemon {
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn signal(&self, signal: &str) {
        super::run(Command::new("kill").arg(format!("-{signal}")).arg(self.pid().to_string()));
    }

    /// Stops it until it gets `CONT`. A signal takes its time on a busy machine, and each thread stops by itself.
    pub fn pause(&self) {
        self.signal("STOP");
        let stopped = || {
            let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
            threads.flatten().all(|thread| {
                let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
                stat.rsplit(") ").next().is_some_and(|state| state.starts_with('T'))
            })
        };
        super::wait_for("every thread to stop", Duration::from_secs(30), stopped);
    }

    /// Kills it as a power cut would.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Ends it politely; gives its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        self.signal("TERM");
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < end, "it does not stop");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// If it has ended by itself.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.0.try_wait().unwrap().and_then(|status| status.code())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}
