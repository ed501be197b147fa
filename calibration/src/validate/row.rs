//! One published measurement as it is printed: the training rows of `validation/*.jsonl`, read tolerantly.
//!
//! Unknown fields are ignored, `null` is the same as absent, whole numbers may be printed as floats or strings. A
//! field of the wrong type spoils its row (which is then reported as `incomplete`), never the file. Only a line that
//! is not a JSON object with an `id` is an error.

use serde_json::{Map, Value};

/// Why a file of rows could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowsError {
    /// A line is not JSON.
    #[error(
        "line {line}: not a JSON object: {cause}\nhint: one JSON object a line; see the schema of the validation rows"
    )]
    Json {
        /// Line, from 1.
        line: usize,
        /// What the JSON reader says.
        cause: String,
    },
    /// A line has no usable `id`.
    #[error(
        "line {line}: the row has no `id` (a non-empty string)\nhint: one JSON object a line; see the schema of the validation rows"
    )]
    Id {
        /// Line, from 1.
        line: usize,
    },
    /// No rows at all.
    #[error(
        "no rows: the file is empty\nhint: one JSON object a line; see the schema of the validation rows"
    )]
    Empty,
}

/// One row.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Row {
    /// Identifier; its leading letters and digits name the source.
    pub id: String,
    /// What kind of measurement (`train`, `serve`, …).
    pub kind: String,
    /// Where it was published.
    pub source: String,
    /// Remarks.
    pub notes: String,
    /// Which decisive field is missing, if one is.
    pub weak: Option<String>,
    /// `oom` where the run did not fit.
    pub outcome: Option<String>,
    /// Model.
    pub model: ModelFields,
    /// Machine.
    pub hardware: HardwareFields,
    /// Layout and software.
    pub config: ConfigFields,
    /// What was measured.
    pub measured: Measured,
    /// First field of a wrong type or an absurd value, if there is one.
    pub fault: Option<String>,
    /// The row as read.
    pub value: Value,
}

/// Model as printed.
#[derive(Debug, Clone, PartialEq, Default)]
#[expect(missing_docs, reason = "the names are those of the schema")]
pub struct ModelFields {
    pub name: String,
    pub layers: Option<u64>,
    pub hidden: Option<u64>,
    pub heads: Option<u64>,
    pub kv_heads: Option<u64>,
    pub head_dim: Option<u64>,
    pub ffn_hidden: Option<u64>,
    pub ffn: Option<String>,
    pub vocab: Option<u64>,
    pub tied_embeddings: Option<bool>,
    pub params_b: Option<f64>,
    pub experts: Option<u64>,
    pub top_k: Option<u64>,
    pub moe_ffn_hidden: Option<u64>,
    pub shared_experts: Option<u64>,
    pub moe_layers: Option<u64>,
    pub attention: Option<String>,
}

/// Machine as printed.
#[derive(Debug, Clone, PartialEq, Default)]
#[expect(missing_docs, reason = "the names are those of the schema")]
pub struct HardwareFields {
    pub gpu: String,
    pub gpus: Option<u64>,
    pub gpus_per_node: Option<u64>,
    pub intra: Option<String>,
    pub inter: Option<String>,
}

/// Layout and software as printed. `None` is "not printed".
#[derive(Debug, Clone, PartialEq, Default)]
#[expect(missing_docs, reason = "the names are those of the schema")]
pub struct ConfigFields {
    pub framework: String,
    pub tp: Option<u64>,
    pub pp: Option<u64>,
    pub dp: Option<u64>,
    pub cp: Option<u64>,
    pub ep: Option<u64>,
    pub etp: Option<u64>,
    pub vpp: Option<u64>,
    pub micro_batch: Option<u64>,
    pub global_batch_seqs: Option<u64>,
    pub seq_len: Option<u64>,
    pub precision: Option<String>,
    pub zero: Option<u64>,
    pub fsdp: Option<String>,
    pub recompute: Option<String>,
    pub sequence_parallel: Option<bool>,
    /// `true`, `false` or a version, as text.
    pub flash_attention: Option<String>,
    pub overlap: Option<String>,
    pub schedule: Option<String>,
    pub extra: Map<String, Value>,
}

/// What was measured, in the source's own units and convention.
#[derive(Debug, Clone, PartialEq, Default)]
#[expect(missing_docs, reason = "the names are those of the schema")]
pub struct Measured {
    pub step_time_s: Option<f64>,
    pub tokens_per_s_per_gpu: Option<f64>,
    pub tflops_per_gpu: Option<f64>,
    /// Percent.
    pub mfu: Option<f64>,
    /// Percent.
    pub hfu: Option<f64>,
    pub peak_mem_gb: Option<f64>,
    pub flops_convention: String,
}

impl ConfigFields {
    /// A text (or printed number) among the extra fields.
    pub fn extra_text(&self, key: &str) -> Option<String> {
        text_of(self.extra.get(key)?)
    }

