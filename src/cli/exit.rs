//! How commands end: exit codes that scripts and Postfix understand.
//!
//! - Layer: cli
//! - Takes: what went wrong.
//! - Gives: a code of sysexits(3) and one message.
//! - On failure: nothing can fail.
//! - See: sysexits.h; Postfix pipe(8), which keeps and retries a message on 75.

use std::fmt::Display;

/// The exit codes of every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// A check found something: a token that is not valid, a message that was not delivered.
    No = 1,
    /// The command line is wrong.
    Usage = 64,
    /// Input data is wrong.
    Data = 65,
    /// An input file can't be read.
    NoInput = 66,
    /// Something needed is not there or does not answer.
    Unavailable = 69,
    /// A defect of mailtap.
    Software = 70,
    /// An output file can't be made, or is there already.
    CantCreate = 73,
    /// Reading or writing failed.
    Io = 74,
    /// Try again later: nothing is lost.
    TempFail = 75,
    /// The configuration is wrong.
    Config = 78,
}

/// Why a command ended other than well.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What people read; empty when everything has been said.
    pub message: String,
}

impl Failure {
    /// A failure with its message.
    pub fn new(exit: Exit, message: impl Display) -> Self {
        Self { exit, message: message.to_string() }
    }

    /// Ends with a code; all has been said.
    #[must_use]
    pub const fn silent(exit: Exit) -> Self {
        Self { exit, message: String::new() }
    }
}

/// What commands return.
pub type Result<T = ()> = std::result::Result<T, Failure>;

/// Gives an error its exit code.
pub trait OrExit<T> {
    /// Turns the error into a failure with this code.
    ///
    /// # Errors
    /// The error, with the code.
    fn or_exit(self, exit: Exit) -> Result<T>;
}

impl<T, E: Display> OrExit<T> for std::result::Result<T, E> {
    fn or_exit(self, exit: Exit) -> Result<T> {
        self.map_err(|error| Failure::new(exit, error))
    }
}
