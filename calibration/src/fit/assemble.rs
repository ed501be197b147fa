//! Puts the tables of one accelerator together from all measured files.

use super::attention::{self, shape};
use super::collectives;
use super::gemm::{self, importance};
use super::memory;
use super::{Summary, grouped, median, quantile, round};
use crate::tables::datasheet::{Datasheet, datasheets};
use crate::tables::kernels::{AttentionRow, ElementwiseRow, GemmRow, MoeRow, PeakRow};
use crate::tables::network::{CollectiveRow, PointRow};
use crate::tables::{TableError, read};
use psim_cost_models::attention::{AttentionModel, AttentionShape};
use psim_cost_models::gemm::{GemmModel, Rates};
use psim_hardware::profile::accelerator::{
    ACCELERATOR_PROFILE_SCHEMA, AcceleratorProfile, AttentionPass, FitQuality, GemmTable, GroupedGemmTable,
    MemoryTable, PowerTable,
};
use psim_hardware::profile::stack::AttentionKernel;
use psim_hardware::{BytesPerSec, DType, Scaling};
use psim_models::operator::GemmRole;
use std::collections::BTreeMap;
use std::path::Path;

/// Every measured table in memory.
pub struct Tables {
    /// Datasheets.
    pub sheets: BTreeMap<String, Datasheet>,
    gemm: Vec<GemmRow>,
    attention: Vec<AttentionRow>,
    moe: Vec<MoeRow>,
    elementwise: Vec<ElementwiseRow>,
    peaks: Vec<PeakRow>,
    /// Collectives, also for the fabrics.
    pub collectives: Vec<CollectiveRow>,
    /// Point-to-point rows, also for the fabrics.
    pub points: Vec<PointRow>,
}

impl Tables {
    /// Reads the folder.
    pub fn read(folder: &Path) -> Result<Self, TableError> {
        Ok(Self {
            sheets: datasheets(folder)?,
            gemm: read(folder, "gemm.csv.gz")?,
            attention: read(folder, "attention.csv.gz")?,
            moe: read(folder, "moe.csv.gz")?,
            elementwise: read(folder, "elementwise.csv")?,
            peaks: read(folder, "peaks.csv")?,
            collectives: read(folder, "collectives.csv")?,
            points: read(folder, "p2p.csv")?,
        })
    }
}

/// Accelerators with enough rows for a profile of their own.
pub const MEASURED: [&str; 13] = [
    "A100-SXM-80GB",
    "A100-PCIe-80GB",
    "A40",
    "H100-SXM-80GB",
    "H200-SXM-141GB",
    "L40S",
    "RTX-PRO-6000-Server",
    "B200-SXM",
    "B300-SXM",
    "GB200",
    "GB300",
    "Arc-Pro-B60",
    "MI210",
];

/// Format and scale layout of a recipe of the GEMM table, and whether its time includes the cast of A.
const RECIPES: [(&str, DType, Scaling, bool); 5] = [
    ("bf16", DType::Bf16, Scaling::None, false),
    ("fp8-dyn", DType::Fp8, Scaling::Tensor, true),
    ("fp8-block128", DType::Fp8, Scaling::Block128, true),
    ("nvfp4", DType::Fp4, Scaling::MicroBlock, true),
    ("int8-sq", DType::Int8, Scaling::Tensor, false),
];

/// Primary GEMM sources of a machine, by prefix. Several where each is small.
fn gemm_sources(gpu: &str) -> &'static [&'static str] {
    match gpu {
        "A100-SXM-80GB" => &["aic-trtllm-1.0.0"],
        "A100-PCIe-80GB" => &["simumax"],
        "A40" => &["vidur"],
        "MI210" => &["llmcompass"],
        "Arc-Pro-B60" => &["aic-vllm-0.20.0"],
        _ => &["aic-trtllm-1.3.0rc20"],
    }
}

/// Machines of which only the best measured matrix rate is known, with that rate's format.
pub const PEAK_ONLY: [&str; 5] = ["MI300X", "MI325X", "MI355X", "Gaudi2", "Gaudi3"];

