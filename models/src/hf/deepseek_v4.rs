//! DeepSeek V4: window attention over one shared key/value head, joined with compressed tokens of the past.
//!
//! Shapes are those of the released tensors: queries through a low rank, keys that serve as values, an output projection
//! factorised by groups of heads, a compressor per layer (ratio 4 with overlap and an indexer, or ratio 128), and
//! hyper-connections that keep `hc_mult` copies of the residual stream. psim counts all their parameters; the extra
//! copies of the residual stream are not part of the lowering. The published totals (284B and 1.6T, with 13B and 49B
//! active) come out.

use super::moe::{EXPERTS, TOP_K};
use super::reader::{Read, Reader};
use super::stack::{HEADS, base, block, experts, kind, layers, plain_attention, push};
use crate::arch::{Attention, Block, Ffn, Indexer, Mixer, Model, Moe, OutputRank};

/// Parameters of a compressor of `ratio` tokens into one of width `dim`: keys and gates (twice as wide where windows
/// overlap, at ratio 4), a bias per position in the window, a norm.
fn compressor(hidden: u64, dim: u64, ratio: u64) -> u64 {
    let width = dim.saturating_mul(if ratio == 4 { 2 } else { 1 });
    let projections = hidden.saturating_mul(width).saturating_mul(2);
    projections.saturating_add(ratio.saturating_mul(width)).saturating_add(dim)
}

/// Hyper-connections of one layer: weights of the streams before, after and between, for both branches (Zhu et al. 2024).
fn hyper_connections(hidden: u64, streams: u64) -> u64 {
    let mixes = streams.saturating_add(2).saturating_mul(streams);
    let matrix = mixes.saturating_mul(streams.saturating_mul(hidden));
    matrix.saturating_add(mixes).saturating_add(3).saturating_mul(2)
}

/// DeepSeek V4 Flash and Pro.
pub(super) fn v4(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, false)?;
    let hidden = model.hidden;
    let heads = r.size(HEADS)?;
    let head_dim = r.size(&["head_dim"])?;
    let query_rank = r.size(&["q_lora_rank"])?;
    let mut window = plain_attention(heads, r.size(&["num_key_value_heads"])?, head_dim);
    window.window = Some(r.size(&["sliding_window"])?);
    window.sinks = true;
    window.variant.query_rank = Some(query_rank);
    window.variant.output_rank =
        Some(OutputRank { groups: r.size(&["o_groups"])?, rank: r.size(&["o_lora_rank"])? });
    window.variant.shared_key_value = true;
    let indexer = Indexer {
        heads: r.size(&["index_n_heads"])?,
        head_dim: r.size(&["index_head_dim"])?,
        top_k: r.size(&["index_topk"])?,
    };
    let width = r.size(&["moe_intermediate_size"])?;
    let moe = Moe {
        shared_hidden: r.count(&["n_shared_experts"])?.saturating_mul(width),
        router_bias: r.string("topk_method")? == Some("noaux_tc"),
        ..experts(r.size(EXPERTS)?, r.size(TOP_K)?, width)
    };
    let hashed = r.count(&["num_hash_layers"])?;
    let streams = r.size_or(&["hc_mult"], 1)?;
    let layers = layers(r)?;
    let Some(ratios) = r.per_layer("compress_ratios", layers)? else {
        return r.missing(&["compress_ratios"]);
    };
    let key_norm = head_dim;
    for layer in 0..layers {
        let Some(ratio) = ratios[layer as usize].as_u64().filter(|ratio| *ratio <= 1 << 20) else {
            return r.bad("compress_ratios", "a list of whole numbers, 0 for layers without compression");
        };
        let mut a = window.clone();
        let mut extra = key_norm.saturating_add(hyper_connections(hidden, streams));
        if ratio > 0 {
            a.variant.compression = Some(ratio);
            extra = extra.saturating_add(compressor(hidden, head_dim, ratio));
        }
        if ratio == 4 {
            // The indexer's keys come from a compressor of its own; the plain key projection is counted with it.
            let own = compressor(hidden, indexer.head_dim, ratio)
                .saturating_add(hidden.saturating_mul(indexer.heads));
            extra = extra.saturating_add(own.saturating_sub(hidden.saturating_mul(indexer.head_dim)));
            a.variant.indexer = Some(indexer.clone());
        }
        push(&mut model, layer_of(a, &moe, layer < hashed, extra));
    }
    // The output layer reads a weighted sum of the streams.
    let joined = streams.saturating_mul(hidden).saturating_add(1).saturating_mul(streams).saturating_add(1);
    model.extra_parameters.push(("hyper-connection head".to_owned(), joined));
    model.mtp_layers = r.count(&["num_nextn_predict_layers"])?.min(1 << 10) as u32;
    if model.mtp_layers > 0 {
        let extra = key_norm.saturating_add(hyper_connections(hidden, streams));
        model.mtp_kind = Some(kind(&mut model, layer_of(window, &moe, false, extra)));
    }
    Ok(model)
}

/// Layers that route by a hash of the token carry no selection correction.
fn layer_of(attention: Attention, moe: &Moe, hashed: bool, extra_parameters: u64) -> Block {
    let moe = Moe { router_bias: moe.router_bias && !hashed, ..moe.clone() };
    Block { extra_parameters, ..block(Mixer::Attention(attention), Ffn::Moe(moe)) }
}
