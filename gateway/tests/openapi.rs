//! Is `docs/openapi.json` what the code says, does it name every call there is, and does each answer?

mod support;

use std::collections::BTreeSet;

use reqwest::Method;
use support::{City, OPS};

const DOCUMENT: &str = include_str!("../../docs/openapi.json");
const PROTOCOL: &str = include_str!("../../docs/protocol.md");

/// `CABRANK_WRITE_OPENAPI=1 cargo test -p cabrank-gateway --test openapi` writes it anew.
#[test]
fn the_file_is_what_the_code_says() {
    let mut made = serde_json::to_string_pretty(&cabrank_gateway::openapi()).unwrap();
    made.push('\n');
    if std::env::var_os("CABRANK_WRITE_OPENAPI").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
        std::fs::write(path, &made).unwrap();
        return;
    }
    assert!(
        made == DOCUMENT,
        "docs/openapi.json is not what the code says: write it anew with CABRANK_WRITE_OPENAPI=1"
    );
}

/// Method and path of every call, names of path parameters left out.
fn described() -> BTreeSet<(String, String)> {
    let api = cabrank_gateway::openapi();
    let paths = api["paths"].as_object().unwrap();
    let calls = paths.iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap().keys();
        methods.map(|method| (method.to_uppercase(), nameless(path)))
    });
    calls.collect()
}

fn nameless(path: &str) -> String {
    let mut parts = path
        .split('/')
        .map(|part| if part.starts_with('{') { "{}" } else { part });
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |path, part| format!("{path}/{part}"))
}

#[test]
fn every_call_of_the_protocols_table_is_described_and_no_other() {
    let (_, section) = PROTOCOL.split_once("## Sessions and tokens").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut table = BTreeSet::new();
    for line in section.lines().filter(|line| line.starts_with("| `")) {
        let cell = line.trim_matches('|').split('|').next().unwrap();
        for called in cell.split('`').skip(1).step_by(2) {
            let (method, path) = called.split_once(' ').unwrap_or(("GET", called));
            table.insert((method.to_owned(), nameless(path)));
        }
    }
    // OpenAPI has no words for sockets, and what a page is made of concerns nobody else.
    table.retain(|(_, path)| {
        !["/v1/driver", "/v1/rider", "/map.js", "/map.css", "/api.js"].contains(&path.as_str())
    });
    assert_eq!(described(), table);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_that_is_described_is_there() {
    let city = City::start().await;
    for (method, path) in described() {
        let path = path.replace("{}", "0-0-1");
        let method: Method = method.parse().unwrap();
        let answer = city.call(method.clone(), &path, OPS).send().await.unwrap();
        let status = answer.status();
        assert_ne!(status, 405, "{method} {path}");
        if status == 404 {
            let text = answer.text().await.unwrap();
            assert!(!text.contains("unknown_path"), "{method} {path}: {text}");
        }
    }
    city.end().await;
}
