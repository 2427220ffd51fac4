//! The keyring: keys, each with an id and a life, and the rules by which they change.
//!
//! - Layer: decision
//! - Takes: the keyring file's text, the time, fresh secrets from the caller.
//! - Gives: which key signs, which verify, which are revoked; a changed keyring with one line of audit.
//! - On failure: `RingError`; the keyring stays as it was.
//! - Limits: 1,000 keys; ids 1–65,535, never used twice.
//! - See: `docs/keys.md`.

use std::fmt;

use hmac::{Hmac, KeyInit};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::identity::Timestamp;
use crate::service::secret::Secret;

/// Names a key in tokens; 1 is the first, 0 never occurs.
pub type KeyId = u16;

const VERSION: u32 = 1;
const MAX_KEYS: usize = 1_000;
const MAX_SITE_BYTES: usize = 40;

/// Where a key stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Distributed, not used yet.
    Pending,
    /// Signs new tokens, and verifies.
    Active,
    /// Verifies only.
    Retired,
    /// Leaked: its links ask before they redirect.
    Revoked,
}

impl State {
    /// The word in `keys list` and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Retired => "retired",
            Self::Revoked => "revoked",
        }
    }
}

/// One key.
#[derive(Debug, Clone)]
pub struct Key {
    /// Its name in tokens.
    pub id: KeyId,
    /// When it was made.
    pub created: Timestamp,
    /// From when on it signs, until a later one does.
    pub activates: Timestamp,
    /// Since when it only verifies, if somebody said so.
    pub retired: Option<Timestamp>,
    /// Since when it is known to have leaked.
    pub revoked: Option<Timestamp>,
    /// The tracking host that it is for (`site` in the configuration); nothing: all.
    pub site: Option<String>,
    secret: Secret<[u8; Key::BYTES]>,
    mac: Mac,
}

/// The prepared MAC of a key; shows nothing.
#[derive(Clone)]
pub(super) struct Mac(pub(super) Hmac<Sha256>);

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Key {
    /// Length of the secret in bytes.
    pub const BYTES: usize = 32;

    fn new(id: KeyId, secret: [u8; Self::BYTES], created: Timestamp, activates: Timestamp) -> Self {
        // A key of the block length is taken as it is: HMAC pads a shorter one with zeros (RFC 2104).
        let mut block = [0; 64];
        let (head, _) = block.split_at_mut(Self::BYTES);
        head.copy_from_slice(&secret);
        let mac = Mac(Hmac::new(&block.into()));
        Self {
            id,
            created,
            activates,
            retired: None,
            revoked: None,
            site: None,
            secret: Secret::new(secret),
            mac,
        }
    }

    /// Whether links of this tracking host may carry its signature.
    #[must_use]
    pub fn is_for(&self, site: Option<&str>) -> bool {
        self.site.is_none() || self.site.as_deref() == site
    }

    fn may_sign(&self, now: Timestamp) -> bool {
        self.activates <= now && self.retired.is_none() && self.revoked.is_none()
    }

    pub(super) const fn secret(&self) -> &[u8; Self::BYTES] {
        self.secret.expose()
    }

    pub(super) fn mac(&self) -> Hmac<Sha256> {
        self.mac.0.clone()
    }
}

/// Whether a text can name a tracking host in keys and configuration.
#[must_use]
pub fn is_site(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=MAX_SITE_BYTES).contains(&text.len()) && text.bytes().all(good)
}

/// What the keys of a ring sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Use {
    /// Tokens in links, pixels, headers and cookies, by HMAC: every host has the secrets.
    #[default]
    Tokens,
    /// Hand-offs to websites, by Ed25519: only trackers have the secrets.
    Handoff,
}

impl Use {
    /// The word in files and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Handoff => "handoff",
        }
    }

    fn is_tokens(&self) -> bool {
        *self == Self::Tokens
    }
}

