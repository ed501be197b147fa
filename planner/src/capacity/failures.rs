//! Failures, checkpoints and restarts: how much of the wall-clock time is useful.
//!
//! Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps" (2006): with mean time between
//! failures `M` of the whole job, checkpoint time `d`, restart time `R` and interval `t`, the expected wall-clock time
//! per useful second is `(M / t) · e^(R/M) · (e^((t+d)/M) − 1)` (equation 20), least near
//! `t = sqrt(2·d·M)·(1 + sqrt(d/2M)/3 + (d/2M)/9) − d` (equation 37).

use psim_hardware::Cluster;

/// Hours between failures that stop a job, per accelerator. Llama 3 (Grattafiori et al. 2024, section 3.3.4): 419
/// unexpected interruptions in 54 days on 16,384 H100, that is one in 50,700 accelerator hours.
pub const MTBF_PER_GPU_HOURS: f64 = 50_700.0;

/// Seconds from a failure to the next useful step. MegaScale (Jiang et al. 2024): detection, eviction and restart of
/// thousands of accelerators within 15 minutes.
pub const RESTART_SECONDS: f64 = 900.0;

/// Bytes of a checkpoint per parameter: bf16 weights, fp32 master copy and two fp32 moments.
pub const CHECKPOINT_BYTES_PER_PARAMETER: f64 = 14.0;

/// Write rate of one node where the cluster describes no storage: one datacentre NVMe drive.
pub const DEFAULT_NODE_WRITE: f64 = 2e9;

/// The failure behaviour of a cluster.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FailureModel {
    /// Mean time between failures of one accelerator, hours.
    pub mtbf_per_gpu_hours: f64,
    /// Seconds from a failure to the next useful step.
    pub restart: f64,
    /// Write rate for checkpoints of the whole cluster, bytes per second.
    pub write_rate: f64,
}

/// What failures cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Goodput {
    /// Mean time between failures of the job, seconds.
    pub mtbf: f64,
    /// Seconds to write a checkpoint.
    pub write: f64,
    /// Seconds between checkpoints.
    pub interval: f64,
    /// Useful share of the wall-clock time.
    pub useful_share: f64,
}

impl FailureModel {
    /// The model of a cluster: shared storage, else the nodes' own drives.
    pub fn of(cluster: &Cluster) -> Self {
        let local = || -> f64 {
            cluster
                .groups
                .iter()
                .map(|g| f64::from(g.count) * g.node.nvme.as_ref().map_or(DEFAULT_NODE_WRITE, |s| s.write.0))
                .sum()
        };
        Self {
            mtbf_per_gpu_hours: MTBF_PER_GPU_HOURS,
            restart: RESTART_SECONDS,
            write_rate: cluster.storage.as_ref().map_or_else(local, |s| s.write.0).max(1.0),
        }
    }

    /// Bytes of one checkpoint.
    pub fn checkpoint_bytes(parameters: u64) -> f64 {
        CHECKPOINT_BYTES_PER_PARAMETER * parameters as f64
    }

    /// Useful share of a job on `accelerators` with checkpoints at the best interval.
    pub fn goodput(&self, accelerators: u32, checkpoint_bytes: f64) -> Goodput {
        let mtbf = self.mtbf_per_gpu_hours * 3600.0 / f64::from(accelerators.max(1));
        let write = checkpoint_bytes / self.write_rate;
        let ratio = write / (2.0 * mtbf);
        // Beyond d = 2M Daly's expansion ends; checkpointing once per failure is what remains.
        let interval = if ratio < 1.0 {
            (2.0 * write * mtbf).sqrt() * (1.0 + ratio.sqrt() / 3.0 + ratio / 9.0) - write
        } else {
            mtbf
        };
        let interval = interval.max(1e-3 * mtbf.min(1.0)).max(1e-6);
        let wall = mtbf / interval * (self.restart / mtbf).exp() * ((interval + write) / mtbf).exp_m1();
        Goodput { mtbf, write, interval, useful_share: (1.0 / wall).clamp(1e-9, 1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: FailureModel =
        FailureModel { mtbf_per_gpu_hours: 50_700.0, restart: 900.0, write_rate: 1e12 };

    #[test]
    fn the_interval_is_where_the_expected_time_is_least() {
        let bytes = 14.0 * 405e9;
        let best = MODEL.goodput(16_384, bytes);
        let wall = |t: f64| {
            best.mtbf / t * (MODEL.restart / best.mtbf).exp() * ((t + best.write) / best.mtbf).exp_m1()
        };
        let at_best = wall(best.interval);
        for factor in [0.5, 0.8, 1.25, 2.0] {
            assert!(wall(best.interval * factor) > at_best, "{factor}");
        }
    }

    #[test]
    fn sixteen_thousand_accelerators_lose_about_a_tenth() {
        // 3.1 hours between failures, 15 minutes each: Llama 3 reports over 90 % effective training time.
        let goodput = MODEL.goodput(16_384, 14.0 * 405e9).useful_share;
        assert!((0.85..0.95).contains(&goodput), "{goodput}");
    }

    #[test]
    fn more_accelerators_fail_more_often_and_absurd_sizes_stay_finite() {
        let mut last = 1.0;
        for n in [1, 8, 64, 1024, 16_384, 1 << 20, u32::MAX] {
            let g = MODEL.goodput(n, 14.0 * 70e9).useful_share;
            assert!(g.is_finite() && g > 0.0 && g <= last, "{n}: {g}");
            last = g;
        }
    }
}
