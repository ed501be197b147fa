//! The closed loop on this machine's CPU: calibrate, predict, execute, compare.
//!
//! Numerics and completion are asserted always. Ranking and error of the step are printed beside the spread of repeating
//! one configuration, and asserted where that spread is small: a busy machine makes the comparison inconclusive.
//! Processor time, which other programs change less, is compared beside it.

#[path = "../../executor/tests/numerics/models.rs"]
#[expect(dead_code, reason = "the numerics suite uses the rest")]
mod models;

use psim_calibration::measure::{self, DeviceChoice, Options, threads_cluster, threads_stack};
use psim_cost_models::ProfileLibrary;
use psim_executor::execute::{ExecuteDevice, ExecuteReport, ExecuteRequest, RankMode, execute};
use psim_executor::predict::Basis;
use psim_models::arch::{Model, Position};
use psim_models::plan::{Recompute, Schedule};
use psim_models::{Plan, TrainingWorkload};
use psim_sim::residual::PhaseFactors;
use psim_tests::weather::Weather;
use std::sync::Arc;

/// GPT-2 style: four layers of 128, untied.
fn tiny_gpt() -> Model {
    let model = models::widened(models::gpt(4), 128, 512, 32, 512);
    Model { tied_embeddings: false, position: Position::Learned(128), max_context: Some(128), ..model }
}

/// Plans over one, two and four ranks that differ by more than a machine's noise: how much is recomputed, how many ranks
/// share the cores, how large the pipeline's bubble is.
fn plans() -> Vec<(&'static str, Plan)> {
    let p = models::base;
    let full = Recompute::Full;
    vec![
        ("1 rank", p()),
        ("1 rank recompute", Plan { recompute: full, ..p() }),
        ("dp2", Plan { dp: 2, ..p() }),
        ("dp2 recompute", Plan { dp: 2, recompute: full, ..p() }),
        ("tp2", Plan { tp: 2, ..p() }),
        ("tp2 mb4 recompute", Plan { tp: 2, micro_batch: 4, recompute: full, ..p() }),
        ("cp2", Plan { cp: 2, ..p() }),
        ("pp2", Plan { pp: 2, ..p() }),
        ("pp2 mb4 gpipe", Plan { pp: 2, micro_batch: 4, schedule: Schedule::Gpipe, ..p() }),
        ("pp2 mb8", Plan { pp: 2, micro_batch: 8, ..p() }),
        ("pp2 mb8 recompute", Plan { pp: 2, micro_batch: 8, recompute: full, ..p() }),
        ("pp2 uneven", Plan { pp: 2, stage_layers: vec![1, 3], ..p() }),
        ("dp4", Plan { dp: 4, ..p() }),
        ("tp2 dp2", Plan { tp: 2, dp: 2, ..p() }),
        ("tp2 pp2", Plan { tp: 2, pp: 2, ..p() }),
        ("pp2 vpp2 dp2", Plan { pp: 2, vpp: 2, dp: 2, schedule: Schedule::Interleaved, ..p() }),
        ("pp4 mb8", Plan { pp: 4, micro_batch: 8, ..p() }),
        ("cp2 dp2 recompute", Plan { cp: 2, dp: 2, recompute: full, ..p() }),
    ]
}

/// Kendall's tau-b without ties worth mentioning: concordant minus discordant pairs over all pairs.
fn kendall_tau(pairs: &[(f64, f64)]) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for (i, a) in pairs.iter().enumerate() {
        for b in &pairs[i + 1..] {
            sum += ((a.0 - b.0) * (a.1 - b.1)).signum();
            count += 1.0;
        }
    }
    sum / count
}

