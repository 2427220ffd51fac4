//! Opt-outs in every spelling in use: of the message in its headers, of a link in its attributes.
//!
//! - Layer: decision
//! - Takes: header fields (name and value, folded or not), attribute names and values.
//! - Gives: what the sender asks for, separately for links in HTML, links in text, and opens.
//! - On failure: a value of a known header that cannot be read counts as an opt-out: the strictest reading wins.
//! - Limits: linear in the headers; JSON is read to a depth of 128.
//! - See: `docs/configuration.md`, "What is tracked"

use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, AhoCorasickBuilder};
use serde_json::Value;

/// What the headers of a message ask for; `None` where they say nothing. A `false` wins over a `true`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MessageOptOut {
    /// Links in HTML.
    pub clicks: Option<bool>,
    /// Links in plain text.
    pub text: Option<bool>,
    /// The pixel.
    pub opens: Option<bool>,
}

impl MessageOptOut {
    const NOTHING: Self = Self { clicks: Some(false), text: Some(false), opens: Some(false) };

    /// Whether the headers forbid everything.
    #[must_use]
    pub fn is_total(&self) -> bool {
        *self == Self::NOTHING
    }

    fn and(&mut self, other: Self) {
        for (mine, theirs) in
            [(&mut self.clicks, other.clicks), (&mut self.text, other.text), (&mut self.opens, other.opens)]
        {
            *mine = match (*mine, theirs) {
                (Some(a), Some(b)) => Some(a && b),
                (a, b) => a.or(b),
            };
        }
    }

    const fn all(on: bool) -> Self {
        Self { clicks: Some(on), text: if on { None } else { Some(false) }, opens: Some(on) }
    }

    const fn clicks(on: bool) -> Self {
        Self { clicks: Some(on), text: if on { None } else { Some(false) }, opens: None }
    }

    const fn opens(on: bool) -> Self {
        Self { clicks: None, text: None, opens: Some(on) }
    }
}

/// Reads what the headers ask for. Values may be folded.
#[must_use]
pub fn message(headers: &[(&[u8], &[u8])]) -> MessageOptOut {
    let mut wish = MessageOptOut::default();
    for (name, value) in headers {
        if let Some(found) = header(name, value) {
            wish.and(found);
        }
    }
    wish
}

fn header(name: &[u8], value: &[u8]) -> Option<MessageOptOut> {
    // The quick way out: all of these begin with X- but two.
    let first = name.first()?.to_ascii_lowercase();
    if first != b'x' && first != b't' {
        return None;
    }
    let name = std::str::from_utf8(name).ok()?.trim().to_ascii_lowercase();
    let value = String::from_utf8_lossy(value);
    let value = value.trim();
    let on = is_affirmative(value);
    Some(match name.as_str() {
        "x-mailtap-track" | "x-mc-track" => listed(value),
        "x-no-track" => {
            if is_negative(value) && !value.is_empty() {
                return None;
            }
            MessageOptOut::NOTHING
        }
        "x-amp" if value.eq_ignore_ascii_case("skip") => MessageOptOut::NOTHING,
        "x-mailgun-track" => MessageOptOut::all(on),
        "x-mailgun-track-clicks" if value.eq_ignore_ascii_case("htmlonly") => {
            MessageOptOut { clicks: Some(true), text: Some(false), opens: None }
        }
        "x-mailgun-track-clicks" | "trackclicks" => MessageOptOut::clicks(on),
        "x-mailjet-trackclick" => MessageOptOut::clicks(on || value == "2"),
        "x-mailgun-track-opens" | "x-pm-trackopens" | "trackopens" => MessageOptOut::opens(on),
        "x-mailjet-trackopen" => MessageOptOut::opens(on || value == "2"),
        "x-pm-tracklinks" => postmark(value),
        "x-smtpapi" => sendgrid(value),
        "x-msys-api" => sparkpost(value),
        _ => return None,
    })
}

/// Reads a list of what is wished; what is not listed is not wished.
fn listed(value: &str) -> MessageOptOut {
    let mut wish = MessageOptOut { clicks: Some(false), text: Some(false), opens: Some(false) };
    for word in value.split(|c: char| c == ',' || c == ';' || c.is_ascii_whitespace()) {
        match word.to_ascii_lowercase().as_str() {
            "opens" | "open" => wish.opens = Some(true),
            "clicks_htmlonly" => wish.clicks = Some(true),
            "clicks_textonly" | "text" => wish.text = Some(true),
            "clicks" | "click" => (wish.clicks, wish.text) = (Some(true), None),
            "clicks_all" => (wish.clicks, wish.text) = (Some(true), Some(true)),
            "yes" | "all" | "on" | "true" => wish = MessageOptOut::all(true),
            _ => {}
        }
    }
    wish
}

