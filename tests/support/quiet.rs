//! Does the log of a whole run, at INFO, name a person, a ride, a place or a token of the synthetic city?

/// Words of a line, as ids, numbers and tokens are written.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
    line.split(move |c: char| !is_part(c))
}

/// What of the city a word names, if anything.
fn named(word: &str) -> Option<&'static str> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let numbers: Vec<&str> = word.split('-').collect();
    // The city's people are driver-17 and rider-9a-0; its places lie at longitudes around -122.4.
    let is_person = |kind: &str| {
        let id = word.strip_prefix(kind).unwrap_or_default();
        id.starts_with(|c: char| c.is_ascii_digit())
    };
    if is_person("driver-") {
        return Some("a driver");
    }
    if word.starts_with("rider-") {
        return Some("a rider");
    }
    // Shard, shard, number; a date begins with four digits.
    if numbers.len() == 3 && numbers.iter().all(|part| is_number(part)) && numbers[0].len() < 4 {
        return Some("a ride");
    }
    if word.starts_with("-122.") || word.starts_with("122.") || word == "lat" || word == "lon" {
        return Some("a place");
    }
    // Every JWT begins so: it is `{"` in base64.
    word.starts_with("eyJ").then_some("a token")
}

/// Fails with the first line that names somebody or something.
#[track_caller]
pub fn names_nobody(log: &str) {
    for line in log.lines() {
        if let Some(what) = words(line).find_map(named) {
            panic!("{what} is named in the log: {line}");
        }
    }
}

#[test]
fn a_line_that_names_somebody_is_found() {
    for (line, what) in [
        ("INFO online driver=driver-17", "a driver"),
        ("WARN why=\"no such person rider-9a-0\"", "a rider"),
        ("INFO ride/3-5-1042 was lost", "a ride"),
        ("INFO at=(37.77, -122.42)", "a place"),
        ("INFO {\"lat\":1}", "a place"),
        ("ERROR token eyJhbGciOi.x.y", "a token"),
    ] {
        assert_eq!(words(line).find_map(named), Some(what), "{line}");
    }
    let harmless = "2026-11-22T14:00:00.000Z INFO node-1 took=37.77ms topic=driver-locations shards=[0, 3] 127.0.0.1:8080";
    names_nobody(harmless);
}