/// A profile of documented defaults whose matrix rates follow the one measured rate (best shape over a search).
pub fn peak_only(tables: &Tables, name: &str) -> Option<AcceleratorProfile> {
    let best = |dtype: &str| {
        let row =
            tables.peaks.iter().find(|p| p.gpu == name && p.metric == "matmul-MAMF" && p.dtype == dtype)?;
        row.efficiency
    };
    let half = best("bf16")?;
    let mut profile = psim_cost_models::defaults::accelerator(name);
    profile.source = "best matrix rate of the peaks table over documented defaults".to_owned();
    let scale = half / psim_cost_models::defaults::GEMM_LAW.compute;
    for table in &mut profile.gemm {
        table.law.compute = round(
            if table.dtype == DType::Fp8 {
                best("fp8").unwrap_or(table.law.compute * scale)
            } else {
                table.law.compute * scale
            },
            3,
        )
        .min(0.97);
        table.fit = FitQuality { points: 1, sigma: 0.15 };
    }
    for table in &mut profile.grouped_gemm {
        table.law.compute = round((table.law.compute * scale).min(0.95), 3);
    }
    for table in &mut profile.attention {
        table.law.compute = round((table.law.compute * scale).min(0.7), 3);
    }
    let sheet = tables.sheets.get(name)?;
    profile.link_bandwidth = sheet.link_gbps_per_dir.map(|g| BytesPerSec(g * 1e9));
    profile.units = Some(sheet.units() as u32);
    Some(profile)
}

fn gemm_samples(
    tables: &Tables,
    gpu: &str,
    recipe: &str,
    sources: &[&str],
    layout: Option<&str>,
) -> Vec<gemm::Sample> {
    let wanted = |r: &&GemmRow| {
        let same = r.dtype == recipe || (recipe == "bf16" && r.dtype == "fp16");
        r.gpu == gpu
            && same
            && sources.contains(&r.source.as_str())
            && layout.is_none_or(|l| r.kernel.contains(l))
    };
    tables
        .gemm
        .iter()
        .filter(wanted)
        .map(|r| gemm::Sample {
            m: r.m,
            n: r.n,
            k: r.k,
            seconds: r.time_us * 1e-6,
            weight: importance(r.m, r.n, r.k),
        })
        .collect()
}

/// Median of measured / predicted over large products of some rows.
fn large_ratio(
    model: &GemmModel,
    rates: Rates,
    dtype: DType,
    samples: &[gemm::Sample],
    role: GemmRole,
) -> Option<f64> {
    let ratios: Vec<f64> = samples
        .iter()
        .filter(|s| s.m >= 1024.0 && s.n >= 1024.0 && s.k >= 1024.0 && s.seconds >= 150e-6)
        .map(|s| {
            let bytes = gemm::bytes(dtype, s.m, s.n, s.k);
            s.seconds / model.seconds(rates, [s.m, s.n, s.k], 1.0, bytes, role).0
        })
        .collect();
    (ratios.len() >= 4).then(|| median(&ratios))
}

/// Attention tables of a machine: kernel generation, part of the kernel name, source, phase, pass and format.
type AttentionSource =
    (AttentionKernel, &'static str, &'static str, &'static str, AttentionPass, &'static str);

