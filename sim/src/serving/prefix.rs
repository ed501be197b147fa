//! The radix tree of cached prefixes of one lane.
//!
//! A prompt is a path of stretches: the prefix that its group shares, then what its conversation has said. A node holds
//! one stretch of cache in whole blocks. Nodes in use stay; others go by least recent use, leaves first (SGLang, Zheng
//! et al. 2024, section 3), to the next tier below where there is one (host memory, then disk), else for good.

use super::store::NONE;
use psim_models::serving::{Request, SharedPrefixes};
use std::collections::{BTreeMap, BTreeSet};

/// Device, host memory, disk.
pub(super) const TIERS: usize = 3;

/// A stretch of a prompt: what it is, and where it ends, tokens from the start of the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stretch {
    label: u64,
    end: u32,
}

/// The stretches that a request's group shares, of its first `tokens` tokens: one, or the places of a tree of prefixes.
pub(super) fn shared(
    prefixes: &SharedPrefixes,
    request: &Request,
    tokens: u32,
) -> impl Iterator<Item = Stretch> + Clone + use<> {
    let most = request.prefix.min(tokens);
    let listed = prefixes.has(request.prefix_group);
    let one = (request.prefix > 0 && !listed)
        .then_some(Stretch { label: u64::from(request.prefix_group), end: most });
    let mut places: Vec<Stretch> = prefixes
        .upwards(request.prefix_group)
        .map(|(group, end)| Stretch { label: u64::from(group), end: end.min(most) })
        .collect();
    places.reverse();
    one.into_iter().chain(places)
}

/// The path of a request whose first `tokens` tokens are looked at: what its group shares, then its conversation.
pub(super) fn path(
    prefixes: &SharedPrefixes,
    request: &Request,
    tokens: u32,
) -> impl Iterator<Item = Stretch> + Clone + use<> {
    let group = shared(prefixes, request, tokens);
    let session = (request.session > 0)
        .then_some(Stretch { label: (1 << 32) | u64::from(request.session), end: tokens });
    group.chain(session)
}

/// What the tree has of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// Leading tokens.
    pub(super) tokens: u32,
    /// Deepest node.
    pub(super) node: u32,
    /// Of the tokens, those in host memory and on disk.
    pub(super) below: [u32; TIERS - 1],
}

impl Found {
    pub(super) const NOTHING: Self = Self { tokens: 0, node: NONE, below: [0; TIERS - 1] };
}

#[derive(Debug, Clone, Copy)]
struct Node {
    parent: u32,
    label: u64,
    /// Whole blocks, tokens from the start of the prompt.
    start: u32,
    end: u32,
    users: u32,
    children: [u32; TIERS],
    tier: usize,
    last_use: u64,
}

/// The tree.
#[derive(Debug, Clone)]
pub(super) struct PrefixTree {
    block: u32,
    nodes: Vec<Node>,
    free: Vec<u32>,
    index: BTreeMap<(u32, u64), u32>,
    /// Per tier: nodes that nobody uses and that have no children there or above, by last use.
    idle: [BTreeSet<(u64, u32)>; TIERS],
    /// Tokens per tier.
    pub(super) tokens: [u64; TIERS],
}

impl PrefixTree {
    pub(super) fn new(block: u32) -> Self {
        Self {
            block: block.max(1),
            nodes: Vec::new(),
            free: Vec::new(),
            index: BTreeMap::new(),
            idle: Default::default(),
            tokens: [0; TIERS],
        }
    }

    fn floor(&self, tokens: u32) -> u32 {
        tokens / self.block * self.block
    }

    /// Leading tokens of a prompt that are cached, whole blocks, at most `most`.
    pub(super) fn find(&self, path: impl Iterator<Item = Stretch>, most: u32) -> Found {
        let mut found = Found::NOTHING;
        for stretch in path {
            let Some(&at) = self.index.get(&(found.node, stretch.label)) else { break };
            let node = &self.nodes[at as usize];
            let usable = self.floor(node.end.min(stretch.end).min(most));
            if usable <= node.start {
                break;
            }
            if node.tier > 0 {
                found.below[node.tier - 1] += usable - node.start;
            }
            (found.tokens, found.node) = (usable, at);
            if usable < node.end {
                break;
            }
        }
        found
    }

    /// A request uses the prefix down to a node.
    pub(super) fn hold(&mut self, at: u32) {
        self.unlist(at);
        self.nodes[at as usize].users += 1;
    }

    /// It does no longer.
    pub(super) fn release(&mut self, at: u32, now: u64) {
        let node = &mut self.nodes[at as usize];
        node.users -= 1;
        node.last_use = now;
        self.list(at);
    }

