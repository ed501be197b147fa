//! Matrix products, the small kernels beside them, and the output layer.

use super::pricing::Pricing;
use crate::grid::Residual;
use psim_hardware::{DType, Scaling};
use psim_models::operator::{CollectiveKind, GemmRole, MemoryClass};
use psim_models::serving::NumberFormat;
use psim_models::serving::lower::{Linear, ServingShape};

impl Pricing<'_> {
    fn linear(&self, l: &Linear, tokens: f64) -> f64 {
        let dense = |dtype, scaling| {
            let cost = self.costs.gemm(tokens as u64, l.n, l.k, 1, dtype, scaling, 2.0, GemmRole::Forward);
            // Power and clocks slow arithmetic only: a product that waits for its weights keeps the burst rate. At most
            // 0.8 of the peak is ever reached, so that a product at that rate is all arithmetic.
            let share = self.costs.sustained_share(dtype);
            let burst = cost.time.0 * share;
            let flops = 2.0 * tokens * (l.n * l.k) as f64;
            let busy = (flops / (0.8 * self.peak(l.format)) / burst.max(1e-12)).min(1.0);
            burst * (1.0 + busy * (1.0 / share - 1.0))
        };
        match l.format {
            NumberFormat::Bf16 => dense(DType::Bf16, Scaling::None),
            NumberFormat::Fp8 if self.eight_bit.is_some() => dense(DType::Fp8, Scaling::Tensor),
            NumberFormat::Fp8Block if self.eight_bit.is_some() => dense(DType::Fp8, Scaling::Block128),
            NumberFormat::Nvfp4 if self.four_bit.is_some() => dense(DType::Fp4, Scaling::MicroBlock),
            NumberFormat::Int8 => dense(DType::Int8, Scaling::Tensor),
            // Weight-only: fewer bytes, 16-bit arithmetic.
            format => {
                let found = self.lookup.weight_only(match format {
                    NumberFormat::W8a16 | NumberFormat::Fp8 | NumberFormat::Fp8Block => "w8a16",
                    _ => "w4a16",
                });
                let weights = (l.n * l.k) as f64 * format.weight_bits() / 8.0;
                let bytes = weights + 2.0 * tokens * (l.n + l.k) as f64;
                let flops = 2.0 * tokens * (l.n * l.k) as f64;
                let residual = Residual::new(found.residual);
                let point = [tokens, l.n as f64, l.k as f64];
                found.law.seconds(self.rates, flops, bytes) * residual.at(point).exp()
            }
        }
    }

    /// Matrix products of all layers.
    pub(super) fn products(&self, shape: &ServingShape, tokens: f64) -> f64 {
        shape.linears.iter().filter(|l| !l.last_token_only).map(|l| l.layers * self.linear(l, tokens)).sum()
    }

    /// Kernels that cast the activations of narrow products, and their time: the product tables hold the products
    /// alone. Each reads its input in 16 bits and writes it in the format's width.
    pub(super) fn casts(&self, shape: &ServingShape, tokens: f64) -> (f64, f64) {
        let width = |format: NumberFormat| match format {
            NumberFormat::Fp8 | NumberFormat::Fp8Block => self.eight_bit.map(|_| 1.0),
            NumberFormat::Int8 => Some(1.0),
            NumberFormat::Nvfp4 => self.four_bit.map(|_| 0.5 + 1.0 / 16.0),
            _ => None,
        };
        let (mut kernels, mut bytes) = (0.0, 0.0);
        for l in shape.linears.iter().filter(|l| !l.last_token_only) {
            if let Some(width) = width(l.format) {
                kernels += l.layers;
                bytes += l.layers * tokens * l.k as f64 * (2.0 + width);
            }
        }
        let time = if kernels > 0.0 {
            let launches = kernels.round().max(1.0) as u32;
            self.costs.memory(MemoryClass::Quantize, bytes as u64, launches, 0.0).time.0
        } else {
            0.0
        };
        (kernels, time)
    }

    /// What the memory-bound kernels of all layers move, their launches left out.
    pub(super) fn small(&self, shape: &ServingShape, tokens: f64) -> f64 {
        let kernels = shape.small_kernels.round().max(1.0) as u32;
        let bytes = shape.small_bytes_per_token * tokens;
        let whole = self.costs.memory(MemoryClass::Norm, bytes as u64, kernels, 0.0).time.0;
        (whole - self.small_launches(shape)).max(0.0)
    }

    /// Launches of the memory-bound kernels of all layers, timed alone: kernels that move nothing.
    pub(super) fn small_launches(&self, shape: &ServingShape) -> f64 {
        let kernels = shape.small_kernels.round().max(1.0) as u32;
        self.costs.memory(MemoryClass::Norm, 0, kernels, 0.0).time.0
    }

    /// The product of the output layer.
    pub(super) fn head(&self, shape: &ServingShape, tokens: f64) -> f64 {
        shape.linears.iter().filter(|l| l.last_token_only).map(|l| self.linear(l, tokens)).sum()
    }

    /// Logits are gathered over the ranks and sampled.
    pub(super) fn sampling(&self, shape: &ServingShape, tokens: f64) -> f64 {
        let logits: f64 =
            shape.linears.iter().filter(|l| l.last_token_only).map(|l| (l.n * 2) as f64 * tokens).sum();
        let gather = if self.d.tp > 1 {
            let bytes = logits * f64::from(self.d.tp);
            self.costs.collective(CollectiveKind::AllGather, bytes as u64, &self.tp).time.0
        } else {
            0.0
        };
        gather + 4.0 * logits * f64::from(self.d.tp) / (0.5 * self.rates.bandwidth)
    }

    /// Matrix products of all layers at the peak rate, as if operands came at once.
    pub(super) fn arithmetic(&self, shape: &ServingShape, tokens: f64) -> f64 {
        let one = |l: &Linear| l.layers * 2.0 * tokens * (l.n * l.k) as f64 / self.peak(l.format);
        shape.linears.iter().filter(|l| !l.last_token_only).map(one).sum()
    }

    /// Least time of the matrix products of one rank.
    pub(super) fn roofline(&self, shape: &ServingShape, tokens: f64, head: bool) -> f64 {
        let one = |l: &Linear| {
            let flops = 2.0 * tokens * (l.n * l.k) as f64;
            let bytes = (l.n * l.k) as f64 * l.format.weight_bits() / 8.0;
            l.layers * (flops / self.peak(l.format)).max(bytes / self.rates.bandwidth)
        };
        shape.linears.iter().filter(|l| l.last_token_only == head).map(one).sum()
    }
}
