//! Rows with multi-token prediction: steps verify drafts, and some of the drafts are accepted.

use super::Figures;
use crate::validate_serving::map::Mapped;
use psim_cost_models::serving::{Drafting, StepCost};
use psim_models::serving::{Arrival, Deployment, Traffic};

/// Chance that the first, second, … draft of a chain is accepted. On the random prompts of InferenceMAX a step with
/// three drafts gives 2.3 to 2.4 tokens and a step with one 1.75: the ratio of the time between two messages to the
/// time of a token in its runs (a message holds the tokens of a fixed number of steps). One module predicts all
/// drafts, so later ones are poorer (DeepSeek-V3 report, section 5.4.3, has 0.85 to 0.9 for the first on real text).
const ACCEPTED: [f64; 3] = [0.75, 0.40, 0.22];

/// Sequences per attention copy up to which the published recipes draft three tokens; above, the step is bound by
/// arithmetic and they draft one.
const MANY: f64 = 72.0;

/// Drafts of a step of a deployment: the recipes of InferenceMAX for the engines.
pub(super) fn drafts(mapped: &Mapped, deployment: &Deployment) -> u32 {
    let clients = mapped.workload.tenants.first().map_or(1.0, |t| match t.arrival {
        Arrival::ClosedLoop { concurrency } => f64::from(concurrency),
        _ => 1e9,
    });
    let each = clients / f64::from((deployment.replicas * deployment.attention_dp).max(1));
    match mapped.engine.name.as_str() {
        name if name.starts_with("trtllm") && each > MANY => 1,
        _ => ACCEPTED.len() as u32,
    }
}

/// What a run in counted tokens (one per step and sequence) is worth in real ones.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gain {
    /// Tokens of a step after the first token of an answer.
    tokens: f64,
    /// Real over counted answer tokens.
    output: f64,
}

impl Gain {
    /// Figures in real tokens.
    pub(super) fn restated(self, mut f: Figures) -> Figures {
        f.output *= self.output;
        for p in [
            &mut f.tpot.mean,
            &mut f.tpot.p50,
            &mut f.tpot.p90,
            &mut f.tpot.p95,
            &mut f.tpot.p99,
            &mut f.tpot.max,
        ] {
            *p /= self.tokens;
        }
        f
    }
}

/// Prices and traffic in which every decoding step counts as one token.
pub(super) fn drafted(cost: &StepCost, mut traffic: Traffic, drafts: u32) -> (StepCost, Traffic, Gain) {
    let tokens: f64 = 1.0 + ACCEPTED.iter().take(drafts as usize).sum::<f64>();
    let (mut input, mut real, mut counted) = (0.0, 0.0, 0.0);
    for r in &mut traffic.requests {
        input += f64::from(r.input);
        real += f64::from(r.output);
        if r.output > 1 {
            r.output = 1 + (f64::from(r.output - 1) / tokens).round().max(1.0) as u32;
        }
        counted += f64::from(r.output);
    }
    let drafting = Drafting {
        drafts,
        context: (input + real / 2.0) / (input + counted / 2.0).max(1.0),
        cache: (input + counted) / (input + real).max(1.0),
    };
    let output = real / f64::max(counted, 1.0);
    (cost.with_drafting(drafting), traffic, Gain { tokens, output })
}
