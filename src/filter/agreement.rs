//! Whether Postfix does what we were told when we fail. Until that has been seen, we do what is safe either way.
//!
//! - Layer: edge
//! - Takes: what the configuration says, and each Postfix; asked at the start, at a reload and every minute.
//! - Gives: whether an answer may be streamed, and a message be split; how large a message may become.
//! - On failure: who can't be asked has not agreed: large messages pass unmodified, and none is split.
//! - Limits: an answer that comes late is not waited for; a main.cf that changes is noticed after a minute, or at a reload.
//! - See: `docs/postfix.md`, "default_action: tempfail or accept"

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::happenings::PostfixSays;
use super::listen::Endpoint;
use super::main_cf::DefaultAction;
#[cfg(test)]
use super::main_cf::Says;
use super::postconf::{Said, Trouble};
use crate::service::Lifecycle;

const EVERY: Duration = Duration::from_secs(60);

/// What all that were asked say together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Each could be asked; at least one names us, and none of them lets mail through when we fail.
    Tempfail,
    /// This one does.
    Accept(PathBuf),
    /// This one can't be asked.
    Unasked(PathBuf, Trouble),
    /// None of these names us.
    Unnamed(Vec<PathBuf>),
}

impl Verdict {
    /// The one that asks for most care counts.
    #[must_use]
    pub fn of(said: &[Said]) -> Self {
        let does = |said: &&Said, action| said.says.as_ref().is_ok_and(|says| says.action == Some(action));
        let accepts = said.iter().find(|said| does(said, DefaultAction::Accept));
        if let Some(said) = accepts {
            return Self::Accept(said.directory.clone());
        }
        let trouble = said.iter().find_map(|said| Some((said, said.says.as_ref().err()?)));
        if let Some((said, trouble)) = trouble {
            return Self::Unasked(said.directory.clone(), trouble.clone());
        }
        if said.iter().any(|said| does(&said, DefaultAction::NotAccept)) {
            return Self::Tempfail;
        }
        Self::Unnamed(said.iter().map(|said| said.directory.clone()).collect())
    }
}

/// What Postfix takes where it says nothing else.
pub const USUAL_SIZE_LIMIT: u64 = 10_240_000;
const NO_LIMIT: u64 = u64::MAX;

/// What the configuration says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Whether it says `tempfail`.
    pub tempfail: bool,
    /// Whether that is to be believed where Postfix can't be asked.
    pub trusted: bool,
    /// The largest message that Postfix takes, beside what it says itself; 0 if there is no limit.
    pub message_size_limit: Option<u64>,
    /// Where we listen.
    pub listens: Endpoint,
}

impl Told {
    /// Whether nothing goes on half-edited when we fail.
    #[must_use]
    pub fn is_proven(&self, verdict: &Verdict) -> bool {
        self.tempfail
            && match verdict {
                Verdict::Tempfail => true,
                Verdict::Accept(_) => false,
                Verdict::Unasked(..) | Verdict::Unnamed(_) => self.trusted,
            }
    }

    /// The largest message that Postfix takes: the smallest limit of those that name us, and of what we are told. Where nobody
    /// is sure to have said it, and we are told nothing, as much as Postfix takes by default.
    fn message_size_limit(&self, said: &[Said]) -> u64 {
        let naming =
            said.iter().filter_map(|said| said.says.as_ref().ok()).filter(|says| says.action.is_some());
        let asked = naming.clone().filter_map(|says| says.message_size_limit).min();
        let sure = naming.count() > 0 && said.iter().all(|said| said.says.is_ok());
        let told = self.message_size_limit.or_else(|| (!sure).then_some(USUAL_SIZE_LIMIT));
        asked.into_iter().chain(told.filter(|limit| *limit > 0)).min().unwrap_or(NO_LIMIT)
    }

