//! One engine: decides what its next step does, and books what the step did.

use super::adapters::AdapterPool;
use super::histogram::Histogram;
use super::lane::{CacheShape, Lane, Leaving, Moving};
use super::offload::{ExpertOffload, OffloadBlock};
use super::options::{AdapterOptions, CacheTier, CoServing, SwapOptions};
use super::prefix::PrefixTree;
use super::rules::Rules;
use super::speculation::Speculating;
use super::store::Store;
use psim_cost_models::serving::{KINDS, Lane as LaneWork, PromptChunk, StepCost};
use psim_models::serving::{Request, SharedPrefixes};
use std::collections::VecDeque;

mod admission;
mod booking;
mod co_serving;
mod decoding;
mod eviction;
mod fairness;
mod feeding;
mod pace;
mod queue;

/// Limits and switches of an engine.
#[derive(Debug, Clone)]
pub(super) struct Limits<'a> {
    pub(super) rules: Rules,
    pub(super) max_sequences: u32,
    pub(super) token_budget: u32,
    /// Steps that prompts wait for a prompt on every attention copy.
    pub(super) prompt_wait: u64,
    /// The same once every attention copy has one.
    pub(super) prompt_batch: u64,
    /// A step is scheduled while the one before it runs.
    pub(super) lookahead: bool,
    /// Decoding steps between two looks at the queue.
    pub(super) receive_steps: u64,
    pub(super) coalesce: bool,
    /// Seconds to move a byte of cache to or from host memory; `None` recomputes.
    pub(super) swap_seconds_per_byte: Option<f64>,
    pub(super) swap: SwapOptions,
    /// Layers that a swap copies one by one.
    pub(super) layers: u32,
    pub(super) priority_steps: u32,
    pub(super) adapters: Option<AdapterOptions>,
    pub(super) co_serving: Option<CoServing>,
    pub(super) tiers: [Option<CacheTier>; 2],
    pub(super) expert_offload: Option<ExpertOffload>,
    /// Span of the exponential mean of gaps that is followed.
    pub(super) pace: Option<u32>,
    /// Which leading tokens requests share, where their prefixes branch.
    pub(super) prefixes: SharedPrefixes,
    /// Sequences come with their cache from another pool, whose events wake the engine.
    pub(super) fed: bool,
    /// Decoding steps are rounds of drafts and their verification.
    pub(super) speculation: Option<&'a Speculating<'a>>,
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
    /// Bytes moved to and from host memory and disk.
    pub(super) moved: u64,
    /// Tokens of fine-tuning done.
    pub(super) tuned: f64,
    /// Rounds of speculation, summed over sequences, and their tokens before answers cut them.
    pub(super) rounds: u64,
    pub(super) round_tokens: u64,
}

pub(super) struct Replica<'a> {
    index: u32,
    lanes: Vec<Lane>,
    prefixes: Vec<PrefixTree>,
    adapters: Vec<AdapterPool>,
    pub(super) waiting: VecDeque<u32>,
    limits: Limits<'a>,
    pending: Option<Pending>,
    moving: Vec<Moving>,
    budgets: Vec<u32>,
    /// Token gaps of the pending run: (bucket, tokens).
    gaps: Vec<(usize, u64)>,
    /// End of the last decoding step, and sequences that joined since with their first token's time, per lane.
    last_decode: Vec<u64>,
    fresh: Vec<Vec<(u64, u32)>>,
    leaving: Vec<Leaving>,
    /// Drafts that sequences of a lane take, by slot.
    drafted: Vec<(u32, u32)>,
    /// Time that the next step waits for copies.
    extra_seconds: f64,
    /// When the link to host memory is free.
    link_free: u64,
    /// Requests whose cache or adapter is on its way.
    arriving: u32,
    /// Sequences with memory set aside whose cache has not left yet, per lane.
    granted: Vec<u32>,
    /// Steps since priorities changed.
    priority_age: u64,
    priority_round: u64,
    /// When the engine fell idle; never before its first request.
    idle_since: u64,
    /// Tokens of fine-tuning in the pending step.
    tuning: u32,
    /// Ends of the pending steps, and of all steps of each lane that decoded, where the pace is followed.
    step_ends: Vec<u64>,
    ends: Vec<Vec<u64>>,
    /// Steps that prompts have been held back for.
    held: u64,
    /// The same once every attention copy has one.
    batched: u64,
    /// Why prompts are being held back.
    holding: queue::Holding,
    /// Requests of the queue that the engine knows of.
    seen: usize,
    /// A step has just ended: the engine was not idle.
    flowing: bool,
    /// Steps that nothing new is admitted for.
    hold_steps: u64,
    /// Decoding steps since the engine looked at its queue; a step with prompts makes a look due.
    since_look: u64,
    pub(super) sums: Sums,
}

