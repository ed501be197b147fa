//! One fit per accelerator, kernel library and format.

use super::FitLine;
use super::residual::residual;
use super::simplex::minimise;
use super::table::{AttentionRow, ExpertRow, ProductRow, ReduceRow};
use psim_cost_models::serving::kernels::{Datasheet, DecodeLaw, MoeCall, MoeLaw, PromptLaw, WeightOnlyLaw};
use psim_cost_models::serving::reduce::ReduceCurve;
use psim_cost_models::serving::tables::Entry;
use psim_hardware::{Accelerator, DType};
use std::collections::{BTreeMap, BTreeSet};

/// Fewest rows that a law is fitted to.
const FEWEST: usize = 12;

/// Datasheet rates for products in `dtype`.
fn rates(accelerator: &Accelerator, dtype: DType) -> Datasheet {
    let half = accelerator.peak(DType::Bf16).or(accelerator.peak(DType::Fp16)).map_or(1e12, |f| f.0);
    let peak = accelerator
        .peak(dtype)
        .or_else(|| if dtype == DType::Fp4 { accelerator.peak(DType::Fp8) } else { None })
        .map_or(half, |f| f.0);
    Datasheet { half, peak, bandwidth: accelerator.memory_bandwidth.0 }
}

/// Maps unbounded coordinates to parameters: each between its limits, logarithmic in the middle.
fn squash(x: f64, (low, high): (f64, f64)) -> f64 {
    let share = 1.0 / (1.0 + (-x).exp());
    low * (high / low).powf(share)
}

/// Fits parameters within `limits` to `predict` and returns them with the error line.
fn solve(
    what: String,
    limits: &[(f64, f64)],
    measured: &[f64],
    mut predict: impl FnMut(&[f64], usize) -> f64,
    lines: &mut Vec<FitLine>,
) -> (Vec<f64>, f64) {
    let parameters = |x: &[f64]| -> Vec<f64> { x.iter().zip(limits).map(|(x, l)| squash(*x, *l)).collect() };
    let mut loss = |x: &[f64]| -> f64 {
        let p = parameters(x);
        let wander: f64 = x.iter().map(|v| (v.abs() - 6.0).max(0.0)).sum();
        let total: f64 = measured
            .iter()
            .enumerate()
            .map(|(i, t)| {
                // Absolute error in logarithms, rounded off near zero.
                let e = (predict(&p, i) / t).ln();
                (e * e + 0.0025).sqrt()
            })
            .sum();
        total / measured.len() as f64 + 0.01 * wander
    };
    let start = vec![0.0; limits.len()];
    let first = minimise(&mut loss, &start, 1.0, 400);
    let best = parameters(&minimise(&mut loss, &first, 0.5, 400));
    let mut errors: Vec<f64> =
        measured.iter().enumerate().map(|(i, t)| (predict(&best, i) / t).ln()).collect();
    let sigma = (errors.iter().map(|e| e * e).sum::<f64>() / errors.len() as f64).sqrt();
    for e in &mut errors {
        *e = 100.0 * (e.exp() - 1.0).abs();
    }
    errors.sort_by(f64::total_cmp);
    let at = |q: f64| errors[((errors.len() - 1) as f64 * q) as usize];
    lines.push(FitLine { what, rows: measured.len(), median: at(0.5), p90: at(0.9) });
    (best.into_iter().map(round).collect(), round(sigma))
}

/// ln(measured / law) of every row.
fn errors(best: &[f64], measured: &[f64], mut predict: impl FnMut(&[f64], usize) -> f64) -> Vec<f64> {
    measured.iter().enumerate().map(|(i, t)| (t / predict(best, i)).ln()).collect()
}

/// Grid lines of the residuals, coordinate by coordinate (see the laws' `coordinates`).
const AXES_DECODE: [&[f64]; 3] = [
    &[1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16_384.0],
    &[1.0, 32.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16_384.0, 32_768.0, 131_072.0],
    &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0],
];
const AXES_PROMPT: [&[f64]; 3] = [
    &[1.0, 32.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16_384.0, 65_536.0],
    &[1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16_384.0],
    &[1.0, 4.0, 16.0],
];
const AXES_EXPERTS: [&[f64]; 3] = [
    &[1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16_384.0, 131_072.0],
    &[2.5e5, 1e6, 4e6, 1.6e7, 6.4e7, 2.56e8],
    &[1.0, 4.0, 16.0, 64.0, 256.0, 512.0],
];
const AXES_PRODUCTS: [&[f64]; 3] = [
    &[1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16_384.0],
    &[128.0, 512.0, 2048.0, 8192.0, 32_768.0, 131_072.0],
    &[128.0, 512.0, 2048.0, 8192.0, 32_768.0],
];