/// All keys of a site, oldest first.
#[derive(Debug, Clone)]
pub struct Keyring {
    use_: Use,
    keys: Vec<Key>,
    next_id: u32,
}

/// Why a keyring can't be read or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// Not JSON of the expected form.
    #[error("line {line}, column {column}: not a keyring")]
    Json {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// Written by a newer mailtap.
    #[error("keyring version {0} is not known to this mailtap")]
    Version(u32),
    /// A secret is not 32 bytes of base64url.
    #[error("key {0}: its secret is not 32 bytes of base64url")]
    Secret(KeyId),
    /// Two keys with one id, or an id that was not given out.
    #[error("key {0}: its id is used twice or was never given out")]
    Id(KeyId),
    /// A ring of another use.
    #[error("its keys are for {}, not for {}", .found.as_str(), .wanted.as_str())]
    Use {
        /// What they are for.
        found: Use,
        /// What they should be for.
        wanted: Use,
    },
    /// A name of a tracking host that can't be one.
    #[error("`{0}` is no name for a site: 1 to 40 letters, digits, - or _")]
    Site(String),
    /// More than 1,000 keys, or all 65,535 ids used.
    #[error("the keyring is full: remove retired keys, or begin a new keyring")]
    Full,
    /// No key with this id.
    #[error("there is no key {0}; `mailtap keys list` shows the keys")]
    NoSuchKey(KeyId),
    /// The change would leave no key to sign with.
    #[error("key {0} is the one that signs; run `mailtap keys rotate` first")]
    LastActive(KeyId),
    /// Only keys that no longer sign can be removed.
    #[error("key {id} is {}; only retired and revoked keys can be removed", .state.as_str())]
    NotRetired {
        /// The key.
        id: KeyId,
        /// Where it stands.
        state: State,
    },
}

impl Keyring {
    /// A keyring with one key, active from now on.
    #[must_use]
    pub fn new(secret: [u8; Key::BYTES], now: Timestamp) -> Self {
        Self::new_for(Use::Tokens, secret, now)
    }

    /// As `new`, for another use.
    #[must_use]
    pub fn new_for(use_: Use, secret: [u8; Key::BYTES], now: Timestamp) -> Self {
        Self { use_, keys: vec![Key::new(1, secret, now, now)], next_id: 2 }
    }

    /// A keyring without a key: what there is as long as the file can't be read.
    #[must_use]
    pub const fn empty(use_: Use) -> Self {
        Self { use_, keys: Vec::new(), next_id: 1 }
    }

    /// The keyring, if it is for this use.
    ///
    /// # Errors
    /// `RingError::Use`.
    pub fn only_for(self, wanted: Use) -> Result<Self, RingError> {
        if self.use_ == wanted { Ok(self) } else { Err(RingError::Use { found: self.use_, wanted }) }
    }

    /// The keys, oldest first.
    #[must_use]
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// The key with this id.
    #[must_use]
    pub fn by_id(&self, id: KeyId) -> Option<&Key> {
        self.keys.iter().find(|key| key.id == id)
    }

    /// The key that signs for all at `now`: of those that may, the one activated last.
    #[must_use]
    pub fn signing(&self, now: Timestamp) -> Option<&Key> {
        self.signing_only(None, now)
    }

    /// The key that signs for a tracking host at `now`: one of its own, else the one for all.
    #[must_use]
    pub fn signing_for(&self, site: Option<&str>, now: Timestamp) -> Option<&Key> {
        site.and_then(|_| self.signing_only(site, now)).or_else(|| self.signing(now))
    }

    fn signing_only(&self, site: Option<&str>, now: Timestamp) -> Option<&Key> {
        self.keys
            .iter()
            .filter(|key| key.site.as_deref() == site && key.may_sign(now))
            .max_by_key(|key| (key.activates, key.id))
    }

