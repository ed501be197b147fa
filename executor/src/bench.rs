//! Micro-benchmarks of the collectives among rank threads, for calibration.

use crate::comm::{Comm, Hub, Tag};
use crate::mesh::Group;
use psim_models::operator::Dimension;
use std::sync::Barrier;
use std::time::Instant;

/// Repeats after one warm-up.
const REPEATS: usize = 7;

/// Seconds of each repeat of a collective among `ranks` threads; `bytes` as nccl-tests counts them (4 per element).
/// The slowest rank counts.
///
/// # Errors
/// For an unknown operation.
pub fn collective(operation: &str, ranks: u32, bytes: u64) -> Result<Vec<f64>, String> {
    let ranks = ranks as usize;
    let elements = (bytes / 4) as usize;
    if !["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "send-recv"].contains(&operation) {
        return Err(format!("unknown collective `{operation}`"));
    }
    let hub = Hub::new(ranks);
    let barrier = Barrier::new(ranks);
    let times: Vec<Vec<f64>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..ranks)
            .map(|index| {
                let (endpoint, barrier) = (hub.endpoint(index), &barrier);
                scope.spawn(move || {
                    let comm = Comm::new(endpoint);
                    let group = Group { ranks: (0..ranks).collect(), index };
                    let data: Vec<f32> = (0..elements).map(|i| (i + index) as f32).collect();
                    let mut seconds = Vec::new();
                    for _ in 0..=REPEATS {
                        barrier.wait();
                        let start = Instant::now();
                        // A failure would be a stopped peer; then the times do not matter.
                        let _ = run(&comm, &group, operation, &data);
                        seconds.push(start.elapsed().as_secs_f64());
                    }
                    seconds
                })
            })
            .collect();
        handles.into_iter().filter_map(|h| h.join().ok()).collect()
    });
    if times.len() < ranks {
        return Err("a rank thread panicked".to_owned());
    }
    Ok((1..=REPEATS).map(|i| times.iter().map(|t| t[i]).fold(0.0, f64::max)).collect())
}

fn run(
    comm: &Comm<crate::comm::ThreadTransport>,
    group: &Group,
    operation: &str,
    data: &[f32],
) -> crate::error::Result<()> {
    let (n, dimension) = (group.size(), Dimension::Tp);
    let share = data.len() / n;
    match operation {
        "all-reduce" => drop(comm.all_reduce(dimension, group, data.to_vec())?),
        "all-gather" => drop(comm.all_gather(dimension, group, data[..share].to_vec())?),
        "reduce-scatter" => drop(comm.reduce_scatter(dimension, group, data.to_vec())?),
        "all-to-all" => {
            drop(comm.all_to_all(
                dimension,
                group,
                data.chunks(share.max(1)).take(n).map(<[f32]>::to_vec).collect(),
            )?);
        }
        _ => {
            let peer = group.ranks[(group.index + 1) % n];
            comm.send(Dimension::Pp, peer, Tag::Forward(0, 0), data.to_vec())?;
            let from = group.ranks[(group.index + n - 1) % n];
            drop(comm.receive(Dimension::Pp, from, Tag::Forward(0, 0))?);
        }
    }
    Ok(())
}

/// Speed of each of `1..=threads` threads that multiply matrices at the same time, relative to one alone: what cores,
/// shared execution units and other programs leave. Medians of short runs.
pub fn concurrency(threads: usize) -> Vec<f64> {
    use psim_kernels::{Device, Gemm, cpu::CpuDevice};
    let size = 192;
    let work = |barrier: &Barrier| -> f64 {
        let device = CpuDevice::new();
        let operands =
            || device.upload(&(0..size * size).map(|i| (i % 97) as f32 * 0.01 - 0.5).collect::<Vec<_>>());
        let (Ok(a), Ok(b), Ok(mut c)) = (operands(), operands(), operands()) else { return f64::NAN };
        let shape = Gemm::new(size, size, size);
        barrier.wait();
        let start = Instant::now();
        for _ in 0..60 {
            let _ = device.gemm(&shape, &a, &b, &mut c);
        }
        start.elapsed().as_secs_f64()
    };
    let mean = |count: usize| -> f64 {
        let barrier = Barrier::new(count);
        let times: Vec<f64> = std::thread::scope(|scope| {
            let handles: Vec<_> = (0..count).map(|_| scope.spawn(|| work(&barrier))).collect();
            handles.into_iter().filter_map(|h| h.join().ok()).collect()
        });
        times.iter().sum::<f64>() / times.len().max(1) as f64
    };
    let median = |count: usize| {
        let mut runs: Vec<f64> = (0..5).map(|_| mean(count)).collect();
        runs.sort_by(f64::total_cmp);
        runs[2]
    };
    let alone = median(1);
    let mut speeds = Vec::with_capacity(threads);
    let mut slowest = 1.0_f64;
    for count in 1..=threads {
        // More threads never run faster each.
        slowest = slowest.min(if count == 1 { 1.0 } else { alone / median(count) });
        speeds.push(slowest);
    }
    speeds
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_collective_runs_and_takes_time() {
        for operation in ["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "send-recv"] {
            let times = super::collective(operation, 3, 4096).unwrap();
            assert!(times.len() == 7 && times.iter().all(|&t| t > 0.0), "{operation}: {times:?}");
        }
        assert!(super::collective("gather", 2, 64).is_err());
    }
}
