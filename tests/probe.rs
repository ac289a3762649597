//! `cabrank probe` as a user runs it, small: over a real broker every command comes back as an event.

use std::process::{Command, Stdio};

use cabrank_eventlog::kafka::testing::broker;
use serde_json::Value;

#[test]
fn a_probe_gets_an_answer_to_every_command_on_one_node_and_across_two() {
    let Some(broker) = broker() else { return };
    for nodes in ["1", "2"] {
        let output = Command::new(env!("CARGO_BIN_EXE_cabrank"))
            .args(["probe", "--brokers", broker.bootstrap()])
            .args(["--shards", "3", "--replication", "1", "--nodes", nodes])
            .args(["--rate", "20", "--warmup", "1", "--seconds", "2", "--json"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}\n{said}");
        let report: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(report["lost"], 0, "{text}");
        let (offers, reports) = (&report["request_to_offer_ms"], &report["report_ms"]);
        let count = |of: &Value| of["count"].as_u64().unwrap();
        assert!(count(offers) > 10 && count(reports) > 50, "{text}");
        // A transaction takes longer than nothing, and an answer longer than the transaction that brings it.
        let transaction = report["transaction_ms"]["p50"].as_f64().unwrap();
        assert!(transaction > 0.1, "{text}");
        assert!(offers["p50"].as_f64().unwrap() > transaction, "{text}");
    }
}
