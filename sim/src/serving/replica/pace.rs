//! The pace of each answer: the exponential mean of the gaps between its tokens, as users with a reading speed feel it.
//!
//! The service level of DeepSpeed-FastGen (blogs/deepspeed-fastgen, section on effective throughput) is of this kind. The
//! mean is the weighted one of the gaps so far with weights (1 - 2/(span + 1))^age, as its benchmark computes it.

use super::Replica;
use crate::serving::lane::Leaving;
use crate::serving::store::Store;

impl Replica<'_> {
    /// Keeps the ends of the pending steps of a lane that decodes in them.
    pub(super) fn log_ends(&mut self, lane: usize) {
        if self.limits.pace.is_some() {
            self.ends[lane].extend_from_slice(&self.step_ends);
        }
    }

    /// Books the pace of a sequence that leaves the batch. One that was thrown out before begins anew.
    pub(super) fn follow_pace(&mut self, lane: usize, gone: &Leaving, store: &mut Store) {
        let Some(span) = self.limits.pace else { return };
        let ends = &self.ends[lane];
        let own = &ends[ends.len().saturating_sub(gone.steps as usize)..];
        let progress = store.progress(gone.id);
        let since = if progress.finish > 0 { progress.finish } else { progress.first_token };
        progress.slowest = progress.slowest.max(slowest(since, own, span));
    }
}

/// Highest exponential mean of the gaps of tokens that come at `ends`, the one before at `since`.
fn slowest(since: u64, ends: &[u64], span: u32) -> u64 {
    let keep = 1.0 - 2.0 / (f64::from(span) + 1.0);
    let (mut sum, mut weight, mut worst, mut last) = (0.0, 0.0, 0.0f64, since);
    for end in ends {
        sum = sum * keep + end.saturating_sub(last) as f64;
        weight = weight * keep + 1.0;
        worst = worst.max(sum / weight);
        last = *end;
    }
    worst as u64
}

#[cfg(test)]
mod tests {
    use super::slowest;

    #[test]
    fn the_mean_by_hand() {
        // Span 3 keeps a half: gaps 10, 40, 10: 10; (5 + 40) / 1.5 = 30; (2.5 + 20 + 10) / 1.75 = 18.57.
        assert_eq!(slowest(100, &[110, 150, 160], 3), 30);
        assert_eq!(slowest(100, &[], 3), 0);
        // Equal gaps have the mean of a gap.
        assert_eq!(slowest(0, &[7, 14, 21, 28], 16), 7);
    }
}
