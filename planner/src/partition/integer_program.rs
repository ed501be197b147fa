//! Integer program for equal layers: how many go to each stage.
//!
//! minimise `T` subject to `Σ n_s = layers`, `n_s ≥ 1`, `T ≥ time·n_s + extra_s`, and
//! `(state + activation·in_flight_s)·n_s + extra bytes ≤ capacity`. Solved by branch and bound over a simplex.

use super::{Partition, PartitionError, Partitioner, Problem};
use good_lp::{Expression, Solution, SolverModel, constraint, microlp, variable, variables};

/// The integer program.
#[derive(Debug, Clone, Copy, Default)]
pub struct IntegerProgram;

impl Partitioner for IntegerProgram {
    fn name(&self) -> &'static str {
        "integer program"
    }

    fn partition(&self, problem: &Problem) -> Result<Partition, PartitionError> {
        let (layers, stages) = (problem.layers.len(), problem.stages.len());
        if layers < stages || stages == 0 {
            return Err(PartitionError::TooFewLayers { stages, layers });
        }
        let layer = problem.layers[0];
        if problem.layers.iter().any(|l| *l != layer) {
            return Err(PartitionError::Unsupported("the integer program needs equal layers".to_owned()));
        }
        // Times in layers and memory as a largest count keep the coefficients near one.
        let unit = layer.time.max(1) as f64;
        let mut limits = Vec::with_capacity(stages);
        for stage in &problem.stages {
            let each = layer.state_bytes + layer.activation_bytes * stage.in_flight;
            let room = stage.capacity.saturating_sub(stage.extra_bytes);
            let most = room.checked_div(each).map_or(layers as u64, |n| n.min(layers as u64));
            if most == 0 || stage.extra_bytes > stage.capacity {
                return Err(PartitionError::Memory { stages, layers });
            }
            limits.push(most as f64);
        }
        variables! { program: slowest >= 0; }
        let counts: Vec<_> =
            limits.iter().map(|&most| program.add(variable().integer().min(1).max(most))).collect();
        let total: Expression = counts.iter().sum();
        let mut model = program.minimise(slowest).using(microlp).with(constraint!(total == layers as f64));
        for (count, stage) in counts.iter().zip(&problem.stages) {
            let time = layer.time as f64 / unit;
            model = model.with(constraint!(slowest >= time * *count + stage.extra_time as f64 / unit));
        }
        let solution = model.solve().map_err(|error| match error {
            good_lp::ResolutionError::Infeasible => PartitionError::Memory { stages, layers },
            other => PartitionError::Solver(other.to_string()),
        })?;
        let counts: Vec<u32> = counts.iter().map(|&c| solution.value(c).round() as u32).collect();
        let slowest = problem
            .slowest(&counts)
            .ok_or_else(|| PartitionError::Solver(format!("returned {counts:?}, which breaks a limit")))?;
        Ok(Partition { counts, slowest })
    }
}
