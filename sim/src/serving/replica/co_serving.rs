//! Fine-tuning beside inference (FlexLLM, arXiv 2402.18789, section 6): each step is filled up with tokens of the tuning
//! job as far as the promised step time allows; idle engines tune alone.

use super::{PromptChunk, Replica};
use psim_cost_models::serving::{Lane as LaneWork, StepCost};

/// Passes of the base model per tuned token: forward, and the gradient of the activations. Its weights are frozen, so
/// that no pass for their gradient is needed.
const PASSES: f64 = 2.0;

impl Replica<'_> {
    /// Steps are filled with fine-tuning.
    pub(super) fn tunes(&self) -> bool {
        self.limits.rules.co_serving && self.limits.co_serving.is_some()
    }

    /// Seconds of the planned step, filled up where the policy does that.
    pub(super) fn tuned_seconds(&mut self, cost: &StepCost) -> f64 {
        let base = self.step_seconds(cost, &self.work());
        self.tuning = 0;
        let Some(options) = self.limits.co_serving.filter(|_| self.limits.rules.co_serving) else {
            return base;
        };
        let (tokens, seconds) = largest(options.most_tokens, options.step.0, |tokens| {
            let chunks: Vec<Vec<PromptChunk>> = self
                .lanes
                .iter()
                .map(|l| {
                    let mut chunks = l.chunks.clone();
                    chunks.push(PromptChunk { tokens, before: 0 });
                    chunks
                })
                .collect();
            let mut work = self.work();
            for (lane, chunks) in work.iter_mut().zip(&chunks) {
                lane.chunks = chunks;
            }
            self.step_seconds(cost, &work)
        });
        self.tuning = tokens;
        if tokens == 0 { base } else { seconds }
    }

    /// Books the fine-tuning of the step that has ended.
    pub(super) fn book_tuning(&mut self) {
        self.sums.tuned += f64::from(self.tuning) * self.lanes.len() as f64 / PASSES;
        self.tuning = 0;
    }

    /// Books what an engine without requests has tuned since it fell idle.
    pub(in crate::serving) fn tune_idle(&mut self, cost: &StepCost, now: u64) {
        let Some(options) = self.limits.co_serving.filter(|_| self.limits.rules.co_serving) else { return };
        if self.pending.is_some() || self.idle_since >= now {
            return;
        }
        let lanes = self.lanes.len();
        let (tokens, seconds) = largest(options.most_tokens, options.step.0, |tokens| {
            let chunk = [PromptChunk { tokens, before: 0 }];
            cost.seconds(&vec![LaneWork { chunks: &chunk, ..LaneWork::default() }; lanes])
        });
        if tokens > 0 {
            let idle = (now - self.idle_since) as f64 * 1e-12;
            self.sums.tuned += idle / seconds * f64::from(tokens) * lanes as f64 / PASSES;
        }
        self.idle_since = now;
    }
}

/// The most tokens, up to `most`, whose step takes no longer than `limit`, and its time; 0 where none fits.
fn largest(most: u32, limit: f64, seconds: impl Fn(u32) -> f64) -> (u32, f64) {
    let (mut low, mut best) = (0, 0.0);
    let mut high = most + 1;
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        let time = seconds(middle);
        if time <= limit {
            (low, best) = (middle, time);
        } else {
            high = middle;
        }
    }
    (low, best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_filling_is_found() {
        assert_eq!(largest(1000, 0.05, |t| 0.01 + 1e-4 * f64::from(t)).0, 400);
        assert_eq!(largest(300, 0.05, |t| 0.01 + 1e-4 * f64::from(t)).0, 300);
        assert_eq!(largest(300, 0.005, |t| 0.01 + 1e-4 * f64::from(t)), (0, 0.0));
    }
}
