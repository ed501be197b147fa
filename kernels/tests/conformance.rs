//! The conformance suite on every backend of this machine.

psim_kernels::conformance_suite!(cpu, || Some(psim_kernels::cpu::CpuDevice::new()));

/// The suite itself can fail: a device whose result is off by one part in a thousand does not pass.
#[test]
fn a_wrong_result_is_noticed() {
    use psim_kernels::conformance::relative_error;
    let reference = [1.0, -2.0, 3.0];
    assert!(relative_error(&[1.0, -2.0, 3.0], &reference) == 0.0);
    assert!(relative_error(&[1.001, -2.0, 3.0], &reference) > 1e-4);
    let poisoned = relative_error(&[1.0, f32::NAN, 3.0], &reference);
    assert!(poisoned.is_nan());
    let check = psim_kernels::conformance::Check { name: String::new(), error: poisoned, tolerance: 1e-2 };
    assert!(!check.passed());
    assert!(relative_error(&[1.0], &reference).is_infinite());
}

/// Short buffers are errors, not panics.
#[test]
fn short_buffers_are_refused() {
    use psim_kernels::{Device, DeviceError, Gemm, cpu::CpuDevice};
    let device = CpuDevice::new();
    let a = device.upload(&[0.0; 5]).unwrap();
    let b = device.upload(&[0.0; 6]).unwrap();
    let mut c = device.upload(&[0.0; 4]).unwrap();
    let error = device.gemm(&Gemm::new(2, 2, 3), &a, &b, &mut c).unwrap_err();
    assert!(matches!(error, DeviceError::Shape { what: "a", needed: 6, got: 5, .. }), "{error}");
}

/// Memory is counted, and given back.
#[test]
fn memory_is_counted() {
    use psim_kernels::{Device, cpu::CpuDevice};
    let device = CpuDevice::new();
    let a = device.alloc(psim_hardware::DType::Fp32, 1000).unwrap();
    let b = device.alloc(psim_hardware::DType::Bf16, 1000).unwrap();
    assert_eq!(device.memory().live, 6000);
    drop(a);
    assert_eq!((device.memory().live, device.memory().peak), (2000, 6000));
    device.reset_peak();
    assert_eq!(device.memory().peak, 2000);
    drop(b);
    assert_eq!(device.memory().live, 0);
}

psim_kernels::conformance_suite!(cuda, || match psim_kernels::cuda::open(0) {
    Ok(device) => Some(device),
    Err(error) => {
        eprintln!("{error}");
        None
    }
});

/// Fp8 on a GPU that has it (compute capability 8.9 and later).
#[test]
fn cuda_fp8() {
    match psim_kernels::cuda::open(0) {
        Ok(device) => {
            let checks =
                psim_kernels::conformance::run_topic(&device, psim_kernels::conformance::gemm_fp8, 5);
            for check in checks.unwrap() {
                assert!(check.passed(), "{check:?}");
            }
        }
        Err(error) => eprintln!("SKIP: {error}"),
    }
}
