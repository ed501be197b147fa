//! What one row prints and what is predicted for it, as far as other rows of its source can contradict it.

/// What a row says that another may contradict.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Facts {
    /// All that must be equal in runs that differ in their global batch alone.
    pub peers: String,
    /// All that must be equal in runs that differ in their layers and heads alone.
    pub sisters: String,
    /// Sequences per step.
    pub batch: f64,
    /// Printed step time.
    pub seconds: Option<f64>,
    /// Printed TFLOP/s per accelerator.
    pub tflops: Option<f64>,
    /// Least time of the step: its arithmetic at the datasheet's peak, seconds.
    pub ideal: Option<f64>,
    /// Printed peak memory, GiB.
    pub peak: Option<f64>,
    /// Predicted peak memory, GiB.
    pub ledger: Option<f64>,
    /// Memory of the accelerator, GiB.
    pub capacity: f64,
}