    /// A non-negative number among the extra fields.
    pub fn extra_number(&self, key: &str) -> Option<f64> {
        number_of(self.extra.get(key)?).filter(|n| n.is_finite() && *n >= 0.0)
    }

    /// A switch among the extra fields.
    pub fn extra_flag(&self, key: &str) -> Option<bool> {
        match self.extra.get(key)? {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        }
    }
}

/// The source of a row: the leading letters and digits of its `id`, a decimal version included (`mlperf4.0`).
pub fn source_of(id: &str) -> &str {
    let bytes = id.as_bytes();
    let mut end = 0;
    while end < bytes.len() {
        let digit = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_digit);
        let point = bytes[end] == b'.' && end > 0 && digit(end - 1) && digit(end + 1);
        if !(bytes[end].is_ascii_alphanumeric() || point) {
            break;
        }
        end += 1;
    }
    if end == 0 { id } else { &id[..end] }
}

/// Reads every line. Empty lines are skipped.
///
/// # Errors
/// The first line that is not a JSON object with an `id`; an empty file.
pub fn read(text: &str) -> Result<Vec<Row>, RowsError> {
    let mut rows = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        if line.trim().is_empty() {
            continue;
        }
        let value: Value = serde_json::from_str(line)
            .map_err(|e| RowsError::Json { line: line_number, cause: e.to_string() })?;
        let Value::Object(object) = &value else {
            return Err(RowsError::Json { line: line_number, cause: "a bare value".to_owned() });
        };
        if object.get("id").and_then(Value::as_str).is_none_or(|id| id.trim().is_empty()) {
            return Err(RowsError::Id { line: line_number });
        }
        rows.push(row(value));
    }
    if rows.is_empty() { Err(RowsError::Empty) } else { Ok(rows) }
}

/// One row from its JSON object.
pub fn row(value: Value) -> Row {
    let mut top = Fields::new(&value, "");
    let (id, kind, source) = (top.words("id"), top.words("kind"), top.words("source"));
    let (notes, weak, outcome) = (top.words("notes"), top.text("weak"), top.text("outcome"));
    let mut m = Fields::section(&mut top, "model");
    let model = ModelFields {
        name: m.words("name"),
        layers: m.count("layers"),
        hidden: m.count("hidden"),
        heads: m.count("heads"),
        kv_heads: m.count("kv_heads"),
        head_dim: m.count("head_dim"),
        ffn_hidden: m.count("ffn_hidden"),
        ffn: m.text("ffn"),
        vocab: m.count("vocab"),
        tied_embeddings: m.flag("tied_embeddings"),
        params_b: m.number("params_b"),
        experts: m.count("experts"),
        top_k: m.count("top_k"),
        moe_ffn_hidden: m.count("moe_ffn_hidden"),
        shared_experts: m.count("shared_experts"),
        moe_layers: m.count("moe_layers"),
        attention: m.text("attention"),
    };
    let fault = m.fault.take();
    let mut h = Fields::section(&mut top, "hardware");
    let hardware = HardwareFields {
        gpu: h.words("gpu"),
        gpus: h.count("gpus"),
        gpus_per_node: h.count("gpus_per_node"),
        intra: h.text("intra"),
        inter: h.text("inter"),
    };
    let fault = fault.or_else(|| h.fault.take());
    let mut c = Fields::section(&mut top, "config");
    let config = ConfigFields {
        framework: c.words("framework"),
        tp: c.count("tp"),
        pp: c.count("pp"),
        dp: c.count("dp"),
        cp: c.count("cp"),
        ep: c.count("ep"),
        etp: c.count("etp"),
        vpp: c.count("vpp"),
        micro_batch: c.count("micro_batch"),
        global_batch_seqs: c.count("global_batch_seqs"),
        seq_len: c.count("seq_len"),
        precision: c.text("precision"),
        zero: c.count("zero"),
        fsdp: c.any_text("fsdp"),
        recompute: c.any_text("recompute"),
        sequence_parallel: c.flag("sequence_parallel"),
        flash_attention: c.any_text("flash_attention"),
        overlap: c.any_text("overlap"),
        schedule: c.text("schedule"),
        extra: c.object("extra"),
    };
    let fault = fault.or_else(|| c.fault.take());
    let mut d = Fields::section(&mut top, "measured");
    let measured = Measured {
        step_time_s: d.number("step_time_s"),
        tokens_per_s_per_gpu: d.number("tokens_per_s_per_gpu"),
        tflops_per_gpu: d.number("tflops_per_gpu"),
        mfu: d.number("mfu"),
        hfu: d.number("hfu"),
        peak_mem_gb: d.number("peak_mem_gb"),
        flops_convention: d.words("flops_convention"),
    };
    let fault = fault.or_else(|| d.fault.take()).or_else(|| top.fault.take());
    Row { id, kind, source, notes, weak, outcome, model, hardware, config, measured, fault, value }
}

