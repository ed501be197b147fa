//! From samples to an accelerator profile: a simple law per table and a residual grid over what was measured.
//!
//! Grid nodes that were not measured are filled by the model that predicts shapes left out best (interpolation by local
//! planes, kriging or a random forest: [`crate::learned::choice`]). The error of a table is that of measured points
//! predicted from the others (robust standard deviation of ln(measured / predicted)).

mod memory;

use super::point::{Point, Record, Role, median, memory_traffic};
use super::sweep::FEW_ROWS;
use super::{MeasureError, machine};
use crate::learned::choice;
use psim_cost_models::attention::{AttentionShape, law_seconds as attention_law_seconds};
use psim_cost_models::gemm::{Rates, law_seconds};
use psim_cost_models::grid::Residual;
use psim_hardware::profile::accelerator::{
    ACCELERATOR_PROFILE_SCHEMA, AcceleratorProfile, AttentionLaw, AttentionPass, AttentionTable,
    CollectiveCurve, FitQuality, GemmLaw, GemmTable, GroupedGemmTable, ResidualModel, TableModel,
};
use psim_hardware::profile::machine::{EngineStep, HostCopy, LoadLatency, MachineFacts, Sharing, Together};
use psim_hardware::profile::stack::AttentionKernel;
use psim_hardware::{Accelerator, DType, Scaling};
use psim_kernels::Device;
use std::collections::BTreeMap;

/// A fitted profile and what it is relative to.
#[derive(Debug, Clone)]
pub struct Fitted {
    /// Profile.
    pub profile: AcceleratorProfile,
    /// Datasheet.
    pub accelerator: Accelerator,
    /// Remarks.
    pub notes: Vec<String>,
}

/// Room above the best rate seen: nothing may beat a "datasheet" made from measurements.
const HEADROOM: f64 = 1.1;

/// Bytes a GEMM must move: inputs in the format, output in the format or fp32 when it accumulates.
fn gemm_bytes(size: f64, [m, n, k]: [f64; 3]) -> f64 {
    size * (m * k + n * k + m * n)
}

/// Fits all tables.
///
/// # Errors
/// When a table that every profile needs has no samples.
pub fn fit<D: Device>(
    device: &D,
    known: Option<&Accelerator>,
    records: &[Record],
) -> Result<Fitted, MeasureError> {
    let dtype = *device.formats().last().unwrap_or(&DType::Fp32);
    let mut notes = Vec::new();
    let gemms = gemm_samples(records, Role::Forward);
    if gemms.is_empty() {
        return Err(MeasureError::Empty("matrix products"));
    }
    let accelerator = match known {
        Some(known) => known.clone(),
        None if dtype != DType::Fp32 => {
            return Err(MeasureError::Datasheet(device.name()));
        }
        None => {
            let flops = gemms.iter().map(|(s, t)| 2.0 * s.iter().product::<f64>() / t);
            let attention = attention_samples(records, dtype).into_iter().map(|(s, _, t)| flops_of(&s) / t);
            let peak = flops.chain(attention).fold(0.0, f64::max) * HEADROOM;
            let small = gemms.iter().map(|&(s, t)| gemm_bytes(dtype.size(), s) / t);
            let memory = memory_samples(records, dtype).into_iter().map(|(_, [b, _], _, t)| b / t);
            let bandwidth = small.chain(memory).fold(0.0, f64::max) * HEADROOM;
            let name = format!("{} core", psim_kernels::cpu::processor_name());
            machine::cpu_accelerator(&name, peak, bandwidth)
        }
    };
    let rates = Rates {
        peak: accelerator.peak(dtype).map_or(1e12, |p| p.0),
        bandwidth: accelerator.memory_bandwidth.0,
        units: accelerator.sm_count.map_or(1.0, f64::from),
    };
    let mut models = Vec::new();
    let gemm = gemm_table(dtype, rates, &gemms, records, &mut models);
    let grouped = GroupedGemmTable {
        dtype,
        scaling: Scaling::None,
        law: gemm.law,
        group_us: gemm.law.launch_us,
        residual: gemm.residual.clone(),
        input_gradient: gemm.input_gradient,
        weight_gradient: gemm.weight_gradient,
        fit: gemm.fit,
    };
    let attention = attention_tables(dtype, rates, records, &mut models);
    let memory = memory::tables(&memory_samples(records, dtype), rates.bandwidth);
    let collectives = collective_curves(records);
    let machine = machine_facts(&accelerator, records, &mut notes);
    let profile = AcceleratorProfile {
        schema: ACCELERATOR_PROFILE_SCHEMA,
        accelerator: accelerator.name.clone(),
        units: None,
        link_bandwidth: None,
        source: format!("psim calibrate on {}, {} points", device.name(), records.len()),
        gemm: vec![gemm],
        grouped_gemm: vec![grouped],
        attention,
        memory,
        collectives,
        power: None,
        models,
        machine: Some(machine),
    };
    Ok(Fitted { profile, accelerator, notes })
}

