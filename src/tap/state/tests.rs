#![allow(clippy::unwrap_used)]

use super::*;
use crate::delivery::EnhancedCode;
use crate::event::BounceClass;
use crate::identity::Pseudonym;
use crate::tap::waiting::Waiting;

fn id(text: &str) -> QueueId {
    QueueId::parse(text.as_bytes()).unwrap()
}

#[test]
fn the_oldest_are_forgotten_over_the_limit() {
    let mut state = State::new(100);
    for number in 0..1_000 {
        state.begin(b"mx", b"postfix", id(&format!("A{number:06}")), None);
        assert!(state.len() <= 100);
    }
    assert_eq!(state.evicted + state.len() as u64, 1_000);
    assert!(state.key(b"mx", b"postfix", id("A000999")).and_then(|key| state.message(key)).is_some());
}

#[test]
fn any_number_of_hosts_comes_and_goes() {
    let mut state = State::new(100);
    for number in 0..100_000_u64 {
        let host = format!("host{number}");
        let key = state.begin(host.as_bytes(), b"postfix", id(&format!("A{number:06}")), None);
        state.removed(key, Timestamp::from_secs(number * 61));
    }
    assert_eq!((state.evicted, state.len()), (0, 1));
}

#[test]
fn removed_messages_are_kept_a_minute_and_a_used_again_id_is_not_theirs() {
    let mut state = State::new(100);
    let at = Timestamp::from_secs;
    let a = state.begin(b"mx", b"postfix", id("AAAAAA"), None);
    let b = state.begin(b"mx", b"postfix", id("BBBBBB"), None);
    state.removed(a, at(100));
    state.removed(b, at(150));
    assert_eq!(state.len(), 2);
    state.removed(b, at(161));
    assert_eq!(state.len(), 1, "the first one's minute is over");
    let again = state.begin(b"mx", b"postfix", id("BBBBBB"), None);
    state.message(again).unwrap().id = Some(MessageId::from([1; 10]));
    state.removed(a, at(1_000));
    assert_eq!(
        state.message(again).unwrap().id,
        Some(MessageId::from([1; 10])),
        "a new message of the same id stays"
    );
    assert!(state.message(b).is_none());
}

#[test]
fn one_queue_id_in_two_instances_is_two_messages() {
    let mut state = State::new(100);
    let (first, second) = (MessageId::from([1; 10]), MessageId::from([2; 10]));
    for (host, name, message) in [(b"mx", &b"postfix"[..], first), (b"mx", b"postfix-out/relay", second)] {
        let key = state.begin(host, name, id("AAAAAA"), Some(message));
        state.message(key).unwrap().id = Some(message);
    }
    let mut of = |name: &[u8]| {
        let key = state.key(b"mx", name, id("AAAAAA")).unwrap();
        state.message(key).unwrap().id
    };
    assert_eq!(of(b"postfix/relay"), Some(first));
    assert_eq!(of(b"postfix-out"), Some(second));
    assert_eq!(state.key(b"gate", b"postfix", id("AAAAAA")), None);
    let key = state.key(b"mx", b"postfix", id("AAAAAA")).unwrap();
    state.forget(key);
    assert_eq!((state.len(), state.own_key(b"mx", b"postfix", id("AAAAAA"))), (1, None));
    assert!(state.key(b"mx", b"reinject", id("AAAAAA")).is_some(), "the only one on this host");
}

#[test]
fn what_was_saved_comes_back() {
    let mut state = State::new(10);
    let domain = state.domain("example.org");
    let waiting = Waiting {
        attempts: 3,
        class: BounceClass::Soft,
        dsn: EnhancedCode::parse(b"4.2.1"),
        smtp_code: Some(450),
        reason: Some("the mailbox takes no mail now".into()),
        provider: Some("gmail".into()),
    };
    let campaign = state.campaign(&"spring".parse().unwrap());
    let key = state.begin(b"m\xffx", b"postfix/relay", id("AAAAAA"), None);
    let message = state.message(key).unwrap();
    message.id = Some(MessageId::from([7; 10]));
    message.campaign = Some(campaign);
    message.sender_domain = Some(domain);
    message.waiting.insert(Pseudonym::from([2; 12]), Pseudonym::from([1; 12]), waiting);
    state.begin(b"gate", b"postfix", id("AAAAAA"), None);
    let saved = state.save();
    let json = serde_json::to_string(&saved).unwrap();
    let again = State::restore(serde_json::from_str(&json).unwrap(), 10);
    assert_eq!(again.messages, state.messages);
    assert_eq!(again.save(), saved);
}
