//! The software stack profile: what a framework of some era decides, independent of model and machine.

pub mod parameters;
pub mod without;

pub use parameters::{PARAMETERS, Parameter, ParameterError};
pub use without::{MECHANISMS, Mechanism, Without};

use crate::{Bytes, Seconds};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which kernel computes the attention core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttentionKernel {
    /// Batched GEMMs with the score matrix in memory.
    Unfused,
    /// FlashAttention 1 (2022).
    Flash1,
    /// FlashAttention 2 (2023).
    Flash2,
    /// FlashAttention 3 (Hopper, 2024).
    Flash3,
    /// cuDNN fused attention as used by Transformer Engine.
    Cudnn,
}

/// Which memory-bound operators run fused into one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fusion {
    /// Scale, mask and softmax of unfused attention in one kernel.
    pub softmax: bool,
    /// Where they are not one kernel, they run in fp32 on a converted copy of the scores (Megatron with query-key layer
    /// scaling, its default until 2022).
    #[serde(default)]
    pub fp32_scores: bool,
    /// Bias and activation (or SwiGLU) in one kernel.
    pub activation: bool,
    /// Bias, dropout and residual addition in one kernel.
    pub residual: bool,
    /// Normalisation in one kernel (forward one, backward two).
    pub norm: bool,
    /// Rotary embedding in one kernel.
    pub rope: bool,
    /// Softmax and cross-entropy over the vocabulary without materialised fp32 copies.
    pub cross_entropy: bool,
    /// Expert permutation fused with padding and cast.
    pub moe_permute: bool,
    /// Block-scaled grouped products that take tokens where the dispatch kernel put them, and activate and cast in their
    /// epilogue (rack-scale NVLink parts): no permutation, sorting or casts of their own, dispatch in the narrow format.
    #[serde(default)]
    pub expert_kernels: bool,
    /// Scales of per-tensor fp8 come from earlier steps (delayed scaling); otherwise every cast reads its tensor once
    /// more for the maximum (current scaling).
    #[serde(default = "on")]
    pub delayed_scaling: bool,
    /// Weight-gradient products add to the gradient buffer themselves (`gradient_accumulation_fusion` of Megatron, 2022);
    /// otherwise they write a gradient of their own that a second kernel adds to the buffer in every micro-batch.
    #[serde(default = "on")]
    pub accumulation: bool,
}

fn on() -> bool {
    true
}

/// What communication the framework hides, and how.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overlap {
    /// Tensor-parallel collectives are pipelined with their GEMM (chunked user buffers).
    pub tp: bool,
    /// Without sequence parallelism, the input gradient of a column-parallel layer is summed behind its weight gradient
    /// (Megatron-LM from 2022, `LinearWithGradAccumulationAndAsyncCommunication`).
    #[serde(default)]
    pub input_reduce: bool,
    /// Gradient reduction runs bucket by bucket behind the backward pass.
    pub grad_reduce: bool,
    /// Parameter gathering of a sharded optimizer runs behind the next forward pass.
    pub param_gather: bool,
    /// Pipeline sends and receives run behind compute.
    pub p2p: bool,
    /// Expert all-to-all of one micro-batch runs behind compute of another.
    pub ep: bool,
    /// Context-parallel ring exchange runs behind the attention blocks.
    pub cp: bool,
    /// Units gathered ahead by FSDP / ZeRO-3 (0: gather just in time, exposed).
    pub fsdp_prefetch: u32,
    /// A token goes once to each domain that holds experts of its choice and is forwarded inside (DeepEP, HybridEP),
    /// instead of once per expert.
    #[serde(default)]
    pub deduplicated_dispatch: bool,
    /// Sharded parameters travel in the format that the matrix products read (fp8 primary weights).
    #[serde(default)]
    pub narrow_gather: bool,
    /// Size at which a gradient bucket is sent.
    pub bucket: Bytes,
    /// A bucket holds at least this for every rank that reduces it (Megatron-Core: the greater of 40 million elements and
    /// one million for each rank, so that every rank's share is worth a message).
    #[serde(default)]
    pub bucket_per_rank: Bytes,
}