fn attention_sources(gpu: &str) -> Vec<AttentionSource> {
    use AttentionKernel::{Cudnn, Flash2, Flash3};
    use AttentionPass::{Backward, Decode, Forward};
    let trt = |kernel| {
        vec![
            (kernel, "torch_flow", "aic-trtllm", "prefill", Forward, "bf16"),
            (kernel, "torch_flow", "aic-trtllm", "prefill", Forward, "fp8"),
            (kernel, "torch_flow", "aic-trtllm", "decode", Decode, "bf16"),
            (kernel, "torch_flow", "aic-trtllm", "decode", Decode, "fp8"),
        ]
    };
    match gpu {
        "A100-SXM-80GB" => vec![
            (Flash2, "vllm_flash_attn", "aic-vllm", "prefill", Forward, "bf16"),
            (Flash2, "FlashAttention-2", "flash-attn", "train-fwd+bwd", Backward, "fp16"),
            (Flash2, "vllm_flash_attn", "aic-vllm", "decode", Decode, "bf16"),
            (Cudnn, "torch_flow", "aic-trtllm", "decode", Decode, "bf16"),
        ],
        "A100-PCIe-80GB" => vec![
            (Cudnn, "TE-sdpa", "simumax", "train-fwd", Forward, "bf16"),
            (Cudnn, "TE-sdpa", "simumax", "train-bwd", Backward, "bf16"),
        ],
        "H100-SXM-80GB" => {
            let mut list = vec![
                (Flash2, "FlashAttention-2", "flash-attn", "train-fwd", Forward, "fp16"),
                (Flash2, "FlashAttention-2", "flash-attn", "train-fwd+bwd", Backward, "fp16"),
                (Flash3, "fa3", "aic-vllm", "prefill", Forward, "bf16"),
                (Flash3, "fa3", "aic-vllm", "decode", Decode, "bf16"),
                (Flash3, "fa3", "aic-vllm", "decode", Decode, "fp8"),
            ];
            list.extend(trt(Cudnn));
            list
        }
        "H200-SXM-141GB" => {
            let mut list = vec![
                (Flash3, "fa3", "aic-vllm", "prefill", Forward, "bf16"),
                (Flash3, "fa3", "aic-vllm", "decode", Decode, "bf16"),
                (Flash3, "fa3", "aic-vllm", "decode", Decode, "fp8"),
            ];
            list.extend(trt(Cudnn));
            list
        }
        "B200-SXM" => {
            let mut list = vec![(Cudnn, "TE-sdpa", "simumax", "train-bwd", Backward, "bf16")];
            list.extend(trt(Cudnn));
            list
        }
        "Arc-Pro-B60" => vec![
            (Flash2, "vllm_flash_attn", "aic-vllm", "prefill", Forward, "bf16"),
            (Flash2, "vllm_flash_attn", "aic-vllm", "decode", Decode, "bf16"),
        ],
        "B300-SXM" | "GB200" | "GB300" | "L40S" | "RTX-PRO-6000-Server" => trt(Cudnn),
        _ => Vec::new(),
    }
}

fn attention_samples(
    tables: &Tables,
    gpu: &str,
    source: &AttentionSource,
    dtype: DType,
) -> Vec<attention::Sample> {
    let (_, kernel, origin, phase, pass, format) = *source;
    tables
        .attention
        .iter()
        .filter(|r| {
            // What a decode kernel reads is the cache: its format names the table.
            let read = if pass == AttentionPass::Decode { &r.kv_dtype } else { &r.dtype };
            r.gpu == gpu
                && r.kernel.contains(kernel)
                && r.source.starts_with(origin)
                && r.phase == phase
                && *read == format
        })
        // More than 32 query heads per key head fall off the fast decode kernels; no model does that.
        .filter(|r| pass != AttentionPass::Decode || r.q_heads <= 32.0 * r.kv_heads)
        // SimuMax times by wall clock: below about 120 us its rows show the host.
        .filter(|r| origin != "simumax" || r.time_us > 120.0)
        .map(|r| attention::Sample {
            shape: shape(r, pass, dtype),
            seconds: r.time_us * 1e-6,
            weight: if r.seq_kv >= 1024.0 { 2.0 } else { 1.0 },
        })
        .collect()
}

/// One accelerator's profile with the errors of its tables and remarks for the report.
pub struct Assembled {
    /// Profile.
    pub profile: AcceleratorProfile,
    /// Errors per table.
    pub summaries: Vec<Summary>,
    /// Remarks.
    pub notes: Vec<String>,
}

