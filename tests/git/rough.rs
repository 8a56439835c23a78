//! The rough side of the road: connections that break, and workspaces that many have worked on.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use runledger::git::{self, Access};
use runledger::names::reasons;

use crate::lab::*;

/// Passes connections on to a server, each cut off once the server has sent so many bytes.
struct Cutter {
    address: SocketAddr,
    most: Arc<AtomicUsize>,
}

impl Cutter {
    fn before(server: SocketAddr, most: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let most = Arc::new(AtomicUsize::new(most));
        let limit = most.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(server).unwrap();
                let most = limit.load(Ordering::SeqCst);
                let there = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || pass(there.0, there.1, usize::MAX));
                std::thread::spawn(move || pass(server, client, most));
            }
        });
        Self { address, most }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, most: usize) {
    let (mut left, mut buffer) = (most, [0; 4096]);
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let n = n.min(left);
        left -= n;
        if to.write_all(&buffer[..n]).is_err() || left == 0 {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

#[test]
fn a_host_that_breaks_off_in_mid_transfer_is_worth_trying_again_and_then_gives_all() {
    let lab = Lab::new();
    let clone = lab.project();
    let mut state = 88_172_645_463_325_252_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(400_000)
    .collect();
    write(&clone, "noise", noise);
    commit(&clone, "Noise");
    git(&clone, &["push", "-q", "origin", "HEAD:trunk"]);
    let server = lab.plain_server();
    let cutter = Cutter::before(server.address, 100_000);
    let url = format!("http://{}/project.git", cutter.address)
        .parse()
        .unwrap();
    for _ in 0..2 {
        let error = within(60, || lab.try_checkout(&url, None, &Access::default())).unwrap_err();
        assert_eq!(error.reason(), reasons::REPOSITORY_UNREACHABLE, "{error}");
        assert!(error.is_retryable(), "{error}");
    }
    cutter.most.store(usize::MAX, Ordering::SeqCst);
    let out = lab.checkout(&url);
    let tip = git(&clone, &["rev-parse", "HEAD"]);
    assert_eq!(out.initial_commit, Some(tip));
    git(lab.work(), &["fsck", "--strict"]);
    assert_eq!(git(lab.work(), &["status", "--porcelain"]), "");
}

#[test]
fn ten_runs_in_turn_each_find_the_formers_commits_and_push_on_top_of_them() {
    let lab = Lab::new();
    lab.project();
    let url = lab.plain_server().url("project.git");
    let bare = lab.served().join("project.git");
    let mut last = lab.checkout(&url).initial_commit;
    for n in 1..=10 {
        let out = lab.checkout(&url);
        assert_eq!(out.initial_commit, last, "run {n}");
        write(lab.work(), "log", format!("{n}\n"));
        let own = commit(lab.work(), &format!("Run {n}"));
        // As runs end that are killed: one leaves a lock, one a half-written pack, one half an object.
        match n {
            3 => write(lab.work(), ".git/index.lock", ""),
            5 => write(lab.work(), ".git/objects/pack/tmp_pack_x", "PACK"),
            7 => write(lab.work(), ".git/objects/ab/cdef", "half"),
            _ => {}
        }
        let head = git::take_over(&lab.place).unwrap();
        assert_eq!(head.commit.as_ref(), Some(&own), "run {n}");
        let changes = git::changes(&lab.place, &url, last.as_deref(), &head).unwrap();
        assert_eq!((changes.commits, changes.files), (1, 1), "run {n}");
        // A push that was killed after the remote had taken it is made again.
        for _ in 0..=usize::from(n == 4) {
            git::push(&lab.place, &url, &own, "work", &Access::default()).unwrap();
        }
        last = Some(own);
    }
    assert_eq!(git(&bare, &["rev-list", "--count", "work"]), "12");
}
