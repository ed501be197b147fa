//! What the tables of a deployment are built from, and the peak rates of number formats.

use super::super::engine::EngineParameters;
use super::super::kernels::Datasheet;
use super::super::tables::Lookup;
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
    pub(super) d: Deployment,
    pub(super) tp: GroupShape,
    pub(super) all: GroupShape,
}

impl Pricing<'_> {
    /// Matrix rate of a format, flop/s.
    pub(super) fn peak(&self, format: NumberFormat) -> f64 {
        let eight = self.eight_bit.unwrap_or(self.rates.half);
        match format {
            NumberFormat::Bf16 | NumberFormat::W8a16 | NumberFormat::W4a16 => self.rates.half,
            NumberFormat::Fp8 | NumberFormat::Fp8Block | NumberFormat::Int8 | NumberFormat::W4a8 => eight,
            NumberFormat::Nvfp4 => self.four_bit.unwrap_or(self.rates.half),
            NumberFormat::Mxfp4 => {
                if self.four_bit.is_some() {
                    eight
                } else {
                    self.rates.half
                }
            }
            NumberFormat::Q4km => eight,
        }
    }
}
