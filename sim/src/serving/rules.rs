//! Batching policies as rules that a scheduler follows at every step.

use psim_cost_models::serving::Policy;

/// What a policy allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Prompts and decoding share a step; otherwise a step with prompts pauses decoding.
    pub mixed: bool,
    /// A prompt may be cut into chunks to keep the token budget.
    pub chunked: bool,
    /// The cache of the whole answer is set aside at admission, so that nothing is ever thrown out.
    pub reserve_whole: bool,
    /// A new batch starts only when the last one is done.
    pub whole_batches: bool,
    /// Shared prefixes stay in the cache and are reused.
    pub prefix_cache: bool,
}

impl Rules {
    /// The rules of a policy.
    pub fn of(policy: Policy) -> Self {
        let none = Self {
            mixed: false,
            chunked: false,
            reserve_whole: false,
            whole_batches: false,
            prefix_cache: false,
        };
        match policy {
            Policy::Static => Self { reserve_whole: true, whole_batches: true, ..none },
            Policy::Orca => Self { mixed: true, reserve_whole: true, ..none },
            Policy::PrefillPriority => none,
            Policy::ChunkedPrefill => Self { mixed: true, chunked: true, prefix_cache: true, ..none },
            Policy::SplitFuse => Self { mixed: true, chunked: true, ..none },
            Policy::Radix => Self { chunked: true, prefix_cache: true, ..none },
            Policy::InflightNoEvict => Self { mixed: true, reserve_whole: true, ..none },
        }
    }
}
