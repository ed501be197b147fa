//! The closed loop on this machine's CPU: calibrate, predict, execute, compare.
//!
//! Numerics are asserted always. Ranking and error are printed beside the spread of repeating one configuration, and
//! asserted only where that spread is small and `PSIM_ASSERT_CLOSED_LOOP` is set: a busy machine makes the comparison
//! inconclusive, and the ranking target has not been reached on a quiet one yet.

use psim_calibration::measure::{self, DeviceChoice, Options, threads_cluster, threads_stack};
use psim_cost_models::ProfileLibrary;
use psim_executor::execute::{ExecuteDevice, ExecuteReport, ExecuteRequest, RankMode, execute};
use psim_executor::predict::Basis;
use psim_models::arch::{
    Attention, AttentionVariant, Block, DenseFfn, Ffn, Mixer, Model, Norm, Position, QkNorm,
};
use psim_models::plan::{ContextParallel, Precision, Recompute, Schedule, Sharding};
use psim_models::{Plan, TrainingWorkload};
use psim_sim::residual::PhaseFactors;
use std::sync::Arc;

fn tiny_gpt() -> Model {
    let attention = Attention {
        heads: 4,
        kv_heads: 4,
        head_dim: 32,
        v_head_dim: 32,
        window: None,
        qkv_bias: true,
        out_bias: true,
        qk_norm: QkNorm::None,
        sinks: false,
        output_gate: false,
        variant: AttentionVariant::default(),
    };
    Model {
        name: "tiny-gpt".to_owned(),
        family: "gpt".to_owned(),
        hidden: 128,
        vocab: 512,
        tied_embeddings: false,
        head_bias: false,
        position: Position::Learned(128),
        norm: Norm { rms: false, bias: true, weight: true },
        embedding_norm: false,
        final_norm: true,
        kinds: vec![Block {
            mixer: Mixer::Attention(attention),
            cross_attention: None,
            ffn: Ffn::Dense(DenseFfn { hidden: 512, gated: false, bias: true }),
            norms: 2,
            parallel: false,
            extra_parameters: 0,
        }],
        pattern: vec![0; 4],
        encoder: None,
        mtp_layers: 0,
        mtp_kind: None,
        embedding_width: None,
        extra_parameters: Vec::new(),
        max_context: Some(128),
        source: "made up".to_owned(),
    }
}

fn base() -> Plan {
    Plan {
        tp: 1,
        pp: 1,
        dp: 1,
        cp: 1,
        ep: 1,
        etp: 1,
        vpp: 1,
        micro_batch: 1,
        global_batch: 8,
        sequence_parallel: true,
        recompute: Recompute::None,
        sharding: Sharding::Optimizer,
        shard_group: 0,
        schedule: Schedule::OneFOneB,
        cp_kind: ContextParallel::Ring,
        precision: Precision::Fp32,
        stage_layers: Vec::new(),
        vocabulary_parallel: false,
    }
}