#[test]
fn calibrate_predict_execute_compare() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        device: DeviceChoice::Cpu,
        out: folder.path().join("cpu.toml"),
        minutes: 0.3,
        seed: 5,
        runners: Some(measure::Runners {
            collective: Arc::new(psim_executor::bench::collective),
            engine: Arc::new(psim_executor::bench::engine_step),
        }),
        accelerator: None,
    };
    let mut clocks = vec![reference()];
    let calibrating = Weather::now();
    let calibration = measure::calibrate(&options, &mut |_: f64, _: &str| true).unwrap();
    let crowded = calibrating.others().max(calibration.disturbed);
    calibrating.print();
    clocks.push(reference());
    println!("calibrated: {} points in {:.1} s", calibration.points, calibration.seconds);
    calibration.notes.iter().for_each(|note| println!("note: {note}"));
    assert!(calibration.profile.collectives.len() >= 5);
    let sharing = calibration.profile.machine.clone().expect("the machine was measured").sharing;
    let mut library = ProfileLibrary::built_in();
    library.add_accelerator(calibration.profile);
    println!("threads: {:?}, hand-over {:.1} us", sharing, psim_executor::bench::hand_over() * 1e6);
    let (model, stack) = (tiny_gpt(), threads_stack());
    let workload = TrainingWorkload { seq_len: 128, ..models::workload() };
    let run = |plan: &Plan| -> ExecuteReport {
        let cluster = threads_cluster(&calibration.accelerator, plan.world());
        let basis = Basis {
            cluster: &cluster,
            stack: &stack,
            library: &library,
            sharing: &sharing,
            factors: PhaseFactors::default(),
        };
        execute(&ExecuteRequest {
            model: &model,
            plan,
            workload: &workload,
            device: ExecuteDevice::Cpu,
            ranks: RankMode::Threads,
            steps: STEPS,
            seed: 9,
            basis: Some(basis),
        })
        .unwrap()
        .expect("threads report here")
    };
    let plans = plans();
    assert!(plans.len() >= 12);
    let mut losses: Option<Vec<f64>> = None;
    let mut reports: Vec<Vec<ExecuteReport>> = vec![Vec::new(); plans.len()];
    // Further measurements of one configuration, each as long and as spread over the rounds as the one that counts.
    let mut repeats: Vec<Vec<ExecuteReport>> = vec![Vec::new(); REPEATS];
    // Rounds over all configurations: what the machine does meanwhile hits all of them alike.
    let (begin, before) = (std::time::Instant::now(), Weather::now());
    for round in 0..ROUNDS {
        if begin.elapsed().as_secs() > ENOUGH {
            println!("{round} rounds took {} s: no more", begin.elapsed().as_secs());
            break;
        }
        for (index, ((name, plan), own)) in plans.iter().zip(&mut reports).enumerate() {
            let report = run(plan);
            let expected = losses.get_or_insert_with(|| report.losses.clone());
            for (loss, expected) in report.losses.iter().zip(expected.iter()) {
                assert!((loss / expected - 1.0).abs() < 1e-4, "{name}: loss {loss} against {expected}");
            }
            assert!(report.predicted.unwrap() > 0.0 && report.measured > 0.0 && report.memory > 0);
            if round == 0 {
                print_phases(name, &report);
            }
            own.push(report);
            if (index + 1) % plans.len().div_ceil(REPEATS) == 0 || index + 1 == plans.len() {
                repeats[(index / plans.len().div_ceil(REPEATS)).min(REPEATS - 1)]
                    .push(run(&plans[YARDSTICK].1));
            }
        }
    }
    before.print();
    let crowded = crowded.max(before.others());
    clocks.push(reference());
    let (mut steps, mut processors) = (Vec::new(), Vec::new());
    for ((name, plan), own) in plans.iter().zip(&reports) {
        let (measured, predicted) = (quickest(own), own[0].predicted.unwrap());
        let (busy, expected) = (least_processor(own), own[0].predicted_processor.unwrap());
        println!(
            "{name:<20} step {:6.1} ms predicted {:6.1} ms {:+4.0} %   processor {:6.1} ms predicted {:6.1} ms {:+4.0} %",
            measured * 1e3,
            predicted * 1e3,
            (predicted / measured - 1.0) * 1e2,
            busy * 1e3,
            expected * 1e3,
            (expected / busy - 1.0) * 1e2,
        );
        steps.push((plan.world(), measured, predicted));
        processors.push((plan.world(), busy, expected));
    }
    // The yardstick: what measuring one configuration again changes.
    let spread = |of: fn(&[ExecuteReport]) -> f64| {
        let values: Vec<f64> = repeats.iter().filter(|r| !r.is_empty()).map(|r| of(r)).collect();
        let most = values.iter().copied().fold(0.0, f64::max);
        most / values.iter().copied().fold(f64::INFINITY, f64::min) - 1.0
    };
    let (noise, processor_noise) = (spread(quickest), spread(least_processor));
    let cores = sharing.cores;
    let own_core: Vec<_> = steps.iter().copied().filter(|s| s.0 <= cores).collect();
    summary("step, a core for every rank", &own_core, noise);
    let (tau, error) = summary("step", &steps, noise);
    let (_, processor_error) = summary("processor time", &processors, processor_noise);
    // However busy the machine is, a prediction that is off by a factor is wrong.
    assert!(processor_error < 0.6, "median error of processor time {processor_error}");
    // A calibration disturbed by others, and clocks that have changed since, are noise that repeats of a run do not show.
    let slowest = clocks.iter().copied().fold(0.0, f64::max);
    let drift = slowest / clocks.iter().copied().fold(f64::INFINITY, f64::min) - 1.0;
    println!("others at most {:.1} %, the same product drifts by {:.1} %", crowded * 1e2, drift * 1e2);
    if noise < QUIET && crowded < QUIET && drift < QUIET {
        assert!(tau >= TAU && error <= WORST, "tau {tau}, median error {error}");
    } else {
        println!("inconclusive: noisy machine");
    }
}

