//! Speculation across a processor and an accelerator (Dovetail, Zhang et al. 2025, arXiv 2412.18934): a small draft model
//! on a small GPU, the target on the CPU. Only token ids and features cross the host link.
//!
//! A round drafts γ tokens one after another on the accelerator, then the target's device runs all γ + 1 at once: it reads
//! its weights and caches once, and computes for every candidate. Verification on a CPU leaves the memory-bound region
//! after a few candidates, so fewer drafts win than on a GPU: [`Dovetail::best`].

use super::devices::{NoEngine, verify_step};
use super::speculation::Acceptance;
use psim_cost_models::serving::StepCost;
use psim_hardware::DType;
use psim_hardware::device::Device;
use psim_models::serving::ServingShape;

/// A target on one device and a draft model on another.
#[derive(Debug, Clone, Copy)]
pub struct Dovetail<'a> {
    /// Where the target runs.
    pub device: &'a Device,
    /// The target on that device.
    pub target: &'a ServingShape,
    /// Arithmetic and storage of the target.
    pub dtype: DType,
    /// Share of its roofline that the target's device reaches.
    pub reached: f64,
    /// The draft model's steps.
    pub draft: &'a StepCost,
    /// Latency of crossing the host link, seconds, and its rate, bytes a second.
    pub link: (f64, f64),
}

impl Dovetail<'_> {
    fn target_seconds(&self, sequences: u32, queries: u32, context: f64) -> Result<f64, NoEngine> {
        let step = verify_step(self.device, self.target, self.dtype, (sequences, queries), context)?;
        Ok(step.seconds / self.reached.clamp(1e-3, 1.0))
    }

    /// Seconds of a round of `drafts` tokens for `sequences` with a mean of `context` tokens.
    ///
    /// # Errors
    /// An operator that no engine of the device runs.
    pub fn round_seconds(&self, sequences: u32, drafts: u32, context: f64) -> Result<f64, NoEngine> {
        let reads = self.draft.reads(sequences, context as u64);
        let draft = f64::from(drafts) * self.draft.decode_run(sequences).seconds(&reads);
        // Features of every accepted token go to the draft model, ids come back.
        let bytes = f64::from(sequences) * f64::from(drafts + 1) * (2.0 * self.target.hidden as f64 + 4.0);
        let crossing = if drafts == 0 { 0.0 } else { 2.0 * self.link.0 + bytes / self.link.1.max(1.0) };
        Ok(draft + crossing + self.target_seconds(sequences, drafts + 1, context)?)
    }

    /// Tokens a second and sequence, and how many times the target alone.
    ///
    /// # Errors
    /// An operator that no engine of the device runs.
    pub fn rate(
        &self,
        acceptance: &Acceptance,
        sequences: u32,
        drafts: u32,
        context: f64,
    ) -> Result<(f64, f64), NoEngine> {
        let rate = acceptance.mean_tokens(drafts) / self.round_seconds(sequences, drafts, context)?;
        Ok((rate, rate * self.target_seconds(sequences, 1, context)?))
    }

    /// The number of drafts, up to `most`, with the highest rate.
    ///
    /// # Errors
    /// An operator that no engine of the device runs.
    pub fn best(
        &self,
        acceptance: &Acceptance,
        sequences: u32,
        context: f64,
        most: u32,
    ) -> Result<(u32, f64), NoEngine> {
        let mut best = (0, 1.0);
        for drafts in 1..=most {
            let (_, gain) = self.rate(acceptance, sequences, drafts, context)?;
            if gain > best.1 {
                best = (drafts, gain);
            }
        }
        Ok(best)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use psim_cost_models::serving::KINDS;
    use psim_hardware::device::find;
    use psim_models::presets;
    use psim_models::serving::{Deployment, NumberFormat, Quantization, lower};

    #[test]
    fn a_round_by_hand_and_fewer_drafts_on_a_processor() {
        let q = Quantization::uniform(NumberFormat::Bf16);
        let shape =
            |name: &str| lower(&presets::find(name).unwrap(), &Deployment::tensor_parallel(1, q)).unwrap();
        let device = find("xeon-5220r").unwrap();
        let target = shape("llama2-7b");
        let engine = psim_cost_models::serving::engine::find("vllm-v1").unwrap();
        let draft = crate::serving::tests::cost(
            "llama3.2-1b",
            "A100-SXM-80GB",
            Deployment::tensor_parallel(1, q),
            engine,
        );
        let pair = Dovetail {
            device: &device,
            target: &target,
            dtype: DType::Fp32,
            reached: 1.0,
            draft: &draft,
            link: (10e-6, 16e9),
        };
        let alone = pair.round_seconds(1, 0, 300.0).unwrap();
        // 6.6e9 weights of 4 bytes at 128 GB/s.
        assert!((alone / (6.6e9 * 4.0 / 128e9) - 1.0).abs() < 0.1, "{alone}");
        let mut context = [0; KINDS];
        context[0] = 300;
        let three = pair.round_seconds(1, 3, 300.0).unwrap();
        let drafts = 3.0 * draft.decode_run(1).seconds(&context);
        let crossing = 20e-6 + 4.0 * (2.0 * 4096.0 + 4.0) / 16e9;
        // Four candidates are still bound by memory: 13.2 GFLOP each against 1.69 TFLOP/s, 31 ms of 206.
        assert!((three - drafts - crossing - alone).abs() < 0.02 * alone, "{three} {drafts} {alone}");
        // Verification of 40 candidates is bound by arithmetic and costs more than of 4.
        assert!(pair.round_seconds(1, 39, 300.0).unwrap() > 2.0 * alone);
        let acceptance = Acceptance::Rate(0.8);
        let (few, gain) = pair.best(&acceptance, 1, 300.0, 60).unwrap();
        assert!(gain > 1.5 && few > 1 && few < 40, "{few} {gain}");
        // More sequences want fewer drafts.
        assert!(pair.best(&acceptance, 8, 300.0, 60).unwrap().0 <= few);
    }
}
