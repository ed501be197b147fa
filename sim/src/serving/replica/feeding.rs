//! Sequences that come with their cache from another pool (a decode pool): memory for the whole answer is set aside
//! before the cache moves, so that nothing is ever thrown out, because a decode pool cannot compute a lost prompt again.

use super::Replica;
use crate::serving::lane::Prompt;
use crate::serving::store::Store;
use psim_cost_models::serving::StepCost;
use psim_models::serving::Request;

impl Replica<'_> {
    /// Bytes of a whole sequence in one lane.
    fn whole(&self, request: &Request) -> u64 {
        let shape = self.lanes[0].shape();
        let tokens = self.whole_tokens(request);
        shape.blocks(tokens) + shape.fixed(tokens)
    }

    /// Sequences in the batch, on their way, or with memory set aside.
    pub(in crate::serving) fn load(&self) -> u32 {
        self.running() + self.granted.iter().sum::<u32>()
    }

    /// Sets memory for a whole sequence aside in the emptiest lane with room; `None` where there is none.
    pub(in crate::serving) fn grant(&mut self, request: &Request) -> Option<usize> {
        let bytes = self.whole(request);
        let held = |s: &Self, i: usize| s.lanes[i].running() + s.granted[i];
        let lane = (0..self.lanes.len())
            .filter(|&i| held(self, i) < self.limits.max_sequences && self.lanes[i].free_bytes() >= bytes)
            .min_by_key(|&i| held(self, i))?;
        self.lanes[lane].used += bytes;
        // A run of steps that is under way ends with what is in use now.
        self.moving[lane].used += bytes;
        self.granted[lane] += 1;
        self.sums.peak_cache = self.sums.peak_cache.max(self.cache_share());
        Some(lane)
    }

    /// Gives back the memory of a granted request that needs none: its prompt was its whole answer.
    pub(in crate::serving) fn forgo(&mut self, lane: usize, request: &Request) {
        let bytes = self.whole(request);
        self.lanes[lane].used -= bytes;
        self.moving[lane].used = self.moving[lane].used.saturating_sub(bytes);
        self.granted[lane] -= 1;
    }

    /// The cache of a granted request leaves and will be there at `ready`; its first token came at `first_token`. A run
    /// of steps that is under way ends by then.
    pub(in crate::serving) fn expect(
        &mut self,
        cost: &StepCost,
        store: &mut Store,
        id: u32,
        lane: usize,
        (first_token, ready): (u64, u64),
    ) {
        let request = *store.request(id);
        let progress = store.progress(id);
        progress.ready = ready;
        progress.generated = 1;
        // The gap to the second token counts from the first.
        progress.finish = first_token;
        self.granted[lane] -= 1;
        let fixed = self.whole(&request);
        self.lanes[lane].prompts.push(Prompt {
            id,
            target: request.input,
            done: request.input,
            remaining: request.output - 1,
            fixed,
            reserved: true,
            shared: 0,
        });
        self.arriving += 1;
        self.shorten(cost, store, ready);
    }
}
