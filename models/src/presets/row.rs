//! Models from the `model` object of a row of published measurements.

use serde::Deserialize;

use super::PresetError;
use super::build::{DenseDims, FfnKind, MoeDims, dense, moe};
use crate::arch::{Ffn, Model};
use crate::hf::{reader, stack};

/// The `model` object of a row. Absent keys are `None`; keys that psim does not use are skipped.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RowDims {
    /// Name as printed.
    pub name: String,
    /// Layers.
    pub layers: Option<u64>,
    /// Width of the residual stream.
    pub hidden: Option<u64>,
    /// Query heads.
    pub heads: Option<u64>,
    /// Key/value heads.
    pub kv_heads: Option<u64>,
    /// Width of a head.
    pub head_dim: Option<u64>,
    /// Inner width of dense layers.
    pub ffn_hidden: Option<u64>,
    /// Kind of network.
    pub ffn: Option<FfnKind>,
    /// Rows of the vocabulary.
    pub vocab: Option<u64>,
    /// Output layer shares the embedding.
    pub tied_embeddings: Option<bool>,
    /// Routed experts.
    pub experts: Option<u64>,
    /// Experts per token.
    pub top_k: Option<u64>,
    /// Inner width of an expert.
    pub moe_ffn_hidden: Option<u64>,
    /// Shared experts of that width.
    pub shared_experts: Option<u64>,
    /// Layers with experts.
    pub moe_layers: Option<u64>,
    /// `mha`, `gqa`, `mla`, or a description.
    pub attention: Option<String>,
}

impl RowDims {
    /// Layers and width are printed: enough to build from.
    pub fn is_complete(&self) -> bool {
        self.layers.is_some() && self.hidden.is_some()
    }
}

/// The model of a row: the preset of its name where nothing that the row prints contradicts it, else a model built from
/// the printed dimensions.
///
/// The preset carries what rows do not print (windows, query/key norms, ranks, hybrid patterns), so it is preferred; a
/// preset that only disagrees in vocabulary, tied embeddings or number of layers is taken with the printed ones.
///
/// # Errors
/// [`PresetError`] when neither the name nor the dimensions make a model.
pub fn from_row(row: &RowDims) -> Result<Model, PresetError> {
    match super::find(&row.name) {
        Ok(model) if agrees(&model, row) => Ok(adjust(model, row)),
        Err(error) if !row.is_complete() => Err(error),
        Ok(model) if !row.is_complete() => Ok(model),
        _ => from_dimensions(row),
    }
}

/// The preset with the vocabulary and tying that the row prints.
fn adjust(mut model: Model, row: &RowDims) -> Model {
    model.vocab = row.vocab.filter(|v| (1..=reader::LARGEST).contains(v)).unwrap_or(model.vocab);
    model.tied_embeddings = row.tied_embeddings.unwrap_or(model.tied_embeddings);
    model
}

/// Nothing that the row prints about the layers contradicts the model.
fn agrees(model: &Model, row: &RowDims) -> bool {
    let same = |printed: Option<u64>, value: u64| printed.is_none_or(|p| p == value);
    let (heads, kv_heads, head_dim) = model.attention_shape();
    let latent = row.attention.as_deref().is_some_and(|a| a.contains("mla"));
    let attention = heads == 0
        || (same(row.heads, heads)
            && (latent || (same(row.kv_heads, kv_heads) && same(row.head_dim, head_dim))));
    let with_experts =
        model.pattern.iter().filter(|&&k| matches!(model.kinds[usize::from(k)].ffn, Ffn::Moe(_))).count()
            as u64;
    let experts = match model.moe() {
        Some(moe) => {
            same(row.experts, moe.experts)
                && same(row.top_k, moe.top_k)
                && same(row.moe_ffn_hidden, moe.hidden)
                && same(row.moe_layers, with_experts)
        }
        None => row.experts.is_none(),
    };
    let dense = model.kinds.iter().find_map(|b| match &b.ffn {
        Ffn::Dense(d) => Some(d.hidden),
        _ => None,
    });
    same(row.layers, u64::from(model.layers()))
        && same(row.hidden, model.hidden)
        && dense.is_none_or(|width| same(row.ffn_hidden, width))
        && attention
        && experts
}

fn from_dimensions(row: &RowDims) -> Result<Model, PresetError> {
    let need = |value: Option<u64>, what: &str| {
        value.ok_or_else(|| {
            let message = format!("the row prints no `{what}`, and no preset is called `{}`", row.name);
            PresetError::from(stack::inconsistent(&row.name, message))
        })
    };
    let hidden = need(row.hidden, "hidden")?;
    // A head is 128 wide in nearly every large model; the width of all heads together is what costs.
    let heads = row.heads.unwrap_or_else(|| (hidden / row.head_dim.unwrap_or(128)).max(1));
    let uneven = heads > 0 && !hidden.is_multiple_of(heads);
    let dims = DenseDims {
        name: row.name.clone(),
        layers: need(row.layers, "layers")?,
        hidden,
        heads,
        kv_heads: row.kv_heads,
        head_dim: row.head_dim.or_else(|| uneven.then(|| hidden.div_ceil(heads))),
        ffn_hidden: row.ffn_hidden,
        ffn: row.ffn.unwrap_or_default(),
        // Megatron-LM's padded GPT-2 vocabulary, the usual one where none is printed.
        vocab: row.vocab.unwrap_or(51_200),
        tied_embeddings: row.tied_embeddings,
        max_context: None,
    };
    let mut model = match row.experts {
        None => dense(&dims)?,
        Some(experts) => {
            let experts = MoeDims {
                experts,
                top_k: need(row.top_k, "top_k")?,
                ffn_hidden: need(row.moe_ffn_hidden.or(row.ffn_hidden), "moe_ffn_hidden")?,
                shared_experts: row.shared_experts.unwrap_or(0),
                layers: row.moe_layers,
                latent_attention: row.attention.as_deref().is_some_and(|a| a.contains("mla")),
            };
            moe(&dims, &experts)?
        }
    };
    model.source = "dimensions printed in the row".to_owned();
    Ok(model)
}
