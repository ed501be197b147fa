//! SGLang (Zheng et al., 2024, section 3): prompts run before decoding, in chunks, each matched against a radix tree of
//! what is in the cache; leaves that were used least recently are dropped first.

use crate::serving::rules::Rules;

pub(in crate::serving) const RULES: Rules = Rules { chunked: true, prefix_cache: true, ..Rules::NONE };
