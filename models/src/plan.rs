//! A parallel plan: how a training job is laid out.

use psim_hardware::{DType, Scaling};
use serde::{Deserialize, Serialize};

/// Parallel layout and execution choices of a training job. `world = tp · pp · dp · cp`; expert groups lie inside
/// `tp · cp · dp`, folded independently of the attention mesh (`edp = tp·cp·dp / (etp·ep)`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Tensor-parallel ranks.
    pub tp: u32,
    /// Pipeline stages.
    pub pp: u32,
    /// Data-parallel replicas.
    pub dp: u32,
    /// Context-parallel ranks.
    #[serde(default = "one")]
    pub cp: u32,
    /// Expert-parallel ranks.
    #[serde(default = "one")]
    pub ep: u32,
    /// Tensor-parallel ranks inside an expert.
    #[serde(default = "one")]
    pub etp: u32,
    /// Model chunks per pipeline stage (interleaving).
    #[serde(default = "one")]
    pub vpp: u32,
    /// Sequences per micro-batch and replica.
    pub micro_batch: u32,
    /// Sequences per step.
    pub global_batch: u32,
    /// Megatron sequence parallelism (norms and residuals sharded over tp).
    #[serde(default = "yes")]
    pub sequence_parallel: bool,
    /// Activation recomputation.
    #[serde(default)]
    pub recompute: Recompute,
    /// What data-parallel ranks share.
    #[serde(default)]
    pub sharding: Sharding,
    /// Ranks over which FSDP / ZeRO states are sharded when fewer than all data-parallel ranks (HSDP); 0: all.
    #[serde(default)]
    pub shard_group: u32,
    /// Pipeline schedule.
    #[serde(default)]
    pub schedule: Schedule,
    /// How context parallelism exchanges keys and values.
    #[serde(default)]
    pub cp_kind: ContextParallel,
    /// Arithmetic.
    #[serde(default)]
    pub precision: Precision,
    /// Layers per model chunk, in model order (`pp · vpp` entries; chunk `c` runs on stage `c mod pp`). Empty: even.
    #[serde(default)]
    pub stage_layers: Vec<u32>,
    /// Embedding and output layer are split over all pipeline stages (Vocabulary Parallelism, arXiv 2411.05288).
    #[serde(default)]
    pub vocabulary_parallel: bool,
}

fn one() -> u32 {
    1
}
fn yes() -> bool {
    true
}

/// Activation recomputation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recompute {
    /// Keep everything.
    #[default]
    None,
    /// Recompute the attention core only (Korthikanti et al. 2022, section 5).
    Selective,
    /// Keep each layer's input, recompute the layer.
    Full,
    /// Full recomputation of the first `n` layers of each chunk.
    Layers(u32),
}

/// What is sharded over data-parallel ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sharding {
    /// Nothing: all-reduce of gradients.
    None,
    /// Optimizer states (ZeRO-1, Megatron's distributed optimizer): reduce-scatter and all-gather.
    #[default]
    Optimizer,
    /// Optimizer states and gradients (ZeRO-2).
    Gradients,
    /// Everything (ZeRO-3, FSDP): parameters gathered per layer and pass.
    Parameters,
}

impl Sharding {
    /// Stage in the words of ZeRO (arXiv 1910.02054, section 5): 0 to 3.
    pub fn zero_stage(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Optimizer => 1,
            Self::Gradients => 2,
            Self::Parameters => 3,
        }
    }
}

/// Pipeline schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// All forwards, then all backwards.
    Gpipe,
    /// One forward, one backward (PipeDream-flush).
    #[default]
    #[serde(rename = "1f1b")]
    OneFOneB,
    /// Interleaved 1F1B with `vpp` chunks per stage.
    Interleaved,
    /// Zero bubble ZB-H1 (memory of 1F1B).
    ZbH1,
    /// Zero bubble ZB-H2 (about twice the memory).
    ZbH2,
    /// Zero bubble V schedule (two chunks per stage).
    ZbV,
}