/// Fits everything that one accelerator has rows for.
pub fn assemble(tables: &Tables, gpu: &str) -> Option<Assembled> {
    let sheet = tables.sheets.get(gpu)?;
    let mut out = Assembled {
        profile: AcceleratorProfile {
            models: Vec::new(),
            machine: None,
            schema: ACCELERATOR_PROFILE_SCHEMA,
            accelerator: gpu.to_owned(),
            source: "fitted to the public measurements listed in FIT.md".to_owned(),
            units: Some(sheet.units() as u32),
            link_bandwidth: sheet.link_gbps_per_dir.map(|g| BytesPerSec(g * 1e9)),
            gemm: Vec::new(),
            grouped_gemm: Vec::new(),
            attention: Vec::new(),
            memory: Vec::new(),
            collectives: collectives::curves(gpu, &tables.collectives),
            power: None,
        },
        summaries: Vec::new(),
        notes: Vec::new(),
    };
    out.profile.collectives.extend(collectives::send_recv(gpu, &tables.points));
    dense(tables, gpu, sheet, &mut out);
    roles(tables, gpu, sheet, &mut out);
    sustained(tables, gpu, sheet, &mut out);
    grouped_tables(tables, gpu, sheet, &mut out);
    attention_tables(tables, gpu, sheet, &mut out);
    memory_tables(tables, gpu, sheet, &mut out);
    power(tables, gpu, sheet, &mut out);
    Some(out)
}

fn dense(tables: &Tables, gpu: &str, sheet: &Datasheet, out: &mut Assembled) {
    let mut launch = None;
    for (recipe, dtype, scaling, casts) in RECIPES {
        let layout = (gpu == "A100-PCIe-80GB").then_some(":TN:");
        let samples = gemm_samples(tables, gpu, recipe, gemm_sources(gpu), layout);
        let Some(rates) = sheet.rates(dtype) else { continue };
        if samples.len() < 15 {
            continue;
        }
        let fitted = gemm::fit(gpu, &samples, rates, dtype, scaling, if casts { launch } else { None });
        if dtype == DType::Bf16 {
            launch = Some(fitted.table.law.launch_us);
        }
        out.summaries.push(fitted.summary);
        out.profile.gemm.push(fitted.table);
    }
}

/// Backward layouts relative to the forward one, from a source that timed all three.
fn roles(tables: &Tables, gpu: &str, sheet: &Datasheet, out: &mut Assembled) {
    let Some(rates) = sheet.rates(DType::Bf16) else { return };
    let Some(table) = out.profile.gemm.iter().find(|t| t.dtype == DType::Bf16) else { return };
    let model = GemmModel::new(table);
    let of = |layout: &str, role| {
        let samples = gemm_samples(tables, gpu, "bf16", &["simumax"], Some(layout));
        large_ratio(&model, rates, DType::Bf16, &samples, role)
    };
    let (Some(forward), Some(input), Some(weight)) = (
        of(":TN:", GemmRole::Forward),
        of(":NN:", GemmRole::InputGradient),
        of(":NT+acc:out=fp32", GemmRole::WeightGradient),
    ) else {
        return;
    };
    out.notes.push(format!(
        "{gpu}: SimuMax forward / table {forward:.3}, input gradient {input:.3}, weight gradient {weight:.3} (time ratios)"
    ));
    for table in &mut out.profile.gemm {
        table.input_gradient = round(input / forward, 3);
        table.weight_gradient = round(weight / forward, 3);
    }
}

/// Sources that ran long enough to reach the power limit, per machine: what share of the burst rate they keep.
const SUSTAINED: [(&str, &str, &str); 5] = [
    ("A100-SXM-80GB", "azure-aibg", "bf16"),
    ("H100-SXM-80GB", "azure-aibg", "fp8"),
    ("H200-SXM-141GB", "azure-aibg", "fp8"),
    ("B200-SXM", "simumax", "bf16"),
    ("GB200", "aic-trtllm-1.3.0rc17", "bf16"),
];

/// Sustained against burst rate, where one source warmed the machine up or sampled power over longer runs. Low-precision
/// formats keep a little more than bf16 (GB200 pair: bf16 0.84, fp8 0.87, nvfp4 0.88).
fn sustained(tables: &Tables, gpu: &str, sheet: &Datasheet, out: &mut Assembled) {
    let Some(&(_, source, recipe)) = SUSTAINED.iter().find(|s| s.0 == gpu) else { return };
    let scaling = if recipe == "bf16" { Scaling::None } else { Scaling::Tensor };
    let dtype = if recipe == "bf16" { DType::Bf16 } else { DType::Fp8 };
    let Some(table) = out.profile.gemm.iter().find(|t| t.dtype == dtype && t.scaling == scaling) else {
        return;
    };
    let Some(rates) = sheet.rates(dtype) else { return };
    let samples = gemm_samples(tables, gpu, recipe, &[source], (source == "simumax").then_some(":TN:"));
    let Some(ratio) = large_ratio(&GemmModel::new(table), rates, dtype, &samples, GemmRole::Forward) else {
        return;
    };
    out.notes.push(format!(
        "{gpu}: {source} {recipe}: sustained rate {:.3} of burst ({} rows)",
        1.0 / ratio,
        samples.len()
    ));
    set_sustained(&mut out.profile, 1.0 / ratio);
}

