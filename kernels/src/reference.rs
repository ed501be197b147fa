//! Every operator once more, written for clarity in float64: what the conformance suite compares with.

use crate::device::{Activation, Adam, Attention, CrossEntropy, Gemm, Norm, PagedAttention, Rope};

/// C = op(A)·op(B) (+ C).
pub fn gemm(shape: &Gemm, a: &[f64], b: &[f64], c: &mut [f64]) {
    for i in 0..shape.m {
        for j in 0..shape.n {
            let mut sum = 0.0;
            for l in 0..shape.k {
                let (ar, ac) = if shape.transpose_a { (l, i) } else { (i, l) };
                let (br, bc) = if shape.transpose_b { (j, l) } else { (l, j) };
                sum += a[shape.offset[0] + ar * shape.stride[0] + ac]
                    * b[shape.offset[1] + br * shape.stride[1] + bc];
            }
            let c = &mut c[shape.offset[2] + i * shape.stride[2] + j];
            *c = if shape.accumulate { *c + sum } else { sum };
        }
    }
}

/// Mean and reciprocal deviation of a row.
fn moments(shape: &Norm, x: &[f64]) -> (f64, f64) {
    let mean = if shape.rms { 0.0 } else { x.iter().sum::<f64>() / x.len() as f64 };
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
    (mean, 1.0 / (variance + f64::from(shape.epsilon)).sqrt())
}

/// Normalised rows.
pub fn norm_forward(shape: &Norm, x: &[f64], weight: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let mut y = vec![0.0; shape.rows * shape.width];
    for row in 0..shape.rows {
        let x = &x[row * shape.width..][..shape.width];
        let (mean, scale) = moments(shape, x);
        for i in 0..shape.width {
            y[row * shape.width + i] = (x[i] - mean) * scale * weight[i] + bias.map_or(0.0, |b| b[i]);
        }
    }
    y
}

/// Gradients of input, weight and bias.
pub fn norm_backward(shape: &Norm, x: &[f64], weight: &[f64], dy: &[f64]) -> [Vec<f64>; 3] {
    let width = shape.width;
    let mut dx = vec![0.0; shape.rows * width];
    let (mut dweight, mut dbias) = (vec![0.0; width], vec![0.0; width]);
    for row in 0..shape.rows {
        let x = &x[row * width..][..width];
        let dy = &dy[row * width..][..width];
        let (mean, scale) = moments(shape, x);
        let normal: Vec<f64> = x.iter().map(|x| (x - mean) * scale).collect();
        let g: Vec<f64> = dy.iter().zip(weight).map(|(d, w)| d * w).collect();
        let average = if shape.rms { 0.0 } else { g.iter().sum::<f64>() / width as f64 };
        let along = g.iter().zip(&normal).map(|(g, n)| g * n).sum::<f64>() / width as f64;
        for i in 0..width {
            dx[row * width + i] = scale * (g[i] - average - normal[i] * along);
            dweight[i] += dy[i] * normal[i];
            dbias[i] += dy[i];
        }
    }
    [dx, dweight, dbias]
}

/// Rotated heads, densely stored.
pub fn rope(shape: &Rope, positions: &[u32], x: &[f64]) -> Vec<f64> {
    let (dim, half) = (shape.head_dim, shape.head_dim / 2);
    let mut y = vec![0.0; x.len()];
    for (token, &position) in positions.iter().enumerate().take(shape.tokens) {
        for head in 0..shape.heads {
            let at = (token * shape.heads + head) * dim;
            for i in 0..half {
                let angle = f64::from(position) * f64::from(shape.base).powf(-2.0 * i as f64 / dim as f64);
                let (sin, cos) = if shape.inverse { (-angle).sin_cos() } else { angle.sin_cos() };
                y[at + i] = x[at + i] * cos - x[at + i + half] * sin;
                y[at + i + half] = x[at + i] * sin + x[at + i + half] * cos;
            }
        }
    }
    y
}

/// Activated rows.
pub fn activation_forward(kind: Activation, rows: usize, width: usize, x: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; rows * width];
    for row in 0..rows {
        for i in 0..width {
            y[row * width + i] = match kind {
                Activation::Gelu => gelu(x[row * width + i]),
                Activation::SwiGlu => {
                    let gate = x[2 * row * width + i];
                    gate / (1.0 + (-gate).exp()) * x[(2 * row + 1) * width + i]
                }
            };
        }
    }
    y
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + (gelu_factor() * (x + 0.044_715 * x.powi(3))).tanh())
}

