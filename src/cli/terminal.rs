//! Tables and colours for people; `anstream` takes the colours out where there is no terminal.
//!
//! - Layer: cli
//! - Takes: rows of text.
//! - Gives: aligned columns.
//! - On failure: nothing can fail.

use anstyle::{AnsiColor, Style};

/// Green: well.
pub(super) const GOOD: Style = AnsiColor::Green.on_default();
/// Yellow: worth a look.
pub(super) const CARE: Style = AnsiColor::Yellow.on_default();
/// Red: somebody is needed.
pub(super) const BAD: Style = AnsiColor::Red.on_default();
/// Cyan: somebody reads.
pub(super) const SEEN: Style = AnsiColor::Cyan.on_default();
/// Dim: by the way.
pub(super) const DIM: Style = Style::new().dimmed();

/// Text in a style.
#[must_use]
pub(super) fn paint(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// Text that can do nothing to a terminal.
#[must_use]
pub(super) fn shown(text: &str) -> String {
    let sign = |c: char| match c {
        '\t' => c,
        '\0'..='\x1F' => char::from_u32(0x2400 + u32::from(c)).unwrap_or(char::REPLACEMENT_CHARACTER),
        '\x7F' => '\u{2421}',
        '\u{80}'..='\u{9F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' => {
            char::REPLACEMENT_CHARACTER
        }
        _ => c,
    };
    text.chars().map(sign).collect()
}

/// Rows under a head, columns two blanks apart. Cells hold no colours: widths count characters.
#[must_use]
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> =
            cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut output = paint(DIM, &line(&mut head.iter().copied())) + "\n";
    for row in rows {
        output.push_str(&line(&mut row.iter().map(String::as_str)));
        output.push('\n');
    }
    output
}
