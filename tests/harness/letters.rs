//! Newsletters of every size, and proof that one arrived whole: exactly as it came, or entirely rewritten.

use std::fmt::Write;

/// What a newsletter is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// HTML of about so many bytes, with a link in every five hundred.
    Html(usize),
    /// A small newsletter in HTML with an attachment of so many bytes in base64.
    Attachment(usize),
}

/// What became of a newsletter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    AsItCame,
    Rewritten,
}

/// Numbers that look like chance, the same in every run.
pub struct Dice(pub u64);

impl Dice {
    /// From 0 to `limit - 1`.
    pub fn below(&mut self, limit: usize) -> usize {
        // SplitMix64, by Sebastiano Vigna, public domain.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((mixed ^ (mixed >> 31)) % limit as u64).unwrap_or_default()
    }
}

/// The header that carries the number.
const NUMBER: &str = "X-Letter: ";

/// A newsletter whose every line says which it is.
pub fn letter(number: usize, kind: Kind) -> String {
    let mut text = format!(
        "From: News <news@shop.example>\r\nTo: you\r\nSubject: Letter {number}\r\n{NUMBER}{number}\r\n\
         X-Mailtap-Campaign: letters\r\nMIME-Version: 1.0\r\n"
    );
    match kind {
        Kind::Html(bytes) => html(&mut text, number, bytes / 500),
        Kind::Attachment(bytes) => {
            text.push_str("Content-Type: multipart/mixed; boundary=letters\r\n\r\n--letters\r\n");
            html(&mut text, number, 20);
            text.push_str("--letters\r\nContent-Type: application/octet-stream\r\n");
            text.push_str("Content-Transfer-Encoding: base64\r\n\r\n");
            for line in 0..bytes.div_ceil(76) {
                let _ = write!(text, "{number:0>32}{line:0>44}\r\n");
            }
            text.push_str("--letters--\r\n");
        }
    }
    text
}

fn html(text: &mut String, number: usize, links: usize) {
    text.push_str("Content-Type: text/html; charset=utf-8\r\n\r\n");
    let _ = write!(text, "<html><body><p>first line of {number}</p>\r\n");
    for link in 0..links {
        let _ = write!(
            text,
            "<p><a href=\"https://www.example.org/letter-{number}/{link}\">link {link} of letter {number}</a></p>\r\n"
        );
        for line in 0..4 {
            let _ = write!(text, "<p>{number:0>40}{link:0>20}{line:0>20}</p>\r\n");
        }
    }
    let _ = write!(text, "<p>last line of {number}</p></body></html>\r\n");
}

/// Which newsletter this is.
pub fn number(delivered: &str) -> Option<usize> {
    let start = delivered.find(NUMBER)? + NUMBER.len();
    let digits: String = delivered[start..].chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// What became of this newsletter; what is wrong with it if it is neither old nor new.
pub fn fate(original: &str, delivered: &str, tracking_url: &str) -> Result<Fate, String> {
    let (original, delivered) = (original.replace("\r\n", "\n"), delivered.replace("\r\n", "\n"));
    let (_, old) = original.split_once("\n\n").ok_or("no body was sent")?;
    let (headers, new) = delivered.split_once("\n\n").ok_or("no body was delivered")?;
    let referenced = headers.contains("X-Mailtap-Ref: ");
    if new == old {
        return if referenced { Err("the old body with our header".into()) } else { Ok(Fate::AsItCame) };
    }
    let (clicks, opens) = (format!("{tracking_url}/c/"), format!("{tracking_url}/o/"));
    let links = old.matches("https://www.example.org/letter-").count();
    let found = (new.matches(&clicks).count(), new.matches(&opens).count());
    if found != (links, 1) {
        return Err(format!("{found:?} links and pixels of {links}; {} bytes of {}", new.len(), old.len()));
    }
    let without_pixel = new.split_once(&format!("<img src=\"{opens}")).and_then(|(before, rest)| {
        let (_, after) = rest.split_once('>')?;
        Some(format!("{before}{after}"))
    });
    let new = blank(&without_pixel.ok_or("a pixel of another form")?, &clicks);
    if new != blank(old, "https://www.example.org/letter-") {
        return Err(format!("the text beside the links is not that of the letter; {} bytes", new.len()));
    }
    if referenced { Ok(Fate::Rewritten) } else { Err("the new body without our header".into()) }
}

/// Leaves out every URL that begins so.
fn blank(text: &str, url: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (index, piece) in text.split(url).enumerate() {
        let rest = if index == 0 { piece } else { &piece[piece.find('"').unwrap_or(0)..] };
        out.push_str(rest);
    }
    out
}
