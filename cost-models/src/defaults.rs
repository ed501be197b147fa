//! Documented defaults for machines and fabrics without measurements: typical efficiencies of the field.

use psim_hardware::profile::accelerator::{
    ACCELERATOR_PROFILE_SCHEMA, AcceleratorProfile, AttentionLaw, AttentionPass, AttentionTable, FitQuality,
    GemmLaw, GemmTable, GroupedGemmTable, MemoryTable,
};
use psim_hardware::profile::fabric::{FABRIC_PROFILE_SCHEMA, FabricProfile};
use psim_hardware::profile::stack::AttentionKernel;
use psim_hardware::{DType, Scaling};

const GUESS: FitQuality = FitQuality { points: 0, sigma: 0.25 };

/// GEMM law of a machine nobody measured.
pub const GEMM_LAW: GemmLaw = GemmLaw {
    launch_us: 2.5,
    compute: 0.75,
    memory: 0.8,
    prologue: 128.0,
    quantisation: 0.7,
    small_tile: 0.85,
};

/// A profile of documented defaults: large GEMMs at 75 % of peak, streaming at 80 % of the memory bandwidth,
/// attention at 45 % forward and 61 % of that backward.
pub fn accelerator(name: &str) -> AcceleratorProfile {
    let formats = [
        (DType::Bf16, Scaling::None),
        (DType::Fp8, Scaling::Tensor),
        (DType::Fp8, Scaling::MicroBlock),
        (DType::Fp8, Scaling::Block128),
        (DType::Fp4, Scaling::MicroBlock),
    ];
    let rate = |dtype: DType| match dtype {
        DType::Fp8 => 0.62,
        DType::Fp4 => 0.5,
        _ => 0.75,
    };
    let law = |dtype: DType| GemmLaw { compute: rate(dtype), ..GEMM_LAW };
    AcceleratorProfile {
        models: Vec::new(),
        machine: None,
        schema: ACCELERATOR_PROFILE_SCHEMA,
        accelerator: name.to_owned(),
        source: "documented defaults".to_owned(),
        units: None,
        link_bandwidth: None,
        gemm: formats
            .iter()
            .map(|&(dtype, scaling)| GemmTable {
                dtype,
                scaling,
                law: law(dtype),
                residual: None,
                input_gradient: 1.0,
                weight_gradient: 1.05,
                input_gradient_residual: None,
                weight_gradient_residual: None,
                sustained: 1.0,
                fit: GUESS,
            })
            .collect(),
        grouped_gemm: formats
            .iter()
            .map(|&(dtype, scaling)| GroupedGemmTable {
                dtype,
                scaling,
                law: GemmLaw { compute: 0.85 * rate(dtype), ..GEMM_LAW },
                group_us: 0.2,
                residual: None,
                input_gradient: 1.0,
                weight_gradient: 1.1,
                fit: GUESS,
            })
            .collect(),
        attention: [
            (AttentionPass::Forward, 0.45),
            (AttentionPass::Backward, 0.28),
            (AttentionPass::Decode, 0.3),
        ]
        .iter()
        .map(|&(pass, compute)| AttentionTable {
            kernel: AttentionKernel::Flash2,
            pass,
            dtype: DType::Bf16,
            law: AttentionLaw {
                launch_us: 4.0,
                compute,
                memory: 0.7,
                prologue: 128.0,
                narrow_head: 0.85,
                quantisation: 0.5,
            },
            residual: None,
            fit: GUESS,
        })
        .collect(),
        memory: [
            ("default", 0.82),
            ("norm", 0.75),
            ("cross-entropy", 0.75),
            ("embedding", 0.5),
            ("permute", 0.5),
            ("quantize", 0.6),
            ("scan", 0.4),
        ]
        .iter()
        .map(|&(class, efficiency)| MemoryTable {
            class: class.to_owned(),
            launch_us: 1.8,
            efficiency,
            half_bytes: 2e6,
            half_width: 0.0,
            working_sets: None,
            fit: GUESS,
        })
        .collect(),
        collectives: Vec::new(),
        power: None,
    }
}

/// A fabric profile of documented defaults by kind; unknown kinds get those of plain Ethernet.
pub fn fabric(kind: &str) -> FabricProfile {
    let (ring, tree, all_to_all, send_recv, base_us, step_us, sigma) = match kind {
        "infiniband" => (0.95, 0.90, 0.74, 0.75, 10.0, 1.0, 0.15),
        "roce" => (0.90, 0.85, 0.70, 0.72, 12.0, 2.0, 0.2),
        "efa" => (0.92, 0.85, 0.60, 0.65, 20.0, 10.0, 0.2),
        "slingshot" => (0.80, 0.72, 0.65, 0.70, 15.0, 3.0, 0.25),
        "omni-path" => (0.85, 0.75, 0.65, 0.70, 15.0, 2.0, 0.25),
        _ => (0.75, 0.65, 0.55, 0.60, 30.0, 5.0, 0.3),
    };
    FabricProfile {
        schema: FABRIC_PROFILE_SCHEMA,
        kind: kind.to_owned(),
        source: "documented defaults".to_owned(),
        ring,
        tree,
        all_to_all,
        send_recv,
        base_us,
        step_us,
        fill_us: 40.0,
        half_bytes: 4e6,
        lanes: 8.5,
        scale_loss: 0.01,
        sigma,
        points: 0,
    }
}
