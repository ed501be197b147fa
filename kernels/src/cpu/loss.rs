//! Softmax cross-entropy over a slice of the vocabulary.

use super::math::{LANES, exp, sum, vectorised};
use crate::device::CrossEntropy;

pub(super) fn stats(shape: &CrossEntropy, logits: &[f32], targets: &[u32], stats: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            for row in 0..shape.rows {
                let x = &logits[row * shape.vocab..][..shape.vocab];
                let mut lanes = [f32::NEG_INFINITY; LANES];
                let chunks = x.chunks_exact(LANES);
                let mut top = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, larger);
                for chunk in chunks {
                    for lane in 0..LANES {
                        lanes[lane] = larger(lanes[lane], chunk[lane]);
                    }
                }
                for lane in lanes {
                    top = larger(top, lane);
                }
                let target = (targets[row] as usize).wrapping_sub(shape.first);
                stats[3 * row] = top;
                stats[3 * row + 1] = sum([x], |[x]| exp(x - top));
                stats[3 * row + 2] = x.get(target).copied().unwrap_or(0.0);
            }
        },
    );
}

/// Maximum that lets a NaN through.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

pub(super) fn backward(
    shape: &CrossEntropy,
    factor: f32,
    targets: &[u32],
    stats: &[f32],
    logits: &mut [f32],
) {
    vectorised(
        #[inline(always)]
        || {
            for row in 0..shape.rows {
                let x = &mut logits[row * shape.vocab..][..shape.vocab];
                let (top, scale) = (stats[3 * row], factor / stats[3 * row + 1]);
                for x in x.iter_mut() {
                    *x = exp(*x - top) * scale;
                }
                if let Some(x) = x.get_mut((targets[row] as usize).wrapping_sub(shape.first)) {
                    *x -= factor;
                }
            }
        },
    );
}
