//! The executor on GPUs as a software stack: what the simulator must know to predict it.

use psim_hardware::profile::StackProfile;
use psim_hardware::profile::stack::{Fusion, Host, MemoryOverheads, Overlap, States};
use psim_hardware::{Bytes, Seconds};

/// Name of [`cuda_stack`].
pub const CUDA_STACK: &str = "psim-executor-cuda";

/// Host time per operator: a stream-ordered allocation, a launch and a release, each a driver call of 1 to 2 µs. Estimated
/// from that count of calls; no run on a GPU has been measured. It shows only where operators are shorter.
const LAUNCH: Seconds = Seconds(4e-6);
/// Idle time of the device between two operators of one stream. Estimated, likewise.
const GAP: Seconds = Seconds(1e-6);
/// Host work around the passes of a micro-batch: about a dozen driver calls and the tokens' upload. Estimated.
const PER_MICRO_BATCH: Seconds = Seconds(50e-6);
/// Host work around a step: marks, the loss read back. Estimated.
const PER_STEP: Seconds = Seconds(100e-6);
/// Reading token counts back from the device and sorting them on the host, per layer of experts. Estimated: a copy of a few
/// bytes that the host waits for takes 10 to 20 µs, sorting some thousand tokens the rest.
const EXPERT_SYNC: Seconds = Seconds(100e-6);
/// What a process takes on a device beside its buffers: the driver's context (about 500 MB on an H100), modules, and the
/// 32 MiB of workspace that cuBLASLt is given. Estimated; the driver's own count (`device_memory` of a report) corrects it.
const CONTEXT: Bytes = Bytes(600 << 20);
/// Channel buffers of one NCCL communicator: up to 24 channels of about 8 MiB with the default `NCCL_BUFFSIZE` of 4 MiB each
/// way. Estimated.
const PER_COMMUNICATOR: Bytes = Bytes(200 << 20);
/// Room between the blocks of the driver's pool. Estimated.
const FRAGMENTATION: f64 = 0.02;

/// The executor on CUDA devices with ranks over NCCL: what differs from its `threads` on a processor.
///
/// One kernel per memory-bound operator, flash-style attention, a product per expert. Gradient buckets and ring blocks
/// travel beside the computation, everything else in its stream. States: fp32 gradients, which also travel as fp32, fp32
/// master weights where the compute format is shorter, two moments. Times of kernels are those of the profile that
/// `psim calibrate` measures with the same kernels, so every efficiency is one; launches lie in those times.
pub fn cuda_stack(threads: StackProfile) -> StackProfile {
    StackProfile {
        name: CUDA_STACK.to_owned(),
        description: "psim's own executor on CUDA devices".to_owned(),
        frameworks: vec![CUDA_STACK.to_owned()],
        // Gradients accumulate in the products.
        fusion: Fusion { accumulation: true, ..threads.fusion },
        overlap: Overlap { grad_reduce: true, cp: true, ..threads.overlap },
        host: Host {
            launch: LAUNCH,
            gap: GAP,
            per_micro_batch: PER_MICRO_BATCH,
            per_step: PER_STEP,
            moe_sync: EXPERT_SYNC,
            ..threads.host
        },
        states: States { master: 4.0, ..threads.states },
        memory: MemoryOverheads {
            context: CONTEXT,
            per_communicator: PER_COMMUNICATOR,
            fragmentation: FRAGMENTATION,
            ..threads.memory
        },
        fp32_logits: false,
        ..threads
    }
}