/// Processor seconds of one matrix product now, at its best: what calibrations and runs share.
fn reference() -> f64 {
    measure::host::sustained(200).unwrap().into_iter().fold(f64::INFINITY, f64::min)
}

/// Kendall's tau that a quiet machine reaches at least.
const TAU: f64 = 0.7;
/// Median error that it reaches at most.
const WORST: f64 = 0.15;
/// Rounds over all configurations.
const ROUNDS: usize = 4;
/// Timed steps of a run.
const STEPS: u32 = 4;
/// Seconds after which no round is begun.
const ENOUGH: u64 = 50;
/// The configuration that is measured again and again: two ranks, a core each where there are two.
const YARDSTICK: usize = 2;
/// How often.
const REPEATS: usize = 4;
/// Spread below which a machine counts as quiet.
const QUIET: f64 = 0.05;

/// The best of all steps: what the machine does when it is left alone.
fn quickest(reports: &[ExecuteReport]) -> f64 {
    reports.iter().flat_map(|r| &r.step_seconds).copied().fold(f64::INFINITY, f64::min)
}

/// Median over a run's steps, the best of the runs.
fn least_processor(reports: &[ExecuteReport]) -> f64 {
    reports.iter().map(|r| r.processor).fold(f64::INFINITY, f64::min)
}

/// Prints and returns Kendall's tau and the median error.
fn summary(what: &str, runs: &[(u32, f64, f64)], noise: f64) -> (f64, f64) {
    let pairs: Vec<(f64, f64)> = runs.iter().map(|r| (r.1, r.2)).collect();
    let mut errors: Vec<f64> = pairs.iter().map(|(m, p)| (p / m - 1.0).abs()).collect();
    errors.sort_by(f64::total_cmp);
    let (tau, median) = (kendall_tau(&pairs), errors[errors.len() / 2]);
    println!(
        "{what}: tau {tau:.2}, median error {:.0} %, repeat spread of one configuration {:.0} %",
        median * 1e2,
        noise * 1e2
    );
    (tau, median)
}

fn print_phases(name: &str, report: &ExecuteReport) {
    println!("{name}: memory {:.1} MiB", report.memory as f64 / 1_048_576.0);
    for row in &report.phases {
        println!(
            "    stage {} {:<8} measured {:6.1} ms predicted {:6.1} ms   processor {:6.1} ms predicted {:6.1} ms",
            row.stage,
            row.phase,
            row.measured * 1e3,
            row.predicted.unwrap_or(0.0) * 1e3,
            row.processor * 1e3,
            row.predicted_processor.unwrap_or(0.0) * 1e3,
        );
    }
}
