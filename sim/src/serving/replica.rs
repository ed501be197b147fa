//! One engine: decides what its next step does, and books what the step did.

use super::histogram::Histogram;
use super::lane::{CacheShape, Lane, Leaving, Moving, Prompt};
use super::rules::Rules;
use psim_cost_models::serving::{KINDS, Lane as LaneWork, PromptChunk, StepCost};
use psim_models::serving::Request;
use std::collections::{BTreeMap, VecDeque};

/// What is known of a request while it is served.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Progress {
    pub(super) sent: u64,
    pub(super) first_token: u64,
    pub(super) finish: u64,
    pub(super) generated: u32,
    pub(super) preemptions: u32,
    pub(super) replica: u32,
    pub(super) refused: bool,
    /// It holds a share of a cached prefix of its lane.
    pub(super) holds_prefix: bool,
}

/// Limits and switches of an engine.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) rules: Rules,
    pub(super) max_sequences: u32,
    pub(super) token_budget: u32,
    pub(super) coalesce: bool,
    /// Seconds to bring a byte of cache back from host memory; `None` recomputes.
    pub(super) swap_seconds_per_byte: Option<f64>,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    start: u64,
    end: u64,
    steps: u64,
    /// End of the first step.
    first_end: u64,
    decode_only: bool,
}

#[derive(Debug, Clone, Copy)]
struct Prefix {
    tokens: u32,
    users: u32,
    last_use: u64,
}

/// Sums over the run.
#[derive(Debug, Clone, Default)]
pub(super) struct Sums {
    pub(super) gaps: Histogram,
    pub(super) steps: u64,
    pub(super) busy: u64,
    pub(super) computed: u64,
    pub(super) cached: u64,
    pub(super) generated: u64,
    pub(super) peak_cache: f64,
}

pub(super) struct Replica {
    index: u32,
    lanes: Vec<Lane>,
    prefixes: Vec<BTreeMap<u32, Prefix>>,
    pub(super) waiting: VecDeque<u32>,
    limits: Limits,
    pending: Option<Pending>,
    moving: Vec<Moving>,
    /// Token gaps of the pending run: (bucket, tokens).
    gaps: Vec<(usize, u64)>,
    /// End of the last decoding step, and sequences that joined since with their first token's time, per lane.
    last_decode: Vec<u64>,
    fresh: Vec<Vec<(u64, u32)>>,
    leaving: Vec<Leaving>,
    extra_seconds: f64,
    pub(super) sums: Sums,
}

impl Replica {
    pub(super) fn new(index: u32, lanes: u32, shape: &CacheShape, limits: Limits) -> Self {
        let n = lanes.max(1) as usize;
        Self {
            index,
            lanes: (0..n).map(|_| Lane::new(shape.clone())).collect(),
            prefixes: vec![BTreeMap::new(); n],
            waiting: VecDeque::new(),
            limits,
            pending: None,
            moving: vec![Moving::default(); n],
            gaps: Vec::new(),
            last_decode: vec![0; n],
            fresh: vec![Vec::new(); n],
            leaving: Vec::new(),
            extra_seconds: 0.0,
            sums: Sums::default(),
        }
    }

    pub(super) fn idle(&self) -> bool {
        self.pending.is_none()
    }

    pub(super) fn end(&self) -> Option<u64> {
        self.pending.map(|p| p.end)
    }

    pub(super) fn running(&self) -> u32 {
        self.lanes.iter().map(Lane::running).sum()
    }

    pub(super) fn cache_share(&self) -> f64 {
        let shares = self.lanes.iter().map(|l| l.used as f64 / l.shape().capacity.max(1) as f64);
        shares.fold(0.0, f64::max)
    }

    /// The request can be served by an empty lane.
    pub(super) fn fits(&self, request: &Request) -> bool {
        let shape = self.lanes[0].shape();
        let whole = request.input.saturating_add(request.output);
        shape.blocks(whole) + shape.fixed(whole) <= shape.capacity
    }

