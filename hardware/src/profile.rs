//! Types of calibration profiles: what a machine, a fabric or a software stack really reaches.
//!
//! Values are fitted from measurements and live in `psim-cost-models` (built in) or in files people keep.

pub mod accelerator;
pub mod fabric;
pub mod machine;
pub mod stack;
pub mod sustained;

pub use accelerator::AcceleratorProfile;
pub use fabric::FabricProfile;
pub use machine::MachineFacts;
pub use stack::StackProfile;

use serde::{Deserialize, Serialize};

/// Where a predicted number comes from, weakest part first when several meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provenance {
    /// Nothing measured: datasheet and default efficiencies.
    Datasheet,
    /// From a measured relative (same vendor and nearest generation), scaled by datasheets.
    Transferred,
    /// Outside the measured range of this machine, by the fitted law.
    Extrapolated,
    /// Between measured points of this machine.
    Interpolated,
    /// At a measured point.
    Measured,
}
