//! What the process's metrics are called, in which units, and in which buckets.
//!
//! Names follow Prometheus: base units, `_total` for what only grows, `_seconds` for times. Times are classic
//! histograms, because buckets of several processes can be added and quantiles cannot. Labels take their values from
//! closed lists (kinds, outcomes, reasons) or are numbers of shards: a process has at most 1,000 series,
//! buckets included, and three more for each shard it has had, however many people it serves (`tests/metrics.rs`).
//! Not here: who records them. Each `metrics::` call stands where the thing happens.

use std::sync::OnceLock;
use std::time::Duration;

use cabrank_matcher::versions;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Upper ends in seconds. Dense where the promises are: 2 to 250 ms from request to offer, 1 to 5 s for a pause.
const SECONDS: [f64; 16] = [
    0.000_25, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0,
    30.0,
];
/// Upper ends of what is counted in things.
const EVENTS: [f64; 9] = [
    1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0,
];

/// How often samples of histograms are taken in, so that they do not gather where nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// Name and meaning of every metric. One that is missing here fails `tests/metrics.rs`.
const HELP: [(&str, &str); 69] = [
    (
        "cabrank_build_info",
        "1; the labels say which version runs, and which wire and state versions it speaks.",
    ),
    (
        "cabrank_cluster_certificate_until_timestamp_seconds",
        "Until when gateways and nodes believe this process's certificate, in seconds since 1970; 0: they do not.",
    ),
    (
        "cabrank_cluster_handshakes_total",
        "TLS handshakes between gateways and nodes by side and result.",
    ),
    (
        "cabrank_command_ack_seconds",
        "From a command's arrival until its outcome is durable and known here.",
    ),
    (
        "cabrank_commands_total",
        "Commands of clients by type and outcome.",
    ),
    ("cabrank_commit_events", "Events in one transaction."),
    (
        "cabrank_commit_seconds",
        "How long the log took to make a transaction durable.",
    ),
    (
        "cabrank_commits_failed_total",
        "Transactions that failed or were aborted; the node reads its memory back.",
    ),
    ("cabrank_drivers_known", "Drivers this node knows."),
    (
        "cabrank_drivers_max",
        "Drivers this node's index has room for (`node.drivers_max`).",
    ),
    ("cabrank_events_total", "Committed events by type."),
    (
        "cabrank_follower_behind_seconds",
        "How long ago the gateway had last shown everything in the log.",
    ),
    (
        "cabrank_follower_restarts_total",
        "Times following the log began anew after a failure.",
    ),
    (
        "cabrank_http_problems_total",
        "Refused calls by the problem's name.",
    ),
    (
        "cabrank_index_full_total",
        "Drivers for whom the index had no room.",
    ),
    (
        "cabrank_forecasts_asked_total",
        "Questions to the forecast service by result.",
    ),
    (
        "cabrank_hint_looks_total",
        "How often it was looked which idle drivers might go elsewhere.",
    ),
    (
        "cabrank_hints_total",
        "Idle drivers who were told where more rides are expected.",
    ),
    (
        "cabrank_jwks_fetches_total",
        "Fetches of the provider's keys by result.",
    ),
    (
        "cabrank_lease_held",
        "1 while the node's lease holds: only then it answers for its shards.",
    ),
    (
        "cabrank_limit_refusals_total",
        "What was refused by a limit, by the limit.",
    ),
    (
        "cabrank_locations_lost_total",
        "Accepted positions that could not be published.",
    ),
    (
        "cabrank_misunderstood_total",
        "Messages of sockets that were not understood.",
    ),
    (
        "cabrank_node_pings_total",
        "Pings that came from gateways, by result.",
    ),
    (
        "cabrank_offer_seconds",
        "From a rider's request at this gateway until its first offer is durable and on the way to a phone.",
    ),
    ("cabrank_open_rides", "Rides that are open on this node."),
    (
        "cabrank_outcomes_waiting",
        "Commands that wait for their outcome at this gateway.",
    ),
    (
        "cabrank_outcomes_waiting_max",
        "The bound of cabrank_outcomes_waiting (`limits.waiting_outcomes_max`).",
    ),
    (
        "cabrank_partner_pings_unreadable_total",
        "Partners' positions that could not be read.",
    ),
    (
        "cabrank_releases_apart_total",
        "Calls between gateways and nodes refused because one does not speak the other's wire version; counted at both.",
    ),
    (
        "cabrank_ping_streams_ended_total",
        "Streams of pings to nodes that ended and are opened again.",
    ),
    (
        "cabrank_pings_replaced_total",
        "Pings that a newer one replaced while a node was slow.",
    ),
    (
        "cabrank_pings_sent_total",
        "Pings that reached the gateway: accepted, refused and replaced together.",
    ),
    (
        "cabrank_pings_total",
        "Pings by result and, if refused, reason.",
    ),
    (
        "cabrank_pings_unrouted_total",
        "Pings for which no node was known.",
    ),
    (
        "cabrank_requests_waiting",
        "New rides that wait for their outcome at this gateway.",
    ),
    (
        "cabrank_requests_waiting_max",
        "The bound of cabrank_requests_waiting (`limits.waiting_requests_max`).",
    ),
    (
        "cabrank_new_rides_per_second_max",
        "New rides a second that are let in; +Inf while the engine keeps up (`limits.answers_late_ms`).",
    ),
    (
        "cabrank_quotes_checked_total",
        "Quotes compared with what came true, by whether it lay within the span and what it was based on.",
    ),
    (
        "cabrank_queue_calls_total",
        "Rides at airports that a round gave to the driver whose turn it was.",
    ),
    (
        "cabrank_queued_drivers",
        "Drivers this node knows who wait at airports.",
    ),
    (
        "cabrank_rides_held_back_total",
        "Rides a round let wait for rides that want the same cars.",
    ),
    (
        "cabrank_round_put_off_seconds",
        "How long a round was put off, domain time.",
    ),
    ("cabrank_round_seconds", "How long a round took to solve."),
    (
        "cabrank_rounds_exhausted_total",
        "Rounds that ended at their bound of steps, with the best answer so far.",
    ),
    ("cabrank_rounds_total", "Rounds that were solved."),
    (
        "cabrank_search_seconds",
        "How long a search for cars near a place took in the index.",
    ),
    (
        "cabrank_shard_lag_commands",
        "Commands of the shard that are not consumed yet, transaction marks included; 0 for a shard that is elsewhere.",
    ),
    (
        "cabrank_shard_served",
        "1 if this node serves the shard, 0 if it did before.",
    ),
    (
        "cabrank_shard_waiting_rides",
        "Rides of the shard that wait for a driver.",
    ),
    (
        "cabrank_rides_elsewhere",
        "Rides of shards at other nodes that this node's rounds look at, too.",
    ),
    ("cabrank_shards", "Shards of the city."),
    (
        "cabrank_shards_refused",
        "Shards of this node whose log makes no sense: they are not served.",
    ),
    (
        "cabrank_socket_panics_total",
        "Sockets cut because their handler panicked.",
    ),
    (
        "cabrank_sockets_closed_total",
        "Sockets closed by role and cause.",
    ),
    (
        "cabrank_sockets_max",
        "Sockets and streams this gateway has room for.",
    ),
    ("cabrank_sockets_open", "Sockets open by role."),
    (
        "cabrank_sockets_used",
        "Places of cabrank_sockets_max that are taken.",
    ),
    (
        "cabrank_stale_answers_total",
        "Answers of nodes thrown away because a newer owner had answered.",
    ),
    (
        "cabrank_takeover_seconds",
        "From gaining a shard until it is served; its count is the number of takeovers.",
    ),
    ("cabrank_tls_handshakes_total", "TLS handshakes by result."),
    (
        "cabrank_travel_paused",
        "1 while the road network is left alone after failures.",
    ),
    (
        "cabrank_travel_requests_total",
        "Questions to the road network by outcome.",
    ),
    (
        "cabrank_travel_times_total",
        "Travel times used, by where they came from.",
    ),
    (
        "cabrank_waiting_rides",
        "Rides of this node that wait for a driver.",
    ),
    (
        "cabrank_wakes_lost_total",
        "Cars that came free while too many others did: all rides were looked at instead.",
    ),
    (
        "cabrank_warmed_positions_total",
        "Positions read from the log after a takeover.",
    ),
    ("cabrank_zones", "Zones in force by kind."),
    (
        "cabrank_zones_refused_total",
        "Files of zones that were refused; those in force before stay.",
    ),
];

