//! Options of a serving run beside the engine's own profile.

use super::autoscale::Autoscale;
use super::offload::ExpertOffload;
use psim_hardware::{Bytes, BytesPerSec, Seconds};

/// How requests are given to replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Router {
    /// One after another.
    #[default]
    RoundRobin,
    /// The replica with the fewest requests in it.
    LeastLoad,
    /// The replica that has seen the prefix or the conversation, unless it has twice the mean load; else the least
    /// loaded.
    PrefixAware,
}

impl Router {
    /// Reads a name.
    ///
    /// # Errors
    /// A sentence with the known names.
    pub fn parse(name: &str) -> Result<Self, String> {
        match name {
            "round-robin" => Ok(Self::RoundRobin),
            "least-load" => Ok(Self::LeastLoad),
            "prefix-aware" => Ok(Self::PrefixAware),
            other => Err(format!("`{other}` is not a router; known: round-robin, least-load, prefix-aware")),
        }
    }
}

/// What happens to a sequence that is thrown out of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Preemption {
    /// Its prompt and answer so far are computed again.
    #[default]
    Recompute,
    /// Its cache goes to host memory and comes back over a link of this rate.
    Swap(BytesPerSec),
}

/// How caches are copied to host memory and back (FastSwitch, arXiv 2411.18424, section 3).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SwapOptions {
    /// Neighbouring blocks that one copy moves: 1 in vLLM of 2023, tens with block groups.
    pub group_blocks: u32,
    /// Host time to launch one copy. There is one per layer, for keys and for values, and group of blocks.
    pub copy: Seconds,
    /// Copies run beside the steps of the other sequences; else the engine waits for them.
    pub asynchronous: bool,
    /// The copy in host memory stays valid, so that only what is new since moves again.
    pub reuse: bool,
}

impl Default for SwapOptions {
    /// vLLM of 2023: a copy per block, the engine waits.
    fn default() -> Self {
        Self { group_blocks: 1, copy: Seconds(2e-6), asynchronous: false, reuse: false }
    }
}

impl SwapOptions {
    /// FastSwitch: groups of about 20 blocks, in the background, with reuse.
    pub fn fast_switch() -> Self {
        Self { group_blocks: 20, asynchronous: true, reuse: true, ..Self::default() }
    }
}

/// How engines hold adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AdapterMode {
    /// All adapters of a batch at once, in one pool with the cache, fetched while others run (S-LoRA).
    #[default]
    Unified,
    /// A batch has one adapter, merged into the weights; batches follow one another (PEFT).
    OneAtATime,
}

/// Adapters of low rank (S-LoRA, arXiv 2311.03285).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdapterOptions {
    /// How they are held.
    pub mode: AdapterMode,
    /// Bytes of one adapter on one accelerator: `layers · 4 · 2 · rank · hidden · 2 / tp` for q, k, v, o in 16 bits.
    pub bytes: Bytes,
    /// Rate from host memory.
    pub link: BytesPerSec,
    /// Rate at which the gathered kernels read adapters: what is reached of the device memory's.
    pub read: BytesPerSec,
    /// Launches of the gathered kernels, per step.
    pub launches: Seconds,
}

/// Fine-tuning beside inference (FlexLLM, arXiv 2402.18789).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CoServing {
    /// A step is filled with tokens of fine-tuning up to this time.
    pub step: Seconds,
    /// Most tokens of fine-tuning in a step.
    pub most_tokens: u32,
}

/// A tier below the device memory that keeps prefixes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CacheTier {
    /// What it holds per replica and accelerator.
    pub capacity: Bytes,
    /// Rate back to one accelerator.
    pub rate: BytesPerSec,
}

/// Options of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FleetOptions {
    /// Router.
    pub router: Router,
    /// Treatment of thrown-out sequences.
    pub preemption: Preemption,
    /// Treat decoding steps between events as one event. The result is the same.
    pub coalesce: bool,
    /// Timeline points to keep, at most; 0 keeps none.
    pub samples: usize,
    /// How swapped caches are copied.
    pub swap: SwapOptions,
    /// A fair policy draws new priorities after this many steps.
    pub priority_steps: u32,
    /// Adapters; without them requests for adapters are served like any other.
    pub adapters: Option<AdapterOptions>,
    /// Fine-tuning under a co-serving policy.
    pub co_serving: Option<CoServing>,
    /// Host memory and disk, in this order, for prefixes that the device has no room for.
    pub tiers: [Option<CacheTier>; 2],
    /// Experts live outside the accelerators (replicas of one lane).
    pub expert_offload: Option<ExpertOffload>,
    /// Replicas come and go with the load, up to all of them.
    pub autoscale: Option<Autoscale>,
    /// Follow the exponential mean of each answer's gaps between tokens over a span of so many ([`Outcome::slowest`]).
    ///
    /// [`Outcome::slowest`]: super::Outcome::slowest
    pub pace: Option<u32>,
}

impl Default for FleetOptions {
    fn default() -> Self {
        Self {
            router: Router::RoundRobin,
            preemption: Preemption::Recompute,
            coalesce: true,
            samples: 0,
            swap: SwapOptions::default(),
            priority_steps: 25,
            adapters: None,
            co_serving: None,
            tiers: [None; 2],
            expert_offload: None,
            autoscale: None,
            pace: None,
        }
    }
}
