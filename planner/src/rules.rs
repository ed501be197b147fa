//! Legality of a plan: one rule per file, each with a name, a test and an explanation in numbers.
//!
//! Rules only reject what cannot run, or what no implementation offers; what is merely slow is left to the bounds.

mod chunks;
mod cluster_size;
mod context;
mod data_batch;
mod experts;
mod heads;
mod interleaving;
mod kv_heads;
mod micro_batch;
mod precision;
mod schedule;
mod sequence_parallel;
mod sharding;
mod width;

use psim_hardware::{Cluster, DType};
use psim_models::Model;
use psim_models::Plan;
use psim_models::arch::{Ffn, Mixer};

/// What the rules need to know about the question.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Query heads of every attention kind in the model.
    pub heads: Vec<u64>,
    /// Key-value heads of every attention kind in the model.
    pub kv_heads: Vec<u64>,
    /// Inner widths of dense feed-forward layers and shared experts.
    pub ffn_widths: Vec<u64>,
    /// Layers, encoder included.
    pub layers: u32,
    /// Routed experts and their inner width.
    pub experts: Option<(u64, u64)>,
    /// Tokens per sequence.
    pub seq_len: u64,
    /// Accelerators of the cluster.
    pub accelerators: u32,
    /// Accelerators of a node: launchers start whole nodes.
    pub per_node: u32,
    /// Fewer accelerators than the cluster has may be used.
    pub may_idle: bool,
    /// Formats with matrix units on every accelerator of the cluster.
    pub formats: Vec<DType>,
    /// Name of the accelerator, for messages.
    pub accelerator: String,
}

impl Facts {
    /// Collects the facts.
    pub fn new(model: &Model, cluster: &Cluster, seq_len: u64) -> Self {
        let mut heads = Vec::new();
        let mut kv_heads = Vec::new();
        let mut ffn_widths = Vec::new();
        for block in model.kinds.iter().chain(model.encoder.iter().map(|e| &e.block)) {
            match &block.mixer {
                Mixer::Attention(a) => {
                    heads.push(a.heads);
                    kv_heads.push(a.kv_heads);
                }
                Mixer::Mla(m) => heads.push(m.heads),
                Mixer::Mamba2(m) => heads.push(m.heads),
                Mixer::Linear(l) => heads.extend([l.key_heads, l.value_heads]),
                Mixer::None => {}
            }
            if let Some(cross) = &block.cross_attention {
                heads.push(cross.heads);
                kv_heads.push(cross.kv_heads);
            }
            match &block.ffn {
                Ffn::Dense(f) => ffn_widths.push(f.hidden),
                Ffn::Moe(m) if m.shared_hidden > 0 => ffn_widths.push(m.shared_hidden),
                Ffn::Moe(_) | Ffn::None => {}
            }
        }
        for list in [&mut heads, &mut kv_heads, &mut ffn_widths] {
            list.sort_unstable();
            list.dedup();
        }
        let formats = DType::ALL
            .into_iter()
            .filter(|&d| cluster.groups.iter().all(|g| g.node.accelerator.peak(d).is_some()))
            .collect();
        Self {
            heads,
            kv_heads,
            ffn_widths,
            layers: model.layers() + model.encoder.as_ref().map_or(0, |e| e.layers),
            experts: model.moe().map(|m| (m.experts, m.hidden)),
            seq_len,
            accelerators: cluster.accelerators(),
            per_node: cluster.first_node().accelerators.max(1),
            may_idle: false,
            formats,
            accelerator: cluster.slowest_node().accelerator.name.clone(),
        }
    }
}

/// Which fields of a plan a rule reads; rules run as soon as these are known, so that one test removes many plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// tp, pp, cp, dp (dp as the rest of the cluster).
    Mesh,
    /// Also ep and etp.
    Experts,
    /// Also vpp and schedule.
    Chunks,
    /// Also global batch and micro-batch.
    Batch,
    /// Everything.
    Execution,
}

/// A legality rule.
pub trait Rule: Sync {
    /// Short name, as printed when it killed candidates.
    fn name(&self) -> &'static str;

    /// Fields it reads.
    fn stage(&self) -> Stage;

    /// The plan is legal as far as this rule knows.
    fn permits(&self, facts: &Facts, plan: &Plan) -> bool;

    /// Requested against available, for a plan that is not permitted.
    fn explain(&self, facts: &Facts, plan: &Plan) -> String;
}

/// Every rule, in the order in which they run (cheap and sweeping ones first inside a stage).
pub const ALL: &[&dyn Rule] = &[
    // Mesh: the product must fit the machine before anything else makes sense.
    &cluster_size::ClusterSize,
    &heads::Heads,
    &kv_heads::KvHeads,
    &width::Width,
    &context::Context,
    // Experts: folded inside tp·cp·dp, so after the mesh.
    &experts::Experts,
    // Chunks: layers over pp·vpp.
    &chunks::Chunks,
    &schedule::Schedules,
    // Batch: needs dp.
    &data_batch::DataBatch,
    &micro_batch::MicroBatch,
    &interleaving::Interleaving,
    // Execution: combinations of the rest.
    &sharding::ShardingRule,
    &sequence_parallel::SequenceParallel,
    &precision::PrecisionRule,
];

/// The first rule that forbids `plan`.
pub fn first_violation(facts: &Facts, plan: &Plan) -> Option<&'static dyn Rule> {
    ALL.iter().copied().find(|rule| !rule.permits(facts, plan))
}

#[cfg(test)]
mod tests;
