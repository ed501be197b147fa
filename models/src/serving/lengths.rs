//! Lengths of prompts and answers, in tokens.

use super::rng::Rng;
use serde::{Deserialize, Serialize};

/// Longest prompt or answer that is accepted, tokens.
pub const MAX_LENGTH: u64 = 1 << 24;

/// A distribution of lengths.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Lengths {
    /// Always this many tokens.
    Fixed(u64),
    /// Uniform between two whole numbers, both included.
    Uniform([u64; 2]),
    /// Normal, cut at 1 token.
    Normal {
        /// Mean, tokens.
        mean: f64,
        /// Standard deviation, tokens.
        sd: f64,
    },
    /// Log-normal, given by its own mean and coefficient of variation.
    Lognormal {
        /// Mean, tokens.
        mean: f64,
        /// Standard deviation / mean.
        cv: f64,
    },
    /// Geometric with this mean: the stop token has the same chance at every token.
    Geometric(f64),
    /// Drawn with replacement from these values (a data set).
    Values(Vec<u32>),
}

impl Lengths {
    /// One length, at least 1.
    pub fn draw(&self, rng: &mut Rng) -> u32 {
        let tokens = match self {
            Self::Fixed(n) => *n as f64,
            Self::Uniform([low, high]) => rng.between(*low, *high) as f64,
            Self::Normal { mean, sd } => mean + sd * rng.normal(),
            Self::Lognormal { mean, cv } => {
                let variance = (1.0 + cv * cv).ln();
                (mean.ln() - variance / 2.0 + variance.sqrt() * rng.normal()).exp()
            }
            Self::Geometric(mean) if *mean <= 1.0 => 1.0,
            Self::Geometric(mean) => (rng.unit().ln() / (1.0 - 1.0 / mean).ln()).ceil(),
            Self::Values(values) if values.is_empty() => 1.0,
            Self::Values(values) => f64::from(values[rng.between(0, values.len() as u64 - 1) as usize]),
        };
        tokens.round().clamp(1.0, MAX_LENGTH as f64) as u32
    }

    /// Mean, tokens (of the distribution before it is cut at 1).
    pub fn mean(&self) -> f64 {
        match self {
            Self::Fixed(n) => *n as f64,
            Self::Uniform([low, high]) => (*low as f64 + *high as f64) / 2.0,
            Self::Normal { mean, .. } | Self::Lognormal { mean, .. } | Self::Geometric(mean) => *mean,
            Self::Values(values) => {
                values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len().max(1) as f64
            }
        }
    }

    /// What is wrong with the numbers, if anything.
    pub fn fault(&self) -> Option<String> {
        let range = |n: f64, what: &str| {
            (!(n.is_finite() && (1.0..=MAX_LENGTH as f64).contains(&n)))
                .then(|| format!("{what} of {n} tokens is outside 1 to {MAX_LENGTH}"))
        };
        match self {
            Self::Fixed(n) => range(*n as f64, "a length"),
            Self::Uniform([low, high]) if low > high => {
                Some(format!("a uniform length from {low} to {high} is empty"))
            }
            Self::Uniform([low, high]) => range(*low as f64, "a length").or(range(*high as f64, "a length")),
            Self::Geometric(mean) => range(*mean, "a mean"),
            Self::Normal { mean, sd: spread } | Self::Lognormal { mean, cv: spread } => {
                range(*mean, "a mean").or_else(|| {
                    (!(spread.is_finite() && *spread >= 0.0))
                        .then(|| format!("a spread of {spread} is not a number of at least 0"))
                })
            }
            Self::Values(values) if values.is_empty() => Some("a list of lengths is empty".to_owned()),
            Self::Values(values) => values.iter().find_map(|v| range(f64::from(*v), "a length")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_hold() {
        for lengths in [
            Lengths::Fixed(100),
            Lengths::Uniform([80, 120]),
            Lengths::Normal { mean: 100.0, sd: 10.0 },
            Lengths::Lognormal { mean: 100.0, cv: 1.0 },
            Lengths::Geometric(100.0),
            Lengths::Values(vec![50, 150]),
        ] {
            let mut rng = Rng::new(7, 1);
            let n = 100_000;
            let mean = (0..n).map(|_| f64::from(lengths.draw(&mut rng))).sum::<f64>() / f64::from(n);
            assert!((mean / lengths.mean() - 1.0).abs() < 0.02, "{lengths:?}: {mean}");
            assert_eq!(lengths.fault(), None);
        }
    }

    #[test]
    fn faults_are_named() {
        for bad in [
            Lengths::Fixed(0),
            Lengths::Uniform([9, 3]),
            Lengths::Lognormal { mean: 10.0, cv: f64::NAN },
            Lengths::Values(vec![]),
            Lengths::Geometric(f64::INFINITY),
        ] {
            assert!(bad.fault().is_some(), "{bad:?}");
        }
    }
}
