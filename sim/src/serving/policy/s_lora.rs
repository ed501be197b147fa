//! S-LoRA (Sheng et al., arXiv 2311.03285): one base model, many adapters in one batch, adapters and cache in one pool of
//! pages. The scheduler is LightLLM's: prompts first. What adapters cost: see `AdapterOptions`.

use crate::serving::rules::Rules;

pub(in crate::serving) const RULES: Rules = Rules::NONE;
