//! Does the door hold? Tokens and keys, TLS, limits against abuse, and what is written into logs: `docs/security.md` says which
//! test shows what. One binary, because each costs CI a link.

#[path = "../support/mod.rs"]
mod support;

mod abuse;
mod neighbour;
mod quiet;
mod tls;
mod tokens;

/// Each test that `docs/security.md` names by `file::test_...` is there.
#[test]
fn the_threat_model_names_tests_that_exist() {
    let text = include_str!("../../../docs/security.md");
    let mut found = 0;
    for name in text.split('`').skip(1).step_by(2) {
        let Some((file, test)) = name.split_once("::") else {
            continue;
        };
        let crate_dir = concat!(env!("CARGO_MANIFEST_DIR"));
        let places = ["tests", "src"].map(|dir| format!("{crate_dir}/{dir}/{file}.rs"));
        let sources = places
            .iter()
            .filter_map(|place| std::fs::read_to_string(place).ok());
        let beginning = format!("fn {}", test.trim_end_matches("..."));
        let source: String = sources.collect();
        assert!(
            source.contains(&beginning),
            "docs/security.md names {name}, which is not there"
        );
        found += 1;
    }
    assert!(found > 20, "the document was not read whole");
}
