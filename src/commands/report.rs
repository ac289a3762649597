//! `cabrank report`: what reports say, for people.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cabrank_loadgen::load::compare::{Side, table};
use cabrank_loadgen::load::html;
use cabrank_loadgen::report::Report;
use clap::{Args, Subcommand};

use crate::AnyError;

/// What is done with reports.
#[derive(Subcommand)]
pub enum ReportCommand {
    /// Put runs side by side, with ratios to the first, and say what is within the noise of repeated runs.
    Compare(CompareArgs),
    /// One page with pictures that needs no network.
    Html(HtmlArgs),
}

/// Flags of `report compare`.
#[derive(Args)]
pub struct CompareArgs {
    /// Two sides or more. A side is one file or several runs of the same thing: A1.json,A2.json,A3.json
    #[arg(required = true, num_args = 2.., value_name = "FILE[,FILE...]")]
    sides: Vec<String>,
}

/// Flags of `report html`.
#[derive(Args)]
pub struct HtmlArgs {
    /// A report of a load run.
    file: PathBuf,
    /// Where the page is written.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Runs the subcommand.
pub fn run(command: ReportCommand) -> Result<ExitCode, AnyError> {
    match command {
        ReportCommand::Compare(args) => {
            let sides = args
                .sides
                .iter()
                .map(|side| read_side(side))
                .collect::<Result<Vec<_>, _>>()?;
            print!("{}", table(&sides));
        }
        ReportCommand::Html(args) => {
            let page = html::page(&read(&args.file)?)?;
            std::fs::write(&args.out, page)
                .map_err(|why| format!("--out {}: {why}", args.out.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn read_side(files: &str) -> Result<Side, AnyError> {
    let runs = files
        .split(',')
        .map(|file| read(Path::new(file)))
        .collect::<Result<Vec<_>, _>>()?;
    let first = files.split(',').next().unwrap_or(files);
    let name = Path::new(first)
        .file_stem()
        .map_or(first.to_owned(), |stem| stem.to_string_lossy().into_owned());
    Ok(Side { name, runs })
}

fn read(file: &Path) -> Result<Report, AnyError> {
    let text = std::fs::read_to_string(file).map_err(|why| format!("{}: {why}", file.display()))?;
    Ok(serde_json::from_str(&text)
        .map_err(|why| format!("{}: not a report: {why}", file.display()))?)
}
