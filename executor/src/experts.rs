//! Mixture of experts: route, send tokens to their experts' ranks, compute, send back, combine.
//!
//! Experts lie on `ep` ranks, each cut over `etp`. With `etp > 1` the group's tokens are gathered first and partial
//! outputs are reduced and scattered at the end; everything between is linear in the partial gradients, so sums over
//! the group come out right (the router's gradient too).
//!
//! The router's product runs on the device; its scores come to the host, which chooses the experts and counts their tokens
//! (a wait per layer on a GPU that fused routers do not have).

use crate::comm::Transport;
use crate::error::Result;
use crate::fabric::{Fabric, Use};
use crate::network::Experts;
use crate::parameters::ExpertIds;
use crate::rank::{Pending, Rank, activation};
use psim_hardware::DType;
use psim_kernels::{Device, Gemm, Strided};
use psim_models::operator::{CollectiveKind, Dimension};
use std::rc::Rc;

/// Where every (token, expert) pair goes.
struct Routing<D: Device> {
    /// Tokens routed on this rank.
    tokens: usize,
    /// Probabilities of all experts, tokens × experts.
    probabilities: Vec<f32>,
    /// Pairs in sending order (by expert): (token, expert).
    pairs: Vec<(usize, usize)>,
    /// Token of each pair, and its probability, on the device.
    token_index: D::Index,
    weights: D::Buffer,
    /// Pairs sent to each expert-parallel rank.
    sent: Vec<usize>,
    /// Pairs received from each rank for each local expert: `received[rank][expert]`.
    received: Vec<Vec<usize>>,
    /// Rows received, and where each row of the by-expert order came from in the received order.
    rows: usize,
    by_expert: D::Index,
    /// Rows of each local expert.
    expert_rows: Vec<usize>,
}

/// What the experts keep for their backward pass.
pub(crate) struct ExpertsSaved<D: Device> {
    routing: Routing<D>,
    /// Tokens of the etp group.
    gathered: Rc<D::Buffer>,
    /// Rows by expert: input, before and after the activation.
    input: Rc<D::Buffer>,
    before: D::Buffer,
    after: Rc<D::Buffer>,
    /// Expert outputs, back home in sending order.
    returned: D::Buffer,
}

impl<D: Device, T: Transport> Rank<D, T> {
    /// Softmax over the experts and the `top_k` largest, ties to the lower expert.
    fn route(&self, ids: &ExpertIds, spec: Experts, x: &D::Buffer) -> Result<Routing<D>> {
        let tokens = self.device.len(x) / self.sizes.hidden;
        let logits = self.device.download(&self.linear(ids.router, tokens, x)?)?;
        let mut probabilities = Vec::with_capacity(logits.len());
        let mut chosen: Vec<(usize, usize)> = Vec::with_capacity(tokens * spec.top_k);
        for token in 0..tokens {
            let row = &logits[token * spec.count..][..spec.count];
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = row.iter().map(|l| (l - top).exp()).sum();
            probabilities.extend(row.iter().map(|l| (l - top).exp() / sum));
            let mut order: Vec<usize> = (0..spec.count).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
            chosen.extend(order[..spec.top_k.min(spec.count)].iter().map(|&e| (token, e)));
        }
        chosen.sort_by_key(|&(token, expert)| (expert, token));
        let each = spec.count / self.mesh.ep.size();
        let mut counts = vec![0.0_f32; spec.count];
        chosen.iter().for_each(|&(_, e)| counts[e] += 1.0);
        let sent: Vec<usize> = counts.chunks(each).map(|c| c.iter().sum::<f32>() as usize).collect();
        let received: Vec<Vec<usize>> = self
            .exchange_counts(&counts, each)?
            .into_iter()
            .map(|header| header.into_iter().map(|c| c as usize).collect())
            .collect();
        let mut by_expert = Vec::new();
        for expert in 0..each {
            let mut start = 0;
            for counts in &received {
                let before: usize = counts[..expert].iter().sum();
                by_expert.extend((start + before..start + before + counts[expert]).map(|row| row as u32));
                start += counts.iter().sum::<usize>();
            }
        }
        let expert_rows = (0..each).map(|e| received.iter().map(|c| c[e]).sum()).collect();
        let token_index: Vec<u32> = chosen.iter().map(|&(token, _)| token as u32).collect();
        let weights: Vec<f32> = chosen.iter().map(|&(t, e)| probabilities[t * spec.count + e]).collect();
        Ok(Routing {
            tokens,
            probabilities,
            rows: by_expert.len(),
            token_index: self.device.upload_index(&token_index)?,
            weights: self.device.upload(&weights)?,
            by_expert: self.device.upload_index(&by_expert)?,
            pairs: chosen,
            sent,
            received,
            expert_rows,
        })
    }

