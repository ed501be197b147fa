//! The first and last part of the model: embedding, output layer, loss; vocabulary split over tp.

use crate::comm::Transport;
use crate::error::Result;
use crate::fabric::Use;
use crate::rank::{Pending, Rank, local_positions};
use psim_hardware::DType;
use psim_kernels::random::mix;
use psim_kernels::{CrossEntropy, Device, Gemm};
use psim_models::operator::Dimension;
use std::rc::Rc;

/// What the output layer keeps for its backward pass.
pub(crate) struct HeadSaved<D: Device> {
    input: Rc<D::Buffer>,
    norm: Option<D::Buffer>,
    /// Gathered input of the output layer.
    gathered: Rc<D::Buffer>,
    logits: D::Buffer,
    stats: D::Buffer,
    targets: D::Index,
}

/// The synthetic corpus: token at `position` of sequence `sequence` of step `step`.
pub fn token(seed: u64, step: u64, sequence: u64, position: u64, vocab: usize) -> u32 {
    (mix(seed ^ mix(step ^ mix(sequence ^ mix(position)))) % vocab.max(1) as u64) as u32
}

impl<D: Device, T: Transport> Rank<D, T> {
    /// Tokens of a micro-batch on this rank, `ahead` positions on (1: the targets).
    fn tokens(&self, seed: u64, step: u64, micro_batch: usize, ahead: u64) -> Vec<u32> {
        let per_replica = (self.plan.global_batch / self.plan.dp) as usize;
        let first = self.mesh.dp_index() * per_replica + micro_batch * self.sizes.batch;
        let cp = self.mesh.cp.size();
        let positions = local_positions(self.workload.seq_len as usize, cp, self.mesh.cp_index());
        (first..first + self.sizes.batch)
            .flat_map(|s| {
                let vocab = self.network.vocab;
                positions.iter().map(move |&p| token(seed, step, s as u64, p as u64 + ahead, vocab))
            })
            .collect()
    }

    /// Embedding of a micro-batch: this rank's share of the tokens.
    pub(crate) fn embed(&self, seed: u64, step: u64, micro_batch: usize) -> Result<(D::Buffer, D::Index)> {
        let Sizes { tokens, share, hidden } = self.shape();
        let ids = self.device.upload_index(&self.tokens(seed, step, micro_batch, 0))?;
        let mut partial = self.alloc(tokens * hidden)?;
        if let Some(table) = self.ends.embedding {
            let (first, rows) = (self.ends.vocab_first, self.ends.vocab_rows);
            let table = &self.store.values[table];
            self.device.embedding_forward(tokens, hidden, first, rows, &ids, table, &mut partial)?;
        }
        let mut x = self.scatter_tp(partial)?;
        if let (Some(table), Some(rows)) = (self.ends.positions, self.network.learned_positions) {
            let mut added = self.alloc(share * hidden)?;
            let table = &self.store.values[table];
            self.device.embedding_forward(
                share,
                hidden,
                0,
                rows,
                &self.share_positions,
                table,
                &mut added,
            )?;
            self.device.add(&added, &mut x)?;
        }
        Ok((x, ids))
    }

    /// Gradient of the embedding tables.
    pub(crate) fn embed_backward(&mut self, ids: &D::Index, dx: D::Buffer) -> Result<()> {
        let Sizes { tokens, share, hidden } = self.shape();
        let dx = Rc::new(dx);
        if let (Some(table), Some(rows)) = (self.ends.positions, self.network.learned_positions) {
            let target = &mut self.store.gradients[table];
            self.device.embedding_backward(share, hidden, 0, rows, &self.share_positions, &dx, target)?;
        }
        let gathered = self.gather_tp(&dx)?;
        if let Some(table) = self.ends.embedding {
            let (first, rows) = (self.ends.vocab_first, self.ends.vocab_rows);
            let target = &mut self.store.gradients[table];
            self.device.embedding_backward(tokens, hidden, first, rows, ids, &gathered, target)?;
        }
        Ok(())
    }

    fn shape(&self) -> Sizes {
        Sizes { tokens: self.sizes.tokens, share: self.sizes.share, hidden: self.sizes.hidden }
    }

