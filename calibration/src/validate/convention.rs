//! FLOP conventions: how a source turns a step time into TFLOP/s or a utilisation.
//!
//! TFLOP/s of two sources are not comparable. Each row's `flops_convention` text is read into one of the closed forms
//! below; a predicted step time is then printed in the row's own convention.
//!
//! | text says | FLOPs per token |
//! |---|---|
//! | `96*B*s*l*h^2*(1+s/6h+V/16lh)` (Narayanan et al. 2021, equation 3) | that, recomputation counted |
//! | `8*params*tokens` (older BigScience calculator) | `8·12·L·h²` |
//! | `bsh(72h+12s)` (Vocabulary Parallelism, table 4) | `L·h(72h+12s) + 3h + 6hV` |
//! | `arXiv 2205.05198` (Korthikanti et al. 2022, appendix A) | `72·L·h²(1+s/6h+V/12Lh)`; HFU adds the recomputed part |
//! | `6*N`, "N incl. embeddings" or total parameters | `6·N + 12·L·h·s` |
//! | "input embedding" left out, or an expanded per-matrix formula | `6·N' + 12·L·a·d·s` (full) or half of the second term (causal) |
//!
//! `N'` are the parameters that one token multiplies with: no input embedding, the output layer always, only the
//! experts a token visits, multi-token-prediction layers with their second output layer. LoRA counts `4·N'` (frozen
//! weights have no weight gradient).

use super::row::Row;
use super::task::task;
use psim_hardware::{Cluster, DType};
use psim_models::Model;
use psim_models::arch::Mixer;
use psim_models::plan::{Plan, Recompute};
use psim_models::workload::TrainingWorkload;

/// Closed form that a source uses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Formula {
    /// Narayanan et al. 2021, full recomputation counted.
    NarayananHardware,
    /// `8·P` with `P = 12·L·h²`.
    EightParameters,
    /// Korthikanti et al. 2022, model FLOPs.
    Korthikanti,
    /// Vocabulary Parallelism, table 4.
    VocabularyParallelism,
    /// `6·N` over all parameters plus full attention.
    AllParameters,
    /// `6·N'` plus attention, a share of the full rectangle (1 full, 0.5 causal).
    UsedParameters {
        /// Share of the attention rectangle counted.
        attention: f64,
    },
}

/// How a row's TFLOP/s and utilisations are to be read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Convention {
    /// FLOPs of one token, model (or hardware, where the source counts that).
    pub flops_per_token: f64,
    /// FLOPs of one token including recomputation, for HFU.
    pub hardware_flops_per_token: f64,
    /// TFLOP/s that 100 % utilisation means.
    pub peak_tflops: f64,
}

/// Reads the convention of a row.
pub fn convention(
    row: &Row,
    model: &Model,
    plan: &Plan,
    workload: &TrainingWorkload,
    cluster: &Cluster,
) -> Convention {
    let formula = formula(row);
    let flops = flops_per_token(formula, row, model, workload);
    let recounted = match formula {
        Formula::NarayananHardware | Formula::EightParameters => flops,
        _ => flops * recompute_factor(plan.recompute, model, workload),
    };
    Convention {
        flops_per_token: flops,
        hardware_flops_per_token: recounted,
        peak_tflops: peak(row, cluster, plan.precision.gemm()),
    }
}

fn formula(row: &Row) -> Formula {
    let text = row.measured.flops_convention.to_lowercase().replace(' ', "");
    let has = |words: &[&str]| words.iter().any(|w| text.contains(w));
    if has(&["96*b*s*l", "96bsl", "v/16lh", "16lh"]) {
        Formula::NarayananHardware
    } else if has(&["8*params", "8*p*", "8*n"]) {
        Formula::EightParameters
    } else if has(&["2205.05198", "v/12lh"]) {
        Formula::Korthikanti
    } else if has(&["72h+12s"]) {
        Formula::VocabularyParallelism
    } else if has(&["incl.embed", "includingembed", "6*seqlen*params", "6*params*", "6*n+", "6n+"]) {
        Formula::AllParameters
    } else {
        let causal = has(&["halved", "causal", "s/2h", "half"]) && !has(&["nothalved", "non-causal"]);
        let full =
            has(&["fullattention", "full(nothalved)", "full(non-causal)", "12*l*h*s"]) && !has(&["s/2h"]);
        let bare = has(&["6n", "6*n"]) && !has(&["attention", "12*l", "s/h"]);
        let framework = row.config.framework.to_lowercase();
        // Megatron-Core halves causal attention since 2025; earlier releases and everybody else count it in full.
        let attention = if bare {
            0.0
        } else if causal {
            0.5
        } else if full {
            1.0
        } else if framework.contains("bridge") || text.contains("nvidiamodel") {
            0.5
        } else {
            1.0
        };
        Formula::UsedParameters { attention }
    }
}

