//! Static batching: a batch is formed, its prompts are computed, and all decode until the longest answer is done; only
//! then is the next batch formed (FasterTransformer, TensorRT-LLM before in-flight batching).

use crate::serving::rules::Rules;

pub(in crate::serving) const RULES: Rules = Rules { reserve_whole: true, whole_batches: true, ..Rules::NONE };
