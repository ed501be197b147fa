//! vLLM of 2023 (Kwon et al., SOSP 2023): paged cache, waiting prompts run first and whole, in steps of their own;
//! decoding stands still meanwhile. The sequence admitted last is thrown out when blocks run short.

use crate::serving::rules::Rules;

pub(in crate::serving) const RULES: Rules = Rules::NONE;
