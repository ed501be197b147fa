//! The importers on real files, broken ones among them.

use psim_calibration::import::{kineto, nccl};
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