fn picoseconds(seconds: f64) -> u64 {
    (seconds * 1e12).round() as u64
}

impl<'a> Replica<'a> {
    pub(super) fn new(index: u32, lanes: u32, shape: &CacheShape, limits: Limits<'a>) -> Self {
        let n = lanes.max(1) as usize;
        Self {
            index,
            lanes: (0..n).map(|_| Lane::new(shape.clone())).collect(),
            prefixes: vec![PrefixTree::new(shape.block); n],
            adapters: vec![AdapterPool::default(); n],
            waiting: VecDeque::new(),
            limits,
            pending: None,
            moving: vec![Moving::default(); n],
            budgets: Vec::new(),
            gaps: Vec::new(),
            last_decode: vec![0; n],
            fresh: vec![Vec::new(); n],
            leaving: Vec::new(),
            drafted: Vec::new(),
            extra_seconds: 0.0,
            link_free: 0,
            arriving: 0,
            granted: vec![0; n],
            priority_age: 0,
            priority_round: 0,
            idle_since: u64::MAX,
            tuning: 0,
            step_ends: Vec::new(),
            ends: vec![Vec::new(); n],
            held: 0,
            batched: 0,
            holding: queue::Holding::No,
            seen: 0,
            flowing: false,
            hold_steps: 0,
            since_look: 0,
            sums: Sums::default(),
        }
    }
}

