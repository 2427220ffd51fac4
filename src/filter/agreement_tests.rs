//! Tests of what is done as long as Postfix has not said what it does.
//!
//! - Layer: edge
//! - Takes: what a Postfix might say.
//! - Gives: proof that only `tempfail`, seen or vouched for, lets answers stream.
//! - On failure: the test fails.
#![allow(clippy::unwrap_used)]

use tokio::sync::{oneshot, watch as channel};

use super::*;

fn said(directory: &str, action: Result<Option<DefaultAction>, Trouble>) -> Said {
    Said { directory: directory.into(), says: action.map(|action| Says { action, ..Says::default() }) }
}

fn takes(action: Option<DefaultAction>, message_size_limit: Option<u64>) -> Said {
    Said { directory: "/a".into(), says: Ok(Says { action, message_size_limit, ..Says::default() }) }
}

fn told(tempfail: bool, trusted: bool) -> Told {
    Told {
        tempfail,
        trusted,
        message_size_limit: None,
        listens: Endpoint::Tcp("127.0.0.1:8893".parse().unwrap()),
    }
}

#[test]
fn only_tempfail_that_was_seen_proves_anything() {
    let tempfail = || said("/a", Ok(Some(DefaultAction::NotAccept)));
    let accept = || said("/b", Ok(Some(DefaultAction::Accept)));
    let unnamed = || said("/c", Ok(None));
    let unasked = || said("/d", Err(Trouble::Late));
    for (all, proven, trusted) in [
        (vec![tempfail()], true, true),
        (vec![unnamed(), tempfail()], true, true),
        (vec![], false, true),
        (vec![unnamed()], false, true),
        (vec![tempfail(), unasked()], false, true),
        (vec![unasked(), tempfail(), accept()], false, false),
    ] {
        let verdict = Verdict::of(&all);
        for (vouched, expected) in [(false, proven), (true, trusted)] {
            let told = told(true, vouched);
            assert_eq!(told.is_proven(&verdict), expected, "{all:?}, vouched for: {vouched}");
            assert_eq!(told.advice(&verdict).is_none(), expected, "{all:?}, vouched for: {vouched}");
        }
        assert!(!told(false, true).is_proven(&verdict), "we were told accept");
    }
}

#[test]
fn what_is_amiss_names_file_key_and_remedy() {
    let accept = Verdict::Accept("/etc/postfix".into());
    let advice = told(true, false).advice(&accept).unwrap();
    for part in
        ["/etc/postfix/main.cf", "milter.default_action", "default_action=tempfail", "inet:127.0.0.1:8893"]
    {
        assert!(advice.contains(part), "{part}: {advice}");
    }
    for verdict in [
        Verdict::Unasked("/etc/postfix".into(), Trouble::MainCf(std::io::ErrorKind::NotFound)),
        Verdict::Unnamed(vec!["/etc/postfix".into()]),
        Verdict::Unnamed(Vec::new()),
    ] {
        let advice = told(true, false).advice(&verdict).unwrap();
        for part in
            ["main.cf", "milter.postfix_config_dirs", "milter.trust_default_action", "inet:127.0.0.1:8893"]
        {
            assert!(advice.contains(part), "{part}: {advice}");
        }
    }
    assert_eq!(told(false, false).advice(&accept), None);
    assert!(told(false, false).advice(&Verdict::Tempfail).is_some(), "without need");
}

#[test]
fn the_smallest_limit_of_those_that_name_us_counts() {
    let ours = |limit| takes(Some(DefaultAction::NotAccept), limit);
    let (other, silent) = (takes(None, Some(7)), said("/b", Err(Trouble::Late)));
    for (all, told_bytes, expected) in [
        (vec![ours(Some(500)), ours(Some(400)), other.clone()], None, 400),
        (vec![ours(None), ours(Some(400))], None, 400),
        (vec![ours(None)], None, NO_LIMIT),
        (vec![ours(Some(500))], Some(300), 300),
        (vec![ours(Some(500))], Some(0), 500),
        (vec![ours(None), silent.clone()], None, USUAL_SIZE_LIMIT),
        (vec![other], None, USUAL_SIZE_LIMIT),
        (vec![], Some(30_000_000), 30_000_000),
        (vec![silent], Some(0), NO_LIMIT),
    ] {
        let told = Told { message_size_limit: told_bytes, ..told(true, false) };
        assert_eq!(told.message_size_limit(&all), expected, "{all:?}, {told_bytes:?}");
    }
}

/// Asked again by itself, and at a reload; what is not known any more is not believed.
#[tokio::test(start_paused = true)]
async fn postfix_is_asked_again() {
    let (reload, reloads) = channel::channel(0);
    let life = Lifecycle { reload: reloads, ..Lifecycle::detached() };
    let stop = life.stop.clone();
    let agreement = Arc::new(Agreement::new(told(true, false)));
    let tempfail = takes(Some(DefaultAction::NotAccept), Some(5_000));
    let says = Arc::new(Mutex::new(vec![tempfail.clone()]));
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (first, answered) = oneshot::channel();
    let task = {
        let (says, asked) = (Arc::clone(&says), Arc::clone(&asked));
        let ask = move || {
            asked.fetch_add(1, Ordering::Relaxed);
            says.lock().unwrap().clone()
        };
        tokio::spawn(watch(Arc::clone(&agreement), ask, first, life))
    };
    assert!(!agreement.is_proven(), "before anybody was asked");
    assert_eq!(agreement.message_size_limit(), Some(USUAL_SIZE_LIMIT));
    answered.await.unwrap();
    assert!(agreement.is_proven());
    assert_eq!(agreement.message_size_limit(), Some(5_000));

    *says.lock().unwrap() = vec![takes(Some(DefaultAction::Accept), None)];
    tokio::time::sleep(EVERY - Duration::from_secs(1)).await;
    assert!(agreement.is_proven());
    let until = |count| {
        let asked = Arc::clone(&asked);
        async move {
            while asked.load(Ordering::Relaxed) < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    until(2).await;
    assert!(!agreement.is_proven());

    assert_eq!(agreement.message_size_limit(), None);
    *says.lock().unwrap() = vec![tempfail];
    reload.send_modify(|count| *count += 1);
    until(3).await;
    assert!(agreement.is_proven());
    *says.lock().unwrap() = vec![said("/etc/postfix", Err(Trouble::Late))];
    reload.send_modify(|count| *count += 1);
    until(4).await;
    assert!(!agreement.is_proven());
    stop.cancel();
    task.await.unwrap();
}
