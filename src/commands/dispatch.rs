//! `cabrank dispatch`: how a running city's rounds choose, read and changed.

use std::process::ExitCode;

use cabrank_loadgen::client::Role;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::{block_on, token::minter};
use crate::{AnyError, Common};

/// Flags of `dispatch`.
#[derive(Args)]
pub struct DispatchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Args)]
struct Server {
    /// Address of a running server, or of any gateway of a city over Kafka.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    url: String,
}

#[derive(Subcommand)]
enum What {
    /// Print how rounds choose, and what of it was set.
    Show {
        #[command(flatten)]
        server: Server,
    },
    /// Change how rounds choose, on every node from its next round on; it survives restarts.
    ///
    /// Takes the place of all that was set before; what is not named is as configured. Keys are those of the
    /// configuration: policy (first_come, greedy, batched, rematch), swaps.*, prices.*, pace.*.
    ///
    /// Example: cabrank dispatch set policy=rematch swaps.gain_min_ms=60000 --reason "rush hour"
    Set {
        /// Settings, e.g. policy=rematch or prices.age_per_mille=500.
        #[arg(required = true, value_name = "KEY=VALUE")]
        settings: Vec<String>,
        /// Why; kept in the log.
        #[arg(long, default_value = "set by command")]
        reason: String,
        #[command(flatten)]
        server: Server,
    },
    /// Go back to the configuration.
    Reset {
        /// Why; kept in the log.
        #[arg(long, default_value = "reset by command")]
        reason: String,
        #[command(flatten)]
        server: Server,
    },
}

/// Asks a gateway and prints what it says.
pub fn run(common: &Common, args: DispatchArgs) -> Result<ExitCode, AnyError> {
    let (server, body) = match args.what {
        What::Show { server } => (server, None),
        What::Set {
            settings,
            reason,
            server,
        } => {
            let settings = parse(&settings)?;
            (
                server,
                Some(json!({ "settings": settings, "reason": reason })),
            )
        }
        What::Reset { reason, server } => {
            (server, Some(json!({ "settings": {}, "reason": reason })))
        }
    };
    let token = minter(&common.settings(|_| {})?)(Role::Ops, "dispatch");
    let call = match &body {
        None => (Method::GET, "/v1/dispatch"),
        Some(_) => (Method::PUT, "/v1/dispatch"),
    };
    block_on(ask("dispatch", &server.url, call, &token, body))
}

/// What the desk asks of a gateway; prints what it says. `command` is who complains.
pub async fn ask(
    command: &str,
    server: &str,
    (method, path): (Method, &str),
    token: &str,
    body: Option<Value>,
) -> Result<ExitCode, AnyError> {
    let url = format!("{}{path}", server.trim_end_matches('/'));
    let mut request = reqwest::Client::new().request(method, &url);
    if let Some(body) = body {
        let json = request.header("content-type", "application/json");
        request = json.body(body.to_string());
    }
    let answer = request.bearer_auth(token).send().await?;
    let is_done = answer.status().is_success();
    let text = answer.text().await?;
    match serde_json::from_str::<Value>(&text) {
        Ok(told) if is_done => println!("{told:#}"),
        Ok(problem) => eprintln!(
            "cabrank {command}: {}",
            problem["detail"].as_str().unwrap_or(&text)
        ),
        Err(_) => eprintln!("cabrank {command}: {url} said {text:?}"),
    }
    Ok(ExitCode::from(u8::from(!is_done)))
}

/// `swaps.gain_min_ms=60000` as `{"swaps":{"gain_min_ms":60000}}`.
fn parse(settings: &[String]) -> Result<Value, AnyError> {
    let mut whole = Map::new();
    for setting in settings {
        let (key, value) = setting
            .split_once('=')
            .ok_or_else(|| format!("{setting}: write KEY=VALUE, e.g. policy=rematch"))?;
        // A word is a word, without quotes.
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        let before = match key.split_once('.') {
            None => whole.insert(key.to_owned(), value),
            Some((group, key)) => {
                let group = whole.entry(group).or_insert_with(|| json!({}));
                let group = group
                    .as_object_mut()
                    .ok_or_else(|| format!("{setting}: it is set as a whole already"))?;
                group.insert(key.to_owned(), value)
            }
        };
        if before.is_some() {
            return Err(format!("{key} is given twice").into());
        }
    }
    Ok(Value::Object(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(settings: &[&str]) -> Result<Value, String> {
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        parse(&settings).map_err(|why| why.to_string())
    }

    #[test]
    fn settings_are_written_as_in_the_configuration() {
        assert_eq!(
            parsed(&[
                "policy=rematch",
                "swaps.gain_min_ms=60000",
                "swaps.swaps_max=2"
            ]),
            Ok(json!({ "policy": "rematch", "swaps": { "gain_min_ms": 60_000, "swaps_max": 2 } }))
        );
        assert!(parsed(&["policy"]).unwrap_err().contains("KEY=VALUE"));
        assert!(
            parsed(&["policy=greedy", "policy=batched"])
                .unwrap_err()
                .contains("twice")
        );
        assert!(
            parsed(&["swaps=1", "swaps.swaps_max=2"])
                .unwrap_err()
                .contains("whole")
        );
    }
}
