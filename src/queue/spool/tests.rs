//! Tests of the spool: a model, other processes, kills, limits, a full disk.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use super::*;
use crate::queue::testing::event;

fn settings(directory: &Path) -> Settings {
    Settings { directory: directory.to_owned(), ..Settings::default() }
}

const LEASE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn what_was_published_is_claimed_in_order_and_gone_when_done() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(settings(directory.path())).unwrap();
    spool.publish((0..5).map(event).collect()).await.unwrap();
    let now = clock::now();
    let first = spool.claim(3, LEASE, now).await.unwrap();
    assert_eq!(
        first.iter().map(|claimed| claimed.event.clone()).collect::<Vec<_>>(),
        (0..3).map(event).collect::<Vec<_>>()
    );
    assert!(first.iter().all(|claimed| claimed.attempts == 1));
    let rest = spool.claim(10, LEASE, now).await.unwrap();
    assert_eq!(rest.len(), 2, "what another one holds is not claimed again");
    spool.done(&first.iter().map(|claimed| claimed.seq).collect::<Vec<_>>()).await.unwrap();
    spool.publish((0..5).map(event).collect()).await.unwrap();
    assert!(spool.claim(10, LEASE, now).await.unwrap().is_empty(), "what was sent is not taken again");
    let status = Admin::open(directory.path()).unwrap().status().unwrap();
    assert_eq!((status.pending, status.claimed, status.seen), (0, 2, 5));
}
