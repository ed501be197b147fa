//! The CUDA kernels and the host code that launches them, without a GPU: the sources are compiled by the system's C++
//! compiler with an emulation of CUDA (`emulated/cuda_on_cpu.h`) and go through the same conformance suite.
//!
//! It checks what the kernels compute, not how fast, and nothing of what only NVIDIA's software can: that is NVRTC's
//! test in the crate (no GPU needed) and `cuda/check-on-gpu.sh`.
#![cfg(unix)]

#[path = "emulated/device.rs"]
mod emulation;

use emulation::device;

psim_kernels::conformance_suite!(emulated_cuda, super::device);

/// Fp8 products and casts, both ways.
#[test]
fn fp8() {
    let Some(device) = device() else { return };
    let checks =
        psim_kernels::conformance::run_topic(&device, psim_kernels::conformance::gemm_fp8, 5).unwrap();
    assert!(!checks.is_empty());
    for check in checks {
        assert!(check.passed(), "{check:?}");
    }
}

/// The micro-benchmarks launch what their sources declare.
#[test]
fn micro_benchmarks_run() {
    use psim_kernels::Micro;
    let Some(device) = device() else { return };
    assert!(device.load_latency(4_096, 100).unwrap() > 0.0);
    assert!(device.shared_latency(100).unwrap().unwrap() > 0.0);
    assert!(device.launch_cost(10, false).unwrap().unwrap() > 0.0);
    assert_eq!(device.launch_cost(10, true).unwrap(), None);
}
