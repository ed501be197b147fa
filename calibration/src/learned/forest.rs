//! A random forest for regression (Breiman 2001): trees on bootstrap samples, the best of a random subset of features
//! at each split, the mean of all trees.

/// How a forest grows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Growth {
    /// Trees.
    pub trees: usize,
    /// Fewest samples of a leaf.
    pub leaf: usize,
    /// Features that are tried at a split.
    pub tried: usize,
    /// Seed of the bootstrap and of the subsets.
    pub seed: u64,
}

impl Growth {
    /// The usual choice for regression: a third of the features or more, small leaves.
    pub fn usual(features: usize) -> Self {
        Self { trees: 100, leaf: 2, tried: (features * 2).div_ceil(3), seed: 17 }
    }
}

#[derive(Debug, Clone, Copy)]
enum Node {
    Leaf(f64),
    /// Feature, threshold (below or equal goes to the next node), index of the other side.
    Split(usize, f64, usize),
}

/// A grown forest over samples of `D` features.
#[derive(Debug, Clone)]
pub struct Forest<const D: usize> {
    trees: Vec<Vec<Node>>,
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound.max(1)
    }
}

impl<const D: usize> Forest<D> {
    /// Grows a forest; the same samples and growth give the same forest.
    pub fn grow(samples: &[([f64; D], f64)], growth: Growth) -> Self {
        let mut random = Random(growth.seed | 1);
        let trees = (0..growth.trees)
            .map(|_| {
                let mut chosen: Vec<usize> =
                    (0..samples.len()).map(|_| random.below(samples.len())).collect();
                let mut nodes = Vec::new();
                split(samples, &mut chosen, growth, &mut random, &mut nodes);
                nodes
            })
            .collect();
        Self { trees }
    }

    /// Mean of the trees; 0 of a forest without samples.
    pub fn at(&self, features: &[f64; D]) -> f64 {
        let one = |nodes: &Vec<Node>| {
            let mut at = 0;
            loop {
                match nodes.get(at) {
                    Some(&Node::Split(feature, threshold, other)) => {
                        at = if features[feature] <= threshold { at + 1 } else { other };
                    }
                    Some(&Node::Leaf(value)) => return value,
                    None => return 0.0,
                }
            }
        };
        self.trees.iter().map(one).sum::<f64>() / self.trees.len().max(1) as f64
    }
}

fn split<const D: usize>(
    samples: &[([f64; D], f64)],
    chosen: &mut [usize],
    growth: Growth,
    random: &mut Random,
    nodes: &mut Vec<Node>,
) {
    let count = chosen.len();
    let sum: f64 = chosen.iter().map(|&i| samples[i].1).sum();
    let mean = if count > 0 { sum / count as f64 } else { 0.0 };
    let mut best: Option<(f64, usize, f64)> = None;
    if count >= 2 * growth.leaf {
        for feature in subset::<D>(growth.tried, random) {
            chosen.sort_by(|&a, &b| samples[a].0[feature].total_cmp(&samples[b].0[feature]));
            let mut left = 0.0;
            for place in 1..count {
                left += samples[chosen[place - 1]].1;
                let (low, high) = (samples[chosen[place - 1]].0[feature], samples[chosen[place]].0[feature]);
                if place < growth.leaf || count - place < growth.leaf || low == high {
                    continue;
                }
                // Least squares: the larger the weighted squares of the means, the less variance is left.
                let right = sum - left;
                let score = left * left / place as f64 + right * right / (count - place) as f64;
                if best.is_none_or(|b| score > b.0) {
                    best = Some((score, feature, 0.5 * (low + high)));
                }
            }
        }
    }
    let gains = best.filter(|b| b.0 > sum * sum / count as f64 + 1e-12);
    let Some((_, feature, threshold)) = gains else {
        nodes.push(Node::Leaf(mean));
        return;
    };
    let here = nodes.len();
    nodes.push(Node::Leaf(mean));
    chosen.sort_by(|&a, &b| samples[a].0[feature].total_cmp(&samples[b].0[feature]));
    let middle = chosen.partition_point(|&i| samples[i].0[feature] <= threshold);
    let (low, high) = chosen.split_at_mut(middle);
    split(samples, low, growth, random, nodes);
    nodes[here] = Node::Split(feature, threshold, nodes.len());
    split(samples, high, growth, random, nodes);
}

/// `count` different features.
fn subset<const D: usize>(count: usize, random: &mut Random) -> impl Iterator<Item = usize> + use<D> {
    let mut all: [usize; D] = std::array::from_fn(|i| i);
    for i in 0..count.min(D) {
        all.swap(i, i + random.below(D - i));
    }
    all.into_iter().take(count.clamp(1, D))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(f: impl Fn(f64, f64) -> f64) -> Vec<([f64; 2], f64)> {
        (0..40)
            .flat_map(|i| (0..40).map(move |j| [f64::from(i), f64::from(j)]))
            .map(|p| (p, f(p[0], p[1])))
            .collect()
    }

    #[test]
    fn it_learns_steps_and_slopes_and_forgets_nothing_seen() {
        let truth = |x: f64, y: f64| if x < 20.0 { 1.0 } else { 3.0 + 0.1 * y };
        let samples = grid(truth);
        let (known, held): (Vec<_>, Vec<_>) = samples.into_iter().enumerate().partition(|(i, _)| i % 5 != 0);
        let known: Vec<_> = known.into_iter().map(|(_, s)| s).collect();
        let forest = Forest::grow(&known, Growth::usual(2));
        let worst = held.iter().map(|(_, (x, y))| (forest.at(x) - y).abs()).fold(0.0, f64::max);
        assert!(worst < 0.35, "{worst}");
        // Means of leaves never leave the range of what was seen.
        for far in [[-100.0, -100.0], [1e6, 1e6]] {
            assert!((1.0..=6.9).contains(&forest.at(&far)));
        }
    }

    #[test]
    fn the_same_samples_grow_the_same_forest() {
        let samples = grid(|x, y| x * y);
        let at = [11.3, 7.9];
        let once = Forest::grow(&samples, Growth::usual(2)).at(&at);
        assert_eq!(once.to_bits(), Forest::grow(&samples, Growth::usual(2)).at(&at).to_bits());
        assert_eq!(Forest::<2>::grow(&[], Growth::usual(2)).at(&at), 0.0);
        assert_eq!(Forest::grow(&[([0.0, 0.0], 4.0)], Growth::usual(2)).at(&at), 4.0);
    }
}
