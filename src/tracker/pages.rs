//! The few pages that people may see, in their language.
//!
//! - Layer: decision
//! - Takes: what the administrator says of the host; `Accept-Language`; the target of a link whose key leaked.
//! - Gives: complete HTML, without scripts and without anything loaded from elsewhere; made once for each host.
//! - On failure: nothing can fail; every text from outside is escaped.
//! - See: `docs/tracker.md`, "Pages"; the texts are in `pages/`.

use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::language::{self, Language};
use super::settings::Site;

/// A page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Its bytes.
    pub html: Bytes,
    /// What names just these bytes, with its quotes.
    pub etag: String,
    /// Its language.
    pub language: Language,
}

/// The pages of a host.
#[derive(Debug, Clone)]
pub struct Pages {
    languages: Vec<Language>,
    first: Ready,
    others: Vec<Ready>,
}

/// The pages in one language.
#[derive(Debug, Clone)]
struct Ready {
    texts: Texts,
    /// The link to the privacy notice.
    privacy: String,
    home: Arc<Page>,
    not_found: Arc<Page>,
    forgotten: Arc<Page>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Texts {
    home_title: String,
    home_text: String,
    home_text_operator: String,
    home_counted: String,
    privacy: String,
    not_found_title: String,
    not_found_text: String,
    forgotten_text: String,
    ask_title: String,
    ask_text: String,
    ask_advice: String,
}

impl Texts {
    fn of(language: Language) -> Result<Self, toml::de::Error> {
        toml::from_str(match language {
            Language::En => include_str!("pages/en.toml"),
            Language::Pl => include_str!("pages/pl.toml"),
            Language::De => include_str!("pages/de.toml"),
        })
    }
}

impl Pages {
    /// Makes the pages that are the same for everybody.
    #[must_use]
    pub fn new(site: &Site) -> Self {
        let languages = site.languages.clone();
        let first = Ready::new(languages.first().copied().unwrap_or(Language::En), site);
        let others = languages.iter().skip(1).map(|language| Ready::new(*language, site)).collect();
        Self { languages, first, others }
    }

    /// The page at the root: what this host is.
    #[must_use]
    pub fn home(&self, accept: Option<&[u8]>) -> Arc<Page> {
        Arc::clone(&self.in_language(accept).home)
    }

    /// What is shown instead of a redirect when nothing is there.
    #[must_use]
    pub fn not_found(&self, accept: Option<&[u8]>) -> Arc<Page> {
        Arc::clone(&self.in_language(accept).not_found)
    }

    /// What is shown when the key that signed a link is not there any more: nobody can say where it led.
    #[must_use]
    pub fn forgotten(&self, accept: Option<&[u8]>) -> Arc<Page> {
        Arc::clone(&self.in_language(accept).forgotten)
    }

    /// What is shown when the key that signed a link is known to have leaked: names the target, and lets people decide.
    #[must_use]
    pub fn ask(&self, accept: Option<&[u8]>, location: &str, host: &str) -> Arc<Page> {
        let Ready { texts, privacy, home, .. } = self.in_language(accept);
        let mut text = format!("<h1>{}</h1>\n", Escaped(&texts.ask_title));
        let strong = format!("<strong>{}</strong>", Escaped(host));
        let _ = write!(
            text,
            "<p>{leads}</p>\n\
             <p><a href=\"{location}\" rel=\"noreferrer nofollow\">{location}</a></p>\n<p>{advice}</p>\n{privacy}",
            leads = Escaped(&texts.ask_text).to_string().replacen("{host}", &strong, 1),
            location = Escaped(location),
            advice = Escaped(&texts.ask_advice),
        );
        Arc::new(page(home.language, &texts.ask_title, &text))
    }

