//! When does a node or a gateway say that it serves? A load balancer, and whoever replaces nodes one by one, goes by that.

#[allow(dead_code, reason = "each test binary uses its own part of this")]
mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cabrank_engine::EngineConfig;
use cabrank_matcher::api::Dispatch;
use cabrank_matcher::clock::DomainClock;
use cabrank_matcher::{Node, NodeConfig, Parts, Remote, RemoteConfig, RemoteParts};
use cabrank_ring::Ring;
use support::{Home, until};

const SHARDS: u16 = 2;

#[test]
fn a_node_is_ready_when_all_it_was_given_is_read_back_and_it_may_answer_for_it() {
    let clock = DomainClock::wall();
    let home = Home::new(SHARDS, clock.clone());
    let seat = home.seat("n0", "127.0.0.1:9");
    let may_answer = seat.may_answer();
    let node = Node::start(
        Parts {
            log: Arc::new(home.clone()),
            owner: Box::new(seat),
            ring: Arc::new(Ring::new(SHARDS).unwrap()),
            clock,
            config: NodeConfig::default(),
            engine: EngineConfig::default(),
        },
        |_| {},
    );
    // Nothing is its own yet, so nothing is missing, lease or not.
    until("ready with nothing", || node.is_ready().then_some(()));
    may_answer.store(false, Ordering::SeqCst);
    assert!(node.is_ready());
    may_answer.store(true, Ordering::SeqCst);

    home.give(0, "n0");
    home.damage(1, true);
    home.give(1, "n0");
    until("not ready while one cannot be read back", || {
        (!node.is_ready()).then_some(())
    });
    home.damage(1, false);
    // It was refused, not forgotten: another grant of it is another try.
    home.give(1, "n0");
    until("ready with both", || node.is_ready().then_some(()));

    may_answer.store(false, Ordering::SeqCst);
    assert!(!node.is_ready(), "without a lease it answers nobody");
    may_answer.store(true, Ordering::SeqCst);
    assert!(node.is_ready());

    node.drain();
    assert!(!node.is_ready(), "who leaves gets nobody new");
    node.stop().unwrap();
}

#[test]
fn a_gateway_is_ready_until_its_log_has_not_answered_for_ten_seconds_and_again_when_it_does() {
    let clock = DomainClock::wall();
    let home = Home::new(SHARDS, clock.clone());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let gateway = Remote::start(
        RemoteParts {
            log: Arc::new(home.clone()),
            ring: Arc::new(Ring::new(SHARDS).unwrap()),
            clock,
            engine: EngineConfig::default(),
            node: NodeConfig::default(),
            config: RemoteConfig {
                owners_every_ms: 20,
                ..RemoteConfig::default()
            },
            tls: None,
            runtime: runtime.handle().clone(),
        },
        |why| panic!("the gateway failed: {why}"),
    );
    until("ready", || gateway.is_ready().then_some(()));
    let told = home.owners_told();
    until("it asks the log", || {
        (home.owners_told() > told).then_some(())
    });
    let silent_from = Instant::now();
    home.tell_owners(false);
    until("not ready", || (!gateway.is_ready()).then_some(()));
    let after = silent_from.elapsed();
    // It may have had its last answer a moment before we looked at the clock.
    assert!(after > Duration::from_millis(9_900), "after {after:?}");
    home.tell_owners(true);
    until("ready again", || gateway.is_ready().then_some(()));
    gateway.drain();
    assert!(!gateway.is_ready(), "who leaves gets nobody new");
    gateway.stop();
}
