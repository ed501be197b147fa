//! FastSwitch (arXiv 2411.18424): fair serving. Priorities change every few steps; who has lost its place is switched
//! out to host memory and back. What a switch costs follows from the link, the size of the copies and whether the engine
//! waits for them: see `SwapOptions`.

use crate::serving::rules::Rules;

pub(in crate::serving) const RULES: Rules = Rules { fair: true, ..Rules::NONE };
