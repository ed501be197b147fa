//! Element-wise operators: sums, biases, activations, rotary embedding, Adam.

use super::math::{sigmoid, tanh, vectorised};
use crate::device::{Activation, Adam, Rope, Strided};
use std::cell::RefCell;

pub(super) fn add(source: &[f32], target: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || target.iter_mut().zip(source).for_each(|(t, s)| *t += s),
    );
}

pub(super) fn scale(factor: f32, buffer: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || buffer.iter_mut().for_each(|x| *x *= factor),
    );
}

pub(super) fn bias_forward(width: usize, bias: &[f32], x: &mut [f32]) {
    if width == 0 {
        return;
    }
    vectorised(
        #[inline(always)]
        || {
            for row in x.chunks_exact_mut(width) {
                row.iter_mut().zip(&bias[..width]).for_each(|(x, b)| *x += b);
            }
        },
    );
}

pub(super) fn bias_backward(width: usize, dy: &[f32], dbias: &mut [f32]) {
    if width == 0 {
        return;
    }
    vectorised(
        #[inline(always)]
        || {
            for row in dy.chunks_exact(width) {
                dbias[..width].iter_mut().zip(row).for_each(|(d, g)| *d += g);
            }
        },
    );
}

/// sqrt(2/π) and the cubic coefficient of the tanh approximation of GeLU.
const GELU: (f32, f32) = (0.797_884_6, 0.044_715);

pub(super) fn activation_forward(kind: Activation, rows: usize, width: usize, x: &[f32], y: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || match kind {
            Activation::Gelu => {
                for (y, &x) in y[..rows * width].iter_mut().zip(x) {
                    let t = tanh(GELU.0 * (x + GELU.1 * x * x * x));
                    *y = 0.5 * x * (1.0 + t);
                }
            }
            Activation::SwiGlu => {
                for row in 0..rows {
                    let (gate, up) = x[2 * row * width..][..2 * width].split_at(width);
                    for ((y, &g), &u) in y[row * width..][..width].iter_mut().zip(gate).zip(up) {
                        *y = g * sigmoid(g) * u;
                    }
                }
            }
        },
    );
}

pub(super) fn activation_backward(
    kind: Activation,
    rows: usize,
    width: usize,
    x: &[f32],
    dy: &[f32],
    dx: &mut [f32],
) {
    vectorised(
        #[inline(always)]
        || match kind {
            Activation::Gelu => {
                for ((dx, &x), &dy) in dx[..rows * width].iter_mut().zip(x).zip(dy) {
                    let t = tanh(GELU.0 * (x + GELU.1 * x * x * x));
                    let slope = GELU.0 * (1.0 + 3.0 * GELU.1 * x * x);
                    *dx = dy * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope);
                }
            }
            Activation::SwiGlu => {
                for row in 0..rows {
                    let (gate, up) = x[2 * row * width..][..2 * width].split_at(width);
                    let (dgate, dup) = dx[2 * row * width..][..2 * width].split_at_mut(width);
                    let dy = &dy[row * width..][..width];
                    for i in 0..width {
                        let s = sigmoid(gate[i]);
                        let silu = gate[i] * s;
                        dup[i] = dy[i] * silu;
                        dgate[i] = dy[i] * up[i] * (s + silu * (1.0 - s));
                    }
                }
            }
        },
    );
}

/// Sines and cosines of one kind of rotation, by position; computed once, as inference and training engines keep them.
struct Turns {
    base: f32,
    head_dim: usize,
    frequencies: Vec<f64>,
    /// `[position][head_dim / 2]`.
    rows: Vec<(f32, f32)>,
}

/// Positions that are kept (16 MiB at a head width of 128); those beyond are computed each time.
const KEPT_POSITIONS: usize = 1 << 15;

thread_local! {
    static TURNS: RefCell<Vec<Turns>> = const { RefCell::new(Vec::new()) };
}

impl Turns {
    fn new(base: f32, head_dim: usize) -> Self {
        let power = |i: usize| f64::from(base).powf(-2.0 * i as f64 / head_dim as f64);
        Self { base, head_dim, frequencies: (0..head_dim / 2).map(power).collect(), rows: Vec::new() }
    }

    fn compute(&self, position: usize) -> impl Iterator<Item = (f32, f32)> + '_ {
        self.frequencies.iter().map(move |frequency| {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            (sin as f32, cos as f32)
        })
    }

    /// Keeps the rows of all positions up to this one.
    fn reach(&mut self, position: usize) {
        for next in self.rows.len() / (self.head_dim / 2).max(1)..=position.min(KEPT_POSITIONS - 1) {
            let row: Vec<_> = self.compute(next).collect();
            self.rows.extend(row);
        }
    }
}

pub(super) fn rope(
    shape: &Rope,
    positions: &[u32],
    source: &[f32],
    from: Strided,
    target: &mut [f32],
    to: Strided,
) {
    let half = shape.head_dim / 2;
    if half == 0 {
        return;
    }
    TURNS.with_borrow_mut(|kept| {
        let known = kept.iter().position(|t| t.base == shape.base && t.head_dim == shape.head_dim);
        let index = known.unwrap_or_else(|| {
            kept.push(Turns::new(shape.base, shape.head_dim));
            kept.len() - 1
        });
        let turns = &mut kept[index];
        turns.reach(positions.iter().take(shape.tokens).copied().max().unwrap_or(0) as usize);
        let turns = &kept[index];
        let sign = if shape.inverse { -1.0_f32 } else { 1.0 };
        let mut far = Vec::new();
        vectorised(
            #[inline(always)]
            || {
                for (token, &position) in positions[..shape.tokens].iter().enumerate() {
                    let position = position as usize;
                    let row = match turns.rows.get(position * half..(position + 1) * half) {
                        Some(row) => row,
                        None => {
                            far.clear();
                            far.extend(turns.compute(position));
                            &far
                        }
                    };
                    for head in 0..shape.heads {
                        let at = token * from.stride + head * shape.head_dim + from.offset;
                        let (x, above) = source[at..at + shape.head_dim].split_at(half);
                        let at = token * to.stride + head * shape.head_dim + to.offset;
                        let (y, y_above) = target[at..at + shape.head_dim].split_at_mut(half);
                        for i in 0..half {
                            let (sin, cos) = (sign * row[i].0, row[i].1);
                            y[i] = x[i] * cos - above[i] * sin;
                            y_above[i] = x[i] * sin + above[i] * cos;
                        }
                    }
                }
            },
        );
    });
}

pub(super) fn adam(settings: &Adam, gradient: &[f32], m: &mut [f32], v: &mut [f32], parameters: &mut [f32]) {
    let first = 1.0 - f64::from(settings.beta1).powi(settings.step as i32);
    let second = 1.0 - f64::from(settings.beta2).powi(settings.step as i32);
    let (first, second) = ((1.0 / first) as f32, (1.0 / second) as f32);
    vectorised(
        #[inline(always)]
        || {
            for (((p, m), v), &g) in parameters.iter_mut().zip(m.iter_mut()).zip(v.iter_mut()).zip(gradient) {
                *m = settings.beta1 * *m + (1.0 - settings.beta1) * g;
                *v = settings.beta2 * *v + (1.0 - settings.beta2) * g * g;
                let update = (*m * first) / ((*v * second).sqrt() + settings.epsilon);
                *p -= settings.rate * (update + settings.weight_decay * *p);
            }
        },
    );
}
