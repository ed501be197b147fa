//! Orca (Yu et al., OSDI 2022, section 4): scheduling by iteration. Requests join and leave at every step, prompts run
//! with the decoding ones (selective batching), and the cache of the longest answer is reserved at admission.

use crate::serving::rules::Rules;

pub(in crate::serving) const RULES: Rules = Rules { mixed: true, reserve_whole: true, ..Rules::NONE };
