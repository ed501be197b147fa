//! TensorRT-LLM in-flight batching with its scheduler policy "guaranteed no evict": a request is admitted when the blocks
//! of its longest answer are free, so it is never thrown out; prompts share steps with decoding.

use crate::serving::rules::Rules;

pub(in crate::serving) const RULES: Rules = Rules { mixed: true, reserve_whole: true, ..Rules::NONE };
