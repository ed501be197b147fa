//! How many drafted tokens the target takes: a random process per sequence with a seed, and its mean in closed form.

use psim_models::serving::rng::Rng;
use serde::{Deserialize, Serialize};

/// Chances that drafted tokens are taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Acceptance {
    /// Every token with the same chance, independently (Leviathan et al. 2023, section 3.1).
    Rate(f64),
    /// Chance at each depth, given that all before were taken; deeper ones keep the last value.
    Depth(Vec<f64>),
}

impl Acceptance {
    /// Chance of the token at `depth` (from 0), given that all before it were taken.
    pub fn at(&self, depth: usize) -> f64 {
        match self {
            Self::Rate(rate) => *rate,
            Self::Depth(rates) => rates.get(depth).or(rates.last()).copied().unwrap_or(0.0),
        }
    }

    /// What is wrong with the numbers, if anything.
    pub fn fault(&self) -> Option<String> {
        let wrong = |rate: &f64| {
            (!(0.0..=1.0).contains(rate)).then(|| format!("an acceptance of {rate} is not between 0 and 1"))
        };
        match self {
            Self::Rate(rate) => wrong(rate),
            Self::Depth(rates) if rates.is_empty() => Some("a list of acceptances is empty".to_owned()),
            Self::Depth(rates) => rates.iter().find_map(wrong),
        }
    }

    /// Mean tokens of a round of `drafted` tokens, the target's own one included: 1 + Σ of the products of the chances;
    /// (1 − α^(γ+1)) / (1 − α) for one rate.
    pub fn mean_tokens(&self, drafted: u32) -> f64 {
        let (mut total, mut reach) = (1.0, 1.0);
        for depth in 0..drafted as usize {
            reach *= self.at(depth);
            total += reach;
        }
        total
    }

    /// Drafted tokens taken in one round, 0 to `drafted`.
    pub fn draw(&self, drafted: u32, rng: &mut Rng) -> u32 {
        (0..drafted).take_while(|depth| rng.unit() <= self.at(*depth as usize)).count() as u32
    }
}

/// A tree of candidates verified in one step (Medusa, prompt tokens of PPD).
///
/// `chances[d][r]`: chance that the candidate of rank `r` at depth `d` is the right one, given that its parent is.
/// Ranks exclude each other, so that each row sums to at most 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeChances {
    /// By depth, then rank.
    pub chances: Vec<Vec<f64>>,
}

/// A tree: nodes in order of their chance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tree {
    /// Parent (`None` hangs below the root) and rank of each node.
    nodes: Vec<(Option<usize>, usize)>,
    /// Chance of the whole path to each node.
    reach: Vec<f64>,
    chances: TreeChances,
}

impl TreeChances {
    /// What is wrong with the numbers, if anything.
    pub fn fault(&self) -> Option<String> {
        self.chances.iter().enumerate().find_map(|(depth, row)| {
            let sum: f64 = row.iter().sum();
            (row.iter().any(|p| !(0.0..=1.0).contains(p)) || sum > 1.0 + 1e-9)
                .then(|| format!("the chances at depth {depth} are not between 0 and 1 or sum to {sum:.3}"))
        })
    }

    /// The tree of `nodes` candidates with the highest mean: the likeliest paths, greedily, which is optimal because a
    /// path is never likelier than its beginning (Medusa, Cai et al. 2024, section 2.3.3).
    pub fn best_tree(&self, nodes: usize) -> Tree {
        let mut tree = Tree { nodes: Vec::new(), reach: Vec::new(), chances: self.clone() };
        // Open candidates: (chance, parent, depth, rank).
        let mut open: Vec<(f64, Option<usize>, usize, usize)> = Vec::new();
        let row = |depth: usize| self.chances.get(depth).map_or(&[][..], Vec::as_slice);
        open.extend(row(0).iter().enumerate().map(|(rank, p)| (*p, None, 0, rank)));
        while tree.nodes.len() < nodes {
            let best = open
                .iter()
                .enumerate()
                .max_by(|(i, a), (j, b)| a.0.total_cmp(&b.0).then(j.cmp(i)))
                .map(|(index, _)| index);
            let Some(index) = best else { break };
            let (chance, parent, depth, rank) = open.remove(index);
            let id = tree.nodes.len();
            tree.nodes.push((parent, rank));
            tree.reach.push(chance);
            open.extend(row(depth + 1).iter().enumerate().map(|(r, p)| (chance * p, Some(id), depth + 1, r)));
        }
        tree
    }
}

