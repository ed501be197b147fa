//! Models from Hugging Face `config.json` files.
//!
//! A configuration names its architecture (`model_type`, else `architectures`); one reader per family turns its keys
//! into a [`Model`]. Vision and audio towers of multi-modal models are left out: psim models the language model. A
//! family that is not listed, or a key that a family needs and the file lacks, is an error that names it; nothing is
//! guessed. Defaults of absent keys are those of the family's own configuration class.
//!
//! ```
//! let text = r#"{"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
//!     "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256}"#;
//! let model = psim_models::hf::import("config.json", text)?;
//! assert_eq!(model.parameters().total, 8_030_261_248);
//! # Ok::<(), psim_models::hf::HfError>(())
//! ```

mod checkpoint;
mod deepseek;
mod deepseek_v4;
mod error;
mod gemma;
mod gpt;
mod hybrid;
mod llama;
mod moe;
mod parallel;
pub(crate) mod reader;
mod sanitize;
mod sparse;
pub(crate) mod stack;
mod t5;

use serde_json::{Map, Value};

pub use error::{HfError, HfProblem};
use reader::{Read, Reader};

use crate::arch::Model;

type Family = fn(&Reader<'_>) -> Read<Model>;

/// Every `model_type` that is understood, with its reader, in alphabetical order.
const FAMILIES: &[(&str, Family)] = &[
    ("aquila", llama::llama),
    ("baichuan", llama::baichuan),
    ("bloom", gpt::bloom),
    ("chatglm", llama::chatglm),
    ("codegen", parallel::gptj),
    ("cohere", parallel::cohere),
    ("dbrx", moe::dbrx),
    ("deci", llama::deci),
    ("deepseek_v2", deepseek::deepseek),
    ("deepseek_v3", deepseek::deepseek),
    ("deepseek_v32", deepseek::deepseek),
    ("deepseek_v4", deepseek_v4::v4),
    ("falcon", parallel::falcon),
    ("gemma", gemma::gemma),
    ("gemma2", gemma::gemma2),
    ("gemma3_text", gemma::gemma3),
    ("gemma4_text", gemma::gemma4),
    ("glm4_moe", moe::glm4_moe),
    ("glm4_moe_lite", deepseek::deepseek),
    ("glm_moe_dsa", deepseek::glm5),
    ("gpt2", gpt::gpt2),
    ("gpt_bigcode", gpt::bigcode),
    ("gpt_neo", gpt::gpt_neo),
    ("gpt_neox", parallel::neox),
    ("gpt_oss", moe::gpt_oss),
    ("gptj", parallel::gptj),
    ("granite", llama::llama),
    ("grok-1", moe::grok),
    ("internlm2", llama::llama),
    ("jamba", hybrid::jamba),
    ("kimi_k2", deepseek::deepseek),
    ("kimi_linear", deepseek::kimi_linear),
    ("llama", llama::llama),
    ("llama4_text", sparse::llama4),
    ("long_vita", llama::qwen2),
    ("mamba2", hybrid::mamba2),
    ("mimo", llama::mimo),
    ("mimo_v2_flash", sparse::mimo_v2),
    ("minimax_m2", sparse::minimax_m2),
    ("minimax_m3", sparse::minimax_m3),
    ("mistral", llama::mistral),
    ("mixtral", moe::mixtral),
    ("mpt", gpt::mpt),
    ("nemotron", llama::nemotron),
    ("nemotron-nas", llama::nemotron_nas),
    ("nemotron_h", hybrid::nemotron_h),
    ("olmo", llama::olmo),
    ("olmo2", llama::olmo2),
    ("olmoe", moe::olmoe),
    ("opt", gpt::opt),
    ("phi", parallel::phi),
    ("phi3", llama::phi3),
    ("phimoe", moe::phimoe),
    ("qwen", llama::qwen),
    ("qwen2", llama::qwen2),
    ("qwen2_moe", moe::qwen2_moe),
    ("qwen3", llama::qwen3),
    ("qwen3_5_moe_text", hybrid::qwen3_next),
    ("qwen3_5_text", hybrid::qwen3_next),
    ("qwen3_moe", moe::qwen3_moe),
    ("qwen3_next", hybrid::qwen3_next),
    ("qwen3_vl_moe_text", moe::qwen3_moe),
    ("qwen3_vl_text", llama::qwen3),
    ("stablelm", llama::stablelm),
    ("starcoder2", llama::starcoder2),
    ("step3_text", sparse::step3),
    ("step3p5", sparse::step3p7),
    ("step3p7", sparse::step3p7),
    ("t5", t5::t5),
];

/// Other spellings of a `model_type`, and `architectures` entries of files without one.
const SPELLINGS: &[(&str, &str)] = &[
    ("BaichuanForCausalLM", "baichuan"),
    ("BloomForCausalLM", "bloom"),
    ("DeciLMForCausalLM", "nemotron-nas"),
    ("DeepseekV3ForCausalLM", "deepseek_v3"),
    ("FalconForCausalLM", "falcon"),
    ("GPT2LMHeadModel", "gpt2"),
    ("GPTJForCausalLM", "gptj"),
    ("GPTNeoXForCausalLM", "gpt_neox"),
    ("Grok1ModelForCausalLM", "grok-1"),
    ("LlamaForCausalLM", "llama"),
    ("MistralForCausalLM", "mistral"),
    ("MixtralForCausalLM", "mixtral"),
    ("MptForCausalLM", "mpt"),
    ("OPTForCausalLM", "opt"),
    ("QWenLMHeadModel", "qwen"),
    ("Qwen2ForCausalLM", "qwen2"),
    ("Qwen3ForCausalLM", "qwen3"),
    ("RWForCausalLM", "falcon"),
    ("Refinedweb", "falcon"),
    ("RefinedWeb", "falcon"),
    ("RefinedWebModel", "falcon"),
    ("gemma3", "gemma3_text"),
    ("gemma4", "gemma4_text"),
    ("grok1", "grok-1"),
    ("kimi_k25", "kimi_k2"),
    ("kimi_k3", "kimi_linear"),
    ("llama4", "llama4_text"),
    ("qwen3_5", "qwen3_5_text"),
    ("qwen3_5_moe", "qwen3_5_moe_text"),
    ("qwen3_vl", "qwen3_vl_text"),
    ("qwen3_vl_moe", "qwen3_vl_moe_text"),
];

/// Every `model_type` that [`import`] understands.
pub fn model_types() -> Vec<&'static str> {
    FAMILIES.iter().map(|(name, _)| *name).collect()
}

