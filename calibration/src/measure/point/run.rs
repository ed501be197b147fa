//! Runs one point on a device and times it.
//!
//! Inputs are random and rotate among several sets when they would fit in a cache; the first call is a warm-up.

use super::{Point, Role};
use crate::measure::{MeasureError, Runners, host, stream};
use psim_hardware::DType;
use psim_kernels::{
    Activation, Adam, Attention, CrossEntropy, Device, Gemm, Micro, Norm, PagedAttention, Rope, Strided,
    Uniform,
};
use std::time::Instant;

/// Bytes that rotating inputs should exceed where the device does not tell the size of its last cache, so that repeats do
/// not find everything in the nearest one.
pub(in crate::measure) const ROTATE: u64 = 4 << 20;
/// Sets of inputs at most: small calls need many to exceed a cache.
const SETS: (u64, u64) = (8, 4096);
/// Most repeats, and fewest where a call fits the allowance (one is kept of a call that does not).
const REPEATS: (usize, usize) = (15, 3);

/// Bytes a memory-bound class moves per element, forward and backward together, and its kernels.
pub fn memory_traffic(class: &str, element: f64) -> Option<(f64, u32)> {
    Some(match class {
        // Forward reads x and writes y; backward reads x and dy and writes dx.
        "norm" => (5.0 * element, 2),
        // SwiGLU per output element: forward 2 + 1, backward 2 + 1 + 2.
        "activation" => (8.0 * element, 2),
        // GeLU: forward 1 + 1, backward 1 + 1 + 1.
        "gelu" => (5.0 * element, 2),
        "elementwise" => (3.0 * element, 1),
        // Read, write; a plain copy likewise.
        "rope" | "default" => (2.0 * element, 1),
        "cross-entropy" => (3.0 * element, 2),
        // Parameter, gradient, two moments read; parameter and moments written, fp32.
        "optimizer" => (28.0, 1),
        // Look-up and gradient into the fp32 table; gather and weighted scatter into fp32.
        "embedding" | "permute" => (2.0 * element + element + 8.0, 2),
        _ => return None,
    })
}

/// A small generator for inputs (xorshift); quality does not matter, zeros do.
struct Random(u64);

impl Random {
    fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len)
            .map(|_| {
                self.0 ^= self.0 << 13;
                self.0 ^= self.0 >> 7;
                self.0 ^= self.0 << 17;
                (self.0 >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
            })
            .collect()
    }
}

struct Setup<'a, D: Device> {
    device: &'a D,
    dtype: DType,
    random: Random,
    /// Last cache of the device, where it tells.
    cache: Option<u64>,
}

impl<D: Device> Setup<'_, D> {
    fn input(&mut self, dtype: DType, len: usize) -> Result<D::Buffer, MeasureError> {
        let mut buffer = self.device.alloc(dtype, len)?;
        if self.cache.is_some() {
            // Many sets: the device fills them itself.
            let key = u64::from(self.random.values(1)[0].to_bits());
            let to = Strided::new(0, len);
            let shape = Uniform { key, first: 0, pitch: len, rows: 1, width: len, to, scale: 1.0 };
            self.device.uniform(&shape, &mut buffer)?;
        } else {
            self.device.write(&mut buffer, 0, &self.random.values(len))?;
        }
        Ok(buffer)
    }

    /// Sets of inputs of so many bytes that together exceed the last cache by a quarter.
    fn sets(&self, bytes: u64) -> usize {
        let (rotate, most) = match self.cache {
            Some(cache) => (ROTATE.max(cache + cache / 4), SETS.1),
            None => (ROTATE, SETS.0),
        };
        rotate.div_ceil(bytes.max(1)).clamp(1, most) as usize
    }

    /// The same for operators whose inputs a processor has just written and finds in its caches: there one set.
    fn fresh(&self, bytes: u64) -> usize {
        if self.cache.is_some() { self.sets(bytes) } else { 1 }
    }

    /// So many sets of inputs.
    fn rotated<T>(
        &mut self,
        count: usize,
        mut build: impl FnMut(&mut Self) -> Result<T, MeasureError>,
    ) -> Result<Vec<T>, MeasureError> {
        (0..count).map(|_| build(self)).collect()
    }
}