impl Replica<'_> {
    pub(super) fn idle(&self) -> bool {
        self.pending.is_none()
    }

    pub(super) fn end(&self) -> Option<u64> {
        self.pending.map(|p| p.end)
    }

    pub(super) fn running(&self) -> u32 {
        self.lanes.iter().map(Lane::running).sum()
    }

    pub(super) fn number(&self) -> u32 {
        self.index
    }

    pub(super) fn cache_share(&self) -> f64 {
        let shares = self.lanes.iter().map(|l| l.used as f64 / l.shape().capacity.max(1) as f64);
        shares.fold(0.0, f64::max)
    }

    /// Tokens that a decoding sequence writes into its cache in a step at most.
    fn step_tokens(&self) -> u32 {
        self.limits.speculation.map_or(1, Speculating::most_tokens)
    }

    /// Tokens that the cache of a request holds at most, drafts beside its last tokens included.
    fn whole_tokens(&self, request: &Request) -> u32 {
        request.input.saturating_add(request.output).saturating_add(self.step_tokens() - 1)
    }

    /// Seconds of a step of the lanes.
    fn step_seconds(&self, cost: &StepCost, lanes: &[LaneWork<'_>]) -> f64 {
        match self.limits.speculation {
            Some(speculation) => speculation.seconds(cost, lanes),
            None => cost.seconds(lanes),
        }
    }

    /// The request can be served by an empty lane.
    pub(super) fn fits(&self, request: &Request) -> bool {
        let shape = self.lanes[0].shape();
        let whole = self.whole_tokens(request);
        let adapter = match self.limits.adapters {
            Some(options) if request.adapter > 0 => options.bytes.0,
            _ => 0,
        };
        shape.blocks(whole) + shape.fixed(whole) + adapter <= shape.capacity
    }

    /// Bytes in use that belong to nobody: 0 unless the books are wrong. For an engine without requests.
    pub(super) fn leaked(&self) -> u64 {
        let adapter = self.limits.adapters.map_or(0, |a| a.bytes.0);
        let mut sum = 0;
        for ((lane, tree), pool) in self.lanes.iter().zip(&self.prefixes).zip(&self.adapters) {
            let shape = lane.shape();
            let kept = tree.tokens[0] / u64::from(shape.block) * shape.block_bytes + pool.len() * adapter;
            sum += lane.used.abs_diff(kept);
        }
        sum
    }

    /// Starts the next step or run of steps; false when there is nothing to do.
    pub(super) fn start(&mut self, cost: &StepCost, store: &mut Store, now: u64) -> bool {
        let mut now = now;
        loop {
            self.change_priorities(store, now);
            self.make_room(store, now);
            self.plan_prompts(store, now);
            let prompts = self.lanes.iter().any(|l| !l.chunks.is_empty());
            let decoding = self.lanes.iter().any(|l| l.decodes && l.decoding > 0);
            if prompts || decoding {
                self.tune_idle(cost, now);
                let share = self.cache_share();
                self.sums.peak_cache = self.sums.peak_cache.max(share);
                self.run(cost, store, now, u64::MAX, !prompts);
                return true;
            }
            // Nothing but copies on their way: the engine waits for the first of them.
            match self.next_ready(store, now) {
                Some(ready) if !self.limits.fed => now = ready,
                // With no step to run beside, an engine that schedules ahead takes what came during the last one at once.
                _ if self.flowing && !self.waiting.is_empty() => self.flowing = false,
                _ => break,
            }
        }
        self.pending = None;
        self.idle_since = now;
        self.flowing = false;
        false
    }

    /// Ends a run of decoding steps at the first step that reaches `at`, so that a new request can be considered.
    pub(super) fn shorten(&mut self, cost: &StepCost, store: &Store, at: u64) {
        if let Some(p) = self.pending
            && p.decode_only
            && p.steps > 1
            && p.end > at
        {
            self.run(cost, store, p.start, at, true);
        }
    }

    /// When the first cache or adapter that is on its way arrives, after `now`.
    fn next_ready(&self, store: &Store, now: u64) -> Option<u64> {
        if self.arriving == 0 {
            return None;
        }
        let prompts = self.lanes.iter().flat_map(|l| &l.prompts);
        prompts.map(|p| store.live(p.id).progress.ready).filter(|ready| *ready > now).min()
    }

    /// Time of the gathered kernels of the adapters in the batch.
    fn adapter_seconds(&self) -> f64 {
        let Some(options) = self.limits.adapters else { return 0.0 };
        let active = self.adapters.iter().map(|p| p.active).max().unwrap_or(0);
        if active == 0 || options.mode == super::options::AdapterMode::OneAtATime {
            return 0.0;
        }
        options.launches.0 + f64::from(active) * options.bytes.0 as f64 / options.read.0.max(1.0)
    }

    /// Copies of experts in a layer of this step, where they live outside.
    fn experts_outside(&self) -> Option<(ExpertOffload, OffloadBlock)> {
        let offload = self.limits.expert_offload?;
        let decoding: u32 = self.lanes.iter().filter(|l| l.decodes).map(|l| l.decoding).sum();
        let prompts: u32 = self.lanes.iter().flat_map(|l| &l.chunks).map(|c| c.tokens).sum();
        Some((offload, offload.block(decoding + prompts)))
    }

    /// Times the next steps: one step with prompts, or decoding until something changes or `limit` is reached.
    fn run(&mut self, cost: &StepCost, store: &Store, start: u64, limit: u64, decode_only: bool) {
        self.gaps.clear();
        self.step_ends.clear();
        for (moving, lane) in self.moving.iter_mut().zip(&self.lanes) {
            *moving = lane.moving();
        }
        let constant = self.adapter_seconds();
        let outside = self.experts_outside();
        let with_copies = |seconds: f64| match &outside {
            Some((offload, block)) => offload.seconds(block, seconds),
            None => seconds,
        };
        if !decode_only || self.tunes() || self.limits.speculation.is_some() {
            let seconds = with_copies(self.tuned_seconds(cost)) + constant + self.extra_seconds;
            let end = start + picoseconds(seconds).max(1);
            for (lane, moving) in self.lanes.iter().zip(&mut self.moving) {
                if lane.decodes && lane.decoding > 0 {
                    moving.used += lane.need(0);
                    lane.advance(moving);
                }
            }
            self.step_ends.push(end);
            self.pending = Some(Pending { start, end, steps: 1, first_end: end, decode_only });
            return;
        }
        let limit = self.next_ready(store, start).map_or(limit, |ready| ready.min(limit));
        let mut most = self.lanes.iter_mut().filter_map(Lane::steps_to_event).min().unwrap_or(1);
        if self.limits.rules.fair {
            let left = u64::from(self.limits.priority_steps).saturating_sub(self.priority_age);
            most = most.min(left.max(1));
        }
        let most = if self.hold_steps > 0 { most.min(self.hold_steps) } else { most };
        let most = if self.limits.coalesce { most } else { 1 };
        self.decode(cost, (start, limit), most, |seconds| with_copies(seconds) + constant);
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

    /// The step of decoding after `steps` others.
    fn work_ahead(&self, steps: u64) -> Vec<LaneWork<'_>> {
        let of = |l: &'_ Lane| LaneWork { decoding: l.decoding, context: l.ahead(steps), chunks: &[] };
        self.lanes.iter().map(of).collect()
    }
}
