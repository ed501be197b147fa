//! Runs of decoding steps: until something changes, a limit is reached or the cache is full.
//!
//! While the batch stays, every step reads a fixed number of tokens more than the one before, and the price of a step is
//! a line in them between two points of the attention table: a maximum of lines, thus convex, and a line throughout
//! where its middle lies on the chord of its ends. So three prices stand for a whole stretch of steps.

use super::{Pending, Replica, picoseconds};
use crate::serving::histogram::Histogram;
use psim_cost_models::serving::{DecodeRun, KINDS, LanesRun, StepCost};

/// Shorter stretches are priced step by step.
const SHORT: u64 = 4;
/// Relative distance from a chord that is rounding.
const ON_CHORD: f64 = 1e-12;

/// How single steps are priced.
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack")]
enum Prices<'a> {
    /// One lane.
    One(DecodeRun<'a>),
    /// Several.
    Lanes(LanesRun<'a>),
    /// Steps arranged otherwise, which may bend anywhere.
    Any(&'a StepCost),
}

/// Steps whose prices lie on a line.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    from: u64,
    /// The last one.
    to: u64,
    first: f64,
    slope: f64,
}

impl Stretch {
    fn at(&self, step: u64) -> f64 {
        self.first + (step - self.from) as f64 * self.slope
    }
}

impl Replica<'_> {
    /// What lane `index` reads in the step after `steps` others.
    fn reads(&self, index: usize, steps: u64) -> [u64; KINDS] {
        self.lanes[index].ahead(steps)
    }

    fn price(&self, prices: &Prices<'_>, steps: u64) -> f64 {
        match prices {
            Prices::One(run) => run.seconds(&self.reads(0, steps)),
            Prices::Lanes(run) => run.seconds(|lane| self.reads(lane, steps)),
            Prices::Any(cost) => cost.seconds(&self.work_ahead(steps)),
        }
    }

    /// The stretch of steps that begins after `from` others, within the first `most`.
    fn stretch(&self, prices: &Prices<'_>, from: u64, most: u64, price: impl Fn(u64) -> f64) -> Stretch {
        let straight = match prices {
            Prices::One(run) => run.straight(&self.reads(0, from), &self.lanes[0].growth()),
            Prices::Lanes(run) => run.straight(|lane| (self.reads(lane, from), self.lanes[lane].growth())),
            Prices::Any(_) => 1,
        };
        let first = price(from);
        let mut to = from + straight.clamp(1, most - from) - 1;
        if to < from + SHORT {
            return Stretch { from, to: from, first, slope: 0.0 };
        }
        let mut last = price(to);
        loop {
            let middle = from + (to - from) / 2;
            let slope = (last - first) / (to - from) as f64;
            let there = price(middle);
            let chord = first + (middle - from) as f64 * slope;
            if (there - chord).abs() <= ON_CHORD * last {
                return Stretch { from, to, first, slope };
            }
            if middle < from + SHORT {
                return Stretch { from, to: from, first, slope: 0.0 };
            }
            (to, last) = (middle, there);
        }
    }

    /// Times at most `most` decoding steps from `start`, the last of them the first that ends at `limit` or later.
    /// `whole` gives the time of a step with what runs beside it.
    pub(super) fn decode(
        &mut self,
        cost: &StepCost,
        (start, limit): (u64, u64),
        most: u64,
        whole: impl Fn(f64) -> f64,
    ) {
        let prices = if !cost.plain() {
            Prices::Any(cost)
        } else if self.lanes.len() == 1 {
            Prices::One(cost.decode_run(self.lanes[0].decoding))
        } else {
            let decoding: Vec<u32> = self.lanes.iter().map(|l| l.decoding).collect();
            cost.lanes_run(&decoding).map_or(Prices::Any(cost), Prices::Lanes)
        };
        // Where the cache cannot fill up, its growth is added at the end.
        let roomy = self.lanes.iter().all(|l| l.decoding == 0 || l.roomy(most));
        let mut now = start;
        let mut first_end = start;
        let mut steps = 0;
        // Gaps of the first step are booked with the time since the last one; see `finish`.
        let (mut bucket, mut tokens) = (usize::MAX, 0);
        let decoding: u64 = self.lanes.iter().map(|l| u64::from(l.decoding)).sum();
        let price = |this: &Self, step: u64| whole(this.price(&prices, step));
        let mut line = Stretch { from: 0, to: 0, first: price(self, 0), slope: 0.0 };
        loop {
            if steps > line.to {
                line = self.stretch(&prices, steps, most, |step| price(self, step));
            }
            let mut duration = picoseconds(line.at(steps)).max(1);
            if steps == 0 {
                duration += picoseconds(self.extra_seconds);
            }
            now += duration;
            if self.limits.pace.is_some() {
                self.step_ends.push(now);
            }
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
            if !roomy {
                for (lane, moving) in self.lanes.iter().zip(&mut self.moving) {
                    if lane.decoding > 0 {
                        moving.used += lane.need(steps);
                    }
                }
            }
            steps += 1;
            if steps >= most || now >= limit || (!roomy && self.full(steps)) {
                break;
            }
        }
        for (lane, moving) in self.lanes.iter().zip(&mut self.moving) {
            if lane.decoding > 0 {
                moving.context = lane.ahead(steps);
                if roomy {
                    moving.used += lane.needs(steps);
                }
            }
        }
        if tokens > 0 {
            self.gaps.push((bucket, tokens));
        }
        self.pending = Some(Pending { start, end: now, steps, first_end, decode_only: true });
    }

    /// A lane has no room for the step after `steps` others.
    fn full(&self, steps: u64) -> bool {
        let short = |(lane, moving): (&super::Lane, &super::Moving)| {
            lane.decoding > 0 && moving.used + lane.need(steps) > lane.shape().capacity
        };
        self.lanes.iter().zip(&self.moving).any(short)
    }
}
