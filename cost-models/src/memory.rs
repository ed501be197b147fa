//! Memory-bound operators: launch floor and a bandwidth that rises with the bytes per kernel.

use psim_hardware::profile::accelerator::MemoryTable;
use psim_models::operator::MemoryClass;

/// Number of memory classes.
pub(crate) const CLASSES: usize = 11;

/// Every class with the name that profiles use.
pub const CLASS_NAMES: [(MemoryClass, &str); CLASSES] = [
    (MemoryClass::Norm, "norm"),
    (MemoryClass::Activation, "activation"),
    (MemoryClass::Elementwise, "elementwise"),
    (MemoryClass::Rope, "rope"),
    (MemoryClass::Softmax, "softmax"),
    (MemoryClass::CrossEntropy, "cross-entropy"),
    (MemoryClass::Embedding, "embedding"),
    (MemoryClass::Optimizer, "optimizer"),
    (MemoryClass::Quantize, "quantize"),
    (MemoryClass::Permute, "permute"),
    (MemoryClass::Scan, "scan"),
];

/// Bandwidth law of one class.
#[derive(Debug, Clone, Copy)]
pub struct MemoryLaw {
    launch: f64,
    efficiency: f64,
    half_bytes: f64,
    /// Error of the table.
    pub sigma: f64,
}

impl MemoryLaw {
    /// Prepares a table.
    pub fn new(table: &MemoryTable) -> Self {
        Self {
            launch: table.launch_us * 1e-6,
            efficiency: table.efficiency,
            half_bytes: table.half_bytes,
            sigma: table.fit.sigma,
        }
    }

    /// Seconds to move `bytes` with `kernels` launches at `bandwidth` bytes/s: launches + (bytes + half_bytes·kernels) / rate.
    pub fn seconds(&self, bandwidth: f64, bytes: f64, kernels: f64) -> f64 {
        kernels * self.launch + (bytes + kernels * self.half_bytes) / (bandwidth * self.efficiency)
    }
}
