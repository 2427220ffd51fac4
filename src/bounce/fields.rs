//! Header fields as bytes: names, unfolded values, groups.
//!
//! - Layer: decision
//! - Takes: a block of header fields, in any charset, with CRLF or LF.
//! - Gives: fields in their order; blank lines separate groups.
//! - On failure: a line that is no field is passed over.
//! - See: RFC 5322 section 2.2, RFC 3464 section 2.1.

#![warn(clippy::indexing_slicing)]

use memchr::{memchr, memmem};

/// A field, its value unfolded: folds are one blank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) name: Vec<u8>,
    pub(super) value: Vec<u8>,
}

impl Field {
    pub(super) fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }
}

/// The groups of fields; a block of one group is what a message's header is.
pub(super) fn groups(block: &[u8]) -> Vec<Vec<Field>> {
    let mut groups: Vec<Vec<Field>> = vec![Vec::new()];
    for line in block.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(group) = groups.last_mut() else { continue };
        if line.trim_ascii().is_empty() {
            if !group.is_empty() {
                groups.push(Vec::new());
            }
            continue;
        }
        if matches!(line.first(), Some(b' ' | b'\t')) {
            if let Some(field) = group.last_mut() {
                if !field.value.is_empty() {
                    field.value.push(b' ');
                }
                field.value.extend_from_slice(line.trim_ascii());
            }
            continue;
        }
        let Some((name, value)) = memchr(b':', line).and_then(|colon| line.split_at_checked(colon)) else {
            continue;
        };
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        group.push(Field { name: name.trim_ascii().to_vec(), value: value.to_vec() });
    }
    groups.retain(|group| !group.is_empty());
    groups
}

/// The fields of a message's header: up to the first blank line.
pub(super) fn header(message: &[u8]) -> Vec<Field> {
    let message = message.trim_ascii_start();
    let ends = [memmem::find(message, b"\n\n"), memmem::find(message, b"\n\r\n")];
    let end = ends.into_iter().flatten().min().unwrap_or(message.len());
    groups(message.get(..end).unwrap_or_default()).into_iter().next().unwrap_or_default()
}

/// The value of the first field of this name.
pub(super) fn value<'a>(fields: &'a [Field], name: &str) -> Option<&'a [u8]> {
    fields.iter().find(|field| field.is(name)).map(|field| field.value.as_slice())
}

/// The same as text, if it is UTF-8.
pub(super) fn text<'a>(fields: &'a [Field], name: &str) -> Option<&'a str> {
    value(fields, name).and_then(|value| std::str::from_utf8(value).ok())
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_unfolded_and_grouped() {
        let block = b"\r\nA: 1\r\n  two\r\nno field\r\nb : \xff\r\n\r\n\n \nA:3\n continued: no name\n";
        let groups = groups(block);
        assert_eq!(groups.len(), 2);
        assert_eq!(value(&groups[0], "a"), Some(&b"1 two"[..]));
        assert_eq!(value(&groups[0], "B"), Some(&b"\xff"[..]));
        assert_eq!(text(&groups[0], "b"), None);
        assert_eq!(text(&groups[1], "a"), Some("3 continued: no name"));
        assert_eq!(header(b""), []);
    }
}
