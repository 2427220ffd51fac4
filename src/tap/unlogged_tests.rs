#![allow(clippy::unwrap_used)]

use super::*;

fn id(number: u32) -> QueueId {
    QueueId::parse(format!("A{number:06}").as_bytes()).unwrap()
}

fn message(number: u32) -> MessageId {
    MessageId::new(at(0), number)
}

fn at(secs: u64) -> Timestamp {
    Timestamp::from_secs(1_795_453_000 + secs)
}

fn missing(number: u32, service: &str, is_news: bool) -> Missing {
    Missing { queue_id: id(number), service: service.into(), is_copy: false, is_news }
}

#[test]
fn each_message_counts_and_a_service_is_named_once() {
    let mut unlogged = Unlogged::default();
    for number in 0..3 {
        unlogged.cleaned(id(number), b"postfix/copies");
        unlogged.marked(id(number), message(number), false, at(0));
        unlogged.left(id(number), b"postfix");
    }
    assert_eq!(unlogged.settle(at(0)), [], "the reference may be late");
    let expected = [0, 1, 2].map(|number| missing(number, "postfix/copies", number == 0));
    assert_eq!(unlogged.settle(at(10)), expected);
    unlogged.marked(id(9), message(9), false, at(20));
    unlogged.left(id(9), b"postfix-out");
    unlogged.settle(at(20));
    assert_eq!(unlogged.settle(at(30)), [missing(9, "postfix-out", true)], "another service is other news");
    assert!(unlogged.marked.is_empty() && unlogged.queue_ids.is_empty() && unlogged.left.is_empty());
}

#[test]
fn news_may_come_after_the_whole_log_of_a_message() {
    let mut unlogged = Unlogged::default();
    for number in [0, 1] {
        unlogged.cleaned(id(number), b"postfix");
        unlogged.left(id(number), b"postfix");
    }
    unlogged.logged(id(1), Some(message(1)), b"postfix");
    unlogged.marked(id(0), message(0), false, at(0));
    unlogged.marked(id(1), message(1), false, at(0));
    unlogged.settle(at(0));
    assert_eq!(unlogged.marked.len(), 1);
    assert_eq!(unlogged.settle(at(10)).len(), 1);
}

/// Postfix says a copy's queue id when it has logged its headers, and the copy may be gone by then.
#[test]
fn copies_are_told_after_their_log() {
    let mut unlogged = Unlogged::default();
    for number in 0..4 {
        unlogged.cleaned(id(number), b"postfix/copies");
    }
    unlogged.logged(id(0), Some(message(0)), b"postfix/logging");
    unlogged.logged(id(1), Some(message(1)), b"postfix/logging");
    for number in [0, 2] {
        unlogged.left(id(number), b"postfix");
    }
    unlogged.settle(at(0));
    for number in 0..4 {
        unlogged.marked(id(number), message(number), true, at(1));
    }
    unlogged.left(id(1), b"postfix");
    assert_eq!(unlogged.settle(at(2)), []);
    assert_eq!(unlogged.settle(at(12)), [Missing { is_copy: true, ..missing(2, "postfix/copies", true) }]);
    assert_eq!(unlogged.marked.len(), 1, "the last one is queued still");
    // A queue id that is used again is another message.
    unlogged.cleaned(id(2), b"postfix");
    unlogged.marked(id(2), message(12), false, at(20));
    unlogged.settle(at(60));
    assert_eq!(unlogged.settle(at(100)), []);
}

#[test]
fn what_is_queued_refused_or_logged_elsewhere_is_not_missing() {
    let mut unlogged = Unlogged::default();
    for number in 0..5 {
        unlogged.marked(id(number), message(number), false, at(0));
    }
    // 0 stays in the queue. 1 goes through a filter, behind which the headers are logged under another queue id.
    unlogged.left(id(1), b"postfix");
    unlogged.settle(at(1));
    unlogged.logged(id(101), Some(message(1)), b"postfix");
    // 2 is refused by another milter; 3 is queued anew, and logged then; 4 has a reference that no key of ours signed.
    unlogged.refused(id(2));
    unlogged.moved(id(3), id(103));
    unlogged.logged(id(103), None, b"postfix");
    unlogged.left(id(103), b"postfix");
    unlogged.logged(id(4), None, b"postfix");
    unlogged.left(id(4), b"postfix");
    for secs in [2, 20, 3_700] {
        assert_eq!(unlogged.settle(at(secs)), []);
    }
    assert_eq!(unlogged.marked.len(), 1);
    // Queued anew without a logged header, it is missing under the new id.
    unlogged.moved(id(0), id(100));
    unlogged.left(id(0), b"postfix");
    unlogged.left(id(100), b"postfix");
    unlogged.settle(at(3_700));
    let left = unlogged.settle(at(3_710));
    assert_eq!(left.iter().map(|missing| missing.queue_id).collect::<Vec<_>>(), [id(100)]);
}

#[test]
fn a_service_that_logs_references_is_doubted_after_three_within_an_hour() {
    let mut unlogged = Unlogged::default();
    unlogged.logged(id(100), Some(message(100)), b"postfix");
    let mut said = Vec::new();
    for (number, secs) in [(0, 0), (1, 1_000), (2, 4_000), (3, 4_100), (4, 4_200)] {
        unlogged.marked(id(number), message(number), false, at(secs));
        unlogged.left(id(number), b"postfix");
        unlogged.settle(at(secs));
        said.extend(unlogged.settle(at(secs + 10)).into_iter().map(|missing| missing.is_news));
    }
    assert_eq!(said, [false, false, false, true, false]);
}

#[test]
fn lost_lines_are_another_trouble() {
    let mut unlogged = Unlogged::default();
    unlogged.lines_lost(at(0));
    for (number, secs, expected) in [(0, 0, false), (1, 3_600, true)] {
        unlogged.marked(id(number), message(number), false, at(secs));
        unlogged.left(id(number), b"postfix");
        unlogged.settle(at(secs));
        assert_eq!(unlogged.settle(at(secs + 10)), [missing(number, "postfix", expected)]);
    }
}

#[test]
fn memory_is_bounded_in_number_and_time() {
    let mut unlogged = Unlogged::default();
    let most = u32::try_from(MAX_MARKED).unwrap();
    for number in 0..most * 2 {
        unlogged.cleaned(id(number), format!("postfix/{}", number % 1_000).as_bytes());
        unlogged.marked(id(number), message(number), false, at(0));
    }
    assert_eq!((unlogged.marked.len(), unlogged.queue_ids.len()), (MAX_MARKED, MAX_MARKED));
    assert!(unlogged.services.len() <= MAX_SERVICES && unlogged.recent.len() <= MAX_RECENT);
    unlogged.settle(at(86_000));
    assert_eq!(unlogged.marked.len(), MAX_MARKED);
    unlogged.settle(at(90_000));
    assert!(unlogged.marked.is_empty() && unlogged.queue_ids.is_empty());
}