fn gelu_factor() -> f64 {
    (2.0 / std::f64::consts::PI).sqrt()
}

/// Gradient of the activation's input.
pub fn activation_backward(kind: Activation, rows: usize, width: usize, x: &[f64], dy: &[f64]) -> Vec<f64> {
    let mut dx = vec![0.0; rows * kind.input_width(width)];
    for row in 0..rows {
        for i in 0..width {
            let dy = dy[row * width + i];
            match kind {
                Activation::Gelu => {
                    let x = x[row * width + i];
                    let t = (gelu_factor() * (x + 0.044_715 * x.powi(3))).tanh();
                    let slope = gelu_factor() * (1.0 + 3.0 * 0.044_715 * x * x);
                    dx[row * width + i] = dy * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope);
                }
                Activation::SwiGlu => {
                    let (gate, up) = (x[2 * row * width + i], x[(2 * row + 1) * width + i]);
                    let s = 1.0 / (1.0 + (-gate).exp());
                    dx[2 * row * width + i] = dy * up * (s + gate * s * (1.0 - s));
                    dx[(2 * row + 1) * width + i] = dy * gate * s;
                }
            }
        }
    }
    dx
}

/// Maximum, sum of exponentials and target logit per row.
pub fn cross_entropy_stats(shape: &CrossEntropy, logits: &[f64], targets: &[u32]) -> Vec<f64> {
    let mut stats = Vec::with_capacity(3 * shape.rows);
    for row in 0..shape.rows {
        let x = &logits[row * shape.vocab..][..shape.vocab];
        let top = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let target = (targets[row] as usize).checked_sub(shape.first).and_then(|t| x.get(t));
        stats.extend([top, x.iter().map(|x| (x - top).exp()).sum(), target.copied().unwrap_or(0.0)]);
    }
    stats
}

/// `(softmax - onehot)·factor`.
pub fn cross_entropy_backward(
    shape: &CrossEntropy,
    factor: f64,
    targets: &[u32],
    stats: &[f64],
    logits: &[f64],
) -> Vec<f64> {
    let mut out = vec![0.0; shape.rows * shape.vocab];
    for row in 0..shape.rows {
        for i in 0..shape.vocab {
            let p = (logits[row * shape.vocab + i] - stats[3 * row]).exp() / stats[3 * row + 1];
            let hit = targets[row] as usize == shape.first + i;
            out[row * shape.vocab + i] = factor * (p - f64::from(u8::from(hit)));
        }
    }
    out
}

/// Probabilities of one query row, and its log-sum-exp.
fn attention_row(
    shape: &Attention,
    q: &[f64],
    k: &[f64],
    sequence: usize,
    i: usize,
    head: usize,
) -> (Vec<f64>, f64) {
    let dim = shape.head_dim;
    let kv_head = head / (shape.heads / shape.kv_heads);
    let q_at = ((shape.q_first + sequence * shape.q_pitch + i) * shape.heads + head) * dim;
    let scores: Vec<f64> = (0..shape.visible(i))
        .map(|j| {
            let k_at = ((shape.kv_first + sequence * shape.kv_pitch + j) * shape.kv_heads + kv_head) * dim;
            f64::from(shape.scale) * (0..dim).map(|d| q[q_at + d] * k[k_at + d]).sum::<f64>()
        })
        .collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
    let lse = if scores.is_empty() { f64::NEG_INFINITY } else { top + total.ln() };
    (scores.iter().map(|s| (s - lse).exp()).collect(), lse)
}

/// Output and log-sum-exp of attention; rows outside the block stay zero.
pub fn attention_forward(shape: &Attention, q: &[f64], k: &[f64], v: &[f64]) -> [Vec<f64>; 2] {
    let dim = shape.head_dim;
    let group = shape.heads / shape.kv_heads;
    let mut out = vec![0.0; shape.q_tokens() * shape.heads * dim];
    let mut lse = vec![0.0; shape.q_tokens() * shape.heads];
    for sequence in 0..shape.batch {
        for head in 0..shape.heads {
            for i in 0..shape.seq_q {
                let (p, log_sum) = attention_row(shape, q, k, sequence, i, head);
                let token = shape.q_first + sequence * shape.q_pitch + i;
                lse[token * shape.heads + head] = log_sum;
                for (j, p) in p.iter().enumerate() {
                    let v_at = ((shape.kv_first + sequence * shape.kv_pitch + j) * shape.kv_heads
                        + head / group)
                        * dim;
                    for d in 0..dim {
                        out[(token * shape.heads + head) * dim + d] += p * v[v_at + d];
                    }
                }
            }
        }
    }
    [out, lse]
}