    /// Rows that every rank sends to each of this rank's `each` experts, as floats: exact below 2^24.
    fn exchange_counts(&self, counts: &[f32], each: usize) -> Result<Vec<Vec<f32>>> {
        let group = &self.mesh.ep;
        if let Some(fabric) = self.over(group, Use::InLine) {
            let mut here = self.device.alloc(DType::Fp32, counts.len())?;
            let there = self.device.upload(counts)?;
            let lengths = vec![each; group.size()];
            self.spanned(Dimension::Ep, counts.len(), || {
                fabric.all_to_all(&self.device, group, (&there, &lengths), (&mut here, &lengths))
            })?;
            return Ok(self.device.download(&here)?.chunks(each).map(<[f32]>::to_vec).collect());
        }
        self.comm.all_to_all(Dimension::Ep, group, counts.chunks(each).map(<[f32]>::to_vec).collect())
    }

    /// Rows to the ranks of the expert-parallel group, `sent` to each, `received` from each.
    fn exchange_rows(
        &self,
        fabric: &dyn Fabric<D>,
        rows: &D::Buffer,
        sent: impl Iterator<Item = usize>,
        received: impl Iterator<Item = usize>,
    ) -> Result<D::Buffer> {
        let hidden = self.sizes.hidden;
        let sent: Vec<usize> = sent.map(|rows| rows * hidden).collect();
        let received: Vec<usize> = received.map(|rows| rows * hidden).collect();
        let mut arrived = self.alloc(received.iter().sum())?;
        self.spanned(Dimension::Ep, sent.iter().sum(), || {
            fabric.all_to_all(&self.device, &self.mesh.ep, (rows, &sent), (&mut arrived, &received))
        })?;
        Ok(arrived)
    }

    /// Sends rows in pair order to the experts; returns them grouped by local expert.
    fn dispatch(&self, routing: &Routing<D>, rows: &D::Buffer) -> Result<D::Buffer> {
        let hidden = self.sizes.hidden;
        let arrived = if self.comm.is_alone() {
            // Every peer sends what this rank sends to itself.
            let first: usize = routing.sent[..self.mesh.ep.index].iter().sum();
            let own = routing.sent[self.mesh.ep.index];
            self.exchanged(rows, routing.rows, |row| first + row % own.max(1))?
        } else if let Some(fabric) = self.over(&self.mesh.ep, Use::InLine) {
            let received = routing.received.iter().map(|counts| counts.iter().sum());
            self.exchange_rows(fabric, rows, routing.sent.iter().copied(), received)?
        } else {
            self.comm.staged(Dimension::Ep, || {
                let all = self.device.download(rows)?;
                let mut parts = Vec::with_capacity(routing.sent.len());
                let mut start = 0;
                for count in &routing.sent {
                    parts.push(all[start * hidden..(start + count) * hidden].to_vec());
                    start += count;
                }
                self.buffer(&self.comm.all_to_all(Dimension::Ep, &self.mesh.ep, parts)?.concat())
            })?
        };
        let mut grouped = self.alloc(routing.rows * hidden)?;
        self.device.gather_rows(routing.rows, hidden, &routing.by_expert, &arrived, &mut grouped)?;
        Ok(grouped)
    }

    /// The way back: rows grouped by local expert to pair order at home.
    fn give_back(&self, routing: &Routing<D>, grouped: &D::Buffer) -> Result<D::Buffer> {
        let hidden = self.sizes.hidden;
        let mut arrived = self.device.alloc(DType::Fp32, routing.rows * hidden)?;
        self.device.fill(&mut arrived, 0.0)?;
        self.device.scatter_add_rows(
            routing.rows,
            hidden,
            &routing.by_expert,
            None,
            grouped,
            &mut arrived,
        )?;
        if self.comm.is_alone() {
            return self.exchanged(&arrived, routing.pairs.len(), |row| row % routing.rows.max(1));
        }
        if let Some(fabric) = self.over(&self.mesh.ep, Use::InLine) {
            let arrived = self.in_format(arrived)?;
            let sent = routing.received.iter().map(|counts| counts.iter().sum());
            return self.exchange_rows(fabric, &arrived, sent, routing.sent.iter().copied());
        }
        self.comm.staged(Dimension::Ep, || {
            let all = self.device.download(&arrived)?;
            let mut parts = Vec::with_capacity(routing.received.len());
            let mut start = 0;
            for counts in &routing.received {
                let count: usize = counts.iter().sum();
                parts.push(all[start * hidden..(start + count) * hidden].to_vec());
                start += count;
            }
            self.buffer(&self.comm.all_to_all(Dimension::Ep, &self.mesh.ep, parts)?.concat())
        })
    }

