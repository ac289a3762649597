//! `cabrank token`: development tokens.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use cabrank_gateway::token::{Role, mint, mint_for};
use cabrank_loadgen::client;
use clap::Args;

use crate::settings::Settings;
use crate::{AnyError, Common};

/// Flags of `token`.
#[derive(Args)]
pub struct TokenArgs {
    /// `driver`, `rider`, `service` or `ops`.
    #[arg(long)]
    role: String,
    /// Whom it is for: the driver's or rider's id, or a name.
    #[arg(long, default_value = "developer")]
    subject: String,
    /// How long it is valid, seconds.
    #[arg(long, default_value_t = 3_600)]
    ttl: u64,
    /// Sign with this key of `gateway.keys.more` instead of `gateway.keys.secret`.
    #[arg(long)]
    kid: Option<String>,
}

/// Prints a token signed with the configured secret, with the claims the configuration asks for.
pub fn run(common: &Common, args: TokenArgs) -> Result<ExitCode, AnyError> {
    let settings = common.settings(|_| {})?;
    let roles = [Role::Driver, Role::Rider, Role::Service, Role::Ops];
    let role = roles
        .into_iter()
        .find(|role| role.name() == args.role)
        .ok_or_else(|| format!("--role {}: choose driver, rider, service or ops", args.role))?;
    let ttl = Duration::from_secs(args.ttl);
    let kid = args.kid.as_deref();
    println!(
        "{}",
        mint_for(&settings.gateway.keys, kid, role, &args.subject, ttl)?
    );
    Ok(ExitCode::SUCCESS)
}

/// Mints tokens for our own clients, valid for a day.
pub fn minter(settings: &Settings) -> client::Mint {
    let secret = settings.gateway.keys.secret.clone();
    Arc::new(move |role, subject| {
        let role = match role {
            client::Role::Driver => Role::Driver,
            client::Role::Rider => Role::Rider,
            client::Role::Ops => Role::Ops,
        };
        mint(&secret, role, subject, Duration::from_secs(86_400))
            .expect("the secret was checked and our subjects are ids")
    })
}
