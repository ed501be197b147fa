//! The importers on real files, broken ones among them.

use psim_calibration::import::{kineto, nccl, nsys, profile, tables};
use std::path::PathBuf;

#[expect(clippy::print_stdout, reason = "a skipped test says so")]
fn data(folder: &str) -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data")).join(folder);
    if !path.is_dir() {
        println!("SKIP: {} is not there, real files are not read", path.display());
        return None;
    }
    Some(path)
}

#[test]
fn nccl_logs() {
    let Some(folder) = data("nccl") else { return };
    let read = |name: &str| nccl::parse(&std::fs::read_to_string(folder.join(name)).unwrap());
    let log = read("dgxc-readme-1.log").unwrap();
    assert_eq!(log.rows.len(), 32);
    assert_eq!(log.rows[0].bytes, 8);
    assert!(log.device.as_deref().unwrap().contains("H100"));
    let sweep = read("mlperf-smc-8xh100-allreduce-sweep.log").unwrap();
    assert_eq!((sweep.ranks, sweep.hosts.len()), (Some(8), 1));
    let curve = nccl::curve(&sweep, Some("all-reduce"), None).unwrap();
    assert!(curve.bytes.len() >= 4 && curve.time_us[0] == 147.7, "{curve:?}");
    assert_eq!(read("coreweave-readme-4.log").unwrap().ranks, Some(1440));
    for name in
        ["aws-readme-1.log", "aws-batch-readme-1.log", "coreweave-readme-1.log", "coreweave-readme-2.log"]
    {
        assert!(!read(name).unwrap().rows.is_empty(), "{name}");
    }
    let error = read("mlperf-oracle-failed-run.log").unwrap_err().to_string();
    assert!(error.contains("no result rows"), "{error}");
    println!("failed run: {error}");
}

#[test]
fn kineto_traces() {
    let Some(folder) = data("kineto") else { return };
    let read = |name: &str| kineto::parse(&std::fs::read(folder.join(name)).unwrap());
    let trace = read("nccl-metadata.json.gz").unwrap();
    assert_eq!(trace.kernels.iter().map(|k| k.count).sum::<usize>(), 2700);
    assert!(trace.kernels.iter().any(|k| k.kind == kineto::KernelKind::Communication));
    let parts = trace.compute_us + trace.exposed_communication_us + trace.idle_us;
    assert!((parts / trace.span_us - 1.0).abs() < 1e-9);
    let names = ["alexnet-train-1gpu", "mi250-minitoy-train-rocm6.2", "sampled-rank-0", "sampled-rank-1"];
    for name in names {
        let trace = read(&format!("{name}.json.gz")).unwrap();
        assert!(trace.compute_us > 0.0 && trace.compute_us <= trace.span_us, "{name}");
    }
    for (name, reason) in
        [("cpu-only-rank-34.json.gz", "CPU-only"), ("simple-add-with-et.et.json.gz", "no `traceEvents`")]
    {
        let error = read(name).unwrap_err().to_string();
        assert!(error.contains(reason), "{name}: {error}");
    }
}

#[test]
fn a_trace_with_sizes_becomes_a_profile() {
    let Some(folder) = data("kineto") else { return };
    let trace = kineto::parse(&std::fs::read(folder.join("nccl-metadata.json.gz")).unwrap()).unwrap();
    let curves = profile::curves(&trace.collectives);
    assert!(curves.iter().any(|c| c.operation == "all-reduce" && c.ranks == 2 && !c.bytes.is_empty()));
    for curve in &curves {
        assert!(curve.time_us.windows(2).all(|w| w[0] <= w[1]) && curve.time_us[0] > 0.0);
        assert!(curve.bytes.windows(2).all(|w| w[0] < w[1]));
    }
    let part = psim_hardware::catalogue::accelerator("a100").unwrap();
    let imported = profile::correct(part, &trace.gemms, curves.clone(), "a trace").unwrap();
    assert!(curves.iter().all(|c| imported.profile.collectives.contains(c)));
    // The profile is whole: what the trace does not say comes from the built-in one.
    assert!(!imported.profile.gemm.is_empty() && !imported.profile.attention.is_empty());
    let text = toml::to_string(&imported.profile).unwrap();
    let again: psim_hardware::profile::AcceleratorProfile = toml::from_str(&text).unwrap();
    assert_eq!(again, imported.profile);
    // A trace without sizes makes no profile, and says why.
    let bare = kineto::parse(&std::fs::read(folder.join("alexnet-train-1gpu.json.gz")).unwrap()).unwrap();
    let error = profile::correct(part, &bare.gemms, profile::curves(&bare.collectives), "x").unwrap_err();
    assert!(error.to_string().contains("record_shapes"), "{error}");
}

#[test]
fn an_nsight_systems_export() {
    // Made with Python's sqlite3 in the layout of `nsys export`: pages of 1 KiB, names longer than a page.
    let bytes = include_bytes!("data/nsys-small.sqlite");
    let trace = nsys::parse(bytes).unwrap();
    assert_eq!(trace.device.as_deref(), Some("NVIDIA H100 80GB HBM3"));
    assert_eq!(trace.kernels.iter().map(|k| k.count).sum::<usize>(), 120);
    let gemm = &trace.kernels[0];
    assert!(gemm.kind == kineto::KernelKind::Gemm && gemm.name.len() > 2000);
    assert!((gemm.total_us - 30.0 * 50.0).abs() < 1e-6, "{gemm:?}");
    assert!((trace.compute_us - 30.0 * 88.0).abs() < 1e-6);
    assert!((trace.exposed_communication_us - 30.0 * 20.0).abs() < 1e-6);
    // Whatever is cut off or changed, it is refused or read, never a panic or an endless loop.
    for cut in (0..bytes.len()).step_by(257) {
        let _ = nsys::parse(&bytes[..cut]);
        let mut changed = bytes.to_vec();
        changed[cut] ^= 0xff;
        let _ = nsys::parse(&changed);
    }
    assert!(nsys::parse(b"not a database").unwrap_err().to_string().contains("SQLite"));
}

#[test]
fn measured_tables_become_a_profile() {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/measured"));
    let part = psim_hardware::catalogue::accelerator("l40s").unwrap();
    let empty = tempfile::tempdir().unwrap();
    assert!(tables::fit(empty.path(), part).unwrap_err().to_string().contains("measured tables"));
    if !folder.is_dir() {
        return;
    }
    let imported = tables::fit(&folder, part).unwrap();
    assert!(imported.profile.accelerator == part.name && !imported.profile.gemm.is_empty());
    assert!(imported.changes.iter().any(|c| c.contains("median error")));
}