/// Writes the bf16 factor into every table, a little milder for low-precision formats.
pub fn set_sustained(profile: &mut AcceleratorProfile, factor: f64) {
    for table in &mut profile.gemm {
        let milder = if table.dtype.bits() <= 8 { 0.03 } else { 0.0 };
        table.sustained = round((factor + milder).clamp(0.5, 1.0), 3);
    }
}

fn grouped_tables(tables: &Tables, gpu: &str, sheet: &Datasheet, out: &mut Assembled) {
    // DeepGEMM was measured on H800: the same die as H100, only its links are cut.
    let sources = [
        (gpu, "simumax", DType::Bf16, Scaling::None),
        (
            if gpu == "H100-SXM-80GB" { "H800-SXM-80GB" } else { "" },
            "deepgemm-v1",
            DType::Fp8,
            Scaling::Block128,
        ),
    ];
    for (machine, source, dtype, scaling) in sources {
        let samples: Vec<grouped::Sample> = tables
            .moe
            .iter()
            .filter(|r| r.gpu == machine && r.source == source)
            .filter_map(|r| grouped::sample(r, dtype, scaling))
            .collect();
        let dense = out.profile.gemm.iter().find(|t| t.dtype == dtype && t.scaling == scaling);
        let (Some(dense), Some(rates), false) = (dense, sheet.rates(dtype), samples.is_empty()) else {
            continue;
        };
        let (table, summary) =
            grouped::fit(gpu, &dense.law, dtype, scaling, rates, &grouped::slowest(samples));
        out.summaries.push(summary);
        out.profile.grouped_gemm.push(table);
    }
}

fn attention_tables(tables: &Tables, gpu: &str, sheet: &Datasheet, out: &mut Assembled) {
    for source in attention_sources(gpu) {
        let (kernel, _, _, _, pass, format) = source;
        let dtype = if format == "fp8" { DType::Fp8 } else { DType::Bf16 };
        let Some(rates) = sheet.rates(dtype) else { continue };
        let mut samples = attention_samples(tables, gpu, &source, dtype);
        if source.3 == "train-fwd+bwd" {
            subtract_forward(out, kernel, rates, &mut samples);
        }
        if samples.len() < 5 {
            continue;
        }
        let (table, summary) =
            attention::fit(gpu, kernel, pass, dtype, rates, &samples, source.3 == "prefill");
        out.summaries.push(summary);
        out.profile.attention.push(table);
    }
}

/// Rows that timed both passes together: takes the fitted forward pass off.
fn subtract_forward(
    out: &Assembled,
    kernel: AttentionKernel,
    rates: Rates,
    samples: &mut Vec<attention::Sample>,
) {
    let forward =
        out.profile.attention.iter().find(|t| t.kernel == kernel && t.pass == AttentionPass::Forward);
    let Some(model) = forward.map(AttentionModel::new) else {
        samples.clear();
        return;
    };
    // Only where the forward law is well known: wide heads, long sequences.
    samples.retain(|s| s.shape.width >= 128.0 && s.shape.seq_kv >= 1024.0);
    for sample in samples.iter_mut() {
        let shape = AttentionShape { flops_per: 4.0, bytes: sample.shape.bytes * 0.4, ..sample.shape };
        sample.seconds = (sample.seconds - model.seconds(rates, &shape).0).max(0.3 * sample.seconds);
    }
}

