//! `psim import`: reads a configuration of another tool and prints what psim understood.

use crate::Host;
use crate::failure::Failure;
use crate::inputs::model;
use crate::number::{grouped, short};
use clap::Args;
use serde_json::json;

/// Arguments of `psim import`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A Hugging Face config.json (or its directory). Launch files of frameworks: not built yet
    file: String,
    /// Print JSON with a `schema` key
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, host: &mut Host<'_>) -> Result<(), Failure> {
    for ending in [".sh", ".py", ".yaml", ".yml", ".toml"] {
        if arguments.file.ends_with(ending) {
            return Err(Failure::not_built(
                &format!("importing `{ending}` launch files"),
                "import reads a Hugging Face config.json today",
            ));
        }
    }
    let model = model::load(host, &arguments.file)?;
    let count = model.parameters();
    if arguments.json {
        return host.json(&json!({ "schema": 1, "model": model, "parameters": count }));
    }
    let (heads, kv_heads, head_dim) = model.attention_shape();
    host.line(format!(
        "{} ({}): {} layers, hidden {}, {heads} heads ({kv_heads} kv) of {head_dim}, vocabulary {}",
        model.name,
        model.family,
        model.layers(),
        grouped(model.hidden),
        grouped(model.vocab),
    ))?;
    host.line(format!("parameters: {} ({})", grouped(count.total), short(count.total as f64)))?;
    if count.active != count.total {
        host.line(format!("active per token: {} ({})", grouped(count.active), short(count.active as f64)))?;
    }
    if count.mtp > 0 {
        host.line(format!("multi-token-prediction layers beside: {}", grouped(count.mtp)))?;
    }
    Ok(())
}
