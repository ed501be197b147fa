//! Progress and cancellation of long searches.

/// Told how far a search is; asked whether to go on.
pub trait Progress: Sync {
    /// `done` of `total` units of `phase` are finished.
    fn report(&self, phase: &'static str, done: u64, total: u64);

    /// True when the search should stop as soon as possible.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Reports nothing and never cancels.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn report(&self, _phase: &'static str, _done: u64, _total: u64) {}
}