    /// Starts the next step or run of steps; false when there is nothing to do.
    pub(super) fn start(
        &mut self,
        cost: &StepCost,
        requests: &[Request],
        progress: &mut [Progress],
        now: u64,
    ) -> bool {
        self.make_room(requests, progress, now);
        self.plan_prompts(requests, progress, now);
        let prompts = self.lanes.iter().any(|l| !l.chunks.is_empty());
        let decoding = self.lanes.iter().any(|l| l.decodes && l.decoding > 0);
        if !prompts && !decoding {
            self.pending = None;
            return false;
        }
        let share = self.cache_share();
        self.sums.peak_cache = self.sums.peak_cache.max(share);
        self.run(cost, now, u64::MAX, !prompts);
        true
    }

    /// Ends a run of decoding steps at the first step that reaches `at`, so that a new request can be considered.
    pub(super) fn shorten(&mut self, cost: &StepCost, at: u64) {
        if let Some(p) = self.pending
            && p.decode_only
            && p.steps > 1
            && p.end > at
        {
            self.run(cost, p.start, at, true);
        }
    }

    /// Throws sequences out while the next decoding step lacks blocks.
    fn make_room(&mut self, requests: &[Request], progress: &mut [Progress], now: u64) {
        for index in 0..self.lanes.len() {
            while self.lanes[index].used + self.lanes[index].need(0) > self.lanes[index].shape().capacity {
                if self.evict_prefix(index) {
                    continue;
                }
                let lane = &mut self.lanes[index];
                if let Some(prompt) = lane.prompts.pop() {
                    let bytes = lane.shape().blocks(prompt.target) - lane.shape().blocks(prompt.shared);
                    lane.used -= if prompt.reserved { 0 } else { bytes } + prompt.fixed;
                    self.requeue(index, prompt.id, 0, requests, progress, now);
                } else if let Some(gone) = lane.preempt() {
                    let block_bytes = lane.shape().blocks(gone.tokens);
                    if let Some(rate) = self.limits.swap_seconds_per_byte {
                        self.extra_seconds += 2.0 * block_bytes as f64 * rate;
                    }
                    self.requeue(index, gone.id, gone.steps, requests, progress, now);
                } else {
                    break;
                }
            }
        }
    }

    fn requeue(
        &mut self,
        lane: usize,
        id: u32,
        steps: u32,
        requests: &[Request],
        progress: &mut [Progress],
        now: u64,
    ) {
        let p = &mut progress[id as usize];
        p.generated += steps;
        p.preemptions += 1;
        self.release_prefix(lane, id, requests, progress, now);
        self.waiting.push_front(id);
    }

    fn release_prefix(
        &mut self,
        lane: usize,
        id: u32,
        requests: &[Request],
        progress: &mut [Progress],
        now: u64,
    ) {
        let p = &mut progress[id as usize];
        if p.holds_prefix {
            p.holds_prefix = false;
            if let Some(prefix) = self.prefixes[lane].get_mut(&requests[id as usize].prefix_group) {
                prefix.users -= 1;
                prefix.last_use = now;
            }
        }
    }

    /// Drops the unused prefix that was used least recently.
    fn evict_prefix(&mut self, lane: usize) -> bool {
        let oldest = self.prefixes[lane]
            .iter()
            .filter(|(_, p)| p.users == 0)
            .min_by_key(|(group, p)| (p.last_use, **group))
            .map(|(group, p)| (*group, p.tokens));
        let Some((group, tokens)) = oldest else { return false };
        self.prefixes[lane].remove(&group);
        let bytes = self.lanes[lane].shape().blocks(tokens);
        self.lanes[lane].used -= bytes;
        true
    }

