//! Operators that move whole rows: embedding, expert permutation.

use super::math::{axpy, dot, vectorised};

pub(super) fn embedding_forward(
    width: usize,
    first: usize,
    rows_of_table: usize,
    ids: &[u32],
    table: &[f32],
    out: &mut [f32],
) {
    for (row, &id) in ids.iter().enumerate() {
        let out = &mut out[row * width..][..width];
        let entry = (id as usize).wrapping_sub(first);
        if entry < rows_of_table {
            out.copy_from_slice(&table[entry * width..][..width]);
        } else {
            out.fill(0.0);
        }
    }
}

pub(super) fn embedding_backward(
    width: usize,
    first: usize,
    rows_of_table: usize,
    ids: &[u32],
    dy: &[f32],
    dtable: &mut [f32],
) {
    for (row, &id) in ids.iter().enumerate() {
        let entry = (id as usize).wrapping_sub(first);
        if entry < rows_of_table {
            axpy(1.0, &dy[row * width..][..width], &mut dtable[entry * width..][..width]);
        }
    }
}

pub(super) fn gather(width: usize, rows: &[u32], source: &[f32], target: &mut [f32]) {
    for (i, &row) in rows.iter().enumerate() {
        target[i * width..][..width].copy_from_slice(&source[row as usize * width..][..width]);
    }
}

pub(super) fn scatter_add(
    width: usize,
    rows: &[u32],
    weights: Option<&[f32]>,
    source: &[f32],
    target: &mut [f32],
) {
    vectorised(
        #[inline(always)]
        || {
            for (i, &row) in rows.iter().enumerate() {
                let weight = weights.map_or(1.0, |w| w[i]);
                axpy(weight, &source[i * width..][..width], &mut target[row as usize * width..][..width]);
            }
        },
    );
}

pub(super) fn scatter_add_backward(
    width: usize,
    rows: &[u32],
    weights: &[f32],
    source: &[f32],
    dtarget: &[f32],
    dsource: &mut [f32],
    dweights: &mut [f32],
) {
    vectorised(
        #[inline(always)]
        || {
            for (i, &row) in rows.iter().enumerate() {
                let dtarget = &dtarget[row as usize * width..][..width];
                dweights[i] = dot(&source[i * width..][..width], dtarget);
                for (d, t) in dsource[i * width..][..width].iter_mut().zip(dtarget) {
                    *d = weights[i] * t;
                }
            }
        },
    );
}