fn postmark(value: &str) -> MessageOptOut {
    let (clicks, text) = match value.to_ascii_lowercase().as_str() {
        "htmlandtext" => (true, true),
        "htmlonly" => (true, false),
        "textonly" => (false, true),
        _ => (false, false),
    };
    MessageOptOut { clicks: Some(clicks), text: Some(text), opens: None }
}

fn sendgrid(value: &str) -> MessageOptOut {
    let Ok(json) = serde_json::from_str::<Value>(&unfold(value)) else { return MessageOptOut::NOTHING };
    let setting =
        |filter: &str, key: &str| json.get("filters")?.get(filter)?.get("settings")?.get(key).map(truth);
    let clicks = setting("clicktrack", "enable");
    let text = if clicks == Some(false) { clicks } else { setting("clicktrack", "enable_text") };
    MessageOptOut { clicks, text, opens: setting("opentrack", "enable") }
}

fn sparkpost(value: &str) -> MessageOptOut {
    let Ok(json) = serde_json::from_str::<Value>(&unfold(value)) else { return MessageOptOut::NOTHING };
    let option = |key: &str| json.get("options")?.get(key).map(truth);
    let clicks = option("click_tracking");
    let text = if clicks == Some(false) { clicks } else { None };
    MessageOptOut { clicks, text, opens: option("open_tracking") }
}

/// Line breaks of folding may stand within JSON strings, where they would be an error.
fn unfold(value: &str) -> String {
    value.chars().filter(|c| !matches!(c, '\r' | '\n')).collect()
}

fn truth(value: &Value) -> bool {
    match value {
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => is_affirmative(text),
        _ => false,
    }
}

fn is_affirmative(value: &str) -> bool {
    ["yes", "true", "on", "1"].iter().any(|word| value.eq_ignore_ascii_case(word))
}

fn is_negative(value: &str) -> bool {
    ["no", "false", "off", "0", ""].iter().any(|word| value.eq_ignore_ascii_case(word))
}

/// Attributes whose presence opts out, unless they say no.
const OPT_OUT_BY_PRESENCE: &[&str] = &[
    "disable-tracking",
    "data-pm-no-track",
    "ses:no-track",
    "mc:disable-tracking",
    "data-mautic-disable-tracking",
    "mautic:disable-tracking",
    "data-disable-tracking",
    "data-no-track",
    "data-mg-notrack",
    "mb_dontconvertlink",
    "mailtap:no-track",
    "data-msys-unsubscribe",
];

/// Attributes that switch tracking, and opt out unless they say yes.
const OPT_OUT_BY_VALUE: &[&str] =
    &["clicktracking", "data-msys-clicktrack", "tracking", "hstracking", "autotrack", "data-mailtap-track"];

/// Whether HTML holds something that goes even where nothing is tracked.
pub(super) fn has_marks(html: &[u8]) -> bool {
    static MARKS: LazyLock<Option<AhoCorasick>> = LazyLock::new(|| {
        let marks = OWN_ATTRIBUTES.iter().copied().chain(["+notrack:"]);
        AhoCorasickBuilder::new().ascii_case_insensitive(true).build(marks).ok()
    });
    MARKS.as_ref().is_none_or(|marks| marks.is_match(html))
}

/// Attributes of ours, which are taken out.
pub const OWN_ATTRIBUTES: &[&str] = &["data-mailtap-track", "mailtap:no-track"];

/// Whether an attribute is one of ours.
#[must_use]
pub fn is_own_attribute(name: &[u8]) -> bool {
    name.len() >= 16 && OWN_ATTRIBUTES.iter().any(|own| name.eq_ignore_ascii_case(own.as_bytes()))
}

