//! Fills the tables that a machine has no rows for from its nearest measured relative, scaled by what both have.

use super::assemble::{Assembled, grouped_like, set_sustained};
use super::round;
use psim_hardware::DType;
use psim_hardware::profile::accelerator::{
    AcceleratorProfile, AttentionPass, AttentionTable, FitQuality, MemoryTable,
};
use psim_hardware::profile::stack::AttentionKernel::{self, Cudnn, Flash2, Flash3};

/// Machine, and the relative whose missing tables it takes.
const RELATIVES: [(&str, &str); 10] = [
    ("A100-SXM-80GB", "A100-PCIe-80GB"),
    ("A100-PCIe-80GB", "A100-SXM-80GB"),
    ("H100-SXM-80GB", "A100-SXM-80GB"),
    ("H200-SXM-141GB", "H100-SXM-80GB"),
    ("A40", "A100-SXM-80GB"),
    ("B300-SXM", "B200-SXM"),
    ("GB200", "B200-SXM"),
    ("GB300", "B200-SXM"),
    ("L40S", "H100-SXM-80GB"),
    ("RTX-PRO-6000-Server", "B200-SXM"),
];

/// Backward rate of newer kernels over FlashAttention-2 on Hopper: 1.5 to 1.75 (Shah et al. 2024, FlashAttention-3,
/// section 4.1); cuDNN is close behind.
const FLASH3_BACKWARD: f64 = 1.6;
const CUDNN_BACKWARD: f64 = 1.5;

/// Sustained share of burst rates where no source shows it: between B200 (1000 W) and GB200 (1200 W) for B300
/// (1100 W), as GB200 for GB300.
fn sustained_relative(name: &str, factor: &dyn Fn(&str) -> Option<f64>) -> Option<f64> {
    match name {
        "B300-SXM" => Some(f64::midpoint(factor("B200-SXM")?, factor("GB200")?)),
        "GB300" => factor("GB200"),
        "A100-PCIe-80GB" => Some(1.0),
        "L40S" | "A40" => factor("H100-SXM-80GB"),
        _ => None,
    }
}

fn dense_compute(profile: &AcceleratorProfile) -> Option<f64> {
    profile.gemm.iter().find(|t| t.dtype == DType::Bf16).map(|t| t.law.compute)
}

/// Completes all machines; `all` is in the order of the list of measured machines.
pub fn complete(all: &mut [Assembled]) {
    let factors: Vec<(String, f64)> = all
        .iter()
        .filter_map(|a| {
            let table = a.profile.gemm.iter().find(|t| t.dtype == DType::Bf16)?;
            (table.sustained < 1.0).then(|| (a.profile.accelerator.clone(), table.sustained))
        })
        .collect();
    let factor = |name: &str| factors.iter().find(|f| f.0 == name).map(|f| f.1);
    for a in all.iter_mut() {
        if let Some(share) = sustained_relative(&a.profile.accelerator, &factor) {
            set_sustained(&mut a.profile, share);
        }
    }
    for index in 0..all.len() {
        newer_backward(&mut all[index].profile);
        let name = all[index].profile.accelerator.clone();
        let Some((_, relative)) = RELATIVES.iter().find(|r| r.0 == name) else { continue };
        let Some(from) = all.iter().find(|a| a.profile.accelerator == *relative).map(|a| a.profile.clone())
        else {
            continue;
        };
        let profile = &mut all[index].profile;
        roles(profile, &from);
        grouped(profile, &from);
        attention(profile, &from);
        memory(profile, &from);
    }
    for a in all.iter_mut() {
        grouped_formats(&mut a.profile);
    }
}

/// Backward tables of the newer kernels of a machine that has one of FlashAttention-2 only.
fn newer_backward(profile: &mut AcceleratorProfile) {
    if profile.accelerator != "H100-SXM-80GB" {
        return;
    }
    let find = |k: AttentionKernel| {
        profile.attention.iter().find(|t| t.kernel == k && t.pass == AttentionPass::Backward).cloned()
    };
    let Some(base) = find(Flash2) else { return };
    for (kernel, gain) in [(Flash3, FLASH3_BACKWARD), (Cudnn, CUDNN_BACKWARD)] {
        let mut table = AttentionTable { kernel, ..base.clone() };
        table.law.compute = round(base.law.compute * gain, 3);
        table.fit = FitQuality { points: 0, sigma: 0.15 };
        profile.attention.push(table);
    }
}

