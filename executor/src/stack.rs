//! The executor on GPUs as a software stack: what the simulator must know to predict it.

use psim_hardware::profile::StackProfile;
use psim_hardware::profile::stack::{Fusion, Host, MemoryOverheads, Overlap, States};
use psim_hardware::{Bytes, Seconds};

/// Name of [`cuda_stack`].
pub const CUDA_STACK: &str = "psim-executor-cuda";

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
            // An allocation, a launch and a release each, from compiled code.
            launch: Seconds(4e-6),
            gap: Seconds(1e-6),
            per_micro_batch: Seconds(50e-6),
            per_step: Seconds(100e-6),
            // Token counts are read back and sorted by the host.
            moe_sync: Seconds(100e-6),
            ..threads.host
        },
        states: States { master: 4.0, ..threads.states },
        // The driver's context with modules and the workspace of matrix products.
        memory: MemoryOverheads {
            context: Bytes(600 << 20),
            per_communicator: Bytes(200 << 20),
            fragmentation: 0.02,
            ..threads.memory
        },
        fp32_logits: false,
        ..threads
    }
}
