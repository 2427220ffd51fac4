//! The spool on a disk without a byte of room, and with a damaged file, as an administrator finds it. Real processes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::fs;
use std::path::Path;
use std::process::Command;

use harness::installed::installed;
use harness::{mailtap, run, said, wait_for};
use mailtap::event::{Data, Event, EventId, Kind};
use mailtap::identity::MessageId;
use mailtap::queue::Publish;
use mailtap::queue::spool::{self, Admin, Outcome, Spool};
use mailtap::service::clock;

fn event(number: u64) -> Event {
    Event {
        id: EventId::of("disk").part(number.to_be_bytes()).finish(),
        source: "mailtap/test/host".into(),
        kind: Kind::ALL[0],
        time: clock::now(),
        message: MessageId::new(clock::now(), 7),
        data: Data::default(),
    }
}

/// A spool that holds these events; the first one is a dead letter.
async fn fill(directory: &Path, numbers: std::ops::Range<u64>) {
    fs::create_dir_all(directory).unwrap();
    let settings = spool::Settings { directory: directory.to_owned(), ..spool::Settings::default() };
    let spool = Spool::open(settings).unwrap();
    spool.publish(numbers.map(event).collect()).await.unwrap();
    let claimed = spool.claim(1, std::time::Duration::from_secs(60), clock::now()).await.unwrap();
    spool.settle(vec![(claimed[0].seq, Outcome::Dead { reason: "odd".into() })]).await.unwrap();
    drop(spool);
    let log = directory.join("spool.db-wal");
    wait_for("the spool to be closed", std::time::Duration::from_secs(30), || !log.exists());
}

/// Somebody has it open, then nobody: each time what it holds can be looked at, and the disk is as full as before.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_hides_nothing() {
    const SCRIPT: &str = r#"
        set -eu
        mailtap=$1 dir=$2
        mkdir "$dir/disk"
        mount -t tmpfs -o size=2m none "$dir/disk"
        cp -a "$dir/state/." "$dir/disk/"
        mount --bind "$dir/disk" "$dir/state"
        look() {
            for what in "spool status" "spool peek" "dead list"; do
                "$mailtap" --config "$dir/mailtap.toml" $what || echo "FAILED $what"
            done
        }
        "$mailtap" --config "$dir/mailtap.toml" events tail --from spool &
        until [ -e "$dir/state/spool/spool.db-shm" ]; do sleep 0.05; done
        cat /dev/zero >"$dir/state/filler" 2>/dev/null || true
        look
        kill $!
        wait $! || true
        cat /dev/zero >>"$dir/state/filler" 2>/dev/null || true
        ls "$dir/state/spool"
        look
    "#;
    let site = installed(&[]).dir;
    fill(&site.path().join("state/spool"), 0..3).await;
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--mount", "bash", "-c", SCRIPT, "bash", env!("CARGO_BIN_EXE_mailtap")]).arg(site.path());
    let output = command.output().unwrap();
    let text = said(&output);
    assert!(output.status.success() && !text.contains("FAILED"), "{text}");
    for (word, times) in [("waiting    2", 2), ("dead       1", 2), (" odd", 2)] {
        assert_eq!(text.matches(word).count(), times, "{word}: {text}");
    }
    assert!(!text.contains("spool.db-shm"), "nobody had it open: {text}");
}

/// The remedy that is said for a damaged file brings back what the files have in which events come in.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_spool_is_made_anew_and_keeps_what_came_in() {
    let site = installed(&[]).dir;
    let directory = site.path().join("state/spool");
    fill(&directory, 0..5).await;
    fs::write(directory.join("spool.db"), [b'x'; 8_192]).unwrap();
    let look = |what: &[&str]| {
        let mut command = mailtap();
        command.arg("--config").arg(site.path().join("mailtap.toml")).args(what).output().unwrap()
    };
    let damaged = look(&["spool", "status"]);
    assert_eq!(damaged.status.code(), Some(69));
    let path = directory.join("spool.db").display().to_string();
    let remedy = format!("stop mailtap, move {path}, {path}-wal and {path}-shm away");
    assert!(said(&damaged).contains(&remedy), "{}", said(&damaged));
    run(Command::new("bash")
        .args(["-c", "mv \"$1\"/spool.db* \"$2\"", "bash"])
        .arg(&directory)
        .arg(site.path()));
    let settings = spool::Settings { directory: directory.clone(), ..spool::Settings::default() };
    drop(Spool::open(settings).unwrap());
    let status = Admin::open(&directory).unwrap().status().unwrap();
    assert_eq!((status.pending, status.dead), (5, 0), "events come again, dead letters as events");
    assert!(look(&["spool", "peek"]).status.success());
}
