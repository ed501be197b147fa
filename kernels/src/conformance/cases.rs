//! The cases, one function per topic. Shapes are odd on purpose: tails of tiles, single rows, offsets.

use super::{Bench, Check};
use crate::device::{
    Activation, Adam, Attention, CrossEntropy, Device, Gemm, Norm, PagedAttention, Result, Rope, Strided,
    Uniform,
};
use crate::reference;
use psim_hardware::DType;

/// Adds two vectors.
fn plus(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// Block copies with strides and format conversion.
pub fn copies<D: Device>(bench: &mut Bench<'_, D>) -> Result<()> {
    let (x, values) = bench.input(7 * 13)?;
    let mut y = bench.output_as(DType::Fp32, 7 * 5)?;
    bench.device.copy(7, 5, &x, Strided::new(3, 13), &mut y, Strided::new(0, 5))?;
    let expected: Vec<f64> = (0..7).flat_map(|r| values[r * 13 + 3..r * 13 + 8].to_vec()).collect();
    bench.check("copy", &y, &expected)?;
    let mut z = bench.output(7 * 5)?;
    bench.device.copy(1, 35, &y, Strided::new(0, 35), &mut z, Strided::new(0, 35))?;
    bench.check("cast", &z, &expected)?;
    // Two blocks of one tensor of 9 columns, side by side.
    let mut block = bench.output(6 * 5)?;
    let mut expected = vec![0.0; 6 * 5];
    for (first, width, column) in [(100, 2, 0), (104, 3, 2)] {
        let to = Strided::new(column, 5);
        let shape = Uniform { key: 0xdead_beef, first, pitch: 9, rows: 6, width, to, scale: 0.25 };
        bench.device.uniform(&shape, &mut block)?;
        for (row, c) in (0..6).flat_map(|row| (0..width).map(move |c| (row, c))) {
            let value = crate::random::uniform(shape.key, (first + 9 * row + c) as u64);
            expected[row * 5 + column + c] = f64::from(0.25 * value);
        }
    }
    bench.check("uniform", &block, &expected)?;
    // A wait on the device's own clock, beside the work and then before it.
    let from = bench.device.mark()?;
    let end = bench.device.pause_beside(0, 2e-3)?;
    bench.device.scale(1.0, &mut block)?;
    bench.device.join(&end)?;
    let to = bench.device.mark()?;
    let seconds = bench.device.between(&from, &to)?;
    if !(2e-3..0.5).contains(&seconds) || !bench.device.reached(&from)? {
        bench.checks.push(Check {
            name: format!("a wait of 2 ms took {seconds} s"),
            error: 1.0,
            tolerance: 0.0,
        });
    }
    Ok(())
}

/// Sum, factor, bias.
pub fn elementwise<D: Device>(bench: &mut Bench<'_, D>) -> Result<()> {
    let (rows, width) = (37, 51);
    let (x, xs) = bench.input(rows * width)?;
    let (mut y, ys) = bench.input(rows * width)?;
    bench.device.add(&x, &mut y)?;
    bench.check("add", &y, &plus(&xs, &ys))?;
    let (mut y, ys) = bench.input(rows * width)?;
    bench.device.scale(-1.75, &mut y)?;
    bench.check("scale", &y, &ys.iter().map(|y| -1.75 * y).collect::<Vec<_>>())?;
    let (bias, biases) = bench.input(width)?;
    let (mut y, ys) = bench.input(rows * width)?;
    bench.device.bias_forward(rows, width, &bias, &mut y)?;
    let expected: Vec<f64> = ys.iter().enumerate().map(|(i, y)| y + biases[i % width]).collect();
    bench.check("bias", &y, &expected)?;
    let (mut dbias, mut expected) = bench.accumulator(width)?;
    bench.device.bias_backward(rows, width, &x, &mut dbias)?;
    xs.iter().enumerate().for_each(|(i, x)| expected[i % width] += x);
    bench.check("bias backward", &dbias, &expected)
}

/// Products in the three layouts of training, accumulating, strided, offset.
pub fn gemm<D: Device>(bench: &mut Bench<'_, D>) -> Result<()> {
    for (m, n, k) in [(1, 1, 1), (64, 64, 64), (33, 65, 17), (128, 96, 200), (5, 130, 1), (7, 517, 39)] {
        let plain = Gemm::new(m, n, k);
        for shape in [plain, plain.transposed_a(), plain.transposed_b(), plain.transposed_a().transposed_b()]
        {
            let (a, a_values) = bench.input(m * k)?;
            let (b, b_values) = bench.input(n * k)?;
            let mut c = bench.output(m * n)?;
            let mut expected = vec![0.0; m * n];
            bench.device.gemm(&shape, &a, &b, &mut c)?;
            reference::gemm(&shape, &a_values, &b_values, &mut expected);
            bench.check(&format!("gemm {m}x{n}x{k}"), &c, &expected)?;
            // Weight gradients accumulate in fp32 whatever the inputs' format.
            let (mut c, mut expected) = bench.accumulator(m * n)?;
            bench.device.gemm(&shape.accumulating(), &a, &b, &mut c)?;
            reference::gemm(&shape.accumulating(), &a_values, &b_values, &mut expected);
            bench.check_sum(&format!("gemm accumulate {m}x{n}x{k}"), &c, &expected)?;
        }
    }
    let mut shape = Gemm::new(24, 16, 40).at(8, 16, 32);
    shape.stride = [48, 24, 32];
    let (a, a_values) = bench.input(24 * 48 + 8)?;
    let (b, b_values) = bench.input(40 * 24 + 16)?;
    let (mut c, mut expected) = bench.input(24 * 32 + 32)?;
    bench.device.gemm(&shape, &a, &b, &mut c)?;
    reference::gemm(&shape, &a_values, &b_values, &mut expected);
    bench.check("gemm strided", &c, &expected)?;
    // A few rows inside larger matrices.
    let mut shape = Gemm::new(3, 290, 41).at(8, 16, 32);
    shape.stride = [48, 304, 296];
    let (a, a_values) = bench.input(3 * 48 + 8)?;
    let (b, b_values) = bench.input(41 * 304 + 16)?;
    let (mut c, mut expected) = bench.input(3 * 296 + 32)?;
    bench.device.gemm(&shape, &a, &b, &mut c)?;
    reference::gemm(&shape, &a_values, &b_values, &mut expected);
    bench.check("gemm strided, few rows", &c, &expected)
}

/// Fp8 products, for devices that have them: both matrices stored along the reduction.
///
/// Hopper's tensor cores add fp8 products with fewer bits than fp32 has (DeepSeek-V3 report 2024, section 3.5.2).
pub fn gemm_fp8<D: Device>(bench: &mut Bench<'_, D>) -> Result<()> {
    for (m, n, k) in [(16, 16, 16), (64, 32, 48), (128, 256, 512)] {
        let shape = Gemm::new(m, n, k).transposed_b();
        let (a, a_values) = bench.input_as(DType::Fp8, m * k)?;
        let (b, b_values) = bench.input_as(DType::Fp8, n * k)?;
        let mut expected = vec![0.0; m * n];
        reference::gemm(&shape, &a_values, &b_values, &mut expected);
        let mut c = bench.output_as(DType::Bf16, m * n)?;
        bench.device.gemm(&shape, &a, &b, &mut c)?;
        bench.check_within(&format!("gemm fp8 {m}x{n}x{k}"), &c, &expected, 1e-2)?;
        let mut cast = bench.output_as(DType::Fp32, m * k)?;
        bench.device.copy(m, k, &a, Strided::new(0, k), &mut cast, Strided::new(0, k))?;
        bench.check_within("cast from fp8", &cast, &a_values, 0.0)?;
        let mut back = bench.output_as(DType::Fp8, m * k)?;
        bench.device.copy(m, k, &cast, Strided::new(0, k), &mut back, Strided::new(0, k))?;
        bench.check_within("cast to fp8", &back, &a_values, 0.0)?;
    }
    Ok(())
}

/// RMS and layer normalisation.
pub fn norm<D: Device>(bench: &mut Bench<'_, D>) -> Result<()> {
    for (rows, width) in [(1, 8), (19, 100), (6, 1031)] {
        for rms in [true, false] {
            let shape = Norm { rows, width, rms, epsilon: 1e-5 };
            let (x, xs) = bench.input(rows * width)?;
            let (weight, weights) = bench.input(width)?;
            let (bias, biases) = bench.input(width)?;
            let (dy, dys) = bench.input(rows * width)?;
            let mut y = bench.output(rows * width)?;
            let mut stats = bench.output_as(DType::Fp32, 2 * rows)?;
            let name = format!("{} {rows}x{width}", if rms { "rms norm" } else { "layer norm" });
            bench.device.norm_forward(&shape, &x, &weight, (!rms).then_some(&bias), &mut y, &mut stats)?;
            let expected = reference::norm_forward(&shape, &xs, &weights, (!rms).then_some(&biases[..]));
            bench.check(&name, &y, &expected)?;
            let mut dx = bench.output(rows * width)?;
            let (mut dweight, dweights) = bench.accumulator(width)?;
            let (mut dbias, dbiases) = bench.accumulator(width)?;
            let dbias_argument = (!rms).then_some(&mut dbias);
            bench.device.norm_backward(
                &shape,
                &x,
                &weight,
                &stats,
                &dy,
                &mut dx,
                &mut dweight,
                dbias_argument,
            )?;
            let [dx_expected, dweight_expected, dbias_expected] =
                reference::norm_backward(&shape, &xs, &weights, &dys);
            bench.check(&format!("{name} dx"), &dx, &dx_expected)?;
            bench.check(&format!("{name} dweight"), &dweight, &plus(&dweights, &dweight_expected))?;
            if !rms {
                bench.check(&format!("{name} dbias"), &dbias, &plus(&dbiases, &dbias_expected))?;
            }
        }
    }
    Ok(())
}

/// Rotary embedding forwards and backwards, out of a wider block.
pub fn rope<D: Device>(bench: &mut Bench<'_, D>) -> Result<()> {
    for inverse in [false, true] {
        let shape = Rope { tokens: 23, heads: 3, head_dim: 16, base: 10_000.0, inverse };
        let (width, stride) = (48, 80);
        let positions = bench.indices(shape.tokens, 5000);
        let index = bench.device.upload_index(&positions)?;
        let (x, xs) = bench.input(shape.tokens * stride)?;
        let mut y = bench.output(shape.tokens * width)?;
        bench.device.rope(&shape, &index, &x, Strided::new(16, stride), &mut y, Strided::new(0, width))?;
        let dense: Vec<f64> =
            (0..shape.tokens).flat_map(|t| xs[t * stride + 16..][..width].to_vec()).collect();
        bench.check(&format!("rope inverse={inverse}"), &y, &reference::rope(&shape, &positions, &dense))?;
    }
    Ok(())
}

/// GeLU and SwiGLU.
pub fn activation<D: Device>(bench: &mut Bench<'_, D>) -> Result<()> {
    for kind in [Activation::Gelu, Activation::SwiGlu] {
        let (rows, width) = (21, 67);
        let (x, xs) = bench.input(rows * kind.input_width(width))?;
        // Spread to where the functions bend and saturate.
        let mut x = x;
        bench.device.scale(8.0, &mut x)?;
        let xs: Vec<f64> = xs.iter().map(|x| 8.0 * x).collect();
        let (dy, dys) = bench.input(rows * width)?;
        let mut y = bench.output(rows * width)?;
        bench.device.activation_forward(kind, rows, width, &x, &mut y)?;
        bench.check(&format!("{kind:?}"), &y, &reference::activation_forward(kind, rows, width, &xs))?;
        let mut dx = bench.output(rows * kind.input_width(width))?;
        bench.device.activation_backward(kind, rows, width, &x, &dy, &mut dx)?;
        bench.check(
            &format!("{kind:?} dx"),
            &dx,
            &reference::activation_backward(kind, rows, width, &xs, &dys),
        )?;
    }
    Ok(())
}

/// Embedding look-up and gradient on a slice of the vocabulary.
pub fn embedding<D: Device>(bench: &mut Bench<'_, D>) -> Result<()> {
    let (rows, width, first, entries) = (40, 33, 50, 30);
    let ids = bench.indices(rows, 100);
    let index = bench.device.upload_index(&ids)?;
    let (table, values) = bench.input(entries * width)?;
    let mut out = bench.output(rows * width)?;
    bench.device.embedding_forward(rows, width, first, entries, &index, &table, &mut out)?;
    let entry = |id: u32| (id as usize).checked_sub(first).filter(|&e| e < entries);
    let expected: Vec<f64> = ids
        .iter()
        .flat_map(|&id| entry(id).map_or(vec![0.0; width], |e| values[e * width..][..width].to_vec()))
        .collect();
    bench.check("embedding", &out, &expected)?;
    let (dy, dys) = bench.input(rows * width)?;
    let (mut dtable, mut expected) = bench.accumulator(entries * width)?;
    bench.device.embedding_backward(rows, width, first, entries, &index, &dy, &mut dtable)?;
    for (row, &id) in ids.iter().enumerate() {
        if let Some(e) = entry(id) {
            (0..width).for_each(|i| expected[e * width + i] += dys[row * width + i]);
        }
    }
    bench.check("embedding backward", &dtable, &expected)
}

/// Softmax cross-entropy on a slice of the vocabulary.
pub fn cross_entropy<D: Device>(bench: &mut Bench<'_, D>) -> Result<()> {
    for (rows, vocab, first) in [(3, 5, 0), (17, 1003, 500)] {
        let shape = CrossEntropy { rows, vocab, first };
        let targets = bench.indices(rows, (first + vocab + vocab / 2) as u32);
        let index = bench.device.upload_index(&targets)?;
        let (mut logits, mut values) = bench.input(rows * vocab)?;
        bench.device.scale(16.0, &mut logits)?;
        values.iter_mut().for_each(|v| *v *= 16.0);
        let mut stats = bench.output_as(DType::Fp32, 3 * rows)?;
        bench.device.cross_entropy_stats(&shape, &logits, &index, &mut stats)?;
        let expected = reference::cross_entropy_stats(&shape, &values, &targets);
        bench.check(&format!("cross entropy {rows}x{vocab}"), &stats, &expected)?;
        bench.device.cross_entropy_backward(&shape, 0.25, &index, &stats, &mut logits)?;
        let gradient = reference::cross_entropy_backward(&shape, 0.25, &targets, &expected, &values);
        bench.check(&format!("cross entropy backward {rows}x{vocab}"), &logits, &gradient)?;
    }
    Ok(())
}

/// Attention shapes: causal, full, shifted, grouped heads, several sequences, blocks inside longer ones.
fn attention_shapes(head_dim: usize) -> Vec<Attention> {
    let mut shapes = vec![
        Attention::causal(1, 1, 1, 1, head_dim),
        Attention::causal(2, 97, 4, 2, head_dim),
        Attention::causal(1, 200, 2, 1, head_dim),
    ];
    shapes.push(Attention {
        causal: None,
        seq_kv: 130,
        kv_pitch: 130,
        ..Attention::causal(2, 70, 3, 3, head_dim)
    });
    shapes.push(Attention {
        causal: Some(40),
        seq_kv: 90,
        q_first: 5,
        q_pitch: 80,
        kv_first: 10,
        kv_pitch: 120,
        ..Attention::causal(2, 66, 4, 1, head_dim)
    });
    shapes
}

/// Tiled attention, forward, merged blocks, backward.
pub fn attention<D: Device>(bench: &mut Bench<'_, D>) -> Result<()> {
    let dims = match bench.device.head_dims() {
        [] => vec![8, 20, 64],
        dims => dims.to_vec(),
    };
    for dim in dims {
        for shape in attention_shapes(dim) {
            attention_case(bench, &shape)?;
        }
        attention_merge(bench, dim)?;
    }
    Ok(())
}

/// The tokens of a block, out of a buffer that holds more.
fn block_of(values: &[f64], first: usize, pitch: usize, batch: usize, tokens: usize, row: usize) -> Vec<f64> {
    (0..batch).flat_map(|b| values[(first + b * pitch) * row..][..tokens * row].to_vec()).collect()
}

fn attention_case<D: Device>(bench: &mut Bench<'_, D>, shape: &Attention) -> Result<()> {
    let (q_row, kv_row) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let (q_len, kv_len) = (shape.q_tokens() * q_row, shape.kv_tokens() * kv_row);
    let (q, qs) = bench.input(q_len)?;
    let (k, ks) = bench.input(kv_len)?;
    let (v, vs) = bench.input(kv_len)?;
    let (dout, douts) = bench.input(q_len)?;
    let mut out = bench.output(q_len)?;
    let mut lse = bench.output_as(DType::Fp32, shape.q_tokens() * shape.heads)?;
    let name = format!(
        "attention {}x{}x{} heads {}/{} dim {}",
        shape.batch, shape.seq_q, shape.seq_kv, shape.heads, shape.kv_heads, shape.head_dim
    );
    bench.device.attention_forward(shape, &q, &k, &v, &mut out, &mut lse)?;
    let [out_expected, lse_expected] = reference::attention_forward(shape, &qs, &ks, &vs);
    // Only the block is written: compare it, and let the rest keep its poison.
    let cut =
        |x: &[f64], row: usize| block_of(x, shape.q_first, shape.q_pitch, shape.batch, shape.seq_q, row);
    for (what, buffer, expected, row) in
        [("out", &out, &out_expected, q_row), ("lse", &lse, &lse_expected, shape.heads)]
    {
        let got: Vec<f64> = bench.device.download(buffer)?.into_iter().map(f64::from).collect();
        let got: Vec<f32> = cut(&got, row).into_iter().map(|x| x as f32).collect();
        let block = bench.device.upload(&got)?;
        let name = format!("{name} {what}");
        if what == "lse" {
            bench.check_sum(&name, &block, &cut(expected, row))?;
        } else {
            bench.check(&name, &block, &cut(expected, row))?;
        }
    }
    let (mut dq, dq_start) = bench.input(q_len)?;
    let (mut dk, dk_start) = bench.input(kv_len)?;
    let (mut dv, dv_start) = bench.input(kv_len)?;
    bench.device.attention_backward(shape, [&q, &k, &v, &out, &lse], &dout, &mut dq, &mut dk, &mut dv)?;
    let [dq_expected, dk_expected, dv_expected] = reference::attention_backward(shape, &qs, &ks, &vs, &douts);
    bench.check(&format!("{name} dq"), &dq, &plus(&dq_start, &dq_expected))?;
    bench.check(&format!("{name} dk"), &dk, &plus(&dk_start, &dk_expected))?;
    bench.check(&format!("{name} dv"), &dv, &plus(&dv_start, &dv_expected))
}

/// Two blocks of keys merged through their log-sum-exp equal one pass over all keys.
fn attention_merge<D: Device>(bench: &mut Bench<'_, D>, dim: usize) -> Result<()> {
    let whole =
        Attention { causal: Some(60), seq_kv: 130, kv_pitch: 130, ..Attention::causal(1, 70, 2, 1, dim) };
    let (q, qs) = bench.input(70 * 2 * dim)?;
    let (k, ks) = bench.input(130 * dim)?;
    let (v, vs) = bench.input(130 * dim)?;
    let mut out = bench.output(70 * 2 * dim)?;
    let mut lse = bench.output_as(DType::Fp32, 70 * 2)?;
    let past = Attention { causal: None, seq_kv: 60, ..whole };
    let rest = Attention { causal: Some(0), seq_kv: 70, kv_first: 60, merge: true, ..whole };
    bench.device.attention_forward(&past, &q, &k, &v, &mut out, &mut lse)?;
    bench.device.attention_forward(&rest, &q, &k, &v, &mut out, &mut lse)?;
    let [out_expected, lse_expected] = reference::attention_forward(&whole, &qs, &ks, &vs);
    bench.check(&format!("attention merged dim {dim} out"), &out, &out_expected)?;
    bench.check_sum(&format!("attention merged dim {dim} lse"), &lse, &lse_expected)
}

/// Decode attention over shuffled pages.
pub fn paged_attention<D: Device>(bench: &mut Bench<'_, D>) -> Result<()> {
    let dims = match bench.device.head_dims() {
        [] => vec![8, 64],
        dims => dims.to_vec(),
    };
    for head_dim in dims {
        let shape =
            PagedAttention { batch: 5, heads: 6, kv_heads: 2, head_dim, page: 16, max_pages: 9, scale: 0.2 };
        let lengths = vec![1, 16, 17, 100, 144];
        let mut table: Vec<u32> = (0..45).collect();
        for i in (1..45).rev() {
            let j = bench.indices(1, i as u32 + 1)[0] as usize;
            table.swap(i, j);
        }
        let cache = 45 * shape.page * shape.kv_heads * head_dim;
        let (q, qs) = bench.input(shape.batch * shape.heads * head_dim)?;
        let (k, ks) = bench.input(cache)?;
        let (v, vs) = bench.input(cache)?;
        let mut out = bench.output(shape.batch * shape.heads * head_dim)?;
        let (table_index, length_index) =
            (bench.device.upload_index(&table)?, bench.device.upload_index(&lengths)?);
        bench.device.paged_attention(&shape, &q, &k, &v, &table_index, &length_index, &mut out)?;
        let expected = reference::paged_attention(&shape, &qs, &ks, &vs, &table, &lengths);
        bench.check(&format!("paged attention dim {head_dim}"), &out, &expected)?;
    }
    Ok(())
}

/// Expert permutation: gather, weighted scatter and its gradient.
pub fn rows<D: Device>(bench: &mut Bench<'_, D>) -> Result<()> {
    let (tokens, count, width) = (20, 45, 37);
    let rows = bench.indices(count, tokens as u32);
    // The largest index must be there for lengths to be known.
    let index = bench.device.upload_index(&rows)?;
    let (x, xs) = bench.input(tokens * width)?;
    let mut y = bench.output(count * width)?;
    bench.device.gather_rows(count, width, &index, &x, &mut y)?;
    let gathered: Vec<f64> = rows.iter().flat_map(|&r| xs[r as usize * width..][..width].to_vec()).collect();
    bench.check("gather", &y, &gathered)?;
    let (weights, weight_values) = bench.input_as(DType::Fp32, count)?;
    let (source, sources) = bench.input(count * width)?;
    for weighted in [true, false] {
        let (mut target, mut expected) = bench.input_as(DType::Fp32, tokens * width)?;
        bench.device.scatter_add_rows(
            count,
            width,
            &index,
            weighted.then_some(&weights),
            &source,
            &mut target,
        )?;
        for (i, &r) in rows.iter().enumerate() {
            let factor = if weighted { weight_values[i] } else { 1.0 };
            (0..width).for_each(|c| expected[r as usize * width + c] += factor * sources[i * width + c]);
        }
        bench.check(&format!("scatter weighted={weighted}"), &target, &expected)?;
    }
    let (dtarget, dtargets) = bench.input(tokens * width)?;
    let mut dsource = bench.output(count * width)?;
    let mut dweights = bench.output_as(DType::Fp32, count)?;
    bench.device.scatter_add_rows_backward(
        count,
        width,
        &index,
        &weights,
        &source,
        &dtarget,
        &mut dsource,
        &mut dweights,
    )?;
    let at = |i: usize, c: usize| dtargets[rows[i] as usize * width + c];
    let dsource_expected: Vec<f64> =
        (0..count * width).map(|x| weight_values[x / width] * at(x / width, x % width)).collect();
    let dweight_expected: Vec<f64> =
        (0..count).map(|i| (0..width).map(|c| sources[i * width + c] * at(i, c)).sum()).collect();
    bench.check("scatter backward", &dsource, &dsource_expected)?;
    bench.check("scatter backward weights", &dweights, &dweight_expected)
}

/// Two Adam updates of a range.
pub fn adam<D: Device>(bench: &mut Bench<'_, D>) -> Result<()> {
    let (len, range) = (1000, 100..777);
    let (mut parameters, mut expected) = bench.accumulator(len)?;
    let mut m = bench.device.upload(&vec![0.0; range.len()])?;
    let mut v = bench.device.upload(&vec![0.0; range.len()])?;
    let (mut ms, mut vs) = (vec![0.0; range.len()], vec![0.0; range.len()]);
    for step in 1..=2 {
        let settings = Adam { rate: 0.01, beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, step };
        let (gradient, gradients) = bench.accumulator(range.len())?;
        bench.device.adam(&settings, range.clone(), &gradient, [&mut m, &mut v], &mut parameters)?;
        let new = reference::adam(&settings, &gradients, &mut ms, &mut vs, &expected[range.clone()]);
        expected[range.clone()].copy_from_slice(&new);
        bench.check(&format!("adam step {step}"), &parameters, &expected)?;
        bench.check(&format!("adam step {step} first moment"), &m, &ms)?;
        bench.check(&format!("adam step {step} second moment"), &v, &vs)?;
    }
    Ok(())
}