/// Context-parallel exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContextParallel {
    /// Ring attention: keys and values travel around, balanced causal blocks.
    #[default]
    Ring,
    /// DeepSpeed Ulysses: all-to-all from sequence to head sharding and back.
    Ulysses,
    /// Keys and values gathered before attention (Llama 3).
    AllGather,
}

/// Arithmetic of matrix multiplications; weights and activations outside them stay in the base format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// fp32 throughout.
    Fp32,
    /// fp16 with loss scaling.
    Fp16,
    /// bf16.
    #[default]
    Bf16,
    /// fp8 with per-tensor scales (delayed or current).
    Fp8,
    /// fp8 with 32-element block scales (Blackwell).
    MxFp8,
    /// fp8 with 128-element block scales (DeepSeek recipe).
    #[serde(rename = "fp8-block")]
    Fp8Block,
    /// 4-bit float with block scales; some layers stay in bf16.
    NvFp4,
}

impl Precision {
    /// Format of activations and of the working copy of the weights.
    pub fn base(self) -> DType {
        match self {
            Self::Fp32 => DType::Fp32,
            Self::Fp16 => DType::Fp16,
            _ => DType::Bf16,
        }
    }

    /// Format of the linear layers' GEMMs.
    pub fn gemm(self) -> DType {
        match self {
            Self::Fp32 => DType::Fp32,
            Self::Fp16 => DType::Fp16,
            Self::Bf16 => DType::Bf16,
            Self::Fp8 | Self::MxFp8 | Self::Fp8Block => DType::Fp8,
            Self::NvFp4 => DType::Fp4,
        }
    }

    /// Scale layout of the linear layers' GEMM inputs.
    pub fn scaling(self) -> Scaling {
        match self {
            Self::Fp32 | Self::Fp16 | Self::Bf16 => Scaling::None,
            Self::Fp8 => Scaling::Tensor,
            Self::MxFp8 | Self::NvFp4 => Scaling::MicroBlock,
            Self::Fp8Block => Scaling::Block128,
        }
    }

    /// The name used in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::MxFp8 => "mxfp8",
            Self::Fp8Block => "fp8-block",
            Self::NvFp4 => "nvfp4",
        }
    }
}

impl Default for Plan {
    /// One rank, one sequence; everything else as in a plan file that does not say.
    fn default() -> Self {
        Self {
            tp: 1,
            pp: 1,
            dp: 1,
            cp: 1,
            ep: 1,
            etp: 1,
            vpp: 1,
            micro_batch: 1,
            global_batch: 1,
            sequence_parallel: true,
            recompute: Recompute::default(),
            sharding: Sharding::default(),
            shard_group: 0,
            schedule: Schedule::default(),
            cp_kind: ContextParallel::default(),
            precision: Precision::default(),
            stage_layers: Vec::new(),
            vocabulary_parallel: false,
        }
    }
}

impl Plan {
    /// Every size of the plan with its name.
    pub fn sizes(&self) -> [(&'static str, u32); 9] {
        [
            ("tp", self.tp),
            ("pp", self.pp),
            ("dp", self.dp),
            ("cp", self.cp),
            ("ep", self.ep),
            ("etp", self.etp),
            ("vpp", self.vpp),
            ("micro_batch", self.micro_batch),
            ("global_batch", self.global_batch),
        ]
    }

    /// Accelerators used.
    pub fn world(&self) -> u32 {
        self.tp * self.pp * self.dp * self.cp
    }

    /// Micro-batches per step and replica.
    pub fn micro_batches(&self) -> u32 {
        self.global_batch / (self.dp * self.micro_batch).max(1)
    }

    /// Replicas of one expert shard.
    pub fn edp(&self) -> u32 {
        (self.tp * self.cp * self.dp) / (self.etp * self.ep).max(1)
    }

    /// Number of model chunks.
    pub fn chunks(&self) -> u32 {
        self.pp * self.vpp
    }
}
