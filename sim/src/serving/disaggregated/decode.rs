//! A decode instance: sequences whose caches arrive from prefill instances.
//!
//! The cache of a whole answer is set aside when the transfer is granted, so that nothing is ever thrown out: a decode
//! instance could not compute a lost prompt again.

use crate::serving::Histogram;
use crate::serving::lane::{CacheShape, Lane, Leaving, Moving, Prompt};
use psim_cost_models::serving::{Lane as LaneWork, StepCost};
use psim_models::serving::Request;

#[derive(Debug, Clone, Copy)]
struct Pending {
    start: u64,
    end: u64,
    steps: u64,
    first_end: u64,
}

/// A cache on its way.
#[derive(Debug, Clone, Copy)]
struct Coming {
    ready: u64,
    first_token: u64,
    lane: usize,
    prompt: Prompt,
}

pub(super) struct DecodeInstance {
    lanes: Vec<Lane>,
    moving: Vec<Moving>,
    pending: Option<Pending>,
    coming: Vec<Coming>,
    /// Sequences decoding or granted, per lane.
    held: Vec<u32>,
    max_sequences: u32,
    fresh: Vec<Vec<(u64, u32)>>,
    last_decode: Vec<u64>,
    run_gaps: Vec<(usize, u64)>,
    leaving: Vec<Leaving>,
    pub(super) gaps: Histogram,
    pub(super) steps: u64,
    pub(super) busy: u64,
    pub(super) generated: u64,
    pub(super) peak: f64,
}

impl DecodeInstance {
    pub(super) fn new(shape: &CacheShape, lanes: u32, max_sequences: u32) -> Self {
        let n = lanes.max(1) as usize;
        Self {
            lanes: (0..n).map(|_| Lane::new(shape.clone())).collect(),
            moving: vec![Moving::default(); n],
            pending: None,
            coming: Vec::new(),
            held: vec![0; n],
            max_sequences: max_sequences.max(1),
            fresh: vec![Vec::new(); n],
            last_decode: vec![0; n],
            run_gaps: Vec::new(),
            leaving: Vec::new(),
            gaps: Histogram::default(),
            steps: 0,
            busy: 0,
            generated: 0,
            peak: 0.0,
        }
    }

    fn bytes(shape: &CacheShape, request: &Request) -> u64 {
        let whole = request.input.saturating_add(request.output);
        shape.blocks(whole) + shape.fixed(whole)
    }

    pub(super) fn fits(&self, request: &Request) -> bool {
        let shape = self.lanes[0].shape();
        Self::bytes(shape, request) <= shape.capacity
    }

    /// Sequences decoding or on their way.
    pub(super) fn load(&self) -> u32 {
        self.held.iter().sum()
    }

    /// Sets memory aside in the emptiest lane with room; `None` where there is none.
    pub(super) fn grant(&mut self, request: &Request) -> Option<usize> {
        let bytes = Self::bytes(self.lanes[0].shape(), request);
        let lane = (0..self.lanes.len())
            .filter(|&i| self.held[i] < self.max_sequences && self.lanes[i].free_bytes() >= bytes)
            .min_by_key(|&i| self.held[i])?;
        self.lanes[lane].used += bytes;
        self.held[lane] += 1;
        let share = self.lanes[lane].used as f64 / self.lanes[lane].shape().capacity.max(1) as f64;
        self.peak = self.peak.max(share);
        Some(lane)
    }

    /// The cache of a granted request will be there at `ready`. A run of steps that is under way ends by then.
    pub(super) fn expect(
        &mut self,
        cost: &StepCost,
        id: u32,
        request: &Request,
        lane: usize,
        (first_token, ready): (u64, u64),
    ) {
        let prompt = Prompt {
            id,
            target: request.input,
            done: request.input,
            remaining: request.output - 1,
            fixed: Self::bytes(self.lanes[lane].shape(), request),
            reserved: true,
            shared: 0,
        };
        self.coming.push(Coming { ready, first_token, lane, prompt });
        if let Some(p) = self.pending
            && p.steps > 1
            && p.end > ready
        {
            self.run(cost, p.start, ready);
        }
    }

    pub(super) fn end(&self) -> Option<u64> {
        self.pending.map(|p| p.end)
    }

