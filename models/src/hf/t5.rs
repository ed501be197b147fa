//! T5, an encoder-decoder.

use super::reader::{Read, Reader};
use super::stack::{FFN, HEADS, base, block, layers, plain_attention, push};
use crate::arch::{Block, DenseFfn, Encoder, Ffn, Mixer, Model, Position};

/// T5 and Flan-T5 (`feed_forward_proj: gated-gelu` makes the network gated).
pub(super) fn t5(r: &Reader<'_>) -> Read<Model> {
    let mut model = base(r, true)?;
    let heads = r.size(HEADS)?;
    let width = r.size_or(&["d_kv"], 64)?;
    let a = plain_attention(heads, heads, width);
    let gated = r.string("feed_forward_proj")?.is_some_and(|kind| kind.starts_with("gated"));
    let ffn = Ffn::Dense(DenseFfn { hidden: r.size(FFN)?, gated, bias: false });
    let encoder_layers = layers(r)?;
    let decoder_layers = r.size_or(&["num_decoder_layers"], encoder_layers)?;
    if decoder_layers > 1 << 16 {
        return r.bad("num_decoder_layers", "at most 65536 layers");
    }
    model.position = Position::Relative(r.size_or(&["relative_attention_num_buckets"], 32)?);
    model.encoder = Some(Encoder {
        layers: encoder_layers as u32,
        block: block(Mixer::Attention(a.clone()), ffn.clone()),
        // The span-corruption task of the T5 paper: 512 tokens in, about a quarter of them out.
        tokens_per_decoder_token: 4.0,
    });
    for _ in 0..decoder_layers {
        let plain = block(Mixer::Attention(a.clone()), ffn.clone());
        push(&mut model, Block { cross_attention: Some(a.clone()), norms: 3, ..plain });
    }
    Ok(model)
}
