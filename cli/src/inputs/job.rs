//! The training job of plan, simulate, explain, compare, report and emit: model, cluster, workload, software.

use super::common::{CommonArguments, Software};
use super::{cluster, model};
use crate::Host;
use crate::failure::Failure;
use crate::files::read_text;
use crate::number::{grouped, parse_count, parse_range, short};
use clap::Args;
use psim_hardware::source_error::{MAX_FILE_BYTES, parse_toml_body};
use psim_hardware::{Cluster, DType};
use psim_models::arch::Position;
use psim_models::plan::Precision;
use psim_models::serving::NumberFormat;
use psim_models::{Model, Plan, TrainingWorkload};
use psim_planner::Assumption;
use std::path::{Path, PathBuf};

/// Tokens of one sequence where nobody says.
pub(crate) const DEFAULT_SEQUENCE: u64 = 8192;
/// Tokens of one step where nobody says.
pub(crate) const DEFAULT_BATCH_TOKENS: u64 = 4 << 20;
/// Tokens of the whole job where nobody says.
const DEFAULT_TOKENS: f64 = 15e12;

/// What is trained, where, and how much of it.
#[derive(Debug, Clone, Args)]
pub(crate) struct JobArguments {
    /// Model: a preset (`psim show models`) or the path of a Hugging Face config.json
    #[arg(long, value_name = "NAME|config.json")]
    pub(crate) model: String,
    /// Cluster: a file, or a built-in one (`psim show clusters`)
    #[arg(long, value_name = "FILE|NAME")]
    pub(crate) cluster: String,
    /// Workload file (TOML): seq_len, global_batch, tokens … of training, or [[tenant]] tables of requests to serve;
    /// or a built-in one (`psim show workloads`)
    #[arg(long, value_name = "FILE")]
    pub(crate) workload: Option<PathBuf>,
    /// Sequences per step, or a range such as 512..4096 [default: 4 Mi tokens]
    #[arg(long, value_name = "N|A..B", value_parser = parse_range)]
    pub(crate) global_batch: Option<(u32, u32)>,
    /// Tokens per sequence [default: 8192]
    #[arg(long, value_name = "N", value_parser = parse_length)]
    pub(crate) seq_len: Option<u64>,
    /// Tokens of the whole job, such as 15T [default: 15T]
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub(crate) tokens: Option<f64>,
    /// Arithmetic: fp32, fp16, bf16, fp8, mxfp8, fp8-block, nvfp4; of served weights also int8, w8a16, w4a16, w4a8,
    /// mxfp4, q4km [default: bf16]
    #[arg(long, value_name = "P", value_parser = parse_format)]
    pub(crate) precision: Option<Format>,
    /// Format of the KV cache (serving): bf16, fp8, int8, fp4, int4 [default: bf16]
    #[arg(long, value_name = "P")]
    pub(crate) kv_precision: Option<String>,
}

/// Longest sequence that is believed.
const MAX_SEQUENCE: f64 = (1_u64 << 27) as f64;

/// Reads a sequence length: `8192`, `128k` (binary).
pub(crate) fn parse_length(text: &str) -> Result<u64, String> {
    let wrong =
        |why: &str| format!("`{text}` is not a sequence length: {why}; write for example 8192 or 128k");
    let binary = text.trim().strip_suffix(['k', 'K']).map(|n| (n, 1024.0));
    let value = match binary {
        Some((number, factor)) => number.parse::<f64>().map_err(|_| wrong("no number"))? * factor,
        None => parse_count(text).map_err(|_| wrong("no number"))?,
    };
    if value < 1.0 || value.fract() != 0.0 {
        return Err(wrong("it must be a whole number of at least 1"));
    }
    if value > MAX_SEQUENCE {
        return Err(wrong("more than 134217728 tokens in one sequence is not believable"));
    }
    Ok(value as u64)
}

const PRECISIONS: [Precision; 7] = [
    Precision::Fp32,
    Precision::Fp16,
    Precision::Bf16,
    Precision::Fp8,
    Precision::MxFp8,
    Precision::Fp8Block,
    Precision::NvFp4,
];

/// A number format as typed: a precision of training, a format of served weights, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    training: Option<Precision>,
    serving: Option<NumberFormat>,
}

impl Format {
    /// The precision of training.
    pub(crate) fn training(self) -> Result<Precision, Failure> {
        self.training.ok_or_else(|| {
            let name = self.serving.map_or("this", NumberFormat::name);
            let known: Vec<&str> = PRECISIONS.iter().map(|p| p.name()).collect();
            Failure::input(
                format!("{name} is a format of served weights, nothing is trained in it"),
                format!("one of {}", known.join(", ")),
            )
        })
    }

