//! `cabrank log-level`: what a running process logs, shown and changed.

use std::process::ExitCode;

use cabrank_loadgen::client::Role;
use clap::Args;
use reqwest::Method;
use serde_json::json;

use super::dispatch::ask;
use super::{block_on, token::minter};
use crate::{AnyError, Common};

/// Flags of `log-level`.
#[derive(Args)]
pub struct LogLevelArgs {
    /// What to log from now on, until the process ends: LEVEL or TARGET=LEVEL, several with commas, e.g.
    /// info,cabrank_matcher=debug. Without it, what is logged is printed. `debug` and `trace` name people.
    #[arg(value_name = "LEVELS")]
    wanted: Option<String>,
    /// Address of the process: a gateway's, or the one where a node answers /healthz. Each has its own level.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    url: String,
}

/// Asks the process and prints what it logs.
pub fn run(common: &Common, args: LogLevelArgs) -> Result<ExitCode, AnyError> {
    let token = minter(&common.settings(|_| {})?)(Role::Ops, "log-level");
    let body = args.wanted.map(|log| json!({ "log": log }));
    let method = if body.is_some() {
        Method::PUT
    } else {
        Method::GET
    };
    let call = (method, "/v1/log-level");
    block_on(ask("log-level", &args.url, call, &token, body))
}
