//! Speculative decoding as a process: every round drafts tokens and verifies them, and every sequence takes as many as
//! its own random draws allow.
//!
//! [`Speculating`] turns the decoding steps of any engine into rounds: queues, pages, pools and conversations are those
//! of the one simulator. Rounds are priced by the step-cost model: verification as a step in which every sequence runs
//! all its candidates, drafts by the draft model's own steps. With a batch the gain shrinks, because candidates cost
//! arithmetic: that is in the price, not assumed.

mod acceptance;
mod drafter;
#[cfg(test)]
mod oracle;
mod pearl;
mod round;
#[cfg(test)]
mod tests;

pub use acceptance::{Acceptance, Tree, TreeChances};
pub use drafter::{Drafter, parse_drafter};
pub use pearl::mean_tokens as pearl_mean_tokens;
pub(super) use round::Draws;
pub use round::Speculating;

use psim_cost_models::serving::{KINDS, StepCost};

/// Speed-up over ordinary decoding of one round at a batch and context: mean tokens · step / round.
pub fn speed_up(
    target: &StepCost,
    drafter: &Drafter<'_>,
    acceptance: &Acceptance,
    sequences: u32,
    context: &[u64; KINDS],
) -> f64 {
    let tokens = match (drafter, acceptance) {
        (Drafter::Parallel { tokens, .. }, Acceptance::Rate(rate)) => pearl_mean_tokens(*rate, *tokens),
        _ => drafter.mean_tokens(acceptance),
    };
    let step = target.decode_run(sequences).seconds(context);
    tokens * step / drafter.round_seconds(target, sequences, context)
}

/// The number of drafts (1 to `most`) with the highest speed-up, and that speed-up.
pub fn best_draft_length<'a>(
    target: &StepCost,
    acceptance: &Acceptance,
    (sequences, context): (u32, &[u64; KINDS]),
    most: u32,
    drafter: impl Fn(u32) -> Drafter<'a>,
) -> (u32, f64) {
    let mut best = (0, 1.0);
    for tokens in 1..=most {
        let gain = speed_up(target, &drafter(tokens), acceptance, sequences, context);
        if gain > best.1 {
            best = (tokens, gain);
        }
    }
    best
}

/// The tree size with the highest tokens per second on this hardware (PPD, section on hardware awareness), with that
/// speed-up over ordinary decoding.
pub fn best_tree_size(
    target: &StepCost,
    chances: &TreeChances,
    (sequences, context): (u32, &[u64; KINDS]),
    most: usize,
) -> (usize, f64) {
    let step = target.decode_run(sequences).seconds(context);
    let mut best = (0, 1.0);
    for nodes in 1..=most {
        let tree = chances.best_tree(nodes);
        let gain = tree.mean_tokens() * step / target.verify(sequences, tree.len() + 1, context);
        if gain > best.1 + 1e-12 {
            best = (nodes, gain);
        }
    }
    best
}