/// Four significant digits, so that the file is short and stable.
fn round(v: f64) -> f64 {
    format!("{v:.3e}").parse().unwrap_or(v)
}

/// Splits rows by a key, in order of the key.
fn groups<'a, R, K: Ord>(
    rows: impl Iterator<Item = &'a R>,
    key: impl Fn(&R) -> K,
) -> BTreeMap<K, Vec<&'a R>> {
    let mut out: BTreeMap<K, Vec<&R>> = BTreeMap::new();
    for row in rows {
        out.entry(key(row)).or_default().push(row);
    }
    out.retain(|_, rows| rows.len() >= FEWEST);
    out
}

fn heads(latent: bool) -> String {
    if latent { "mla" } else { "gqa" }.to_owned()
}

pub(super) fn decode(
    accelerator: &Accelerator,
    rows: &[AttentionRow],
    lines: &mut Vec<FitLine>,
) -> Vec<Entry<DecodeLaw>> {
    let mine = rows.iter().filter(|r| r.gpu == accelerator.name && r.decode && r.us > 0.0);
    let rates = rates(accelerator, DType::Bf16);
    let mut out = Vec::new();
    for ((library, format, latent), rows) in
        groups(mine, |r| (r.library.clone(), r.kv_dtype.clone(), r.latent))
    {
        let size = if format == "fp8" { 1.0 } else { 2.0 };
        let shapes: Vec<[f64; 3]> = rows
            .iter()
            .map(|r| {
                let length = if r.window > 0.0 { r.seq_kv.min(r.window) } else { r.seq_kv };
                let blocks = r.batch * if latent { (r.q_heads / 64.0).ceil() } else { r.kv_heads };
                let width = if latent { r.width } else { r.kv_heads * (r.width + r.width_v) };
                let bytes = r.batch * length * width * size;
                let flops = 2.0 * r.batch * r.q_heads * length * (r.width + r.width_v);
                [blocks, bytes, flops]
            })
            .collect();
        let times: Vec<f64> = rows.iter().map(|r| r.us * 1e-6).collect();
        let law = |p: &[f64]| DecodeLaw {
            launch_us: p[0],
            block_ns: p[1],
            memory: p[2],
            compute: p[3],
            sigma: 0.0,
        };
        let limits = [(1.0, 250.0), (0.5, 2000.0), (0.05, 0.98), (0.02, 0.98)];
        let what = format!("{} decode {library} kv {format} {}", accelerator.name, heads(latent));
        let predict = |p: &[f64], i: usize| law(p).seconds(rates, shapes[i][0], shapes[i][1], shapes[i][2]);
        let (best, sigma) = solve(what, &limits, &times, predict, lines);
        let points: Vec<[f64; 3]> = rows
            .iter()
            .zip(&shapes)
            .map(|(r, s)| {
                let length = if r.window > 0.0 { r.seq_kv.min(r.window) } else { r.seq_kv };
                DecodeLaw::coordinates(s[0], length, r.q_heads / if latent { 1.0 } else { r.kv_heads })
            })
            .collect();
        let (residual, sigma) =
            residual(&AXES_DECODE, &points, &errors(&best, &times, predict), sigma, lines);
        out.push(Entry {
            library,
            format,
            heads: heads(latent),
            law: DecodeLaw { sigma, ..law(&best) },
            residual,
        });
    }
    out
}

