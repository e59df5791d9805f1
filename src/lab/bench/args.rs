//! Arguments of `nos-relay bench`.

use std::path::PathBuf;

use clap::Args;

/// Arguments of `bench`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Exit codes: 0 all was measured and arrived as it was sent, 1 failure, \
                        2 wrong usage, 130 interrupted. A missed target is no failure."
)]
pub struct BenchArgs {
    /// Few and short runs: shows that it works, not how fast it is.
    #[arg(long)]
    pub quick: bool,
    /// As JSON, for programs.
    #[arg(long)]
    pub json: bool,
    /// Draw the results as bars into this SVG file.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Compare with the results in this file, which --json wrote.
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// Measure only these rows: names, or parts of names, separated by commas.
    #[arg(long, value_name = "FILTER")]
    pub rows: Option<String>,
    /// Measure only these paths: names, or parts of names, separated by commas.
    #[arg(long, value_name = "FILTER")]
    pub paths: Option<String>,
    /// How often each row is measured on each path.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: Option<u32>,
    /// How long a sample takes, more or less.
    #[arg(long, value_name = "N", value_parser = sample_seconds)]
    pub seconds: Option<f64>,
    /// Show all rows and paths, and measure nothing.
    #[arg(long)]
    pub list: bool,
}

/// A duration from 10 milliseconds to an hour.
fn sample_seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().map_err(|error| error.to_string())?;
    match (0.01..=3600.0).contains(&seconds) {
        true => Ok(seconds),
        false => Err("want 0.01 to 3600 seconds".to_owned()),
    }
}
