//! Whether the processor was as fast as it can be while something was measured.
//!
//! Cores of shared machines slow down for seconds when a neighbour computes beside them, which processor time does not
//! show: points measured then are off by a quarter against those measured before and after, and no law fits both. A
//! short product of matrices, which fits the nearest caches, is timed around every point; points around which it took
//! longer than at its best are measured again later.

use super::MeasureError;
use super::host::product;
use super::point::{Record, median};

/// Slowdown of the reference beyond which a point is measured again.
pub const DISTURBED: f64 = 1.06;
/// How often a point is measured again at most.
pub const AGAIN: usize = 2;
/// Share of a calibration's time for that.
pub const SHARE: f64 = 0.25;

/// Rows and columns of the reference: tens of microseconds.
const SIZE: usize = 96;
/// Products of one look.
const LOOKS: usize = 3;

/// The reference, ready to be timed again and again.
pub struct Calm {
    work: Box<dyn FnMut() -> Result<f64, MeasureError>>,
}

impl Calm {
    /// Prepares the reference.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new() -> Result<Self, MeasureError> {
        let mut work = product(SIZE)?;
        work()?;
        Ok(Self { work: Box::new(work) })
    }

    /// Processor seconds of the reference now.
    ///
    /// # Errors
    /// When the device fails.
    pub fn look(&mut self) -> Result<f64, MeasureError> {
        let times: Vec<f64> = (0..LOOKS).map(|_| (self.work)()).collect::<Result<_, _>>()?;
        Ok(median(&times))
    }
}

/// How much longer than at its best the reference took around the median record, as a share; 0 where it was not timed.
pub fn disturbed(records: &[Record]) -> f64 {
    let times: Vec<f64> = records.iter().filter_map(|r| r.reference).collect();
    let best = times.iter().copied().fold(f64::INFINITY, f64::min);
    if times.is_empty() { 0.0 } else { median(&times) / best - 1.0 }
}

#[cfg(test)]
mod tests {
    use super::Calm;

    #[test]
    fn the_reference_takes_time() {
        let mut calm = Calm::new().unwrap();
        assert!(calm.look().unwrap() > 1e-6);
    }
}