/// Seconds of each repeat of a point, within about `allowance` seconds.
///
/// # Errors
/// When the device or a collective fails.
pub fn measure<D: Micro>(
    device: &D,
    point: &Point,
    seed: u64,
    allowance: f64,
    runners: Option<&Runners>,
) -> Result<Vec<f64>, MeasureError> {
    let dtype = *device.formats().last().unwrap_or(&DType::Fp32);
    let mut setup = Setup { device, dtype, random: Random(seed | 1), cache: device.last_cache() };
    match point {
        Point::Gemm { m, n, k, role } => gemm(&mut setup, [*m, *n, *k], *role, allowance),
        Point::Attention { batch, seq, heads, head_dim, backward } => {
            attention(&mut setup, [*batch, *seq, *heads, *head_dim].map(|x| x as usize), *backward, allowance)
        }
        Point::Decode { batch, length, heads, head_dim } => {
            decode(&mut setup, [*batch, *length, *heads, *head_dim].map(|x| x as usize), allowance)
        }
        Point::Memory { class, rows, width } => {
            memory(&mut setup, class, *rows as usize, *width as usize, allowance)
        }
        Point::Collective { operation, ranks, bytes } => {
            let runners = runners.ok_or_else(no_runner)?;
            (runners.collective)(operation, *ranks, *bytes).map_err(MeasureError::Collective)
        }
        Point::EngineStep { layers, sequences, vocab } => {
            let runners = runners.ok_or_else(no_runner)?;
            (runners.engine)(*layers, *sequences, *vocab).map_err(MeasureError::Collective)
        }
        Point::Stream { bytes } => stream::product(device, *bytes, allowance),
        // Enough hops that the clock does not matter, and one lap at least.
        Point::Chase { bytes } => micro(|| device.load_latency(*bytes as usize, 50_000).map(Some)),
        Point::Shared => micro(|| device.shared_latency(50_000)),
        Point::Launch { graph } => micro(|| device.launch_cost(1000, *graph)),
        Point::HostCopy { bytes, to_device } => micro(|| device.host_copy(*bytes as usize, *to_device)),
        Point::Together { threads } => host::together(*threads),
        Point::Sustained { milliseconds } => host::sustained(*milliseconds),
    }
}

fn no_runner() -> MeasureError {
    MeasureError::Collective("no ranks to run them on".to_owned())
}

/// Five repeats after one warm-up; an empty list where the device has no such thing.
fn micro(work: impl Fn() -> psim_kernels::Result<Option<f64>>) -> Result<Vec<f64>, MeasureError> {
    work()?;
    let seconds: Option<Vec<f64>> = (0..5).map(|_| work()).collect::<psim_kernels::Result<_>>()?;
    Ok(seconds.unwrap_or_default())
}

/// Warm-up, then repeats of `work(i)` until the allowance is used.
fn repeat<D: Device>(
    device: &D,
    allowance: f64,
    mut work: impl FnMut(usize) -> psim_kernels::Result<()>,
) -> Result<Vec<f64>, MeasureError> {
    // The allowance is time on the clock: on a busy machine it is used up sooner than processor time.
    let begin = Instant::now();
    let warm = device.time(&mut || work(0))?;
    // Calls far shorter than the clock's resolution are timed in batches.
    let batch = if warm > 0.0 { (2e-5 / warm).ceil().clamp(1.0, 256.0) as usize } else { 256 };
    let mut seconds = Vec::new();
    let mut next = 0;
    let fewest = if begin.elapsed().as_secs_f64() > allowance { 1 } else { REPEATS.1 };
    while seconds.len() < fewest || (begin.elapsed().as_secs_f64() < allowance && seconds.len() < REPEATS.0) {
        let time = device.time(&mut || {
            for _ in 0..batch {
                next += 1;
                work(next)?;
            }
            Ok(())
        })?;
        seconds.push(time / batch as f64);
    }
    Ok(seconds)
}

fn gemm<D: Device>(
    setup: &mut Setup<'_, D>,
    [m, n, k]: [u64; 3],
    role: Role,
    allowance: f64,
) -> Result<Vec<f64>, MeasureError> {
    let dtype = setup.dtype;
    let size = dtype.size();
    let [m, n, k] = [m, n, k].map(|x| x as usize);
    let (shape, out) = match role {
        Role::Forward => (Gemm::new(m, n, k), dtype),
        Role::InputGradient => (Gemm::new(m, n, k).transposed_b(), dtype),
        // The operator's m are output features, and weights are stored as inputs × outputs.
        Role::WeightGradient => (Gemm::new(n, m, k).transposed_a().accumulating(), DType::Fp32),
    };
    let lens = [shape.m * shape.k, shape.n * shape.k, shape.m * shape.n];
    // Which of A, B, C come from afar while a model runs. On a processor, whose caches hold what the operator before has
    // written: the weights; for their gradient the input that the forward pass has kept, and the sum.
    let far = match (dtype == DType::Fp32, role) {
        (false, _) => [true; 3],
        (true, Role::WeightGradient) => [true, false, true],
        (true, _) => [false, true, false],
    };
    let bytes: f64 = lens.iter().zip(far).filter(|(_, far)| *far).map(|(&len, _)| size * len as f64).sum();
    let count = if dtype == DType::Fp32 {
        // What weights cost that no cache holds is measured apart.
        ROTATE.div_ceil((bytes as u64).max(1)).clamp(1, 64) as usize
    } else {
        setup.sets(bytes as u64)
    };
    let mut fill = |which: usize, dtype: DType| -> Result<Vec<D::Buffer>, MeasureError> {
        (0..if far[which] { count } else { 1 }).map(|_| setup.input(dtype, lens[which])).collect()
    };
    let (a, b, mut c) = (fill(0, dtype)?, fill(1, dtype)?, fill(2, out)?);
    let device = setup.device;
    repeat(device, allowance, |i| {
        let last = c.len();
        device.gemm(&shape, &a[i % a.len()], &b[i % b.len()], &mut c[i % last])
    })
}

