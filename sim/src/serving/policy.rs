//! The batching policies by name, one file each: what an engine's scheduler does, where it is described, and the rules
//! that make the simulated one do it.

pub(super) mod chunked_prefill;
pub(super) mod fast_switch;
pub(super) mod flex_llm;
pub(super) mod flover;
pub(super) mod inflight;
pub(super) mod orca;
pub(super) mod prefill_priority;
pub(super) mod radix;
pub(super) mod s_lora;
pub(super) mod splitfuse;
pub(super) mod static_batching;
#[cfg(test)]
mod tests;