/// Reads the text of a `config.json`; `name` is the file (or model) name used for the model and in errors.
///
/// # Errors
/// [`HfError`] says what is wrong, where, and what psim understands.
pub fn import(name: &str, text: &str) -> Result<Model, HfError> {
    let clean = sanitize::python_constants(text);
    let value: Value = serde_json::from_str(&clean).map_err(|e| HfError {
        file: name.to_owned(),
        line: Some(e.line()).filter(|line| *line > 0),
        problem: HfProblem::Syntax(e.to_string()),
    })?;
    import_value(name, text, &value)
}

/// Reads a configuration that is already parsed; `text` is where line numbers are looked up.
pub(crate) fn import_value(name: &str, text: &str, value: &Value) -> Result<Model, HfError> {
    let fail = |problem| Err(HfError { file: name.to_owned(), line: None, problem });
    let Value::Object(map) = value else {
        let found = match value {
            Value::Array(_) => "a list",
            Value::String(_) => "a string",
            Value::Number(_) => "a number",
            Value::Bool(_) => "a flag",
            Value::Null | Value::Object(_) => "nothing",
        };
        return fail(HfProblem::NotAnObject(found.to_owned()));
    };
    let mut named = Vec::new();
    if let Some(Value::Object(language)) = map.get("text_config") {
        // The tower's configuration decides; what it does not say (tied embeddings) the outer one may, and how the weights are stored.
        let mut merged = language.clone();
        for key in ["tie_word_embeddings", "quantization_config"] {
            if let (false, Some(value)) = (merged.contains_key(key), map.get(key)) {
                merged.insert(key.to_owned(), value.clone());
            }
        }
        names(&merged, &mut named);
        names(map, &mut named);
        return read(name, text, &merged, &named);
    }
    names(map, &mut named);
    read(name, text, map, &named)
}

/// What a configuration calls itself, most specific first.
fn names(map: &Map<String, Value>, named: &mut Vec<String>) {
    if let Some(Value::String(model_type)) = map.get("model_type") {
        named.push(model_type.clone());
    }
    if let Some(Value::Array(list)) = map.get("architectures") {
        named.extend(list.iter().filter_map(Value::as_str).map(ToOwned::to_owned));
    }
}

fn read(name: &str, text: &str, map: &Map<String, Value>, named: &[String]) -> Result<Model, HfError> {
    for called in named {
        let spelled =
            SPELLINGS.iter().find(|(other, _)| other == called).map_or(called.as_str(), |(_, s)| *s);
        if let Some((family, reader)) = FAMILIES.iter().find(|(family, _)| *family == spelled) {
            let model = reader(&Reader::new(name, text, map, family))?;
            return stack::check(name, model);
        }
    }
    let problem = match named.first() {
        Some(first) => HfProblem::UnknownArchitecture(first.chars().take(80).collect()),
        None => map
            .get("quantization")
            .and_then(|quantization| quantization.get("quant_algo"))
            .and_then(Value::as_str)
            .map_or(HfProblem::NoArchitecture, |algorithm| {
                HfProblem::QuantizationOnly(algorithm.chars().take(40).collect())
            }),
    };
    Err(HfError { file: name.to_owned(), line: None, problem })
}
