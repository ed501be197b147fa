//! The space searched when nothing is said.

use super::{Choices, ExpertTp, SearchSpace, divisors};
use crate::rules::Facts;
use psim_hardware::profile::stack::Supports;
use psim_models::plan::{ContextParallel, Precision, Recompute, Schedule, Sharding};

/// Tokens per context-parallel rank below which no more ranks are tried.
const TOKENS_PER_CONTEXT_RANK: u64 = 2048;
/// Largest micro-batch tried: beyond it kernels are long since saturated.
const LARGEST_MICRO_BATCH: u32 = 16;
/// Largest number of chunks per stage tried.
const LARGEST_VPP: u32 = 12;

/// Pipeline stages on a part of `world` accelerators, at most `most`.
fn partial_pp(most: u32, world: u32) -> Vec<u32> {
    if world < 2 {
        return Vec::new();
    }
    let powers = (0..31).map(|e| 1u32 << e).take_while(|&p| p <= most);
    let mut out: Vec<u32> =
        powers.flat_map(|p| [p, 3 * p]).chain(divisors(most)).chain(divisors(world)).collect();
    out.retain(|&pp| pp <= most && pp <= world);
    out.sort_unstable();
    out.dedup();
    out
}

impl SearchSpace {
    /// Without what a framework does not offer.
    #[must_use]
    pub fn offered_by(mut self, supports: &Supports) -> Self {
        for (offered, degrees) in [
            (supports.tensor, &mut self.tp),
            (supports.pipeline, &mut self.pp),
            (supports.pipeline, &mut self.partial_pp),
            (supports.context, &mut self.cp),
        ] {
            degrees.retain(|&degree| offered || degree == 1);
        }
        if !supports.interleaved {
            self.vpp = Choices::DivisorsUpTo(1);
            self.schedules.retain(|&s| s != Schedule::Interleaved);
        }
        self.uneven &= supports.uneven;
        self.sharding.retain(|&sharding| supports.zero.contains(&sharding.zero_stage()));
        if self.sharding.is_empty() {
            self.sharding = vec![Sharding::None];
        }
        self
    }

    /// Without plans that leave accelerators idle.
    #[must_use]
    pub fn on_all_accelerators(mut self) -> Self {
        self.partial_pp.clear();
        self
    }

    /// Everything a practitioner would try for this model on this machine.
    ///
    /// tp takes powers of two (and the divisors of the scale-up domain) up to twice the domain: beyond it every
    /// collective leaves the fast links, and the bounds show it; it is not forbidden. pp takes divisors of the cluster; on
    /// a part of it also divisors of the layers, powers of two and three times those.
    pub fn default_for(facts: &Facts, scale_up_domain: u32, precision: &[Precision]) -> Self {
        let world = facts.accelerators.max(1);
        let powers = |most: u32| -> Vec<u32> {
            (0..31).map(|e| 1u32 << e).take_while(|&p| p <= most.min(world)).collect()
        };
        let mut tp = powers(scale_up_domain.max(8).saturating_mul(2).min(64));
        tp.extend(
            divisors(scale_up_domain)
                .into_iter()
                .filter(|&d| d <= world && world.is_multiple_of(d) && d <= 16),
        );
        tp.sort_unstable();
        tp.dedup();
        let pp = divisors(world).into_iter().filter(|&p| p <= facts.layers.min(128)).collect();
        let cp_most = (facts.seq_len / TOKENS_PER_CONTEXT_RANK).clamp(1, 64) as u32;
        let (ep, etp) = match facts.experts {
            Some((experts, _)) => {
                let most = u32::try_from(experts.min(u64::from(world))).unwrap_or(world);
                (powers(most), vec![ExpertTp::Fixed(1), ExpertTp::SameAsTp])
            }
            None => (vec![1], vec![ExpertTp::Fixed(1)]),
        };
        Self {
            tp,
            pp,
            cp: powers(cp_most),
            ep,
            etp,
            vpp: Choices::DivisorsUpTo(LARGEST_VPP),
            micro_batch: Choices::DivisorsUpTo(LARGEST_MICRO_BATCH),
            recompute: vec![Recompute::None, Recompute::Selective, Recompute::Full],
            recompute_quarters: true,
            sharding: vec![Sharding::None, Sharding::Optimizer, Sharding::Parameters],
            schedules: vec![Schedule::OneFOneB, Schedule::Interleaved],
            sequence_parallel: vec![true],
            cp_kind: vec![ContextParallel::Ring],
            precision: precision.to_vec(),
            uneven: true,
            partial_pp: partial_pp(facts.layers.min(128), world),
        }
    }
}
