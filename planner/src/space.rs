//! The search space: which values each dimension takes, and the legal plans among their combinations.

mod default;
mod enumerate;

pub use enumerate::{Enumeration, Kills, enumerate};

use psim_models::plan::{ContextParallel, Precision, Recompute, Schedule, Sharding};

/// Micro-batches or chunks to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choices {
    /// These values.
    List(Vec<u32>),
    /// Every divisor up to a largest value.
    DivisorsUpTo(u32),
}

/// Tensor parallelism inside experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertTp {
    /// This many ranks.
    Fixed(u32),
    /// As many as the attention has.
    SameAsTp,
}

/// Values per dimension; the space is their product, cut by the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchSpace {
    /// Tensor-parallel ranks.
    pub tp: Vec<u32>,
    /// Pipeline stages.
    pub pp: Vec<u32>,
    /// Context-parallel ranks.
    pub cp: Vec<u32>,
    /// Expert-parallel ranks.
    pub ep: Vec<u32>,
    /// Tensor-parallel ranks inside experts.
    pub etp: Vec<ExpertTp>,
    /// Chunks per stage of the interleaved schedule (divisors of layers / pp, or a list).
    pub vpp: Choices,
    /// Sequences per micro-batch (divisors of a replica's batch, or a list).
    pub micro_batch: Choices,
    /// Recomputation; `Layers` entries are given by [`SearchSpace::recompute_quarters`].
    pub recompute: Vec<Recompute>,
    /// Also recompute a quarter, half and three quarters of each chunk's layers.
    pub recompute_quarters: bool,
    /// Sharding over data-parallel ranks.
    pub sharding: Vec<Sharding>,
    /// Schedules.
    pub schedules: Vec<Schedule>,
    /// Sequence parallelism: on (reduce-scatter and all-gather), off (all-reduce).
    pub sequence_parallel: Vec<bool>,
    /// Context exchange, where cp > 1.
    pub cp_kind: Vec<ContextParallel>,
    /// Arithmetic.
    pub precision: Vec<Precision>,
    /// Also try uneven layers per stage where they shorten the slowest stage.
    pub uneven: bool,
    /// Pipeline stages of plans that leave accelerators idle where their number divides badly (96 of 104 can be faster
    /// than all); empty: every accelerator works.
    pub partial_pp: Vec<u32>,
}

/// Divisors of `n`, ascending; empty for 0.
pub fn divisors(n: u32) -> Vec<u32> {
    let mut low = Vec::new();
    let mut high = Vec::new();
    let mut d = 1u32;
    while d.checked_mul(d).is_some_and(|square| square <= n) {
        if n.is_multiple_of(d) {
            low.push(d);
            if d != n / d {
                high.push(n / d);
            }
        }
        d += 1;
    }
    low.extend(high.into_iter().rev());
    low
}

impl Choices {
    /// The values for a quantity that must divide `of`.
    pub(crate) fn values(&self, of: u32) -> Vec<u32> {
        match self {
            Self::List(list) => list.clone(),
            Self::DivisorsUpTo(most) => divisors(of).into_iter().filter(|d| d <= most).collect(),
        }
    }
}