fn attention<D: Device>(
    setup: &mut Setup<'_, D>,
    [batch, seq, heads, dim]: [usize; 4],
    backward: bool,
    allowance: f64,
) -> Result<Vec<f64>, MeasureError> {
    let shape = Attention::causal(batch, seq, heads, heads, dim);
    let len = batch * seq * heads * dim;
    let dtype = setup.dtype;
    // Inputs and their results; with gradients backward.
    let bytes = dtype.size() as u64 * len as u64 * if backward { 8 } else { 4 };
    let count = setup.fresh(bytes);
    let mut sets = setup.rotated(count, |setup| {
        let inputs = [setup.input(dtype, len)?, setup.input(dtype, len)?, setup.input(dtype, len)?];
        let out = setup.device.alloc(dtype, len)?;
        let lse = setup.device.alloc(DType::Fp32, batch * seq * heads)?;
        Ok((inputs, out, lse))
    })?;
    let device = setup.device;
    if !backward {
        return repeat(device, allowance, |i| {
            let ([q, k, v], out, lse) = &mut sets[i % count];
            device.attention_forward(&shape, q, k, v, out, lse)
        });
    }
    for ([q, k, v], out, lse) in &mut sets {
        device.attention_forward(&shape, q, k, v, out, lse)?;
    }
    let mut gradients = setup.rotated(count, |setup| {
        Ok([setup.input(dtype, len)?, setup.input(dtype, len)?, setup.input(dtype, len)?])
    })?;
    let dout = setup.input(dtype, len)?;
    repeat(device, allowance, |i| {
        let ([q, k, v], out, lse) = &sets[i % count];
        let [dq, dk, dv] = &mut gradients[i % count];
        device.attention_backward(&shape, [q, k, v, out, lse], &dout, dq, dk, dv)
    })
}

fn decode<D: Device>(
    setup: &mut Setup<'_, D>,
    [batch, length, heads, dim]: [usize; 4],
    allowance: f64,
) -> Result<Vec<f64>, MeasureError> {
    let page = 16;
    let max_pages = length.div_ceil(page);
    let scale = 1.0 / (dim as f32).sqrt();
    let shape = PagedAttention { batch, heads, kv_heads: heads, head_dim: dim, page, max_pages, scale };
    let pages = batch * max_pages;
    // Pages of a sequence lie scattered, as after some serving.
    let table: Vec<u32> = (0..pages).map(|i| ((i * 7919) % pages) as u32).collect();
    let table = setup.device.upload_index(&table)?;
    let lengths = setup.device.upload_index(&vec![length as u32; batch])?;
    let cache = pages * page * heads * dim;
    let dtype = setup.dtype;
    let q = setup.input(dtype, batch * heads * dim)?;
    let count = setup.fresh(2 * dtype.size() as u64 * cache as u64);
    let caches =
        setup.rotated(count, |setup| Ok([setup.input(dtype, cache)?, setup.input(dtype, cache)?]))?;
    let mut out = setup.device.alloc(dtype, batch * heads * dim)?;
    repeat(setup.device, allowance, |i| {
        let [k, v] = &caches[i % count];
        setup.device.paged_attention(&shape, &q, k, v, &table, &lengths, &mut out)
    })
}

