//! Tokens: what a link, a pixel and the reference header carry, signed.
//!
//! - Layer: decision
//! - Takes: the fields and a key; or a text and the keyring.
//! - Gives: base64url text; or the fields, with the standing of the key that signed them.
//! - On failure: `TokenError`. Nothing of a token whose MAC does not hold is given out.
//! - Limits: 65,535 bytes of target by the format; the caller's limit on the whole URL is far lower.
//! - See: `docs/token-format.md` (layout, test vectors), RFC 2104, RFC 4648 section 5.

use data_encoding::BASE64URL_NOPAD;
use hmac::Mac as _;

use super::ring::{Key, KeyId, Keyring};
use crate::identity::{CampaignId, MessageId, Pseudonym};

const VERSION: u8 = 0x10;
const KIND_CLICK: u8 = 0x01;
const KIND_OPEN: u8 = 0x02;
const KIND_REF: u8 = 0x03;

const HAS_RECIPIENT: u8 = 0x01;
const HAS_CAMPAIGN: u8 = 0x02;

const MAC_BYTES: usize = 16;
const REF_MAC_BYTES: usize = 12;
/// The longest text that is looked at: anything longer was not made by us.
const MAX_TEXT_BYTES: usize = 90_000;

/// A followed link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Click {
    /// The message that carried it.
    pub message: MessageId,
    /// Whose copy it was; absent when several recipients shared it.
    pub recipient: Option<Pseudonym>,
    /// Which link of the message, from 1.
    pub link: u16,
    /// The message's campaign.
    pub campaign: Option<CampaignId>,
    /// Where it goes: absolute, http or https.
    pub target: String,
}

/// A loaded pixel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// The message that carried it.
    pub message: MessageId,
    /// Whose copy it was; absent when several recipients shared it.
    pub recipient: Option<Pseudonym>,
    /// The message's campaign.
    pub campaign: Option<CampaignId>,
}

/// The reference in `X-Mailtap-Ref`: 34 characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ref {
    /// The message that carries it.
    pub message: MessageId,
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// In the URL of a link.
    Click(Click),
    /// In the URL of the pixel.
    Open(Open),
    /// In the header.
    Ref(Ref),
}

/// Whether a key that signed a token still vouches for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Good,
    /// The signature holds, but the key leaked: anybody may have made the token.
    Revoked,
}

/// A token whose signature holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// What it says.
    pub token: Token,
    /// The key that signed it.
    pub key_id: KeyId,
    /// What the key is worth today.
    pub standing: Standing,
}

/// Why a text is not a token of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not base64url without padding, in its one canonical form, or far too long.
    #[error("not base64url")]
    Encoding,
    /// A version or kind that this mailtap does not know.
    #[error("a version or kind that is not known")]
    Version,
    /// The fields do not fill the bytes as the format says.
    #[error("the fields do not fit the format")]
    Layout,
    /// A key that is not in the keyring: removed, of another site, or not received yet.
    #[error("signed by key {0}, which is not in the keyring")]
    UnknownKey(KeyId),
    /// The signature does not hold.
    #[error("the signature does not hold")]
    Mac,
    /// Signed by a key that is for another tracking host.
    #[error("signed for another tracking host")]
    Site,
}

impl TokenError {
    /// The word in metrics and `--json`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Encoding => "encoding",
            Self::Version => "version",
            Self::Layout => "layout",
            Self::UnknownKey(_) => "unknown-key",
            Self::Mac => "mac",
            Self::Site => "site",
        }
    }
}

/// Signs a token.
///
/// A target of more than 65,535 bytes is not checked here: the limit on the whole URL is the caller's, and `verify`
/// refuses what is longer than any URL of ours.
#[must_use]
pub fn sign(token: &Token, key: &Key) -> String {
    let mut text = String::new();
    sign_onto(&mut text, token, key);
    text
}

