//! Who leaves the cache when room runs short, and where it goes: recomputed, swapped, or kept in a tier below.

use super::{Replica, picoseconds};
use crate::serving::lane::Leaving;
use crate::serving::prefix::TIERS;
use crate::serving::store::{NONE, Store};

impl Replica<'_> {
    /// Throws sequences out while the next decoding step lacks blocks.
    pub(super) fn make_room(&mut self, store: &mut Store, now: u64) {
        let tokens = u64::from(self.step_tokens());
        for index in 0..self.lanes.len() {
            while self.lanes[index].used + self.lanes[index].needs(tokens)
                > self.lanes[index].shape().capacity
            {
                if self.evict_unused(index) {
                    continue;
                }
                if let Some(prompt) = self.lanes[index].prompts.pop() {
                    self.lanes[index].drop_prompt(&prompt);
                    let progress = store.progress(prompt.id);
                    if progress.ready > now {
                        self.arriving -= 1;
                        progress.ready = now;
                    }
                    if prompt.done == prompt.target {
                        // It was on its way back from host memory.
                        progress.swapped = prompt.target;
                    }
                    progress.preemptions += 1;
                    self.let_go(index, prompt.id, store, now);
                    self.waiting.push_front(prompt.id);
                    self.seen += 1;
                } else if let Some(gone) = self.lanes[index].preempt() {
                    self.switch_out(index, gone, store, now);
                    self.waiting.push_front(gone.id);
                    self.seen += 1;
                } else {
                    break;
                }
            }
        }
    }

    /// Books a sequence that has lost its place; the caller puts it into the queue.
    pub(super) fn switch_out(&mut self, lane: usize, gone: Leaving, store: &mut Store, now: u64) {
        let progress = store.progress(gone.id);
        progress.generated += gone.generated;
        progress.preemptions += 1;
        // Its last token came now; the next gap counts from here.
        progress.finish = now;
        let kept = if self.limits.swap.reuse { progress.host_copy.min(gone.tokens) } else { 0 };
        if self.swap_rate().is_some() {
            progress.swapped = gone.tokens;
            progress.host_copy = gone.tokens;
            self.copy(lane, gone.tokens - kept, now);
        }
        self.let_go(lane, gone.id, store, now);
    }

    /// Seconds per byte of swapping. A fair policy always swaps, over a PCIe 4.0 x16 link where none is named.
    pub(super) fn swap_rate(&self) -> Option<f64> {
        self.limits.swap_seconds_per_byte.or(self.limits.rules.fair.then_some(1.0 / 25e9))
    }

    /// Copies the cache of so many tokens between device and host; when it is done.
    pub(super) fn copy(&mut self, lane: usize, tokens: u32, now: u64) -> u64 {
        let Some(rate) = self.swap_rate() else { return now };
        let shape = self.lanes[lane].shape();
        let bytes = shape.blocks(tokens);
        let groups = tokens.div_ceil(shape.block).div_ceil(self.limits.swap.group_blocks.max(1));
        let copies = 2.0 * f64::from(self.limits.layers) * f64::from(groups);
        self.transfer(
            bytes,
            bytes as f64 * rate + copies * self.limits.swap.copy.0,
            self.limits.swap.asynchronous,
            now,
        )
    }

    /// Uses the link for `seconds`; when it is done. Otherwise than in the background the next step waits for it.
    pub(super) fn transfer(&mut self, bytes: u64, seconds: f64, background: bool, now: u64) -> u64 {
        self.sums.moved += bytes;
        if background {
            self.link_free = self.link_free.max(now) + picoseconds(seconds);
            self.link_free
        } else {
            self.extra_seconds += seconds;
            now
        }
    }

    /// A request gives up its share of a prefix and its adapter.
    pub(super) fn let_go(&mut self, lane: usize, id: u32, store: &mut Store, now: u64) {
        let live = store.live_mut(id);
        if live.progress.holds != NONE {
            self.prefixes[lane].release(live.progress.holds, now);
            live.progress.holds = NONE;
        }
        if live.progress.holds_adapter {
            self.adapters[lane].release(live.request.adapter, now);
            live.progress.holds_adapter = false;
        }
    }

    /// Makes room with a prefix or an adapter that nobody uses, whichever was used least recently.
    pub(super) fn evict_unused(&mut self, lane: usize) -> bool {
        let (prefix, adapter) = (self.prefixes[lane].oldest(0), self.adapters[lane].oldest());
        match (prefix, adapter) {
            (None, None) => false,
            (Some(p), Some(a)) if a < p => self.evict_adapter(lane),
            (None, Some(_)) => self.evict_adapter(lane),
            _ => self.evict_prefix(lane),
        }
    }

    fn evict_adapter(&mut self, lane: usize) -> bool {
        let bytes = self.limits.adapters.map_or(0, |a| a.bytes.0);
        let gone = self.adapters[lane].evict();
        if gone {
            self.lanes[lane].used -= bytes;
        }
        gone
    }

    /// The tier below `tier` that exists.
    fn below(&self, tier: usize) -> Option<usize> {
        (tier + 1..TIERS).find(|t| self.limits.tiers[t - 1].is_some())
    }

    fn evict_prefix(&mut self, lane: usize) -> bool {
        let to = self.below(0);
        let Some((start, end)) = self.prefixes[lane].evict(0, to) else { return false };
        let shape = self.lanes[lane].shape();
        let bytes = shape.blocks(end) - shape.blocks(start);
        self.lanes[lane].used -= bytes;
        if let Some(to) = to {
            self.sums.moved += bytes;
            self.trim(lane, to);
        }
        true
    }

    /// Moves down or drops what a tier has too much of.
    fn trim(&mut self, lane: usize, tier: usize) {
        let Some(limit) = self.limits.tiers[tier - 1] else { return };
        let capacity = limit.capacity.0 / self.lanes.len() as u64;
        let shape = self.lanes[lane].shape();
        let per_block = shape.block_bytes.max(1);
        let most = capacity / per_block * u64::from(shape.block);
        let to = self.below(tier);
        while self.prefixes[lane].tokens[tier] > most && self.prefixes[lane].evict(tier, to).is_some() {}
        if let Some(to) = to {
            self.trim(lane, to);
        }
    }
}