/// Counters without labels that alerts look at: shown as 0 from the start, because a rate needs a value before the first
/// failure.
const AT_ZERO: [&str; 11] = [
    "cabrank_commits_failed_total",
    "cabrank_follower_restarts_total",
    "cabrank_index_full_total",
    "cabrank_locations_lost_total",
    "cabrank_releases_apart_total",
    "cabrank_pings_replaced_total",
    "cabrank_pings_unrouted_total",
    "cabrank_rounds_exhausted_total",
    "cabrank_socket_panics_total",
    "cabrank_stale_answers_total",
    "cabrank_wakes_lost_total",
];

/// The process's metrics, whoever records them. The recorder is installed once, by the first gateway; if the program
/// installed another one before, ours stays empty and the program serves its own.
pub(crate) fn recorder() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let events = Matcher::Full("cabrank_commit_events".into());
        let recorder = PrometheusBuilder::new()
            .set_buckets(&SECONDS)
            .and_then(|builder| builder.set_buckets_for_metric(events, &EVENTS))
            .expect("the buckets are not empty")
            .build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("another metrics recorder is installed: /metrics stays empty");
        }
        describe();
        keep_up(handle.clone());
        handle
    })
}

/// Everything, as `/metrics` shows it.
pub(crate) fn render() -> String {
    let handle = recorder();
    metrics_process::Collector::default().collect();
    // Histograms gather samples until they are taken in.
    handle.run_upkeep();
    handle.render()
}

fn describe() {
    for (name, help) in HELP {
        // The kind is the recorder's own; a description is kept by name.
        if name.ends_with("_total") {
            metrics::describe_counter!(name, help);
        } else if name.ends_with("_seconds") && name != "cabrank_follower_behind_seconds" {
            metrics::describe_histogram!(name, help);
        } else {
            metrics::describe_gauge!(name, help);
        }
    }
    for name in AT_ZERO {
        metrics::counter!(name).increment(0);
    }
    metrics_process::Collector::default().describe();
    metrics::gauge!("cabrank_build_info", "version" => env!("CARGO_PKG_VERSION"),
        "wire" => versions::WIRE_VERSION.to_string(), "state" => versions::STATE_VERSION.to_string())
    .set(1.0);
}

fn keep_up(handle: PrometheusHandle) {
    let spawned = std::thread::Builder::new()
        .name("cabrank-meters".into())
        .spawn(move || {
            loop {
                std::thread::park_timeout(UPKEEP);
                handle.run_upkeep();
            }
        });
    if let Err(why) = spawned {
        tracing::warn!(%why, "no thread for metrics: samples gather until somebody scrapes");
    }
}
