//! Feed-forward layers on ranks of their own: the two halves of a step.

use super::{Builder, ServingShape};
use crate::Model;
use crate::arch::Ffn;
use crate::serving::Deployment;
use crate::serving::deployment::DeploymentError;

/// Lists the parts of a step where feed-forward layers have ranks of their own: of one rank of the attention, and of one
/// rank of a feed-forward instance.
///
/// What moves are the routed experts, which the instances share, or in a model without any the feed-forward matrices,
/// of which every instance has a copy. Shared experts, routers and the dense layers of a mixture stay with the attention.
///
/// # Errors
/// A deployment that does not fit the model; one with stages, or with experts spread over the attention's own ranks.
pub fn lower_apart(
    model: &Model,
    attention: &Deployment,
    (instances, tp): (u32, u32),
) -> Result<(ServingShape, ServingShape), DeploymentError> {
    attention.check(model)?;
    let experts = model.moe().map_or(0, |m| m.experts);
    if instances == 0 || tp == 0 || (experts > 0 && u64::from(instances) > experts) {
        return Err(DeploymentError::Experts { ep: instances, ranks: instances.saturating_mul(tp), experts });
    }
    let behind = Deployment {
        tp,
        pp: 1,
        attention_dp: instances,
        ep: if experts > 0 { instances } else { 1 },
        ..*attention
    };
    Ok((attention_half(model, attention), feed_forward_half(model, &behind)))
}

/// Everything but what moves.
fn attention_half(model: &Model, deployment: &Deployment) -> ServingShape {
    let mut builder = Builder::new(model, deployment);
    builder.each_kind(|b, block, layers| {
        b.mixer(block, layers);
        match &block.ffn {
            Ffn::Dense(f) if model.is_moe() => b.dense_block(f, block, layers),
            Ffn::Moe(m) => {
                b.beside_experts(m, layers);
                // Shared experts' partial sums; what comes back over the network is whole.
                if m.shared_hidden > 0 {
                    b.reduce(layers);
                }
                b.out.moe_layers += layers;
            }
            _ => {}
        }
        b.norms(block, layers);
    });
    builder.vocabulary();
    builder.finish()
}

/// The routed experts, or in a model without any the feed-forward matrices.
fn feed_forward_half(model: &Model, deployment: &Deployment) -> ServingShape {
    let mut builder = Builder::new(model, deployment);
    builder.each_kind(|b, block, layers| match &block.ffn {
        Ffn::Moe(m) => {
            b.experts(m, layers);
            b.reduce(layers);
        }
        Ffn::Dense(f) if !model.is_moe() => {
            b.dense(f.hidden.div_ceil(b.tp), f.gated, layers);
            b.reduce(layers);
        }
        _ => {}
    });
    builder.finish()
}
