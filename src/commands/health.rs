//! `cabrank health`: asks a process how it is, for health checks in images that have no shell and no other client.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::block_on;
use crate::AnyError;

/// Longest wait for the answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Flags of `health`.
#[derive(Args)]
pub struct HealthArgs {
    /// What to ask, e.g. http://127.0.0.1:8080/readyz.
    #[arg(value_name = "URL")]
    url: String,
}

/// Exit code 0 if the answer is a success, else 1.
pub fn run(args: HealthArgs) -> Result<ExitCode, AnyError> {
    block_on(async move {
        let client = reqwest::Client::builder().timeout(ANSWER).build()?;
        let answer = match client.get(&args.url).send().await {
            Ok(answer) => answer,
            Err(why) => {
                eprintln!("{}: {why}", args.url);
                return Ok(ExitCode::from(1));
            }
        };
        let status = answer.status();
        print!("{}", answer.text().await.unwrap_or_default());
        Ok(ExitCode::from(u8::from(!status.is_success())))
    })
}
