//! How sure a step time is: the 80 % interval from what the step is made of.
//!
//! The logarithm of a step time has the variance of independent causes: the error of the kernel and collective tables,
//! what no mechanism explains (`residual_sigma` of the stack, 0.04: ten nominally equal boxes of 8 H100 spread 12 % on one
//! benchmark), and every mechanism's share of the step times its spread. A mechanism's spread is how far its cost moves
//! between software stacks that all call it the same: what an unseen stack, machine or team may hide. A step of matrix
//! products is surer than one that waits for pipelines, networks and experts.

use super::Pass;
use crate::prediction::Breakdown;
use psim_hardware::GroupShape;
use psim_hardware::profile::StackProfile;
use psim_models::lowering::Groups;

/// 80 % of a normal distribution lies within this many standard deviations.
pub const NORMAL_80: f64 = 1.2816;

/// Spreads of ln(cost) by mechanism. Round numbers of judgement: no fit moves them, but among several sets this one was kept
/// after looking at the left-out errors of the shared rows.
mod spreads {
    /// Large products on one part: power limits of equal boards.
    pub(super) const PRODUCTS: f64 = 0.04;
    /// Attention kernels of one generation, and memory-bound operators fused more or less: what the profiles of stacks of
    /// one era differ by.
    pub(super) const ATTENTION: f64 = 0.2;
    pub(super) const MEMORY_BOUND: f64 = 0.2;
    /// Grouped products, permutation and casts.
    pub(super) const EXPERTS: f64 = 0.3;
    /// Any step of a mixture: identical layouts gained 1.26 to 1.57 times between two releases of one framework, which is
    /// 0.13 as the deviation of an even spread over that range.
    pub(super) const MIXTURE: f64 = 0.13;
    /// Host threads: processors, Python and what else runs there.
    pub(super) const HOST: f64 = 0.5;
    /// Exposed communication: not the rate decides but what is hidden (0.28 to 0.38 of tensor-parallel traffic is exposed
    /// in Megatron-Core, 0.07 to 0.1 of data-parallel, all of both before), and between nodes other traffic.
    pub(super) const TENSOR: [f64; 2] = [0.5, 0.6];
    pub(super) const TOKENS: [f64; 2] = [0.4, 0.5];
    pub(super) const SENDS: [f64; 2] = [0.4, 0.5];
    pub(super) const GRADIENTS: [f64; 2] = [0.35, 0.6];
    /// Multiprocessors and bandwidth that communication takes from what runs beside it.
    pub(super) const CONTENTION: f64 = 0.5;
    /// Passes again, in a proportion that the schedule gives, and that the split of layers changes.
    pub(super) const BUBBLE: f64 = 0.1;
    pub(super) const IMBALANCE: f64 = 0.2;
    pub(super) const OPTIMIZER: f64 = 0.3;
    /// Slow nodes: a cluster has them or not.
    pub(super) const STRAGGLERS: f64 = 1.0;
}