    /// Where a key stands at `now`.
    #[must_use]
    pub fn state(&self, key: &Key, now: Timestamp) -> State {
        if key.revoked.is_some() {
            State::Revoked
        } else if key.retired.is_some() {
            State::Retired
        } else if key.activates > now {
            State::Pending
        } else if self.signing_only(key.site.as_deref(), now).is_some_and(|signing| signing.id == key.id) {
            State::Active
        } else {
            State::Retired
        }
    }

    /// Adds a key that signs from `activates` on, for all or for one tracking host; until then the present one goes on.
    ///
    /// # Errors
    /// `RingError::Full`, `RingError::Site`.
    pub fn rotate_for(
        &mut self,
        site: Option<&str>,
        secret: [u8; Key::BYTES],
        now: Timestamp,
        activates: Timestamp,
    ) -> Result<KeyId, RingError> {
        if let Some(site) = site.filter(|site| !is_site(site)) {
            return Err(RingError::Site(site.to_owned()));
        }
        let id = self.rotate(secret, now, activates)?;
        if let Some(key) = self.keys.last_mut() {
            key.site = site.map(str::to_owned);
        }
        Ok(id)
    }

    /// Adds a key that signs for all from `activates` on.
    ///
    /// # Errors
    /// `RingError::Full`.
    pub fn rotate(
        &mut self,
        secret: [u8; Key::BYTES],
        now: Timestamp,
        activates: Timestamp,
    ) -> Result<KeyId, RingError> {
        let id = KeyId::try_from(self.next_id).map_err(|_| RingError::Full)?;
        if self.keys.len() >= MAX_KEYS {
            return Err(RingError::Full);
        }
        self.next_id += 1;
        self.keys.push(Key::new(id, secret, now, activates));
        Ok(id)
    }

    /// Stops a key from signing; it goes on verifying.
    ///
    /// # Errors
    /// `NoSuchKey`, and `LastActive` when nothing else could sign.
    pub fn retire(&mut self, id: KeyId, now: Timestamp) -> Result<(), RingError> {
        self.end(id, now, |key| key.retired = key.retired.or(Some(now)))
    }

    /// Declares a key leaked: it signs no more, and its links ask before they redirect.
    ///
    /// # Errors
    /// `NoSuchKey`, and `LastActive` when nothing else could sign.
    pub fn revoke(&mut self, id: KeyId, now: Timestamp) -> Result<(), RingError> {
        self.end(id, now, |key| key.revoked = key.revoked.or(Some(now)))
    }

    fn end(&mut self, id: KeyId, now: Timestamp, change: impl FnOnce(&mut Key)) -> Result<(), RingError> {
        let mut changed = self.clone();
        change(changed.keys.iter_mut().find(|key| key.id == id).ok_or(RingError::NoSuchKey(id))?);
        if changed.signing(now).is_none() && self.signing(now).is_some() {
            return Err(RingError::LastActive(id));
        }
        *self = changed;
        Ok(())
    }