    /// In place of an exchange with expert-parallel peers that do not run: `count` rows taken from `rows`.
    fn exchanged(&self, rows: &D::Buffer, count: usize, from: impl Fn(usize) -> usize) -> Result<D::Buffer> {
        let hidden = self.sizes.hidden;
        let mut arrived = self.alloc(count * hidden)?;
        let ranks = self.mesh.ep.size();
        self.pretend(Dimension::Ep, CollectiveKind::AllToAll, count * hidden, ranks, || {
            if self.device.len(rows) < hidden {
                return Ok(self.device.fill(&mut arrived, 0.0)?);
            }
            let index: Vec<u32> = (0..count).map(|row| from(row) as u32).collect();
            let index = self.device.upload_index(&index)?;
            Ok(self.device.gather_rows(count, hidden, &index, rows, &mut arrived)?)
        })?;
        Ok(arrived)
    }

    /// One product per local expert over its rows.
    fn grouped(
        &self,
        routing: &Routing<D>,
        weights: impl Iterator<Item = usize>,
        x: &D::Buffer,
        transposed: bool,
        width: usize,
    ) -> Result<D::Buffer> {
        let mut y = self.alloc(routing.rows * width)?;
        let mut row = 0;
        for (weight, &rows) in weights.zip(&routing.expert_rows) {
            let [k, n] = self.store.infos[weight].shard.shape();
            let shape = if transposed { Gemm::new(rows, k, n).transposed_b() } else { Gemm::new(rows, n, k) };
            let shape = shape.at(row * shape.k, 0, row * shape.n);
            self.device.gemm(&shape, x, &self.store.values[weight], &mut y)?;
            row += rows;
        }
        Ok(y)
    }

    fn grouped_weight_gradient(
        &mut self,
        expert_rows: &[usize],
        weights: impl Iterator<Item = usize>,
        x: &Rc<D::Buffer>,
        dy: &Rc<D::Buffer>,
    ) -> Result<()> {
        let mut row = 0;
        for (target, &rows) in weights.zip(expert_rows) {
            let [k, n] = self.store.infos[target].shard.shape();
            if rows > 0 {
                let shape = Gemm::new(k, n, rows).transposed_a().accumulating().at(row * k, row * n, 0);
                self.add_weight_gradient(Pending { shape, x: Rc::clone(x), dy: Rc::clone(dy), target })?;
            }
            row += rows;
        }
        Ok(())
    }

    /// Output share of the routed experts.
    pub(crate) fn experts_forward(
        &self,
        ids: &ExpertIds,
        spec: Experts,
        share: &Rc<D::Buffer>,
    ) -> Result<(D::Buffer, ExpertsSaved<D>)> {
        let hidden = self.sizes.hidden;
        let width = spec.hidden / self.mesh.etp.size();
        let kind = activation(spec.gated);
        let gathered = self.gather(Dimension::Etp, &self.mesh.etp, share)?;
        let routing = self.route(ids, spec, &gathered)?;
        let mut copies = self.alloc(routing.pairs.len() * hidden)?;
        self.device.gather_rows(routing.pairs.len(), hidden, &routing.token_index, &gathered, &mut copies)?;
        let input = Rc::new(self.dispatch(&routing, &copies)?);
        let ups = ids.experts.iter().map(|e| e.0);
        let before = self.grouped(&routing, ups, &input, false, kind.input_width(width))?;
        let mut after = self.alloc(routing.rows * width)?;
        self.device.activation_forward(kind, routing.rows, width, &before, &mut after)?;
        let out = self.grouped(&routing, ids.experts.iter().map(|e| e.1), &after, false, hidden)?;
        let returned = self.give_back(&routing, &out)?;
        let mut combined = self.device.alloc(DType::Fp32, routing.tokens * hidden)?;
        self.device.fill(&mut combined, 0.0)?;
        let weights = Some(&routing.weights);
        let count = routing.pairs.len();
        self.device.scatter_add_rows(
            count,
            hidden,
            &routing.token_index,
            weights,
            &returned,
            &mut combined,
        )?;
        let combined = self.in_format(combined)?;
        let output = self.scatter(Dimension::Etp, &self.mesh.etp, combined)?;
        Ok((output, ExpertsSaved { routing, gathered, input, before, after: Rc::new(after), returned }))
    }

