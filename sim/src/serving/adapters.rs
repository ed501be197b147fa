//! Adapters of one lane: which are on the device, who uses them, which goes first.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, Copy)]
struct Held {
    users: u32,
    last_use: u64,
    /// When its copy is there; none before one is under way.
    arrives: Option<u64>,
}

/// The adapters on the device. Unused ones stay until their room is wanted.
#[derive(Debug, Clone, Default)]
pub(super) struct AdapterPool {
    held: BTreeMap<u32, Held>,
    idle: BTreeSet<(u64, u32)>,
    /// Adapters that somebody uses.
    pub(super) active: u32,
}

impl AdapterPool {
    /// Adapters on the device.
    pub(super) fn len(&self) -> u64 {
        self.held.len() as u64
    }

    pub(super) fn contains(&self, adapter: u32) -> bool {
        self.held.contains_key(&adapter)
    }

    /// When an adapter that is held is on the device.
    pub(super) fn arrived(&self, adapter: u32) -> Option<u64> {
        self.held.get(&adapter)?.arrives
    }

    /// Its copy is under way.
    pub(super) fn arrives(&mut self, adapter: u32, at: u64) {
        if let Some(held) = self.held.get_mut(&adapter) {
            held.arrives = Some(at);
        }
    }

    /// A request uses an adapter; true where it was not on the device.
    pub(super) fn hold(&mut self, adapter: u32) -> bool {
        let fresh = !self.held.contains_key(&adapter);
        let held = self.held.entry(adapter).or_insert(Held { users: 0, last_use: 0, arrives: None });
        if held.users == 0 {
            self.active += 1;
            self.idle.remove(&(held.last_use, adapter));
        }
        held.users += 1;
        fresh
    }

    pub(super) fn release(&mut self, adapter: u32, now: u64) {
        if let Some(held) = self.held.get_mut(&adapter) {
            held.users -= 1;
            held.last_use = held.last_use.max(now);
            if held.users == 0 {
                self.active -= 1;
                self.idle.insert((held.last_use, adapter));
            }
        }
    }

    /// Last use of the one that would go first.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.idle.first().map(|(time, _)| *time)
    }

    /// Drops the unused adapter that was used least recently.
    pub(super) fn evict(&mut self) -> bool {
        match self.idle.pop_first() {
            Some((_, adapter)) => self.held.remove(&adapter).is_some(),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn used_adapters_stay_and_the_oldest_goes_first() {
        let mut pool = AdapterPool::default();
        assert!(pool.hold(1) && pool.hold(2) && !pool.hold(1));
        assert!(!pool.evict());
        pool.release(2, 10);
        pool.release(1, 20);
        assert_eq!((pool.active, pool.len()), (1, 2));
        pool.release(1, 30);
        assert_eq!(pool.oldest(), Some(10));
        assert!(pool.evict() && pool.contains(1) && !pool.contains(2));
        assert!(pool.evict() && !pool.evict());
        assert_eq!((pool.active, pool.len()), (0, 0));
    }
}
