//! A configuration as `mailtap init` writes it, and commands that use it.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

use super::{mailtap, run, run_with_input};

/// What `mailtap init` made.
pub struct Installed {
    pub dir: tempfile::TempDir,
    /// What it said.
    pub printed: String,
}

/// A site of its own directory; with further options of `init`.
pub fn installed(more: &[&str]) -> Installed {
    let dir = tempfile::tempdir().unwrap();
    let mut command = mailtap();
    command.args(["init", "--tracking-url", "https://t.example.org", "--domain", "example.org", "--dir"]);
    let printed = run(command.arg(dir.path()).args(more));
    Installed { dir, printed }
}

impl Installed {
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("mailtap.toml")
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = mailtap();
        command.arg("--config").arg(self.config()).args(arguments);
        command
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&run(&mut self.command(arguments))).unwrap()
    }

    pub fn rewrite(&self, sender: &str, message: &[u8]) -> Output {
        run_with_input(
            &mut self.command(&["rewrite", "--sender", sender, "--recipient", "ann@example.net"]),
            message,
        )
    }
}
