//! Which prompts a step computes: pieces of those in progress, then requests from the queue while there is room.

use super::queue::Holding;
use super::{PromptChunk, Replica};
use crate::serving::lane::{Lane, Prompt};
use crate::serving::options::AdapterMode;
use crate::serving::prefix::{Found, path};
use crate::serving::store::{NONE, Store};
use psim_models::serving::Request;

impl Replica<'_> {
    /// Fills the step with prompt chunks.
    pub(super) fn plan_prompts(&mut self, store: &mut Store, now: u64) {
        let rules = self.limits.rules;
        self.hold_steps = 0;
        self.holding = Holding::No;
        self.budgets.clear();
        if self.arriving > 0 {
            self.join_arrived(store, now);
        }
        let tokens = self.step_tokens();
        for index in 0..self.lanes.len() {
            let lane = &mut self.lanes[index];
            lane.chunks.clear();
            lane.chunk_of.clear();
            lane.decodes = true;
            let taken = if rules.mixed { lane.decoding.saturating_mul(tokens) } else { 0 };
            let mut budget = self.limits.token_budget.saturating_sub(taken);
            for i in 0..lane.prompts.len() {
                let p = lane.prompts[i];
                if self.arriving > 0 && store.live(p.id).progress.ready > now {
                    continue;
                }
                let left = p.target - p.done;
                let tokens = if rules.chunked { left.min(budget) } else { left };
                if tokens == 0 || (tokens > budget && !lane.chunks.is_empty()) {
                    break;
                }
                lane.chunks.push(PromptChunk { tokens, before: p.done });
                lane.chunk_of.push(i);
                budget = budget.saturating_sub(tokens);
            }
            self.budgets.push(budget);
        }
        let open = !rules.whole_batches || self.lanes.iter().all(|l| l.running() == 0);
        let known = self.look();
        if open && known > 0 && !self.hold_back(known) {
            self.admit_waiting(store, now, known);
        }
        if !rules.mixed {
            for lane in &mut self.lanes {
                lane.decodes = lane.chunks.is_empty();
            }
        }
    }

    /// Sequences whose cache has come back from host memory decode again; prompts whose prefix or adapter is there may be
    /// computed.
    fn join_arrived(&mut self, store: &Store, now: u64) {
        for index in 0..self.lanes.len() {
            let mut at = 0;
            while let Some(prompt) = self.lanes[index].prompts.get(at).copied() {
                if prompt.done == prompt.target && store.live(prompt.id).progress.ready <= now {
                    self.lanes[index].prompts.remove(at);
                    self.lanes[index].join(&prompt);
                    self.fresh[index].push((store.live(prompt.id).progress.finish, 1));
                } else {
                    at += 1;
                }
            }
        }
        let coming = |l: &Lane| l.prompts.iter().filter(|p| store.live(p.id).progress.ready > now).count();
        self.arriving = self.lanes.iter().map(coming).sum::<usize>() as u32;
    }

    /// Admits some of the first `known` requests of the queue.
    fn admit_waiting(&mut self, store: &mut Store, now: u64, known: usize) {
        let rules = self.limits.rules;
        let mut left_to_admit = known;
        while left_to_admit > 0
            && let Some((place, id)) = self.next_waiting(store)
        {
            if rules.one_prompt && self.lanes.iter().any(|l| !l.chunks.is_empty()) {
                break;
            }
            // The emptiest lane with room for more sequences.
            let lane = (0..self.lanes.len())
                .filter(|&i| self.lanes[i].running() < self.limits.max_sequences && self.budgets[i] > 0)
                .min_by_key(|&i| self.lanes[i].running());
            let Some(index) = lane else { break };
            let request = *store.request(id);
            let progress = *store.progress(id);
            let back = progress.swapped > 0;
            let (target, remaining, found) = if back {
                (progress.swapped, request.output - progress.generated, Found::NOTHING)
            } else {
                let target = request.input + progress.generated;
                (target, request.output - progress.generated - 1, self.find(index, &request, target))
            };
            let hit = if back { target } else { found.tokens };
            let left = target - hit;
            let tokens = if rules.chunked { left.min(self.budgets[index]) } else { left };
            if tokens > self.budgets[index] && !self.lanes[index].chunks.is_empty() {
                break;
            }
            let mut prompt = Prompt {
                id,
                target,
                done: hit,
                remaining,
                fixed: 0,
                reserved: rules.reserve_whole,
                shared: found.tokens,
            };
            if !self.admit(index, &mut prompt, found, &request, store) {
                break;
            }
            self.waiting.remove(place);
            if progress.generated == 0 && progress.preemptions == 0 {
                store.progress(id).admitted = now;
            }
            left_to_admit -= 1;
            self.seen = self.seen.saturating_sub(1);
            (self.held, self.batched) = (0, 0);
            let ready = self.fetch(index, &prompt, found, back, store, now);
            store.progress(id).ready = ready;
            if ready > now {
                self.arriving += 1;
                self.lanes[index].prompts.push(prompt);
            } else if back {
                self.lanes[index].join(&prompt);
                self.fresh[index].push((progress.finish, 1));
            } else {
                let lane = &mut self.lanes[index];
                lane.prompts.push(prompt);
                lane.chunks.push(PromptChunk { tokens, before: hit });
                lane.chunk_of.push(lane.prompts.len() - 1);
                self.budgets[index] = self.budgets[index].saturating_sub(tokens);
            }
        }
    }

    /// The request that is considered next, and its place in the queue.
    fn next_waiting(&self, store: &Store) -> Option<(usize, u32)> {
        if self.limits.adapters.is_some_and(|a| a.mode == AdapterMode::OneAtATime)
            && let Some(current) = self.current_adapter(store)
        {
            let same = |id: &u32| store.request(*id).adapter == current;
            return self.waiting.iter().position(same).map(|place| (place, self.waiting[place]));
        }
        self.waiting.front().map(|id| (0, *id))
    }

    /// The adapter of the batch, where there is one.
    fn current_adapter(&self, store: &Store) -> Option<u32> {
        self.lanes.iter().find_map(|lane| {
            let prompt = lane.prompts.first().map(|p| p.id);
            let id = prompt.or_else(|| lane.sequences().next().map(|(_, id, _)| id))?;
            Some(store.request(id).adapter)
        })
    }

    /// Cached leading tokens of a request; at least one token is left to compute.
    fn find(&self, lane: usize, request: &Request, target: u32) -> Found {
        if !self.limits.rules.prefix_cache || (request.prefix == 0 && request.session == 0) {
            return Found::NOTHING;
        }
        self.prefixes[lane].find(path(&self.limits.prefixes, request, target), target - 1)
    }

    /// Sets aside the cache of a request; false where there is no room.
    fn admit(
        &mut self,
        index: usize,
        prompt: &mut Prompt,
        found: Found,
        request: &Request,
        store: &mut Store,
    ) -> bool {
        let reserve = prompt.reserved;
        let shape = self.lanes[index].shape();
        let whole = self.whole_tokens(request);
        let (growing, fixed) = if reserve {
            (0, shape.blocks(whole) + shape.fixed(whole))
        } else {
            (shape.blocks(prompt.target) - shape.blocks(prompt.shared), shape.fixed(whole))
        };
        // vLLM keeps one per cent of the blocks free for sequences that grow.
        let margin = if reserve || self.lanes[index].running() == 0 { 0 } else { shape.capacity / 100 };
        // A thrown-out request comes back only when there is room for it to go on.
        let again = if store.live(prompt.id).progress.preemptions > 0 { margin } else { 0 };
        // Whole nodes come up from a tier below, so that a little more than what is used may be needed.
        let below = u64::from(found.below.iter().sum::<u32>());
        let slack = if below > 0 { shape.blocks(found.tokens) } else { 0 };
        let adapter = match self.limits.adapters {
            Some(options) if request.adapter > 0 && !self.adapters[index].contains(request.adapter) => {
                options.bytes.0
            }
            _ => 0,
        };
        let wanted = growing
            + fixed
            + margin
            + again
            + slack
            + adapter
            + self.lanes[index].needs(u64::from(self.step_tokens()));
        if found.node != NONE {
            self.prefixes[index].hold(found.node);
        }
        let kept = request.adapter > 0 && adapter == 0 && self.limits.adapters.is_some();
        if kept {
            self.adapters[index].hold(request.adapter);
        }
        while self.lanes[index].free_bytes() < wanted {
            if !self.evict_unused(index) {
                if found.node != NONE {
                    self.prefixes[index].unhold(found.node);
                }
                if kept {
                    self.adapters[index].release(request.adapter, 0);
                }
                return false;
            }
        }
        if adapter > 0 {
            self.adapters[index].hold(request.adapter);
        }
        let progress = store.progress(prompt.id);
        progress.holds = found.node;
        progress.holds_adapter = kept || adapter > 0;
        let promoted = if below > 0 { self.prefixes[index].promote(found.node) } else { 0 };
        let lane = &mut self.lanes[index];
        let promoted = u64::from(promoted) / u64::from(lane.shape().block) * lane.shape().block_bytes;
        lane.used += growing + fixed + adapter + promoted;
        prompt.fixed = fixed;
        true
    }

    /// Fetches what an admitted request needs from host memory or disk; when it is there.
    fn fetch(
        &mut self,
        index: usize,
        prompt: &Prompt,
        found: Found,
        back: bool,
        store: &mut Store,
        now: u64,
    ) -> u64 {
        let mut ready = now;
        if back {
            store.progress(prompt.id).swapped = 0;
            ready = self.copy(index, prompt.target, now);
        } else {
            self.sums.cached += u64::from(found.tokens);
        }
        for (tokens, tier) in found.below.into_iter().zip(self.limits.tiers) {
            if let (1.., Some(tier)) = (tokens, tier) {
                let shape = self.lanes[index].shape();
                let bytes = u64::from(tokens / shape.block) * shape.block_bytes;
                let seconds = bytes as f64 / tier.rate.0.max(1.0);
                ready = ready.max(self.transfer(bytes, seconds, true, now));
            }
        }
        let request = *store.request(prompt.id);
        if let Some(options) = self.limits.adapters
            && request.adapter > 0
            && self.adapters[index].arrived(request.adapter).is_none()
        {
            let seconds = options.bytes.0 as f64 / options.link.0.max(1.0);
            let background = options.mode == AdapterMode::Unified;
            let there = self.transfer(options.bytes.0, seconds, background, now);
            self.adapters[index].arrives(request.adapter, there);
        }
        if let Some(there) = self.adapters[index].arrived(request.adapter) {
            ready = ready.max(there);
        }
        ready
    }
}