pub(super) fn prompt(
    accelerator: &Accelerator,
    rows: &[AttentionRow],
    lines: &mut Vec<FitLine>,
) -> Vec<Entry<PromptLaw>> {
    let mine = rows.iter().filter(|r| r.gpu == accelerator.name && !r.decode && r.us > 0.0 && r.tflops > 0.0);
    let mut out = Vec::new();
    for ((library, format, latent), rows) in groups(mine, |r| (r.library.clone(), r.dtype.clone(), r.latent))
    {
        let rates = rates(accelerator, if format == "fp8" { DType::Fp8 } else { DType::Bf16 });
        let size = if format == "fp8" { 1.0 } else { 2.0 };
        let shapes: Vec<[f64; 3]> = rows
            .iter()
            .map(|r| {
                let flops = r.tflops * r.us * 1e6;
                let q = r.batch * r.seq_q * r.q_heads * (r.width + r.width_v);
                let kv = r.batch * r.seq_kv * r.kv_heads * (r.width + r.width_v);
                [flops, r.seq_q, size * (q + kv)]
            })
            .collect();
        let times: Vec<f64> = rows.iter().map(|r| r.us * 1e-6).collect();
        let law = |p: &[f64]| PromptLaw {
            launch_us: p[0],
            compute: p[1],
            half_length: p[2],
            memory: p[3],
            sigma: 0.0,
        };
        let limits = [(1.0, 250.0), (0.05, 0.98), (1.0, 5000.0), (0.05, 0.98)];
        let what = format!("{} prompt {library} {format} {}", accelerator.name, heads(latent));
        let predict = |p: &[f64], i: usize| {
            let law = law(p);
            law.launch_us * 1e-6 + law.work_seconds(rates, shapes[i][0], shapes[i][1], shapes[i][2])
        };
        let (best, sigma) = solve(what, &limits, &times, predict, lines);
        let points: Vec<[f64; 3]> = rows
            .iter()
            .map(|r| {
                let group = if latent { 1.0 } else { r.q_heads / r.kv_heads };
                PromptLaw::coordinates(r.seq_q, r.batch * r.q_heads, group)
            })
            .collect();
        let (residual, sigma) =
            residual(&AXES_PROMPT, &points, &errors(&best, &times, predict), sigma, lines);
        out.push(Entry {
            library,
            format,
            heads: heads(latent),
            law: PromptLaw { sigma, ..law(&best) },
            residual,
        });
    }
    out
}

/// Format, arithmetic format and bytes of a weight of a row's `dtype`.
fn expert_format(dtype: &str, kernel: &str, accelerator: &Accelerator) -> Option<(&'static str, DType, f64)> {
    let four_bit = accelerator.peak(DType::Fp4).is_some();
    Some(match dtype {
        "bf16" => ("bf16", DType::Bf16, 2.0),
        "fp8" => ("fp8", DType::Fp8, 1.0),
        "fp8-block128" => ("fp8-block", DType::Fp8, 1.0),
        "nvfp4" if kernel.contains("min_latency") => ("nvfp4-low-latency", DType::Fp4, 0.5625),
        "nvfp4" => ("nvfp4", DType::Fp4, 0.5625),
        "w4a16" => ("w4a16", DType::Bf16, 0.52),
        "w4a16-mxfp4" => ("mxfp4", DType::Bf16, 0.53),
        "mxfp4-mxfp8" if four_bit => ("mxfp4", DType::Fp8, 0.53),
        _ => return None,
    })
}

pub(super) fn moe(
    accelerator: &Accelerator,
    rows: &[ExpertRow],
    lines: &mut Vec<FitLine>,
) -> Vec<Entry<MoeLaw>> {
    let mine = rows.iter().filter(|r| {
        r.gpu == accelerator.name
            && r.us > 0.0
            && expert_format(&r.dtype, &r.kernel, accelerator).is_some()
            // Two kernels of one format: the one that its library takes by default.
            && !(r.dtype == "fp8-block128" && r.kernel.contains("triton_tritonexperts"))
            && !(r.dtype == "w4a16-mxfp4" && r.kernel.contains("marlin"))
    });
    let mut out = Vec::new();
    let key = |r: &ExpertRow| {
        let format = expert_format(&r.dtype, &r.kernel, accelerator).map_or("", |f| f.0);
        (r.library.clone(), format)
    };
    for ((library, format), rows) in groups(mine, key) {
        let Some((_, arithmetic, size)) = expert_format(&rows[0].dtype, &rows[0].kernel, accelerator) else {
            continue;
        };
        let rates = rates(accelerator, arithmetic);
        let calls: Vec<MoeCall> = rows
            .iter()
            .map(|r| {
                let draws = r.tokens * r.top_k;
                let local = r.experts / r.ep;
                // Balanced rows spread the draws evenly: none hits an expert twice before all are hit.
                let touched = local.min(draws / r.ep).max(1.0);
                MoeCall {
                    rows: (draws / r.ep).max(1.0),
                    touched,
                    parameters: 3.0 * r.hidden * r.inner,
                    weight_bytes: size,
                    hidden: r.hidden,
                    local,
                }
            })
            .collect();
        let times: Vec<f64> = rows.iter().map(|r| r.us * 1e-6).collect();
        let law = |p: &[f64]| MoeLaw {
            launch_us: p[0],
            memory: p[1],
            compute: p[2],
            padding: p[3],
            passes: p[4],
            sigma: 0.0,
        };
        let limits = [(1.0, 300.0), (0.05, 0.98), (0.05, 0.98), (0.5, 130.0), (0.5, 100.0)];
        let what = format!("{} experts {library} {format}", accelerator.name);
        let predict = |p: &[f64], i: usize| law(p).seconds(rates, &calls[i]);
        let (best, sigma) = solve(what, &limits, &times, predict, lines);
        let points: Vec<[f64; 3]> = calls.iter().map(MoeCall::coordinates).collect();
        let (residual, sigma) =
            residual(&AXES_EXPERTS, &points, &errors(&best, &times, predict), sigma, lines);
        out.push(Entry {
            library,
            format: format.to_owned(),
            heads: String::new(),
            law: MoeLaw { sigma, ..law(&best) },
            residual,
        });
    }
    out
}

