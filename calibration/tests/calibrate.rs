//! `measure::calibrate` end to end on this machine's CPU, and under `kill -9`.

use psim_calibration::measure::point::Role;
use psim_calibration::measure::{
    DeviceChoice, MeasureError, Options, Point, Record, calibrate, check, journal, samples_path,
    threads_cluster, threads_stack,
};
use psim_cost_models::{CostModel, ProfileLibrary};
use psim_hardware::profile::AcceleratorProfile;
use psim_hardware::{DType, Scaling};
use psim_kernels::Device;
use psim_models::operator::GemmRole;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn options(out: &Path, minutes: f64) -> Options {
    Options {
        device: DeviceChoice::Cpu,
        out: out.to_owned(),
        minutes,
        seed: 3,
        runners: None,
        accelerator: None,
    }
}

fn header() -> journal::Header {
    journal::Header::new(&psim_kernels::cpu::CpuDevice::new().name())
}

#[test]
fn a_short_calibration_makes_a_usable_profile_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("cpu.toml");
    let (start, mut updates) = (Instant::now(), 0);
    let result = calibrate(&options(&out, 0.1), &mut |_: f64, _: &str| {
        updates += 1;
        true
    })
    .unwrap();
    let elapsed = start.elapsed().as_secs_f64();
    // Other tests run on the same cores: what is started before the budget ends takes longer beside them.
    assert!(elapsed <= 6.0 * 2.0, "{elapsed} s of a budget of 6 s");
    assert!(result.points > 60 && updates > 60, "{} points", result.points);
    println!("{} points in {elapsed:.1} s", result.points);
    for note in &result.notes {
        println!("note: {note}");
    }
    for (name, points, sigma) in &result.tables {
        println!("{name}: {points} points, sigma {sigma}");
    }
    let text = std::fs::read_to_string(&out).unwrap();
    let profile: AcceleratorProfile = toml::from_str(&text).unwrap();
    assert_eq!(profile, result.profile);
    // Priced through the cost model, measured points come back about as measured: what models a table smooths its noise.
    let cluster = threads_cluster(&result.accelerator, 1);
    let mut library = ProfileLibrary::built_in();
    library.add_accelerator(profile);
    let cost = CostModel::new(&cluster, cluster.first_node(), &threads_stack(), &library);
    // Products were measured with weights that a cache holds; weights without end come from the memory and take longer.
    let machine = result.profile.machine.as_ref().unwrap();
    let few = |cost: &CostModel| {
        cost.gemm(1, 512, 512, 1, DType::Fp32, Scaling::None, 4.0, GemmRole::Forward).time.0
    };
    let (far, cost) = (few(&cost), cost.with_weights(machine, 0.0));
    assert!(machine.streams.len() >= 2 && far >= few(&cost), "{:?}", machine.streams);
    let records: Vec<Record> = journal::read(&samples_path(&out), &header()).unwrap();
    let mut errors = Vec::new();
    for record in &records {
        if let Point::Gemm { m, n, k, role: Role::Forward } = record.point {
            let price = cost.gemm(m, n, k, 1, DType::Fp32, Scaling::None, 4.0, GemmRole::Forward).time.0;
            let measured = record.median();
            errors.push((price / measured).ln().abs());
        }
    }
    errors.sort_by(f64::total_cmp);
    assert!(errors.len() >= 10);
    assert!(errors[errors.len() / 2] < 0.25, "{errors:.2?}");
    let drifts = check(&out, DeviceChoice::Cpu, 5, 1, None, &mut |_: f64, _: &str| true).unwrap();
    assert_eq!(drifts.len(), 5);
    assert!(drifts.iter().all(|d| d.now > 0.0 && d.before > 0.0));
}

#[test]
fn bad_budgets_are_refused() {
    for minutes in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error =
            calibrate(&options(Path::new("/nowhere/x"), minutes), &mut |_: f64, _: &str| true).unwrap_err();
        assert!(matches!(error, MeasureError::Budget(_)));
    }
    let error = calibrate(&options(Path::new("/nowhere/x"), 0.01), &mut |_: f64, _: &str| true).unwrap_err();
    assert!(error.to_string().contains("/nowhere"), "{error}");
}

/// Not a test: the child that [`kill_nine_loses_nothing`] kills.
#[test]
#[ignore = "run by kill_nine_loses_nothing"]
fn child() {
    if let Ok(out) = std::env::var("PSIM_CALIBRATE_CHILD") {
        calibrate(&options(Path::new(&out), 0.08), &mut |_: f64, _: &str| true).unwrap();
    }
}

/// Kills a calibration at random moments (`PSIM_KILLS`, default 8; the release check uses 50): every sample that was
/// there stays there, and no reader ever sees a torn file.
#[test]
fn kill_nine_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("cpu.toml");
    let samples = samples_path(&out);
    let kills: u32 = std::env::var("PSIM_KILLS").ok().and_then(|k| k.parse().ok()).unwrap_or(8);
    let spawn = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env("PSIM_CALIBRATE_CHILD", &out)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut known: Vec<Record> = Vec::new();
    let mut state = std::process::id().wrapping_mul(2_654_435_761) | 1;
    let mut resumed = 0;
    for _ in 0..kills {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let mut child = spawn();
        std::thread::sleep(Duration::from_millis(u64::from(20 + state % 400)));
        child.kill().unwrap();
        child.wait().unwrap();
        if let Ok(text) = std::fs::read_to_string(&out) {
            toml::from_str::<AcceleratorProfile>(&text).expect("a profile that can be read is whole");
        }
        match journal::read(&samples, &header()) {
            Ok(records) => {
                assert!(records.len() >= known.len(), "samples were lost");
                assert_eq!(&records[..known.len()], &known[..], "samples changed");
                resumed += usize::from(!known.is_empty() && records.len() > known.len());
                known = records;
            }
            // Killed before the header was on the disk.
            Err(MeasureError::File { .. }) => assert!(known.is_empty()),
            Err(error) => panic!("{error}"),
        }
    }
    println!("{kills} kills, {} samples, {resumed} resumed runs that measured more", known.len());
    assert!(spawn().wait().unwrap().success());
    let records: Vec<Record> = journal::read(&samples, &header()).unwrap();
    assert_eq!(&records[..known.len()], &known[..]);
    toml::from_str::<AcceleratorProfile>(&std::fs::read_to_string(&out).unwrap()).unwrap();
}
