//! Progress bars on stderr, for work that takes over a second, and only on a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

/// A bar, or nothing.
#[derive(Debug)]
pub(crate) struct Bar {
    bar: Option<ProgressBar>,
}

impl Bar {
    /// A bar that appears only on a terminal.
    pub(crate) fn new(shown: bool) -> Self {
        let bar = shown.then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
            if let Ok(style) = ProgressStyle::with_template("{msg:12} [{bar:40}] {pos}/{len} {elapsed}") {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar }
    }

    /// Shows how far work is whose steps are not counted; `done` runs from 0 to 1.
    pub(crate) fn show(&self, message: &str, done: f64) {
        if let Some(bar) = &self.bar {
            bar.set_message(message.to_owned());
            bar.set_length(1000);
            bar.set_position((done.clamp(0.0, 1.0) * 1000.0) as u64);
        }
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl psim_planner::Progress for Bar {
    fn report(&self, phase: &'static str, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_message(phase);
            bar.set_length(total);
            bar.set_position(done);
        }
    }
}