/// Reads named fields of an object and remembers the first that has a wrong type.
struct Fields<'a> {
    object: Option<&'a Map<String, Value>>,
    path: String,
    fault: Option<String>,
}

impl<'a> Fields<'a> {
    fn new(value: &'a Value, path: &str) -> Self {
        Self { object: value.as_object(), path: path.to_owned(), fault: None }
    }

    fn section(parent: &mut Self, key: &str) -> Self {
        match parent.get(key) {
            None => Self { object: None, path: format!("{key}."), fault: None },
            Some(value) => {
                if !value.is_object() {
                    parent.wrong(key, "an object");
                }
                Self::new(value, &format!("{key}."))
            }
        }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object?.get(key).filter(|v| !v.is_null())
    }

    fn wrong(&mut self, key: &str, expected: &str) {
        if self.fault.is_none() {
            self.fault = Some(format!("`{}{key}` is not {expected}", self.path));
        }
    }

    fn text(&mut self, key: &str) -> Option<String> {
        let value = self.get(key)?;
        let text = value.as_str().map(str::to_owned);
        if text.is_none() {
            self.wrong(key, "a text");
        }
        text
    }

    fn words(&mut self, key: &str) -> String {
        self.text(key).unwrap_or_default()
    }

    /// A text, or a printed number or switch.
    fn any_text(&mut self, key: &str) -> Option<String> {
        let text = text_of(self.get(key)?);
        if text.is_none() {
            self.wrong(key, "a text, number or switch");
        }
        text
    }

    fn flag(&mut self, key: &str) -> Option<bool> {
        let flag = match self.get(key)? {
            Value::Bool(flag) => Some(*flag),
            Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
            Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
            _ => None,
        };
        if flag.is_none() {
            self.wrong(key, "true or false");
        }
        flag
    }

    fn number(&mut self, key: &str) -> Option<f64> {
        let number = number_of(self.get(key)?).filter(|n| n.is_finite() && *n >= 0.0);
        if number.is_none() {
            self.wrong(key, "a finite number of at least zero");
        }
        number
    }

    /// A whole number that fits the simulator's integers.
    fn count(&mut self, key: &str) -> Option<u64> {
        let number = number_of(self.get(key)?);
        match number {
            Some(n) if (0.0..=4e9).contains(&n) && n.fract() == 0.0 => Some(n as u64),
            _ => {
                self.wrong(key, "a whole number between 0 and 4e9");
                None
            }
        }
    }

    fn object(&mut self, key: &str) -> Map<String, Value> {
        match self.get(key) {
            None => Map::new(),
            Some(Value::Object(map)) => map.clone(),
            Some(_) => {
                self.wrong(key, "an object");
                Map::new()
            }
        }
    }
}

fn number_of(value: &Value) -> Option<f64> {
    match value {
        Value::Number(n) => n.as_f64(),
        Value::String(s) => s.trim().parse().ok(),
        _ => None,
    }
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(s) => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        Value::Bool(b) => Some(b.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources() {
        for (id, source) in [
            ("dgxc-v25.03-llama3", "dgxc"),
            ("mlperf4.0-gpt3", "mlperf4.0"),
            ("megatron21-t1", "megatron21"),
            ("a.b", "a"),
            ("x1.-y", "x1"),
            ("-odd", "-odd"),
        ] {
            assert_eq!(source_of(id), source);
        }
    }

    #[test]
    fn tolerant() {
        let rows = read(concat!(
            r#"{"id":"a-1","kind":"train","model":{"name":"m","layers":"32","hidden":4096.0,"vocab":null},"#,
            r#""config":{"fsdp":64,"flash_attention":true,"new":[1]},"measured":{"mfu":1.0},"novel":{}}"#,
            "\n\n",
            r#"{"id":"a-2","model":{"layers":"many"}}"#,
            "\n",
            r#"{"id":"a-3","hardware":{"gpus":-8}}"#,
        ))
        .unwrap();
        assert_eq!(rows.len(), 3);
        assert_eq!(
            (rows[0].model.layers, rows[0].model.hidden, rows[0].model.vocab),
            (Some(32), Some(4096), None)
        );
        assert_eq!(rows[0].config.fsdp.as_deref(), Some("64"));
        assert_eq!(rows[0].config.flash_attention.as_deref(), Some("true"));
        assert_eq!(rows[0].fault, None);
        assert!(rows[1].fault.as_ref().unwrap().contains("model.layers"));
        assert!(rows[2].fault.as_ref().unwrap().contains("hardware.gpus"));
    }

    #[test]
    fn garbage_names_its_line() {
        assert_eq!(read("  \n"), Err(RowsError::Empty));
        assert!(matches!(read("{\"id\":\"a\"}\n{nope"), Err(RowsError::Json { line: 2, .. })));
        assert!(matches!(read("[1]"), Err(RowsError::Json { line: 1, .. })));
        assert_eq!(read("{\"kind\":\"train\"}"), Err(RowsError::Id { line: 1 }));
    }
}
