//! The log for a person to read: one line an event.

use serde_json::Value;

/// Which events are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TailFilter {
    /// Only events that name this ride.
    pub ride: Option<String>,
    /// Only events that name this driver.
    pub driver: Option<String>,
}

/// The event as one line, or `None` if it is not wanted. What is no event is shown as it stands.
pub fn line(json: &[u8], filter: &TailFilter) -> Option<String> {
    let Ok(event) = serde_json::from_slice::<Value>(json) else {
        let all = filter.ride.is_none() && filter.driver.is_none();
        return all.then(|| format!("unreadable: {}", String::from_utf8_lossy(json)));
    };
    let data = &event["data"];
    let names = |wanted: &Option<String>, fields: &[&str]| {
        wanted
            .as_ref()
            .is_none_or(|wanted| fields.iter().any(|field| data[*field] == **wanted))
    };
    if !names(&filter.ride, &["ride", "asked_ride"])
        || !names(&filter.driver, &["driver", "asked_driver"])
    {
        return None;
    }
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let kind = text(&event["type"]);
    let kind = kind.strip_prefix("cabrank.").unwrap_or(&kind);
    let kind = kind.strip_suffix(".v1").unwrap_or(kind);
    let mut line = format!(
        "{} {:>8} {kind:<26}",
        text(&event["time"]),
        text(&event["id"])
    );
    if kind == "command.outcome" {
        line.push_str(&format!(" {}", text(&event["subject"])));
    }
    for (field, value) in data
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, v)| !v.is_null())
    {
        line.push_str(&format!(" {field}={}", short(value)));
    }
    Some(line)
}

fn short(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(fields) => match (fields.get("lat"), fields.get("lon"), fields.get("result"))
        {
            (Some(lat), Some(lon), _) => format!("{lat},{lon}"),
            (_, _, Some(result)) => {
                let why = fields.get("why").map(short);
                let why = why.map_or(String::new(), |why| format!(":{why}"));
                format!("{}{why}", short(result))
            }
            _ => value.to_string(),
        },
        Value::Array(items) => items.iter().map(short).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASSIGNED: &[u8] = br#"{"id":"3-77","type":"cabrank.ride.driver_assigned.v1","subject":"ride/3-5-1042",
        "time":"2008-05-23T00:00:01.250Z","data":{"ride":"3-5-1042","ride_seq":6,"driver":"d7","at":{"lat":1.5,"lon":2.5},"x":null}}"#;

    #[test]
    fn an_event_is_one_line() {
        assert_eq!(
            line(ASSIGNED, &TailFilter::default()).unwrap(),
            "2008-05-23T00:00:01.250Z     3-77 ride.driver_assigned       at=1.5,2.5 driver=d7 ride=3-5-1042 ride_seq=6"
        );
        let outcome = br#"{"id":"1-2","type":"cabrank.command.outcome.v1","subject":"driver/d7","time":"t",
            "data":{"command":"driver/d7/9","outcome":{"result":"refused","why":"lapsed"},"ride":null}}"#;
        let shown = line(outcome, &TailFilter::default()).unwrap();
        assert!(
            shown.ends_with("driver/d7 command=driver/d7/9 outcome=refused:lapsed"),
            "{shown}"
        );
    }

    #[test]
    fn only_what_is_wanted_is_shown() {
        let by = |ride: Option<&str>, driver: Option<&str>| TailFilter {
            ride: ride.map(str::to_owned),
            driver: driver.map(str::to_owned),
        };
        assert!(line(ASSIGNED, &by(Some("3-5-1042"), Some("d7"))).is_some());
        assert!(line(ASSIGNED, &by(Some("3-5-1"), None)).is_none());
        assert!(line(ASSIGNED, &by(None, Some("d8"))).is_none());
        assert!(line(b"garbage", &by(None, Some("d8"))).is_none());
        assert_eq!(
            line(b"garbage", &by(None, None)).unwrap(),
            "unreadable: garbage"
        );
    }
}