    /// Fills the step with prompt chunks.
    fn plan_prompts(&mut self, requests: &[Request], progress: &mut [Progress], now: u64) {
        let rules = self.limits.rules;
        let mut budgets = Vec::with_capacity(self.lanes.len());
        for lane in &mut self.lanes {
            lane.chunks.clear();
            lane.chunk_of.clear();
            lane.decodes = true;
            let taken = if rules.mixed { lane.decoding } else { 0 };
            let mut budget = self.limits.token_budget.saturating_sub(taken);
            for i in 0..lane.prompts.len() {
                let p = lane.prompts[i];
                let left = p.target - p.done;
                let tokens = if rules.chunked { left.min(budget) } else { left };
                if tokens == 0 || (tokens > budget && !lane.chunks.is_empty()) {
                    break;
                }
                lane.chunks.push(PromptChunk { tokens, before: p.done });
                lane.chunk_of.push(i);
                budget = budget.saturating_sub(tokens);
            }
            budgets.push(budget);
        }
        let open = !rules.whole_batches || self.lanes.iter().all(|l| l.running() == 0);
        while open && let Some(&id) = self.waiting.front() {
            // The emptiest lane with room for more sequences.
            let lane = (0..self.lanes.len())
                .filter(|&i| self.lanes[i].running() < self.limits.max_sequences && budgets[i] > 0)
                .min_by_key(|&i| self.lanes[i].running());
            let Some(index) = lane else { break };
            let request = &requests[id as usize];
            let done = progress[id as usize].generated;
            let target = request.input + done;
            let remaining = request.output - done - 1;
            let hit = self.hit(index, request, target);
            let tokens = if rules.chunked { (target - hit).min(budgets[index]) } else { target - hit };
            if tokens > budgets[index] && !self.lanes[index].chunks.is_empty() {
                break;
            }
            if !self.admit(index, id, request, (target, remaining, hit), progress) {
                break;
            }
            self.waiting.pop_front();
            if hit > 0 {
                if let Some(p) = self.prefixes[index].get_mut(&request.prefix_group) {
                    p.users += 1;
                    p.last_use = now;
                }
                progress[id as usize].holds_prefix = true;
                self.sums.cached += u64::from(hit);
            }
            let lane = &mut self.lanes[index];
            lane.chunks.push(PromptChunk { tokens, before: hit });
            lane.chunk_of.push(lane.prompts.len() - 1);
            budgets[index] = budgets[index].saturating_sub(tokens);
        }
        if !rules.mixed {
            for lane in &mut self.lanes {
                lane.decodes = lane.chunks.is_empty();
            }
        }
    }

    /// Cached leading tokens of a request; at least one token is left to compute.
    fn hit(&self, lane: usize, request: &Request, target: u32) -> u32 {
        if !self.limits.rules.prefix_cache || request.prefix == 0 {
            return 0;
        }
        let block = self.lanes[lane].shape().block;
        self.prefixes[lane].get(&request.prefix_group).map_or(0, |p| {
            let usable = p.tokens.min(target - 1).min(request.prefix);
            if usable == p.tokens { usable } else { usable / block * block }
        })
    }

    /// Sets aside the cache of a request and adds its prompt to a lane.
    fn admit(
        &mut self,
        index: usize,
        id: u32,
        request: &Request,
        (target, remaining, hit): (u32, u32, u32),
        progress: &[Progress],
    ) -> bool {
        let reserve = self.limits.rules.reserve_whole;
        let shape = self.lanes[index].shape();
        let whole = request.input + request.output;
        let (growing, fixed) = if reserve {
            (0, shape.blocks(whole) + shape.fixed(whole))
        } else {
            (shape.blocks(target) - shape.blocks(hit), shape.fixed(whole))
        };
        // vLLM keeps one per cent of the blocks free for sequences that grow.
        let margin = if reserve || self.lanes[index].running() == 0 { 0 } else { shape.capacity / 100 };
        // A thrown-out request comes back only when there is room for it to go on.
        let again = if progress[id as usize].preemptions > 0 { margin } else { 0 };
        let wanted = growing + fixed + margin + again + self.lanes[index].need(0);
        while self.lanes[index].free_bytes() < wanted {
            if !self.evict_prefix(index) {
                return false;
            }
        }
        let lane = &mut self.lanes[index];
        lane.used += growing + fixed;
        lane.prompts.push(Prompt { id, target, done: hit, remaining, fixed, reserved: reserve, shared: hit });
        true
    }

