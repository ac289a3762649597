//! `cabrank top`: a city's processes, shards and rates in a terminal.
//!
//! Reads `/metrics` of the processes it is given, which anybody may read inside the cluster, and nothing else; asking costs them
//! what one scrape costs. Rates are those between two looks.

mod draw;
mod figures;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use figures::{Look, View};
use futures_util::future::join_all;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use super::block_on;
use crate::AnyError;

/// Longest wait for one process.
const ANSWER: Duration = Duration::from_secs(2);
/// Size of the frame that `--once` prints, at least; longer when there is more to show.
const PLAIN: (u16, u16) = (110, 24);
/// Most processes shown: asking each costs a connection.
const PROCESSES_MAX: usize = 256;

/// Flags of `top`.
#[derive(Args)]
pub struct TopArgs {
    /// Where a process answers /metrics: a gateway's address, or the one of a node's health; again for each further process.
    #[arg(
        long = "url",
        value_name = "URL",
        default_value = "http://127.0.0.1:8080"
    )]
    urls: Vec<String>,
    /// How often to look, ms.
    #[arg(long, value_name = "MS", default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(200..=60_000))]
    every_ms: u64,
    /// Look twice, print one plain frame and end; exit code 1 when a process did not answer.
    #[arg(long)]
    once: bool,
}

/// Shows until `q`.
pub fn run(args: TopArgs) -> Result<ExitCode, AnyError> {
    if args.urls.len() > PROCESSES_MAX {
        return Err(format!("--url: at most {PROCESSES_MAX}").into());
    }
    let every = Duration::from_millis(args.every_ms);
    block_on(async move {
        let client = reqwest::Client::builder().timeout(ANSWER).build()?;
        let mut before = look(&client, &args.urls).await;
        if args.once {
            tokio::time::sleep(every).await;
            let now = look(&client, &args.urls).await;
            let view = View::between(&before, &now);
            print!("{}", plain(&view)?);
            let is_whole = view.processes.iter().all(|process| process.is_up);
            return Ok(ExitCode::from(u8::from(!is_whole)));
        }
        let mut terminal = ratatui::try_init()?;
        let shown = loop {
            let now = look(&client, &args.urls).await;
            let view = View::between(&before, &now);
            before = now;
            if let Err(why) = terminal.draw(|frame| draw::draw(frame, &view)) {
                break Err(why);
            }
            match tokio::task::spawn_blocking(move || wait_for_end(every)).await? {
                Ok(false) => {}
                ended => break ended.map(|_| ()),
            }
        };
        ratatui::restore();
        shown?;
        Ok(ExitCode::SUCCESS)
    })
}

/// One look at every process, side by side.
async fn look(client: &reqwest::Client, urls: &[String]) -> Vec<Look> {
    join_all(urls.iter().map(|url| async move {
        let base = url.trim_end_matches('/');
        let metrics = async {
            let answer = client.get(format!("{base}/metrics")).send().await?;
            answer.error_for_status()?.text().await
        };
        let ready = async {
            let answer = client.get(format!("{base}/readyz")).send().await;
            answer.is_ok_and(|answer| answer.status().is_success())
        };
        let (metrics, is_ready) = tokio::join!(metrics, ready);
        Look {
            url: base.to_owned(),
            at: Instant::now(),
            is_ready,
            metrics: metrics.map(|text| figures::read(&text)).ok(),
        }
    }))
    .await
}

/// Waits so long for a key; true when it ends the view.
fn wait_for_end(at_most: Duration) -> std::io::Result<bool> {
    let until = Instant::now() + at_most;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if !event::poll(left)? {
            return Ok(false);
        }
        match event::read()? {
            Event::Key(key) if key.kind == KeyEventKind::Press => {
                let is_ctrl_c =
                    key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
                if is_ctrl_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                    return Ok(true);
                }
            }
            // Drawn anew at once.
            Event::Resize(..) => return Ok(false),
            _ => {}
        }
    }
}