fn memory_tables(tables: &Tables, gpu: &str, sheet: &Datasheet, out: &mut Assembled) {
    let Some(bandwidth) = sheet.mem_tbps.map(|t| t * 1e12) else { return };
    let mut samples: BTreeMap<&'static str, Vec<memory::Sample>> = BTreeMap::new();
    for row in tables.elementwise.iter().filter(|r| r.gpu == gpu) {
        let Some(class) = memory::class(&row.op) else { continue };
        // LLMCompass times eager calls: its small rows show 20-50 us of host.
        if row.source == "llmcompass" && row.bytes < 64e6 {
            continue;
        }
        samples
            .entry(class)
            .or_default()
            .push(memory::Sample { bytes: row.bytes, seconds: row.time_us * 1e-6 });
    }
    for (class, samples) in samples {
        if samples.len() < 6 {
            continue;
        }
        let (table, summary) = memory::fit(gpu, class, bandwidth, &samples);
        out.summaries.push(summary);
        out.profile.memory.push(table);
    }
    for row in tables.peaks.iter().filter(|p| p.gpu == gpu) {
        let class = match row.metric.as_str() {
            "hbm-add" | "bw-efficiency:default-memory-bound-op" => "default",
            "bw-efficiency:cross-entropy" => "cross-entropy",
            "bw-efficiency:moe-permute" | "bw-efficiency:moe-permute-fwd" => "permute",
            _ => continue,
        };
        let Some(efficiency) = row.efficiency else { continue };
        out.profile.memory.push(MemoryTable {
            class: class.to_owned(),
            launch_us: 1.8,
            efficiency,
            half_bytes: 1e6,
            half_width: 0.0,
            working_sets: None,
            fit: FitQuality { points: 1, sigma: 0.1 },
        });
    }
}

/// Board power from the rows that sampled it, as shares of the thermal design power.
fn power(tables: &Tables, gpu: &str, sheet: &Datasheet, out: &mut Assembled) {
    let Some(tdp) = sheet.tdp_w else { return };
    // The upper tenth: samples that fall into gaps between kernels read low.
    let of = |wanted: &dyn Fn(&GemmRow) -> bool| {
        let watts: Vec<f64> =
            tables.gemm.iter().filter(|r| r.gpu == gpu && wanted(r)).filter_map(|r| r.power_w).collect();
        (watts.len() >= 5).then(|| quantile(&watts, 0.9) / tdp)
    };
    let large = |r: &GemmRow| r.dtype == "bf16" && r.m >= 4096.0 && r.n >= 4096.0 && r.k >= 4096.0;
    let stream = |r: &GemmRow| r.dtype == "bf16" && r.m <= 16.0 && r.n >= 4096.0 && r.k >= 4096.0;
    let small = |r: &GemmRow| r.m <= 16.0 && r.n <= 512.0 && r.k <= 512.0;
    let (Some(compute), Some(memory), Some(light)) = (of(&large), of(&stream), of(&small)) else { return };
    out.notes.push(format!(
        "{gpu}: power shares: large GEMM {compute:.2}, streaming {memory:.2}, tiny kernels {light:.2}"
    ));
    out.profile.power = Some(PowerTable {
        idle: round((0.5 * light).clamp(0.05, 0.2), 2),
        compute: round(compute.min(1.0), 2),
        memory: round(memory.min(1.0), 2),
        network: round((0.5 * (light + memory)).min(0.5), 2),
    });
}

/// A grouped table made from a dense one: compute share and fill changed as on a measured relative. Grouped tables
/// hold sustained rates, dense ones burst rates.
pub fn grouped_like(
    dense: &GemmTable,
    relative_dense: &GemmTable,
    relative: &GroupedGemmTable,
) -> GroupedGemmTable {
    let (own, other) = (dense.law, relative_dense.law);
    let mut law = own;
    law.compute = (own.compute * dense.sustained * relative.law.compute
        / (other.compute * relative_dense.sustained))
        .min(0.95);
    law.memory = (own.memory * relative.law.memory / other.memory).min(0.95);
    law.prologue = own.prologue + (relative.law.prologue - other.prologue).max(0.0);
    law.small_tile = relative.law.small_tile;
    GroupedGemmTable {
        dtype: dense.dtype,
        scaling: dense.scaling,
        law,
        group_us: relative.group_us,
        residual: None,
        input_gradient: relative.input_gradient,
        weight_gradient: relative.weight_gradient,
        fit: FitQuality { points: 0, sigma: relative.fit.sigma + 0.1 },
    }
}
