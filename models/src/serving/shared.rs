//! Which leading tokens requests share with one another: a tree of prefixes.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Groups from here on are places of a tree; smaller ones are single prefixes.
const PLACES: u32 = 1 << 31;
/// No place above.
const TOP: u32 = u32::MAX;

/// A place of the tree: tokens from the end of the place above to its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    above: u32,
    /// Tokens from the start of the prompt.
    end: u32,
}

/// Prefixes that branch: two requests share the tokens down to the last place that both pass.
///
/// [`Request::prefix_group`](super::Request) names the place at which the shareable tokens of a request end. Groups of
/// workloads whose prefixes do not branch are in no tree.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SharedPrefixes {
    places: Arc<[Place]>,
}

impl SharedPrefixes {
    /// The tree of requests whose prompts consist of blocks of `block` tokens with these identities, and the group of each
    /// request: 0 where it has none. Blocks that one request after another passes without branching make one place.
    pub fn of_blocks(paths: &[Vec<u64>], block: u32) -> (Self, Vec<u32>) {
        // Every block by what is above it; then only those where something ends or branches.
        let mut index: BTreeMap<(u32, u64), u32> = BTreeMap::new();
        let mut nodes: Vec<(u32, u32)> = Vec::new();
        let mut below: Vec<u32> = Vec::new();
        let mut ends: Vec<u32> = Vec::with_capacity(paths.len());
        for path in paths {
            let mut at = TOP;
            for (depth, hash) in path.iter().enumerate() {
                let next = nodes.len() as u32;
                let found = *index.entry((at, *hash)).or_insert(next);
                if found == next {
                    nodes.push((at, (depth as u32 + 1).saturating_mul(block)));
                    below.push(0);
                    if at != TOP {
                        below[at as usize] += 1;
                    }
                }
                at = found;
            }
            ends.push(at);
        }
        let mut kept: Vec<bool> = below.iter().map(|n| *n != 1).collect();
        for end in ends.iter().filter(|end| **end != TOP) {
            kept[*end as usize] = true;
        }
        // The nearest kept place above each, and the number of each kept one; what is above comes first.
        let mut nearest = vec![TOP; nodes.len()];
        let mut number = vec![TOP; nodes.len()];
        let mut places = Vec::new();
        for (at, (above, end)) in nodes.iter().enumerate() {
            if *above != TOP {
                let above = *above as usize;
                nearest[at] = if kept[above] { number[above] } else { nearest[above] };
            }
            if kept[at] {
                number[at] = places.len() as u32;
                places.push(Place { above: nearest[at], end: *end });
            }
        }
        let group = |end: &u32| if *end == TOP { 0 } else { PLACES + number[*end as usize] };
        (Self { places: places.into() }, ends.iter().map(group).collect())
    }

    /// Number of places.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// No prefixes branch.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The trees of several sources beside one another; places of the later ones move up by those before.
    pub fn beside(trees: &[&Self]) -> Self {
        if let [one] = trees {
            return (*one).clone();
        }
        let mut places = Vec::new();
        for tree in trees {
            let base = places.len() as u32;
            let moved = |p: &Place| Place { above: if p.above == TOP { TOP } else { p.above + base }, ..*p };
            places.extend(tree.places.iter().map(moved));
        }
        Self { places: places.into() }
    }

    /// A group of a tree that lies behind `before` places of others.
    pub fn moved(group: u32, before: u32) -> u32 {
        if group >= PLACES { group.saturating_add(before) } else { group }
    }

    /// The group is a place of this tree.
    pub fn has(&self, group: u32) -> bool {
        group >= PLACES && ((group - PLACES) as usize) < self.places.len()
    }

    /// From a group upwards: each place that a request of it passes, as a group, with the tokens at which it ends. Nothing
    /// where the group is in no tree.
    pub fn upwards(&self, group: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
        let mut at = if self.has(group) { group - PLACES } else { TOP };
        std::iter::from_fn(move || {
            let place = self.places.get(at as usize)?;
            let found = (PLACES + at, place.end);
            at = place.above;
            Some(found)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_where_requests_end_or_part() {
        let paths = [vec![0, 1, 2, 3], vec![0, 1, 2, 3, 4], vec![0, 9], vec![], vec![0, 1, 7, 8]];
        let (tree, groups) = SharedPrefixes::of_blocks(&paths, 512);
        let ends = |i: usize| tree.upwards(groups[i]).map(|(_, end)| end).collect::<Vec<_>>();
        // Block 0 parts (1 or 9), block 1 parts (2 or 7), block 3 ends the first one.
        assert_eq!(ends(0), [2048, 1024, 512]);
        assert_eq!(ends(1), [2560, 2048, 1024, 512]);
        assert_eq!(ends(2), [1024, 512]);
        assert_eq!((ends(3), groups[3]), (vec![], 0));
        assert_eq!(ends(4), [2048, 1024, 512]);
        assert_eq!(tree.len(), 6);
        // The first two share all of the first one's places, the fifth only the upper two.
        let passes = |i: usize| tree.upwards(groups[i]).map(|(g, _)| g).collect::<Vec<_>>();
        assert!(passes(0).iter().all(|g| passes(1).contains(g)));
        assert_eq!(passes(4).iter().filter(|g| passes(0).contains(g)).count(), 2);
    }

    #[test]
    fn trees_lie_beside_one_another() {
        let (a, of_a) = SharedPrefixes::of_blocks(&[vec![1, 2], vec![1, 3]], 16);
        let (b, of_b) = SharedPrefixes::of_blocks(&[vec![5], vec![5, 6]], 16);
        let both = SharedPrefixes::beside(&[&a, &b]);
        assert_eq!(both.len(), a.len() + b.len());
        let ends = |tree: &SharedPrefixes, group| tree.upwards(group).map(|(_, e)| e).collect::<Vec<_>>();
        assert_eq!(ends(&both, of_a[1]), ends(&a, of_a[1]));
        assert_eq!(ends(&both, SharedPrefixes::moved(of_b[1], a.len() as u32)), ends(&b, of_b[1]));
        // Single prefixes stay where they are.
        assert_eq!(SharedPrefixes::moved(7, 3), 7);
        assert!(!both.has(7) && ends(&both, 7).is_empty());
    }
}
