//! Tiled attention with an online softmax (Dao et al. 2022, algorithms 1 and 4; Dao 2023 for the loop order).
//!
//! Query and key tiles of 64 tokens; the score tile lives in the cache, its two products run through the same GEMM
//! as everything else. Tiles that the causal mask empties are skipped.

use super::math::{axpy, dot, exp, vectorised};
use super::matmul::{View, product};
use crate::device::{Attention, PagedAttention};

const TILE: usize = 64;

/// Where the head's first element of a token lies.
fn base(
    first: usize,
    pitch: usize,
    sequence: usize,
    token: usize,
    row: usize,
    head: usize,
    dim: usize,
) -> usize {
    (first + sequence * pitch + token) * row + head * dim
}

pub(super) fn forward(shape: &Attention, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32], lse: &mut [f32]) {
    let dim = shape.head_dim;
    let (q_row, kv_row) = (shape.heads * dim, shape.kv_heads * dim);
    let group = shape.heads / shape.kv_heads.max(1);
    let mut scores = vec![0.0_f32; TILE * TILE];
    let mut partial = vec![0.0_f32; TILE * dim];
    for sequence in 0..shape.batch {
        for head in 0..shape.heads {
            for q_tile in (0..shape.seq_q).step_by(TILE) {
                let rows = TILE.min(shape.seq_q - q_tile);
                let visible = shape.visible(q_tile + rows - 1);
                let q_at = base(shape.q_first, shape.q_pitch, sequence, q_tile, q_row, head, dim);
                let mut top = [f32::NEG_INFINITY; TILE];
                let mut total = [0.0_f32; TILE];
                partial.fill(0.0);
                for kv_tile in (0..visible).step_by(TILE) {
                    let columns = TILE.min(visible - kv_tile);
                    let kv_at =
                        base(shape.kv_first, shape.kv_pitch, sequence, kv_tile, kv_row, head / group, dim);
                    product(
                        [rows, columns, dim],
                        shape.scale,
                        (q, View::new(q_at, q_row, false)),
                        (k, View::new(kv_at, kv_row, true)),
                        false,
                        (&mut scores, View::new(0, TILE, false)),
                    );
                    vectorised(
                        #[inline(always)]
                        || {
                            for i in 0..rows {
                                let seen = shape.visible(q_tile + i).saturating_sub(kv_tile).min(columns);
                                let (live, masked) = scores[i * TILE..][..columns].split_at_mut(seen);
                                masked.fill(0.0);
                                if seen == 0 {
                                    continue;
                                }
                                let new_top = live.iter().copied().fold(top[i], f32::max);
                                let mut sum = 0.0;
                                for s in live.iter_mut() {
                                    *s = exp(*s - new_top);
                                }
                                for s in live.iter() {
                                    sum += s;
                                }
                                let shrink =
                                    if top[i] == f32::NEG_INFINITY { 0.0 } else { exp(top[i] - new_top) };
                                total[i] = total[i] * shrink + sum;
                                top[i] = new_top;
                                partial[i * dim..][..dim].iter_mut().for_each(|o| *o *= shrink);
                            }
                        },
                    );
                    product(
                        [rows, dim, columns],
                        1.0,
                        (&scores, View::new(0, TILE, false)),
                        (v, View::new(kv_at, kv_row, false)),
                        true,
                        (&mut partial, View::new(0, dim, false)),
                    );
                }
                for i in 0..rows {
                    let at = q_at + i * q_row;
                    let lse_at = (at - head * dim) / dim + head;
                    let (o, partial) = (&mut out[at..at + dim], &partial[i * dim..][..dim]);
                    let new = if total[i] > 0.0 { top[i] + total[i].ln() } else { f32::NEG_INFINITY };
                    // A NaN score must not pass for an empty row.
                    let new = if total[i].is_nan() { f32::NAN } else { new };
                    let old = if shape.merge { lse[lse_at] } else { f32::NEG_INFINITY };
                    let both = log_add(old, new);
                    let keep = if old == f32::NEG_INFINITY { 0.0 } else { (old - both).exp() };
                    let take = if new == f32::NEG_INFINITY { 0.0 } else { (new - both).exp() / total[i] };
                    for (o, p) in o.iter_mut().zip(partial) {
                        let before = if keep == 0.0 { 0.0 } else { *o * keep };
                        *o = before + p * take;
                    }
                    lse[lse_at] = both;
                }
            }
        }
    }
}

fn log_add(a: f32, b: f32) -> f32 {
    if a == f32::NEG_INFINITY {
        b
    } else if b == f32::NEG_INFINITY {
        a
    } else {
        let top = a.max(b);
        top + ((a - top).exp() + (b - top).exp()).ln()
    }
}

