//! `psim plan … --execute-top K`: runs the best plans on this machine, learns from what they took, ranks again.
//!
//! Every executed plan goes to a journal before the next one starts, so a killed loop goes on where it stopped; the
//! residual profile appears whole or not at all.

mod journal;
mod ranking;
mod residuals;
pub(super) mod serving;
pub(super) mod training;

use crate::failure::Failure;
use crate::machine::MAX_RANKS;
use clap::Args;
use psim_calibration::measure::DeviceChoice;
use std::path::PathBuf;

/// Flags of the closed loop.
#[derive(Debug, Args)]
pub(crate) struct LoopArguments {
    /// Run the best K plans on --device, compare, learn, rank again
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=50))]
    pub(super) execute_top: Option<u32>,
    /// Where --execute-top runs them
    #[arg(long, value_name = "cpu|cuda:N", default_value = "cpu", requires = "execute_top")]
    device: DeviceChoice,
    /// What earlier runs on this machine say beside predictions: read, updated and written by --execute-top
    #[arg(long, value_name = "FILE", default_value = "psim-residuals.toml", requires = "execute_top")]
    residuals: PathBuf,
    /// Steps that --execute-top times per plan, after one that warms up; of serving plans, runs of the requests
    #[arg(long, value_name = "N", default_value_t = 4, requires = "execute_top", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    steps: u32,
}

impl LoopArguments {
    pub(super) fn wanted(&self) -> bool {
        self.execute_top.is_some()
    }

    fn top(&self) -> usize {
        self.execute_top.unwrap_or(1) as usize
    }
}

/// The ranks of a cluster, if this machine starts so many.
fn ranks_here(accelerators: u32) -> Result<u32, Failure> {
    if accelerators > MAX_RANKS {
        return Err(Failure::input(
            format!(
                "the cluster has {accelerators} accelerators; at most {MAX_RANKS} rank threads are started"
            ),
            "name a smaller cluster, such as the one that `psim calibrate` writes",
        ));
    }
    Ok(accelerators)
}