fn flops_per_token(formula: Formula, row: &Row, model: &Model, workload: &TrainingWorkload) -> f64 {
    let (h, l) = (model.hidden as f64, f64::from(model.layers()));
    let (s, v) = (workload.seq_len as f64, model.vocab as f64);
    match formula {
        Formula::NarayananHardware => 96.0 * l * h * h * (1.0 + s / (6.0 * h) + v / (16.0 * l * h)),
        Formula::EightParameters => 96.0 * l * h * h,
        Formula::Korthikanti => 72.0 * l * h * h * (1.0 + s / (6.0 * h) + v / (12.0 * l * h)),
        Formula::VocabularyParallelism => l * h * (72.0 * h + 12.0 * s) + 3.0 * h + 6.0 * h * v,
        Formula::AllParameters => {
            let printed = row.model.params_b.filter(|p| *p > 0.0).map(|p| p * 1e9);
            6.0 * printed.unwrap_or(model.parameters().total as f64) + 12.0 * l * h * s
        }
        Formula::UsedParameters { attention } => {
            let text = row.measured.flops_convention.to_lowercase();
            // Megatron-Bridge prints its formula with the packed length, the older recipes with the documents' own.
            let length = match workload.packed_length {
                Some(packed) if !text.contains("no recompute") => packed as f64,
                _ => s,
            };
            let factor = if task(row) == "lora" { 4.0 } else { 6.0 };
            factor * used_parameters(model) + 3.0 * attention * attention_flops(model, length)
        }
    }
}

/// Parameters that one token multiplies with.
pub fn used_parameters(model: &Model) -> f64 {
    let count = model.parameters();
    let head = model.vocab as f64 * model.hidden as f64;
    let body = count.active as f64 - count.embedding as f64;
    let mtp = if model.mtp_layers == 0 {
        0.0
    } else {
        let kind = model.mtp_kind.or_else(|| model.pattern.last().copied()).unwrap_or(0);
        let block =
            count.blocks.get(usize::from(kind)).map_or(0, psim_models::BlockParameters::active) as f64;
        f64::from(model.mtp_layers) * (block + 2.0 * (model.hidden as f64).powi(2) + head)
    };
    body + if model.tied_embeddings { head } else { 0.0 } + mtp
}

/// Forward FLOPs of the full attention rectangles, per token.
fn attention_flops(model: &Model, length: f64) -> f64 {
    let of = |kind: u16| match &model.kinds[usize::from(kind)].mixer {
        Mixer::Attention(a) => 2.0 * length * (a.heads * (a.head_dim + a.v_head_dim)) as f64,
        Mixer::Mla(m) => 2.0 * length * (m.heads * (m.qk_nope_dim + m.qk_rope_dim + m.v_head_dim)) as f64,
        _ => 0.0,
    };
    let layers: f64 = model.pattern.iter().map(|k| of(*k)).sum();
    let mtp = model.pattern.last().map_or(0.0, |k| of(model.mtp_kind.unwrap_or(*k)));
    layers + f64::from(model.mtp_layers) * mtp
}

/// Hardware over model FLOPs.
fn recompute_factor(recompute: Recompute, model: &Model, workload: &TrainingWorkload) -> f64 {
    match recompute {
        Recompute::Full => 4.0 / 3.0,
        Recompute::Selective => {
            let attention = attention_flops(model, workload.seq_len as f64);
            let model_flops = 6.0 * used_parameters(model) + 3.0 * attention;
            1.0 + attention / model_flops
        }
        Recompute::None => 1.0,
        Recompute::Layers(n) => {
            1.0 + f64::from(n.min(model.layers())) / f64::from(model.layers().max(1)) / 3.0
        }
    }
}

/// What 100 % means: printed with the row, else the datasheet.
fn peak(row: &Row, cluster: &Cluster, dtype: DType) -> f64 {
    let accelerator = &cluster.slowest_node().accelerator;
    let datasheet = accelerator
        .peak(dtype)
        .or_else(|| accelerator.peak(DType::Bf16))
        .or_else(|| accelerator.peak(DType::Fp16))
        .map_or(f64::NAN, |f| f.0 / 1e12);
    printed_peak(row, dtype).unwrap_or(datasheet)
}