/// Quality per table, for printing.
pub fn tables(profile: &AcceleratorProfile) -> Vec<(String, u32, f64)> {
    let mut rows = Vec::new();
    let mut add = |name: String, fit: FitQuality| rows.push((name, fit.points, fit.sigma));
    profile.gemm.iter().for_each(|t| add(format!("gemm {}", t.dtype), t.fit));
    profile.attention.iter().for_each(|t| add(format!("attention {:?}", t.pass), t.fit));
    profile.memory.iter().for_each(|t| add(t.class.clone(), t.fit));
    profile.collectives.iter().for_each(|t| add(format!("{} {} ranks", t.operation, t.ranks), t.fit));
    rows
}

/// Shapes and median seconds of the products in the forward layout.
pub fn gemm_shapes(records: &[Record]) -> Vec<([f64; 3], f64)> {
    gemm_samples(records, Role::Forward)
}

/// Law of some measured products of a processor, with what a model says of the rest, to be tried on others.
#[derive(Debug)]
pub struct GemmTrial {
    residual: Residual,
    law: GemmLaw,
    rates: Rates,
}

impl GemmTrial {
    /// Fits (shape, seconds) with one model.
    pub fn new(samples: &[([f64; 3], f64)], model: ResidualModel) -> Self {
        let flops = samples.iter().map(|(s, t)| 2.0 * s.iter().product::<f64>() / t);
        let bytes = samples.iter().map(|(s, t)| gemm_bytes(DType::Fp32.size(), *s) / t);
        let rates = Rates {
            peak: flops.fold(1.0, f64::max) * HEADROOM,
            bandwidth: bytes.fold(1.0, f64::max) * HEADROOM,
            units: 1.0,
        };
        let law = gemm_law(rates, samples);
        let mut trial = Self { residual: Residual::default(), law, rates };
        let rest: Vec<_> = samples.iter().map(|&(s, t)| (s, (t / trial.law_seconds(s)).ln())).collect();
        let grid = choice::fill(&rest, model, &|s| trial.law_seconds(s));
        trial.residual = Residual::new(grid.as_ref());
        trial
    }

    /// Seconds of the law alone.
    pub fn law_seconds(&self, [m, n, k]: [f64; 3]) -> f64 {
        law_seconds(&self.law, self.rates, m, n, k, 1.0, gemm_bytes(DType::Fp32.size(), [m, n, k]))
    }

    /// Seconds with the residual.
    pub fn seconds(&self, shape: [f64; 3]) -> f64 {
        self.law_seconds(shape) * self.residual.at(shape).exp()
    }
}

fn gemm_samples(records: &[Record], wanted: Role) -> Vec<([f64; 3], f64)> {
    records
        .iter()
        .filter_map(|r| match r.point {
            Point::Gemm { m, n, k, role } if role == wanted => {
                Some(([m as f64, n as f64, k as f64], r.median()))
            }
            _ => None,
        })
        .collect()
}

fn round(value: f64) -> f64 {
    if value.is_finite() { (value * 1e4).round() / 1e4 } else { 0.0 }
}

