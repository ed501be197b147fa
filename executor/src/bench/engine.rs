//! Steps of the serving engine with a network of next to no arithmetic: what its loop costs.

use crate::serving::{Clock, ServeRequest, ServeSettings, serve};
use psim_kernels::cpu::CpuDevice;
use psim_models::Model;
use psim_models::arch::{Attention, AttentionVariant, Block, DenseFfn, Ffn, Mixer, Norm, Position, QkNorm};

/// Tokens of the prompts; decoding steps follow one another from there.
const PROMPT: usize = 4;
/// Timed steps.
const STEPS: usize = 24;

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

/// Processor seconds of decoding steps of `sequences` sequences through `layers` narrow layers and an output layer of
/// `vocab` scores.
///
/// # Errors
/// When the engine fails.
pub fn engine_step(layers: u32, sequences: u32, vocab: u32) -> Result<Vec<f64>, String> {
    let requests: Vec<ServeRequest> = (0..sequences)
        .map(|i| ServeRequest { arrival: 0.0, prompt: vec![i % vocab.max(1); PROMPT], output: STEPS + 2 })
        .collect();
    let sequences = sequences as usize;
    let settings = ServeSettings {
        tp: 1,
        page: 16,
        pages: sequences * (PROMPT + STEPS + 2).div_ceil(16),
        tokens: sequences * PROMPT,
        sequences,
        seed: 1,
        scores: false,
        clock: Clock::Processor,
        warm_up: true,
    };
    let run = serve(&narrow(layers, vocab), &requests, &settings, |_| Ok(CpuDevice::new()))
        .map_err(|e| e.to_string())?;
    Ok(run.steps.iter().filter(|s| s.decode == sequences).map(|s| s.seconds).collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn more_layers_take_longer() {
        let best = |layers, sequences| {
            let times = super::engine_step(layers, sequences, 64).unwrap();
            assert!(times.len() >= 20 && times.iter().all(|&t| t > 0.0), "{times:?}");
            times.into_iter().fold(f64::INFINITY, f64::min)
        };
        assert!(best(8, 4) > best(1, 4));
    }
}
