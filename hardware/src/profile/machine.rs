//! Facts of the machine that a profile was measured on, beside its kernels: cores, caches, clocks, its own datasheet.

use crate::Accelerator;
use serde::{Deserialize, Serialize};

/// A machine as `psim calibrate` found it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineFacts {
    /// How ranks share its cores, where ranks are threads.
    pub sharing: Sharing,
    /// Rate after seconds of load relative to the first moments (1: clocks hold; 0 when it was not measured).
    #[serde(default)]
    pub sustained: f64,
    /// Data caches of one core, nearest first, as the system lists them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caches: Vec<Cache>,
    /// Latency of a dependent load by working set, smallest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latency: Vec<LoadLatency>,
    /// Nanoseconds of a dependent load from memory shared by a block, where there is such memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_nanoseconds: Option<f64>,
    /// Microseconds per empty kernel launched one by one, and replayed in a graph; where there is something to launch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launch_us: Option<f64>,
    /// As above, in a graph.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graph_launch_us: Option<f64>,
    /// Copies between host and device.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_copies: Vec<HostCopy>,
    /// Steps of a serving engine of next to no arithmetic: what its loop costs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engine_steps: Vec<EngineStep>,
    /// Time of a product of a few rows with a matrix that lies transposed (an output layer that shares the embedding),
    /// relative to the usual layout; 0 when it was not measured.
    #[serde(default)]
    pub transposed: f64,
    /// What reading weights costs beyond the nearest caches, by the bytes that are read in turn, smallest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub streams: Vec<Stream>,
    /// What the profile's factors are relative to.
    pub datasheet: Accelerator,
}

/// Weights of many products of few rows that are read one after the other, again and again.
///
/// While they fit in the last cache a product costs what the profile's tables say; beyond it, every byte of a weight takes
/// longer by about the same time, whatever the rows: the memory's time is not hidden behind the arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stream {
    /// Bytes of all weights together.
    pub bytes: u64,
    /// Picoseconds that a byte takes longer than where the tables were measured.
    pub picoseconds: f64,
}

impl MachineFacts {
    /// Seconds that a byte of weights takes longer than in the tables where `bytes` of weights are read in turn (`None`:
    /// far more than the caches hold): between measured sizes along their logarithm, outside as at the ends.
    pub fn weight_seconds(&self, bytes: Option<f64>) -> f64 {
        let Some(last) = self.streams.last() else { return 0.0 };
        let at = bytes.unwrap_or(f64::INFINITY);
        let above = self.streams.partition_point(|s| (s.bytes as f64) < at);
        let picoseconds =
            match (above.checked_sub(1).and_then(|i| self.streams.get(i)), self.streams.get(above)) {
                (None, Some(first)) => first.picoseconds,
                (Some(low), Some(high)) => {
                    let share = (at / low.bytes as f64).ln() / (high.bytes as f64 / low.bytes as f64).ln();
                    low.picoseconds + share * (high.picoseconds - low.picoseconds)
                }
                _ => last.picoseconds,
            };
        picoseconds * 1e-12
    }
}

/// A measured step of a serving engine with a network of next to no arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineStep {
    /// Layers of the network.
    pub layers: u32,
    /// Sequences that decode, one token each.
    pub sequences: u32,
    /// Vocabulary.
    pub vocab: u32,
    /// Microseconds of processor time.
    pub time_us: f64,
}

/// A copy between host and device.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostCopy {
    /// Bytes.
    pub bytes: u64,
    /// To the device, else from it.
    pub to_device: bool,
    /// Microseconds.
    pub time_us: f64,
}

/// A data or unified cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// Level, from 1.
    pub level: u32,
    /// Size in bytes.
    pub bytes: u64,
}

/// A point of the pointer chase.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadLatency {
    /// Working set in bytes.
    pub bytes: u64,
    /// Nanoseconds per dependent load.
    pub nanoseconds: f64,
}