    /// The format of served weights.
    pub(crate) fn serving(self) -> Result<NumberFormat, Failure> {
        self.serving.ok_or_else(|| {
            let name = self.training.map_or("this", Precision::name);
            let known: Vec<&str> = NumberFormat::ALL.iter().map(|f| f.name()).collect();
            Failure::input(
                format!("{name} is a precision of training, not of served weights"),
                format!("one of {}", known.join(", ")),
            )
        })
    }
}

impl From<Precision> for Format {
    fn from(precision: Precision) -> Self {
        Self { training: Some(precision), serving: NumberFormat::parse(precision.name()) }
    }
}

/// Reads the name of a number format.
pub(crate) fn parse_format(text: &str) -> Result<Format, String> {
    let wanted = text.trim().to_lowercase();
    let training = PRECISIONS.into_iter().find(|p| p.name() == wanted);
    let serving = NumberFormat::parse(&wanted);
    if training.is_some() || serving.is_some() {
        return Ok(Format { training, serving });
    }
    let mut names: Vec<&str> = PRECISIONS.iter().map(|p| p.name()).collect();
    names.extend(
        NumberFormat::ALL.iter().map(|f| f.name()).filter(|n| PRECISIONS.iter().all(|p| p.name() != *n)),
    );
    Err(match psim_hardware::suggest::closest(&wanted, names.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("one of {}", names.join(", ")),
    })
}

/// A job, loaded.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) model: Model,
    pub(crate) cluster: Cluster,
    /// `global_batch` is the smallest of the range.
    pub(crate) workload: TrainingWorkload,
    pub(crate) global_batch: (u32, u32),
    pub(crate) precision: Precision,
    pub(crate) software: Software,
    /// Defaults taken.
    pub(crate) assumptions: Vec<Assumption>,
}

impl JobArguments {
    /// Loads everything.
    pub(crate) fn load(&self, common: &CommonArguments, host: &Host<'_>) -> Result<Job, Failure> {
        let model = model::load(host, &self.model)?;
        let cluster = cluster::load(host, &self.cluster)?;
        let software = common.software(host)?;
        let mut assumptions = Vec::new();
        let mut assume = |name: &str, value: String, why: &str| {
            assumptions.push(Assumption { name: name.to_owned(), value, why: why.to_owned() });
        };

        if cluster.source.starts_with("catalogue: ") {
            assume(
                "cluster",
                cluster.description.trim_end_matches('.').to_owned(),
                "the usual node, one full-bisection switch; --cluster FILE",
            );
        }
        if self.kv_precision.is_some() {
            return Err(Failure::input(
                "--kv-precision is of serving, and the job is training",
                "give a serving workload (`psim show workloads`), or leave it out",
            ));
        }
        let file = self.workload.as_deref().map(|path| read_workload(host, path)).transpose()?;
        let table = match model.position {
            Position::Learned(rows) => Some(rows),
            _ => None,
        };
        let seq_len = match (self.seq_len, &file) {
            (Some(given), _) => given,
            (None, Some(file)) => file.seq_len,
            (None, None) => {
                let length = DEFAULT_SEQUENCE.min(table.unwrap_or(u64::MAX));
                let why = if length < DEFAULT_SEQUENCE {
                    "all positions that the model's position table has; --seq-len"
                } else {
                    "usual in pre-training; --seq-len"
                };
                assume("sequence length", format!("{} tokens", grouped(length)), why);
                length
            }
        };
        if let Some(rows) = table.filter(|rows| seq_len > *rows) {
            return Err(Failure::input(
                format!(
                    "sequences of {seq_len} tokens, but `{}` has a position table of {rows} rows",
                    model.name
                ),
                format!("use --seq-len {rows} or less"),
            ));
        }
        let global_batch = match (self.global_batch, &file) {
            (Some(range), _) => range,
            (None, Some(file)) => (file.global_batch, file.global_batch),
            (None, None) => {
                let sequences = u32::try_from((DEFAULT_BATCH_TOKENS / seq_len).max(1)).unwrap_or(u32::MAX);
                let value = format!("{} sequences (4 Mi tokens)", grouped(u64::from(sequences)));
                assume("global batch", value, "usual in pre-training; --global-batch");
                (sequences, sequences)
            }
        };
        let tokens = match (self.tokens, &file) {
            (Some(tokens), _) => Some(tokens),
            (None, Some(file)) => file.tokens,
            (None, None) => {
                assume(
                    "token budget",
                    format!("{} tokens", short(DEFAULT_TOKENS)),
                    "Llama 3 was trained on as many; --tokens",
                );
                Some(DEFAULT_TOKENS)
            }
        };
        let given = self.precision.map(Format::training).transpose()?;
        let precision = given.unwrap_or_else(|| {
            let everywhere = |dtype| cluster.groups.iter().all(|g| g.node.accelerator.peak(dtype).is_some());
            if everywhere(DType::Bf16) || !everywhere(DType::Fp16) {
                assume("precision", "bf16".to_owned(), "usual in pre-training; --precision");
                Precision::Bf16
            } else {
                assume("precision", "fp16".to_owned(), "the accelerators have no bf16; --precision");
                Precision::Fp16
            }
        });
        if !software.stack_chosen {
            assume("software stack", software.stack.name.clone(), "the newest Megatron-Core; --stack");
        }
        for group in &cluster.groups {
            let part = &group.node.accelerator;
            if part.peak(precision.gemm()).is_none() {
                let has: Vec<&str> = part.peak.keys().map(|d| d.name()).collect();
                return Err(Failure::input(
                    format!(
                        "{} has no {} units, which {} needs",
                        part.name,
                        precision.gemm(),
                        precision.name()
                    ),
                    format!("it has {}; choose another --precision or cluster", has.join(", ")),
                ));
            }
        }
        let workload = TrainingWorkload {
            seq_len,
            global_batch: global_batch.0,
            tokens,
            ..file.unwrap_or(TrainingWorkload {
                seq_len,
                global_batch: global_batch.0,
                tokens: None,
                packed_length: None,
                lora_rank: None,
                expert_imbalance: 1.0,
                capacity_factor: None,
            })
        };
        Ok(Job { model, cluster, workload, global_batch, precision, software, assumptions })
    }
}