fn plans() -> Vec<(&'static str, Plan)> {
    let p = base;
    vec![
        ("1 rank", p()),
        ("dp2", Plan { dp: 2, ..p() }),
        ("dp2 mb4", Plan { dp: 2, micro_batch: 4, ..p() }),
        ("tp2", Plan { tp: 2, ..p() }),
        ("cp2", Plan { cp: 2, ..p() }),
        ("pp2 1f1b", Plan { pp: 2, ..p() }),
        ("pp2 gpipe", Plan { pp: 2, schedule: Schedule::Gpipe, ..p() }),
        ("pp2 one micro-batch", Plan { pp: 2, micro_batch: 8, ..p() }),
        ("pp2 uneven", Plan { pp: 2, stage_layers: vec![1, 3], ..p() }),
        ("dp2 recompute", Plan { dp: 2, recompute: Recompute::Full, ..p() }),
        ("dp4", Plan { dp: 4, ..p() }),
        ("tp2 dp2", Plan { tp: 2, dp: 2, ..p() }),
        ("tp2 pp2", Plan { tp: 2, pp: 2, ..p() }),
        ("pp2 vpp2 dp2", Plan { pp: 2, vpp: 2, dp: 2, schedule: Schedule::Interleaved, ..p() }),
        ("pp4", Plan { pp: 4, ..p() }),
        ("cp2 dp2 recompute", Plan { cp: 2, dp: 2, recompute: Recompute::Full, ..p() }),
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
        collectives: Some(Arc::new(psim_executor::bench::collective)),
        accelerator: None,
    };
    let calibration = measure::calibrate(&options, &mut |_: f64, _: &str| true).unwrap();
    println!("calibrated: {} points in {:.1} s", calibration.points, calibration.seconds);
    calibration.notes.iter().for_each(|note| println!("note: {note}"));
    assert!(calibration.profile.collectives.len() >= 5);
    let sharing = calibration.profile.machine.clone().expect("the machine was measured").sharing;
    let mut library = ProfileLibrary::built_in();
    library.add_accelerator(calibration.profile);
    println!("threads: {:?}, hand-over {:.1} us", sharing, psim_executor::bench::hand_over() * 1e6);
    let (model, stack) = (tiny_gpt(), threads_stack());
    let workload = TrainingWorkload {
        seq_len: 128,
        global_batch: 8,
        tokens: None,
        packed_length: None,
        lora_rank: None,
        expert_imbalance: 1.0,
        capacity_factor: None,
    };
    let run = |plan: &Plan| -> ExecuteReport {
        let cluster = threads_cluster(&calibration.accelerator, plan.world());
        let basis = Basis { cluster: &cluster, stack: &stack, library: &library, sharing: &sharing, factors: PhaseFactors::default() };
        execute(&ExecuteRequest {
            model: &model,
            plan,
            workload: &workload,
            device: ExecuteDevice::Cpu,
            ranks: RankMode::Threads,
            steps: 4,
            seed: 9,
            basis: Some(basis),
        })
        .unwrap()
        .unwrap()
        .expect("threads report here")
    };
    let mut losses: Option<Vec<f64>> = None;
    let (mut pairs, mut errors, mut spreads) = (Vec::new(), Vec::new(), Vec::new());
    for (name, plan) in plans() {
        let report = run(&plan);
        let expected = losses.get_or_insert_with(|| report.losses.clone());
        for (loss, expected) in report.losses.iter().zip(expected.iter()) {
            assert!((loss / expected - 1.0).abs() < 1e-4, "{name}: loss {loss} against {expected}");
        }
        let (predicted, error) = (report.predicted.unwrap(), report.error().unwrap());
        assert!(predicted > 0.0 && report.measured > 0.0 && report.memory > 0);
        println!(
            "{name:<20} measured {:7.1} ms  predicted {:7.1} ms  error {:+5.0} %  spread {:4.0} %  processor {:7.1} ms predicted {:7.1} ms error {:+5.0} % spread {:4.0} %  memory {:.1} MiB",
            report.measured * 1e3,
            predicted * 1e3,
            error * 1e2,
            report.spread * 1e2,
            report.processor * 1e3,
            report.predicted_processor.unwrap() * 1e3,
            (report.predicted_processor.unwrap() / report.processor - 1.0) * 1e2,
            report.processor_spread * 1e2,
            report.memory as f64 / 1_048_576.0,
        );
        for row in &report.phases {
            println!(
                "    stage {} {:<8} measured {:7.1} ms  predicted {:7.1} ms  processor {:7.1} ms  predicted {:7.1} ms",
                row.stage,
                row.phase,
                row.measured * 1e3,
                row.predicted.unwrap_or(0.0) * 1e3,
                row.processor * 1e3,
                row.predicted_processor.unwrap_or(0.0) * 1e3
            );
        }
        pairs.push((report.measured, predicted));
        errors.push(error.abs());
        spreads.push(report.spread);
    }
    assert!(pairs.len() >= 12);
    // The yardstick: one configuration on all cores run again and again, and steps of one run among themselves.
    let both = Plan { dp: 2, ..base() };
    let repeats: Vec<f64> = (0..3).map(|_| run(&both).measured).collect();
    let low = repeats.iter().copied().fold(f64::INFINITY, f64::min);
    spreads.sort_by(f64::total_cmp);
    let spread =
        f64::max(repeats.iter().copied().fold(0.0, f64::max) / low - 1.0, spreads[spreads.len() / 2]);
    errors.sort_by(f64::total_cmp);
    let (tau, median) = (kendall_tau(&pairs), errors[errors.len() / 2]);
    println!("tau {tau:.2}, median error {:.0} %, repeat spread {:.0} %", median * 1e2, spread * 1e2);
    let reached = tau >= 0.7 && median <= 0.15;
    if spread >= 0.05 {
        println!("inconclusive: noisy machine");
    } else if std::env::var_os("PSIM_ASSERT_CLOSED_LOOP").is_some() {
        assert!(reached, "tau {tau}, median error {median}");
    } else if !reached {
        println!("below target (tau 0.7, median error 15 %): not reached yet on a quiet machine");
    }
}
