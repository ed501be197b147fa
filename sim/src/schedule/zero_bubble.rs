//! Zero bubble by hand: ZB-H1 and ZB-H2 (Qi et al. 2024, "Zero Bubble Pipeline Parallelism", §2).
//!
//! The backward pass is split into B (gradient of the input, which the stage before waits for) and W (gradient of the
//! weights, which nobody waits for); W is put off to fill what would be a bubble. With durations F, B and W:
//!
//! | schedule | bubble per stage | micro-batches held |
//! | --- | --- | --- |
//! | 1F1B | (p - 1)(F + B + W) | p |
//! | ZB-H1 | (p - 1)(F + B - W) | p |
//! | ZB-H2 | (p - 1)(F + B - 2W) | 2p - 1 |
//!
//! ZB-H1 has the warm-up of 1F1B, and stage `s` puts off its first W by `s` backward passes. ZB-H2 has twice as many
//! warm-up forwards, `2(p - 1 - s)`, and puts off by `2s`.

use super::{Order, Pass, PassKind};
use crate::passes::PipelineSpec;

/// ZB-H1 (`depth` 1) or ZB-H2 (`depth` 2).
pub(super) fn by_hand(spec: &PipelineSpec, depth: u32, order: &mut Order) {
    order.split_backward = true;
    for stage in 0..spec.stages {
        order.starts.push(order.passes.len());
        let warm_up = depth.saturating_mul(spec.stages - 1 - stage).min(spec.micro_batches);
        let put_off = depth.saturating_mul(stage);
        let mut add = |kind, micro_batch| order.passes.push(Pass { micro_batch, chunk: 0, kind });
        let mut weights = 0;
        (0..warm_up).for_each(|i| add(PassKind::Forward, i));
        for i in warm_up..spec.micro_batches {
            add(PassKind::Forward, i);
            add(PassKind::Backward, i - warm_up);
            if i - warm_up >= put_off {
                add(PassKind::Weight, weights);
                weights += 1;
            }
        }
        for i in spec.micro_batches - warm_up..spec.micro_batches {
            add(PassKind::Backward, i);
            add(PassKind::Weight, weights);
            weights += 1;
        }
        (weights..spec.micro_batches).for_each(|i| add(PassKind::Weight, i));
    }
    order.starts.push(order.passes.len());
}

/// The passes of one stage of ZB-V while they are written down.
struct Line<'a> {
    passes: &'a mut Vec<Pass>,
    /// Next micro-batch per chunk and kind.
    next: [[u32; 3]; 2],
    total: u32,
}

impl Line<'_> {
    /// Adds the next micro-batch's pass, if there is one left.
    fn add(&mut self, kind: PassKind, chunk: u16) {
        let next = &mut self.next[usize::from(chunk)][kind as usize];
        if *next < self.total {
            self.passes.push(Pass { micro_batch: *next, chunk, kind });
            *next += 1;
        }
    }

    fn done(&self, kind: PassKind, chunk: usize) -> u32 {
        self.next[chunk][kind as usize]
    }
}

/// ZB-V: chunk 0 goes down the stages and chunk 1 up again, so that the last forward and the first backward pass of a
/// micro-batch meet on stage 0 and every stage holds `2p` half-size chunks (the memory of 1F1B's first stage).
/// Without a bubble for F = B = W (Qi et al. 2024, §6; Qi et al. 2024b, "Pipeline Parallelism with Controllable
/// Memory"). For at least `2p - 1` micro-batches.
pub(super) fn v_by_hand(spec: &PipelineSpec, order: &mut Order) {
    use PassKind::{Backward, Forward, Weight};
    order.split_backward = true;
    let (stages, total) = (spec.stages, spec.micro_batches);
    for stage in 0..stages {
        order.starts.push(order.passes.len());
        let mut line = Line { passes: &mut order.passes, next: [[0; 3]; 2], total };
        // Fill the way down and up until the first backward pass arrives.
        (0..2 * (stages - stage) - 1).for_each(|_| line.add(Forward, 0));
        for _ in 0..stage {
            line.add(Forward, 1);
            line.add(Forward, 0);
        }
        for _ in 0..stages - stage {
            line.add(Forward, 1);
            line.add(Backward, 1);
            line.add(Weight, 1);
        }
        // One micro-batch down, one up per round.
        while line.done(Forward, 1) < total {
            line.add(Forward, 0);
            line.add(Backward, 0);
            line.add(Weight, 0);
            line.add(Forward, 1);
            line.add(Backward, 1);
            line.add(Weight, 1);
        }
        // Drain: first what other stages wait for.
        for _ in 0..stage {
            line.add(Backward, 0);
            line.add(Backward, 1);
        }
        while line.done(Backward, 0) < total {
            line.add(Backward, 0);
            line.add(Weight, 0);
        }
        while line.done(Weight, 1) < total {
            line.add(Weight, 1);
        }
        while line.done(Weight, 0) < total {
            line.add(Weight, 0);
        }
    }
    order.starts.push(order.passes.len());
}
