//! The filter's side of a case: lines `filter: …`, see `cases.rs`.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use mailtap_milter::edits::{Answer, Edit, SmtpReply, Verdict};

/// What the filter of a case would answer to each of its messages, in order.
pub fn answers(text: &str) -> Vec<Answer> {
    let (mut answer, mut answers) = (Answer::unmodified(), Vec::new());
    for line in text.lines() {
        if let Some(line) = line.strip_prefix("filter: ") {
            apply(&mut answer, line);
        } else if line.starts_with("> END-OF-MESSAGE") {
            answers.push(answer.clone());
        }
    }
    answers
}

/// One line `filter: …`.
pub fn apply(answer: &mut Answer, line: &str) {
    let (what, rest) = line.split_once(' ').unwrap_or((line, ""));
    let header = |text: &str| {
        let (name, value) = text.split_once(':').unwrap();
        (name.as_bytes().to_vec(), plain(value.strip_prefix(' ').unwrap_or(value)))
    };
    let numbered = |text: &str| {
        let (index, rest) = text.split_once(' ').unwrap();
        (number_of(index), rest.to_owned())
    };
    let mailbox = |text: &str| {
        let (address, args) = text.split_once(' ').unwrap_or((text, ""));
        (plain(address), plain(args))
    };
    let edit = match what {
        "nothing" => {
            *answer = Answer::unmodified();
            return;
        }
        "reject" | "tempfail" | "discard" | "reply" => {
            answer.verdict = match what {
                "reject" => Verdict::Reject,
                "tempfail" => Verdict::TempFail,
                "discard" => Verdict::Discard,
                _ => {
                    let text = String::from_utf8(plain(rest)).unwrap();
                    Verdict::Reply(SmtpReply::new(550, (5, 7, 1), &text).unwrap())
                }
            };
            return;
        }
        "add" => {
            let (name, value) = header(rest);
            Edit::AddHeader { name, value }
        }
        "insert" => {
            let (index, rest) = numbered(rest);
            let (name, value) = header(&rest);
            Edit::InsertHeader { index, name, value }
        }
        "change" => {
            let (index, rest) = numbered(rest);
            let (name, value) = header(&rest);
            Edit::ChangeHeader { index, name, value }
        }
        "delete" => {
            let (index, name) = numbered(rest);
            Edit::DeleteHeader { index, name: name.into_bytes() }
        }
        "body" => match rest.split_once(" times ") {
            Some((text, count)) => Edit::ReplaceBody(plain(text).repeat(number_of(count) as usize)),
            None => Edit::ReplaceBody(plain(rest)),
        },
        "add-recipient" => {
            let (address, args) = mailbox(rest);
            Edit::AddRecipient { address, args }
        }
        "delete-recipient" => Edit::DeleteRecipient { address: plain(rest) },
        "sender" => {
            let (address, args) = mailbox(rest);
            Edit::ChangeSender { address, args }
        }
        "quarantine" => Edit::Quarantine { reason: plain(rest) },
        other => panic!("filter: {other}"),
    };
    answer.edits.push(edit);
}

pub fn number_of(text: &str) -> u32 {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).unwrap(),
        None => text.parse().unwrap(),
    }
}

pub fn plain(text: &str) -> Vec<u8> {
    let mut bytes = text.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        out.push(match (byte, byte == b'\\') {
            (_, true) => match bytes.next().unwrap() {
                b'r' => b'\r',
                b'n' => b'\n',
                b't' => b'\t',
                b'0' => 0,
                other => other,
            },
            (byte, false) => byte,
        });
    }
    out
}
