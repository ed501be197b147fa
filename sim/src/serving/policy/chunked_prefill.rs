//! Chunked prefill under a token budget (Sarathi-Serve, Agrawal et al., OSDI 2024, section 4; vLLM v1): every step takes
//! all decoding sequences, one token each, and fills the rest of the budget with pieces of prompts.

use crate::serving::rules::Rules;

pub(in crate::serving) const RULES: Rules =
    Rules { mixed: true, chunked: true, prefix_cache: true, ..Rules::NONE };