/// `MFU in percent of 989 (bf16) / 1979 (fp8) on H100, 2450 / 4900 on GB200` or `in percent of 989.5 TFLOP/s`.
fn printed_peak(row: &Row, dtype: DType) -> Option<f64> {
    let text = format!("{} {}", row.measured.flops_convention, row.notes);
    let at = text.find("percent of ")? + "percent of ".len();
    let clause = text[at..].split(';').next()?;
    let wanted = row.hardware.gpu.split('-').next()?;
    let index = usize::from(matches!(dtype, DType::Fp8 | DType::Fp4));
    let mut fallback = None;
    for part in clause.split(',') {
        let numbers: Vec<f64> = part
            .split(" on ")
            .next()
            .unwrap_or("")
            .split(|c: char| !(c.is_ascii_digit() || c == '.'))
            .filter_map(|n| n.parse().ok())
            .filter(|n| *n > 50.0)
            .collect();
        let part_gpu = part.split(" on ").nth(1).map(str::trim);
        let value = numbers.get(index).or(numbers.first()).copied();
        match part_gpu {
            Some(gpu) if gpu == wanted => return value,
            None => fallback = fallback.or(value),
            Some(_) => {}
        }
    }
    fallback
}

impl Convention {
    /// TFLOP/s per accelerator at `tokens_per_s` tokens per second and accelerator.
    pub fn tflops(&self, tokens_per_s: f64) -> f64 {
        self.flops_per_token * tokens_per_s / 1e12
    }

    /// Model FLOP utilisation, percent.
    pub fn mfu(&self, tokens_per_s: f64) -> f64 {
        100.0 * self.tflops(tokens_per_s) / self.peak_tflops
    }

    /// Hardware FLOP utilisation, percent.
    pub fn hfu(&self, tokens_per_s: f64) -> f64 {
        100.0 * self.hardware_flops_per_token * tokens_per_s / 1e12 / self.peak_tflops
    }
}

#[cfg(test)]
mod tests {
    use super::super::{map::map, row};
    use std::collections::BTreeMap;

    /// Rows that print a time and a utilisation contradict themselves unless the convention is read right.
    #[test]
    fn printed_pairs_agree() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/validation/train.jsonl");
        let Ok(text) = std::fs::read_to_string(path) else {
            println!("SKIP: {path} is not here");
            return;
        };
        let mut ratios: BTreeMap<String, Vec<(f64, String)>> = BTreeMap::new();
        for row in row::read(&text).unwrap() {
            let Ok(mapped) = map(&row) else { continue };
            let m = &row.measured;
            let tokens =
                f64::from(mapped.plan.global_batch) * mapped.workload.seq_len as f64 * mapped.batch_scale
                    / f64::from(mapped.cluster.accelerators());
            let Some(rate) = m.tokens_per_s_per_gpu.or(m.step_time_s.map(|t| tokens / t)) else { continue };
            let source = row::source_of(&row.id).to_owned();
            if let Some(tflops) = m.tflops_per_gpu {
                let ratio = mapped.convention.tflops(rate) / tflops;
                ratios.entry(format!("{source} tflops")).or_default().push((ratio, row.id.clone()));
            }
            if let Some(mfu) = m.mfu {
                let ratio = mapped.convention.mfu(rate) / mfu;
                ratios.entry(format!("{source} mfu")).or_default().push((ratio, row.id.clone()));
            }
        }
        for (key, values) in &mut ratios {
            values.sort_by(|a, b| a.0.total_cmp(&b.0));
            println!("{key}: {} rows, median {:.4}", values.len(), values[values.len() / 2].0);
            for (ratio, id) in values.iter().filter(|v| (v.0 - 1.0).abs() > 0.03) {
                println!("   {ratio:.3} {id}");
            }
            assert!((values[values.len() / 2].0 - 1.0).abs() < 0.01, "{key}");
            let agree = values.iter().filter(|v| (v.0 - 1.0).abs() <= 0.03).count();
            // Megatron-Bridge changed what its TFLOP/s of GPT-OSS and hybrid rows mean between releases.
            assert!(agree as f64 >= 0.7 * values.len() as f64, "{key}: {agree} of {}", values.len());
        }
    }
}