pub(super) fn weight_only(
    accelerator: &Accelerator,
    rows: &[ProductRow],
    lines: &mut Vec<FitLine>,
) -> Vec<Entry<WeightOnlyLaw>> {
    let rates = rates(accelerator, DType::Bf16);
    let mine = rows.iter().filter(|r| r.gpu == accelerator.name && r.us > 0.0);
    let mut out = Vec::new();
    for (format, rows) in groups(mine, |r| r.dtype.clone()) {
        let size = if format == "w4a16" { 0.52 } else { 1.0 };
        let shapes: Vec<[f64; 2]> = rows
            .iter()
            .map(|r| [2.0 * r.m * r.n * r.k, size * r.n * r.k + 2.0 * r.m * (r.n + r.k)])
            .collect();
        let times: Vec<f64> = rows.iter().map(|r| r.us * 1e-6).collect();
        let law = |p: &[f64]| WeightOnlyLaw { launch_us: p[0], memory: p[1], compute: p[2], sigma: 0.0 };
        let limits = [(0.5, 60.0), (0.05, 0.98), (0.05, 0.98)];
        let what = format!("{} weight-only {format}", accelerator.name);
        let predict = |p: &[f64], i: usize| law(p).seconds(rates, shapes[i][0], shapes[i][1]);
        let (best, sigma) = solve(what, &limits, &times, predict, lines);
        let points: Vec<[f64; 3]> = rows.iter().map(|r| [r.m, r.n, r.k]).collect();
        let (residual, sigma) =
            residual(&AXES_PRODUCTS, &points, &errors(&best, &times, predict), sigma, lines);
        out.push(Entry {
            library: "trtllm".to_owned(),
            format,
            heads: String::new(),
            law: WeightOnlyLaw { sigma, ..law(&best) },
            residual,
        });
    }
    out
}

/// Largest message that an engine reduces, bytes: 64 Ki tokens of 16 Ki features in 16 bits.
const LARGEST: f64 = 2.2e9;

pub(super) fn all_reduce(gpu: &str, rows: &[ReduceRow]) -> Vec<ReduceCurve> {
    let mine: Vec<&ReduceRow> =
        rows.iter().filter(|r| r.gpu == gpu && r.us > 0.0 && r.bytes <= LARGEST).collect();
    let keys: BTreeSet<(&str, u32)> = mine.iter().map(|r| (r.library.as_str(), r.ranks)).collect();
    keys.into_iter()
        .map(|(library, ranks)| {
            let mut points: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
            for row in mine.iter().filter(|r| r.library == library && r.ranks == ranks) {
                points.entry(row.bytes as u64).or_default().push(row.us);
            }
            let (bytes, us) = points
                .into_iter()
                .map(|(b, times)| (b as f64, round(times.iter().copied().fold(f64::INFINITY, f64::min))))
                .unzip();
            ReduceCurve { library: library.to_owned(), ranks, bytes, us }
        })
        .collect()
}
