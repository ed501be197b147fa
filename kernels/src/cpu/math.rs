//! Vectorisable scalar functions and reductions.

/// Runs a loop compiled for what the processor has (AVX-512, AVX2 or the baseline).
///
/// The body is called as a [`FnMut`]: one that could run again reaches a [`FnOnce`] only through an adapter, which compilers
/// leave out of line where the body is long, and then compile for the baseline.
#[inline(always)]
pub(super) fn vectorised(body: impl FnMut()) {
    pulp::Arch::new().dispatch(Body(body));
}

struct Body<F>(F);

impl<F: FnMut()> pulp::NullaryFnOnce for Body<F> {
    type Output = ();
    #[inline(always)]
    fn call(mut self) {
        (self.0)();
    }
}

/// Lanes of the reductions: two AVX-512 registers, four AVX2 ones.
pub(super) const LANES: usize = 16;

/// e^x within about 2 units in the last place; results below the smallest normal number become it.
///
/// Range reduction by ln 2 in two parts and a degree-6 polynomial (the classic single-precision Cephes scheme),
/// branch-free so that loops over it vectorise.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to a whole number in the low mantissa bits
    let x = x.clamp(-87.3, 88.3);
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4_f32;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5.000_000_3e-1;
    let y = p * r * r + r + 1.0;
    let exponent = (shifted.to_bits().wrapping_sub(MAGIC.to_bits()).wrapping_add(127)) << 23;
    y * f32::from_bits(exponent)
}

/// Logistic function.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Hyperbolic tangent through the exponential; absolute error about 1e-7.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// Sum of `f` over equally long slices, in lanes. Whole chunks have a length that is known, so the loop over them vectorises.
#[inline(always)]
pub(super) fn sum<const N: usize>(slices: [&[f32]; N], f: impl Fn([f32; N]) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let parts = slices.map(|s| s.as_chunks::<LANES>());
    let whole = parts.iter().map(|p| p.0.len()).min().unwrap_or(0);
    for chunk in 0..whole {
        let chunks = parts.map(|p| &p.0[chunk]);
        for (lane, total) in lanes.iter_mut().enumerate() {
            *total += f(chunks.map(|c| c[lane]));
        }
    }
    let rest = parts.iter().map(|p| p.1.len()).min().unwrap_or(0);
    let mut total: f32 = (0..rest).map(|i| f(parts.map(|p| p.1[i]))).sum();
    for lane in lanes {
        total += lane;
    }
    total
}

/// Scalar product of equally long slices.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    lanes.iter().sum::<f32>() + tail
}

/// `y += a·x`.
#[inline(always)]
pub(super) fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn exp_matches_float64() {
        let mut worst = 0.0_f64;
        for i in -860..880 {
            let x = i as f32 * 0.1 + 0.013;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(super::exp(x)) / exact - 1.0).abs());
        }
        assert!(worst < 3e-7, "{worst}");
        assert!(super::exp(f32::NEG_INFINITY) < 1e-37);
        assert!(super::exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_saturates() {
        assert_eq!(super::tanh(60.0), 1.0);
        assert!((super::tanh(-60.0) + 1.0).abs() < 1e-6);
    }
}
