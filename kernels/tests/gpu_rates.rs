//! Rates of the large kernels on the GPU at hand, one JSON line each: what `cuda/check-on-gpu.sh` compares with PyTorch in
//! the same session. Medians of events, random data, inputs rotated beyond the second-level cache.
#![expect(clippy::unwrap_used, reason = "a measurement")]

use psim_hardware::DType;
use psim_kernels::{Attention, Device, Gemm, Micro, PagedAttention, Strided};

type Card = psim_kernels::cuda::CudaDevice;

fn random(device: &Card, dtype: DType, len: usize, seed: u32) -> <Card as Device>::Buffer {
    let mut state = seed;
    let values: Vec<f32> = (0..len.min(1 << 22))
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    let mut buffer = device.alloc(dtype, len).unwrap();
    for start in (0..len).step_by(values.len().max(1)) {
        let end = len.min(start + values.len());
        device.write(&mut buffer, start, &values[..end - start]).unwrap();
    }
    buffer
}

fn median(device: &Card, mut work: impl FnMut(usize)) -> f64 {
    for i in 0..3 {
        work(i);
    }
    device.synchronize().unwrap();
    let mut seconds: Vec<f64> = (0..30)
        .map(|i| {
            device
                .time(&mut || {
                    work(i);
                    Ok(())
                })
                .unwrap()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

#[test]
fn rates() {
    let device = match psim_kernels::cuda::open(0) {
        Ok(device) => device,
        Err(error) => {
            eprintln!("SKIP: {error}");
            return;
        }
    };
    println!("{{\"device\": \"{}\"}}", device.name());
    println!("{{\"telemetry\": \"{:?}\"}}", device.telemetry());
    let n = 8192;
    for dtype in [DType::Bf16, DType::Fp16, DType::Fp8] {
        let sets: Vec<_> = (0..2)
            .map(|i| (random(&device, dtype, n * n, 1 + i), random(&device, dtype, n * n, 9 + i)))
            .collect();
        let mut c = device.alloc(DType::Bf16, n * n).unwrap();
        if dtype == DType::Fp16 {
            c = device.alloc(DType::Fp16, n * n).unwrap();
        }
        let shape = Gemm::new(n, n, n).transposed_b();
        let time = median(&device, |i| device.gemm(&shape, &sets[i % 2].0, &sets[i % 2].1, &mut c).unwrap());
        println!("{{\"gemm\": \"{dtype}\", \"tflops\": {:.1}}}", shape.flops() / time / 1e12);
    }
    let len = 1 << 30;
    let source = random(&device, DType::Bf16, len, 3);
    let mut target = device.alloc(DType::Bf16, len).unwrap();
    let flat = Strided::new(0, len);
    let time = median(&device, |_| device.copy(1, len, &source, flat, &mut target, flat).unwrap());
    println!("{{\"copy_tb_s\": {:.3}}}", 4.0 * len as f64 / time / 1e12);
    drop((source, target));
    for dim in [64, 128] {
        let (batch, seq, heads) = (2, 8192, 2048 / dim);
        let shape = Attention::causal(batch, seq, heads, heads, dim);
        let tokens = batch * seq * heads;
        let [q, k, v, dout] = [1, 2, 3, 4].map(|s| random(&device, DType::Bf16, tokens * dim, s));
        let mut out = device.alloc(DType::Bf16, tokens * dim).unwrap();
        let mut lse = device.alloc(DType::Fp32, tokens).unwrap();
        let time =
            median(&device, |_| device.attention_forward(&shape, &q, &k, &v, &mut out, &mut lse).unwrap());
        println!("{{\"attention_forward\": {dim}, \"tflops\": {:.1}}}", shape.flops() / time / 1e12);
        let [mut dq, mut dk, mut dv] = [5, 6, 7].map(|s| random(&device, DType::Bf16, tokens * dim, s));
        let time = median(&device, |_| {
            let inputs = [&q, &k, &v, &out, &lse];
            device.attention_backward(&shape, inputs, &dout, &mut dq, &mut dk, &mut dv).unwrap();
        });
        println!("{{\"attention_backward\": {dim}, \"tflops\": {:.1}}}", 2.5 * shape.flops() / time / 1e12);
    }
    let (batch, length, page) = (64, 4096, 16);
    let shape = PagedAttention {
        batch,
        heads: 64,
        kv_heads: 8,
        head_dim: 128,
        page,
        max_pages: length / page,
        scale: 0.088,
    };
    let cache = batch * length * 8 * 128;
    let (q, k, v) = (
        random(&device, DType::Bf16, batch * 64 * 128, 1),
        random(&device, DType::Bf16, cache, 2),
        random(&device, DType::Bf16, cache, 3),
    );
    let table: Vec<u32> = (0..(batch * length / page) as u32)
        .map(|i| i.wrapping_mul(7) % (batch * length / page) as u32)
        .collect();
    let table = device.upload_index(&table).unwrap();
    let lengths = device.upload_index(&vec![length as u32; batch]).unwrap();
    let mut out = device.alloc(DType::Bf16, batch * 64 * 128).unwrap();
    let time =
        median(&device, |_| device.paged_attention(&shape, &q, &k, &v, &table, &lengths, &mut out).unwrap());
    println!("{{\"paged_attention_tb_s\": {:.3}}}", 4.0 * cache as f64 / time / 1e12);
    for bytes in [256 << 10, 16 << 20, 1 << 30] {
        println!(
            "{{\"load_latency_ns\": {:.1}, \"bytes\": {bytes}}}",
            device.load_latency(bytes, 100_000).unwrap() * 1e9
        );
    }
    println!("{{\"shared_latency_ns\": {:?}}}", device.shared_latency(100_000).unwrap().map(|s| s * 1e9));
    for graph in [false, true] {
        println!(
            "{{\"launch_us\": {:?}, \"graph\": {graph}}}",
            device.launch_cost(200, graph).unwrap().map(|s| s * 1e6)
        );
    }
    for to_device in [true, false] {
        let seconds = device.host_copy(1 << 28, to_device).unwrap();
        println!(
            "{{\"host_copy_gb_s\": {:?}, \"to_device\": {to_device}}}",
            seconds.map(|s| f64::from(1 << 28) / s / 1e9)
        );
    }
}