/// Cores that threads share: beyond their number threads take turns; up to it they share caches, memory and (where a
/// core is half of a physical one) execution units.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sharing {
    /// Cores; 0: a core for every thread, undisturbed.
    pub cores: u32,
    /// Rate of each of some threads that compute at once on cores of their own, relative to one alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub together: Vec<Together>,
}

/// One measured number of threads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Together {
    /// Threads.
    pub threads: u32,
    /// Rate of each relative to one alone.
    pub rate: f64,
}

impl Sharing {
    /// Share of a core that each of `active` busy threads gets.
    pub fn share(&self, active: u32) -> f64 {
        if self.cores == 0 || active <= self.cores { 1.0 } else { f64::from(self.cores) / f64::from(active) }
    }

    /// Rate of a thread while it runs and `active` are busy, relative to one alone: linear between what was measured,
    /// constant beyond.
    pub fn contention(&self, active: u32) -> f64 {
        let running = f64::from(if self.cores == 0 { active } else { active.min(self.cores) });
        let mut below = (1.0, 1.0);
        for point in &self.together {
            let here = (f64::from(point.threads), point.rate);
            if here.0 >= running {
                let span = here.0 - below.0;
                let along = if span > 0.0 { (running - below.0) / span } else { 1.0 };
                return below.1 + (here.1 - below.1) * along.clamp(0.0, 1.0);
            }
            below = here;
        }
        below.1
    }

    /// Progress of each of `active` busy threads relative to one alone.
    pub fn speed(&self, active: u32) -> f64 {
        (self.share(active) * self.contention(active)).max(1e-6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_beyond_the_caches_take_longer() {
        let datasheet = crate::catalogue::accelerator("h100-sxm").unwrap().clone();
        let stream = |mib: u64, picoseconds| Stream { bytes: mib << 20, picoseconds };
        let none = MachineFacts {
            sharing: Sharing::default(),
            sustained: 0.0,
            caches: Vec::new(),
            latency: Vec::new(),
            shared_nanoseconds: None,
            launch_us: None,
            graph_launch_us: None,
            host_copies: Vec::new(),
            engine_steps: Vec::new(),
            transposed: 0.0,
            streams: Vec::new(),
            datasheet,
        };
        assert_eq!((none.weight_seconds(None), none.weight_seconds(Some(1e9))), (0.0, 0.0));
        let measured =
            MachineFacts { streams: vec![stream(4, 0.0), stream(16, 20.0), stream(64, 100.0)], ..none };
        let picoseconds = |mib: f64| measured.weight_seconds(Some(mib * 1048576.0)) * 1e12;
        assert!(picoseconds(1.0) == 0.0 && picoseconds(4.0) == 0.0);
        // Half way between on the logarithmic axis.
        assert!((picoseconds(8.0) - 10.0).abs() < 1e-9 && (picoseconds(32.0) - 60.0).abs() < 1e-9);
        assert!((picoseconds(500.0) - 100.0).abs() < 1e-9);
        assert!((measured.weight_seconds(None) * 1e12 - 100.0).abs() < 1e-9);
    }

    #[test]
    fn threads_take_turns_beyond_the_cores() {
        let together = vec![Together { threads: 2, rate: 0.9 }, Together { threads: 4, rate: 0.7 }];
        let sharing = Sharing { cores: 4, together };
        assert_eq!(sharing.speed(1), 1.0);
        assert!((sharing.speed(2) - 0.9).abs() < 1e-12);
        assert!((sharing.speed(3) - 0.8).abs() < 1e-12);
        assert!((sharing.speed(8) - 0.35).abs() < 1e-12);
        assert_eq!(Sharing::default().speed(100), 1.0);
        // Total progress never falls when a thread is added up to the cores.
        for n in 1..8 {
            assert!(f64::from(n + 1) * sharing.speed(n + 1) >= f64::from(n) * sharing.speed(n) - 1e-12);
        }
    }
}