/// Host-side costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Host time to launch one kernel from the framework; compute cannot run faster than the host issues.
    pub launch: Seconds,
    /// Device-side gap between two dependent kernels.
    pub gap: Seconds,
    /// Fixed cost per micro-batch and stage (Python, schedule, synchronisation).
    pub per_micro_batch: Seconds,
    /// Fixed cost per step (data loading, logging, norm synchronisation).
    pub per_step: Seconds,
    /// Device synchronisation after every pipeline send and receive that is not overlapped (`batch_p2p_sync` of
    /// Megatron): the queue of kernels runs dry once.
    #[serde(default)]
    pub p2p_sync: Seconds,
    /// Host synchronisation per MoE layer and pass (token counts read back).
    pub moe_sync: Seconds,
    /// Kernels launched per local expert and grouped product (one GEMM call per expert and its casts); 0: one fused
    /// kernel for all experts.
    #[serde(default)]
    pub expert_launches: f64,
    /// Host time per rank of a gather or scatter of one sharded weight, where Python cuts the buffer into a slice a rank
    /// and each is copied by a kernel of its own (`_allgather_param` and collectives over lists, DeepSpeed of 2021).
    #[serde(default)]
    pub per_slice: Seconds,
    /// The step is replayed from CUDA graphs: launches cost nothing.
    pub cuda_graphs: bool,
}

/// State kept per parameter, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct States {
    /// Gradient accumulation buffer.
    pub gradient: f64,
    /// Format of the gradient on the wire.
    pub gradient_wire: f64,
    /// Master weights.
    pub master: f64,
    /// Both Adam moments.
    pub moments: f64,
    /// Gradient buffers under fp16, where they differ from those under bf16 (bf16 optimizers accumulate in fp32).
    #[serde(default)]
    pub fp16_gradient: Option<f64>,
    /// fp32 copy of the (sharded) gradients that exists during the update under fp16.
    #[serde(default)]
    pub sharded_gradient: f64,
    /// Under bf16, one weight's gradient at a time is converted to fp32 before it is added to its buffer
    /// (`BF16_Optimizer.update_hp_grads` of DeepSpeed): a copy of 4 bytes an element of the largest weight of the stage.
    #[serde(default)]
    pub bf16_gradient_copy: bool,
    /// Where parameters are sharded, ranks keep a shard in the format of the arithmetic beside the fp32 master (ZeRO-3:
    /// 16 bytes an element over the ranks, arXiv 1910.02054, figure 1); FSDP's fp32 shard is the master itself.
    #[serde(default)]
    pub shard_beside_master: bool,
    /// The whole gradients are summed on every rank although the optimizer is sharded. ZeRO-1 of DeepSpeed reduces without
    /// contiguous buffers, hence through `buffered_reduce_fallback` to all ranks (`_configure_zero_optimizer`,
    /// `reduce_ipg_grads`); its bf16 optimizer hands flat buffers to the engine's all-reduce (`_bf16_reduce_grads`), which
    /// sends them in the format of communication (`gradient_wire`), not in that of the buffers (`allreduce_bucket`).
    #[serde(default)]
    pub whole_reduction: bool,
}

impl States {
    /// Bytes of one element of the buffer that gradients are added to, and whether a second copy in the format of the
    /// products is kept beside it (the bf16 optimizer of DeepSpeed, 6 bytes in all).
    pub fn gradient_buffer(&self, fp16: bool) -> (f64, bool) {
        let all = if fp16 { self.fp16_gradient.unwrap_or(self.gradient) } else { self.gradient };
        if all > 4.0 { (4.0, true) } else { (all, false) }
    }

    /// The optimizer of bf16 training holds fp32 gradients of its own beside those of the products.
    pub fn is_bf16_optimizer(&self, bf16: bool) -> bool {
        bf16 && self.gradient_buffer(false).1
    }
}

/// What the framework keeps on the device beside tensors.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryOverheads {
    /// Driver context, libraries and workspaces.
    pub context: Bytes,
    /// Communication buffers per communicator with more than one rank.
    pub per_communicator: Bytes,
    /// Fragmentation: reserved over allocated, for the activation part.
    pub fragmentation: f64,
    /// Where weight-gradient products add to the buffer themselves, autograd still gets a gradient of the right shape
    /// that nobody reads; kept from then on, one per shape (`get_dummy_wgrad` of Transformer Engine).
    #[serde(default)]
    pub placeholder_gradients: bool,
}