pub(super) fn backward(
    shape: &Attention,
    [q, k, v, out, lse, dout]: [&[f32]; 6],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    let dim = shape.head_dim;
    let (q_row, kv_row) = (shape.heads * dim, shape.kv_heads * dim);
    let group = shape.heads / shape.kv_heads.max(1);
    let mut scores = vec![0.0_f32; TILE * TILE];
    let mut slopes = vec![0.0_f32; TILE * TILE];
    let mut delta = vec![0.0_f32; shape.seq_q];
    for sequence in 0..shape.batch {
        for head in 0..shape.heads {
            for (i, delta) in delta.iter_mut().enumerate() {
                let at = base(shape.q_first, shape.q_pitch, sequence, i, q_row, head, dim);
                *delta = dot(&out[at..at + dim], &dout[at..at + dim]);
            }
            for kv_tile in (0..shape.seq_kv).step_by(TILE) {
                let kv_at =
                    base(shape.kv_first, shape.kv_pitch, sequence, kv_tile, kv_row, head / group, dim);
                for q_tile in (0..shape.seq_q).step_by(TILE) {
                    let rows = TILE.min(shape.seq_q - q_tile);
                    let columns = TILE
                        .min(shape.visible(q_tile + rows - 1).saturating_sub(kv_tile))
                        .min(shape.seq_kv - kv_tile);
                    if columns == 0 {
                        continue;
                    }
                    let q_at = base(shape.q_first, shape.q_pitch, sequence, q_tile, q_row, head, dim);
                    let tile = View::new(0, TILE, false);
                    let q_view = View::new(q_at, q_row, false);
                    product(
                        [rows, columns, dim],
                        shape.scale,
                        (q, q_view),
                        (k, View::new(kv_at, kv_row, true)),
                        false,
                        (&mut scores, tile),
                    );
                    product(
                        [rows, columns, dim],
                        1.0,
                        (dout, q_view),
                        (v, View::new(kv_at, kv_row, true)),
                        false,
                        (&mut slopes, tile),
                    );
                    vectorised(
                        #[inline(always)]
                        || {
                            for i in 0..rows {
                                let seen = shape.visible(q_tile + i).saturating_sub(kv_tile).min(columns);
                                let log_sum = lse[(q_at - head * dim) / dim + head + i * shape.heads];
                                let delta = delta[q_tile + i];
                                let (p, p_masked) = scores[i * TILE..][..columns].split_at_mut(seen);
                                let (d, d_masked) = slopes[i * TILE..][..columns].split_at_mut(seen);
                                p_masked.fill(0.0);
                                d_masked.fill(0.0);
                                for (p, d) in p.iter_mut().zip(d) {
                                    *p = exp(*p - log_sum);
                                    *d = *p * (*d - delta);
                                }
                            }
                        },
                    );
                    let transposed = View::new(0, TILE, true);
                    let kv_view = View::new(kv_at, kv_row, false);
                    product(
                        [columns, dim, rows],
                        1.0,
                        (&scores, transposed),
                        (dout, q_view),
                        true,
                        (dv, kv_view),
                    );
                    product(
                        [columns, dim, rows],
                        shape.scale,
                        (&slopes, transposed),
                        (q, q_view),
                        true,
                        (dk, kv_view),
                    );
                    product(
                        [rows, dim, columns],
                        shape.scale,
                        (&slopes, tile),
                        (k, kv_view),
                        true,
                        (dq, q_view),
                    );
                }
            }
        }
    }
}

pub(super) fn paged(
    shape: &PagedAttention,
    q: &[f32],
    k_cache: &[f32],
    v_cache: &[f32],
    block_table: &[u32],
    lengths: &[u32],
    out: &mut [f32],
) {
    let dim = shape.head_dim;
    let group = shape.heads / shape.kv_heads.max(1);
    let longest = lengths.iter().take(shape.batch).copied().max().unwrap_or(0) as usize;
    let mut scores = vec![0.0_f32; longest];
    for sequence in 0..shape.batch {
        let length = lengths[sequence] as usize;
        let pages = &block_table[sequence * shape.max_pages..][..shape.max_pages];
        let slot = |token: usize, head: usize| {
            let page = pages[token / shape.page] as usize;
            ((page * shape.page + token % shape.page) * shape.kv_heads + head) * dim
        };
        for head in 0..shape.heads {
            let at = (sequence * shape.heads + head) * dim;
            vectorised(
                #[inline(always)]
                || {
                    let q = &q[at..at + dim];
                    let scores = &mut scores[..length];
                    let mut top = f32::NEG_INFINITY;
                    for (token, score) in scores.iter_mut().enumerate() {
                        *score = shape.scale * dot(q, &k_cache[slot(token, head / group)..][..dim]);
                        top = top.max(*score);
                    }
                    let mut total = 0.0;
                    let out = &mut out[at..at + dim];
                    out.fill(0.0);
                    for (token, score) in scores.iter().enumerate() {
                        let p = exp(score - top);
                        total += p;
                        axpy(p, &v_cache[slot(token, head / group)..][..dim], out);
                    }
                    if total > 0.0 {
                        out.iter_mut().for_each(|o| *o /= total);
                    }
                },
            );
        }
    }
}