fn gemm_law(rates: Rates, samples: &[([f64; 3], f64)]) -> GemmLaw {
    let best = samples.iter().map(|(s, t)| 2.0 * s.iter().product::<f64>() / t).fold(0.0, f64::max);
    let shortest = samples.iter().map(|s| s.1).fold(f64::INFINITY, f64::min);
    // One core runs tiles one after another: no waves, no small-tile loss; several units have both.
    let serial = rates.units <= 1.0;
    GemmLaw {
        launch_us: round(0.5e6 * shortest),
        compute: round((best / rates.peak).min(1.0)),
        memory: 1.0,
        prologue: if serial { 0.0 } else { 64.0 },
        quantisation: if serial { 0.0 } else { 0.5 },
        small_tile: if serial { 1.0 } else { 0.9 },
    }
}

fn gemm_table(
    dtype: DType,
    rates: Rates,
    samples: &[([f64; 3], f64)],
    records: &[Record],
    models: &mut Vec<TableModel>,
) -> GemmTable {
    let law = gemm_law(rates, samples);
    let expected =
        |[m, n, k]: [f64; 3]| law_seconds(&law, rates, m, n, k, 1.0, gemm_bytes(dtype.size(), [m, n, k]));
    let rest: Vec<_> = samples.iter().map(|&(s, t)| (s, (t / expected(s)).ln())).collect();
    let chosen = choice::choose(&format!("gemm {dtype}"), &rest, &expected);
    models.extend(chosen.model);
    let residual = Residual::new(chosen.grid.as_ref());
    // Against the forward layout as the cost model prices it: a weight gradient also reads and writes its sum.
    let against = |role: Role, s: [f64; 3]| {
        let again = if role == Role::WeightGradient { 8.0 * s[0] * s[1] } else { 0.0 };
        let bytes = gemm_bytes(dtype.size(), s) + again;
        law_seconds(&law, rates, s[0], s[1], s[2], 1.0, bytes) * residual.at(s).exp()
    };
    let layout = |role: Role| {
        let ratios: Vec<([f64; 3], f64)> = gemm_samples(records, role)
            .into_iter()
            .filter(|(s, _)| s[0] > FEW_ROWS as f64)
            .map(|(s, t)| (s, t / against(role, s)))
            .collect();
        if ratios.is_empty() {
            return (1.0, None);
        }
        let constant = round(median(&ratios.iter().map(|r| r.1).collect::<Vec<_>>()));
        let points: Vec<_> = ratios.into_iter().map(|(s, ratio)| (s, (ratio / constant).ln())).collect();
        (constant, choice::fill(&points, ResidualModel::Interpolation, &expected))
    };
    let (input_gradient, input_gradient_residual) = layout(Role::InputGradient);
    let (weight_gradient, weight_gradient_residual) = layout(Role::WeightGradient);
    GemmTable {
        dtype,
        scaling: Scaling::None,
        law,
        residual: chosen.grid,
        input_gradient,
        weight_gradient,
        input_gradient_residual,
        weight_gradient_residual,
        sustained: 1.0,
        fit: chosen.fit,
    }
}

fn flops_of(shape: &AttentionShape) -> f64 {
    shape.flops_per * shape.heads * shape.seq_q * shape.seq_kv * shape.density * shape.width
}

/// Causal attention of so many heads, as the operator counts it: q, k, v, out forward; with gradients backward.
fn attention_shape(
    pass: AttentionPass,
    dtype: DType,
    heads: u64,
    seq_q: u64,
    seq_kv: u64,
    dim: f64,
) -> AttentionShape {
    let [heads, seq_q, seq_kv] = [heads, seq_q, seq_kv].map(|x| x as f64);
    let backward = pass == AttentionPass::Backward;
    let (q, kv) = (2.0 * heads * seq_q * dim, 2.0 * heads * seq_kv * dim);
    AttentionShape {
        heads,
        groups: heads,
        seq_q,
        seq_kv,
        density: if pass == AttentionPass::Decode { 1.0 } else { 0.5 * (1.0 + 1.0 / seq_q) },
        width: dim,
        flops_per: if backward { 10.0 } else { 4.0 },
        bytes: dtype.size() * if backward { 2.0 * (q + kv) + q } else { q + kv },
    }
}

