//! One thing to measure, and how.
//!
//! Times are medians of repeats, and every repeat is kept.

mod run;

pub(super) use run::ROTATE;
pub use run::{measure, memory_traffic};

use psim_models::operator::GemmRole;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Role of a GEMM, as files name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// y = x·W.
    Forward,
    /// dx = dy·Wᵀ.
    InputGradient,
    /// dW += xᵀ·dy.
    WeightGradient,
}

impl From<Role> for GemmRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Forward => Self::Forward,
            Role::InputGradient => Self::InputGradient,
            Role::WeightGradient => Self::WeightGradient,
        }
    }
}

/// A point of a sweep.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Point {
    /// A matrix product: `m` tokens, `n` output and `k` input features (the shape of the operator list).
    Gemm {
        /// Rows.
        m: u64,
        /// Columns.
        n: u64,
        /// Reduction length.
        k: u64,
        /// Role.
        role: Role,
    },
    /// Causal attention.
    Attention {
        /// Sequences.
        batch: u64,
        /// Tokens.
        seq: u64,
        /// Query heads.
        heads: u64,
        /// Head width.
        head_dim: u64,
        /// Backward, else forward.
        backward: bool,
    },
    /// Decode attention over a paged cache.
    Decode {
        /// Sequences.
        batch: u64,
        /// Tokens in the cache.
        length: u64,
        /// Query heads.
        heads: u64,
        /// Head width.
        head_dim: u64,
    },
    /// A memory-bound operator, forward and backward.
    Memory {
        /// Class.
        class: String,
        /// Rows.
        rows: u64,
        /// Width.
        width: u64,
    },
    /// A collective among rank threads.
    Collective {
        /// nccl-tests operation name.
        operation: String,
        /// Ranks.
        ranks: u32,
        /// nccl-tests size.
        bytes: u64,
    },
    /// A step of the executor's serving engine with next to no arithmetic.
    EngineStep {
        /// Layers.
        layers: u32,
        /// Sequences that decode.
        sequences: u32,
        /// Vocabulary.
        vocab: u32,
    },
    /// A product of few rows whose weights are read from a working set of many, in turn.
    Stream {
        /// Working set.
        bytes: u64,
    },
    /// Dependent loads in a working set.
    Chase {
        /// Working set.
        bytes: u64,
    },
    /// Dependent loads from the memory that the threads of a block share.
    Shared,
    /// Empty kernels in a row.
    Launch {
        /// Replayed as one graph, else launched one by one.
        graph: bool,
    },
    /// A copy between host and device.
    HostCopy {
        /// Size.
        bytes: u64,
        /// To the device, else from it.
        to_device: bool,
    },
    /// Threads that compute at once.
    Together {
        /// Threads.
        threads: u32,
    },
    /// Uninterrupted work, cut into slices.
    Sustained {
        /// Length.
        milliseconds: u64,
    },
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gemm { m, n, k, role } => write!(f, "gemm {m}x{n}x{k} {role:?}"),
            Self::Attention { batch, seq, heads, head_dim, backward } => {
                write!(
                    f,
                    "attention {batch}x{seq} heads {heads}x{head_dim}{}",
                    if *backward { " backward" } else { "" }
                )
            }
            Self::Decode { batch, length, heads, head_dim } => {
                write!(f, "decode {batch}x{length} heads {heads}x{head_dim}")
            }
            Self::Memory { class, rows, width } => write!(f, "{class} {rows}x{width}"),
            Self::Collective { operation, ranks, bytes } => write!(f, "{operation} {ranks} ranks {bytes} B"),
            Self::Stream { bytes } => write!(f, "weights out of {} KiB", bytes >> 10),
            Self::Chase { bytes } => write!(f, "load latency in {} KiB", bytes >> 10),
            Self::Shared => write!(f, "load latency in shared memory"),
            Self::Launch { graph } => {
                write!(f, "launches {}", if *graph { "in a graph" } else { "one by one" })
            }
            Self::HostCopy { bytes, to_device } => {
                write!(f, "copy of {bytes} B {} the device", if *to_device { "to" } else { "from" })
            }
            Self::EngineStep { layers, sequences, vocab } => {
                write!(f, "engine step of {sequences} sequences, {layers} layers, vocabulary {vocab}")
            }
            Self::Together { threads } => write!(f, "{threads} threads at once"),
            Self::Sustained { milliseconds } => write!(f, "sustained clocks over {milliseconds} ms"),
        }
    }
}

/// A measured point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Point.
    pub point: Point,
    /// Seconds of each repeat.
    pub seconds: Vec<f64>,
    /// Seconds that measuring took altogether.
    pub spent: f64,
    /// Load average of the machine over the last minute, where it says.
    pub load: Option<f64>,
    /// Clocks, power and throttling of the device afterwards, where it tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// Processor seconds of the reference before or after, the longer of them ([`super::calm`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<f64>,
}

/// State of a device after a measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Clock of the multiprocessors, MHz.
    pub sm_mhz: u32,
    /// Clock of the memory, MHz.
    pub memory_mhz: u32,
    /// Power drawn, W.
    pub power_w: f64,
    /// Temperature, °C.
    pub celsius: u32,
    /// Why the clocks are below their maximum.
    pub throttled: Vec<String>,
}

impl From<psim_kernels::micro::Telemetry> for State {
    fn from(t: psim_kernels::micro::Telemetry) -> Self {
        Self {
            sm_mhz: t.sm_mhz,
            memory_mhz: t.memory_mhz,
            power_w: t.power_w,
            celsius: t.celsius,
            throttled: t.throttled,
        }
    }
}

impl Record {
    /// With the machine's load now.
    pub fn new(point: Point, seconds: Vec<f64>, spent: f64) -> Self {
        Self { point, seconds, spent, load: super::machine::load_average(), state: None, reference: None }
    }

    /// Median of the repeats.
    pub fn median(&self) -> f64 {
        median(&self.seconds)
    }
}

/// Median; the mean of the middle two for even counts, NaN for none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => 0.5 * (sorted[n / 2 - 1] + sorted[n / 2]),
    }
}
