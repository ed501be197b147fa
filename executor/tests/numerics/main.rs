//! Every plan computes the same step: loss and gradients against one rank in float64.

#![expect(clippy::unwrap_used, clippy::print_stdout, clippy::needless_pass_by_value, reason = "a test")]

#[cfg(unix)]
mod cuda;
mod models;
mod mpi;
mod reference;
mod serving;

use psim_executor::network::Network;
use psim_executor::{ExecutorError, Piece, Run, Settings, run_threads};
use psim_kernels::cpu::CpuDevice;
use psim_models::{Model, Plan};
use psim_sim::schedule::Pass;
use psim_sim::step::StepProgram;
use reference::Reference;
use std::collections::BTreeMap;

const SEED: u64 = 7;

fn settings(steps: u32) -> Settings {
    // Small buckets, so that there are several.
    Settings { steps, seed: SEED, gradients: true, bucket: 3000, ..Settings::default() }
}

fn short(plan: &Plan) -> String {
    format!(
        "tp{} pp{} vpp{} dp{} cp{} ep{} etp{} mb{} {:?} {:?} {:?} {:?}",
        plan.tp,
        plan.pp,
        plan.vpp,
        plan.dp,
        plan.cp,
        plan.ep,
        plan.etp,
        plan.micro_batch,
        plan.schedule,
        plan.recompute,
        plan.sharding,
        plan.cp_kind
    )
}

/// Puts the pieces of all ranks together; every element must be there, and copies must agree.
fn assemble(pieces: impl Iterator<Item = Piece>) -> BTreeMap<String, ([usize; 2], Vec<f32>)> {
    let mut whole: BTreeMap<String, ([usize; 2], Vec<f32>)> = BTreeMap::new();
    for piece in pieces {
        let len = piece.whole[0] * piece.whole[1];
        let (_, values) =
            whole.entry(piece.name.clone()).or_insert_with(|| (piece.whole, vec![f32::NAN; len]));
        for (&position, &value) in piece.positions.iter().zip(&piece.values) {
            let old = values[position];
            assert!(
                old.is_nan() || (old - value).abs() <= 1e-6 * old.abs().max(1e-3),
                "{}: {old} {value}",
                piece.name
            );
            values[position] = value;
        }
    }
    for (name, (_, values)) in &whole {
        assert!(values.iter().all(|v| !v.is_nan()), "{name} has elements that no rank owns");
    }
    whole
}

/// The float64 step of one model, computed when the first run tells which tensors there are.
struct Expected {
    network: Network,
    name: String,
    step: Option<(f64, reference::Tensors)>,
}

impl Expected {
    fn new(model: &Model) -> Self {
        Self { network: Network::new(model).unwrap(), name: model.name.clone(), step: None }
    }

    /// Checks loss and every gradient tensor of a run.
    fn check(&mut self, plan: &Plan, run: &Run) {
        let name = format!("{} {}", self.name, short(plan));
        let gradients = assemble(run.ranks.iter().flat_map(|r| r.gradients.clone()));
        let (loss, tensors) = self.step.get_or_insert_with(|| {
            let shapes = gradients.iter().map(|(n, (s, _))| (n.clone(), *s)).collect();
            let seq = models::workload().seq_len as usize;
            let mut reference = Reference::new(&self.network, seq, SEED, &shapes);
            let loss = reference.step(plan.global_batch as usize, SEED, 1);
            (loss, reference.gradients)
        });
        assert!(
            (run.losses[0] - *loss).abs() <= 1e-6 * *loss,
            "{name}: loss {} against {loss}",
            run.losses[0]
        );
        assert_eq!(gradients.len(), tensors.len(), "{name}");
        let mut worst = (0.0, "");
        for (tensor, (_, values)) in &gradients {
            let error = psim_kernels::conformance::relative_error(values, &tensors[tensor]);
            assert!(error <= 1e-5, "{name}: gradient of {tensor} is off by {error:.2e}");
            if error > worst.0 {
                worst = (error, tensor);
            }
        }
        println!("{name}: loss {:.6}, worst gradient error {:.1e} ({})", run.losses[0], worst.0, worst.1);
    }
}