/// The shape at coordinates of a table (heads, computed keys of a row, width).
fn shape_at(pass: AttentionPass, dtype: DType, [heads, keys, width]: [f64; 3]) -> AttentionShape {
    let keys = keys.max(1.0);
    if pass == AttentionPass::Decode {
        return attention_shape(pass, dtype, heads.round() as u64, 1, keys.round() as u64, width);
    }
    // A row of a causal square sees half of it on average, itself included.
    let length = (2.0 * keys - 1.0).round() as u64;
    attention_shape(pass, dtype, heads.round() as u64, length, length, width)
}

fn attention_samples(records: &[Record], dtype: DType) -> Vec<(AttentionShape, AttentionPass, f64)> {
    records
        .iter()
        .filter_map(|r| {
            let (batch, seq_q, seq_kv, heads, dim, pass) = match r.point {
                Point::Attention { batch, seq, heads, head_dim, backward } => {
                    let pass = if backward { AttentionPass::Backward } else { AttentionPass::Forward };
                    (batch, seq, seq, heads, head_dim, pass)
                }
                Point::Decode { batch, length, heads, head_dim } => {
                    (batch, 1, length, heads, head_dim, AttentionPass::Decode)
                }
                _ => return None,
            };
            let shape = attention_shape(pass, dtype, batch * heads, seq_q, seq_kv, dim as f64);
            Some((shape, pass, r.median()))
        })
        .collect()
}

fn attention_tables(
    dtype: DType,
    rates: Rates,
    records: &[Record],
    models: &mut Vec<TableModel>,
) -> Vec<AttentionTable> {
    let samples = attention_samples(records, dtype);
    let mut tables = Vec::new();
    for pass in [AttentionPass::Forward, AttentionPass::Backward, AttentionPass::Decode] {
        let own: Vec<_> = samples.iter().filter(|s| s.1 == pass).collect();
        if own.is_empty() {
            continue;
        }
        let best = own.iter().map(|(s, _, t)| flops_of(s) / t).fold(0.0, f64::max);
        let shortest = own.iter().map(|s| s.2).fold(f64::INFINITY, f64::min);
        let law = AttentionLaw {
            launch_us: round(0.5e6 * shortest),
            compute: (best / rates.peak).clamp(1e-6, 1.0),
            memory: 1.0,
            prologue: 0.0,
            narrow_head: 1.0,
            quantisation: 0.0,
        };
        let rest: Vec<_> = own
            .iter()
            .map(|(shape, _, time)| {
                let mut at = shape.coordinates();
                if pass != AttentionPass::Decode {
                    // Sequence length decides both tiles and keys: one of them is enough.
                    at[0] = 1.0;
                }
                (at, (time / attention_law_seconds(&law, rates, shape)).ln())
            })
            .collect();
        let name = format!("attention {pass:?}");
        let expected = |at| attention_law_seconds(&law, rates, &shape_at(pass, dtype, at));
        let chosen = choice::choose(&name, &rest, &expected);
        models.extend(chosen.model);
        tables.push(AttentionTable {
            kernel: AttentionKernel::Flash2,
            pass,
            dtype,
            law,
            residual: chosen.grid,
            fit: chosen.fit,
        });
    }
    tables
}

/// Class, bytes and width of a row, kernels, seconds.
fn memory_samples(records: &[Record], dtype: DType) -> Vec<(String, [f64; 2], u32, f64)> {
    records
        .iter()
        .filter_map(|r| match &r.point {
            Point::Memory { class, rows, width } => {
                let (bytes, kernels) = memory_traffic(class, dtype.size())?;
                Some((class.clone(), [bytes * (rows * width) as f64, *width as f64], kernels, r.median()))
            }
            _ => None,
        })
        .collect()
}

/// Products of few rows with a transposed matrix against the same in the usual layout; 0 where neither was measured.
fn transposed(records: &[Record]) -> f64 {
    let forward = gemm_samples(records, Role::Forward);
    let ratios: Vec<f64> = gemm_samples(records, Role::InputGradient)
        .into_iter()
        .filter(|(s, _)| s[0] <= FEW_ROWS as f64)
        .filter_map(|(shape, time)| Some(time / forward.iter().find(|f| f.0 == shape)?.1))
        .collect();
    round(median(&ratios))
}