fn roles(profile: &mut AcceleratorProfile, from: &AcceleratorProfile) {
    let Some(source) = from.gemm.iter().find(|t| t.dtype == DType::Bf16) else { return };
    for table in &mut profile.gemm {
        if table.input_gradient == 1.0 && table.weight_gradient == 1.0 {
            table.input_gradient = source.input_gradient;
            table.weight_gradient = source.weight_gradient;
        }
    }
}

fn grouped(profile: &mut AcceleratorProfile, from: &AcceleratorProfile) {
    if profile.grouped_gemm.iter().any(|t| t.dtype == DType::Bf16) {
        return;
    }
    let (Some(dense), Some(relative_dense), Some(relative)) = (
        profile.gemm.iter().find(|t| t.dtype == DType::Bf16),
        from.gemm.iter().find(|t| t.dtype == DType::Bf16),
        from.grouped_gemm.iter().find(|t| t.dtype == DType::Bf16),
    ) else {
        return;
    };
    profile.grouped_gemm.push(grouped_like(dense, relative_dense, relative));
}

/// Grouped tables of the other formats from the dense tables of the same machine.
fn grouped_formats(profile: &mut AcceleratorProfile) {
    let Some(base) = profile.grouped_gemm.iter().find(|t| t.dtype == DType::Bf16).cloned() else { return };
    let Some(dense) = profile.gemm.iter().find(|t| t.dtype == DType::Bf16).cloned() else { return };
    for table in &profile.gemm {
        if !profile.grouped_gemm.iter().any(|g| g.dtype == table.dtype && g.scaling == table.scaling) {
            profile.grouped_gemm.push(grouped_like(table, &dense, &base));
        }
    }
}

fn attention(profile: &mut AcceleratorProfile, from: &AcceleratorProfile) {
    let ratio = match (dense_compute(profile), dense_compute(from)) {
        (Some(own), Some(relative)) => own / relative,
        _ => 1.0,
    };
    let own = profile.attention.clone();
    for table in &from.attention {
        let present = |k: AttentionKernel| {
            own.iter().any(|t| t.kernel == k && t.pass == table.pass && t.dtype == table.dtype)
        };
        // Older machines lend their own generation of kernels only.
        let newer = profile.accelerator.starts_with('H') && from.accelerator.starts_with('A');
        if present(table.kernel) || newer {
            continue;
        }
        let mut table = table.clone();
        table.law.compute = round((table.law.compute * ratio).min(0.95), 3);
        table.fit.sigma += 0.05;
        profile.attention.push(table);
    }
}

/// Shares of the streaming bandwidth that classes reach on large operands, where a machine has none of its own:
/// relative to its copy rate.
const CLASS_SHARES: [(&str, f64); 9] = [
    ("norm", 0.85),
    ("activation", 0.95),
    ("elementwise", 1.0),
    ("rope", 0.75),
    ("softmax", 0.75),
    ("cross-entropy", 0.80),
    ("embedding", 0.5),
    ("quantize", 0.75),
    ("permute", 0.60),
];

fn memory(profile: &mut AcceleratorProfile, from: &AcceleratorProfile) {
    let default = |p: &AcceleratorProfile| p.memory.iter().find(|t| t.class == "default").cloned();
    if default(profile).is_none() {
        let Some(mut table) = default(from) else { return };
        table.fit = FitQuality { points: 0, sigma: 0.12 };
        profile.memory.push(table);
    }
    fill_classes(profile);
}

/// Adds the classes that are missing from the copy rate.
pub fn fill_classes(profile: &mut AcceleratorProfile) {
    let Some(base) = profile.memory.iter().find(|t| t.class == "default").cloned() else { return };
    for (class, share) in CLASS_SHARES {
        if !profile.memory.iter().any(|t| t.class == class) {
            profile.memory.push(MemoryTable {
                class: class.to_owned(),
                efficiency: round(base.efficiency * share, 3),
                fit: FitQuality { points: 0, sigma: 0.12 },
                ..base.clone()
            });
        }
    }
}
