//! Slow, obviously correct counterparts of the laws.

use psim_cost_models::gemm::{Rates, compute_seconds};
use psim_hardware::profile::accelerator::GemmLaw;

/// Runs tiles one by one on the unit that is free first.
fn list_schedule(tiles: u64, units: usize, each: f64) -> f64 {
    let mut free = vec![0.0f64; units];
    for _ in 0..tiles {
        let next = free.iter_mut().min_by(|a, b| a.total_cmp(b)).expect("units");
        *next += each;
    }
    free.iter().copied().fold(0.0, f64::max)
}

#[test]
fn whole_waves_equal_a_schedule_tile_by_tile() {
    let law = GemmLaw {
        launch_us: 0.0,
        compute: 0.5,
        memory: 1.0,
        prologue: 64.0,
        quantisation: 1.0,
        small_tile: 1.0,
    };
    let rates = Rates { peak: 1e15, bandwidth: 1e12, units: 132.0 };
    for (m, n, k) in
        [(4096.0, 4096.0, 4096.0), (8192.0, 1024.0, 512.0), (2304.0, 5120.0, 1024.0), (300.0, 700.0, 2048.0)]
    {
        let fast = compute_seconds(&law, rates, m, n, k, 1.0);
        let mut best = f64::INFINITY;
        for (tile_m, tile_n) in [
            (256.0, 128.0),
            (128.0, 256.0),
            (128.0, 128.0),
            (128.0, 64.0),
            (64.0, 128.0),
            (64.0, 64.0),
            (64.0, 32.0),
            (32.0, 64.0),
        ] {
            let tiles = (m / tile_m).ceil() * (n / tile_n).ceil();
            for split in [1.0, 2.0, 4.0, 8.0] {
                // A split is tried only while the previous one left units idle.
                if split > 1.0 && tiles * split / 2.0 >= rates.units {
                    break;
                }
                let each = 2.0 * tile_m * tile_n * (k / split + law.prologue)
                    / (rates.peak * law.compute / rates.units);
                best = f64::min(best, list_schedule((tiles * split) as u64, 132, each));
            }
        }
        assert!((fast / best - 1.0).abs() < 1e-9, "{m} {n} {k}: {fast} against {best}");
    }
}
