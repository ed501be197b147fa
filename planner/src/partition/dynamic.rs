//! Exact dynamic program over (stage, layers placed so far).
//!
//! `best[s][i]` is the smallest possible slowest stage when the first `i` layers lie on stages `0..=s`:
//! `best[s][i] = min over j of max(best[s-1][j], time(s, j..i))`, restricted to segments that fit. Segments are tried
//! from short to long and the scan stops once the segment alone is no better, so that the usual cost is
//! `O(stages · layers · layers per stage)` instead of `O(stages · layers²)`. (`best` is not monotone in `i`: every
//! stage needs a layer, and layers differ. A binary search for the crossing would be wrong.)

use super::{Partition, PartitionError, Partitioner, Problem};

/// The dynamic program.
#[derive(Debug, Clone, Copy, Default)]
pub struct DynamicProgram;

const IMPOSSIBLE: u64 = u64::MAX;

impl Partitioner for DynamicProgram {
    fn name(&self) -> &'static str {
        "dynamic program"
    }

    fn partition(&self, problem: &Problem) -> Result<Partition, PartitionError> {
        let (layers, stages) = (problem.layers.len(), problem.stages.len());
        if layers < stages || stages == 0 {
            return Err(PartitionError::TooFewLayers { stages, layers });
        }
        let time = prefix(problem.layers.iter().map(|l| l.time));
        let state = prefix(problem.layers.iter().map(|l| l.state_bytes));
        let activation = prefix(problem.layers.iter().map(|l| l.activation_bytes));
        let segment_time = |s: usize, j: usize, i: usize| time[i] - time[j] + problem.stages[s].extra_time;
        let fits = |s: usize, j: usize, i: usize| {
            let stage = &problem.stages[s];
            let bytes = (state[i] - state[j])
                .saturating_add((activation[i] - activation[j]).saturating_mul(stage.in_flight))
                .saturating_add(stage.extra_bytes);
            bytes <= stage.capacity
        };
        let mut best = vec![IMPOSSIBLE; layers + 1];
        for (i, slot) in best.iter_mut().enumerate().skip(1) {
            if fits(0, 0, i) {
                *slot = segment_time(0, 0, i);
            }
        }
        let mut cut = vec![vec![0u32; layers + 1]; stages];
        for (s, cuts) in cut.iter_mut().enumerate().skip(1) {
            let mut next = vec![IMPOSSIBLE; layers + 1];
            for i in s + 1..=layers {
                // Growing segments: neither time nor memory falls, so the scan ends at the first that is too long.
                for j in (s..i).rev() {
                    let own = segment_time(s, j, i);
                    if own >= next[i] || !fits(s, j, i) {
                        break;
                    }
                    let value = best[j].max(own);
                    if value < next[i] {
                        next[i] = value;
                        cuts[i] = j as u32;
                    }
                }
            }
            best = next;
        }
        let slowest = best[layers];
        if slowest == IMPOSSIBLE {
            return Err(PartitionError::Memory { stages, layers });
        }
        let mut counts = vec![0; stages];
        let mut end = layers;
        for s in (0..stages).rev() {
            let start = if s == 0 { 0 } else { cut[s][end] as usize };
            counts[s] = (end - start) as u32;
            end = start;
        }
        Ok(Partition { counts, slowest })
    }
}

fn prefix(values: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut sum = 0;
    std::iter::once(0)
        .chain(values.map(|v| {
            sum += v;
            sum
        }))
        .collect()
}
