//! RMS and layer normalisation, forward and backward, one pass per row.

use super::math::{sum, vectorised};
use crate::device::Norm;

pub(super) fn forward(
    shape: &Norm,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
    stats: &mut [f32],
) {
    vectorised(
        #[inline(always)]
        || {
            let width = shape.width;
            let weight = &weight[..width];
            for row in 0..shape.rows {
                let x = &x[row * width..][..width];
                let y = &mut y[row * width..][..width];
                let mean = if shape.rms { 0.0 } else { sum([x], |[x]| x) / width as f32 };
                let variance = sum([x], |[x]| (x - mean) * (x - mean)) / width as f32;
                let scale = 1.0 / (variance + shape.epsilon).sqrt();
                stats[2 * row] = mean;
                stats[2 * row + 1] = scale;
                for i in 0..width {
                    y[i] = (x[i] - mean) * scale * weight[i];
                }
                if let Some(bias) = bias {
                    for (y, b) in y.iter_mut().zip(&bias[..width]) {
                        *y += b;
                    }
                }
            }
        },
    );
}

pub(super) fn backward(
    shape: &Norm,
    x: &[f32],
    weight: &[f32],
    stats: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    dweight: &mut [f32],
    mut dbias: Option<&mut [f32]>,
) {
    vectorised(
        #[inline(always)]
        || {
            let width = shape.width;
            let (weight, dweight) = (&weight[..width], &mut dweight[..width]);
            for row in 0..shape.rows {
                let x = &x[row * width..][..width];
                let dy = &dy[row * width..][..width];
                let dx = &mut dx[row * width..][..width];
                let (mean, scale) = (stats[2 * row], stats[2 * row + 1]);
                let along = sum([x, dy, weight], |[x, dy, w]| dy * w * (x - mean)) * scale / width as f32;
                let average =
                    if shape.rms { 0.0 } else { sum([dy, weight], |[dy, w]| dy * w) / width as f32 };
                for i in 0..width {
                    let normal = (x[i] - mean) * scale;
                    dx[i] = scale * (dy[i] * weight[i] - average - normal * along);
                    dweight[i] += dy[i] * normal;
                }
                if let Some(dbias) = dbias.as_deref_mut() {
                    for (d, g) in dbias[..width].iter_mut().zip(dy) {
                        *d += g;
                    }
                }
            }
        },
    );
}
