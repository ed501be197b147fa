//! Dynamic SplitFuse (DeepSpeed-FastGen, arXiv 2401.08671, section 3): long prompts are cut and short ones joined so that
//! every step has the same number of tokens. Without a prefix cache.

use crate::serving::rules::Rules;

pub(in crate::serving) const RULES: Rules = Rules { mixed: true, chunked: true, ..Rules::NONE };