/// As [`sign`], at the end of a text.
pub fn sign_onto(text: &mut String, token: &Token, key: &Key) {
    match token {
        Token::Click(click) => {
            let context = Context {
                message: click.message,
                recipient: click.recipient,
                campaign: click.campaign.as_ref(),
            };
            ClickSigner::new(context, key).sign_onto(text, click.link, &click.target);
        }
        Token::Open(open) => {
            let mut bytes = begin(KIND_OPEN, key);
            put_context(
                &mut bytes,
                Context {
                    message: open.message,
                    recipient: open.recipient,
                    campaign: open.campaign.as_ref(),
                },
            );
            finish(text, bytes, key, KIND_OPEN, MAC_BYTES);
        }
        Token::Ref(reference) => {
            let mut bytes = begin(KIND_REF, key);
            bytes.extend_from_slice(reference.message.as_bytes());
            finish(text, bytes, key, KIND_REF, REF_MAC_BYTES);
        }
    }
}

/// Whose link or pixel a token is.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The message that carries it.
    pub message: MessageId,
    /// Whose copy it is; absent when several recipients share it.
    pub recipient: Option<Pseudonym>,
    /// The message's campaign.
    pub campaign: Option<&'a CampaignId>,
}

/// Signs the click tokens of one message, without a [`Click`] for each: a newsletter has hundreds of links.
#[derive(Debug)]
pub struct ClickSigner<'k> {
    key: &'k Key,
    /// What is signed: the label, and the bytes of the token as far as all have them.
    bytes: Vec<u8>,
    common: usize,
}

impl<'k> ClickSigner<'k> {
    /// For the links of a message.
    #[must_use]
    pub fn new(context: Context<'_>, key: &'k Key) -> Self {
        let mut bytes = Vec::with_capacity(384);
        bytes.extend_from_slice(purpose(KIND_CLICK));
        bytes.push(VERSION | KIND_CLICK);
        bytes.extend_from_slice(&key.id.to_be_bytes());
        put_context(&mut bytes, context);
        Self { key, common: bytes.len(), bytes }
    }

    /// Signs the token of a link, at the end of a text.
    pub fn sign_onto(&mut self, text: &mut String, link: u16, target: &str) {
        self.bytes.truncate(self.common);
        self.bytes.extend_from_slice(&link.to_be_bytes());
        self.bytes.extend_from_slice(target.as_bytes());
        let mac = self.key.mac().chain_update(&self.bytes).finalize().into_bytes();
        self.bytes.extend_from_slice(mac.get(..MAC_BYTES).unwrap_or_default());
        let token = self.bytes.get(purpose(KIND_CLICK).len()..).unwrap_or_default();
        BASE64URL_NOPAD.encode_append(token, text);
    }
}

fn begin(kind: u8, key: &Key) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    bytes.push(VERSION | kind);
    bytes.extend_from_slice(&key.id.to_be_bytes());
    bytes
}

fn finish(text: &mut String, mut bytes: Vec<u8>, key: &Key, kind: u8, mac_bytes: usize) {
    let mac = key.mac().chain_update(purpose(kind)).chain_update(&bytes).finalize().into_bytes();
    bytes.extend_from_slice(mac.get(..mac_bytes).unwrap_or_default());
    BASE64URL_NOPAD.encode_append(&bytes, text);
}

fn put_context(bytes: &mut Vec<u8>, context: Context<'_>) {
    let Context { message, recipient, campaign } = context;
    let mut flags = 0;
    if recipient.is_some() {
        flags |= HAS_RECIPIENT;
    }
    if campaign.is_some() {
        flags |= HAS_CAMPAIGN;
    }
    bytes.push(flags);
    bytes.extend_from_slice(message.as_bytes());
    if let Some(recipient) = recipient {
        bytes.extend_from_slice(recipient.as_bytes());
    }
    if let Some(campaign) = campaign {
        // At most CampaignId::MAX_BYTES, 40.
        bytes.push(u8::try_from(campaign.as_str().len()).unwrap_or(u8::MAX));
        bytes.extend_from_slice(campaign.as_str().as_bytes());
    }
}

/// The label that keeps the signatures of one kind from being taken for those of another.
const fn purpose(kind: u8) -> &'static [u8] {
    match kind {
        KIND_CLICK => b"mailtap click v1\0",
        KIND_OPEN => b"mailtap open v1\0",
        _ => b"mailtap ref v1\0",
    }
}