fn check(model: &Model, plans: &[Plan]) {
    let mut expected = Expected::new(model);
    for plan in plans {
        let run = run_threads(model, plan, &models::workload(), &settings(1), |_| Ok(CpuDevice::poisoning()))
            .unwrap_or_else(|e| panic!("{} {}: {e}", model.name, short(plan)));
        for rank in &run.ranks {
            let passes: Vec<Pass> = rank.steps[0].passes.iter().map(|p| p.pass).collect();
            let program = StepProgram::new(plan).unwrap();
            assert_eq!(passes, program.order.stage(rank.stage), "{}", short(plan));
        }
        expected.check(plan, &run);
    }
}

/// All plans that are compared with the reference, on threads and on MPI ranks.
pub(crate) fn plans_compared() -> usize {
    models::suite().iter().map(|(_, plans)| plans.len()).sum()
}

#[test]
fn at_least_twenty_five_plans_are_compared() {
    let all = plans_compared();
    println!("{all} plans");
    assert!(all >= 25, "{all} plans");
}

#[test]
fn gpt_plans_equal_the_reference() {
    let [(model, plans), ..] = models::suite();
    check(&model, &plans);
}

#[test]
fn llama_plans_equal_the_reference() {
    let [_, (model, plans), _] = models::suite();
    check(&model, &plans);
}

#[test]
fn mixture_plans_equal_the_reference() {
    let [.., (model, plans)] = models::suite();
    check(&model, &plans);
}

/// Adam, sharded and not: three steps of losses agree, and the loss moves.
#[test]
fn later_steps_agree_whatever_the_sharding() {
    let model = models::llama(2);
    let run = |plan: Plan| {
        run_threads(&model, &plan, &models::workload(), &settings(3), |_| Ok(CpuDevice::poisoning()))
            .unwrap()
            .losses
    };
    let one = run(models::base());
    assert!((one[0] - one[2]).abs() > 1e-3, "{one:?}");
    for plan in [
        Plan { dp: 4, ..models::base() },
        Plan { dp: 2, sharding: psim_models::plan::Sharding::None, ..models::base() },
        Plan { tp: 2, dp: 2, pp: 2, ..models::base() },
        Plan { dp: 2, sharding: psim_models::plan::Sharding::Gradients, ..models::base() },
        Plan { dp: 2, pp: 2, sharding: psim_models::plan::Sharding::Parameters, ..models::base() },
    ] {
        let name = short(&plan);
        for (a, b) in run(plan).iter().zip(&one) {
            assert!((a - b).abs() <= 2e-4 * b, "{name}: {a} against {b}");
        }
    }
}

/// What is not built is refused, with a hint.
#[test]
fn unsupported_plans_are_refused() {
    use psim_models::plan::{ContextParallel, Precision, Sharding};
    let refuse = |plan: Plan| {
        let error = run_threads(&models::llama(2), &plan, &models::workload(), &settings(1), |_| {
            Ok(CpuDevice::poisoning())
        })
        .unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, ExecutorError::Unsupported { .. } | ExecutorError::Indivisible { .. }),
            "{text}"
        );
        text
    };
    assert!(
        refuse(Plan { dp: 2, sharding: Sharding::Parameters, shard_group: 1, ..models::base() })
            .contains("hint:")
    );
    assert!(refuse(Plan { cp: 2, cp_kind: ContextParallel::Ulysses, ..models::base() }).contains("Ulysses"));
    assert!(refuse(Plan { precision: Precision::Fp8, ..models::base() }).contains("fp8"));
    assert!(refuse(Plan { tp: 4, ..models::base() }).contains("key-value heads = 2 is not divisible by 4"));
    assert!(refuse(Plan { dp: 3, ..models::base() }).contains("global batch = 8 is not divisible by 3"));
}