impl Tree {
    /// Candidates.
    pub fn len(&self) -> u32 {
        self.nodes.len() as u32
    }

    /// No candidates: ordinary decoding.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Mean tokens of a round, the target's own one included: 1 + Σ of the chances of the paths.
    pub fn mean_tokens(&self) -> f64 {
        1.0 + self.reach.iter().sum::<f64>()
    }

    /// Candidates taken in one round: at each depth at most one rank is right.
    pub fn draw(&self, rng: &mut Rng) -> u32 {
        let (mut at, mut depth) = (None, 0usize);
        loop {
            let Some(row) = self.chances.chances.get(depth) else { return depth as u32 };
            let mut pick = rng.unit();
            let right = row.iter().position(|p| {
                pick -= p;
                pick <= 0.0
            });
            let next =
                right.and_then(|rank| self.nodes.iter().position(|(parent, r)| *parent == at && *r == rank));
            match next {
                Some(node) => at = Some(node),
                None => return depth as u32,
            }
            depth += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_the_closed_forms() {
        for (alpha, gamma) in [(0.8f64, 4), (0.7, 1), (0.0, 3), (0.95, 8)] {
            let closed = (1.0 - alpha.powi(gamma + 1)) / (1.0 - alpha);
            assert!((Acceptance::Rate(alpha).mean_tokens(gamma as u32) - closed).abs() < 1e-12);
        }
        // DeepSeek's multi-token prediction: one draft taken at 70 % gives 1.7 tokens a step.
        assert!((Acceptance::Rate(0.7).mean_tokens(1) - 1.7).abs() < 1e-12);
        assert!((Acceptance::Depth(vec![0.8, 0.5]).mean_tokens(3) - (1.0 + 0.8 + 0.4 + 0.2)).abs() < 1e-12);
    }

    #[test]
    fn draws_have_the_mean_of_the_closed_form() {
        let mut rng = Rng::new(3, 1);
        let n = 200_000;
        for (acceptance, gamma) in [(Acceptance::Rate(0.8), 5), (Acceptance::Depth(vec![0.9, 0.6, 0.3]), 4)] {
            let sum: u64 = (0..n).map(|_| u64::from(acceptance.draw(gamma, &mut rng)) + 1).sum();
            let mean = sum as f64 / f64::from(n);
            assert!((mean - acceptance.mean_tokens(gamma)).abs() < 0.02, "{acceptance:?} {mean}");
        }
        let chances = TreeChances { chances: vec![vec![0.6, 0.2, 0.1], vec![0.5, 0.2], vec![0.4]] };
        for nodes in [1, 3, 6, 12] {
            let tree = chances.best_tree(nodes);
            let sum: u64 = (0..n).map(|_| u64::from(tree.draw(&mut rng)) + 1).sum();
            let mean = sum as f64 / f64::from(n);
            assert!((mean - tree.mean_tokens()).abs() < 0.02, "{nodes} {mean} {}", tree.mean_tokens());
        }
    }

    #[test]
    fn the_best_tree_by_hand_and_against_all_trees() {
        let chances = TreeChances { chances: vec![vec![0.6, 0.2], vec![0.5, 0.3]] };
        // Paths: 0.6, 0.6·0.5 = 0.3, 0.2, 0.6·0.3 = 0.18, 0.2·0.5 = 0.1, 0.2·0.3 = 0.06.
        let tree = chances.best_tree(4);
        assert!((tree.mean_tokens() - (1.0 + 0.6 + 0.3 + 0.2 + 0.18)).abs() < 1e-12);
        // The oracle: every set of four nodes that holds the parents of its nodes.
        let (reach, parent) =
            ([0.6, 0.2, 0.3, 0.18, 0.1, 0.06], [None, None, Some(0), Some(0), Some(1), Some(1)]);
        let best = (0u32..64)
            .filter(|set| set.count_ones() == 4)
            .filter(|set| {
                (0..6).all(|i| set >> i & 1 == 0 || parent[i].is_none_or(|p: usize| set >> p & 1 == 1))
            })
            .map(|set| 1.0 + (0..6).filter(|i| set >> i & 1 == 1).map(|i| reach[i]).sum::<f64>())
            .fold(0.0, f64::max);
        assert!((tree.mean_tokens() - best).abs() < 1e-12);
        assert_eq!(chances.best_tree(100).len(), 6);
        assert!(TreeChances { chances: vec![vec![0.7, 0.5]] }.fault().is_some());
        assert!(Acceptance::Rate(1.2).fault().is_some() && Acceptance::Depth(vec![]).fault().is_some());
    }
}
