//! Nanoseconds per price: a search asks for thousands per configuration.

use criterion::{Criterion, criterion_group, criterion_main};
use psim_cost_models::{CostModel, ProfileLibrary};
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
use psim_hardware::{DType, GroupShape, Scaling};
use psim_models::OperatorKind;
use psim_models::operator::{CollectiveKind, Dimension, GemmRole, MemoryClass};
use std::hint::black_box;

fn price(c: &mut Criterion) {
    let library = ProfileLibrary::built_in();
    let Ok(cluster) = homogeneous("H100-SXM-80GB", 64, &HomogeneousOptions::default()) else { return };
    let Some(stack) = library.stacks().next() else { return };
    let model = CostModel::new(&cluster, cluster.first_node(), stack, &library);
    let group = |ranks, stride| GroupShape::place(&cluster, cluster.first_node(), ranks, stride);
    let collective =
        |kind, group| OperatorKind::Collective { kind, bytes: 67_108_864, group, dimension: Dimension::Tp };
    let operators = [
        (
            "gemm",
            OperatorKind::Gemm {
                m: 8192,
                n: 7168,
                k: 8192,
                batch: 1,
                dtype: DType::Bf16,
                scaling: Scaling::None,
                out_bytes: 2.0,
                role: GemmRole::Forward,
            },
        ),
        (
            "attention",
            OperatorKind::Attention {
                batch: 1,
                q_heads: 16,
                kv_heads: 2,
                head_dim: 128,
                head_dim_v: 128,
                seq_q: 8192,
                seq_kv: 8192,
                density: 0.5,
                backward: false,
                dtype: DType::Bf16,
            },
        ),
        (
            "memory",
            OperatorKind::Memory {
                class: MemoryClass::Norm,
                bytes: 134_217_728,
                kernels: 1,
                flops: 0.0,
                width: 0,
            },
        ),
        ("all-reduce in a node", collective(CollectiveKind::AllReduce, group(8, 1))),
        ("all-reduce over nodes", collective(CollectiveKind::AllReduce, group(64, 1))),
    ];
    for (name, operator) in &operators {
        c.bench_function(name, |b| b.iter(|| model.price(black_box(operator))));
    }
    c.bench_function("build a model", |b| {
        b.iter(|| CostModel::new(black_box(&cluster), cluster.first_node(), stack, &library));
    });
}

criterion_group!(benches, price);
criterion_main!(benches);
