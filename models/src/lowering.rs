//! Lowering: a block of a model under a plan becomes operators of one rank, forward and backward.
//!
//! One backward list holds input- and weight-gradient operators in the order a framework runs them, told apart by
//! [`crate::operator::Phase`]; schedules that split them (zero bubble) filter it.
//!
//! Conventions: `tokens` is what one rank sees of a micro-batch, `micro_batch · seq_len / cp`; under sequence
//! parallelism norms and residuals see `tokens / tp` (Korthikanti et al. 2022, section 4.2.2).

mod attention;
mod builder;
mod embedding;
mod ffn;
mod groups;
mod head;
mod linear;
mod moe;
mod scan;
mod shape;
mod sparse;
#[cfg(test)]
mod tests;

pub use groups::Groups;
pub use head::padded_vocab;
pub use shape::Shape;

use crate::arch::{Block, Ffn, Mixer, Model};
use crate::operator::{Operator, Phase};
use crate::plan::Precision;
use builder::Builder;
use psim_hardware::DType;

/// Operators of one block (or of the embedding, or of the output layer) for one micro-batch on one rank.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LayerProgram {
    /// Forward pass.
    pub forward: Vec<Operator>,
    /// Backward pass: input and weight gradients.
    pub backward: Vec<Operator>,
    /// What selective recomputation runs again before the backward pass.
    pub selective: Vec<Operator>,
}

impl LayerProgram {
    /// Floating-point operations of a list.
    pub fn flops(list: &[Operator]) -> f64 {
        list.iter().map(|o| o.kind.flops()).sum()
    }

    /// The operators of a backward list that belong to `phase`.
    pub fn of_phase(list: &[Operator], phase: Phase) -> impl Iterator<Item = &Operator> {
        list.iter().filter(move |o| o.phase == phase)
    }
}

/// Lowers one block.
pub fn lower_block(block: &Block, model: &Model, shape: &Shape) -> LayerProgram {
    let mut b = Builder::new(shape);
    let norms = u64::from(block.norms);
    let mixer_norms = if matches!(block.ffn, Ffn::None) { norms } else { norms - norms / 2 };
    let has_mixer = !matches!(block.mixer, Mixer::None);
    if has_mixer {
        b.norm(model.hidden, mixer_norms.max(1).min(norms.max(1)), model.norm);
        match &block.mixer {
            Mixer::Attention(a) => attention::attention(&mut b, a, model, true),
            Mixer::Mla(m) => attention::latent(&mut b, m, model),
            Mixer::Mamba2(m) => scan::mamba2(&mut b, m, model.hidden),
            Mixer::Linear(l) => scan::linear(&mut b, l, model.hidden),
            Mixer::None => {}
        }
        if let Some(cross) = &block.cross_attention {
            b.norm(model.hidden, 1, model.norm);
            attention::attention(&mut b, cross, model, false);
        }
        b.residual(model.hidden);
    }
    match &block.ffn {
        Ffn::Dense(f) => {
            if !block.parallel {
                b.norm(model.hidden, (norms - mixer_norms.min(norms)).max(1), model.norm);
            }
            ffn::dense(&mut b, model.hidden, f.hidden, f.gated, "mlp", true);
            b.residual(model.hidden);
        }
        Ffn::Moe(m) => {
            b.norm(model.hidden, (norms - mixer_norms.min(norms)).max(1), model.norm);
            moe::moe(&mut b, model.hidden, m);
            b.residual(model.hidden);
        }
        Ffn::None => {}
    }
    b.finish()
}

/// Lowers the embedding look-up (first stage).
pub fn lower_embedding(model: &Model, shape: &Shape) -> LayerProgram {
    let mut b = Builder::new(shape);
    embedding::embedding(&mut b, model);
    b.finish()
}

/// Lowers the final norm, output layer and loss (last stage).
pub fn lower_head(model: &Model, shape: &Shape) -> LayerProgram {
    // Every framework keeps the output layer in the base format: low-precision logits spoil the loss.
    let mut wide = shape.clone();
    wide.gemm = shape.base;
    wide.precision = match shape.base {
        DType::Fp32 => Precision::Fp32,
        DType::Fp16 => Precision::Fp16,
        _ => Precision::Bf16,
    };
    let mut b = Builder::new(&wide);
    head::head(&mut b, model);
    b.finish()
}

/// Lowers the extra work of one multi-token-prediction layer beside its block and its output layer: two norms and the
/// projection of the concatenated hidden states (DeepSeek-V3 report, section 2.2).
pub fn lower_mtp_projection(model: &Model, shape: &Shape) -> LayerProgram {
    let mut b = Builder::new(shape);
    b.norm(model.hidden, 2, model.norm);
    linear::column(&mut b, "mtp-projection", 2 * model.hidden, model.hidden);
    b.finish()
}
