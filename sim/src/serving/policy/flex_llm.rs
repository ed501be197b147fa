//! FlexLLM (arXiv 2402.18789, section 6): inference under a token budget, and every step filled up with tokens of a
//! fine-tuning job as far as the promised step time allows: see `CoServing`.

use crate::serving::rules::Rules;

pub(in crate::serving) const RULES: Rules =
    Rules { mixed: true, chunked: true, co_serving: true, ..Rules::NONE };
