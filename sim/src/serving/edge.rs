//! Tensor parallelism on slow devices over a slow network, weights streamed from disk (TPI-LLM, Li et al. 2024).
//!
//! Messages are small (one token's hidden state), so that an all-reduce costs its hops: a star sends to the master and
//! back, a tree the same per level, a ring passes 2(n − 1) times. Weights come through a window of blocks; a block waits
//! for its weights where disk and window cannot keep up.

use serde::{Deserialize, Serialize};

/// How partial sums meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum EdgeReduce {
    /// All to one master and back.
    Star,
    /// Up and down a tree of this depth.
    Tree(u32),
    /// Round the ring twice.
    Ring,
}

impl EdgeReduce {
    /// Reads `star`, `tree` (depth 2) or `ring`.
    ///
    /// # Errors
    /// A sentence with the known names; a name that is not built, with the reason.
    pub fn parse(name: &str) -> Result<Self, String> {
        match name {
            "star" => Ok(Self::Star),
            "tree" => Ok(Self::Tree(2)),
            "ring" => Ok(Self::Ring),
            "parameter-server" => {
                Err("reduction `parameter-server` is not built: use star, which has the same hops".to_owned())
            }
            other => Err(format!("`{other}` is not an edge reduction; known: star, tree, ring")),
        }
    }

    /// Link crossings, one after another, of `devices` whose messages cross `hops` links each way.
    pub fn crossings(self, devices: u32, hops: u32) -> u32 {
        match self {
            Self::Star => 2 * hops,
            Self::Tree(depth) => 2 * depth * hops,
            Self::Ring => 2 * devices.saturating_sub(1) * hops,
        }
    }

    /// Seconds of an all-reduce of `bytes` with links of `latency` seconds and `rate` bytes a second. The master of a
    /// star takes in and sends out one message per other device over its own link.
    pub fn seconds(self, devices: u32, hops: u32, (latency, rate): (f64, f64), bytes: f64) -> f64 {
        let others = f64::from(devices.saturating_sub(1));
        let wire = match self {
            Self::Star => 2.0 * others * bytes / rate,
            Self::Tree(depth) => {
                let fan = f64::from(devices).powf(1.0 / f64::from(depth.max(1))).ceil();
                2.0 * f64::from(depth) * fan * bytes / rate
            }
            Self::Ring => 2.0 * others / f64::from(devices.max(1)) * bytes / rate,
        };
        f64::from(self.crossings(devices, hops)) * latency + wire
    }
}

/// A model of two blocks a layer (attention, feed-forward), cut over devices, weights behind a window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeModel {
    /// Layers.
    pub layers: u32,
    /// Seconds of an attention block on a device.
    pub attention: f64,
    /// Seconds of a feed-forward block on a device.
    pub feed_forward: f64,
    /// Seconds of an all-reduce after each.
    pub reduce: f64,
    /// Seconds of loading an attention block's weights.
    pub load_attention: f64,
    /// Seconds of loading a feed-forward block's weights.
    pub load_feed_forward: f64,
    /// Blocks in memory.
    pub window: u32,
}

impl EdgeModel {
    /// Loading hides behind computing on average: t_attn + t_ffn + 2 t_reduce ≥ τ_attn + τ_ffn (section 3.3).
    pub fn hides(&self) -> bool {
        self.attention + self.feed_forward + 2.0 * self.reduce >= self.load_attention + self.load_feed_forward
    }

    /// Seconds of a token by a computing and a loading stream, with the first window loaded.
    pub fn token_seconds(&self) -> f64 {
        let window = self.window.max(1) as usize;
        let mut ends: Vec<f64> = Vec::new();
        let (mut compute, mut load) = (0.0f64, 0.0f64);
        for block in 0..2 * self.layers as usize {
            let (run, fetch) = if block % 2 == 0 {
                (self.attention, self.load_attention)
            } else {
                (self.feed_forward, self.load_feed_forward)
            };
            let start = if block < window {
                compute
            } else {
                load = load.max(ends[block - window]) + fetch;
                load.max(compute)
            };
            compute = start + run + self.reduce;
            // The weights are free when the block has run; the reduction needs none.
            ends.push(compute - self.reduce);
        }
        compute
    }

    /// Seconds of a token in the steady state: the slower of the two streams.
    pub fn closed_form(&self) -> f64 {
        let compute = self.attention + self.feed_forward + 2.0 * self.reduce;
        f64::from(self.layers) * compute.max(self.load_attention + self.load_feed_forward)
    }
}

/// Peak bytes on the master: embedding and output table whole, and the window's blocks cut over the devices.
pub fn peak_bytes(
    hidden: f64,
    vocabulary: f64,
    block_bytes: (f64, f64),
    devices: f64,
    window: f64,
    element: f64,
) -> f64 {
    2.0 * hidden * vocabulary * element + window / 2.0 * (block_bytes.0 + block_bytes.1) / devices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crossings_of_the_paper() {
        // Eight devices, four links between a device and the master: 8, 16 and 56 latencies.
        assert_eq!(EdgeReduce::Star.crossings(8, 4), 8);
        assert_eq!(EdgeReduce::Tree(2).crossings(8, 4), 16);
        assert_eq!(EdgeReduce::Ring.crossings(8, 4), 56);
        // With 1 ms a link and small messages the star is fastest; with large ones the ring.
        let time = |r: EdgeReduce, bytes| r.seconds(8, 4, (1e-3, 300e6 / 8.0), bytes);
        assert!(time(EdgeReduce::Star, 4096.0) < time(EdgeReduce::Tree(2), 4096.0));
        assert!(time(EdgeReduce::Ring, 50e6) < time(EdgeReduce::Star, 50e6));
        assert!(EdgeReduce::parse("parameter-server").unwrap_err().contains("not built"));
    }

    #[test]
    fn published_block_times_hide_the_disk() {
        // Section 3.3: 11, 17 and 14 ms against loads of 18 and 30 ms: 56 ms of work hide 48 ms of loading.
        let m = EdgeModel {
            layers: 32,
            attention: 0.011,
            feed_forward: 0.017,
            reduce: 0.014,
            load_attention: 0.018,
            load_feed_forward: 0.030,
            window: 4,
        };
        assert!(m.hides());
        assert!((m.token_seconds() / (32.0 * 0.056) - 1.0).abs() < 0.02, "{}", m.token_seconds());
        let slow = EdgeModel { load_feed_forward: 0.1, ..m };
        assert!(!slow.hides());
        assert!((slow.token_seconds() / slow.closed_form() - 1.0).abs() < 0.08, "{}", slow.token_seconds());
    }

    #[test]
    fn seventy_billion_in_three_gigabytes() {
        // Llama-2-70B in 4 bytes on 8 devices with a window of 2: 2.1 GB of tables and 0.43 GB of blocks; table 1 has
        // 3.1 GB with the runtime.
        let ffn = 3.0 * 8192.0 * 28_672.0 * 4.0;
        let attention = (2.0 * 8192.0 * 8192.0 + 2.0 * 8192.0 * 1024.0) * 4.0;
        let bytes = peak_bytes(8192.0, 32_000.0, (attention, ffn), 8.0, 2.0, 4.0);
        assert!((bytes / 3.1e9 - 1.0).abs() < 0.25, "{bytes}");
        // The disk of the 7B row (3.3 GB a device in 2.6 s) gives 27 s a token; the table has 26.1 s.
        let (small, large) = (26.4e9_f64 / 8.0, 276e9_f64 / 8.0);
        let seconds: f64 = large / (small / 2.6);
        assert!((seconds / 26.1 - 1.0).abs() < 0.25, "{seconds}");
    }
}
