//! Rounds in place of decoding steps: what one costs, and how many tokens each sequence takes from it.

use super::pearl::PearlState;
use super::{Acceptance, Drafter};
use psim_cost_models::serving::{Lane, StepCost};
use psim_models::serving::ServingShape;
use psim_models::serving::rng::Rng;

/// An engine that speculates: in every step each decoding sequence verifies drafts and takes one token or more.
#[derive(Debug, Clone)]
pub struct Speculating<'a> {
    drafter: Drafter<'a>,
    acceptance: Acceptance,
    seed: u64,
    /// The target with all candidates of a round in its steps.
    verifying: StepCost,
}

/// What the draws of one sequence remember.
#[derive(Debug, Clone)]
pub(in crate::serving) struct Draws {
    rng: Rng,
    pearl: PearlState,
}

impl<'a> Speculating<'a> {
    /// Drafts from `drafter` for the model that `target` prices, taken by chance; a tree brings its own chances.
    pub fn new(target: &StepCost, drafter: Drafter<'a>, acceptance: Acceptance, seed: u64) -> Self {
        let drafts = match &drafter {
            // The last of them are drafted while the first are verified.
            Drafter::Parallel { tokens, .. } => tokens.saturating_sub(1),
            other => other.tokens(),
        };
        Self { verifying: target.verifying(drafts), drafter, acceptance, seed }
    }

    /// The source of drafts.
    pub fn drafter(&self) -> &Drafter<'a> {
        &self.drafter
    }

    /// Tokens that a round writes into the cache of a sequence at most: the drafts and the target's own.
    pub(in crate::serving) fn most_tokens(&self) -> u32 {
        self.drafter.tokens() + 1
    }

    /// Bytes for the cache on one accelerator beside the weights of drafts.
    pub fn cache_bytes(&self, target: &StepCost) -> f64 {
        (target.cache_bytes() - self.drafter.weight_bytes(target.shape())).max(0.0)
    }

    /// What the cache of a sequence consists of, drafts' own included.
    pub fn cached(&self, target: &StepCost) -> ServingShape {
        self.drafter.cached(target.shape())
    }

    /// Seconds of a step of `lanes` in which every decoding sequence runs a round and the draft model reads the prompts
    /// too. A step that only decodes, in one lane, is [`Drafter::round_seconds`].
    pub(in crate::serving) fn seconds(&self, target: &StepCost, lanes: &[Lane<'_>]) -> f64 {
        let decodes = lanes.iter().any(|l| l.decoding > 0);
        if let ([lane], true) = (lanes, decodes)
            && lane.chunks.is_empty()
        {
            return self.drafter.round_seconds(target, lane.decoding, &lane.context);
        }
        let step = if decodes { self.verifying.seconds(lanes) } else { target.seconds(lanes) };
        let drafts = if decodes { self.drafter.lanes_seconds(target, lanes) } else { 0.0 };
        let beside = drafts + self.drafter.prompt_seconds(lanes);
        match self.drafter {
            Drafter::Parallel { .. } => step.max(beside),
            _ => step + beside,
        }
    }

    /// Draws for the sequence of a request, by its place in the traffic.
    pub(in crate::serving) fn draws(&self, number: u64) -> Draws {
        Draws { rng: Rng::new(self.seed, number + 1), pearl: PearlState::default() }
    }

    /// Tokens that a sequence takes from its next round, the target's own included.
    pub(in crate::serving) fn taken(&self, draws: &mut Draws) -> u32 {
        let drafts = self.drafter.tokens();
        match &self.drafter {
            Drafter::Tree(tree) => tree.draw(&mut draws.rng) + 1,
            Drafter::Parallel { .. } if drafts > 1 => {
                draws.pearl.round(drafts, &self.acceptance, &mut draws.rng)
            }
            _ => self.acceptance.draw(drafts, &mut draws.rng) + 1,
        }
    }
}