    /// What is amiss, and what to set; nothing where all agree.
    #[must_use]
    pub fn advice(&self, verdict: &Verdict) -> Option<String> {
        let listens = &self.listens;
        if !self.tempfail {
            let needless = *verdict == Verdict::Tempfail;
            return needless.then(|| {
                "milter.default_action is \"accept\", and main.cf says otherwise: large messages pass unmodified without need; \
                 set milter.default_action = \"tempfail\""
                    .into()
            });
        }
        if self.is_proven(verdict) {
            return None;
        }
        let what = match verdict {
            Verdict::Accept(directory) => {
                return Some(format!(
                    "milter.default_action in mailtap.toml is \"tempfail\", and {directory}/main.cf (or master.cf, or a table of \
                     smtpd_milter_maps) says default_action=accept, or quarantine, for the milter at {listens}: set \
                     default_action=tempfail there, or milter.default_action = \"accept\" here; {CAREFUL}",
                    directory = directory.display()
                ));
            }
            Verdict::Unasked(directory, trouble) => {
                format!("{directory}: {trouble}", directory = directory.display())
            }
            Verdict::Unnamed(directories) if directories.is_empty() => {
                "milter.postfix_config_dirs names no main.cf".into()
            }
            Verdict::Unnamed(directories) => {
                let all: Vec<_> =
                    directories.iter().map(|path| path.join("main.cf").display().to_string()).collect();
                format!("{} (and master.cf) names no milter at {listens}", all.join(", "))
            }
            Verdict::Tempfail => return None,
        };
        Some(format!(
            "{what}, so nobody knows whether it says default_action=tempfail, as milter.default_action does: put the directory of \
             the main.cf that names {listens} into milter.postfix_config_dirs (`mailtap postfix` prints what belongs there); where \
             that Postfix can't be asked from here, set milter.trust_default_action = true; {CAREFUL}",
        ))
    }
}

const CAREFUL: &str =
    "until then messages whose answer does not fit the socket's buffer pass unmodified, and none is split";

/// What is known, for all messages.
#[derive(Debug)]
pub(super) struct Agreement {
    told: Told,
    proven: AtomicBool,
    size_limit: AtomicU64,
    last: Mutex<Option<Verdict>>,
}

impl Agreement {
    /// Nothing is known yet.
    pub(super) fn new(told: Told) -> Self {
        let size_limit = AtomicU64::new(told.message_size_limit(&[]));
        Self { told, proven: AtomicBool::new(false), size_limit, last: Mutex::new(None) }
    }

    /// Postfix has said `tempfail`.
    #[cfg(test)]
    pub(super) fn proven() -> Arc<Self> {
        let listens = Endpoint::Unix(PathBuf::new());
        let agreement = Self::new(Told { tempfail: true, trusted: false, message_size_limit: None, listens });
        let says = Says { action: Some(DefaultAction::NotAccept), ..Says::default() };
        agreement.learn(&[Said { directory: PathBuf::new(), says: Ok(says) }], false);
        Arc::new(agreement)
    }

    /// Whether nothing goes on half-edited when we fail.
    pub(super) fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    /// The largest message that Postfix takes, in bytes of a queue file; `None` if it takes any.
    pub(super) fn message_size_limit(&self) -> Option<u64> {
        Some(self.size_limit.load(Ordering::Relaxed)).filter(|limit| *limit != NO_LIMIT)
    }

    /// What Postfix does with a message that gets no answer, as far as that is known.
    pub(super) fn default_action(&self) -> &'static str {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            _ if self.is_proven() => "tempfail",
            Some(Verdict::Accept(_)) => "accept",
            _ if !self.told.tempfail => "accept",
            _ => "unknown",
        }
    }

    /// Says so when it is news, or when somebody wants to hear it.
    fn learn(&self, said: &[Said], asked: bool) {
        let verdict = Verdict::of(said);
        self.size_limit.store(self.told.message_size_limit(said), Ordering::Relaxed);
        self.proven.store(self.told.is_proven(&verdict), Ordering::Relaxed);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if asked || last.as_ref() != Some(&verdict) {
            let message_size_limit = self.message_size_limit();
            PostfixSays { told: &self.told, verdict: &verdict, message_size_limit }.emit();
        }
        *last = Some(verdict);
    }
}

/// Asks until the daemon stops, off the way of the mail.
pub(super) async fn watch(
    agreement: Arc<Agreement>,
    ask: impl Fn() -> Vec<Said> + Send + Sync + 'static,
    answered: tokio::sync::oneshot::Sender<()>,
    mut life: Lifecycle,
) {
    let ask = Arc::new(ask);
    let (mut answered, mut asked) = (Some(answered), false);
    loop {
        let ask = Arc::clone(&ask);
        let said = tokio::task::spawn_blocking(move || ask()).await;
        agreement.learn(&said.unwrap_or_default(), asked);
        if let Some(answered) = answered.take() {
            let _ = answered.send(());
        }
        let reload = async {
            if life.reload.changed().await.is_err() {
                std::future::pending().await
            }
        };
        tokio::select! {
            () = life.stop.cancelled() => return,
            () = reload => asked = true,
            () = tokio::time::sleep(EVERY) => asked = false,
        }
    }
}

#[cfg(test)]
#[path = "agreement_tests.rs"]
mod tests;