/// Reads and checks a workload file.
fn read_workload(host: &Host<'_>, path: &Path) -> Result<TrainingWorkload, Failure> {
    let shown = path.display().to_string();
    let text = read_text(host, path, "workload", MAX_FILE_BYTES)?;
    let hint = "a workload has `schema = 1`, `seq_len`, `global_batch` and optionally `tokens`";
    let workload: TrainingWorkload = parse_toml_body(&shown, &text, "workload", 1, hint)?;
    let fail = |what: &str| Err(Failure::input_at(what.to_owned(), shown.clone(), hint));
    if workload.seq_len == 0 || workload.seq_len as f64 > MAX_SEQUENCE {
        return fail("seq_len must lie between 1 and 134217728");
    }
    if workload.global_batch == 0 {
        return fail("global_batch is 0, must be at least 1");
    }
    if workload.tokens.is_some_and(|t| !(t.is_finite() && t > 0.0)) {
        return fail("tokens must be a positive number");
    }
    if !(workload.expert_imbalance >= 1.0 && workload.expert_imbalance <= 1e3) {
        return fail(
            "expert_imbalance is the most loaded rank over the mean: it must lie between 1 and 1000",
        );
    }
    if workload.capacity_factor.is_some_and(|c| !(c > 0.0 && c <= 1e3)) {
        return fail("capacity_factor must be positive and at most 1000");
    }
    if workload.packed_length.is_some_and(|n| n == 0 || n > workload.seq_len) {
        return fail("packed_length must lie between 1 and seq_len");
    }
    if workload.lora_rank == Some(0) {
        return fail("lora_rank is 0, must be at least 1");
    }
    Ok(workload)
}

/// Reads a plan file; `batch` fills a missing or overrides nothing.
pub(crate) fn read_plan(host: &Host<'_>, path: &Path) -> Result<Plan, Failure> {
    let shown = path.display().to_string();
    let text = read_text(host, path, "plan", MAX_FILE_BYTES)?;
    let hint =
        "a plan has `schema = 1`, tp, pp, dp, micro_batch, global_batch; `psim plan --json` prints them";
    let plan: Plan = parse_toml_body(&shown, &text, "plan", 1, hint)?;
    for (name, value) in plan.sizes() {
        if value == 0 || value > 1 << 24 {
            let message = format!("{name} is {value}, must lie between 1 and 16777216");
            return Err(match find_key(&text, name) {
                Some(span) => psim_hardware::SourceError::at(&shown, &text, &span, message, hint).into(),
                None => Failure::input_at(message, shown, hint),
            });
        }
    }
    Ok(plan)
}

use psim_hardware::source_error::find_key;
