//! Fused attention: query tiles over units, exponentials on narrow heads, key/value traffic; times a residual.
//!
//! Flops are counted on the computed part of the score rectangle (`density`); backward counts 2.5 × forward
//! (Dao 2023, FlashAttention-2, section 4.1: five products against two).

use crate::gemm::{Rates, overlap};
use crate::grid::Residual;
use psim_hardware::profile::accelerator::{AttentionLaw, AttentionTable};

/// Query rows of one tile.
pub const QUERY_TILE: f64 = 128.0;

/// Shape of one call as the law sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Sequences × query heads.
    pub heads: f64,
    /// Sequences × key/value heads; query heads that share one are packed into a tile when decoding.
    pub groups: f64,
    /// Query tokens per sequence.
    pub seq_q: f64,
    /// Key tokens per sequence.
    pub seq_kv: f64,
    /// Share of the rectangle computed.
    pub density: f64,
    /// Mean of query/key and value width.
    pub width: f64,
    /// Flops per score and width unit: 4 forward, 10 backward.
    pub flops_per: f64,
    /// Unavoidable bytes.
    pub bytes: f64,
}

impl AttentionShape {
    /// Query tiles and the rows of each that do work: one head per tile where a sequence fills it, otherwise the query
    /// heads that share keys and values together.
    pub fn tiles(&self) -> (f64, f64) {
        if self.seq_q >= QUERY_TILE {
            (self.heads * (self.seq_q / QUERY_TILE).ceil(), QUERY_TILE)
        } else {
            let packed = self.seq_q * self.heads / self.groups.max(1.0);
            (self.groups * (packed / QUERY_TILE).ceil(), packed.min(QUERY_TILE))
        }
    }

    /// Grid coordinates: query tiles, computed key tokens, head width.
    pub fn coordinates(&self) -> [f64; 3] {
        [self.tiles().0, self.seq_kv * self.density, self.width]
    }
}

/// Time of the law in seconds.
pub fn law_seconds(law: &AttentionLaw, rates: Rates, s: &AttentionShape) -> f64 {
    let (tiles, rows) = s.tiles();
    let waves = tiles / rates.units;
    // Long caches are split over idle units (flash-decoding); whole sequences are not.
    let least = if s.seq_q >= QUERY_TILE { 1.0 } else { waves };
    let spread = law.quantisation * waves.ceil().min(waves + 1.0).max(least)
        + (1.0 - law.quantisation) * waves.max(least);
    let narrow = if s.width < 128.0 { law.narrow_head.powf((128.0 / s.width).log2()) } else { 1.0 };
    let keys = s.seq_kv * s.density + law.prologue;
    let tile_flops = s.flops_per * rows.max(16.0) * keys * s.width;
    let compute = spread * tile_flops / (rates.peak * law.compute * narrow / rates.units);
    let memory = s.bytes / (rates.bandwidth * law.memory);
    law.launch_us * 1e-6 + overlap(compute, memory)
}

/// A table made ready for pricing.
#[derive(Debug, Clone)]
pub struct AttentionModel {
    law: AttentionLaw,
    residual: Residual,
    /// Held-out error of the table.
    pub sigma: f64,
}

impl AttentionModel {
    /// Prepares a table.
    pub fn new(table: &AttentionTable) -> Self {
        Self { law: table.law, residual: Residual::new(table.residual.as_ref()), sigma: table.fit.sigma }
    }

    /// Seconds, and whether the shape lies inside the measured range.
    pub fn seconds(&self, rates: Rates, shape: &AttentionShape) -> (f64, bool) {
        let point = shape.coordinates();
        (law_seconds(&self.law, rates, shape) * self.residual.at(point).exp(), self.residual.covers(point))
    }
}
