//! What the tables of a deployment are built from, and the peak rates of number formats.

use super::super::engine::EngineParameters;
use super::super::kernels::Datasheet;
use super::super::tables::Lookup;
use super::sparse::Part;
use crate::CostModel;
use psim_hardware::GroupShape;
use psim_models::serving::{Deployment, NumberFormat};

/// What tables are built from.
pub(super) struct Pricing<'a> {
    pub(super) costs: &'a CostModel,
    pub(super) lookup: &'a Lookup,
    pub(super) library: &'a str,
    pub(super) rates: Datasheet,
    pub(super) p: EngineParameters,
    pub(super) four_bit: Option<f64>,
    pub(super) eight_bit: Option<f64>,
    pub(super) part: Part,
    pub(super) d: Deployment,
    pub(super) tp: GroupShape,
    pub(super) all: GroupShape,
}

impl Pricing<'_> {
    /// Matrix rate of a format, flop/s.
    pub(super) fn peak(&self, format: NumberFormat) -> f64 {
        peak(format, self.rates.half, (self.four_bit, self.eight_bit))
    }
}

/// Matrix rate of a format, flop/s, of a part with a rate in 16 bits and perhaps in four and eight.
pub(super) fn peak(
    format: NumberFormat,
    half: f64,
    (four_bit, eight_bit): (Option<f64>, Option<f64>),
) -> f64 {
    let eight = eight_bit.unwrap_or(half);
    match format {
        NumberFormat::Bf16 | NumberFormat::W8a16 | NumberFormat::W4a16 => half,
        NumberFormat::Fp8 | NumberFormat::Fp8Block | NumberFormat::Int8 | NumberFormat::W4a8 => eight,
        NumberFormat::Nvfp4 => four_bit.unwrap_or(half),
        NumberFormat::Mxfp4 => {
            if four_bit.is_some() {
                eight
            } else {
                half
            }
        }
        NumberFormat::Q4km => eight,
    }
}
