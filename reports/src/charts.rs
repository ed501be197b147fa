//! Charts as SVG text, drawn with plotters; colours follow the page's theme.

mod bars;
mod canvas;
mod curve;
mod lines;
mod memory;
mod pareto;
mod timeline;
mod waterfall;

pub use bars::{Bar, bars};
pub use curve::curve;
pub use lines::{Limit, Line, lines};
pub use memory::memory;
pub use pareto::{ParetoMark, pareto};
pub use timeline::timeline;
pub use waterfall::waterfall;

/// The colour of series `index`, as CSS.
pub fn colour(index: usize) -> String {
    canvas::css(index)
}
