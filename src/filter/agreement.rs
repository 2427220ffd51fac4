//! Whether Postfix does what we were told when we fail. Until that has been seen, we do what is safe either way.
//!
//! - Layer: edge
//! - Takes: what the configuration says, and each Postfix; asked at the start, at a reload and every minute.
//! - Gives: whether an answer may be streamed, and a message be split.
//! - On failure: who can't be asked has not agreed: large messages pass unmodified, and none is split.
//! - Limits: an answer that comes late is not waited for; a main.cf that changes is noticed after a minute, or at a reload.
//! - See: `docs/postfix.md`, "default_action: tempfail or accept"

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::happenings::PostfixSays;
use super::listen::Endpoint;
use super::main_cf::DefaultAction;
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
        let accepts = said.iter().find(|said| said.action == Ok(Some(DefaultAction::Accept)));
        if let Some(said) = accepts {
            return Self::Accept(said.directory.clone());
        }
        let trouble = said.iter().find_map(|said| Some((said, said.action.as_ref().err()?)));
        if let Some((said, trouble)) = trouble {
            return Self::Unasked(said.directory.clone(), trouble.clone());
        }
        if said.iter().any(|said| said.action == Ok(Some(DefaultAction::NotAccept))) {
            return Self::Tempfail;
        }
        Self::Unnamed(said.iter().map(|said| said.directory.clone()).collect())
    }
}

/// What the configuration says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Whether it says `tempfail`.
    pub tempfail: bool,
    /// Whether that is to be believed where Postfix can't be asked.
    pub trusted: bool,
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
    last: Mutex<Option<Verdict>>,
}

impl Agreement {
    /// Nothing is known yet.
    pub(super) fn new(told: Told) -> Self {
        Self { told, proven: AtomicBool::new(false), last: Mutex::new(None) }
    }

    /// Postfix has said `tempfail`.
    #[cfg(test)]
    pub(super) fn proven() -> Arc<Self> {
        let listens = Endpoint::Unix(PathBuf::new());
        let agreement = Self::new(Told { tempfail: true, trusted: false, listens });
        agreement.learn(Verdict::Tempfail, false);
        Arc::new(agreement)
    }

    /// Whether nothing goes on half-edited when we fail.
    pub(super) fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
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
    fn learn(&self, verdict: Verdict, asked: bool) {
        self.proven.store(self.told.is_proven(&verdict), Ordering::Relaxed);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if asked || last.as_ref() != Some(&verdict) {
            PostfixSays { told: &self.told, verdict: &verdict }.emit();
        }
        *last = Some(verdict);
    }
}

/// Asks until the daemon stops, off the way of the mail.
pub(super) async fn watch(
    agreement: Arc<Agreement>,
    ask: impl Fn() -> Verdict + Send + Sync + 'static,
    answered: tokio::sync::oneshot::Sender<()>,
    mut life: Lifecycle,
) {
    let ask = Arc::new(ask);
    let (mut answered, mut asked) = (Some(answered), false);
    loop {
        let ask = Arc::clone(&ask);
        let verdict = tokio::task::spawn_blocking(move || ask()).await;
        agreement.learn(verdict.unwrap_or_else(|_| Verdict::Unnamed(Vec::new())), asked);
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
