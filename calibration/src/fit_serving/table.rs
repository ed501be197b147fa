//! Reads the measured tables that serving needs.

use super::FitError;
use flate2::read::GzDecoder;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// One attention row.
#[derive(Debug, Clone)]
pub(super) struct AttentionRow {
    pub gpu: String,
    pub decode: bool,
    pub latent: bool,
    pub batch: f64,
    pub q_heads: f64,
    pub kv_heads: f64,
    pub width: f64,
    pub width_v: f64,
    pub seq_q: f64,
    pub seq_kv: f64,
    pub window: f64,
    pub dtype: String,
    pub kv_dtype: String,
    pub us: f64,
    pub library: String,
    pub tflops: f64,
}

/// One fused-expert row.
#[derive(Debug, Clone)]
pub(super) struct ExpertRow {
    pub gpu: String,
    pub dtype: String,
    pub tokens: f64,
    pub hidden: f64,
    pub inner: f64,
    pub top_k: f64,
    pub experts: f64,
    pub ep: f64,
    pub us: f64,
    pub kernel: String,
    pub library: String,
}

/// One matrix-product row.
#[derive(Debug, Clone)]
pub(super) struct ProductRow {
    pub gpu: String,
    pub dtype: String,
    pub m: f64,
    pub n: f64,
    pub k: f64,
    pub us: f64,
}

/// One all-reduce row.
#[derive(Debug, Clone)]
pub(super) struct ReduceRow {
    pub gpu: String,
    pub ranks: u32,
    pub bytes: f64,
    pub us: f64,
    pub library: String,
}

/// A row as a function from column name to text.
type Columns<'a> = &'a dyn Fn(&str) -> String;

fn rows(path: &Path, each: &mut dyn FnMut(Columns<'_>)) -> Result<(), FitError> {
    let fail = |cause: String| FitError::Table { file: path.display().to_string(), cause };
    let file = File::open(path).map_err(|e| fail(e.to_string()))?;
    let reader: Box<dyn Read> = if path.extension().is_some_and(|e| e == "gz") {
        Box::new(GzDecoder::new(file))
    } else {
        Box::new(file)
    };
    let mut csv = csv::ReaderBuilder::new().flexible(true).from_reader(reader);
    let header = csv.headers().map_err(|e| fail(e.to_string()))?.clone();
    for record in csv.records() {
        let record = record.map_err(|e| fail(e.to_string()))?;
        each(&|name| {
            let at = header.iter().position(|h| h == name);
            at.and_then(|i| record.get(i)).unwrap_or_default().to_owned()
        });
    }
    Ok(())
}

/// `trtllm`, `vllm` or `sglang` from the source of a row.
fn library(source: &str) -> Option<String> {
    ["trtllm", "vllm", "sglang"]
        .iter()
        .find(|l| source.starts_with(&format!("aic-{l}")))
        .map(|l| (*l).to_owned())
}

fn number(text: &str) -> f64 {
    text.parse().unwrap_or(0.0)
}

pub(super) fn attention(path: &Path) -> Result<Vec<AttentionRow>, FitError> {
    let mut out = Vec::new();
    rows(path, &mut |cell| {
        let Some(library) = library(&cell("source")) else { return };
        let (phase, variant) = (cell("phase"), cell("variant"));
        if !(phase == "decode" || phase == "prefill") {
            return;
        }
        out.push(AttentionRow {
            gpu: cell("gpu"),
            decode: phase == "decode",
            latent: variant.starts_with("mla"),
            batch: number(&cell("batch")),
            q_heads: number(&cell("q_heads")),
            kv_heads: number(&cell("kv_heads")),
            width: number(&cell("head_dim")),
            width_v: number(&cell("head_dim_v")),
            seq_q: number(&cell("seq_q")),
            seq_kv: number(&cell("seq_kv")),
            window: number(&cell("window")),
            dtype: cell("dtype"),
            kv_dtype: cell("kv_dtype"),
            us: number(&cell("time_us")),
            tflops: number(&cell("tflops")),
            library,
        });
    })?;
    Ok(out)
}

pub(super) fn experts(path: &Path) -> Result<Vec<ExpertRow>, FitError> {
    let mut out = Vec::new();
    rows(path, &mut |cell| {
        let Some(library) = library(&cell("source")) else { return };
        let kernel = cell("kernel");
        if cell("op") != "fused-moe" || cell("distribution") != "balanced" || kernel.contains("nongated") {
            return;
        }
        let (tp, inter) = (number(&cell("tp")).max(1.0), number(&cell("inter")));
        out.push(ExpertRow {
            gpu: cell("gpu"),
            dtype: cell("dtype"),
            tokens: number(&cell("tokens")),
            hidden: number(&cell("hidden")),
            inner: inter / tp,
            top_k: number(&cell("topk")),
            experts: number(&cell("experts")),
            ep: number(&cell("ep")).max(1.0),
            us: number(&cell("time_us")),
            kernel,
            library,
        });
    })?;
    Ok(out)
}

pub(super) fn products(path: &Path) -> Result<Vec<ProductRow>, FitError> {
    let mut out = Vec::new();
    rows(path, &mut |cell| {
        let dtype = cell("dtype");
        if !matches!(dtype.as_str(), "w4a16" | "w8a16") {
            return;
        }
        out.push(ProductRow {
            gpu: cell("gpu"),
            dtype,
            m: number(&cell("m")),
            n: number(&cell("n")),
            k: number(&cell("k")),
            us: number(&cell("time_us")),
        });
    })?;
    Ok(out)
}

pub(super) fn reduces(path: &Path) -> Result<Vec<ReduceRow>, FitError> {
    let mut out = Vec::new();
    rows(path, &mut |cell| {
        let library_name = cell("library");
        let custom = library_name.contains("custom") && cell("graph") == "1";
        let nccl =
            library_name == "NCCL" && cell("source").starts_with("aic-nccl") && cell("dtype") == "fp16";
        let nodes = number(&cell("nodes"));
        if cell("op") != "all_reduce" || nodes != 1.0 || !(custom || nccl) {
            return;
        }
        let library =
            if nccl { "nccl".to_owned() } else { library_name.split(' ').next().unwrap_or("").to_owned() };
        out.push(ReduceRow {
            gpu: cell("gpu"),
            ranks: number(&cell("gpus")) as u32,
            bytes: number(&cell("bytes")),
            us: number(&cell("time_us")),
            library,
        });
    })?;
    Ok(out)
}
