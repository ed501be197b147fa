//! Board power while an operator runs.

use crate::Bound;
use psim_hardware::profile::accelerator::PowerTable;
use psim_hardware::{Accelerator, Watts};

/// Shares of the thermal design power on parts without measurements: matrix kernels run at the limit.
pub const DEFAULT_POWER: PowerTable = PowerTable { idle: 0.12, compute: 0.95, memory: 0.65, network: 0.40 };

/// Thermal design power assumed where the datasheet has none.
const UNKNOWN_TDP: f64 = 500.0;

/// Power of one board by what limits it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PowerModel {
    tdp: f64,
    table: PowerTable,
}

impl PowerModel {
    /// Binds a table to a board.
    pub fn new(accelerator: &Accelerator, table: Option<PowerTable>) -> Self {
        Self { tdp: accelerator.tdp.map_or(UNKNOWN_TDP, |w| w.0), table: table.unwrap_or(DEFAULT_POWER) }
    }

    /// Mean board power while an operator limited by `bound` runs.
    pub fn busy(&self, bound: Bound) -> Watts {
        let share = match bound {
            Bound::Compute => self.table.compute,
            Bound::Memory => self.table.memory,
            Bound::Network => self.table.network,
            Bound::Latency => 0.5 * (self.table.idle + self.table.memory),
        };
        Watts(share * self.tdp)
    }

    /// Board power while nothing runs.
    pub fn idle(&self) -> Watts {
        Watts(self.table.idle * self.tdp)
    }
}