    /// Books what has ended by `now` into `finished`, takes in the caches that have come and starts the next run.
    pub(super) fn advance(&mut self, cost: &StepCost, now: u64, finished: &mut Vec<(u32, u64)>) {
        if let Some(p) = self.pending {
            if p.end > now {
                return;
            }
            self.pending = None;
            self.book(p, finished);
        }
        let mut index = 0;
        while index < self.coming.len() {
            if self.coming[index].ready <= now {
                let c = self.coming.remove(index);
                self.lanes[c.lane].join(&c.prompt);
                match self.fresh[c.lane].last_mut() {
                    Some((time, count)) if *time == c.first_token => *count += 1,
                    _ => self.fresh[c.lane].push((c.first_token, 1)),
                }
            } else {
                index += 1;
            }
        }
        if self.lanes.iter().any(|l| l.decoding > 0) {
            let limit = self.coming.iter().map(|c| c.ready).min().unwrap_or(u64::MAX);
            self.run(cost, now, limit);
        }
    }

    fn run(&mut self, cost: &StepCost, start: u64, limit: u64) {
        self.run_gaps.clear();
        for (moving, lane) in self.moving.iter_mut().zip(&self.lanes) {
            *moving = lane.moving();
        }
        let most = self.lanes.iter_mut().filter_map(Lane::steps_to_event).min().unwrap_or(1);
        let single = (self.lanes.len() == 1).then(|| cost.decode_run(self.lanes[0].decoding));
        let decoding: u64 = self.lanes.iter().map(|l| u64::from(l.decoding)).sum();
        let (mut now, mut first_end, mut steps) = (start, start, 0);
        let (mut bucket, mut tokens) = (usize::MAX, 0);
        loop {
            let seconds = match &single {
                Some(run) => run.seconds(&self.moving[0].context),
                None => cost.seconds(&self.work()),
            };
            let duration = ((seconds * 1e12).round() as u64).max(1);
            now += duration;
            if steps == 0 {
                first_end = now;
            } else {
                let b = Histogram::bucket(duration);
                if b != bucket {
                    if tokens > 0 {
                        self.run_gaps.push((bucket, tokens));
                    }
                    (bucket, tokens) = (b, 0);
                }
                tokens += decoding;
            }
            for (lane, moving) in self.lanes.iter().zip(&mut self.moving) {
                if lane.decoding > 0 {
                    lane.advance(moving);
                }
            }
            steps += 1;
            if steps >= most || now >= limit {
                break;
            }
        }
        if tokens > 0 {
            self.run_gaps.push((bucket, tokens));
        }
        self.pending = Some(Pending { start, end: now, steps, first_end });
    }

    fn work(&self) -> Vec<LaneWork<'_>> {
        self.lanes
            .iter()
            .zip(&self.moving)
            .map(|(l, m)| LaneWork { decoding: l.decoding, context: m.context, chunks: &[] })
            .collect()
    }

    fn book(&mut self, p: Pending, finished: &mut Vec<(u32, u64)>) {
        self.steps += p.steps;
        self.busy += p.end - p.start;
        for (bucket, tokens) in self.run_gaps.drain(..) {
            self.gaps.add(bucket, tokens);
        }
        for index in 0..self.lanes.len() {
            let decoding = self.lanes[index].decoding;
            if decoding == 0 {
                continue;
            }
            self.generated += p.steps * u64::from(decoding);
            let mut joined = 0;
            for (since, count) in self.fresh[index].drain(..) {
                joined += count;
                let gap = Histogram::bucket(p.first_end.saturating_sub(since));
                self.gaps.add(gap, u64::from(count));
            }
            let old = u64::from(decoding.saturating_sub(joined));
            if old > 0 {
                self.gaps.add(Histogram::bucket(p.first_end.saturating_sub(self.last_decode[index])), old);
            }
            self.last_decode[index] = p.end;
            // Memory granted during the run counts; sequences need none to grow.
            let moved = Moving { used: self.lanes[index].used, ..self.moving[index] };
            let mut leaving = std::mem::take(&mut self.leaving);
            self.lanes[index].commit(p.steps, moved, &mut leaving);
            for gone in leaving.drain(..) {
                self.held[index] -= 1;
                finished.push((gone.id, p.end));
            }
            self.leaving = leaving;
        }
    }
}