/// Gradients of queries, keys and values of a block that is the whole of its rows' attention.
pub fn attention_backward(shape: &Attention, q: &[f64], k: &[f64], v: &[f64], dout: &[f64]) -> [Vec<f64>; 3] {
    let dim = shape.head_dim;
    let group = shape.heads / shape.kv_heads;
    let mut dq = vec![0.0; shape.q_tokens() * shape.heads * dim];
    let mut dk = vec![0.0; shape.kv_tokens() * shape.kv_heads * dim];
    let mut dv = dk.clone();
    for sequence in 0..shape.batch {
        for head in 0..shape.heads {
            for i in 0..shape.seq_q {
                let (p, _) = attention_row(shape, q, k, sequence, i, head);
                let q_at = ((shape.q_first + sequence * shape.q_pitch + i) * shape.heads + head) * dim;
                let kv = |j: usize| {
                    ((shape.kv_first + sequence * shape.kv_pitch + j) * shape.kv_heads + head / group) * dim
                };
                let dp: Vec<f64> =
                    (0..p.len()).map(|j| (0..dim).map(|d| dout[q_at + d] * v[kv(j) + d]).sum()).collect();
                let delta: f64 = p.iter().zip(&dp).map(|(p, d)| p * d).sum();
                for j in 0..p.len() {
                    let ds = p[j] * (dp[j] - delta) * f64::from(shape.scale);
                    for d in 0..dim {
                        dq[q_at + d] += ds * k[kv(j) + d];
                        dk[kv(j) + d] += ds * q[q_at + d];
                        dv[kv(j) + d] += p[j] * dout[q_at + d];
                    }
                }
            }
        }
    }
    [dq, dk, dv]
}

/// Decode attention over pages.
pub fn paged_attention(
    shape: &PagedAttention,
    q: &[f64],
    k_cache: &[f64],
    v_cache: &[f64],
    block_table: &[u32],
    lengths: &[u32],
) -> Vec<f64> {
    let dim = shape.head_dim;
    let group = shape.heads / shape.kv_heads;
    let mut out = vec![0.0; shape.batch * shape.heads * dim];
    for sequence in 0..shape.batch {
        for head in 0..shape.heads {
            let at = (sequence * shape.heads + head) * dim;
            let slot = |token: usize| {
                let page = block_table[sequence * shape.max_pages + token / shape.page] as usize;
                ((page * shape.page + token % shape.page) * shape.kv_heads + head / group) * dim
            };
            let length = lengths[sequence] as usize;
            let scores: Vec<f64> = (0..length)
                .map(|t| {
                    f64::from(shape.scale) * (0..dim).map(|d| q[at + d] * k_cache[slot(t) + d]).sum::<f64>()
                })
                .collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
            for (t, s) in scores.iter().enumerate() {
                for d in 0..dim {
                    out[at + d] += (s - top).exp() / total * v_cache[slot(t) + d];
                }
            }
        }
    }
    out
}

/// One Adam update; moments are updated in place, the new parameters returned.
pub fn adam(settings: &Adam, gradient: &[f64], m: &mut [f64], v: &mut [f64], parameters: &[f64]) -> Vec<f64> {
    let (b1, b2) = (f64::from(settings.beta1), f64::from(settings.beta2));
    let (rate, decay) = (f64::from(settings.rate), f64::from(settings.weight_decay));
    let mut out = Vec::with_capacity(parameters.len());
    for (i, p) in parameters.iter().enumerate() {
        m[i] = b1 * m[i] + (1.0 - b1) * gradient[i];
        v[i] = b2 * v[i] + (1.0 - b2) * gradient[i] * gradient[i];
        let first = m[i] / (1.0 - b1.powi(settings.step as i32));
        let second = v[i] / (1.0 - b2.powi(settings.step as i32));
        out.push(p - rate * (first / (second.sqrt() + f64::from(settings.epsilon)) + decay * p));
    }
    out
}
