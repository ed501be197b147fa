//! A pre-norm transformer layer: forward, backward, and the activations it keeps between them.

use crate::attention::{Core, Projected};
use crate::comm::Transport;
use crate::error::Result;
use crate::experts::ExpertsSaved;
use crate::parameters::LayerIds;
use crate::rank::{DenseSaved, Rank};
use psim_kernels::Device;
use psim_models::plan::Recompute;
use std::rc::Rc;

/// What one layer keeps for its backward pass.
pub(crate) struct LayerSaved<D: Device> {
    /// Input share of the layer.
    input: Rc<D::Buffer>,
    /// Everything else; `None` where the layer is recomputed.
    rest: Option<Rest<D>>,
}

struct Rest<D: Device> {
    attention_normed: Rc<D::Buffer>,
    attention_stats: D::Buffer,
    projected: Projected<D>,
    /// `None` under selective recomputation.
    core: Option<Core<D>>,
    middle: Rc<D::Buffer>,
    ffn_normed: Rc<D::Buffer>,
    ffn_stats: D::Buffer,
    dense: Option<DenseSaved<D>>,
    experts: Option<ExpertsSaved<D>>,
}

impl<D: Device, T: Transport> Rank<D, T> {
    /// Output share of a layer, and what its backward pass needs. `index` counts within the chunk.
    pub(crate) fn layer_forward(
        &self,
        ids: &LayerIds,
        index: usize,
        input: D::Buffer,
    ) -> Result<(D::Buffer, LayerSaved<D>)> {
        let input = Rc::new(input);
        let (output, mut rest) = self.layer_run(ids, &input)?;
        let keep = match self.plan.recompute {
            Recompute::None => true,
            Recompute::Selective => {
                rest.core = None;
                true
            }
            Recompute::Full => false,
            Recompute::Layers(n) => index >= n as usize,
        };
        Ok((output, LayerSaved { input, rest: keep.then_some(rest) }))
    }

    fn layer_run(&self, ids: &LayerIds, input: &Rc<D::Buffer>) -> Result<(D::Buffer, Rest<D>)> {
        let (attention_normed, attention_stats) = self.norm_forward(ids.attention_norm, input)?;
        let gathered = self.gather_tp(&attention_normed)?;
        let projected = self.project(ids, &gathered)?;
        let core = self.attend(ids, &projected)?;
        let mut middle = self.attention_out(ids, &core)?;
        self.device.add(input, &mut middle)?;
        let middle = Rc::new(middle);
        let (ffn_normed, ffn_stats) = self.norm_forward(ids.ffn_norm, &middle)?;
        // The first branch's own share becomes the output.
        let mut output: Option<D::Buffer> = None;
        let mut dense = None;
        if let Some(dense_ids) = &ids.dense {
            let gathered = self.gather_tp(&ffn_normed)?;
            let (partial, saved) = self.dense_forward(dense_ids, &gathered)?;
            let mut share = self.scatter_tp(partial)?;
            self.bias_forward(dense_ids.down_bias, self.sizes.share, &mut share)?;
            self.device.add(&middle, &mut share)?;
            output = Some(share);
            dense = Some(saved);
        }
        let mut experts = None;
        if let (Some(expert_ids), Some(spec)) = (&ids.experts, ids.layer.experts) {
            let (mut share, saved) = self.experts_forward(expert_ids, spec, &ffn_normed)?;
            self.device.add(output.as_ref().unwrap_or(&middle), &mut share)?;
            output = Some(share);
            experts = Some(saved);
        }
        let output = match output {
            Some(output) => output,
            None => self.clone_of(&middle)?,
        };
        let core = Some(core);
        let rest = Rest {
            attention_normed,
            attention_stats,
            projected,
            core,
            middle,
            ffn_normed,
            ffn_stats,
            dense,
            experts,
        };
        Ok((output, rest))
    }

    /// Gradient of a layer's input share.
    pub(crate) fn layer_backward(
        &mut self,
        ids: &LayerIds,
        saved: LayerSaved<D>,
        dy: D::Buffer,
    ) -> Result<D::Buffer> {
        let rest = match saved.rest {
            Some(rest) => rest,
            None => self.layer_run(ids, &saved.input)?.1,
        };
        let dy = Rc::new(dy);
        let share = self.sizes.share;
        let mut dnormed: Option<D::Buffer> = None;
        if let (Some(dense_ids), Some(dense)) = (&ids.dense, rest.dense) {
            self.bias_backward(dense_ids.down_bias, share, &dy)?;
            let dy = self.gather_tp(&dy)?;
            let x = self.gather_tp(&rest.ffn_normed)?;
            let partial = self.dense_backward(dense_ids, &dense, &x, &dy)?;
            dnormed = Some(self.scatter_tp(partial)?);
        }
        if let (Some(expert_ids), Some(spec), Some(experts)) = (&ids.experts, ids.layer.experts, rest.experts)
        {
            let mut part = self.experts_backward(expert_ids, spec, &experts, &dy)?;
            if let Some(first) = &dnormed {
                self.device.add(first, &mut part)?;
            }
            dnormed = Some(part);
        }
        let dnormed = match dnormed {
            Some(dnormed) => dnormed,
            None => self.zeros(share * self.sizes.hidden)?,
        };
        let mut dmiddle = self.norm_backward(ids.ffn_norm, &rest.middle, &rest.ffn_stats, &dnormed)?;
        self.device.add(&dy, &mut dmiddle)?;
        let dmiddle = Rc::new(dmiddle);
        let core = match rest.core {
            Some(core) => core,
            None => self.attend(ids, &rest.projected)?,
        };
        let dnormed =
            self.attention_backward(ids, &rest.attention_normed, &rest.projected, &core, &dmiddle)?;
        let mut dinput =
            self.norm_backward(ids.attention_norm, &saved.input, &rest.attention_stats, &dnormed)?;
        self.device.add(&dmiddle, &mut dinput)?;
        Ok(dinput)
    }
}