    /// Times the next steps: one step with prompts, or decoding until something changes or `limit` is reached.
    fn run(&mut self, cost: &StepCost, start: u64, limit: u64, decode_only: bool) {
        let picoseconds = |s: f64| (s * 1e12).round() as u64;
        self.gaps.clear();
        for (moving, lane) in self.moving.iter_mut().zip(&self.lanes) {
            *moving = lane.moving();
        }
        if !decode_only {
            let mut seconds = cost.seconds(&self.work());
            seconds += self.extra_seconds;
            let end = start + picoseconds(seconds).max(1);
            for (lane, moving) in self.lanes.iter().zip(&mut self.moving) {
                if lane.decodes && lane.decoding > 0 {
                    moving.used += lane.need(0);
                    lane.advance(moving);
                }
            }
            self.pending = Some(Pending { start, end, steps: 1, first_end: end, decode_only });
            return;
        }
        let most = self.lanes.iter_mut().filter_map(Lane::steps_to_event).min().unwrap_or(1);
        let most = if self.limits.coalesce { most } else { 1 };
        let single = if self.lanes.len() == 1 { Some(cost.decode_run(self.lanes[0].decoding)) } else { None };
        let mut now = start;
        let mut first_end = start;
        let mut steps = 0;
        // Gaps of the first step are booked with the time since the last one; see `finish`.
        let (mut bucket, mut tokens) = (usize::MAX, 0);
        let decoding: u64 = self.lanes.iter().map(|l| u64::from(l.decoding)).sum();
        loop {
            let seconds = match &single {
                Some(run) => run.seconds(&self.moving[0].context),
                None => cost.seconds(&self.moving_work()),
            };
            let mut duration = picoseconds(seconds).max(1);
            if steps == 0 {
                duration += picoseconds(self.extra_seconds);
            }
            now += duration;
            if steps == 0 {
                first_end = now;
            } else {
                let b = Histogram::bucket(duration);
                if b != bucket {
                    if tokens > 0 {
                        self.gaps.push((bucket, tokens));
                    }
                    (bucket, tokens) = (b, 0);
                }
                tokens += decoding;
            }
            for (lane, moving) in self.lanes.iter().zip(&mut self.moving) {
                if lane.decoding > 0 {
                    moving.used += lane.need(steps);
                    lane.advance(moving);
                }
            }
            steps += 1;
            if steps >= most || now >= limit {
                break;
            }
            let short = self
                .lanes
                .iter()
                .zip(&self.moving)
                .any(|(lane, m)| lane.decoding > 0 && m.used + lane.need(steps) > lane.shape().capacity);
            if short {
                break;
            }
        }
        if tokens > 0 {
            self.gaps.push((bucket, tokens));
        }
        self.pending = Some(Pending { start, end: now, steps, first_end, decode_only });
    }