    /// Forgets a key: its links stop working.
    ///
    /// # Errors
    /// `NoSuchKey`, and `NotRetired` for a key that signs or will sign.
    pub fn remove(&mut self, id: KeyId, now: Timestamp) -> Result<(), RingError> {
        let key = self.by_id(id).ok_or(RingError::NoSuchKey(id))?;
        let state = self.state(key, now);
        if !matches!(state, State::Retired | State::Revoked) {
            return Err(RingError::NotRetired { id, state });
        }
        self.keys.retain(|key| key.id != id);
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RingFile {
    version: u32,
    #[serde(default, rename = "use", skip_serializing_if = "Use::is_tokens")]
    use_: Use,
    next_id: u32,
    keys: Vec<KeyEntry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyEntry {
    id: KeyId,
    created: Timestamp,
    activates: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retired: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revoked: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    site: Option<String>,
    secret: String,
}

impl Drop for KeyEntry {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.secret);
    }
}

impl Keyring {
    /// The keyring that a file holds.
    ///
    /// # Errors
    /// `Json`, `Version`, `Secret`, `Id`, `Full`.
    pub fn from_json(bytes: &[u8]) -> Result<Self, RingError> {
        let file: RingFile = serde_json::from_slice(bytes)
            .map_err(|error| RingError::Json { line: error.line(), column: error.column() })?;
        if file.version != VERSION {
            return Err(RingError::Version(file.version));
        }
        if file.keys.len() > MAX_KEYS {
            return Err(RingError::Full);
        }
        let mut keys: Vec<Key> = Vec::with_capacity(file.keys.len());
        for entry in &file.keys {
            let taken = keys.iter().any(|key| key.id == entry.id);
            if taken || entry.id == 0 || u32::from(entry.id) >= file.next_id {
                return Err(RingError::Id(entry.id));
            }
            let secret = data_encoding::BASE64URL_NOPAD
                .decode(entry.secret.as_bytes())
                .ok()
                .and_then(|bytes| bytes.try_into().ok())
                .ok_or(RingError::Secret(entry.id))?;
            let mut key = Key::new(entry.id, secret, entry.created, entry.activates);
            if let Some(site) = entry.site.as_ref().filter(|site| !is_site(site)) {
                return Err(RingError::Site(site.clone()));
            }
            (key.retired, key.revoked, key.site) = (entry.retired, entry.revoked, entry.site.clone());
            keys.push(key);
        }
        Ok(Self { use_: file.use_, keys, next_id: file.next_id })
    }

    /// The text for the keyring file. It holds the secrets.
    #[must_use]
    pub fn to_json(&self) -> Secret<String> {
        let keys = self
            .keys
            .iter()
            .map(|key| KeyEntry {
                id: key.id,
                created: key.created,
                activates: key.activates,
                retired: key.retired,
                revoked: key.revoked,
                site: key.site.clone(),
                secret: data_encoding::BASE64URL_NOPAD.encode(key.secret.expose()),
            })
            .collect();
        let file = RingFile { version: VERSION, use_: self.use_, next_id: self.next_id, keys };
        // Numbers and strings only: serialising them to memory cannot fail.
        Secret::new(serde_json::to_string_pretty(&file).unwrap_or_default() + "\n")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_secs(secs)
    }

    fn state_of(ring: &Keyring, id: KeyId, now: u64) -> State {
        ring.state(ring.by_id(id).unwrap(), at(now))
    }

    #[test]
    fn a_rotated_key_signs_only_from_its_hour_on() {
        let mut ring = Keyring::new([1; 32], at(100));
        let new = ring.rotate([2; 32], at(200), at(300)).unwrap();
        assert_eq!((state_of(&ring, 1, 299), state_of(&ring, new, 299)), (State::Active, State::Pending));
        assert_eq!((state_of(&ring, 1, 300), state_of(&ring, new, 300)), (State::Retired, State::Active));
        assert_eq!(ring.signing(at(299)).unwrap().id, 1);
        assert_eq!(ring.signing(at(300)).unwrap().id, new);
        assert!(ring.signing(at(99)).is_none(), "nothing signs before the first key does");
    }

    #[test]
    fn the_only_key_that_signs_is_not_taken_away() {
        let mut ring = Keyring::new([1; 32], at(100));
        assert_eq!(ring.retire(1, at(150)), Err(RingError::LastActive(1)));
        assert_eq!(ring.revoke(1, at(150)), Err(RingError::LastActive(1)));
        assert_eq!(ring.remove(1, at(150)), Err(RingError::NotRetired { id: 1, state: State::Active }));
        ring.rotate([2; 32], at(150), at(150)).unwrap();
        ring.revoke(1, at(160)).unwrap();
        assert_eq!(state_of(&ring, 1, 160), State::Revoked);
        ring.remove(1, at(160)).unwrap();
        assert_eq!(ring.by_id(1).map(|key| key.id), None);
        assert_eq!(ring.rotate([3; 32], at(170), at(170)), Ok(3), "an id is never used twice");
        assert_eq!(ring.retire(9, at(170)), Err(RingError::NoSuchKey(9)));
    }