    /// Sum of the losses of the micro-batch's tokens on this context-parallel rank (the same on all tp ranks).
    pub(crate) fn head_forward(
        &self,
        seed: u64,
        step: u64,
        micro_batch: usize,
        input: D::Buffer,
    ) -> Result<(f64, HeadSaved<D>)> {
        let Sizes { tokens, hidden, .. } = self.shape();
        let input = Rc::new(input);
        let (normed, norm) = match self.ends.final_norm {
            Some(ids) => {
                let (normed, stats) = self.norm_forward(ids, &input)?;
                (normed, Some(stats))
            }
            None => (Rc::clone(&input), None),
        };
        let gathered = self.gather_tp(&normed)?;
        let shape = self.loss_shape();
        let mut logits = self.alloc(tokens * shape.vocab)?;
        let targets = self.device.upload_index(&self.tokens(seed, step, micro_batch, 1))?;
        if let Some(head) = self.ends.head {
            let product = Gemm::new(tokens, shape.vocab, hidden).transposed_b();
            self.device.gemm(&product, &gathered, &self.store.values[head], &mut logits)?;
        }
        let mut stats = self.device.alloc(DType::Fp32, 3 * tokens)?;
        self.device.cross_entropy_stats(&shape, &logits, &targets, &mut stats)?;
        let host = if let Some(fabric) = self.over(&self.mesh.tp, Use::InLine) {
            let n = self.mesh.tp.size();
            let mut all = self.device.alloc(DType::Fp32, n * 3 * tokens)?;
            self.spanned(Dimension::Tp, (n - 1) * 3 * tokens, || {
                fabric.all_gather(&self.device, &self.mesh.tp, Use::InLine, &stats, &mut all)
            })?;
            let parts: Vec<Vec<f32>> =
                self.device.download(&all)?.chunks(3 * tokens).map(<[f32]>::to_vec).collect();
            combine_stats(&parts)
        } else if self.mesh.tp.size() > 1 {
            let own = self.device.download(&stats)?;
            combine_stats(&self.comm.all_gather(Dimension::Tp, &self.mesh.tp, own)?)
        } else {
            self.device.download(&stats)?
        };
        if self.mesh.tp.size() > 1 {
            self.device.write(&mut stats, 0, &host)?;
        }
        let loss =
            host.chunks_exact(3).map(|s| f64::from(s[1]).ln() + f64::from(s[0]) - f64::from(s[2])).sum();
        Ok((loss, HeadSaved { input, norm, gathered, logits, stats, targets }))
    }

    fn loss_shape(&self) -> CrossEntropy {
        CrossEntropy { rows: self.sizes.tokens, vocab: self.ends.vocab_rows, first: self.ends.vocab_first }
    }

    /// Gradient of the output layer's input share; the loss is the mean over all tokens of the step.
    pub(crate) fn head_backward(&mut self, mut saved: HeadSaved<D>) -> Result<D::Buffer> {
        let Sizes { tokens, hidden, .. } = self.shape();
        let shape = self.loss_shape();
        let all_tokens = u64::from(self.plan.global_batch) * self.workload.seq_len;
        let factor = 1.0 / all_tokens as f32;
        self.device.cross_entropy_backward(
            &shape,
            factor,
            &saved.targets,
            &saved.stats,
            &mut saved.logits,
        )?;
        let dlogits = Rc::new(saved.logits);
        let mut partial = self.alloc(tokens * hidden)?;
        if let Some(head) = self.ends.head {
            let product = Gemm::new(tokens, hidden, shape.vocab);
            self.device.gemm(&product, &dlogits, &self.store.values[head], &mut partial)?;
            let product = Gemm::new(shape.vocab, hidden, tokens).transposed_a().accumulating();
            let x = saved.gathered;
            self.add_weight_gradient(Pending { shape: product, x: dlogits, dy: x, target: head })?;
        }
        let dnormed = self.scatter_tp(partial)?;
        match (self.ends.final_norm, saved.norm) {
            (Some(ids), Some(stats)) => self.norm_backward(ids, &saved.input, &stats, &dnormed),
            _ => Ok(dnormed),
        }
    }
}

struct Sizes {
    tokens: usize,
    share: usize,
    hidden: usize,
}

/// Statistics of the whole vocabulary from those of its slices.
fn combine_stats(parts: &[Vec<f32>]) -> Vec<f32> {
    let rows = parts.first().map_or(0, |p| p.len() / 3);
    let mut out = Vec::with_capacity(3 * rows);
    for row in 0..rows {
        let stats: Vec<&[f32]> = parts.iter().map(|p| &p[3 * row..3 * row + 3]).collect();
        let top = stats.iter().map(|s| s[0]).fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = stats.iter().map(|s| if s[1] > 0.0 { s[1] * (s[0] - top).exp() } else { 0.0 }).sum();
        out.extend([top, sum, stats.iter().map(|s| s[2]).sum()]);
    }
    out
}
