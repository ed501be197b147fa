//! PEARL (Liu et al. 2025): drafting and verification at the same time, as a state per sequence.
//!
//! *Pre-verify*: γ tokens are drafted while the target checks the first of them. Refused: its own token comes in its
//! place. Taken: γ − 1 drafts are left. *Post-verify*: the target checks the drafts that are left while γ more are
//! drafted after them. All taken: those γ are next. Else the target's token comes after the taken ones, and what was
//! drafted meanwhile is lost.

use super::acceptance::Acceptance;
use psim_models::serving::rng::Rng;

/// Where a sequence stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct PearlState {
    /// Drafts to check; 0 in pre-verify.
    pending: u32,
}

impl PearlState {
    /// Tokens of the next round.
    pub(super) fn round(&mut self, gamma: u32, acceptance: &Acceptance, rng: &mut Rng) -> u32 {
        if self.pending == 0 {
            if acceptance.draw(1, rng) == 1 {
                self.pending = gamma - 1;
            }
            return 1;
        }
        let taken = acceptance.draw(self.pending, rng);
        if taken == self.pending {
            self.pending = gamma;
            taken
        } else {
            self.pending = 0;
            taken + 1
        }
    }
}

/// Mean tokens of a round in the long run, for one acceptance rate: the Markov chain over pre-verify (P), the first
/// post-verify with γ − 1 drafts (F) and later ones with γ (G). With a = α^(γ−1), g = α^γ the visits are in proportion
/// P : F : G = 1 : α : α·a / (1 − g).
pub fn mean_tokens(alpha: f64, gamma: u32) -> f64 {
    if gamma <= 1 {
        return 1.0;
    }
    let tokens = |drafts: u32| -> f64 {
        // All taken: `drafts`; else taken + 1: Σ of α^k for k < drafts.
        (0..drafts).map(|k| alpha.powi(k as i32)).sum()
    };
    let (a, g) = (alpha.powi(gamma as i32 - 1), alpha.powi(gamma as i32));
    let first = alpha;
    let later = if g < 1.0 { alpha * a / (1.0 - g) } else { return f64::from(gamma) };
    let rounds = 1.0 + first + later;
    (1.0 + first * tokens(gamma - 1) + later * tokens(gamma)) / rounds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_has_the_mean_of_the_chain() {
        for (alpha, gamma) in [(0.8, 4), (0.6, 3), (0.95, 6), (0.3, 2)] {
            let (mut state, mut rng) = (PearlState::default(), Rng::new(9, 2));
            let n = 300_000u32;
            let acceptance = Acceptance::Rate(alpha);
            let sum: u64 = (0..n).map(|_| u64::from(state.round(gamma, &acceptance, &mut rng))).sum();
            let mean = sum as f64 / f64::from(n);
            assert!(
                (mean / mean_tokens(alpha, gamma) - 1.0).abs() < 0.01,
                "{mean} {}",
                mean_tokens(alpha, gamma)
            );
        }
        assert!((mean_tokens(1.0, 5) - 5.0).abs() < 1e-12);
    }
}