/// The frame as text, without trailing blanks.
fn plain(view: &View) -> Result<String, AnyError> {
    let (width, least) = PLAIN;
    let height = least.max(draw::lines(view));
    let mut terminal = Terminal::new(TestBackend::new(width, height))?;
    terminal.draw(|frame| draw::draw(frame, view))?;
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for y in 0..height {
        let line: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
        text += line.trim_end();
        text.push('\n');
    }
    Ok(text.trim_end().to_owned() + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a process answers `n` seconds after its start.
    fn look_at(n: u64, url: &str, text: &str) -> Look {
        Look {
            url: url.into(),
            at: *START + Duration::from_secs(n),
            is_ready: true,
            metrics: Some(figures::read(text)),
        }
    }

    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);

    /// A gateway that has taken 100 positions and 10 rides a second for `n` seconds.
    fn gateway(n: u64) -> String {
        format!(
            "# HELP cabrank_build_info 1\n\
             cabrank_build_info{{version=\"0.1.0\"}} 1\n\
             cabrank_pings_total{{result=\"accepted\",reason=\"\"}} {}\n\
             cabrank_pings_total{{result=\"refused\",reason=\"too_many\"}} {}\n\
             cabrank_commands_total{{type=\"request_ride\",outcome=\"done\"}} {}\n\
             cabrank_commands_total{{type=\"accept_offer\",outcome=\"done\"}} {}\n\
             cabrank_offer_seconds_bucket{{le=\"0.01\"}} {}\n\
             cabrank_offer_seconds_bucket{{le=\"0.025\"}} {}\n\
             cabrank_offer_seconds_bucket{{le=\"+Inf\"}} {}\n\
             cabrank_offer_seconds_count {}\n\
             cabrank_sockets_used 1200\ncabrank_sockets_max 15000\n\
             process_resident_memory_bytes 52428800\nprocess_cpu_seconds_total {}\n",
            100 * n,
            n,
            10 * n,
            9 * n,
            5 * n,
            10 * n,
            10 * n,
            10 * n,
            n as f64 / 4.0,
        )
    }

    fn node(lag: u64) -> String {
        format!(
            "cabrank_shard_served{{shard=\"0\"}} 1\ncabrank_shard_served{{shard=\"1\"}} 0\n\
             cabrank_shard_lag_commands{{shard=\"0\"}} {lag}\ncabrank_shard_waiting_rides{{shard=\"0\"}} 3\n\
             cabrank_lease_held 1\ncabrank_shards 2\ncabrank_open_rides 41\ncabrank_waiting_rides 3\ncabrank_drivers_known 900\n"
        )
    }

    #[test]
    fn a_frame_shows_rates_between_two_looks_shards_and_who_does_not_answer() {
        let (g, n, gone) = ("http://gateway:8080", "http://node:7001", "http://gone:1");
        let silent = |at| Look {
            url: gone.into(),
            at: *START + Duration::from_secs(at),
            is_ready: false,
            metrics: None,
        };
        let before = [
            look_at(10, g, &gateway(10)),
            look_at(10, n, &node(7)),
            silent(10),
        ];
        let now = [
            look_at(12, g, &gateway(12)),
            look_at(12, n, &node(25)),
            silent(12),
        ];
        let text = plain(&View::between(&before, &now)).unwrap();
        let line = |with: &str| {
            let found = text.lines().find(|line| line.contains(with));
            found
                .unwrap_or_else(|| panic!("no {with} in\n{text}"))
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        };
        let city = line("rides/s");
        assert!(city.contains("10.0 rides/s"), "{text}");
        assert!(city.contains("100 positions/s (1.0 refused)"), "{text}");
        // Half below 10 ms, all below 25 ms: the hundredth of a hundred lies near the end of the second bucket.
        assert!(city.contains("p50 10 ms p99 25 ms"), "{text}");
        assert!(line("open rides").contains("41 open rides, 3 waiting"));
        assert!(line("lag").contains("lag 25"), "{text}");
        let of_gateway = line(g);
        assert!(
            of_gateway.contains("ready") && of_gateway.contains("1200/15000"),
            "{text}"
        );
        assert!(of_gateway.contains("50 MiB") && of_gateway.contains("0.25"));
        assert!(line(gone).contains("no answer"), "{text}");
        // A shard is shown where it is served; one that nobody serves stands out.
        let shards = text.split_once("shards").unwrap().1;
        assert!(shards.contains("http://node:7001"), "{text}");
        assert!(
            line("nobody").starts_with("│1") || line("nobody").contains("1 nobody"),
            "{text}"
        );
    }

    #[test]
    fn a_process_that_began_anew_has_no_negative_rates() {
        let g = "http://gateway:8080";
        let before = [look_at(100, g, &gateway(100))];
        let now = [look_at(102, g, &gateway(2))];
        let text = plain(&View::between(&before, &now)).unwrap();
        assert!(text.contains("10.0 rides/s"), "{text}");
    }
}