    /// Converts an fp32 buffer to the compute format.
    fn in_format(&self, buffer: D::Buffer) -> Result<D::Buffer> {
        if self.dtype == DType::Fp32 {
            return Ok(buffer);
        }
        let len = self.device.len(&buffer);
        let mut out = self.alloc(len)?;
        self.device.copy(1, len, &buffer, Strided::new(0, len), &mut out, Strided::new(0, len))?;
        Ok(out)
    }

    /// Gradient of the normalised input share.
    pub(crate) fn experts_backward(
        &mut self,
        ids: &ExpertIds,
        spec: Experts,
        saved: &ExpertsSaved<D>,
        dy: &Rc<D::Buffer>,
    ) -> Result<D::Buffer> {
        let hidden = self.sizes.hidden;
        let width = spec.hidden / self.mesh.etp.size();
        let kind = activation(spec.gated);
        let routing = &saved.routing;
        let count = routing.pairs.len();
        let dy = self.gather(Dimension::Etp, &self.mesh.etp, dy)?;
        let mut dreturned = self.alloc(count * hidden)?;
        let mut dweights = self.device.alloc(DType::Fp32, count)?;
        self.device.scatter_add_rows_backward(
            count,
            hidden,
            &routing.token_index,
            &routing.weights,
            &saved.returned,
            &dy,
            &mut dreturned,
            &mut dweights,
        )?;
        let dout = Rc::new(self.dispatch(routing, &dreturned)?);
        let dafter = self.grouped(routing, ids.experts.iter().map(|e| e.1), &dout, true, width)?;
        let mut dbefore = self.alloc(routing.rows * kind.input_width(width))?;
        self.device.activation_backward(kind, routing.rows, width, &saved.before, &dafter, &mut dbefore)?;
        let dbefore = Rc::new(dbefore);
        let dinput = self.grouped(routing, ids.experts.iter().map(|e| e.0), &dbefore, true, hidden)?;
        let dcopies = self.give_back(routing, &dinput)?;
        let mut dgathered = self.device.alloc(DType::Fp32, routing.tokens * hidden)?;
        self.device.fill(&mut dgathered, 0.0)?;
        self.device.scatter_add_rows(count, hidden, &routing.token_index, None, &dcopies, &mut dgathered)?;
        let mut dgathered = self.in_format(dgathered)?;
        // Router: p_j (g_j − Σ p g), where g is nonzero for the chosen experts.
        let chosen = self.device.download(&dweights)?;
        let mut slopes = vec![0.0_f32; routing.tokens * spec.count];
        for (&(token, expert), slope) in routing.pairs.iter().zip(&chosen) {
            slopes[token * spec.count + expert] = *slope;
        }
        for (p, g) in routing.probabilities.chunks(spec.count).zip(slopes.chunks_mut(spec.count)) {
            let mean: f32 = p.iter().zip(&*g).map(|(p, g)| p * g).sum();
            g.iter_mut().zip(p).for_each(|(g, p)| *g = p * (*g - mean));
        }
        let dlogits = Rc::new(self.buffer(&slopes)?);
        let through_router = self.linear_backward(ids.router, routing.tokens, &dlogits)?;
        self.device.add(&through_router, &mut dgathered)?;
        let tokens = routing.tokens;
        let expert_rows = routing.expert_rows.clone();
        self.weight_gradient(ids.router, tokens, &saved.gathered, &dlogits)?;
        self.grouped_weight_gradient(&expert_rows, ids.experts.iter().map(|e| e.1), &saved.after, &dout)?;
        self.grouped_weight_gradient(&expert_rows, ids.experts.iter().map(|e| e.0), &saved.input, &dbefore)?;
        self.scatter(Dimension::Etp, &self.mesh.etp, dgathered)
    }
}
