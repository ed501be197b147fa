//! Matrix products through the `gemm` crate.
#![expect(unsafe_code, reason = "the gemm crate takes raw pointers")]

use super::math::{axpy, dot, vectorised};
use crate::device::Gemm;

/// A matrix inside a slice: strides in elements along columns and rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    pub(super) offset: usize,
    pub(super) row: usize,
    pub(super) column: usize,
}

impl View {
    /// Row-major with rows `stride` apart, read transposed or not.
    pub(super) fn new(offset: usize, stride: usize, transposed: bool) -> Self {
        if transposed {
            Self { offset, row: 1, column: stride }
        } else {
            Self { offset, row: stride, column: 1 }
        }
    }
    fn last(&self, rows: usize, columns: usize) -> usize {
        self.offset + (rows - 1) * self.row + (columns - 1) * self.column
    }
}

/// `C = keep·C + factor·A·B` with `keep` 0 or 1.
pub(super) fn product(
    [m, n, k]: [usize; 3],
    factor: f32,
    (a, a_view): (&[f32], View),
    (b, b_view): (&[f32], View),
    accumulate: bool,
    (c, c_view): (&mut [f32], View),
) {
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if !accumulate {
            for i in 0..m {
                for j in 0..n {
                    c[c_view.offset + i * c_view.row + j * c_view.column] = 0.0;
                }
            }
        }
        return;
    }
    assert!(a_view.last(m, k) < a.len() && b_view.last(k, n) < b.len() && c_view.last(m, n) < c.len());
    // SAFETY: the assertion above keeps every element the strides can reach inside its slice, and C is borrowed
    // mutably, so it cannot overlap A or B.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr().add(c_view.offset),
            c_view.column as isize,
            c_view.row as isize,
            accumulate,
            a.as_ptr().add(a_view.offset),
            a_view.column as isize,
            a_view.row as isize,
            b.as_ptr().add(b_view.offset),
            b_view.column as isize,
            b_view.row as isize,
            1.0_f32,
            factor,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Rows up to which the library is not asked: it packs all of B first, and transposes it where it lies so, which is most
/// of the time of so few rows (decoding).
const FEW_ROWS: usize = 16;
/// Columns that are taken at once: the rows of C and four of B stay in the nearest cache.
const COLUMNS: usize = 256;

/// `C = keep·C + A·B` of a few rows, reading B once in the order in which it lies.
fn few_rows(shape: &Gemm, a: &[f32], b: &[f32], c: &mut [f32]) {
    let [a_from, b_from, c_from] = shape.offset;
    let [a_stride, b_stride, c_stride] = shape.stride;
    vectorised(
        #[inline(always)]
        || {
            for first in (0..shape.n).step_by(COLUMNS) {
                let width = COLUMNS.min(shape.n - first);
                let b = |k: usize| &b[b_from + k * b_stride + first..][..width];
                for row in 0..shape.m {
                    if !shape.accumulate {
                        c[c_from + row * c_stride + first..][..width].fill(0.0);
                    }
                }
                let whole = shape.k / 4 * 4;
                for k in (0..whole).step_by(4) {
                    let [b0, b1, b2, b3] = [b(k), b(k + 1), b(k + 2), b(k + 3)];
                    for row in 0..shape.m {
                        let a = &a[a_from + row * a_stride + k..][..4];
                        let c = &mut c[c_from + row * c_stride + first..][..width];
                        let columns = c.iter_mut().zip(b0).zip(b1).zip(b2).zip(b3);
                        for ((((c, b0), b1), b2), b3) in columns {
                            *c += (a[0] * b0 + a[1] * b1) + (a[2] * b2 + a[3] * b3);
                        }
                    }
                }
                for k in whole..shape.k {
                    for row in 0..shape.m {
                        let c = &mut c[c_from + row * c_stride + first..][..width];
                        axpy(a[a_from + row * a_stride + k], b(k), c);
                    }
                }
            }
        },
    );
}

/// `C = keep·C + A·Bᵀ` by scalar products of stored rows.
fn scalar_products(shape: &Gemm, a: &[f32], b: &[f32], c: &mut [f32]) {
    let [a_from, b_from, c_from] = shape.offset;
    let [a_stride, b_stride, c_stride] = shape.stride;
    vectorised(
        #[inline(always)]
        || {
            for column in 0..shape.n {
                let b = &b[b_from + column * b_stride..][..shape.k];
                for row in 0..shape.m {
                    let sum = dot(&a[a_from + row * a_stride..][..shape.k], b);
                    let c = &mut c[c_from + row * c_stride + column];
                    *c = if shape.accumulate { *c + sum } else { sum };
                }
            }
        },
    );
}

pub(super) fn gemm(shape: &Gemm, a: &[f32], b: &[f32], c: &mut [f32]) {
    if shape.transpose_b && !shape.transpose_a && shape.m <= FEW_ROWS {
        return scalar_products(shape, a, b, c);
    }
    if !shape.transpose_b && !shape.transpose_a && shape.m <= FEW_ROWS {
        return few_rows(shape, a, b, c);
    }
    product(
        [shape.m, shape.n, shape.k],
        1.0,
        (a, View::new(shape.offset[0], shape.stride[0], shape.transpose_a)),
        (b, View::new(shape.offset[1], shape.stride[1], shape.transpose_b)),
        shape.accumulate,
        (c, View::new(shape.offset[2], shape.stride[2], false)),
    );
}
