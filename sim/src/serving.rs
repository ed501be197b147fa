//! Serving: engines that batch requests step by step, behind a router.
//!
//! [`simulate`] runs the requests of a [`psim_models::serving::Traffic`] through replicas of an engine. Time is integer
//! picoseconds; a run depends on its inputs only. Decoding steps between two events (an arrival, a finished request, a
//! full cache) form one event: their times are still computed one by one, so that a run with and without this is the
//! same to the last bit.

mod adapters;
pub mod autoscale;
pub mod balance;
mod beside;
mod clients;
pub mod devices;
pub mod disaggregated;
pub mod dovetail;
pub mod edge;
pub mod expert_parallel;
mod fleet;
mod histogram;
mod lane;
pub mod offload;
mod options;
pub mod partition;
pub mod placement;
mod policy;
mod prefix;
pub mod published;
mod replica;
pub mod report;
pub mod rules;
mod sink;
pub mod speculation;
mod store;
#[cfg(test)]
mod tests;
pub mod transfer;
mod watch;

pub use autoscale::Autoscale;
pub use beside::{Beside, StopWhenLost};
pub use disaggregated::{
    DisaggregatedError, DisaggregatedInput, DisaggregatedRun, Pool, simulate_disaggregated,
    simulate_disaggregated_with,
};
pub use fleet::{
    MixedInput, ReplicaGroup, ServingError, ServingInput, StreamInput, simulate, simulate_mixed,
    simulate_stream, simulate_with,
};
pub use histogram::Histogram;
pub use options::{
    AdapterMode, AdapterOptions, CacheTier, CoServing, FleetOptions, Preemption, Router, SwapOptions,
};
pub use partition::{Partition, PartitionInput, PartitionRun, simulate_partitioned};
pub use placement::Placement;
pub use report::{Flowing, Percentiles, ServingReport};
pub use rules::Rules;
pub use sink::{Sink, Summary, SummaryFigures};
pub use transfer::TransferMode;

pub use psim_cost_models::serving::AttentionFfn;

use psim_hardware::Time;
use serde::Serialize;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// When its client sent it.
    pub sent: Time,
    /// When the engine first took it into a step; never before it was sent.
    pub admitted: Time,
    /// When its first token came; equals `finish` for one token.
    pub first_token: Time,
    /// When its last token came.
    pub finish: Time,
    /// Times that it was thrown out of the cache.
    pub preemptions: u32,
    /// It can never fit the cache and was refused.
    pub refused: bool,
    /// Replica that served it.
    pub replica: u32,
    /// Highest exponential mean of the gaps between its tokens, where [`FleetOptions::pace`] asks for it; else 0.
    pub slowest: Time,
}

impl Outcome {
    /// What is known of a request at its end.
    fn of(progress: &store::Progress) -> Self {
        Self {
            sent: Time(progress.sent),
            admitted: Time(progress.admitted.max(progress.sent)),
            first_token: Time(progress.first_token),
            finish: Time(progress.finish),
            preemptions: progress.preemptions,
            refused: progress.refused,
            replica: progress.replica,
            slowest: Time(progress.slowest),
        }
    }

    /// A place for each of so many requests.
    fn none(requests: usize) -> Vec<Self> {
        vec![Self::of(&store::Progress::default()); requests]
    }
}

/// A point of the timeline of one replica.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sample {
    /// When.
    pub time: Time,
    /// Replica.
    pub replica: u32,
    /// Requests that wait.
    pub waiting: u32,
    /// Requests in the batch.
    pub running: u32,
    /// Share of the cache in use.
    pub cache: f32,
}

/// A finished run.
#[derive(Debug, Clone, PartialEq)]
pub struct ServingRun {
    /// Per request, in the order of the traffic.
    pub outcomes: Vec<Outcome>,
    /// Gaps between tokens, picoseconds.
    pub gaps: Histogram,
    /// Engine steps of all replicas.
    pub steps: u64,
    /// Seconds that engines worked, summed over replicas.
    pub busy: f64,
    /// Integral of the requests in the system over time, request-seconds.
    pub request_seconds: f64,
    /// Prompt tokens computed (cached prefixes are not computed, recomputed ones are, again).
    pub computed_prompt_tokens: u64,
    /// Prompt tokens found in a cache.
    pub cached_prompt_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Seconds for which replicas were paid, from time zero to the last token, start-up included.
    pub replica_seconds: f64,
    /// Most replicas at once.
    pub most_replicas: u32,
    /// Highest share of the cache in use.
    pub peak_cache: f64,
    /// Requests in the system when the last one arrived.
    pub backlog: u32,
    /// First arrival.
    pub start: Time,
    /// Last token.
    pub end: Time,
    /// Timeline, if asked for.
    pub samples: Vec<Sample>,
    /// What only some policies do, and the books of the simulator itself.
    pub extra: Extra,
}

/// Figures beside the usual ones.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Extra {
    /// Bytes moved between accelerators and host memory or disk: swapped caches, kept prefixes, adapters.
    pub moved_bytes: u64,
    /// Tokens of fine-tuning done beside the requests.
    pub tuned_tokens: f64,
    /// Rounds of speculation, summed over sequences.
    pub rounds: u64,
    /// Tokens of those rounds, not cut where answers end.
    pub round_tokens: u64,
    /// Requests that were in the system at once, at most.
    pub most_alive: u64,
    /// Requests that were never answered nor refused: 0.
    pub unfinished: u64,
    /// Cache in use at the end that belongs to nobody: 0.
    pub leaked_bytes: u64,
}