    fn work(&self) -> Vec<LaneWork<'_>> {
        self.lanes
            .iter()
            .map(|l| LaneWork {
                decoding: if l.decodes { l.decoding } else { 0 },
                context: if l.decodes { l.context } else { [0; KINDS] },
                chunks: &l.chunks,
            })
            .collect()
    }

    fn moving_work(&self) -> Vec<LaneWork<'_>> {
        self.lanes
            .iter()
            .zip(&self.moving)
            .map(|(l, m)| LaneWork { decoding: l.decoding, context: m.context, chunks: &[] })
            .collect()
    }

    /// Books the pending steps. Requests that are done are added to `finished`.
    pub(super) fn finish(
        &mut self,
        requests: &[Request],
        progress: &mut [Progress],
        finished: &mut Vec<u32>,
    ) {
        let Some(p) = self.pending.take() else { return };
        self.extra_seconds = 0.0;
        self.sums.steps += p.steps;
        self.sums.busy += p.end - p.start;
        for (bucket, tokens) in self.gaps.drain(..) {
            self.sums.gaps.add(bucket, tokens);
        }
        for index in 0..self.lanes.len() {
            if self.lanes[index].decodes && self.lanes[index].decoding > 0 {
                self.book_first_gap(index, p);
                self.sums.generated += p.steps * u64::from(self.lanes[index].decoding);
                let moved = self.moving[index];
                let mut leaving = std::mem::take(&mut self.leaving);
                self.lanes[index].commit(p.steps, moved, &mut leaving);
                for gone in leaving.drain(..) {
                    let state = &mut progress[gone.id as usize];
                    state.generated += gone.steps;
                    state.finish = p.end;
                    self.release_prefix(index, gone.id, requests, progress, p.end);
                    finished.push(gone.id);
                }
                self.leaving = leaving;
            }
            self.book_prompts(index, p.end, requests, progress, finished);
        }
    }

    /// The first decoding step of a run: sequences that joined since the last one count from their first token.
    fn book_first_gap(&mut self, index: usize, p: Pending) {
        let lane = &self.lanes[index];
        let first_end = p.first_end;
        let mut joined = 0;
        for (since, count) in self.fresh[index].drain(..) {
            let count = count.min(lane.decoding - joined);
            joined += count;
            self.sums.gaps.add(Histogram::bucket(first_end - since.min(first_end)), u64::from(count));
        }
        let old = u64::from(lane.decoding - joined);
        if old > 0 {
            let since = self.last_decode[index].max(1).min(first_end);
            self.sums.gaps.add(Histogram::bucket(first_end - since), old);
        }
        self.last_decode[index] = p.end;
    }

    fn book_prompts(
        &mut self,
        index: usize,
        end: u64,
        requests: &[Request],
        progress: &mut [Progress],
        finished: &mut Vec<u32>,
    ) {
        let chunks = std::mem::take(&mut self.lanes[index].chunks);
        let chunk_of = std::mem::take(&mut self.lanes[index].chunk_of);
        let mut done = Vec::new();
        for (chunk, &at) in chunks.iter().zip(&chunk_of) {
            self.sums.computed += u64::from(chunk.tokens);
            let prompt = &mut self.lanes[index].prompts[at];
            prompt.done += chunk.tokens;
            if prompt.done == prompt.target {
                done.push(at);
            }
        }
        for &at in &done {
            let mut prompt = self.lanes[index].prompts[at];
            let request = &requests[prompt.id as usize];
            self.keep_prefix(index, &mut prompt, request, progress, end);
            let state = &mut progress[prompt.id as usize];
            state.generated += 1;
            self.sums.generated += 1;
            if state.first_token == 0 {
                state.first_token = end;
            }
            if prompt.remaining > 0 {
                self.lanes[index].join(&prompt);
                match self.fresh[index].last_mut() {
                    Some((time, count)) if *time == end => *count += 1,
                    _ => self.fresh[index].push((end, 1)),
                }
            } else {
                state.finish = end;
                let lane = &mut self.lanes[index];
                let bytes = lane.shape().blocks(prompt.target) - lane.shape().blocks(prompt.shared);
                lane.used -= if prompt.reserved { 0 } else { bytes } + prompt.fixed;
                self.release_prefix(index, prompt.id, requests, progress, end);
                finished.push(prompt.id);
            }
        }
        if !done.is_empty() {
            let mut at = 0;
            self.lanes[index].prompts.retain(|_| {
                at += 1;
                !done.contains(&(at - 1))
            });
        }
        // Give the buffers back.
        let lane = &mut self.lanes[index];
        lane.chunks = chunks;
        lane.chunks.clear();
        lane.chunk_of = chunk_of;
        lane.chunk_of.clear();
    }

    /// The shared prefix of a prompt that is done stays in the cache for the next one.
    fn keep_prefix(
        &mut self,
        index: usize,
        prompt: &mut Prompt,
        request: &Request,
        progress: &mut [Progress],
        now: u64,
    ) {
        let block = self.lanes[index].shape().block;
        let tokens = request.prefix.min(prompt.target) / block * block;
        if !self.limits.rules.prefix_cache || prompt.reserved || tokens == 0 || prompt.shared > 0 {
            return;
        }
        if self.prefixes[index].contains_key(&request.prefix_group) {
            return;
        }
        self.prefixes[index].insert(request.prefix_group, Prefix { tokens, users: 1, last_use: now });
        prompt.shared = tokens;
        progress[prompt.id as usize].holds_prefix = true;
    }

    pub(super) fn number(&self) -> u32 {
        self.index
    }
}
