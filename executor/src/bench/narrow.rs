//! A network of next to no arithmetic.

use psim_models::Model;
use psim_models::arch::{Attention, AttentionVariant, Block, DenseFfn, Ffn, Mixer, Norm, Position, QkNorm};

/// A decoder so narrow that its kernels cost next to nothing beyond being called.
pub(crate) fn narrow(layers: u32, vocab: u32) -> Model {
    let attention = Attention {
        heads: 2,
        kv_heads: 2,
        head_dim: 16,
        v_head_dim: 16,
        window: None,
        qkv_bias: false,
        out_bias: false,
        qk_norm: QkNorm::None,
        sinks: false,
        output_gate: false,
        variant: AttentionVariant::default(),
    };
    let block = Block {
        mixer: Mixer::Attention(attention),
        cross_attention: None,
        ffn: Ffn::Dense(DenseFfn { hidden: 32, gated: true, bias: false }),
        norms: 2,
        parallel: false,
        extra_parameters: 0,
    };
    Model {
        name: "narrow".to_owned(),
        family: "benchmark".to_owned(),
        hidden: 32,
        vocab: u64::from(vocab),
        tied_embeddings: false,
        head_bias: false,
        position: Position::Rope,
        norm: Norm { rms: true, bias: false, weight: true },
        embedding_norm: false,
        final_norm: true,
        kinds: vec![block],
        pattern: vec![0; layers as usize],
        encoder: None,
        mtp_layers: 0,
        mtp_kind: None,
        embedding_width: None,
        extra_parameters: Vec::new(),
        max_context: None,
        checkpoint: None,
        source: "psim's own benchmark of its serving loop".to_owned(),
    }
}