/// Checks a token and reads it.
///
/// # Errors
/// See [`TokenError`].
pub fn verify(text: &str, keys: &Keyring) -> Result<Verified, TokenError> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(TokenError::Encoding);
    }
    let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| TokenError::Encoding)?;
    let (&head, _) = bytes.split_first().ok_or(TokenError::Layout)?;
    let kind = head & 0x0f;
    let mac_bytes = match kind {
        _ if head & 0xf0 != VERSION => return Err(TokenError::Version),
        KIND_CLICK | KIND_OPEN => MAC_BYTES,
        KIND_REF => REF_MAC_BYTES,
        _ => return Err(TokenError::Version),
    };
    let signed_bytes = bytes.len().checked_sub(mac_bytes).ok_or(TokenError::Layout)?;
    let (signed, mac) = bytes.split_at_checked(signed_bytes).ok_or(TokenError::Layout)?;
    let mut fields = Fields(signed.get(1..).ok_or(TokenError::Layout)?);
    let key_id = KeyId::from_be_bytes(fields.take()?);
    let key = keys.by_id(key_id).ok_or(TokenError::UnknownKey(key_id))?;
    key.mac()
        .chain_update(purpose(kind))
        .chain_update(signed)
        .verify_truncated_left(mac)
        .map_err(|_| TokenError::Mac)?;
    let token = match kind {
        KIND_CLICK => Token::Click(fields.click()?),
        KIND_OPEN => Token::Open(fields.open()?),
        _ => Token::Ref(fields.reference()?),
    };
    let standing = if key.revoked.is_some() { Standing::Revoked } else { Standing::Good };
    Ok(Verified { token, key_id, standing })
}

/// As [`verify`], for the tracking host that was asked: keys of other hosts don't count here.
///
/// # Errors
/// See [`TokenError`].
pub fn verify_at(text: &str, keys: &Keyring, site: Option<&str>) -> Result<Verified, TokenError> {
    let verified = verify(text, keys)?;
    let is_for = keys.by_id(verified.key_id).is_some_and(|key| key.is_for(site));
    if is_for { Ok(verified) } else { Err(TokenError::Site) }
}

/// What is left to read of the signed bytes.
struct Fields<'a>(&'a [u8]);

type ReadContext = (MessageId, Option<Pseudonym>, Option<CampaignId>);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], TokenError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(TokenError::Layout)?;
        self.0 = rest;
        Ok(*head)
    }

    fn take_text(&mut self, len: usize) -> Result<&'a str, TokenError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(TokenError::Layout)?;
        self.0 = rest;
        std::str::from_utf8(head).map_err(|_| TokenError::Layout)
    }

    fn context(&mut self) -> Result<ReadContext, TokenError> {
        let [flags] = self.take()?;
        if flags & !(HAS_RECIPIENT | HAS_CAMPAIGN) != 0 {
            return Err(TokenError::Layout);
        }
        let message = MessageId::from(self.take::<{ MessageId::BYTES }>()?);
        let recipient = match flags & HAS_RECIPIENT {
            0 => None,
            _ => Some(Pseudonym::from(self.take::<{ Pseudonym::BYTES }>()?)),
        };
        let campaign = match flags & HAS_CAMPAIGN {
            0 => None,
            _ => {
                let [len] = self.take()?;
                Some(self.take_text(usize::from(len))?.parse().map_err(|_| TokenError::Layout)?)
            }
        };
        Ok((message, recipient, campaign))
    }

    fn click(mut self) -> Result<Click, TokenError> {
        let (message, recipient, campaign) = self.context()?;
        let link = u16::from_be_bytes(self.take()?);
        let target = self.take_text(self.0.len())?;
        if !is_web(target) {
            return Err(TokenError::Layout);
        }
        Ok(Click { message, recipient, link, campaign, target: target.to_owned() })
    }

    fn open(mut self) -> Result<Open, TokenError> {
        let (message, recipient, campaign) = self.context()?;
        self.end()?;
        Ok(Open { message, recipient, campaign })
    }

    fn reference(mut self) -> Result<Ref, TokenError> {
        let message = MessageId::from(self.take::<{ MessageId::BYTES }>()?);
        self.end()?;
        Ok(Ref { message })
    }

    fn end(&self) -> Result<(), TokenError> {
        if self.0.is_empty() { Ok(()) } else { Err(TokenError::Layout) }
    }
}

fn is_web(target: &str) -> bool {
    let starts_with = |scheme: &str| {
        target.get(..scheme.len()).is_some_and(|head| head.eq_ignore_ascii_case(scheme))
            && target.len() > scheme.len()
    };
    starts_with("http://") || starts_with("https://")
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