/// Efficiencies of the stack's kernels relative to the measured tables of the machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Efficiency {
    /// Sustained over tabled GEMM rate (power, clocks, layout); in (0, 1.2].
    pub gemm: f64,
    /// Same for the attention core.
    pub attention: f64,
    /// Reached over tabled memory bandwidth of fused memory-bound operators.
    pub memory: f64,
    /// Reached over tabled bus bandwidth of collectives.
    pub network: f64,
    /// Grouped GEMM over dense GEMM of the same rows.
    pub grouped_gemm: f64,
    /// Expert permutation and low-precision casts over other memory-bound operators.
    #[serde(default = "one")]
    pub permute: f64,
    /// Compute slow-down while a collective runs beside it (SMs and memory bandwidth taken), fraction.
    pub contention: f64,
    /// The same while the token exchange of another micro-batch's experts runs beside it. Dispatch kernels hold 16 to 24
    /// multiprocessors (DeepEP: 24 of 132, a slow-down of 0.14 to 0.22) and move every token four to six times through
    /// device memory (send, receive and staging buffers: about a third of the bandwidth against memory-bound operators).
    #[serde(default = "dispatch_contention")]
    pub dispatch_contention: f64,
    /// Relative step-time growth per doubling of nodes (stragglers, jitter).
    pub straggler: f64,
}

fn one() -> f64 {
    1.0
}

fn dispatch_contention() -> f64 {
    0.25
}

/// Which layouts a framework offers: the planner proposes no others for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Supports {
    /// Tensor parallelism.
    pub tensor: bool,
    /// Pipeline stages.
    pub pipeline: bool,
    /// Several model chunks per stage.
    pub interleaved: bool,
    /// Stages of unequal numbers of layers.
    pub uneven: bool,
    /// Context parallelism.
    pub context: bool,
    /// ZeRO stages, 0 to 3.
    pub zero: Vec<u8>,
}

impl Default for Supports {
    fn default() -> Self {
        Self {
            tensor: true,
            pipeline: true,
            interleaved: true,
            uneven: true,
            context: true,
            zero: vec![0, 1, 2, 3],
        }
    }
}

/// One release of a stack, with at most three changed parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Text that selects it, compared with the container, release or date a user or a row names.
    pub matches: Vec<String>,
    /// Dotted key to value (`efficiency.gemm = 0.9`), at most three.
    pub deltas: BTreeMap<String, f64>,
    /// Why, with a source.
    #[serde(default)]
    pub note: String,
}

/// A software stack: framework and era.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StackProfile {
    /// Schema version of the file.
    pub schema: u32,
    /// Name (`megatron-core-2024`).
    pub name: String,
    /// One sentence.
    pub description: String,
    /// Year and month of the era as a number (2024.5), used to find the nearest stack.
    pub era: f64,
    /// Framework names this profile answers to, lower case, substring match.
    pub frameworks: Vec<String>,
    /// Attention kernel.
    pub attention: AttentionKernel,
    /// Operator fusion.
    pub fusion: Fusion,
    /// Communication overlap.
    pub overlap: Overlap,
    /// Host costs.
    pub host: Host,
    /// Optimizer and gradient state.
    pub states: States,
    /// Device memory beside tensors.
    pub memory: MemoryOverheads,
    /// Kernel efficiencies.
    pub efficiency: Efficiency,
    /// Dropout is active (its masks are kept for the backward pass).
    pub dropout: bool,
    /// Logits are kept and reduced in fp32.
    pub fp32_logits: bool,
    /// Standard deviation of ln(measured / predicted) that no mechanism below explains, for the interval.
    pub residual_sigma: f64,
    /// How far the cost of a mechanism may be from its prediction, over the documented spread of that mechanism
    /// (`sim/src/step/interval.rs`): 0 where the stack was measured on the very machine.
    #[serde(default = "one")]
    pub mechanism_spread: f64,
    /// Layouts that the framework offers; all where nothing is said.
    #[serde(default)]
    pub supports: Supports,
    /// Mechanisms taken out, to see what they cost.
    #[serde(default)]
    pub without: Without,
    /// Releases, oldest first.
    #[serde(default)]
    pub releases: Vec<Release>,
}
