//! Times of every kind of layer under one shape.

use super::{Pass, run_pass};
use psim_cost_models::CostModel;
use psim_hardware::profile::StackProfile;
use psim_models::Model;
use psim_models::layout::LayerKind;
use psim_models::lowering::{
    LayerProgram, Shape, lower_block, lower_embedding, lower_head, lower_mtp_projection,
};
use psim_models::operator::Phase;

/// Passes of one kind of layer.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct KindTimes {
    /// Forward.
    pub forward: Pass,
    /// Backward, both gradients in framework order.
    pub backward: Pass,
    /// Input gradients alone (split schedules).
    pub input: Pass,
    /// Weight gradients alone (split schedules).
    pub weight: Pass,
    /// What selective recomputation runs again.
    pub selective: Pass,
}

impl KindTimes {
    fn new(program: &LayerProgram, cost: &CostModel, stack: &StackProfile, peak: f64, split: bool) -> Self {
        let pass = |list, phase: Option<Phase>| {
            run_pass(list, cost, stack, peak, |o| phase.is_none_or(|p| o.phase == p))
        };
        Self {
            forward: pass(&program.forward, None),
            backward: pass(&program.backward, None),
            input: if split { pass(&program.backward, Some(Phase::InputGradient)) } else { Pass::default() },
            weight: if split {
                pass(&program.backward, Some(Phase::WeightGradient))
            } else {
                Pass::default()
            },
            selective: pass(&program.selective, None),
        }
    }
}

/// Times of all kinds of layers of a model for one [`Shape`].
#[derive(Debug, Clone, PartialEq)]
pub struct LayerTimes {
    /// Decoder kinds, indexed as [`Model::kinds`].
    pub kinds: Vec<KindTimes>,
    /// Encoder layer.
    pub encoder: KindTimes,
    /// Embedding.
    pub embedding: KindTimes,
    /// Final norm, output layer and loss; multi-token-prediction layers included.
    pub head: KindTimes,
}

impl LayerTimes {
    /// Prices every kind of layer. `split` also prices the two halves of the backward pass apart.
    pub fn new(
        model: &Model,
        shape: &Shape,
        cost: &CostModel,
        stack: &StackProfile,
        peak: f64,
        split: bool,
    ) -> Self {
        let times = |program: LayerProgram| KindTimes::new(&program, cost, stack, peak, split);
        let kinds: Vec<KindTimes> = model.kinds.iter().map(|b| times(lower_block(b, model, shape))).collect();
        let encoder = model.encoder.as_ref().map_or_else(KindTimes::default, |e| {
            times(lower_block(&e.block, model, &shape.encoder(e.tokens_per_decoder_token)))
        });
        let mut head = times(lower_head(model, shape));
        if model.mtp_layers > 0
            && let Some(last) = model
                .mtp_kind
                .or_else(|| model.pattern.last().copied())
                .and_then(|k| kinds.get(usize::from(k)))
        {
            let projection = times(lower_mtp_projection(model, shape));
            let logits = head;
            for _ in 0..model.mtp_layers {
                for extra in [&projection, last, &logits] {
                    head = head.plus(extra);
                }
            }
        }
        Self { kinds, encoder, embedding: times(lower_embedding(model, shape)), head }
    }

    /// Times of a layer of the pipeline.
    pub fn of(&self, kind: LayerKind) -> &KindTimes {
        match kind {
            LayerKind::Encoder => &self.encoder,
            LayerKind::Decoder(k) => self.kinds.get(usize::from(k)).unwrap_or(&self.encoder),
        }
    }
}

impl KindTimes {
    /// A share of the work.
    #[must_use]
    pub fn scaled(&self, share: f64) -> Self {
        let part = |pass: &Pass| Pass::default().plus(pass, share);
        Self {
            forward: part(&self.forward),
            backward: part(&self.backward),
            input: part(&self.input),
            weight: part(&self.weight),
            selective: part(&self.selective),
        }
    }

    /// Both run one after the other.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            forward: self.forward.plus(&other.forward, 1.0),
            backward: self.backward.plus(&other.backward, 1.0),
            input: self.input.plus(&other.input, 1.0),
            weight: self.weight.plus(&other.weight, 1.0),
            selective: self.selective.plus(&other.selective, 1.0),
        }
    }
}