fn memory<D: Device>(
    setup: &mut Setup<'_, D>,
    class: &str,
    rows: usize,
    width: usize,
    allowance: f64,
) -> Result<Vec<f64>, MeasureError> {
    let (len, dtype, device) = (rows * width, setup.dtype, setup.device);
    let block = Strided::new(0, width);
    let count = setup.fresh(6 * dtype.size() as u64 * len as u64);
    let mut sets = setup.rotated(count, |setup| {
        Ok([setup.input(dtype, 2 * len)?, setup.input(dtype, 2 * len)?, setup.input(dtype, 2 * len)?])
    })?;
    match class {
        "norm" => {
            let shape = Norm { rows, width, rms: true, epsilon: 1e-5 };
            let weight = setup.input(dtype, width)?;
            let mut dweight = setup.input(DType::Fp32, width)?;
            let mut stats = device.alloc(DType::Fp32, 2 * rows)?;
            repeat(device, allowance, |i| {
                let [x, y, z] = &mut sets[i % count];
                device.norm_forward(&shape, x, &weight, None, y, &mut stats)?;
                device.norm_backward(&shape, x, &weight, &stats, y, z, &mut dweight, None)
            })
        }
        "activation" => repeat(device, allowance, |i| {
            let [x, y, z] = &mut sets[i % count];
            device.activation_forward(Activation::SwiGlu, rows, width, x, y)?;
            device.activation_backward(Activation::SwiGlu, rows, width, x, y, z)
        }),
        "gelu" => repeat(device, allowance, |i| {
            let [x, y, z] = &mut sets[i % count];
            device.activation_forward(Activation::Gelu, rows, width, x, y)?;
            device.activation_backward(Activation::Gelu, rows, width, x, y, z)
        }),
        "elementwise" => {
            let count = setup.fresh(2 * dtype.size() as u64 * len as u64);
            let mut pairs =
                setup.rotated(count, |setup| Ok([setup.input(dtype, len)?, setup.input(dtype, len)?]))?;
            repeat(device, allowance, |i| {
                let [a, b] = &mut pairs[i % count];
                device.add(a, b)
            })
        }
        "rope" => {
            let head_dim = width.min(64);
            let shape = Rope { tokens: rows, heads: width / head_dim, head_dim, base: 1e4, inverse: false };
            let positions = device.upload_index(&(0..rows as u32).collect::<Vec<_>>())?;
            repeat(device, allowance, |i| {
                let [x, y, _] = &mut sets[i % count];
                device.rope(&shape, &positions, x, block, y, block)
            })
        }
        "cross-entropy" => {
            let shape = CrossEntropy { rows, vocab: width, first: 0 };
            let targets: Vec<u32> = (0..rows).map(|i| (i * 31 % width) as u32).collect();
            let targets = device.upload_index(&targets)?;
            let mut stats = device.alloc(DType::Fp32, 3 * rows)?;
            repeat(device, allowance, |i| {
                let [x, ..] = &mut sets[i % count];
                device.cross_entropy_stats(&shape, x, &targets, &mut stats)?;
                device.cross_entropy_backward(&shape, 1.0, &targets, &stats, x)
            })
        }
        "embedding" => {
            let entries = 2 * rows;
            let ids: Vec<u32> = (0..rows).map(|i| (i * 7919 % entries) as u32).collect();
            let ids = device.upload_index(&ids)?;
            let mut gradients = setup.rotated(count, |setup| setup.input(DType::Fp32, entries * width))?;
            repeat(device, allowance, |i| {
                let ([x, y, _], gradient) = (&mut sets[i % count], &mut gradients[i % count]);
                device.embedding_forward(rows, width, 0, entries, &ids, x, y)?;
                device.embedding_backward(rows, width, 0, entries, &ids, y, gradient)
            })
        }
        "optimizer" => {
            let count = setup.fresh(16 * len as u64);
            let mut states = setup.rotated(count, |setup| {
                let moments = [device.upload(&vec![0.01; len])?, device.upload(&vec![0.01; len])?];
                Ok((setup.input(DType::Fp32, len)?, moments, setup.input(DType::Fp32, len)?))
            })?;
            let adam =
                Adam { rate: 1e-6, beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, step: 2 };
            repeat(device, allowance, |i| {
                let (gradient, [m, v], parameters) = &mut states[i % count];
                device.adam(&adam, 0..len, gradient, [m, v], parameters)
            })
        }
        "permute" => {
            let order: Vec<u32> = (0..rows).map(|i| (i * 7919 % rows) as u32).collect();
            let order = device.upload_index(&order)?;
            let weights = setup.input(DType::Fp32, rows)?;
            let mut sums = setup.rotated(count, |setup| setup.input(DType::Fp32, len))?;
            repeat(device, allowance, |i| {
                let ([x, y, _], combined) = (&mut sets[i % count], &mut sums[i % count]);
                device.gather_rows(rows, width, &order, x, y)?;
                device.scatter_add_rows(rows, width, &order, Some(&weights), y, combined)
            })
        }
        _ => repeat(device, allowance, |i| {
            let [x, y, _] = &mut sets[i % count];
            device.copy(rows, width, x, block, y, block)
        }),
    }
}