/// The machine itself.
fn machine_facts(accelerator: &Accelerator, records: &[Record], notes: &mut Vec<String>) -> MachineFacts {
    let mut facts = MachineFacts {
        sharing: Sharing { cores: machine::cores(), together: Vec::new() },
        sustained: 0.0,
        caches: Vec::new(),
        latency: Vec::new(),
        shared_nanoseconds: None,
        launch_us: None,
        graph_launch_us: None,
        host_copies: Vec::new(),
        engine_steps: Vec::new(),
        transposed: transposed(records),
        streams: super::stream::streams(records),
        datasheet: accelerator.clone(),
    };
    let mut threads: BTreeMap<u32, f64> = BTreeMap::new();
    let mut latency: BTreeMap<u64, f64> = BTreeMap::new();
    for record in records.iter().filter(|r| r.median().is_finite()) {
        let time = record.median();
        match &record.point {
            Point::Together { threads: n } => {
                threads.insert(*n, time);
            }
            Point::Chase { bytes } => {
                latency.insert(*bytes, round(time * 1e9));
            }
            &Point::EngineStep { layers, sequences, vocab } => {
                facts.engine_steps.push(EngineStep { layers, sequences, vocab, time_us: round(time * 1e6) });
            }
            Point::Shared => facts.shared_nanoseconds = Some(round(time * 1e9)),
            Point::Launch { graph: false } => facts.launch_us = Some(round(time * 1e6)),
            Point::Launch { graph: true } => facts.graph_launch_us = Some(round(time * 1e6)),
            Point::HostCopy { bytes, to_device } => facts.host_copies.push(HostCopy {
                bytes: *bytes,
                to_device: *to_device,
                time_us: round(time * 1e6),
            }),
            Point::Sustained { milliseconds } => {
                let third = record.seconds.len().div_ceil(3);
                let first = record.seconds.iter().take(third).copied().fold(f64::INFINITY, f64::min);
                let last: Vec<f64> = record.seconds.iter().rev().take(third).copied().collect();
                facts.sustained = round(first / median(&last));
                if *milliseconds < 5_000 {
                    notes.push(format!(
                        "clocks were watched for {:.1} s only; power limits react later",
                        *milliseconds as f64 * 1e-3
                    ));
                }
            }
            _ => {}
        }
    }
    // More threads never make each other faster.
    let mut lowest = 1.0_f64;
    if let Some(&alone) = threads.get(&1) {
        for (&threads, &time) in &threads {
            lowest = lowest.min(alone / time);
            facts.sharing.together.push(Together { threads, rate: round(lowest) });
        }
        facts.caches = super::host::caches();
    }
    facts.latency =
        latency.into_iter().map(|(bytes, nanoseconds)| LoadLatency { bytes, nanoseconds }).collect();
    facts.engine_steps.sort_by_key(|s| (s.layers, s.sequences, s.vocab));
    facts.host_copies.sort_by_key(|c| (c.to_device, c.bytes));
    facts
}

/// Curves, never falling with size.
fn collective_curves(records: &[Record]) -> Vec<CollectiveCurve> {
    let mut curves: BTreeMap<(String, u32), BTreeMap<u64, f64>> = BTreeMap::new();
    for record in records {
        if let Point::Collective { operation, ranks, bytes } = &record.point {
            curves.entry((operation.clone(), *ranks)).or_default().insert(*bytes, record.median());
        }
    }
    curves
        .into_iter()
        .map(|((operation, ranks), points)| {
            let mut longest = 0.0_f64;
            let mut lifted = Vec::new();
            let mut times = Vec::new();
            for &time in points.values() {
                longest = longest.max(time);
                lifted.push((longest / time).ln().abs());
                times.push(longest * 1e6);
            }
            CollectiveCurve {
                operation,
                ranks,
                in_switch: false,
                bytes: points.keys().map(|&b| b as f64).collect(),
                time_us: times,
                fit: FitQuality {
                    points: points.len() as u32,
                    sigma: round(1.4826 * median(&lifted)).max(0.05),
                },
            }
        })
        .collect()
}
