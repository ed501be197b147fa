//! The only place that knows about threads: an ordered map. Results never depend on the number of threads.

/// Applies `f` to every item and keeps the order.
#[cfg(feature = "parallel")]
pub(crate) fn map<T: Sync, R: Send>(items: &[T], f: impl Fn(&T) -> R + Sync + Send) -> Vec<R> {
    use rayon::prelude::*;
    // Below this many items the hand-over costs more than it brings.
    const FEW: usize = 16;
    if items.len() < FEW {
        return items.iter().map(f).collect();
    }
    items.par_iter().with_min_len(FEW / 4).map(f).collect()
}

/// Applies `f` to every item and keeps the order.
#[cfg(not(feature = "parallel"))]
pub(crate) fn map<T, R>(items: &[T], f: impl Fn(&T) -> R) -> Vec<R> {
    items.iter().map(f).collect()
}

/// Like [`map`], for few and long tasks.
#[cfg(feature = "parallel")]
pub(crate) fn map_long<T: Sync, R: Send>(items: &[T], f: impl Fn(&T) -> R + Sync + Send) -> Vec<R> {
    use rayon::prelude::*;
    items.par_iter().with_max_len(1).map(f).collect()
}

/// Like [`map`], for few and long tasks.
#[cfg(not(feature = "parallel"))]
pub(crate) fn map_long<T, R>(items: &[T], f: impl Fn(&T) -> R) -> Vec<R> {
    items.iter().map(f).collect()
}
