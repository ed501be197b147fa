//! Where the border between prompts and answers lies, and when it moves.

use psim_hardware::{Seconds, Time};

/// Moves the border by what clients were promised (semi-PD, section on SLO-aware partitioning).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Controller {
    /// Promised time to the first token, for nine in ten requests.
    pub ttft: Seconds,
    /// Promised time per token after the first.
    pub tpot: Seconds,
    /// Time between two looks.
    pub window: Seconds,
    /// Share that moves at a time.
    pub step: f64,
    /// Least share of either side.
    pub least: f64,
}

impl Default for Controller {
    fn default() -> Self {
        Self { ttft: Seconds(1.0), tpot: Seconds(0.05), window: Seconds(1.0), step: 0.05, least: 0.1 }
    }
}

/// The border now, and what the window has seen.
#[derive(Debug, Clone)]
pub(super) struct Border {
    /// Share of the multiprocessors of prompts.
    pub(super) prompts: f64,
    controller: Option<Controller>,
    /// Times to the first token in this window, picoseconds.
    firsts: Vec<u64>,
    /// Busy picoseconds and steps of decoding when the window began.
    before: (u64, u64),
    pub(super) history: Vec<(Time, f64)>,
}

impl Border {
    pub(super) fn new(prompts: f64, controller: Option<Controller>) -> Self {
        Self { prompts, controller, firsts: Vec::new(), before: (0, 0), history: vec![(Time(0), prompts)] }
    }

    /// Picoseconds between looks.
    pub(super) fn window(&self) -> Option<u64> {
        self.controller.map(|c| ((c.window.0 * 1e12) as u64).max(1))
    }

    pub(super) fn first_token(&mut self, after: u64) {
        if self.controller.is_some() {
            self.firsts.push(after);
        }
    }

    /// Looks at the window that ends now: the side that is further from its promise gains. Prompts that wait while none
    /// was finished in the window count as a broken promise.
    pub(super) fn move_on(&mut self, now: u64, (busy, steps): (u64, u64), waiting: usize) {
        let Some(c) = self.controller else { return };
        self.firsts.sort_unstable();
        let worst =
            self.firsts.get(self.firsts.len() * 9 / 10).map(|t| *t as f64 * 1e-12 / c.ttft.0.max(1e-9));
        let first = worst.unwrap_or(if waiting > 0 { 2.0 } else { 0.0 });
        let stepped = steps - self.before.1;
        let step = if stepped > 0 { (busy - self.before.0) as f64 * 1e-12 / stepped as f64 } else { 0.0 };
        let token = step / c.tpot.0.max(1e-9);
        let (low, high) = (c.least.clamp(0.05, 0.5), 1.0 - c.least.clamp(0.05, 0.5));
        let before = self.prompts;
        // A band of a tenth keeps the border still where both sides are as far from their promise.
        if first > 1.1 * token {
            self.prompts = (self.prompts + c.step).min(high);
        } else if token > 1.1 * first {
            self.prompts = (self.prompts - c.step).max(low);
        }
        if (self.prompts - before).abs() > 1e-9 {
            self.history.push((Time(now), self.prompts));
        }
        self.firsts.clear();
        self.before = (busy, steps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_border_moves_to_the_side_that_is_worse_off() {
        let c = Controller { ttft: Seconds(1.0), tpot: Seconds(0.05), step: 0.1, ..Controller::default() };
        let mut border = Border::new(0.5, Some(c));
        // Ten first tokens after two seconds, steps of 10 ms: prompts gain.
        (0..10).for_each(|_| border.first_token(2_000_000_000_000));
        border.move_on(1, (1_000_000_000_000, 100), 0);
        assert!((border.prompts - 0.6).abs() < 1e-12);
        // First tokens after 0.1 s, steps of 100 ms: answers gain, down to the least share.
        for look in 0..8 {
            (0..10).for_each(|_| border.first_token(100_000_000_000));
            border.move_on(2 + look, (1_000_000_000_000 * (look + 2), 100 + 10 * (look + 1)), 0);
        }
        assert!((border.prompts - 0.1).abs() < 1e-12, "{}", border.prompts);
        // Nothing seen at all: nothing moves. Prompts that wait without end: prompts gain.
        border.move_on(20, border.before, 0);
        assert!((border.prompts - 0.1).abs() < 1e-12);
        border.move_on(21, border.before, 3);
        assert!((border.prompts - 0.2).abs() < 1e-12);
        assert_eq!(border.history.len(), 8);
    }
}
