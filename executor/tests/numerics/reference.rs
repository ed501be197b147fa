//! The same model on one rank in float64: no sharding, no tiles, one sequence at a time.

use psim_executor::network::{Dense, Experts, Layer, Network};
use psim_executor::{EPSILON, ROPE_BASE, parameters::start_tensor, token};
use psim_kernels::{Activation, Attention, CrossEntropy, Gemm, Norm, Rope, reference};
use std::collections::BTreeMap;

/// Parameters or gradients by name.
pub(crate) type Tensors = BTreeMap<String, Vec<f64>>;

/// Loss and gradients of one step.
pub(crate) struct Reference<'a> {
    pub(crate) network: &'a Network,
    pub(crate) parameters: Tensors,
    pub(crate) gradients: Tensors,
    seq: usize,
}

fn product(shape: Gemm, a: &[f64], b: &[f64]) -> Vec<f64> {
    let mut c = vec![0.0; shape.m * shape.n];
    reference::gemm(&shape, a, b, &mut c);
    c
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

struct LayerSaved {
    input: Vec<f64>,
    normed: Vec<f64>,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    core: Vec<f64>,
    middle: Vec<f64>,
    ffn_normed: Vec<f64>,
}

impl<'a> Reference<'a> {
    pub(crate) fn new(
        network: &'a Network,
        seq: usize,
        seed: u64,
        shapes: &BTreeMap<String, [usize; 2]>,
    ) -> Self {
        let parameters: Tensors = shapes
            .iter()
            .map(|(name, &whole)| {
                (name.clone(), start_tensor(seed, name, whole).into_iter().map(f64::from).collect())
            })
            .collect();
        let gradients = parameters.iter().map(|(n, p)| (n.clone(), vec![0.0; p.len()])).collect();
        Self { network, parameters, gradients, seq }
    }

    fn p(&self, name: &str) -> &[f64] {
        self.parameters.get(name).unwrap_or_else(|| panic!("no parameter {name}"))
    }

    fn grad(&mut self, name: &str, gradient: &[f64]) {
        add(self.gradients.get_mut(name).unwrap(), gradient);
    }

    fn linear(&self, name: &str, x: &[f64], k: usize, n: usize) -> Vec<f64> {
        let rows = x.len() / k;
        let mut y = product(Gemm::new(rows, n, k), x, self.p(&format!("{name}.weight")));
        if let Some(bias) = self.parameters.get(&format!("{name}.bias")) {
            y.chunks_mut(n).for_each(|row| add(row, bias));
        }
        y
    }

    fn linear_backward(&mut self, name: &str, x: &[f64], dy: &[f64], k: usize, n: usize) -> Vec<f64> {
        let rows = x.len() / k;
        let weight = format!("{name}.weight");
        let dx = product(Gemm::new(rows, k, n).transposed_b(), dy, self.p(&weight));
        let dw = product(Gemm::new(k, n, rows).transposed_a(), x, dy);
        self.grad(&weight, &dw);
        let bias = format!("{name}.bias");
        if self.parameters.contains_key(&bias) {
            dy.chunks(n).for_each(|row| self.grad(&bias, row));
        }
        dx
    }

    fn norm_shape(&self, rows: usize) -> Norm {
        Norm { rows, width: self.network.hidden, rms: self.network.rms, epsilon: EPSILON }
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let shape = self.norm_shape(x.len() / self.network.hidden);
        let bias = self.parameters.get(&format!("{name}.bias")).map(Vec::as_slice);
        reference::norm_forward(&shape, x, self.p(&format!("{name}.weight")), bias)
    }

    fn norm_backward(&mut self, name: &str, x: &[f64], dy: &[f64]) -> Vec<f64> {
        let shape = self.norm_shape(x.len() / self.network.hidden);
        let weight = format!("{name}.weight");
        let [dx, dw, db] = reference::norm_backward(&shape, x, self.p(&weight), dy);
        self.grad(&weight, &dw);
        let bias = format!("{name}.bias");
        if self.parameters.contains_key(&bias) {
            self.grad(&bias, &db);
        }
        dx
    }

    fn rope(&self, x: &[f64], heads: usize, dim: usize, inverse: bool) -> Vec<f64> {
        if !self.network.rope {
            return x.to_vec();
        }
        let positions: Vec<u32> = (0..self.seq as u32).collect();
        reference::rope(
            &Rope { tokens: self.seq, heads, head_dim: dim, base: ROPE_BASE, inverse },
            &positions,
            x,
        )
    }

    fn attention(&self, layer: &Layer) -> Attention {
        Attention::causal(1, self.seq, layer.heads, layer.kv_heads, layer.head_dim)
    }

    fn layer_forward(&self, i: usize, input: Vec<f64>) -> (Vec<f64>, LayerSaved) {
        let (layer, h) = (self.network.layers[i], self.network.hidden);
        let (qw, kw) = (layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim);
        let normed = self.norm(&format!("layer.{i}.attention_norm"), &input);
        let packed = self.linear(&format!("layer.{i}.qkv"), &normed, h, qw + 2 * kw);
        let cut = |from: usize, width: usize| -> Vec<f64> {
            packed.chunks(qw + 2 * kw).flat_map(|row| row[from..from + width].to_vec()).collect()
        };
        let q = self.rope(&cut(0, qw), layer.heads, layer.head_dim, false);
        let k = self.rope(&cut(qw, kw), layer.kv_heads, layer.head_dim, false);
        let v = cut(qw + kw, kw);
        let [core, _] = reference::attention_forward(&self.attention(&layer), &q, &k, &v);
        let mut middle = self.linear(&format!("layer.{i}.out"), &core, qw, h);
        add(&mut middle, &input);
        let ffn_normed = self.norm(&format!("layer.{i}.ffn_norm"), &middle);
        let mut output = middle.clone();
        if let Some(dense) = layer.dense {
            add(&mut output, &self.dense(i, dense, &ffn_normed));
        }
        if let Some(experts) = layer.experts {
            add(&mut output, &self.experts(i, experts, &ffn_normed));
        }
        (output, LayerSaved { input, normed, q, k, v, core, middle, ffn_normed })
    }

    fn dense(&self, i: usize, dense: Dense, x: &[f64]) -> Vec<f64> {
        let (kind, h) = (kind(dense.gated), self.network.hidden);
        let before = self.linear(&format!("layer.{i}.up"), x, h, kind.input_width(dense.hidden));
        let after = reference::activation_forward(kind, x.len() / h, dense.hidden, &before);
        self.linear(&format!("layer.{i}.down"), &after, dense.hidden, h)
    }

    fn dense_backward(&mut self, prefix: &str, gated: bool, width: usize, x: &[f64], dy: &[f64]) -> Vec<f64> {
        let (kind, h) = (kind(gated), self.network.hidden);
        let (up, down) = (format!("{prefix}.up"), format!("{prefix}.down"));
        let rows = x.len() / h;
        let before = self.linear(&up, x, h, kind.input_width(width));
        let after = reference::activation_forward(kind, rows, width, &before);
        let dafter = self.linear_backward(&down, &after, dy, width, h);
        let dbefore = reference::activation_backward(kind, rows, width, &before, &dafter);
        self.linear_backward(&up, x, &dbefore, h, kind.input_width(width))
    }

    /// Probabilities of all experts and the chosen ones, per token.
    fn route(&self, i: usize, spec: Experts, x: &[f64]) -> Vec<(Vec<f64>, Vec<usize>)> {
        let logits = self.linear(&format!("layer.{i}.router"), x, self.network.hidden, spec.count);
        logits
            .chunks(spec.count)
            .map(|row| {
                let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = row.iter().map(|l| (l - top).exp()).sum();
                let mut order: Vec<usize> = (0..spec.count).collect();
                order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
                (row.iter().map(|l| (l - top).exp() / sum).collect(), order[..spec.top_k].to_vec())
            })
            .collect()
    }

    fn expert(&self, i: usize, e: usize, spec: Experts, x: &[f64]) -> Vec<f64> {
        let (kind, h) = (kind(spec.gated), self.network.hidden);
        let before = self.linear(&format!("layer.{i}.expert.{e}.up"), x, h, kind.input_width(spec.hidden));
        let after = reference::activation_forward(kind, 1, spec.hidden, &before);
        self.linear(&format!("layer.{i}.expert.{e}.down"), &after, spec.hidden, h)
    }

    fn experts(&self, i: usize, spec: Experts, x: &[f64]) -> Vec<f64> {
        let h = self.network.hidden;
        let mut out = vec![0.0; x.len()];
        for (t, (p, chosen)) in self.route(i, spec, x).into_iter().enumerate() {
            for e in chosen {
                let y = self.expert(i, e, spec, &x[t * h..][..h]);
                (0..h).for_each(|c| out[t * h + c] += p[e] * y[c]);
            }
        }
        out
    }

    fn experts_backward(&mut self, i: usize, spec: Experts, x: &[f64], dy: &[f64]) -> Vec<f64> {
        let h = self.network.hidden;
        let mut dx = vec![0.0; x.len()];
        let mut dlogits = Vec::new();
        for (t, (p, chosen)) in self.route(i, spec, x).into_iter().enumerate() {
            let (x, dy) = (&x[t * h..][..h], &dy[t * h..][..h]);
            let mut slope = vec![0.0; spec.count];
            for e in chosen {
                let y = self.expert(i, e, spec, x);
                slope[e] = y.iter().zip(dy).map(|(y, d)| y * d).sum();
                let scaled: Vec<f64> = dy.iter().map(|d| d * p[e]).collect();
                let part = self.dense_backward(
                    &format!("layer.{i}.expert.{e}"),
                    spec.gated,
                    spec.hidden,
                    x,
                    &scaled,
                );
                add(&mut dx[t * h..][..h], &part);
            }
            let mean: f64 = p.iter().zip(&slope).map(|(p, s)| p * s).sum();
            dlogits.extend(p.iter().zip(&slope).map(|(p, s)| p * (s - mean)));
        }
        let part = self.linear_backward(&format!("layer.{i}.router"), x, &dlogits, h, spec.count);
        add(&mut dx, &part);
        dx
    }

    fn layer_backward(&mut self, i: usize, saved: LayerSaved, dy: Vec<f64>) -> Vec<f64> {
        let (layer, h) = (self.network.layers[i], self.network.hidden);
        let (qw, kw) = (layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim);
        let mut dnormed = vec![0.0; dy.len()];
        if let Some(d) = layer.dense {
            let part = self.dense_backward(&format!("layer.{i}"), d.gated, d.hidden, &saved.ffn_normed, &dy);
            add(&mut dnormed, &part);
        }
        if let Some(e) = layer.experts {
            let part = self.experts_backward(i, e, &saved.ffn_normed, &dy);
            add(&mut dnormed, &part);
        }
        let mut dmiddle = self.norm_backward(&format!("layer.{i}.ffn_norm"), &saved.middle, &dnormed);
        add(&mut dmiddle, &dy);
        let dcore = self.linear_backward(&format!("layer.{i}.out"), &saved.core, &dmiddle, qw, h);
        let shape = self.attention(&layer);
        let [dq, dk, dv] = reference::attention_backward(&shape, &saved.q, &saved.k, &saved.v, &dcore);
        let dq = self.rope(&dq, layer.heads, layer.head_dim, true);
        let dk = self.rope(&dk, layer.kv_heads, layer.head_dim, true);
        let packed: Vec<f64> = (0..self.seq)
            .flat_map(|t| {
                let row = |x: &[f64], w: usize| x[t * w..(t + 1) * w].to_vec();
                [row(&dq, qw), row(&dk, kw), row(&dv, kw)].concat()
            })
            .collect();
        let dnormed = self.linear_backward(&format!("layer.{i}.qkv"), &saved.normed, &packed, h, qw + 2 * kw);
        let mut dinput = self.norm_backward(&format!("layer.{i}.attention_norm"), &saved.input, &dnormed);
        add(&mut dinput, &dmiddle);
        dinput
    }

    fn embed(&self, ids: &[u32]) -> Vec<f64> {
        let h = self.network.hidden;
        let mut x: Vec<f64> = Vec::new();
        for (position, &id) in ids.iter().enumerate() {
            let mut row = self.p("embedding.weight")[id as usize * h..][..h].to_vec();
            if self.network.learned_positions.is_some() {
                add(&mut row, &self.p("positions.weight")[position * h..][..h]);
            }
            x.extend(row);
        }
        x
    }

    fn logits(&self, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let normed = if self.network.final_norm { self.norm("final_norm", x) } else { x.to_vec() };
        let shape = Gemm::new(self.seq, self.network.vocab, self.network.hidden).transposed_b();
        let logits = product(shape, &normed, self.p(self.head()));
        (normed, logits)
    }

    fn head(&self) -> &'static str {
        if self.network.tied { "embedding.weight" } else { "head.weight" }
    }

    /// Scores over the vocabulary behind every token, attention computed over the whole sequence at once.
    pub(crate) fn scores(&mut self, ids: &[u32]) -> Vec<f64> {
        self.seq = ids.len();
        let mut x = self.embed(ids);
        for i in 0..self.network.layers.len() {
            x = self.layer_forward(i, x).0;
        }
        self.logits(&x).1
    }

    /// Mean loss of a step of `batch` sequences; gradients accumulate.
    pub(crate) fn step(&mut self, batch: usize, seed: u64, step: u64) -> f64 {
        let (h, vocab) = (self.network.hidden, self.network.vocab);
        let mut total = 0.0;
        for sequence in 0..batch {
            let at = |ahead: usize| -> Vec<u32> {
                (0..self.seq).map(|p| token(seed, step, sequence as u64, (p + ahead) as u64, vocab)).collect()
            };
            let (ids, targets) = (at(0), at(1));
            let mut x = self.embed(&ids);
            let mut saved = Vec::new();
            for i in 0..self.network.layers.len() {
                let (output, layer) = self.layer_forward(i, x);
                saved.push(layer);
                x = output;
            }
            let head = self.head();
            let (normed, logits) = self.logits(&x);
            let shape = CrossEntropy { rows: self.seq, vocab, first: 0 };
            let stats = reference::cross_entropy_stats(&shape, &logits, &targets);
            total += stats.chunks(3).map(|s| s[1].ln() + s[0] - s[2]).sum::<f64>();
            let factor = 1.0 / (batch * self.seq) as f64;
            let dlogits = reference::cross_entropy_backward(&shape, factor, &targets, &stats, &logits);
            let dhead = product(Gemm::new(vocab, h, self.seq).transposed_a(), &dlogits, &normed);
            let mut dx = product(Gemm::new(self.seq, h, vocab), &dlogits, self.p(head));
            self.grad(head, &dhead);
            if self.network.final_norm {
                dx = self.norm_backward("final_norm", &x, &dx);
            }
            for (i, layer) in saved.into_iter().enumerate().rev() {
                dx = self.layer_backward(i, layer, dx);
            }
            for (position, &id) in ids.iter().enumerate() {
                let row = dx[position * h..][..h].to_vec();
                add(&mut self.gradients.get_mut("embedding.weight").unwrap()[id as usize * h..][..h], &row);
                if self.network.learned_positions.is_some() {
                    add(&mut self.gradients.get_mut("positions.weight").unwrap()[position * h..][..h], &row);
                }
            }
        }
        total / (batch * self.seq) as f64
    }
}

fn kind(gated: bool) -> Activation {
    if gated { Activation::SwiGlu } else { Activation::Gelu }
}
