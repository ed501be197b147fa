//! Flover (temporal fusion, arXiv 2305.13484): a new request computes its prompt alone and then joins the one loop in
//! which all requests in flight advance by a token together. Buffers are set aside for the longest answer.

use crate::serving::rules::Rules;

pub(in crate::serving) const RULES: Rules = Rules { one_prompt: true, reserve_whole: true, ..Rules::NONE };