    #[test]
    fn a_key_of_one_host_signs_there_and_nowhere_else() {
        let mut ring = Keyring::new([1; 32], at(100));
        let own = ring.rotate_for(Some("shop"), [2; 32], at(200), at(300)).unwrap();
        let signing = |ring: &Keyring, site, now| ring.signing_for(site, at(now)).unwrap().id;
        assert_eq!(signing(&ring, Some("shop"), 299), 1, "not yet");
        assert_eq!((signing(&ring, Some("shop"), 300), signing(&ring, Some("news"), 300)), (own, 1));
        assert_eq!((signing(&ring, None, 300), ring.signing(at(300)).unwrap().id), (1, 1));
        assert_eq!((state_of(&ring, 1, 300), state_of(&ring, own, 300)), (State::Active, State::Active));
        let key = ring.by_id(own).unwrap();
        assert!(key.is_for(Some("shop")) && !key.is_for(Some("news")) && !key.is_for(None));
        assert!(ring.by_id(1).unwrap().is_for(Some("shop")) && ring.by_id(1).unwrap().is_for(None));
        let again = Keyring::from_json(ring.to_json().expose().as_bytes()).unwrap();
        assert_eq!(again.by_id(own).unwrap().site.as_deref(), Some("shop"));
        ring.revoke(own, at(400)).unwrap();
        assert_eq!(signing(&ring, Some("shop"), 400), 1, "the key for all goes on");
        assert_eq!(
            ring.rotate_for(Some("a b"), [3; 32], at(400), at(400)),
            Err(RingError::Site("a b".into()))
        );
        let json = again.to_json();
        let broken = json.expose().replace("\"shop\"", "\"a@b\"");
        assert_eq!(Keyring::from_json(broken.as_bytes()).err(), Some(RingError::Site("a@b".into())));
    }

    #[test]
    fn the_file_comes_back_and_shows_no_secret_by_accident() {
        let mut ring = Keyring::new([1; 32], at(100));
        ring.rotate([2; 32], at(200), at(300)).unwrap();
        ring.revoke(1, at(301)).unwrap();
        let json = ring.to_json();
        let back = Keyring::from_json(json.expose().as_bytes()).unwrap();
        assert_eq!(back.to_json().expose(), json.expose());
        let shown = format!("{ring:?} {json:?} {json}");
        assert!(!shown.contains("[1, 1") && !shown.contains("AQEB"), "{shown}");
    }

    #[test]
    fn a_ring_is_for_one_use() {
        let ring = Keyring::new_for(Use::Handoff, [1; 32], at(100));
        let again = Keyring::from_json(ring.to_json().expose().as_bytes()).unwrap();
        assert!(again.clone().only_for(Use::Handoff).is_ok());
        let error = again.only_for(Use::Tokens).unwrap_err();
        assert_eq!(error.to_string(), "its keys are for handoff, not for tokens");
        assert!(Keyring::new(Default::default(), at(1)).only_for(Use::Tokens).is_ok());
    }

    #[test]
    fn broken_files_are_refused() {
        let good = Keyring::new([1; 32], at(100)).to_json();
        let good = good.expose();
        assert!(matches!(Keyring::from_json(b"{"), Err(RingError::Json { .. })));
        assert_eq!(
            Keyring::from_json(good.replace("\"version\": 1", "\"version\": 2").as_bytes()).err(),
            Some(RingError::Version(2))
        );
        assert_eq!(Keyring::from_json(good.replace("AQEB", "").as_bytes()).err(), Some(RingError::Secret(1)));
        assert_eq!(
            Keyring::from_json(good.replace("\"next_id\": 2", "\"next_id\": 1").as_bytes()).err(),
            Some(RingError::Id(1))
        );
        assert!(matches!(
            Keyring::from_json(good.replace("\"keys\"", "\"kyes\"").as_bytes()),
            Err(RingError::Json { .. })
        ));
    }
}
