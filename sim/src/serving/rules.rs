//! Batching policies as rules that a scheduler follows at every step.

use super::policy;
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
    /// A step computes one prompt at most.
    pub one_prompt: bool,
    /// Priorities decide who runs, and change; who loses its place is switched out.
    pub fair: bool,
    /// Steps are filled up with fine-tuning.
    pub co_serving: bool,
}

impl Rules {
    /// A policy that does none of it: whole prompts first, alone, in order of arrival.
    pub(super) const NONE: Self = Self {
        mixed: false,
        chunked: false,
        reserve_whole: false,
        whole_batches: false,
        prefix_cache: false,
        one_prompt: false,
        fair: false,
        co_serving: false,
    };

    /// The rules of a policy.
    pub fn of(policy: Policy) -> Self {
        match policy {
            Policy::Static => policy::static_batching::RULES,
            Policy::Orca => policy::orca::RULES,
            Policy::PrefillPriority => policy::prefill_priority::RULES,
            Policy::ChunkedPrefill => policy::chunked_prefill::RULES,
            Policy::SplitFuse => policy::splitfuse::RULES,
            Policy::Radix => policy::radix::RULES,
            Policy::InflightNoEvict => policy::inflight::RULES,
            Policy::Flover => policy::flover::RULES,
            Policy::FastSwitch => policy::fast_switch::RULES,
            Policy::SLora => policy::s_lora::RULES,
            Policy::FlexLlm => policy::flex_llm::RULES,
        }
    }
}