    /// Takes back a hold that came to nothing.
    pub(super) fn unhold(&mut self, at: u32) {
        self.nodes[at as usize].users -= 1;
        self.list(at);
    }

    /// Puts the first `tokens` tokens of a path into the tree, on the device. Returns how many tokens of cache that adds
    /// there, and the deepest node.
    pub(super) fn insert(
        &mut self,
        path: impl Iterator<Item = Stretch>,
        tokens: u32,
        now: u64,
    ) -> (u32, u32) {
        let (mut added, mut parent, mut start) = (0, NONE, 0);
        for stretch in path {
            let end = self.floor(stretch.end.min(tokens));
            if end <= start {
                continue;
            }
            match self.index.get(&(parent, stretch.label)).copied() {
                Some(at) => {
                    added += self.promote(at);
                    let node = self.nodes[at as usize];
                    if node.end < end && node.children == [0; TIERS] {
                        self.nodes[at as usize].end = end;
                        self.tokens[0] += u64::from(end - node.end);
                        added += end - node.end;
                    }
                    self.touch(at, now);
                    parent = at;
                    start = self.nodes[at as usize].end;
                    if start != end {
                        break;
                    }
                }
                None => {
                    parent = self.add(parent, stretch.label, start, end, now);
                    added += end - start;
                    start = end;
                }
            }
        }
        (added, parent)
    }

