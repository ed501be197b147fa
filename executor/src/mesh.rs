//! Which rank does what: coordinates in the mesh (tp fastest, then cp, dp, pp, as Megatron orders them) and groups.

use crate::error::{Result, divides};
use crate::network::Network;
use psim_models::Plan;
use psim_models::layout::Layout;

/// Ranks of one communicator, in order, and this rank's place among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Global ranks.
    pub ranks: Vec<usize>,
    /// Index of this rank.
    pub index: usize,
}

impl Group {
    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.ranks.len()
    }
}

/// One rank's coordinates and communicators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mesh {
    /// This rank.
    pub rank: usize,
    /// Sizes (tp, cp, dp, pp).
    sizes: [usize; 4],
    /// Coordinates (tp, cp, dp, pp).
    at: [usize; 4],
    /// Tensor-parallel group.
    pub tp: Group,
    /// Context-parallel group.
    pub cp: Group,
    /// Ranks that hold the same dense parameters (dp and cp).
    pub replicas: Group,
    /// Expert-parallel group.
    pub ep: Group,
    /// Tensor-parallel group inside experts.
    pub etp: Group,
    /// Ranks that hold the same experts.
    pub expert_replicas: Group,
}

impl Mesh {
    /// The mesh as seen by `rank`.
    ///
    /// # Errors
    /// When the expert mesh does not divide the attention mesh.
    pub fn new(plan: &Plan, rank: usize) -> Result<Self> {
        let sizes = [plan.tp, plan.cp, plan.dp, plan.pp].map(|s| s.max(1) as usize);
        let mut at = [0; 4];
        let mut rest = rank;
        for (coordinate, size) in at.iter_mut().zip(sizes) {
            *coordinate = rest % size;
            rest /= size;
        }
        let stage_ranks = sizes[0] * sizes[1] * sizes[2];
        let (etp, ep) = (plan.etp.max(1) as usize, plan.ep.max(1) as usize);
        divides(
            "tp · cp · dp",
            stage_ranks as u64,
            (etp * ep) as u64,
            "experts are laid out on etp · ep ranks",
        )?;
        let base = at[3] * stage_ranks;
        let local = rank - base;
        let pick = |ranks: Vec<usize>| {
            let index = ranks.iter().position(|&r| r == rank).unwrap_or(0);
            Group { ranks, index }
        };
        let along = |stride: usize, size: usize| {
            let first = local - (local / stride % size) * stride;
            pick((0..size).map(|i| base + first + i * stride).collect())
        };
        let edp = stage_ranks / (etp * ep);
        Ok(Self {
            rank,
            sizes,
            at,
            tp: along(1, sizes[0]),
            cp: along(sizes[0], sizes[1]),
            replicas: along(sizes[0], sizes[1] * sizes[2]),
            ep: along(etp, ep),
            etp: along(1, etp),
            expert_replicas: along(etp * ep, edp),
        })
    }

    /// The two ranks that share a tied embedding, when first and last chunk lie on different stages.
    pub(crate) fn embedding_peers(&self, network: &Network, layout: &Layout) -> Option<Group> {
        let last = layout.stage_of(layout.chunks.len().saturating_sub(1));
        let first = layout.stage_of(0);
        let stage = self.stage();
        if !network.tied || first == last || (stage != first && stage != last) {
            return None;
        }
        let ranks = vec![self.on_stage(first), self.on_stage(last)];
        Some(Group { index: usize::from(stage == last), ranks })
    }

    /// Index in the tensor-parallel group.
    pub fn tp_index(&self) -> usize {
        self.at[0]
    }
    /// Index in the context-parallel group.
    pub fn cp_index(&self) -> usize {
        self.at[1]
    }
    /// Data-parallel replica.
    pub fn dp_index(&self) -> usize {
        self.at[2]
    }
    /// Pipeline stage.
    pub fn stage(&self) -> usize {
        self.at[3]
    }
    /// The rank with the same coordinates on another stage.
    pub fn on_stage(&self, stage: usize) -> usize {
        let stage_ranks = self.sizes[0] * self.sizes[1] * self.sizes[2];
        self.rank % stage_ranks + stage * stage_ranks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests_support::plan;

    #[test]
    fn every_group_is_a_partition() {
        let plan = Plan { tp: 2, cp: 2, dp: 4, pp: 2, ep: 4, etp: 2, ..plan() };
        let meshes: Vec<Mesh> = (0..32).map(|r| Mesh::new(&plan, r).unwrap()).collect();
        for select in [
            |m: &Mesh| m.tp.clone(),
            |m: &Mesh| m.cp.clone(),
            |m: &Mesh| m.replicas.clone(),
            |m: &Mesh| m.ep.clone(),
            |m: &Mesh| m.etp.clone(),
            |m: &Mesh| m.expert_replicas.clone(),
        ] {
            for mesh in &meshes {
                let group = select(mesh);
                assert_eq!(group.ranks[group.index], mesh.rank);
                for &peer in &group.ranks {
                    assert_eq!(select(&meshes[peer]).ranks, group.ranks);
                    assert_eq!(meshes[peer].stage(), mesh.stage());
                }
            }
        }
        assert_eq!(meshes[5].on_stage(1), 21);
    }

    #[test]
    fn experts_must_divide_the_stage() {
        assert!(Mesh::new(&Plan { tp: 2, ep: 4, ..plan() }, 0).is_err());
    }
}
