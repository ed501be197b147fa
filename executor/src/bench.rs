//! Micro-benchmarks of the collectives among rank threads, for calibration.
//!
//! A collective costs the processor time of its slowest rank (copying out of and into device buffers included, as the
//! executor does it) and the hand-overs between threads that it cannot do without. Both are what a machine of one's own
//! would show, even where other programs take turns on the cores.

mod engine;
mod narrow;

pub use engine::engine_step;
pub(crate) use narrow::narrow;

use crate::comm::{Comm, Hub, Tag};
use crate::mesh::Group;
use psim_kernels::cpu::thread_seconds;
use psim_models::operator::Dimension;
use std::hint::black_box;
use std::sync::{Barrier, OnceLock};
use std::time::{Duration, Instant};

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
    let wait = hand_over() * if operation == "all-reduce" { 2.0 } else { 1.0 };
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
                        let start = thread_seconds();
                        // A failure would be a stopped peer; then the times do not matter.
                        let _ = run(&comm, &group, operation, &data);
                        seconds.push(thread_seconds() - start);
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
    Ok((1..=REPEATS).map(|i| wait + times.iter().map(|t| t[i]).fold(0.0, f64::max)).collect())
}

/// Seconds from sending a short message until a thread that waits for it has it: the lower quartile of many, because
/// what lies above it is other programs. Measured once.
///
/// New threads may share a core for a while, where every message costs a change of threads that ranks at work do not see:
/// both are kept busy first, until the system has given each a core, and the best of several pairs counts.
pub fn hand_over() -> f64 {
    static SECONDS: OnceLock<f64> = OnceLock::new();
    *SECONDS.get_or_init(|| (0..PAIRS).map(|_| trip()).fold(f64::INFINITY, f64::min))
}

/// Pairs of threads that are tried.
const PAIRS: usize = 6;
/// How long both are busy before.
const BUSY: Duration = Duration::from_millis(6);

fn stay_busy() {
    let begin = Instant::now();
    while begin.elapsed() < BUSY {
        std::hint::spin_loop();
    }
}

/// Of one pair of threads.
fn trip() -> f64 {
    const TRIPS: usize = 200;
    let hub = Hub::new(2);
    let (here, there) = (Comm::new(hub.endpoint(0)), Comm::new(hub.endpoint(1)));
    let mut times: Vec<f64> = std::thread::scope(|scope| {
        scope.spawn(move || {
            stay_busy();
            for _ in 0..TRIPS {
                let Ok(data) = there.receive(Dimension::Pp, 0, Tag::Forward(0, 0)) else { return };
                let _ = there.send(Dimension::Pp, 0, Tag::Backward(0, 0), data);
            }
        });
        stay_busy();
        (0..TRIPS)
            .map(|_| {
                let start = Instant::now();
                let _ = here.send(Dimension::Pp, 1, Tag::Forward(0, 0), vec![0.0]);
                let _ = here.receive(Dimension::Pp, 1, Tag::Backward(0, 0));
                0.5 * start.elapsed().as_secs_f64()
            })
            .collect()
    });
    times.sort_by(f64::total_cmp);
    times[TRIPS / 4]
}

fn run(
    comm: &Comm<crate::comm::ThreadTransport>,
    group: &Group,
    operation: &str,
    data: &[f32],
) -> crate::error::Result<()> {
    let (n, dimension) = (group.size(), Dimension::Tp);
    let share = data.len() / n;
    // Results are copied once more: into a device buffer.
    match operation {
        "all-reduce" => {
            black_box(comm.all_reduce(dimension, group, data.to_vec())?.clone());
        }
        "all-gather" => {
            black_box(comm.all_gather(dimension, group, data[..share].to_vec())?.concat());
        }
        "reduce-scatter" => {
            black_box(comm.reduce_scatter(dimension, group, data.to_vec())?.clone());
        }
        "all-to-all" => {
            let parts = data.chunks(share.max(1)).take(n).map(<[f32]>::to_vec).collect();
            black_box(comm.all_to_all(dimension, group, parts)?.concat());
        }
        _ => {
            let peer = group.ranks[(group.index + 1) % n];
            comm.send(Dimension::Pp, peer, Tag::Forward(0, 0), data.to_vec())?;
            let from = group.ranks[(group.index + n - 1) % n];
            black_box(comm.receive(Dimension::Pp, from, Tag::Forward(0, 0))?.clone());
        }
    }
    Ok(())
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