    fn add(&mut self, parent: u32, label: u64, start: u32, end: u32, now: u64) -> u32 {
        let node = Node { parent, label, start, end, users: 0, children: [0; TIERS], tier: 0, last_use: now };
        let at = match self.free.pop() {
            Some(at) => {
                self.nodes[at as usize] = node;
                at
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        };
        if parent != NONE {
            self.unlist(parent);
            self.nodes[parent as usize].children[0] += 1;
        }
        self.index.insert((parent, label), at);
        self.tokens[0] += u64::from(end - start);
        self.list(at);
        at
    }

    fn touch(&mut self, at: u32, now: u64) {
        self.unlist(at);
        self.nodes[at as usize].last_use = now;
        self.list(at);
    }

    /// Brings a node and all above it back to the device; the tokens that this adds there.
    pub(super) fn promote(&mut self, at: u32) -> u32 {
        let (mut at, mut moved) = (at, 0);
        while at != NONE {
            let node = self.nodes[at as usize];
            if node.tier > 0 {
                moved += node.end - node.start;
                self.settle(at, 0);
            }
            at = node.parent;
        }
        moved
    }

    /// Moves a node to a tier.
    fn settle(&mut self, at: u32, tier: usize) {
        self.unlist(at);
        let node = self.nodes[at as usize];
        let tokens = u64::from(node.end - node.start);
        self.tokens[node.tier] -= tokens;
        self.tokens[tier] += tokens;
        if node.parent != NONE {
            self.unlist(node.parent);
            let counts = &mut self.nodes[node.parent as usize].children;
            counts[node.tier] -= 1;
            counts[tier] += 1;
            self.list(node.parent);
        }
        self.nodes[at as usize].tier = tier;
        self.list(at);
    }

    /// The last use of the node that would leave a tier first.
    pub(super) fn oldest(&self, tier: usize) -> Option<u64> {
        self.idle[tier].first().map(|(time, _)| *time)
    }

    /// Moves the node of a tier that was used least recently to another tier, or drops it; returns where its tokens began
    /// and ended.
    pub(super) fn evict(&mut self, tier: usize, to: Option<usize>) -> Option<(u32, u32)> {
        let (_, at) = self.idle[tier].first().copied()?;
        let node = self.nodes[at as usize];
        match to {
            Some(to) => self.settle(at, to),
            None => {
                self.unlist(at);
                self.tokens[node.tier] -= u64::from(node.end - node.start);
                self.index.remove(&(node.parent, node.label));
                if node.parent != NONE {
                    self.unlist(node.parent);
                    self.nodes[node.parent as usize].children[node.tier] -= 1;
                    self.list(node.parent);
                }
                self.free.push(at);
            }
        }
        Some((node.start, node.end))
    }

    fn may_leave(node: &Node) -> bool {
        node.users == 0 && node.children[..=node.tier].iter().sum::<u32>() == 0
    }

    fn unlist(&mut self, at: u32) {
        let node = &self.nodes[at as usize];
        self.idle[node.tier].remove(&(node.last_use, at));
    }

    fn list(&mut self, at: u32) {
        let node = &self.nodes[at as usize];
        if Self::may_leave(node) {
            self.idle[node.tier].insert((node.last_use, at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one_path(request: &Request, tokens: u32) -> impl Iterator<Item = Stretch> + Clone + use<> {
        path(&SharedPrefixes::default(), request, tokens)
    }

    fn turn(group: u32, prefix: u32, session: u32) -> Request {
        Request { prefix, prefix_group: group, session, ..Request::default() }
    }

    #[test]
    fn conversations_branch_off_their_group() {
        let mut tree = PrefixTree::new(16);
        let (a, b) = (turn(1, 100, 7), turn(1, 100, 8));
        // 100 tokens are 6 whole blocks, 1,000 are 62.
        let (added, node) = tree.insert(one_path(&a, 1000), 1000, 1);
        assert_eq!(added, 992);
        assert_eq!(tree.find(one_path(&a, 2000), 2000), Found { tokens: 992, node, below: [0; 2] });
        // The other conversation finds what the group shares.
        assert_eq!(tree.find(one_path(&b, 2000), 2000).tokens, 96);
        assert_eq!(tree.insert(one_path(&b, 500), 500, 2).0, 496 - 96);
        // A longer turn extends its own node.
        assert_eq!(tree.insert(one_path(&a, 1500), 1500, 3).0, 1488 - 992);
        assert_eq!(tree.tokens[0], 1488 + 400);
        // Leaves go first, oldest first; the shared part last.
        assert_eq!(tree.evict(0, None), Some((96, 496)));
        assert_eq!(tree.evict(0, None), Some((96, 1488)));
        assert_eq!(tree.evict(0, None), Some((0, 96)));
        assert_eq!((tree.evict(0, None), tree.tokens[0]), (None, 0));
    }

    #[test]
    fn a_held_node_stays_and_tiers_give_back() {
        let mut tree = PrefixTree::new(1);
        let a = turn(0, 0, 3);
        let (_, node) = tree.insert(one_path(&a, 10), 10, 1);
        tree.hold(node);
        assert_eq!(tree.evict(0, Some(1)), None);
        tree.release(node, 5);
        assert_eq!(tree.evict(0, Some(1)), Some((0, 10)));
        assert_eq!(tree.find(one_path(&a, 9), 9), Found { tokens: 9, node, below: [9, 0] });
        assert_eq!((tree.promote(node), tree.tokens), (10, [10, 0, 0]));
    }

    proptest! {
        /// Against a plain list of what was cached: what is found was put in, and counts stay right.
        #[test]
        fn the_tree_finds_what_a_list_finds(
            steps in proptest::collection::vec((1u32..4, 0u32..3, 1u32..60, any::<bool>(), any::<bool>()), 1..60),
        ) {
            let mut tree = PrefixTree::new(4);
            // Longest stretch cached per (group, session); session 0 is the group's own.
            let mut list: BTreeMap<(u32, u32), u32> = BTreeMap::new();
            for (now, (group, session, tokens, evict, keep)) in steps.into_iter().enumerate() {
                if evict {
                    let before = tree.tokens[0];
                    if let Some((start, end)) = tree.evict(0, None) {
                        prop_assert_eq!(before - tree.tokens[0], u64::from(end - start));
                        // Whatever went, it is what the tree no longer finds.
                        list.retain(|(g, s), most| {
                            let found = tree.find(one_path(&turn(*g, 8, *s), 1000), 1000).tokens;
                            *most = found.min(*most);
                            found > if *s == 0 { 0 } else { 8 }
                        });
                    }
                    continue;
                }
                let request = turn(group, 8, session);
                let upto = if session == 0 { tokens.min(8) } else { tokens };
                let (added, node) = tree.insert(one_path(&request, upto), upto, now as u64);
                let whole = upto / 4 * 4;
                let had = list.get(&(group, session)).copied().unwrap_or(0);
                let shared = list.get(&(group, 0)).copied().unwrap_or(0);
                // A stretch of the group that is shorter than its prefix has no children: conversations need all of it.
                let expected = whole.saturating_sub(had.max(shared.min(whole)));
                prop_assert_eq!(added, expected, "group {} session {} upto {}", group, session, upto);
                let slot = list.entry((group, session)).or_insert(0);
                *slot = (*slot).max(whole);
                if session > 0 {
                    let slot = list.entry((group, 0)).or_insert(0);
                    *slot = (*slot).max(whole.min(8));
                }
                list.retain(|_, most| *most > 0);
                if keep && node != NONE {
                    tree.hold(node);
                    tree.release(node, now as u64);
                }
            }
            for ((group, session), most) in &list {
                let found = tree.find(one_path(&turn(*group, 8, *session), *most), *most).tokens;
                prop_assert_eq!(found, *most, "group {} session {}", group, session);
            }
            while tree.evict(0, None).is_some() {}
            prop_assert_eq!(tree.tokens, [0; TIERS]);
        }
    }
}