/// Standard deviation of ln(step time) by cause, largest first.
pub(super) fn doubts(
    stack: &StackProfile,
    groups: &Groups,
    mean: &Pass,
    breakdown: &Breakdown,
    value: f64,
    mixture: bool,
) -> Vec<(&'static str, f64)> {
    let distant = |group: &GroupShape, spread: [f64; 2]| spread[usize::from(!group.is_local())];
    let [products, attention, experts, memory_bound] = mean.families;
    let b = breakdown;
    let mechanisms = [
        ("dense products", products, spreads::PRODUCTS),
        ("attention", attention, spreads::ATTENTION),
        ("experts and casts", experts, spreads::EXPERTS),
        ("software of mixtures", if mixture { value } else { 0.0 }, spreads::MIXTURE),
        ("memory-bound operators", memory_bound, spreads::MEMORY_BOUND),
        ("launch and host", b.launch.0 + b.fixed.0, spreads::HOST),
        ("exposed TP communication", b.tp_exposed.0, distant(&groups.tp, spreads::TENSOR)),
        ("exposed CP communication", b.cp_exposed.0, distant(&groups.cp, spreads::TENSOR)),
        ("exposed EP communication", b.ep_exposed.0, distant(&groups.ep, spreads::TOKENS)),
        ("exposed PP communication", b.pp_exposed.0, distant(&groups.pp, spreads::SENDS)),
        ("exposed DP communication", b.dp_exposed.0, distant(&groups.dp, spreads::GRADIENTS)),
        ("contention", b.contention.0, spreads::CONTENTION),
        ("pipeline bubble", b.bubble.0, spreads::BUBBLE),
        ("stage imbalance", b.imbalance.0, spreads::IMBALANCE),
        ("optimizer", b.optimizer.0, spreads::OPTIMIZER),
        ("stragglers", b.straggler.0, spreads::STRAGGLERS),
    ];
    let mut out = vec![("between runs", stack.residual_sigma), ("tables", table_sigma(mean))];
    if value > 0.0 {
        out.extend(mechanisms.map(|(name, seconds, spread)| {
            (name, stack.mechanism_spread * spread * (seconds / value).clamp(0.0, 1.0))
        }));
    }
    out.sort_by(|a, b| b.1.total_cmp(&a.1));
    out
}

/// Half of the 80 % interval of ln(step time).
pub fn half_width(doubts: &[(&'static str, f64)]) -> f64 {
    NORMAL_80 * doubts.iter().map(|(_, sigma)| sigma * sigma).sum::<f64>().sqrt()
}

/// Spread of ln(time) from the tables' own errors.
fn table_sigma(mean: &Pass) -> f64 {
    if mean.time <= 0.0 { 0.0 } else { (mean.variance.sqrt() / mean.time).min(0.5) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use psim_cost_models::ProfileLibrary;
    use psim_hardware::Seconds;

    fn groups() -> Groups {
        let alone = GroupShape { ranks: 1, per_domain: 1, per_node: 1, stride: 1, level: 0 };
        let [tp, cp, dp, pp, ep, etp, edp, shard] = [alone; 8];
        Groups { tp, cp, dp, pp, ep, etp, edp, shard, rack_scale: false }
    }

    fn stack() -> StackProfile {
        ProfileLibrary::built_in().stack("nemo-25").unwrap().clone()
    }

    /// A step of 1 s that computes for `products` and waits for token exchanges for the rest.
    fn width(stack: &StackProfile, products: f64, mixture: bool) -> f64 {
        let mean = Pass { time: products, families: [products, 0.0, 0.0, 0.0], ..Pass::default() };
        let breakdown = Breakdown { ep_exposed: Seconds(1.0 - products), ..Breakdown::default() };
        half_width(&doubts(stack, &groups(), &mean, &breakdown, 1.0, mixture))
    }

    #[test]
    fn what_waits_is_less_sure_than_what_computes() {
        let stack = stack();
        let (sure, unsure) = (width(&stack, 0.95, false), width(&stack, 0.6, false));
        assert!(sure < unsure && unsure < width(&stack, 0.6, true), "{sure} {unsure}");
        // In quadrature: 0.04 between runs, 0.04 of the products, a 5 % exchange (0.4 within a node).
        let by_hand =
            NORMAL_80 * f64::sqrt(0.04f64.powi(2) + (0.95f64 * 0.04).powi(2) + (0.05f64 * 0.4).powi(2));
        assert!((sure - by_hand).abs() < 1e-9, "{sure} against {by_hand}");
    }

    #[test]
    fn a_stack_measured_on_the_machine_keeps_its_own_spread_only() {
        let measured = StackProfile { residual_sigma: 0.03, mechanism_spread: 0.0, ..stack() };
        assert!((width(&measured, 0.5, true) - NORMAL_80 * 0.03).abs() < 1e-12);
    }
}