/// Whether an attribute of a link opts the link out. Any letter case; the value is without quotes.
#[must_use]
pub fn attribute(name: &[u8], value: &[u8]) -> bool {
    let is = |word: &&str| name.eq_ignore_ascii_case(word.as_bytes());
    // The quick way out for what nearly every attribute of a link is.
    if name.len() < 5 || name.eq_ignore_ascii_case(b"style") || name.eq_ignore_ascii_case(b"target") {
        return false;
    }
    if name.eq_ignore_ascii_case(b"class") {
        let mut classes = value.split(u8::is_ascii_whitespace);
        return classes.any(|class| class.eq_ignore_ascii_case(b"inf-track-no"));
    }
    let value = || String::from_utf8_lossy(value).trim().to_owned();
    if OPT_OUT_BY_PRESENCE.iter().any(is) {
        let value = value();
        return value.is_empty() || !is_negative(&value);
    }
    OPT_OUT_BY_VALUE.iter().any(is) && !is_affirmative(&value())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, value: &str) -> (Option<bool>, Option<bool>, Option<bool>) {
        let wish = message(&[(name.as_bytes(), value.as_bytes())]);
        (wish.clicks, wish.text, wish.opens)
    }

    const NO: Option<bool> = Some(false);
    const YES: Option<bool> = Some(true);

    #[test]
    fn headers_of_every_platform() {
        let smtpapi = r#"{"filters":{"clicktrack":{"settings":{"enable":0,"enable_text":false}},
            "opentrack":{"settings":{"enable":0}}}}"#;
        assert_eq!(of("X-SMTPAPI", smtpapi), (NO, NO, NO));
        assert_eq!(
            of("X-SMTPAPI", r#"{"filters":{"opentrack":{"settings":{"enable":0}}}}"#),
            (None, None, NO)
        );
        assert_eq!(of("x-smtpapi", "{broken"), (NO, NO, NO));
        assert_eq!(of("X-Mailgun-Track", "no"), (NO, NO, NO));
        assert_eq!(of("X-Mailgun-Track-Clicks", "htmlonly"), (YES, NO, None));
        assert_eq!(of("X-Mailgun-Track-Clicks", "no"), (NO, NO, None));
        assert_eq!(of("X-Mailgun-Track-Opens", "No"), (None, None, NO));
        assert_eq!(of("X-PM-TrackLinks", "None"), (NO, NO, None));
        assert_eq!(of("X-PM-TrackLinks", "TextOnly"), (NO, YES, None));
        assert_eq!(of("X-PM-TrackOpens", "false"), (None, None, NO));
        let msys = r#"{"options":{"open_tracking":false,"click_tracking":false}}"#;
        assert_eq!(of("X-MSYS-API", msys), (NO, NO, NO));
        assert_eq!(of("X-MC-Track", "opens"), (NO, NO, YES));
        assert_eq!(of("X-MC-Track", "opens,clicks_htmlonly"), (YES, NO, YES));
        assert_eq!(of("X-Mailjet-TrackClick", "0"), (NO, NO, None));
        assert_eq!(of("trackclicks", "false"), (NO, NO, None));
        assert_eq!(of("X-No-Track", ""), (NO, NO, NO));
        assert_eq!(of("X-No-Track", "false"), (None, None, None));
        assert_eq!(of("X-AMP", "skip"), (NO, NO, NO));
        assert_eq!(of("X-Mailer", "no"), (None, None, None));
    }

    #[test]
    fn own_header() {
        assert_eq!(of("X-Mailtap-Track", "no"), (NO, NO, NO));
        assert_eq!(of("X-Mailtap-Track", "clicks"), (YES, None, NO));
        assert_eq!(of("X-Mailtap-Track", " opens\r\n"), (NO, NO, YES));
        assert_eq!(of("X-Mailtap-Track", "nonsense"), (NO, NO, NO));
    }

    #[test]
    fn the_strictest_header_wins() {
        let wish = message(&[(b"X-Mailgun-Track", b"yes"), (b"X-Mailgun-Track-Opens", b"no")]);
        assert_eq!((wish.clicks, wish.opens), (YES, NO));
    }

    #[test]
    fn attributes_of_every_platform() {
        for (name, value) in [
            ("clicktracking", "off"),
            ("CLICKTRACKING", "Off"),
            ("clicktracking", ""),
            ("disable-tracking", "true"),
            ("data-pm-no-track", ""),
            ("data-msys-clicktrack", "0"),
            ("data-msys-unsubscribe", "1"),
            ("ses:no-track", ""),
            ("ses:no-track", "true"),
            ("mc:disable-tracking", ""),
            ("tracking", "off"),
            ("HsTracking", "false"),
            ("data-mautic-disable-tracking", "true"),
            ("mautic:disable-tracking", ""),
            ("data-disable-tracking", "true"),
            ("data-no-track", ""),
            ("data-mg-notrack", ""),
            ("mb_dontconvertlink", "1"),
            ("autotrack", "false"),
            ("class", "btn inf-track-no"),
            ("data-mailtap-track", "off"),
            ("mailtap:no-track", ""),
        ] {
            assert!(attribute(name.as_bytes(), value.as_bytes()), "{name}={value}");
        }
    }

    #[test]
    fn attributes_that_opt_in_or_say_nothing() {
        for (name, value) in [
            ("clicktracking", "on"),
            ("hstracking", "true"),
            ("data-msys-clicktrack", "1"),
            ("disable-tracking", "false"),
            ("class", "inf-track"),
            ("data-track", "off"),
            ("title", "clicktracking=off"),
        ] {
            assert!(!attribute(name.as_bytes(), value.as_bytes()), "{name}={value}");
        }
    }
}
