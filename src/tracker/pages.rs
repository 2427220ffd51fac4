//! The few pages that people may see.
//!
//! - Layer: decision
//! - Takes: what the administrator says of the host; the target of a link whose key leaked.
//! - Gives: complete HTML, without scripts and without anything loaded from elsewhere.
//! - On failure: nothing can fail; every text from outside is escaped.
//! - See: `docs/tracker.md`, "Pages".

use std::fmt::Write;

use super::settings::Site;

/// The page at the root: what this host is.
#[must_use]
pub fn home(site: &Site) -> String {
    let mut text =
        String::from("<h1>Links and images of e-mail</h1>\n<p>This host serves links and images of e-mail");
    match &site.operator {
        Some(operator) => {
            let _ = write!(text, " sent by {}.", Escaped(operator));
        }
        None => text.push('.'),
    }
    text.push_str(" Following such a link, or showing such an image, may be counted.</p>\n");
    privacy(&mut text, site);
    page("Links and images of e-mail", &text)
}

/// What is shown instead of a redirect when nothing is there.
#[must_use]
pub fn not_found(site: &Site) -> String {
    let mut text = String::from(
        "<h1>This link does not work</h1>\n<p>It is incomplete or was changed on its way. Please go back to the message \
         and follow the link there, or copy all of it.</p>\n",
    );
    privacy(&mut text, site);
    page("This link does not work", &text)
}

/// What is shown when the key that signed a link is known to have leaked: names the target, and lets people decide.
#[must_use]
pub fn ask(site: &Site, location: &str, host: &str) -> String {
    let mut text = String::from("<h1>Do you want to go on?</h1>\n");
    let _ = write!(
        text,
        "<p>We can't be sure that this link comes from us. It leads to <strong>{host}</strong>:</p>\n\
         <p><a href=\"{location}\" rel=\"noreferrer nofollow\">{location}</a></p>\n\
         <p>Follow it only if you know this address.</p>\n",
        host = Escaped(host),
        location = Escaped(location),
    );
    privacy(&mut text, site);
    page("Do you want to go on?", &text)
}

fn privacy(text: &mut String, site: &Site) {
    if let Some(url) = &site.privacy_url {
        let _ = writeln!(text, "<p><a href=\"{}\" rel=\"noreferrer\">Privacy notice</a></p>", Escaped(url));
    }
}

fn page(title: &str, content: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<meta name=\"robots\" content=\"noindex\">\n\
         <title>{title}</title>\n\
         <style>body{{font:1em/1.5 sans-serif;max-width:40em;margin:3em auto;padding:0 1em;overflow-wrap:anywhere}}</style>\n\
         </head>\n<body>\n{content}</body>\n</html>\n"
    )
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
mod tests {
    use super::*;

    #[test]
    fn everything_from_outside_is_escaped() {
        let evil = "\"><script>alert('x')</script>&";
        let site = Site { operator: Some(evil.into()), privacy_url: Some(evil.into()), ..Site::default() };
        for html in [home(&site), not_found(&site), ask(&site, evil, evil)] {
            assert!(!html.contains("<script") && !html.contains("alert('"), "{html}");
            assert!(html.contains("&quot;&gt;&lt;script&gt;"), "{html}");
        }
    }
}