    fn in_language(&self, accept: Option<&[u8]>) -> &Ready {
        let number = language::preferred(accept, &self.languages).checked_sub(1);
        number.and_then(|number| self.others.get(number)).unwrap_or(&self.first)
    }
}

impl Ready {
    fn new(language: Language, site: &Site) -> Self {
        // The texts are part of the program, and a test reads them.
        let texts = Texts::of(language).unwrap_or_default();
        let privacy = site.privacy_url.as_ref().map(|url| {
            let label = Escaped(&texts.privacy);
            format!("<p><a href=\"{}\" rel=\"noreferrer\">{label}</a></p>\n", Escaped(url))
        });
        let privacy = privacy.unwrap_or_default();
        let what = match &site.operator {
            Some(operator) => {
                let operator = Escaped(operator).to_string();
                Escaped(&texts.home_text_operator).to_string().replacen("{operator}", &operator, 1)
            }
            None => Escaped(&texts.home_text).to_string(),
        };
        let home = format!(
            "<h1>{}</h1>\n<p>{what} {}</p>\n{privacy}",
            Escaped(&texts.home_title),
            Escaped(&texts.home_counted)
        );
        let none = |text: &str| {
            let title = &texts.not_found_title;
            let html = format!("<h1>{}</h1>\n<p>{}</p>\n{privacy}", Escaped(title), Escaped(text));
            Arc::new(page(language, title, &html))
        };
        Self {
            home: Arc::new(page(language, &texts.home_title, &home)),
            not_found: none(&texts.not_found_text),
            forgotten: none(&texts.forgotten_text),
            texts,
            privacy,
        }
    }
}

fn page(language: Language, title: &str, content: &str) -> Page {
    let html = format!(
        "<!DOCTYPE html>\n<html lang=\"{}\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<meta name=\"robots\" content=\"noindex\">\n\
         <title>{}</title>\n\
         <style>body{{font:1em/1.5 sans-serif;max-width:40em;margin:3em auto;padding:0 1em;overflow-wrap:anywhere}}</style>\n\
         </head>\n<body>\n{content}</body>\n</html>\n",
        language.as_str(),
        Escaped(title),
    );
    Page { etag: etag(html.as_bytes()), html: html.into(), language }
}

/// A strong validator of these bytes (RFC 9110 section 8.8.3).
#[must_use]
pub(super) fn etag(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    format!("\"{}\"", HEXLOWER.encode(digest.get(..12).unwrap_or_default()))
}

/// Text that is safe in an element and in a quoted attribute.
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn text(page: &Page) -> &str {
        std::str::from_utf8(&page.html).unwrap()
    }

    #[test]
    fn everything_from_outside_is_escaped() {
        let evil = "\"><script>alert('x')</script>&{host}{operator}";
        let site = Site { operator: Some(evil.into()), privacy_url: Some(evil.into()), ..Site::default() };
        let pages = Pages::new(&Site { languages: Language::ALL.to_vec(), ..site });
        for language in Language::ALL {
            let accept = Some(language.as_str().as_bytes());
            for page in [
                pages.home(accept),
                pages.not_found(accept),
                pages.forgotten(accept),
                pages.ask(accept, evil, evil),
            ] {
                let html = text(&page);
                assert!(!html.contains("<script") && !html.contains("alert('"), "{html}");
                assert!(html.contains("&quot;&gt;&lt;script&gt;"), "{html}");
            }
        }
    }

    #[test]
    fn every_text_is_there_in_every_language_with_its_places() {
        let english: toml::Table = toml::from_str(include_str!("pages/en.toml")).unwrap();
        for (language, text) in [
            (Language::En, include_str!("pages/en.toml")),
            (Language::Pl, include_str!("pages/pl.toml")),
            (Language::De, include_str!("pages/de.toml")),
        ] {
            Texts::of(language).unwrap();
            let table: toml::Table = toml::from_str(text).unwrap();
            for (key, value) in &table {
                let value = value.as_str().unwrap();
                let place = match key.as_str() {
                    "home_text_operator" => "{operator}",
                    "ask_text" => "{host}",
                    _ => "",
                };
                assert!(value.len() > 5 && value.contains(place), "{language:?} {key}");
                assert!(value.matches('{').count() == usize::from(!place.is_empty()), "{language:?} {key}");
            }
            assert_eq!(table.keys().collect::<Vec<_>>(), english.keys().collect::<Vec<_>>(), "{language:?}");
        }
    }

    #[test]
    fn each_language_says_which_it_is_and_has_a_validator_of_its_own() {
        let languages = Language::ALL.to_vec();
        let pages =
            Pages::new(&Site { operator: Some("Zoé & Söhne".into()), languages, ..Site::default() });
        let polish = pages.home(Some(b"pl-PL,pl;q=0.9,en;q=0.8"));
        assert!(
            text(&polish).contains("<html lang=\"pl\">")
                && text(&polish).contains("nadawcą jest Zoé &amp; Söhne.")
        );
        assert!(text(&pages.not_found(Some(b"de"))).contains("funktioniert nicht"));
        let etags: std::collections::BTreeSet<_> =
            ["en", "pl", "de"].map(|tag| pages.home(Some(tag.as_bytes())).etag.clone()).into();
        assert_eq!(etags.len(), 3);
    }
}
